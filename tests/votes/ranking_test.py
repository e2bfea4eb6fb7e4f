"""Rankings, against hand-made elections, brute force over subsets and a closed form."""

import itertools

import numpy as np
import pytest

from nlhf_jax.games import sources
from nlhf_jax.votes import ranking, table


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


def test_intervals_of_orders():
  """Of a mean of two shares of 50 votes near 1/2, and narrower with more votes."""
  p = sources.section_3_2(0.1).preference
  few, many = (
    ranking.of_votes(table.from_wins(p * n * (1 - np.eye(3)), 'abc'), num_simulations=0)
    for n in (50, 5000)
  )
  assert set(few.orders) == {'maximal_lottery', 'borda', 'copeland'}
  for name, order in many.orders.items():
    assert np.all(order.low <= order.value + 1e-9)
    assert np.all(order.high >= order.value - 1e-9)
    assert np.mean(order.high - order.low) <= np.mean(few.orders[name].high - few.orders[name].low)
  spread = np.sqrt(0.25 * (1 / 50 + 1 / 50)) * 1.96 / 2
  borda = few.orders['borda']
  np.testing.assert_allclose((borda.high - borda.low) / 2, spread, rtol=0.25)


def test_shares_have_no_intervals():
  found = ranking.of_shares(sources.appendix_c_2())
  assert set(found.orders) == {'maximal_lottery', 'borda', 'copeland', 'elo'}
  assert all(np.array_equal(order.low, order.high) for order in found.orders.values())
  assert found.scores is None


def test_pairs_that_never_met_are_bounds():
  """Every completion lies within them."""
  p = sources.from_matrix([[0.5, 0.8, np.nan], [0.2, 0.5, 0.6], [np.nan, 0.4, 0.5]])
  found = ranking.of_shares(p)
  assert found.lottery_is_unique is None
  for share in np.linspace(0, 1, 21):
    whole = p.preference.copy()
    whole[0, 2], whole[2, 0] = share, 1 - share
    lottery = ranking.maximal_lottery(whole)
    for name, scores in (('borda', ranking.borda(whole)), ('maximal_lottery', lottery)):
      order = found.orders[name]
      assert np.all((order.low <= scores + 1e-9) & (scores <= order.high + 1e-9)), (name, share)
  np.testing.assert_allclose(found.orders['borda'].value, np.nan)
  np.testing.assert_allclose(found.orders['borda'].high[0] - found.orders['borda'].low[0], 0.5)


def test_two_who_never_met_do_not_mix():
  """Unplayed pairs counted as even would let the two share the lottery."""
  wins = np.array([[0, 0, 9], [0, 0, 9], [1, 1, 0]], float)
  found = ranking.of_votes(table.from_wins(wins, 'abc'), num_simulations=0)
  low, high = found.orders['maximal_lottery'].low, found.orders['maximal_lottery'].high
  np.testing.assert_allclose([low[:2], high[:2]], [[0, 0], [1, 1]], atol=1e-6)


def test_features_are_held_constant():
  """b wins by length alone: with the length held constant a is better."""
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(4000):
    longer = rng.random() < 0.9
    x = -1.0 if longer else 1.0
    wins = rng.random() < 1 / (1 + np.exp(-(0.5 + 1.5 * x)))
    verdict = 'a' if wins else 'b'
    rows.append(table.checked({'a': 'a', 'b': 'b', 'verdict': verdict, 'x': {'length': x}}))
  found = ranking.of_votes(table.columns(rows), num_resamples=5, num_simulations=0)
  assert found.plain.score[0] < found.plain.score[1]
  assert found.scores.score[0] - found.scores.score[1] == pytest.approx(0.5, abs=0.2)
  assert found.fit.others['x.length'] == pytest.approx(1.5, abs=0.2)


def test_a_copy_moves_nothing_but_borda():
  """A clone shares its original's weight in the lottery; in Borda's count it lifts whoever beats it."""
  cycle = np.array([[0.5, 0.7, 0.4], [0.3, 0.5, 0.8], [0.6, 0.2, 0.5]])
  index = [0, 1, 2, 2]
  cloned = cycle[np.ix_(index, index)]
  before, after = ranking.maximal_lottery(cycle), ranking.maximal_lottery(cloned)
  np.testing.assert_allclose([*after[:2], after[2:].sum()], before, atol=1e-9)
  assert ranking.borda(cloned)[1] - ranking.borda(cycle)[1] > 0.05
