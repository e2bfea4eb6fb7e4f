"""Intervals where the maximum is finite, bounds where it is not, ranks that hold together."""

import numpy as np
import pytest

from nlhf_jax.votes import bradley_terry, certainty, table
from nlhf_jax.votes.bradley_terry import ELO


def of_wins(wins):
  return table.from_wins(np.array(wins, float), 'abcdefgh'[: len(wins)])


@pytest.mark.parametrize('n', [1, 10, 50])
def test_who_never_lost_has_no_upper_end(n):
  """n wins of n against one who is as good as another: the profile likelihood in closed form."""
  _, scores = certainty.scores(of_wins([[0, n, 0], [0, 0, 500], [0, 500, 0]]))
  assert scores.score[0] == np.inf
  assert scores.high[0] == np.inf
  # The limit of χ² is 3.84; the two others' difference is 0 but for what n votes say of it.
  assert scores.low[0] == pytest.approx(-np.log(np.expm1(1.9207 / n)), abs=0.02)


def test_fifty_wins_are_hundreds_of_points():
  """Clopper and Pearson have 446 points at least; against two others there is more to know."""
  _, scores = certainty.scores(of_wins([[0, 50, 50], [0, 0, 30], [0, 20, 0]]))
  assert ELO * (scores.low[0] - scores.score[1]) > 446
  assert scores.best_rank.tolist() == [1, 2, 2]
  assert scores.worst_rank.tolist() == [1, 3, 3]


def test_one_vote_says_nothing():
  _, scores = certainty.scores(of_wins([[0, 60, 0], [40, 0, 0], [0, 1, 0]]))
  assert (scores.best_rank[2], scores.worst_rank[2]) == (1, 3)
  assert scores.low[2] < scores.score[1]


def test_who_never_won_has_no_lower_end():
  _, scores = certainty.scores(of_wins([[0, 6, 3], [4, 0, 2], [0, 0, 0]]))
  assert scores.score[2] == -np.inf
  assert scores.low[2] == -np.inf
  assert np.isfinite(scores.high[2])


def test_groups_that_never_met():
  _, scores = certainty.scores(
    of_wins([[0, 90, 0, 0], [10, 0, 0, 0], [0, 0, 0, 60], [0, 0, 40, 0]])
  )
  assert scores.component.tolist() == [0, 0, 1, 1]
  elo = ELO * scores.score
  assert elo[0] - elo[1] == pytest.approx(381.7, abs=0.1)
  assert elo[2] - elo[3] == pytest.approx(70.4, abs=0.1)
  assert not scores.above[:2, 2:].any() and not scores.above[2:, :2].any()


def test_ranks_hold_for_all_at_once():
  """Votes of known scores: every rank range covers in at least 95 % of the tables, and some tell alternatives apart."""
  rng = np.random.default_rng(0)
  truth = np.array([0.6, 0.3, 0.3, 0.0, -0.4])
  p = 1 / (1 + np.exp(truth[None] - truth[:, None]))
  covered, told = [], []
  upper = np.triu_indices(5, 1)
  for _ in range(60):
    wins = np.zeros((5, 5))
    wins[upper] = rng.binomial(60, p[upper])
    wins.T[upper] = 60 - wins[upper]
    _, scores = certainty.scores(of_wins(wins))
    best = 1 + np.array([(truth > t).sum() for t in truth])
    worst = np.array([(truth >= t).sum() for t in truth])
    covered.append(np.all((scores.best_rank <= best) & (scores.worst_rank >= worst)))
    told.append(scores.above.sum())
  assert np.mean(covered) >= 0.95
  assert np.mean(told) > 2


def test_critical_value_of_eight():
  """2.99 for eight alternatives that met equally often, by another program."""
  wins = 100.0 * (1 - np.eye(8))
  _, scores = certainty.scores(of_wins(wins))
  assert scores.critical == pytest.approx(2.99, abs=0.05)
  assert bradley_terry.fit(of_wins(wins)).group.max() == 0
