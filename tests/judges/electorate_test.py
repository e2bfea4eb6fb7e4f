"""The electorate: scores and votes by hand on small posts, exact in every order, and a cycle of majorities."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges import electorate, posts
from nlhf_jax.types import Prompts

MARKERS = tuple(range(10, 18))


def _sets(*items):
  return tuple(frozenset(item) for item in items)


# Long and factual, short, broad; words 6, 1 and 2.
CYCLE = posts.Post(
  'cycle', ('a', 'b', 'c'), _sets('xyz', 'x', ''), _sets('tu', 't', 'tuv'), (6.0, 1.0, 2.0)
)
# As many sentences as there are markers.
LONG = posts.Post('long', ('a',) * 8, _sets(*'stuvwxyz'), _sets(*'stuvwxyz'), (1.0,) * 8)
# Two sentences only, which state facts x, y and y.
SMALL = posts.Post('small', ('a', 'b'), _sets('xy', 'y'), _sets('t', 'u'), (4.0, 1.0))


@pytest.fixture(scope='module')
def table():
  return electorate.elect([CYCLE, SMALL, LONG], MARKERS)


@pytest.fixture(scope='module')
def judge(table):
  return electorate.preference_fn(table)


def _prompts(*index):
  return Prompts(np.zeros((len(index), 4), np.int32), np.array(index, np.int32))


def _respond(*selections, length=4):
  """Responses that name sentences from 0."""
  tokens = np.zeros((len(selections), length), np.int32)
  for row, selection in zip(tokens, selections, strict=True):
    row[: len(selection) + 1] = [*(MARKERS[i] for i in selection), 1]
  return tokens


def test_scores_are_those_of_the_table():
  """Recall, brevity and breadth; facts and topics that two sentences share count once, words all."""
  scores = electorate.annotator_scores(SMALL)
  numbers = {selection: n for n, selection in enumerate(electorate.selections())}
  long, short, both = (scores[:, numbers[s]] for s in [(0,), (1,), (0, 1)])
  np.testing.assert_allclose(long, [2 - 0.4, 2 - 4, 1 - 0.4], rtol=1e-6)
  np.testing.assert_allclose(short, [1 - 0.1, 1 - 1, 1 - 0.1], rtol=1e-6)
  np.testing.assert_allclose(both, [2 - 0.5, 2 - 5, 2 - 0.5], rtol=1e-6)
  np.testing.assert_array_equal(scores[:, numbers[(1, 0)]], both)
  assert np.isneginf(scores[:, numbers[(2,)]]).all()
  assert np.isneginf(scores[:, numbers[(0, 2)]]).all()


def test_share_of_votes_counts_ties_as_half():
  first, second = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.0, 2.0, 4.0]])
  np.testing.assert_allclose(electorate.share_of_votes(first, second), [0.5])
  np.testing.assert_allclose(electorate.share_of_votes(first, first - 1), [1.0])
  np.testing.assert_allclose(
    electorate.share_of_votes(jnp.array([[1.0, 1.0, 1.0]]), jnp.array([[1.0, 1.0, 0.0]])), [2 / 3]
  )


def test_selections_are_all_ordered_choices_of_up_to_three():
  found = electorate.selections()
  assert len(found) == len(set(found)) == 8 + 8 * 7 + 8 * 7 * 6
  assert all(len(set(selection)) == len(selection) <= 3 for selection in found)


def test_majorities_cycle(judge):
  """Two of three annotators like the long response better than the short, that than the broad, that than the long.

  | response | recall        | brevity    | breadth       |
  |----------|---------------|------------|---------------|
  | long     | 3 − .6 =  2.4 | 3 − 6 = −3 | 2 − .6 =  1.4 |
  | short    | 1 − .1 =  0.9 | 1 − 1 =  0 | 1 − .1 =  0.9 |
  | broad    | 0 − .2 = −0.2 | 0 − 2 = −2 | 3 − .2 =  2.8 |
  """
  long_short_broad = _respond((0,), (1,), (2,))
  found = judge(_prompts(0), long_short_broad, np.roll(long_short_broad, -1, axis=0))
  np.testing.assert_allclose(found, [2 / 3] * 3, rtol=1e-6)


def test_judge_reads_the_row_of_each_prompt(judge):
  """Two pairs to each of two prompts. To the small post sentence 2 is no response."""
  y, other = _respond((0,), (2,), (0,), (2,)), _respond((1,), (1,), (1,), (1,))
  found = judge(_prompts(0, 1), y, other)
  # Small post: recall 1.6 > 0.9, brevity −2 < 0, breadth 0.6 < 0.9.
  np.testing.assert_allclose(found, [2 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_both_orders_add_up_to_exactly_one(table, judge):
  valid = np.flatnonzero(np.isfinite(table.scores[0, 0]))
  pairs = np.array(list(itertools.product(valid, valid)))
  first, second = (table.responses[column] for column in pairs.T)
  forward, backward = (
    np.asarray(judge(_prompts(0), *x)) for x in [(first, second), (second, first)]
  )
  assert np.all(forward + backward == 1.0)
  assert set(np.round(forward * 6)) >= {0, 2, 3, 4, 6}


def test_what_is_no_response_loses_to_every_response(judge):
  """A marker twice, none, no end, a word; two such tie."""
  first, second = MARKERS[:2]
  bad = np.array(
    [[first, first, 1, 0], [1, 0, 0, 0], [first, second, 0, 0], [2, 1, 0, 0]], np.int32
  )
  good = np.tile(_respond((0, 1, 2)), (4, 1))
  for prompt in (0, 2):
    np.testing.assert_array_equal(judge(_prompts(prompt), bad, good), 0.0)
    np.testing.assert_array_equal(judge(_prompts(prompt), good, bad), 1.0)
    np.testing.assert_array_equal(judge(_prompts(prompt), bad, bad[::-1]), 0.5)


@pytest.mark.parametrize('padding', [0, 3])
def test_response_numbers_invert_the_enumeration(table, padding):
  tokens = jnp.pad(jnp.asarray(table.responses), [(0, 0), (0, padding)])
  numbers = electorate.response_numbers(table, tokens)
  np.testing.assert_array_equal(numbers, np.arange(400))


def test_tokens_after_the_end_are_no_response(table):
  marker = MARKERS[0]
  tokens = jnp.array(
    [
      [marker, 1, MARKERS[1], 0, 0],
      [marker, 1, 0, 1, 0],
      [marker, 0, 1, 0, 0],
      [marker, 1, 0, 0, 7],
    ]
  )
  np.testing.assert_array_equal(electorate.response_numbers(table, tokens), -1)


def test_drafts_have_every_size_and_order_alike():
  rng = np.random.default_rng(0)
  found = collections.Counter(
    electorate.selections()[electorate.draft(rng, 3)] for _ in range(3600)
  )
  sizes = collections.Counter()
  for selection, count in found.items():
    sizes[len(selection)] += count
  assert all(sizes[n] == pytest.approx(1200, abs=120) for n in (1, 2, 3))
  assert set(found) == {s for n in (1, 2, 3) for s in itertools.permutations(range(3), n)}


def test_demonstration_is_an_annotators_favourite():
  """Of enough drafts: by the table above the long response for recall, the short for brevity, the broad for breadth."""
  scores = electorate.annotator_scores(CYCLE)
  rng = np.random.default_rng(0)
  written = [electorate.write(rng, scores, 3, num_drafts=150) for _ in range(40)]
  assert {electorate.selections()[n] for n in written} == {(0,), (1,), (2,)}


def test_votes_of_few_have_the_share_of_all_as_their_mean():
  scores = electorate.annotator_scores(CYCLE)
  rng = np.random.default_rng(0)
  assert electorate.votes(rng, scores, 0, 1, None) == pytest.approx(2 / 3)
  single = [electorate.votes(rng, scores, 0, 1, 1) for _ in range(2000)]
  assert set(single) == {0.0, 1.0}
  assert np.mean(single) == pytest.approx(2 / 3, abs=0.04)


def test_judge_compiles_within_a_larger_program(judge):
  """Training samples and judges on the device."""
  y, other = _respond((0,), (1,)), _respond((1,), (2,))
  traced = jax.jit(lambda a, b: judge(jax.tree.map(jnp.asarray, _prompts(0)), a, b))
  np.testing.assert_array_equal(traced(y, other), judge(_prompts(0), y, other))


def test_wrong_number_of_markers_is_refused():
  with pytest.raises(ValueError, match='Expected 8 marker ids, got 3'):
    electorate.elect([SMALL], MARKERS[:3])
