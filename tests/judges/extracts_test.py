"""From markers to sentences."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data import corpora
from nlhf_jax.judges import extracts
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
  corpus = corpora.headlines(num_train=60, num_test=20)
  ids = corpus.vocabulary.encode(corpus.prompt(3))
  prompts = Prompts(jnp.array([ids]), jnp.array([3]))
  valid = np.flatnonzero(np.isfinite(corpus.electorate.scores[3, 0]))
  responses = corpus.electorate.responses[valid]
  rendered = extracts.render(prompts, jnp.asarray(responses), corpus.electorate.marker_ids, 30)
  for row, response in zip(np.asarray(rendered), responses, strict=True):
    chosen = [corpus.electorate.marker_ids.index(t) for t in response if t > 1]
    expected = ' '.join(corpus.posts[3].sentences[i] for i in chosen)
    assert corpus.vocabulary.decode([int(t) for t in row if t]) == expected
