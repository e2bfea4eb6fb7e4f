"""Annotators with different tastes, who vote: P(y ≻ y'|x) is the share of their votes, a tie counting half.

| annotator | taste                                 | score of a summary                        |
|-----------|---------------------------------------|-------------------------------------------|
| recall    | as many key facts as possible         | distinct key facts − words / 10           |
| brevity   | few words, unless they state a fact   | distinct key facts − words                |
| breadth   | as many topics as possible            | distinct topics − words / 10              |

Each is consistent, and yet their majorities cycle: a long, factual summary beats a short one, which beats a broad one,
which beats the long one. Every response can be enumerated, so preferences, equilibria and worst cases are exact.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.judges import posts
from nlhf_jax.types import EOS, PAD, PreferenceFn, Prompts

ANNOTATORS = ('recall', 'brevity', 'breadth')
MAX_SELECTED = 3
RESPONSE_LENGTH = MAX_SELECTED + 1  # Markers and EOS.


class Electorate(NamedTuple):
  """Every annotator's score of every response to every post."""

  # Tokens: one to three markers, EOS, padding.
  responses: Int[np.ndarray, 'Y T']
  # Of each post, annotator and response. Higher is better; −inf: not a response to this post.
  scores: Float[np.ndarray, 'P K Y']
  # The token before each sentence.
  marker_ids: tuple[int, ...]


def elect(all_posts: Sequence[posts.Post], marker_ids: Sequence[int]) -> Electorate:
  """Lets every annotator score every response to every post.

  Args:
    all_posts: row p of the scores belongs to the post whose `index` is p.
    marker_ids: token of the marker of each sentence.

  Raises:
    ValueError: there is not one marker for each sentence that a post may have.
  """
  if len(marker_ids) != posts.MAX_SENTENCES:
    raise ValueError(f'Expected {posts.MAX_SENTENCES} marker ids, got {len(marker_ids)}.')
  responses = np.full((len(selections()), RESPONSE_LENGTH), PAD, np.int32)
  for number, selection in enumerate(selections()):
    responses[number, : len(selection) + 1] = [*(marker_ids[i] for i in selection), EOS]
  scores = np.stack([annotator_scores(post) for post in all_posts])
  return Electorate(responses, scores, tuple(marker_ids))


@functools.cache
def selections() -> list[tuple[int, ...]]:
  """Every response as sentence numbers from 0, in a fixed order: 8 + 8·7 + 8·7·6 = 400."""
  sizes = range(1, MAX_SELECTED + 1)
  return [s for size in sizes for s in itertools.permutations(range(posts.MAX_SENTENCES), size)]


@functools.cache
def _chosen() -> Float[np.ndarray, 'Y sentences']:
  """1 where a response has a sentence, else 0."""
  chosen = np.zeros((len(selections()), posts.MAX_SENTENCES), np.float32)
  for number, selection in enumerate(selections()):
    chosen[number, list(selection)] = 1
  return chosen


def annotator_scores(post: posts.Post) -> Float[np.ndarray, 'K Y']:
  """Scores of every response by the table above; −inf where one names a sentence that the post lacks."""
  size = len(post.sentences)
  chosen = _chosen()
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


def share_of_votes(
  scores: Float[Array, '*rows K'], other: Float[Array, '*rows K']
) -> Float[Array, '*rows']:
  """P(y ≻ y'|x) from the annotators' scores of y and y'; a tie is half a vote."""
  return jnp.mean(0.5 + 0.5 * (scores > other) - 0.5 * (scores < other), axis=-1)


def response_numbers(electorate: Electorate, tokens: Int[Array, 'N T']) -> Int[Array, 'N']:
  """Number of each row among the enumerated responses; −1 for anything else, such as a marker twice or no EOS."""
  padded = jnp.pad(tokens, [(0, 0), (0, RESPONSE_LENGTH)], constant_values=PAD)
  head, tail = padded[:, :RESPONSE_LENGTH], padded[:, RESPONSE_LENGTH:]
  digits = jnp.zeros_like(head)
  for digit, token in enumerate([*electorate.marker_ids, EOS], start=1):
    digits = jnp.where(head == token, digit, digits)
  known = jnp.all((digits > 0) == (head != PAD), axis=-1) & jnp.all(tail == PAD, axis=-1)
  code = jnp.sum(digits * 10 ** jnp.arange(RESPONSE_LENGTH), axis=-1)
  return jnp.where(known, jnp.asarray(_numbers_by_code())[code], -1)


@functools.cache
def _numbers_by_code() -> Int[np.ndarray, 'codes']:
  """Response number by the decimal code of its digits: 1–8 markers, 9 EOS, 0 padding; −1: no response."""
  numbers = np.full(10**RESPONSE_LENGTH, -1, np.int32)
  for number, selection in enumerate(selections()):
    digits = [*(i + 1 for i in selection), posts.MAX_SENTENCES + 1]
    numbers[sum(digit * 10**place for place, digit in enumerate(digits))] = number
  return numbers


def preference_fn(electorate: Electorate) -> PreferenceFn:
  """The exact judge. What is no response to the post loses to every response; two such tie."""

  @jax.jit
  def judge(scores, prompts: Prompts, response, alternative):
    rows = jnp.repeat(prompts.index, response.shape[0] // prompts.index.shape[0])

    def scores_of(tokens):
      number = response_numbers(electorate, tokens)
      return jnp.where((number >= 0)[:, None], scores[rows, :, number], -jnp.inf)

    return share_of_votes(scores_of(response), scores_of(alternative))

  return functools.partial(judge, jnp.asarray(electorate.scores))


def draft(rng: np.random.Generator, num_sentences: int) -> int:
  """The number of a random response: one to three sentences, each count equally likely."""
  size = rng.integers(1, min(MAX_SELECTED, num_sentences) + 1)
  return _number_of()[tuple(rng.permutation(num_sentences)[:size].tolist())]


@functools.cache
def _number_of() -> dict[tuple[int, ...], int]:
  return {selection: number for number, selection in enumerate(selections())}


def write(
  rng: np.random.Generator,
  scores: Float[np.ndarray, 'K Y'],
  num_sentences: int,
  num_drafts: int = 8,
) -> int:
  """A demonstration: of some random drafts the one that an annotator, drawn at random, scores highest."""
  drafts = [draft(rng, num_sentences) for _ in range(num_drafts)]
  annotator = rng.integers(len(scores))
  return max(drafts, key=lambda number: scores[annotator, number])


def votes(
  rng: np.random.Generator,
  scores: Float[np.ndarray, 'K Y'],
  first: int,
  second: int,
  num_votes: int | None,
) -> float:
  """Share of votes for `first`: of all annotators (None), or of `num_votes` of them drawn at random."""
  share = 0.5 + 0.5 * np.sign(scores[:, first] - scores[:, second])
  if num_votes is not None:
    share = rng.choice(share, size=num_votes)
  return float(share.mean())
