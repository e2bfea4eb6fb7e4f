"""The exact games against the paper's closed forms and real elections."""

import csv

import numpy as np
import pytest
from scipy import special

from nlhf_jax.games import game, solve


def section_3_2(epsilon: float) -> np.ndarray:
  """Munos et al. (2024), section 3.2."""
  p = np.full((3, 3), 0.5)
  for i, j, value in [
    (1, 0, 2 / 3 - epsilon / 2),
    (2, 0, 1 / 3 - epsilon / 4),
    (2, 1, 2 / 3 + epsilon / 4),
  ]:
    p[i, j], p[j, i] = value, 1 - value
  return p


@pytest.mark.parametrize('epsilon', [-0.2, 0.05, 0.3])
def test_nash_of_section_3_2(epsilon):
  policy = solve.nash(section_3_2(epsilon))
  np.testing.assert_allclose(
    policy, [1 / 3 + epsilon / 2, 1 / 3 + epsilon / 2, 1 / 3 - epsilon], atol=1e-9
  )
  assert game.worst_case(section_3_2(epsilon), policy) == pytest.approx(0.5, abs=1e-9)


def test_annotators_of_appendix_c_2_make_a_cycle():
  scores = np.array([[2, 4, 9], [1, 6, 8], [3, 5, 7]], float).reshape(3, 3)
  table = game.from_scores(np.array([[2, 4, 9], [1, 6, 8], [3, 5, 7]], float))
  game.check(table)
  cyclic = game.from_scores(np.array([[3, 2, 1], [1, 3, 2], [2, 1, 3]], float))
  np.testing.assert_allclose(cyclic[[0, 1, 2], [1, 2, 0]], 2 / 3)
  assert not game.has_unbeaten(cyclic)
  assert scores.shape == table.shape


@pytest.mark.parametrize('tau', [0.02, 0.2, 1.0])
def test_regularised_nash_is_its_own_best_response(tau):
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(7, 7))
  table = special.expit(2 * (noise - noise.T))
  reference = rng.dirichlet(np.ones(7))
  policy = solve.regularised_nash(table, reference, tau)
  np.testing.assert_allclose(policy, game.best_response(table, policy, reference, tau), atol=1e-12)
  assert game.duality_gap(table, policy, reference, tau) == pytest.approx(0, abs=1e-10)
  assert game.duality_gap(table, reference, reference, tau) > 1e-3


def test_two_responses_have_a_logistic_solution():
  table, tau = np.array([[0.5, 0.8], [0.2, 0.5]]), 0.25
  policy = solve.regularised_nash(table, np.array([0.3, 0.7]), tau)
  assert special.logit(policy[0]) == pytest.approx(special.logit(0.3) + 0.3 / tau, abs=1e-9)


@pytest.mark.parametrize(
  ('name', 'nash'), [('f1_1970', [0.714, 0.143, 0.143]), ('soccer10', [0.522, 0.331, 0.147])]
)
def test_real_elections(test_data, name, nash):
  rows = list(csv.reader((test_data / 'games' / f'{name}.csv').open()))
  table = np.array([row[1:] for row in rows[1:]], float)
  game.check(table)
  policy = solve.nash(table)
  np.testing.assert_allclose(np.sort(policy)[::-1][:3], nash, atol=2e-3)
  assert not game.has_unbeaten(table)


@pytest.mark.parametrize(
  ('i', 'j', 'value', 'message'),
  [
    (0, 1, 1.2, r'P\[0, 1\] = 1.2 must be in \[0, 1\]'),
    (1, 2, 0.9, r'P\[1, 2\] = 0.9 and its mirror'),
  ],
)
def test_a_wrong_entry_is_named(i, j, value, message):
  table = section_3_2(0.1)
  table[i, j] = value
  with pytest.raises(ValueError, match=message):
    game.check(table)


def test_no_regularisation_has_no_fixed_point():
  with pytest.raises(ValueError, match='tau must be positive'):
    solve.regularised_nash(section_3_2(0.1), np.full(3, 1 / 3), 0.0)
