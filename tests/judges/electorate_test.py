"""The electorate: votes by hand, exact in every order, in pairs and in tables; drafts, demonstrations and slips."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges import electorate
from nlhf_jax.types import Prompts

# Responses 2, 3, 2 3 and 4; to the second prompt the last is none.
RESPONSES = np.array([[2, 1, 0], [3, 1, 0], [2, 3, 1], [4, 1, 0]], np.int32)
BALLOTS = [
  electorate.Ballot(RESPONSES, np.array([[2, 1, 0, 0], [0, 2, 1, 0], [1, 0, 2, 0]], np.float32)),
  electorate.Ballot(
    RESPONSES, np.array([[1, 1, 0, -np.inf], [0, 1, 1, -np.inf], [0, 1, 2, -np.inf]], np.float32)
  ),
]
JUDGE = electorate.preference_fn(electorate.enumeration(BALLOTS.__getitem__))


def _prompts(*index):
  return Prompts(np.zeros((len(index), 4), np.int32), np.array(index, np.int32))


def test_share_of_votes_counts_ties_as_half():
  first, second = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.0, 2.0, 4.0]])
  np.testing.assert_allclose(electorate.share_of_votes(first, second), [0.5])
  np.testing.assert_allclose(electorate.share_of_votes(first, first - 1), [1.0])
  np.testing.assert_allclose(
    electorate.share_of_votes(jnp.array([[1.0, 1.0, 1.0]]), jnp.array([[1.0, 1.0, 0.0]])), [2 / 3]
  )


def test_judge_reads_the_ballot_of_each_prompt():
  """Two pairs to each of two prompts: a cycle of majorities in the first; in the second a tie, and no response."""
  y, other = RESPONSES[[0, 1, 0, 3]], RESPONSES[[1, 2, 1, 0]]
  found = JUDGE(_prompts(0, 1), y, other)
  np.testing.assert_allclose(found, [2 / 3, 2 / 3, 1 / 6, 0], rtol=1e-6)


def test_table_holds_all_pairs_and_both_orders_add_up_to_exactly_one():
  rows = np.concatenate([RESPONSES, RESPONSES])
  table = np.asarray(JUDGE.table(_prompts(0, 1), rows, rows))
  assert table.shape == (2, 4, 4)
  assert np.all(table + table.swapaxes(1, 2) == 1.0)
  for i in range(4):
    for j in range(4):
      pair = np.stack([RESPONSES[i]] * 2), np.stack([RESPONSES[j]] * 2)
      np.testing.assert_array_equal(JUDGE(_prompts(0, 1), *pair), table[:, i, j])


def test_what_is_no_response_loses_to_every_response():
  """A word twice, none, no end, one after the end; two such tie."""
  bad = np.array([[2, 2, 1, 0], [1, 0, 0, 0], [2, 3, 0, 0], [2, 1, 0, 1]], np.int32)
  good = np.pad(RESPONSES[:1], [(0, 3), (0, 1)], mode='edge')
  good[:, 3] = 0
  for prompt in (0, 1):
    np.testing.assert_array_equal(JUDGE(_prompts(prompt), bad, good), 0.0)
    np.testing.assert_array_equal(JUDGE(_prompts(prompt), good, bad), 1.0)
    np.testing.assert_array_equal(JUDGE(_prompts(prompt), bad, bad[::-1]), 0.5)


@pytest.mark.parametrize('padding', [0, 3])
def test_response_numbers_invert_the_enumeration(padding):
  tokens = jnp.pad(jnp.asarray(RESPONSES), [(0, 0), (0, padding)])
  found = electorate.response_numbers(jnp.asarray(RESPONSES[None]), tokens)
  np.testing.assert_array_equal(found, [range(4)])


def test_drafts_have_every_length_alike():
  found = electorate.drafts(np.random.default_rng(0), BALLOTS[0], (6000,))
  counts = collections.Counter(found.tolist())
  # Three of one word, one of two.
  assert counts[2] == pytest.approx(3000, abs=150)
  assert all(counts[n] == pytest.approx(1000, abs=120) for n in (0, 1, 3))
  assert 3 not in electorate.drafts(np.random.default_rng(0), BALLOTS[1], (1000,))


def test_demonstration_is_an_annotators_favourite():
  """Of enough drafts each annotator's best; of one draft any response."""
  rng = np.random.default_rng(0)
  many = electorate.write(rng, BALLOTS[0], np.full(300, 60))
  counts = collections.Counter(many.tolist())
  assert set(counts) == {0, 1, 2}
  assert all(count == pytest.approx(100, abs=40) for count in counts.values())
  mixed = electorate.write(rng, BALLOTS[0], np.array([[1, 60]] * 400))
  assert 3 in mixed[:, 0]
  assert 3 not in mixed[:, 1]


def test_slip_changes_one_word():
  rng = np.random.default_rng(0)
  found = {tuple(electorate.slip(rng, RESPONSES[2], [2, 3, 4])) for _ in range(60)}
  assert found == {(3, 3, 1), (4, 3, 1), (2, 2, 1), (2, 4, 1)}


def test_votes_of_few_have_the_share_of_all_as_their_mean():
  rng = np.random.default_rng(0)
  first, second = (electorate.scores_of(BALLOTS[0], RESPONSES[[n]]) for n in (0, 1))
  assert electorate.votes(rng, first, second, None) == pytest.approx(2 / 3)
  repeat = lambda x: np.repeat(x, 2000, axis=1)
  single = electorate.votes(rng, repeat(first), repeat(second), 1)
  assert set(single.tolist()) == {0.0, 1.0}
  assert single.mean() == pytest.approx(2 / 3, abs=0.04)


def test_scores_of_what_is_no_response():
  tokens = np.array([[2, 2, 1], [4, 1, 0]], np.int32)
  assert np.isneginf(electorate.scores_of(BALLOTS[1], tokens)).all()


def test_annotators_apart():
  """1, 0 or a tie of each, whose mean is the judge's own answer; what is no response loses by all of them."""
  tokens = np.concatenate([RESPONSES, RESPONSES])
  each = np.asarray(JUDGE.annotators(_prompts(0, 1), tokens))
  np.testing.assert_array_equal(each[0, 0], [[0.5, 0.5, 0.5], [1, 0, 1], [1, 0, 0], [1, 0.5, 1]])
  np.testing.assert_array_equal(each[1, 0], [[0.5, 0.5, 0.5], [0.5, 0, 0], [1, 0, 0], [1, 1, 1]])
  np.testing.assert_allclose(each.mean(axis=-1), JUDGE.table(_prompts(0, 1), tokens), rtol=1e-6)


def test_voters_are_the_annotators_and_mixtures_of_them():
  voters = electorate.mixtures(50, 3, noise=2.0)
  np.testing.assert_array_equal(voters.weights[:3], np.eye(3))
  np.testing.assert_allclose(voters.weights.sum(axis=1), 1)
  assert voters.weights[3:].min() > 0
  more = electorate.mixtures(80, 3)
  np.testing.assert_array_equal(more.weights[:50], voters.weights)
  scores, other = np.array([[4.0, -np.inf, -np.inf]] * 3), np.array([[2.0, 1.0, -np.inf]] * 3)
  scores[1, 0] = 0
  p = electorate.preferences_of(voters, np.array([0, 2, 1]), scores, other)
  np.testing.assert_allclose(p, [1 / (1 + np.exp(-1)), 0, 0.5])
  sure = voters._replace(noise=0.0)
  p = electorate.preferences_of(sure, np.array([1, 0, 0]), scores, other)
  np.testing.assert_array_equal(p, [0, 0, 0.5])
