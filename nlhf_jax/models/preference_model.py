"""P(y ≻ y'|x), antisymmetric by construction.

A rater scores an ordered pair with one number s(x, y, y'); the model is logit P = ½[s(x, y, y') − s(x, y', y)].
Both orders run in one batch. What the network itself makes of the order, its position bias, cancels here and is
reported by the loss. Unlike a reward difference it can hold a cycle.

Source: Munos et al. (2024), arXiv:2312.00886, section 3.2.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import losses
from nlhf_jax.models.rater import Rater, Render, as_written
from nlhf_jax.types import (
  AllPairsJudge,
  Comparison,
  Losses,
  Params,
  PreferenceFn,
  PRNGKey,
  Prompts,
)


@runtime_checkable
class PairScoresFn(Protocol):
  """s(x, y, y') and s(x, y', y)."""

  def __call__(
    self,
    params: Params,
    prompts: Prompts,
    response: Int[Array, 'N T'],
    alternative: Int[Array, 'N T'],
  ) -> tuple[Float[Array, 'N'], Float[Array, 'N']]: ...


@runtime_checkable
class LogitTableFn(Protocol):
  """Log-odds of each of a prompt's k responses over each of its m alternatives; None: over each other."""

  def __call__(
    self,
    params: Params,
    prompts: Prompts,
    responses: Int[Array, 'N T'],
    alternatives: Int[Array, 'M T'] | None = None,
  ) -> Float[Array, 'B k m']: ...


@runtime_checkable
class PairVectorFn(Protocol):
  """Numbers that are negated when y and y' are swapped."""

  def __call__(
    self,
    params: Params,
    prompts: Prompts,
    response: Int[Array, 'N T'],
    alternative: Int[Array, 'N T'],
  ) -> Float[Array, 'N D']: ...


class PreferenceModel(NamedTuple):
  """A scorer of ordered pairs, in both orders."""

  init: Callable[[PRNGKey], Params]
  scores: PairScoresFn
  # Logical axes of its parameters, as a policy's.
  axes: Callable[[], Any] | None = None
  # All pairs, where they cost less than one by one.
  table: LogitTableFn | None = None
  # What it reads of a response.
  render: Render = as_written
  # Of a model that tells voters apart (`models.voter_preference`): the log-odds of each; differences of what their tastes weigh, that of
  # the shared reward first; and the log-odds of each for all pairs [B, k, m, U].
  voters: PairVectorFn | None = None
  features: PairVectorFn | None = None
  voter_table: Callable[..., Float[Array, 'B k m U']] | None = None
  # The table of their tastes.
  tastes: Callable[[Params], Float[Array, 'U D']] | None = None


def from_rater(rater: Rater) -> PreferenceModel:
  """The preference model of a rater of two responses.

  Raises:
    ValueError: the rater's template does not take two.
  """
  if rater.num_responses != 2:
    raise ValueError(
      f'A preference model compares two responses, but the template of its rater takes {rater.num_responses}: give '
      'the rater one of four pieces, such as prompts.preference_template.'
    )

  def scores(params, prompts, response, alternative):
    """Both orders as rows of one batch, [B, orders, k]."""
    num_prompts = prompts.tokens.shape[0]
    rendered = [rater.render(prompts, x) for x in (response, alternative)]
    length = rendered[0].shape[-1]
    y, other = (x.reshape(num_prompts, -1, length) for x in rendered)
    first, second = jnp.stack([y, other], axis=1), jnp.stack([other, y], axis=1)
    both = rater.score(params, prompts, first.reshape(-1, length), second.reshape(-1, length))
    both = both.reshape(num_prompts, 2, -1)
    return both[:, 0].reshape(-1), both[:, 1].reshape(-1)

  return PreferenceModel(rater.init, scores, rater.axes, render=rater.render)


def logit(
  model: PreferenceModel,
  params: Params,
  prompts: Prompts,
  response: Int[Array, 'N T'],
  alternative: Int[Array, 'N T'],
) -> Float[Array, 'N']:
  """log P(y ≻ y'|x) − log P(y' ≻ y|x), to the bit the negative of the swapped pair's.

  Floating point could treat the two orders differently; so each pair is scored in one canonical order, and the sign put back. In
  another place of the batch a processor may still round it differently. Equal responses get 0.
  """
  sign = _lexicographic_sign(response, alternative)
  swap = (sign < 0)[:, None]
  low = jnp.where(swap, alternative, response)
  high = jnp.where(swap, response, alternative)
  forward, backward = model.scores(params, prompts, low, high)
  return sign * 0.5 * (forward - backward)


def loss(model: PreferenceModel, params: Params, comparison: Comparison) -> Losses:
  """Pairwise cross-entropy of the antisymmetric model, and the raw position bias of its network."""
  forward, backward = model.scores(
    params, comparison.prompts, comparison.response.tokens, comparison.alternative.tokens
  )
  result = losses.pairwise_loss(0.5 * (forward - backward), comparison.preference)
  return result._replace(
    metrics=result.metrics | {'position_bias': position_bias(forward, backward)}
  )


def position_bias(forward: Float[Array, 'N'], backward: Float[Array, 'N']) -> Float[Array, 'N']:
  """How much the raw network favours whatever stands first: ½[σ(s(y, y')) + σ(s(y', y))] − ½, in [−½, ½]."""
  return 0.5 * (jax.nn.sigmoid(forward) + jax.nn.sigmoid(backward)) - 0.5


def preference_fn(model: PreferenceModel, params: Params) -> PreferenceFn:
  """The trained model as a judge; P(y ≻ y') + P(y' ≻ y) is 1 to the last bit.

  One that tells voters apart has them as its annotators, as `judges.annotators` and `algorithms.blackwell_pg` take them.
  """

  def compiled(log_odds):
    return functools.partial(jax.jit(lambda *args: exact_sigmoid(log_odds(*args))), params)

  one_by_one = compiled(functools.partial(logit, model))
  if model.table is None:
    return one_by_one
  annotators = None if model.voter_table is None else compiled(model.voter_table)
  return AllPairsJudge(one_by_one, compiled(model.table), annotators)


def exact_sigmoid(x: Float[Array, '*rows']) -> Float[Array, '*rows']:
  """σ(x) such that σ(x) + σ(−x) is 1 in floating point: the upper half is computed, the lower is 1 minus it."""
  upper = jax.nn.sigmoid(jnp.abs(x))
  return jnp.where(x >= 0, upper, 1 - upper)


def _lexicographic_sign(a: Int[Array, 'N T'], b: Int[Array, 'N T']) -> Float[Array, 'N']:
  """+1 where a comes before b, −1 where after, 0 where they are equal."""
  difference: Bool[Array, 'N T'] = a != b
  first = jnp.argmax(difference, axis=-1)[:, None]
  at = lambda x: jnp.take_along_axis(x, first, axis=-1)[:, 0]
  return jnp.sign(at(b) - at(a)).astype(jnp.float32)
