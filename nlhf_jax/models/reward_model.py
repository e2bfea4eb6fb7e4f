"""r(x, y), a scalar reward, and the Bradley-Terry preference made of it: the RLHF baseline.

P(y ≻ y'|x) = σ(r(x, y) − r(x, y')) orders responses on a line, so it can hold neither a cycle nor mixed tastes.

Source: Munos et al. (2024), arXiv:2312.00886, section 3.1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax import losses
from nlhf_jax.models.preference_model import exact_sigmoid
from nlhf_jax.models.rater import Rater, Render, as_written
from nlhf_jax.types import Comparison, Losses, Params, PreferenceFn, PRNGKey, Prompts, RewardFn


@runtime_checkable
class ParametricRewardFn(Protocol):
  """r(x, y) under given parameters."""

  def __call__(
    self, params: Params, prompts: Prompts, response: Int[Array, 'N T']
  ) -> Float[Array, 'N']: ...


class RewardModel(NamedTuple):
  """A scorer of single responses."""

  init: Callable[[PRNGKey], Params]
  reward: ParametricRewardFn
  # Logical axes of its parameters, as a policy's.
  axes: Callable[[], Any] | None = None
  # What it reads of a response.
  render: Render = as_written


def from_rater(rater: Rater) -> RewardModel:
  """The reward model of a rater of one response.

  Raises:
    ValueError: the rater's template takes more.
  """
  if rater.num_responses != 1:
    raise ValueError(
      f'A reward model scores one response, but the template of its rater takes {rater.num_responses}: give the rater '
      'one of three pieces, such as prompts.reward_template.'
    )

  def reward(params, prompts, response):
    return rater.score(params, prompts, rater.render(prompts, response))

  return RewardModel(rater.init, reward, rater.axes, rater.render)


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
    pair = jnp.asarray(response), jnp.asarray(alternative)  # Data are NumPy's.
    return exact_sigmoid(_difference(reward, prompts, *pair))

  return preference


def _difference(
  reward: RewardFn, prompts: Prompts, response: Int[Array, 'N T'], alternative: Int[Array, 'N T']
) -> Float[Array, 'N']:
  """r(x, y) − r(x, y'), both in one batch, [B, 2, k], so that prompts are encoded once."""
  num_prompts, length = prompts.tokens.shape[0], response.shape[-1]
  both = jnp.stack([x.reshape(num_prompts, -1, length) for x in (response, alternative)], axis=1)
  rewards = reward(prompts, both.reshape(-1, length)).reshape(num_prompts, 2, -1)
  return (rewards[:, 0] - rewards[:, 1]).reshape(-1)
