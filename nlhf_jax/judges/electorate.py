"""Annotators with different tastes, who vote: P(y ≻ y'|x) is the share of their votes, a tie counting half.

Each annotator scores every response to a prompt and is consistent; their majorities may cycle all the same. Where every
response can be enumerated, preferences, equilibria and worst cases are exact. `judges.headlines` and `judges.extracts`
say what there is to score, and who likes what.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import special

from nlhf_jax.types import EOS, PAD, AllPairsJudge, Enumeration, Prompts


class Ballot(NamedTuple):
  """All responses to one prompt, and what every annotator thinks of them."""

  # Padded, with EOS.
  responses: Int[np.ndarray, 'Y T']
  # Higher is better; −inf: no response to this prompt.
  scores: Float[np.ndarray, 'K Y']


class Voters(NamedTuple):
  """Voters of whom each weighs the annotators' scores in a way of its own."""

  # Of each annotator for each voter: 0 or more, adding up to 1.
  weights: Float[np.ndarray, 'U K']
  # P(y ≻ y') = σ(difference / noise), in points; 0: a voter is always sure.
  noise: float = 0.0


# Number of a prompt -> its ballot.
Ballots = Callable[[int], Ballot]
EnumerationFn = Callable[[Prompts], Enumeration]


@functools.cache
def selections(num_items: int, max_selected: int) -> list[tuple[int, ...]]:
  """Every ordered choice of one to `max_selected` items by number, in a fixed order."""
  sizes = range(1, max_selected + 1)
  return [s for size in sizes for s in itertools.permutations(range(num_items), size)]


@functools.cache
def incidence(num_items: int, max_selected: int) -> Float[np.ndarray, 'Y items']:
  """1 where a selection has an item, else 0."""
  chosen = selections(num_items, max_selected)
  result = np.zeros((len(chosen), num_items), np.float32)
  for number, selection in enumerate(chosen):
    result[number, list(selection)] = 1
  return result


def as_responses(token_ids: Sequence[int], max_selected: int) -> Int[np.ndarray, 'Y T']:
  """Every selection as a response: its items' tokens, and EOS."""
  chosen = selections(len(token_ids), max_selected)
  rows = np.full((len(chosen), max_selected + 1), PAD, np.int32)
  for number, selection in enumerate(chosen):
    rows[number, : len(selection) + 1] = [*(token_ids[i] for i in selection), EOS]
  return rows


def share_of_votes(
  scores: Float[Array, '*#rows K'], other: Float[Array, '*#rows K']
) -> Float[Array, '*rows']:
  """P(y ≻ y'|x) from the annotators' scores of y and y'; a tie is half a vote."""
  return jnp.mean(each_vote(scores, other), axis=-1)


def each_vote(
  scores: Float[Array, '*#rows K'], other: Float[Array, '*#rows K']
) -> Float[Array, '*rows K']:
  """P_u(y ≻ y'|x) of every annotator u: 1, 0, or 1/2 for a tie."""
  return 0.5 + 0.5 * (scores > other) - 0.5 * (scores < other)


def enumeration(ballots: Ballots) -> EnumerationFn:
  """Prompts → their ballots together; they must have as many responses each."""

  def enumerate_all(prompts: Prompts) -> Enumeration:
    rows = [ballots(int(number)) for number in np.asarray(prompts.index)]
    responses, scores = (np.stack(column) for column in zip(*rows, strict=True))
    return Enumeration(responses, scores)

  return enumerate_all


def response_numbers(
  responses: Int[Array, 'B Y T'], tokens: Int[Array, 'N R']
) -> Int[Array, 'B k']:
  """Which of its prompt's responses each row is, k = N/B; −1: none of them, such as one without EOS."""
  size = max(responses.shape[-1], tokens.shape[-1])
  wide = lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, size - x.shape[-1])], constant_values=PAD)
  by_prompt = wide(tokens.reshape(responses.shape[0], -1, tokens.shape[-1]))
  equal = jnp.all(by_prompt[:, :, None] == wide(responses)[:, None], axis=-1)
  return jnp.where(jnp.any(equal, axis=-1), jnp.argmax(equal, axis=-1), -1)


def preference_fn(enumeration: EnumerationFn) -> AllPairsJudge:
  """The exact judge; runs on the host. What is no response to its prompt loses to every response; two such tie."""

  @functools.partial(jax.jit, static_argnames=('every_pair', 'apart'))
  def vote(enumeration, first, second, every_pair, apart):
    responses, scores = enumeration
    by_response = jnp.swapaxes(scores, 1, 2)

    def scores_of(tokens):
      number = response_numbers(responses, tokens)[..., None]
      found = jnp.take_along_axis(by_response, jnp.maximum(number, 0), axis=1)
      return jnp.where(number >= 0, found, -jnp.inf)

    first, second = scores_of(first), scores_of(second)
    if not every_pair:
      return share_of_votes(first, second).reshape(-1)
    count = each_vote if apart else share_of_votes
    return count(first[:, :, None], second[:, None])

  def judge(every_pair, apart, prompts: Prompts, first, second=None):
    second = first if second is None else second
    return vote(enumeration(prompts), first, second, every_pair, apart)

  ask = ((False, False), (True, False), (True, True))
  return AllPairsJudge(*(functools.partial(judge, *which) for which in ask))


