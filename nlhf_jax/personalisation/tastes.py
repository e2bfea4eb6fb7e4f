"""All tastes that a person may have in a product, and what is left of them after a statement.

A taste gives every value of every feature a tier, with known numbers of each tier: an arrangement for each feature. Their joint
weights are a grid with an axis for each feature; a statement about a value or about a task's right letter takes out what contradicts
it, and arrangements that nothing supports leave the grid.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nlhf_jax.personalisation.shopping import LETTERS, MOST, NOTHING, Features

# The most tastes that a grid may hold; the released products have 60³.
MAX_TASTES = 4_000_000
_ANSWERS = (*LETTERS, NOTHING)


class Tastes(NamedTuple):
  """The tastes that are left; F features of a product."""

  features: Features
  # [arrangements left, values] of each feature: tiers.
  tiers: tuple[Int[np.ndarray, '_ _'], ...]
  # [arrangements of feature 1, …, of feature F], not normalised.
  weights: Float[np.ndarray, '*grid']


class Statement(NamedTuple):
  """What is known for sure: a value's tier, or which letter was right in a task."""

  value: str | None = None
  tier: int | None = None
  options: tuple[tuple[str, ...], ...] = ()
  letter: str | None = None


def all_tastes(
  features: Features, shares: Sequence[Float[np.ndarray, '_ 3']] | None = None
) -> Tastes:
  """Every taste, equally likely, or by the population's shares.

  Args:
    features: of a product.
    shares: of each feature: how many people have each value in each tier, all above 0; None: nothing is known.

  Raises:
    ValueError: there are more tastes than a grid may hold.
  """
  number = math.prod(_num_arrangements(feature.tiers) for feature in features)
  if number > MAX_TASTES:
    raise ValueError(
      f'{number:,} tastes in one product are more than {MAX_TASTES:,}: name fewer features or values.'
    )
  tiers = tuple(_arrangements(feature.tiers) for feature in features)
  weights = np.ones([1] * len(features), np.float32)
  for axis, table in enumerate(tiers):
    each = np.ones(len(table))
    if shares is not None:
      each = np.prod(shares[axis][np.arange(table.shape[1]), table], axis=1)
    weights = weights * _along(each / each.sum(), axis, len(features)).astype(np.float32)
  return Tastes(features, tiers, weights)


def letters(tastes: Tastes, options: Sequence[Sequence[str]]) -> Int[np.ndarray, '*grid']:
  """The right answer by every taste: 0, 1, 2 for A, B, C, and 3 for D."""
  # Something disliked outweighs all that is liked. Eight features disliked add up to less than an int8 holds.
  disliked = np.int16(-MOST * len(tastes.features) - 1)
  best = np.zeros(tastes.weights.shape, np.int16)
  result = np.full(tastes.weights.shape, len(LETTERS), np.int8)
  for number, option in enumerate(options):
    total = np.zeros([1] * best.ndim, np.int16)
    for value in option:
      axis, column = _place(tastes.features, value)
      tier = tastes.tiers[axis][:, column].astype(np.int16)
      total = total + _along(np.where(tier == 0, disliked, tier), axis, best.ndim)
    better = total > best
    result[better] = number
    np.maximum(best, total, out=best)
  return result


def shares_of_letters(tastes: Tastes, letter: Int[np.ndarray, '*grid']) -> Float[np.ndarray, '4']:
  """How likely each answer is right."""
  found = np.bincount(letter.ravel(), tastes.weights.ravel(), len(_ANSWERS))
  return found / found.sum()


def consistent(tastes: Tastes, statement: Statement) -> Bool[np.ndarray, '*grid']:
  """Which tastes agree with a statement."""
  if statement.value is not None:
    axis, column = _place(tastes.features, statement.value)
    agrees = tastes.tiers[axis][:, column] == statement.tier
    return np.broadcast_to(_along(agrees, axis, tastes.weights.ndim), tastes.weights.shape)
  return letters(tastes, statement.options) == _ANSWERS.index(statement.letter)


