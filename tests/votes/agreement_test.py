"""Judges' biases and agreement, counted by hand."""

import numpy as np
import pytest

from nlhf_jax.votes import agreement, table


def rows(*votes):
  fields = ('a', 'b', 'verdict', 'judge', 'order', 'prompt')
  return table.columns(table.checked(dict(zip(fields, vote, strict=True))) for vote in votes)


def test_counts():
  votes = rows(
    ('m', 'n', 'a', 'human', 'ab', 'p1'),
    ('n', 'm', 'b', 'gpt', 'ba', 'p1'),  # m again, shown first.
    ('m', 'n', 'b', 'human', 'ab', 'p2'),
    ('m', 'n', 'a', 'gpt', 'ab', 'p2'),  # Against the human.
    ('m', 'n', 'tie', 'gpt', 'ab', 'p3'),
    ('m', 'n', 'both_bad', 'human', None, 'p3'),
  )
  human, gpt = agreement.judges(votes)
  assert (human.name, human.num_votes, human.both_bad_share) == ('human', 3, pytest.approx(1 / 3))
  assert gpt.tie_share == pytest.approx(1 / 3)
  assert human.first_wins == 0.5
  assert gpt.first_wins == 1
  assert (gpt.first_wins_low, gpt.first_wins_high) == (pytest.approx(0.025**0.5), 1)
  assert (human.agreement, human.num_compared) == (0.5, 2)
  assert gpt.agreement == 0.5
  assert np.isnan(human.own_agreement) and human.num_own == 0


def test_people_and_orders():
  """Three voters on one question agree in one pair of three; a judge that flips with the order never does."""
  votes = rows(
    *(('m', 'n', verdict, 'human', None, 'p') for verdict in ('a', 'a', 'b')),
    ('m', 'n', 'a', 'gpt', 'ab', 'q'),
    ('m', 'n', 'b', 'gpt', 'ba', 'q'),
  )
  human, gpt = agreement.judges(votes)
  assert (human.own_agreement, human.num_own) == (pytest.approx(1 / 3), 3)
  assert (gpt.own_agreement, gpt.num_own) == (0, 1)


def test_alone():
  (judge,) = agreement.judges(rows(('m', 'n', 'a', None, None, None)))
  assert np.isnan(judge.first_wins) and np.isnan(judge.agreement)