def drafts(
  rng: np.random.Generator, ballot: Ballot, shape: Sequence[int]
) -> Int[np.ndarray, '*shape']:
  """Numbers of random responses: each length equally likely, and each response of that length."""
  valid = np.isfinite(ballot.scores[0])
  lengths = np.where(valid, np.sum(ballot.responses != PAD, axis=-1), 0)
  counts = np.bincount(lengths)
  counts[0] = 0
  chances = np.where(valid, 1 / np.maximum(counts[lengths], 1), 0) / np.count_nonzero(counts)
  return np.searchsorted(np.cumsum(chances)[:-1], rng.random(tuple(shape)), side='right')


def write(
  rng: np.random.Generator, ballot: Ballot, num_drafts: Int[np.ndarray, '*shape']
) -> Int[np.ndarray, '*shape']:
  """Demonstrations: each the favourite of an annotator drawn at random, among a number of random drafts."""
  most = int(num_drafts.max())
  candidates = drafts(rng, ballot, (*num_drafts.shape, most))
  annotators = rng.integers(len(ballot.scores), size=(*num_drafts.shape, 1))
  scores = ballot.scores[annotators, candidates]
  scores = np.where(np.arange(most) < num_drafts[..., None], scores, -np.inf)
  return np.take_along_axis(candidates, np.argmax(scores, axis=-1)[..., None], axis=-1)[..., 0]


def slip(
  rng: np.random.Generator, response: Int[np.ndarray, 'T'], alphabet: Sequence[int]
) -> Int[np.ndarray, 'T']:
  """A response with one of its words replaced by any other: often it is no response to the prompt any more.

  A judge who never saw such a thing lets a policy get away with it.
  """
  tokens = response.copy()
  place = rng.integers(np.sum(tokens > EOS))
  tokens[place] = rng.choice([token for token in alphabet if token != tokens[place]])
  return tokens


def scores_of(ballot: Ballot, tokens: Int[np.ndarray, 'N T']) -> Float[np.ndarray, 'K N']:
  """Every annotator's score of some responses; −inf for what is no response to the prompt."""
  equal = (tokens[:, None] == ballot.responses).all(axis=-1)
  found = ballot.scores[:, np.argmax(equal, axis=-1)]
  return np.where(equal.any(axis=-1), found, -np.inf)


def votes(
  rng: np.random.Generator,
  scores: Float[np.ndarray, 'K N'],
  other: Float[np.ndarray, 'K N'],
  num_votes: int | None,
) -> Float[np.ndarray, 'N']:
  """Share of votes for y over y': of all annotators (None), or of `num_votes` of them drawn at random."""
  share = 0.5 + 0.5 * ((scores > other) * 1.0 - (scores < other))
  if num_votes is not None:
    share = np.take_along_axis(share, rng.integers(len(share), size=(num_votes, share.shape[1])), 0)
  return share.mean(axis=0)


def mixtures(
  num_voters: int,
  num_annotators: int,
  *,
  concentration: float = 1.0,
  noise: float = 0.0,
  seed: int = 0,
) -> Voters:
  """Voters of whom the first are the annotators themselves, and the others mixtures of them, drawn from a Dirichlet distribution.

  Args:
    num_voters: U.
    num_annotators: K.
    concentration: of the distribution; 1: all mixtures are equally likely, near 0: each voter is like one annotator.
    noise: in points of the annotators' scores.
    seed: of the mixtures; the first voters of a larger number are the same.
  """
  rng = np.random.default_rng([seed, num_annotators])
  drawn = rng.dirichlet(np.full(num_annotators, concentration), size=num_voters)
  weights = np.concatenate([np.eye(num_annotators), drawn])[:num_voters]
  return Voters(weights, noise)


def preferences_of(
  voters: Voters,
  number: Int[np.ndarray, 'N'],
  scores: Float[np.ndarray, 'K N'],
  other: Float[np.ndarray, 'K N'],
) -> Float[np.ndarray, 'N']:
  """P_u(y ≻ y') of the voter of each pair; what is no response loses to every response, and two such tie."""
  own = lambda x: np.where(
    np.isfinite(x[0]), np.einsum('nk,kn->n', voters.weights[number], np.nan_to_num(x)), -np.inf
  )
  first, second = own(scores), own(other)
  difference = np.where(first == second, 0, first - np.where(first == second, 0, second))
  if voters.noise > 0:
    return special.expit(difference / voters.noise)
  # Of sums in another order the last bits differ, though voters cannot tell them apart.
  return 0.5 + 0.5 * np.sign(np.where(np.abs(difference) < 1e-4, 0, difference))
