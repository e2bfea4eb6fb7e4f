"""Rankings, against hand-made elections, brute force over subsets and a closed form."""

import itertools

import numpy as np
import pytest
from scipy import special

from nlhf_jax.games import sources
from nlhf_jax.votes import ranking


def from_majorities(edges, size):
  p = np.full((size, size), 0.5)
  for i, j in edges:
    p[i, j], p[j, i] = 0.75, 0.25
  return p


def smith_by_definition(p):
  """The smallest set whose members beat all others."""
  size = len(p)
  for count in range(1, size + 1):
    for inside in itertools.combinations(range(size), count):
      outside = [j for j in range(size) if j not in inside]
      if all(p[i, j] > 0.5 for i in inside for j in outside):
        return set(inside)
  return None


@pytest.mark.parametrize('seed', range(8))
def test_smith_set_and_cycles(seed):
  rng = np.random.default_rng(seed)
  edges = [(i, j) if rng.random() < 0.5 else (j, i) for i, j in itertools.combinations(range(6), 2)]
  p = from_majorities(edges[: rng.integers(8, 16)], 6)  # The others are ties.
  assert set(np.flatnonzero(ranking.smith_set(p))) == smith_by_definition(p)
  cycles = sum(
    (p[i, j] > 0.5 and p[j, k] > 0.5 and p[k, i] > 0.5)
    or (p[j, i] > 0.5 and p[k, j] > 0.5 and p[i, k] > 0.5)
    for i, j, k in itertools.combinations(range(6), 3)
  )
  assert ranking.num_cyclic_triples(p) == cycles


def test_condorcet_winner():
  p = from_majorities([(0, 1), (0, 2), (1, 2)], 3)
  assert ranking.condorcet_winner(p) == 0
  np.testing.assert_allclose(ranking.maximal_lottery(p), [1, 0, 0])
  np.testing.assert_allclose(ranking.copeland(p), [1, 0.5, 0])
  np.testing.assert_allclose(ranking.borda(p), [0.75, 0.5, 0.25])
  assert ranking.condorcet_winner(sources.rock_paper_scissors().preference) is None


def test_elo():
  ratings = np.array([1700.0, 1500.0, 1300.0])
  np.testing.assert_allclose(ranking.elo(sources.elo(ratings), prior=1e-9), ratings, atol=0.1)
  unbeaten = np.array([[0.5, 1.0], [0.0, 0.5]])
  assert np.isfinite(ranking.elo(unbeaten)).all()


def test_elo_with_weights():
  """Contradictory shares: the pairs that were compared a thousand times decide."""
  p = np.array([[0.5, 0.8, 0.5], [0.2, 0.5, 0.8], [0.5, 0.2, 0.5]])
  heavy = np.array([[0, 1000, 1], [1000, 0, 1000], [1, 1000, 0]], float)
  rating = ranking.elo(p, heavy, prior=1e-9)
  expected = 400 / np.log(10) * special.logit(0.8)
  np.testing.assert_allclose(rating[:2] - rating[1:], expected, atol=1)


def test_intervals():
  p = sources.section_3_2(0.1).preference
  few, many = (ranking.rank(sources.from_wins(p * n), num_resamples=200) for n in (50, 5000))
  for name in few:
    width = [np.mean(r[name].high - r[name].low) for r in (few, many)]
    assert np.all(many[name].low <= many[name].scores + 1e-9)
    assert np.all(many[name].high >= many[name].scores - 1e-9)
    assert width[1] <= width[0]
  # Of a mean of two shares of 50 votes near 1/2.
  spread = np.sqrt(0.25 * (1 / 50 + 1 / 50)) * 1.96 / 2
  borda = few['borda']
  np.testing.assert_allclose((borda.high - borda.low) / 2, spread, rtol=0.25)


def test_no_intervals_without_counts():
  ranks = ranking.rank(sources.appendix_c_2())
  assert all(r.low is None and r.high is None for r in ranks.values())
