"""What no score explains: planted cycles, their absence, and the parts of a flow."""

import itertools

import numpy as np
import pytest
from scipy import special

from nlhf_jax.votes import cycles, table


def of_shares(p, n):
  return table.from_wins(n * p * (1 - np.eye(len(p))), [f'm{i}' for i in range(len(p))])


def from_logits(logits):
  return special.expit(logits - logits.T)


def test_exact_scores_leave_nothing():
  p = from_logits(np.outer([1.0, 0.5, 0.0, -1.0], np.ones(4)))
  shares = cycles.shares(of_shares(p, 1000))
  assert shares.gradient == pytest.approx(1)
  assert shares.pearson == pytest.approx(0, abs=1e-6)
  assert shares.degrees == 3
  assert cycles.significant(of_shares(p, 1000)) == []


def test_a_pure_cycle_is_curl():
  p = np.array([[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]])
  shares = cycles.shares(of_shares(p, 200))
  assert (shares.gradient, shares.curl) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
  # n of 200 on three edges: Σ n (p − ½)²/¼.
  assert shares.pearson == pytest.approx(3 * 200 * 0.04 / 0.25)
  (cycle,) = cycles.significant(of_shares(p, 200))
  assert cycle.members == (0, 1, 2)
  assert cycle.votes == ((pytest.approx(140), pytest.approx(60)),) * 3


def test_a_round_of_four_without_diagonals_is_harmonic():
  wins = np.zeros((4, 4))
  for i in range(4):
    wins[i, (i + 1) % 4], wins[(i + 1) % 4, i] = 70, 30
  shares = cycles.shares(table.from_wins(wins, 'abcd'))
  assert shares.curl == 0
  assert shares.harmonic == pytest.approx(1)


def test_parts_add_up():
  rng = np.random.default_rng(0)
  wins = rng.integers(5, 40, (6, 6)).astype(float)
  wins[0, 5] = wins[5, 0] = wins[1, 4] = wins[4, 1] = 0
  shares = cycles.shares(table.from_wins(wins, 'abcdef'))
  assert shares.gradient + shares.curl + shares.harmonic == pytest.approx(1)
  assert shares.degrees == 13 - 6 + 1


def test_a_cycle_by_chance_is_none():
  """Majorities of 11 to 9 go round; no vote says that they are more than chance."""
  wins = np.array([[0, 11, 9], [9, 0, 11], [11, 9, 0]], float)
  assert cycles.significant(table.from_wins(wins, 'abc')) == []


def test_plane_of_circles():
  """Found where it is planted; its p-value is spread out where there are scores alone."""
  rng = np.random.default_rng(1)
  n = 6
  angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
  planted = np.sin(angle[:, None] - angle)
  scores = np.outer(rng.normal(size=n), np.ones(n))
  pairs = list(itertools.combinations(range(n), 2))

  def votes(logit):
    wins = np.zeros((n, n))
    for i, j in pairs:
      wins[i, j] = rng.binomial(40, special.expit(logit[i, j]))
      wins[j, i] = 40 - wins[i, j]
    return table.from_wins(wins, 'abcdef')

  found = cycles.skew_test(votes(scores - scores.T + planted), num_simulations=39)
  assert found.p_value == pytest.approx(1 / 40)
  chance = [
    cycles.skew_test(votes(scores - scores.T), num_simulations=19).p_value for _ in range(5)
  ]
  assert max(chance) > 0.2
