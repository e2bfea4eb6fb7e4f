"""r(x, y), a scalar reward, and the Bradley-Terry preference made of it: the RLHF baseline.

P(y ≻ y'|x) = σ(r(x, y) − r(x, y')) orders responses on a line, so it can hold neither a cycle nor mixed tastes.

Source: Munos et al. (2024), arXiv:2312.00886, section 3.1 and appendix (reward prompt).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax import losses
from nlhf_jax.models import preference_model as pm
from nlhf_jax.networks import axes
from nlhf_jax.types import Comparison, Losses, Params, PreferenceFn, PRNGKey, Prompts, RewardFn

REWARD_PROMPT = ('Context - ', ', Summary - ', '')


class RewardPrompt(NamedTuple):
  """The pieces of the reward prompt as token ids, without EOS."""

  before_text: tuple[int, ...]
  before_response: tuple[int, ...]
  after_response: tuple[int, ...]


class RewardModel(NamedTuple):
  """A scorer of responses: `reward` returns r(x, y), [N]."""

  init: Callable[[PRNGKey], Params]
  reward: Callable[..., jax.Array]  # (params, prompts, y)
  axes: Callable[[], Any] | None = None  # Names of the axes of its parameters; as a policy's.


def in_encoder(
  network: nn.Module,
  prompt: RewardPrompt,
  *,
  render: pm.Render = pm.as_written,
  score_id: int = 1,
  eos_id: int = 1,
) -> RewardModel:
  """The paper's layout: the encoder reads text and summary, the decoder's first output is the reward."""

  def reward(params, prompts, response):
    response = render(prompts, response)
    rows = response.shape[0]
    text = jnp.repeat(prompts.tokens, rows // prompts.tokens.shape[0], axis=0)
    pieces = [
      pm.tile(prompt.before_text, rows),
      text,
      pm.tile(prompt.before_response, rows),
      pm.drop_eos(response, eos_id),
      pm.tile(prompt.after_response, rows),
    ]
    tokens = pm.move_padding_to_end(jnp.concatenate(pieces, axis=-1))
    return pm.first_logit(network, params, tokens, score_id)

  return RewardModel(axes.init(network), reward, functools.partial(axes.logical_axes, network))


def in_decoder(
  network: nn.Module,
  prompt: RewardPrompt,
  *,
  render: pm.Render = pm.as_written,
  score_id: int = 1,
  eos_id: int = 1,
) -> RewardModel:
  """A cheaper layout: the encoder reads the text, once for all its responses; the decoder reads the summary."""

  def reward(params, prompts, response):
    response = render(prompts, response)
    num_prompts, rows = prompts.tokens.shape[0], response.shape[0]
    encoder_tokens = jnp.concatenate(
      [pm.tile(prompt.before_text, num_prompts), prompts.tokens], axis=-1
    )
    pieces = [
      pm.tile(prompt.before_response, rows),
      pm.drop_eos(response, eos_id),
      pm.tile(prompt.after_response, rows),
    ]
    tokens = pm.move_padding_to_end(jnp.concatenate(pieces, axis=-1))
    return pm.last_logit(network, params, encoder_tokens, tokens, score_id)

  return RewardModel(axes.init(network), reward, functools.partial(axes.logical_axes, network))


def loss(model: RewardModel, params: Params, comparison: Comparison) -> Losses:
  """Bradley-Terry cross-entropy: −E log σ(r(x, y_w) − r(x, y_l)), with soft labels where voters disagree."""
  reward = functools.partial(model.reward, params)
  pair = comparison.prompts, comparison.response.tokens, comparison.alternative.tokens
  return losses.pairwise_loss(_difference(reward, *pair), comparison.preference)


def reward_fn(model: RewardModel, params: Params) -> RewardFn:
  """The trained model as a reward."""
  compiled = jax.jit(model.reward)
  return lambda prompts, response: compiled(params, prompts, response)


def bradley_terry(reward: RewardFn) -> PreferenceFn:
  """P(y ≻ y'|x) = σ(r(x, y) − r(x, y'))."""

  def preference(prompts, response, alternative):
    pair = jnp.asarray(response), jnp.asarray(alternative)  # What was read is NumPy's.
    return pm.exact_sigmoid(_difference(reward, prompts, *pair))

  return preference


def _difference(
  reward: RewardFn, prompts: Prompts, response: Int[Array, 'N T'], alternative: Int[Array, 'N T']
) -> Float[Array, 'N']:
  """r(x, y) − r(x, y'), both in one batch, [B, 2, k], so that prompts are read once."""
  num_prompts, length = prompts.tokens.shape[0], response.shape[-1]
  both = jnp.stack([x.reshape(num_prompts, -1, length) for x in (response, alternative)], axis=1)
  rewards = reward(prompts, both.reshape(-1, length)).reshape(num_prompts, 2, -1)
  return (rewards[:, 0] - rewards[:, 1]).reshape(-1)
