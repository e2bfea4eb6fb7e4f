"""Extractive summaries: one to three markers of a post's sentences, which stand for the sentences.

| annotator | taste                                 | score of a summary                        |
|-----------|---------------------------------------|-------------------------------------------|
| recall    | as many key facts as possible         | distinct key facts − words / 10           |
| brevity   | few words, unless they state a fact   | distinct key facts − words                |
| breadth   | as many topics as possible            | distinct topics − words / 10              |

Majorities cycle: a long, factual summary beats a short one, which beats a broad one, which beats the long one.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.judges import electorate, posts
from nlhf_jax.types import PAD, Prompts

ANNOTATORS = ('recall', 'brevity', 'breadth')
MAX_SELECTED = 3

Render = Callable[[Prompts, jax.Array], jax.Array]


def selections() -> list[tuple[int, ...]]:
  """Every response as sentence numbers from 0, in a fixed order: 8 + 8·7 + 8·7·6 = 400."""
  return electorate.selections(posts.MAX_SENTENCES, MAX_SELECTED)


@functools.cache
def responses(marker_ids: tuple[int, ...]) -> Int[np.ndarray, 'Y T']:
  """All of them in tokens.

  Raises:
    ValueError: there is not one marker for each sentence that a post may have.
  """
  if len(marker_ids) != posts.MAX_SENTENCES:
    raise ValueError(f'Expected {posts.MAX_SENTENCES} marker ids, got {len(marker_ids)}.')
  return electorate.as_responses(marker_ids, MAX_SELECTED)


def ballot(post: posts.Post, marker_ids: tuple[int, ...]) -> electorate.Ballot:
  """Every response to a post, and every annotator's score of it."""
  return electorate.Ballot(responses(marker_ids), annotator_scores(post))


def annotator_scores(post: posts.Post) -> Float[np.ndarray, 'K Y']:
  """Scores of every response by the table above; −inf where one names a sentence that the post lacks."""
  size = len(post.sentences)
  chosen = electorate.incidence(posts.MAX_SENTENCES, MAX_SELECTED)
  words = chosen[:, :size] @ np.array(post.words, np.float32)
  facts = _num_distinct(chosen, post.facts)
  topics = _num_distinct(chosen, post.topics)
  scores = np.stack([facts - 0.1 * words, facts - words, topics - 0.1 * words])
  return np.where(chosen[:, size:].any(axis=1), -np.inf, scores).astype(np.float32)


def _num_distinct(
  chosen: Float[np.ndarray, 'Y sentences'], items: Sequence[frozenset[str]]
) -> Float[np.ndarray, 'Y']:
  """Number of different items in the sentences that each response has."""
  distinct = sorted(frozenset().union(*items))
  incidence = np.array([[item in sentence for item in distinct] for sentence in items], np.float32)
  found = chosen[:, : len(items)] @ incidence.reshape(len(items), len(distinct)) > 0
  return found.sum(axis=1).astype(np.float32)


def render(
  prompts: Prompts, responses: Int[Array, 'N T'], marker_ids: Sequence[int], max_length: int
) -> Int[Array, 'N R']:
  """The sentences after the markers of a response, in its order, without the markers.

  Args:
    prompts: B marked texts.
    responses: N = B·k rows of markers.
    marker_ids: the tokens that are markers.
    max_length: R; what is longer loses its end.
  """
  text = prompts.tokens
  is_marker = jnp.isin(text, jnp.array(marker_ids))
  positions = jnp.where(is_marker, jnp.arange(text.shape[-1]), 0)
  marker = jnp.take_along_axis(text, jax.lax.cummax(positions, axis=1), axis=-1)
  # The marker of each word's sentence.
  marker = jnp.where(is_marker | (text == PAD), -1, marker)
  by_prompt = responses.reshape(text.shape[0], -1, responses.shape[-1], 1)
  picked = jnp.where(marker[:, None, None] == by_prompt, text[:, None, None], PAD)  # [B, k, T, S]
  picked = picked.reshape(responses.shape[0], -1)
  order = jnp.argsort(picked == PAD, axis=-1, stable=True)[:, :max_length]
  return jnp.take_along_axis(picked, order, axis=-1)


def renderer(marker_ids: Sequence[int], max_length: int) -> Render:
  """`render` for a preference or a reward model."""
  return lambda prompts, responses: render(prompts, responses, marker_ids, max_length)
