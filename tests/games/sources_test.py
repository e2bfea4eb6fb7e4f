"""Where games come from: closed forms of the literature, ballots counted by hand, and files with a mistake each."""

import numpy as np
import pytest

from nlhf_jax.games import solve, sources


@pytest.mark.parametrize('epsilon', [-0.3, -0.1, 0.05, 0.3])
def test_nash_of_section_3_2(epsilon):
  lottery = solve.maximal_lottery(sources.section_3_2(epsilon).preference)
  np.testing.assert_allclose(
    lottery.policy, [1 / 3 + epsilon / 2, 1 / 3 + epsilon / 2, 1 / 3 - epsilon], atol=1e-12
  )
  assert lottery.unique


def test_appendix_a():
  """On {π(y1) = 2 π(y2)} the Elo optimum is (2/3, 1/3, 0), the preference optimum (0, 0, 1): 50/99 over it."""
  p = sources.appendix_a().preference
  rewards = np.log([1.0, 9.0, 2.0])
  elo_optimum, preferred = np.array([2 / 3, 1 / 3, 0]), np.array([0, 0, 1.0])
  assert elo_optimum @ rewards > preferred @ rewards
  assert preferred @ p @ elo_optimum == pytest.approx(50 / 99)


def test_cycle_of_appendix_c_2():
  p = sources.appendix_c_2().preference
  np.testing.assert_allclose(p[[0, 1, 2], [1, 2, 0]], 2 / 3)
  np.testing.assert_allclose(solve.maximal_lottery(p).policy, 1 / 3, atol=1e-12)


def test_rock_paper_scissors():
  p = sources.rock_paper_scissors().preference
  assert (p[1, 0], p[2, 1], p[0, 2]) == (1, 1, 1)  # Paper, scissors, rock.
  np.testing.assert_allclose(sources.rock_paper_scissors(7).preference.sum(axis=1), 3.5)


def test_blotto(test_data):
  file = sources.read_table(test_data / 'games' / 'blotto_5_3.csv')
  built = sources.blotto(5, 3)
  order = [built.labels.index(label) for label in file.labels]
  np.testing.assert_array_equal(built.preference[np.ix_(order, order)], file.preference)


def test_ratings_and_payoffs():
  np.testing.assert_allclose(sources.elo(np.array([1900.0, 1500.0]))[0], [0.5, 10 / 11])
  np.testing.assert_allclose(sources.bradley_terry(np.log([3.0, 1.0]))[0], [0.5, 0.75])
  np.testing.assert_allclose(
    sources.from_payoffs([[0, 4, -1], [-4, 0, 2], [1, -2, 0]])[0], [0.5, 1, 0.375]
  )
  with pytest.raises(ValueError, match=r'A\[0, 1\] = 1.0, A\[1, 0\] = 1.0'):
    sources.from_payoffs([[0, 1], [1, 0]])


def test_ballots():
  """Unranked is below ranked; equals and two unranked share the vote."""
  ballots = [(3, [[0], [1]]), (2, [[1, 2]]), (1, [])]
  table = sources.from_ballots(ballots, 3, ['a', 'b', 'c'])
  np.testing.assert_array_equal(table.wins, [[0, 3.5, 3.5], [2.5, 0, 4.5], [2.5, 1.5, 0]])
  np.testing.assert_allclose(table.preference[0, 1], 3.5 / 6)
  with pytest.raises(ValueError, match='Ballot 0 names alternative 1 twice'):
    sources.from_ballots([(1, [[1], [1]])], 3)


def test_pair_that_was_never_compared():
  table = sources.from_wins([[0, 3, 0], [1, 0, 0], [0, 0, 0]])
  unknown = np.nan
  expected = [[0.5, 0.75, unknown], [0.25, 0.5, unknown], [unknown, unknown, 0.5]]
  np.testing.assert_allclose(table.preference, expected)


@pytest.mark.parametrize(
  ('text', 'shares', 'counted'),
  [
    ('P,a,b\na,.5,.486826\nb,.513173,.5\n', 0.4868265, False),
    ('P,a,b\na,,1\nb,0,\n', 1, False),
    ('wins,a,b\na,0,1\nb,0,0\n', 1, True),
    ('wins;a;b\na;0;6\nb;4;0\n', 0.6, True),
    (',a,b\na,nan,1.5\nb,,nan\n', 1, True),
  ],
)
def test_shares_and_counts_are_told_apart(text, shares, counted, tmp_path):
  (tmp_path / 'game.csv').write_text(text)
  table = sources.read_table(tmp_path / 'game.csv')
  assert table.preference[0, 1] == pytest.approx(shares, abs=1e-12)
  assert table.preference[0, 1] + table.preference[1, 0] == 1
  assert (table.wins is not None) == counted


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'has no rows'),
    (',a,b\na,.5,.6\nb,.4\n', r':3 has 2 fields, the first line 3'),
    (',a,b\na,.5,x\nb,.4,.5\n', r":2: column 'b' holds 'x', not a number"),
    (
      ',a,b\na,.5,.6\nc,.4,.5\n',
      "labels of rows and columns differ: 'c' in a row where a column has 'b'",
    ),
    (',a,a\na,.5,.6\na,.4,.5\n', "The label 'a' occurs twice"),
    (',a,b\na,.5,.7\nb,.4,.5\n', r'P\[a, b\] = 0.7 and its mirror must add up to 1'),
    (',a,b\na,.5,nan\nb,.4,.5\n', r'P\[a, b\] = nan is unknown: compare the two'),
    (',a,b\na,.5,1.7\nb,-.7,.5\n', r'P\[a, b\] = 1.7 must be in \[0, 1\]'),
    (',a,b\na,0,-7\nb,4,0\n', r'wins\[a, b\] = -7.0 must be 0 or more'),
  ],
)
def test_error_of_a_file(text, message, tmp_path):
  path = tmp_path / 'game.csv'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    sources.read_table(path)


def test_file_of_counts(tmp_path):
  path = tmp_path / 'game.csv'
  path.write_text(',a,b\na,0,6\nb,2.5,0\n')
  table = sources.read_table(path)
  assert table.preference[0, 1] == pytest.approx(6 / 8.5)
  np.testing.assert_array_equal(table.wins, [[0, 6], [2.5, 0]])


def test_names_with_numbers():
  assert len(sources.named('blotto:4,2').labels) == 5
  assert sources.named('games.csv') is None
  with pytest.raises(ValueError, match='appendix_a takes at most 0 numbers: appendix_a:1'):
    sources.named('appendix_a:1')
  with pytest.raises(ValueError, match=r'rock_paper_scissors:4: .* needs an odd number'):
    sources.named('rock_paper_scissors:4')
