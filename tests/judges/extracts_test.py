"""From markers to sentences, scores by hand on small posts, and a cycle of majorities."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data import corpora
from nlhf_jax.judges import electorate, extracts, posts
from nlhf_jax.types import Prompts

MARKERS = (10, 11, 12)
# Marker 10: words 20, 21. Marker 11: word 30. Marker 12: no words.
PROMPTS = Prompts(
  jnp.array([[10, 20, 21, 11, 30, 12, 0], [11, 40, 10, 50, 51, 52, 0]]), jnp.arange(2)
)


@pytest.mark.parametrize(
  ('rows', 'expected'),
  [
    ([[10, 1, 0], [11, 1, 0]], [[20, 21, 0, 0], [40, 0, 0, 0]]),
    # In the order of the response, not of the text.
    ([[11, 10, 1], [10, 11, 1]], [[30, 20, 21, 0], [50, 51, 52, 40]]),
    # No marker, a marker without words, one that the text lacks.
    ([[12, 1, 0], [12, 30, 1]], [[0, 0, 0, 0], [0, 0, 0, 0]]),
  ],
)
def test_render_gives_the_sentences_after_the_markers(rows, expected):
  found = extracts.render(PROMPTS, jnp.array(rows), MARKERS, 4)
  np.testing.assert_array_equal(found, expected)


def test_render_takes_several_responses_to_a_prompt():
  rows = jnp.array([[10, 1], [11, 1], [11, 1], [10, 1]])
  found = extracts.renderer(MARKERS, 3)(PROMPTS, rows)
  np.testing.assert_array_equal(found, [[20, 21, 0], [30, 0, 0], [40, 0, 0], [50, 51, 52]])


def test_long_summaries_lose_their_end():
  found = extracts.render(PROMPTS, jnp.array([[11, 10, 1], [10, 11, 1]]), MARKERS, 2)
  np.testing.assert_array_equal(found, [[30, 20], [50, 51]])


def test_render_agrees_with_the_corpus_text():
  """Every response to a generated post, against its sentences joined."""
  corpus, post = corpora.generated_extracts(num_train=60, num_test=20), posts.generate(3)
  ids = corpus.vocabulary.encode(corpus.prompt(3))
  prompts = Prompts(jnp.array([ids]), jnp.array([3]))
  ballot = corpus.ballot(3)
  responses = ballot.responses[np.isfinite(ballot.scores[0])]
  rendered = extracts.render(prompts, jnp.asarray(responses), tuple(corpus.words), 30)
  for row, response in zip(np.asarray(rendered), responses, strict=True):
    chosen = [list(corpus.words).index(t) for t in response if t > 1]
    expected = ' '.join(post.sentences[i] for i in chosen)
    assert corpus.vocabulary.decode([int(t) for t in row if t]) == expected


def _sets(*items):
  return tuple(frozenset(item) for item in items)


# Long and factual, short, broad; words 6, 1 and 2.
CYCLE = posts.Post(
  'cycle', ('a', 'b', 'c'), _sets('xyz', 'x', ''), _sets('tu', 't', 'tuv'), (6.0, 1.0, 2.0)
)
# Two sentences only, which state facts x, y and y.
SMALL = posts.Post('small', ('a', 'b'), _sets('xy', 'y'), _sets('t', 'u'), (4.0, 1.0))
ALL_MARKERS = tuple(range(10, 18))


def test_scores_are_those_of_the_table():
  """Recall, brevity and breadth; facts and topics that two sentences share count once, words all."""
  scores = extracts.annotator_scores(SMALL)
  numbers = {selection: n for n, selection in enumerate(extracts.selections())}
  long, short, both = (scores[:, numbers[s]] for s in [(0,), (1,), (0, 1)])
  np.testing.assert_allclose(long, [2 - 0.4, 2 - 4, 1 - 0.4], rtol=1e-6)
  np.testing.assert_allclose(short, [1 - 0.1, 1 - 1, 1 - 0.1], rtol=1e-6)
  np.testing.assert_allclose(both, [2 - 0.5, 2 - 5, 2 - 0.5], rtol=1e-6)
  np.testing.assert_array_equal(scores[:, numbers[(1, 0)]], both)
  assert np.isneginf(scores[:, numbers[(2,)]]).all()
  assert np.isneginf(scores[:, numbers[(0, 2)]]).all()


def test_selections_are_all_ordered_choices_of_up_to_three():
  found = extracts.selections()
  assert len(found) == len(set(found)) == 8 + 8 * 7 + 8 * 7 * 6
  assert all(len(set(selection)) == len(selection) <= 3 for selection in found)


def test_majorities_cycle():
  """Two of three annotators like the long response better than the short, that than the broad, that than the long.

  | response | recall        | brevity    | breadth       |
  |----------|---------------|------------|---------------|
  | long     | 3 − .6 =  2.4 | 3 − 6 = −3 | 2 − .6 =  1.4 |
  | short    | 1 − .1 =  0.9 | 1 − 1 =  0 | 1 − .1 =  0.9 |
  | broad    | 0 − .2 = −0.2 | 0 − 2 = −2 | 3 − .2 =  2.8 |
  """
  judge = electorate.preference_fn(
    electorate.enumeration({0: extracts.ballot(CYCLE, ALL_MARKERS)}.__getitem__)
  )
  rows = extracts.responses(ALL_MARKERS)[[extracts.selections().index((i,)) for i in range(3)]]
  prompts = Prompts(np.zeros((1, 4), np.int32), np.zeros(1, np.int32))
  found = judge(prompts, rows, np.roll(rows, -1, axis=0))
  np.testing.assert_allclose(found, [2 / 3] * 3, rtol=1e-6)


def test_wrong_number_of_markers_is_refused():
  with pytest.raises(ValueError, match='Expected 8 marker ids, got 3'):
    extracts.ballot(SMALL, MARKERS)
