"""Judges who speak for several annotators, and the aggregations of these that are judges themselves.

P_u(y ≻ y'|x) is annotator u's preference; a judge who keeps them apart has them as `AllPairsJudge.annotators`. What is best
for all is then a choice: a judge of this module, for any method; or a method that takes the annotators as they are, as
`algorithms.blackwell_pg` does (`games.aggregation` has the theory).
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.arguments import CountOrZero
from nlhf_jax.judges import tables
from nlhf_jax.types import AllPairsJudge, AnnotatorTableFn, PreferenceFn, Prompts, Responses

# P_u of the annotators to what they say together.
Combine = Callable[[Array], Array]


def from_judges(judges: Sequence[PreferenceFn]) -> AllPairsJudge:
  """Several judges as annotators of one, who says their mean.

  Raises:
    ValueError: there are none.
  """
  if not judges:
    raise ValueError('judges must name at least one annotator, got none.')

  def each(prompts, responses, alternatives=None):
    shares = [tables.preference_table(one, prompts, responses, alternatives) for one in judges]
    return jnp.stack(shares, axis=-1)

  return _judge(each, tables.mean_of_votes)


def apart(
  judge: PreferenceFn,
  prompts: Prompts,
  responses: Responses,
  alternatives: Int[Array, 'M T'] | Int[np.ndarray, 'M T'] | None = None,
) -> Float[Array, 'B k m U']:
  """P_u of each annotator.

  Raises:
    ValueError: the judge does not keep them apart.
  """
  if getattr(judge, 'annotators', None) is None:
    raise ValueError(
      'This judge does not tell its annotators apart: take an electorate, annotators.from_judges, or another judge with '
      'AllPairsJudge.annotators.'
    )
  return judge.annotators(prompts, responses, alternatives)  # type: ignore[attr-defined]


def mean(judge: PreferenceFn, weights: Sequence[float] | None = None) -> AllPairsJudge:
  """Σ_u w_u P_u over those who voted: what NLHF learns from.

  Args:
    judge: keeps its annotators apart.
    weights: w > 0 of each; None: all alike.
  """
  if weights is None:
    return _judge(functools.partial(apart, judge), tables.mean_of_votes)
  w = checked_weights(weights)

  def combine(each):
    check_number(w, each.shape[-1])
    total = jnp.sum(jnp.where(jnp.isnan(each), 0, w), axis=-1)
    p = jnp.sum(w * jnp.nan_to_num(each), axis=-1)
    return jnp.where(total > 0, p / jnp.where(total > 0, total, 1), jnp.nan)

  return _judge(functools.partial(apart, judge), combine)


def one(judge: PreferenceFn, number: CountOrZero) -> AllPairsJudge:
  """One annotator alone: a policy that is trained on her is personalised."""

  def combine(each):
    if not 0 <= number < each.shape[-1]:
      raise ValueError(f'number must be one of {each.shape[-1]} annotators, from 0: got {number}.')
    return each[..., number]

  return _judge(functools.partial(apart, judge), combine)


def worst_of_pair(judge: PreferenceFn) -> AllPairsJudge:
  """min_u P_u(y ≻ y'|x), by whoever likes y least; those without a vote do not count.

  It is *not* maximin over annotators: here the opponent chooses an annotator anew for each response y, there one for all
  of them, whom a mixture of responses can serve in part. Nor is it antisymmetric: P(y ≻ y') + P(y' ≻ y) ≤ 1, a game that
  is not zero-sum, and π*_τ is not where methods stop on it. A response that meets itself has ½ and meets most others with less, so that
  self-play is paid for answering alike and ends on one response to a prompt (docs/whose_preference.md).
  """

  def combine(each):
    least = jnp.min(jnp.where(jnp.isnan(each), jnp.inf, each), axis=-1)
    return jnp.where(jnp.isinf(least), jnp.nan, least)

  return _judge(functools.partial(apart, judge), combine)


def checked_weights(weights: Sequence[float]) -> Float[np.ndarray, 'U']:
  """Weights that add up to 1.

  Raises:
    ValueError: one is not positive.
  """
  w = np.asarray(weights, np.float32)
  for number in np.flatnonzero(~((w > 0) & np.isfinite(w))):
    raise ValueError(
      f'The weight of annotator {number} must be positive, got {weights[int(number)]}: leave out who is not to count.'
    )
  return w / w.sum()


def check_number(weights: Float[np.ndarray, 'U'], number: int) -> None:
  """Raises ValueError unless there is a weight for each of a number of annotators."""
  if len(weights) != number:
    raise ValueError(f'There are {len(weights)} weights for {number} annotators: give each one.')


def _judge(each: AnnotatorTableFn, combine: Combine) -> AllPairsJudge:
  """A judge of what annotators say together, who keeps them apart too."""

  def table(prompts, responses, alternatives=None):
    return combine(each(prompts, responses, alternatives))

  def pairs(prompts, response, alternative):
    # Each row is a prompt of one response and one alternative.
    k = response.shape[0] // prompts.tokens.shape[0]
    rows = Prompts(*(jnp.repeat(x, k, axis=0) for x in prompts))
    return combine(each(rows, response, alternative)).reshape(-1)

  return AllPairsJudge(pairs, table, each)
