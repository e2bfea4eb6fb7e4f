"""Tastes that are left: against a list of all of them, one by one."""

import itertools

import numpy as np
import pytest

from nlhf_jax.personalisation import shopping, tastes
from nlhf_jax.personalisation.shopping import Feature
from nlhf_jax.personalisation.tastes import Statement

FEATURES = (
  Feature('bulb', ('b0', 'b1', 'b2', 'b3'), (2, 1, 1)),
  Feature('shade', ('s0', 's1', 's2'), (1, 1, 1)),
)
OPTIONS = (('s0', 'b0'), ('b1', 's1'), ('b0', 's2'))


def listed():
  """Every taste as a mapping of value to tier."""
  of = lambda f, counts: {
    tuple(zip(f.values, row, strict=True))
    for row in itertools.permutations([0] * counts[0] + [1] * counts[1] + [2] * counts[2])
  }
  parts = [of(f, f.tiers) for f in FEATURES]
  return [dict(itertools.chain(*rows)) for rows in itertools.product(*parts)]


def letter_shares(some):
  found = [shopping.label(OPTIONS, x) for x in some]
  return [found.count(letter) / len(found) for letter in 'ABCD']


def shares(left):
  return tastes.shares_of_letters(left, tastes.letters(left, OPTIONS))


def test_letters_are_those_of_the_rule():
  left = tastes.all_tastes(FEATURES)
  assert left.weights.size == len(listed()) == 12 * 6
  np.testing.assert_allclose(shares(left), letter_shares(listed()), atol=1e-6)


def test_eight_features_of_three_values_are_added_up_as_python_does():
  """Eight values disliked are 8 × −17, which eight bits would hold as something liked."""
  features = tuple(Feature(f'f{i}', tuple(f'{i}{v}' for v in 'xyz'), (1, 1, 1)) for i in range(8))
  options = [tuple(f'{i}{v}' for i in range(8)) for v in 'xyz']
  left = tastes.all_tastes(features)
  found = tastes.letters(left, options)
  # The first taste of all dislikes all of an option; the others are drawn.
  places = [(0,) * 8, *np.random.default_rng(0).integers(6, size=(500, 8))]
  for place in map(tuple, places):
    tiers = [table[x].tolist() for table, x in zip(left.tiers, place, strict=True)]
    taste = {
      value: tier
      for feature, row in zip(features, tiers, strict=True)
      for value, tier in zip(feature.values, row, strict=True)
    }
    assert 'ABCD'[found[place]] == shopping.label(options, taste)


@pytest.mark.parametrize(
  ('statement', 'holds'),
  [
    (Statement('b0', 2), lambda x: x['b0'] == 2),
    (Statement('s1', 0), lambda x: x['s1'] == 0),
    (Statement(options=OPTIONS, letter='B'), lambda x: shopping.label(OPTIONS, x) == 'B'),
    (Statement(options=OPTIONS, letter='D'), lambda x: shopping.label(OPTIONS, x) == 'D'),
  ],
)
def test_a_statement_leaves_the_tastes_that_agree(statement, holds):
  every = tastes.all_tastes(FEATURES)
  left = tastes.condition(every, tastes.consistent(every, statement))
  expected = [x for x in listed() if holds(x)]
  assert np.count_nonzero(left.weights) == len(expected)
  np.testing.assert_allclose(shares(left), letter_shares(expected), atol=1e-6)
  # A second one on top, and one against it.
  again = tastes.condition(left, tastes.consistent(left, Statement('b1', 1)))
  expected = [x for x in expected if x['b1'] == 1]
  assert np.count_nonzero(again.weights) == len(expected)
  assert tastes.condition(again, tastes.consistent(again, Statement('b1', 0))) is None


def test_best_question_leaves_the_smallest_error():
  left = tastes.all_tastes(FEATURES)
  asked = tastes.best_question(left, OPTIONS, tastes.letters(left, OPTIONS))

  def right_after(value):
    groups = [[x for x in listed() if x[value] == tier] for tier in (0, 1, 2)]
    return sum(len(g) * max(letter_shares(g)) for g in groups if g) / len(listed())

  values = {value for option in OPTIONS for value in option}
  assert right_after(asked) == pytest.approx(max(map(right_after, values)))


def test_most_open_value_is_one_of_three_equal_tiers():
  left = tastes.all_tastes(FEATURES)
  assert tastes.most_open_value(left, OPTIONS) in {'s0', 's1', 's2'}
  for value in ('s0', 's1'):
    left = tastes.condition(left, tastes.consistent(left, Statement(value, 1 + (value == 's0'))))
  assert tastes.most_open_value(left, OPTIONS) in {'b0', 'b1'}


def test_nothing_is_asked_where_all_is_known():
  left = tastes.all_tastes(FEATURES)
  for value, tier in (('b0', 2), ('b1', 1), ('s0', 2), ('s1', 1)):
    left = tastes.condition(left, tastes.consistent(left, Statement(value, tier)))
  assert left.weights.size == 1
  assert tastes.best_question(left, OPTIONS, tastes.letters(left, OPTIONS)) is None
  assert tastes.most_open_value(left, OPTIONS) is None


def test_population_shares_weigh_tastes():
  """Nearly all like b2 most: so does a new person, probably."""
  each = np.full((4, 3), 0.01)
  each[2, 2], each[[0, 1, 3], 0] = 0.98, 0.98
  left = tastes.all_tastes(FEATURES, [each, np.full((3, 3), 1 / 3)])
  assert left.weights.sum() == pytest.approx(1)
  agrees = tastes.consistent(left, Statement('b2', 2))
  assert left.weights[agrees].sum() > 0.9


def test_too_many_tastes_are_refused():
  wide = Feature('f', tuple(f'v{i}' for i in range(12)), (6, 5, 1))
  with pytest.raises(ValueError, match='tastes in one product are more than'):
    tastes.all_tastes((wide, wide))