def condition(tastes: Tastes, agrees: Bool[np.ndarray, '*grid']) -> Tastes | None:
  """The tastes that agree; None if there are none."""
  weights = tastes.weights * agrees
  tiers = []
  for axis, table in enumerate(tastes.tiers):
    others = tuple(i for i in range(weights.ndim) if i != axis)
    kept = np.flatnonzero(weights.any(axis=others))
    if not len(kept):
      return None
    if len(kept) < len(table):
      weights, table = np.take(weights, kept, axis=axis), table[kept]
    tiers.append(table)
  return Tastes(tastes.features, tuple(tiers), weights / weights.sum())


def best_question(
  tastes: Tastes, options: Sequence[Sequence[str]], letter: Int[np.ndarray, '*grid']
) -> str | None:
  """The value of a task whose tier, once known, leaves the smallest error on average; None where no value's tier is open.

  Ties go to the value that says most about the answer, by entropy: the error may take two questions to fall.

  Args:
    tastes: those that are left.
    options: of the task.
    letter: as `letters` has it.
  """
  by_letter = np.stack([tastes.weights * (letter == number) for number in range(len(_ANSWERS))])
  best, found = None, None
  marginals = [
    by_letter.sum(axis=tuple(1 + i for i in range(letter.ndim) if i != axis))
    for axis in range(letter.ndim)
  ]
  for value in dict.fromkeys(itertools.chain.from_iterable(options)):
    axis, column = _place(tastes.features, value)
    tiers = tastes.tiers[axis][:, column]
    joint = np.stack([marginals[axis][:, tiers == tier].sum(axis=1) for tier in range(MOST + 1)])
    if np.count_nonzero(joint.sum(axis=1)) < 2:
      continue
    shares = joint / joint.sum(axis=1, keepdims=True).clip(1e-30)
    uncertainty = -np.sum(joint * np.log(shares.clip(1e-30)))
    key = round(float(joint.max(axis=1).sum()), 6), -float(uncertainty)
    if best is None or key > best:
      best, found = key, value
  return found


def most_open_value(tastes: Tastes, options: Sequence[Sequence[str]]) -> str | None:
  """The value of a task of whose tier least is known, by entropy; None where all are known."""
  most, found = 1e-6, None
  for value in dict.fromkeys(itertools.chain.from_iterable(options)):
    axis, column = _place(tastes.features, value)
    others = tuple(i for i in range(tastes.weights.ndim) if i != axis)
    each = np.bincount(tastes.tiers[axis][:, column], tastes.weights.sum(axis=others))
    entropy = -float(np.sum(each * np.log(each.clip(1e-30))))
    if entropy > most:
      most, found = entropy, value
  return found


def _num_arrangements(counts: tuple[int, ...]) -> int:
  return math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))


def _arrangements(counts: tuple[int, ...]) -> Int[np.ndarray, 'arrangements values']:
  """Every way to give values tiers, as many of each as there are."""
  size = sum(counts)
  rows = []
  for most in itertools.combinations(range(size), counts[2]):
    rest = [i for i in range(size) if i not in most]
    for second in itertools.combinations(rest, counts[1]):
      row = np.zeros(size, np.int8)
      row[list(most)], row[list(second)] = 2, 1
      rows.append(row)
  return np.stack(rows)


def _place(features: Features, value: str) -> tuple[int, int]:
  """Which feature a value is of, and which of its values it is."""
  for axis, feature in enumerate(features):
    if value in feature.values:
      return axis, feature.values.index(value)
  raise ValueError(f'{value!r} is no value of {", ".join(x.name for x in features)}.')


def _along(values: np.ndarray, axis: int, ndim: int) -> np.ndarray:
  """A vector as an array along one axis of a grid."""
  return values.reshape([-1 if i == axis else 1 for i in range(ndim)])
