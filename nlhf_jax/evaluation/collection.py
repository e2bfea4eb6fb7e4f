"""Votes on what policies write: comparisons that a preference model is trained on.

Responses of one or several policies to each prompt are paired at random, a judge votes on each pair, and the votes are a
file for each split, as `data.tasks.comparisons` reads them.
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.evaluation.contestants import Contestant, as_text, batches, draw
from nlhf_jax.runtime import atomic, progress
from nlhf_jax.types import PreferenceFn, Prompts

# Of a prompt's responses: which two.
Pair = tuple[int, int]


class Collection(NamedTuple):
  """What is collected."""

  # Runs whose policies answer, beside this one's directory; all of one prompt layout and vocabulary.
  runs: Sequence[str]
  # Split → its prompts.
  prompts: Mapping[str, Callable[[], Prompts]]
  # A PreferenceFn; a description may have what becomes one (`training.experiment.FeedbackSource`), as in training.
  judge: PreferenceFn | Any
  judge_name: str
  # Tokens to text.
  decode: Callable[[Sequence[int]], str]
  # Responses of each policy to each prompt.
  num_samples: int = 4
  # Of a prompt's responses, drawn at random among those that differ; None: all.
  num_pairs: int | None = None
  seed: int = 0
  # Prompts to a call of a policy or of the judge.
  batch_size: int = 32


def collect(
  collection: Collection, contestants: Sequence[Contestant], output_dir: pathlib.Path
) -> dict[str, int]:
  """Writes SPLIT.jsonl for each split; one that is there is passed over.

  Args:
    collection: what is collected.
    contestants: the policies of its runs.
    output_dir: made if need be.

  Returns:
    The number of votes that each file has that was written.

  Raises:
    ValueError: nothing can be paired, or the judge is no PreferenceFn, or has answered outside [0, 1].
  """
  if not callable(collection.judge):
    raise ValueError(
      f'Votes are collected from a PreferenceFn, got {type(collection.judge).__name__}: resolve it first.'
    )
  if len(contestants) * collection.num_samples < 2:
    raise ValueError('One response has nothing to be compared with: set num_samples to 2 or more.')
  output_dir.mkdir(parents=True, exist_ok=True)
  written = {}
  for split, load in collection.prompts.items():
    path = output_dir / f'{split}.jsonl'
    if path.exists():
      continue
    prompts = load()
    total = len(contestants) * len(prompts.tokens)
    with progress.bar(f'responses, {split}', total) as advance:
      rows = [_draw(collection, contestant, prompts, advance) for contestant in contestants]
    votes = list(_votes(collection, prompts, np.concatenate(rows, axis=1), split))
    atomic.write_text(path, ''.join(json.dumps(vote, ensure_ascii=False) + '\n' for vote in votes))
    written[split] = len(votes)
  return written


def _draw(
  collection: Collection,
  contestant: Contestant,
  prompts: Prompts,
  advance: Callable[[int], None],
) -> Int[np.ndarray, 'B k T']:
  k, seed, size = collection.num_samples, collection.seed, collection.batch_size
  tokens = draw(contestant, prompts, k, seed, size, advance)
  return tokens.reshape(len(prompts.tokens), k, -1)


def _votes(
  collection: Collection, prompts: Prompts, responses: Int[np.ndarray, 'B k T'], split: str
) -> Iterator[dict[str, Any]]:
  """Rows of the table of votes; a pair on which the judge gives no vote has none."""
  rng = np.random.default_rng([collection.seed, len(prompts.tokens)])
  text = lambda tokens: as_text(collection.decode, tokens)
  start = 0
  with progress.bar(f'votes, {split}', len(prompts.tokens)) as advance:
    for part in batches(prompts, collection.batch_size):
      answers = responses[start : start + len(part.tokens)]
      start += len(part.tokens)
      pairs = [_pairs(rng, tokens, collection.num_pairs) for tokens in answers]
      preferences = _judge(collection.judge, part, answers, pairs)
      for prompt, tokens, chosen, votes in zip(
        part.tokens, answers, pairs, preferences, strict=True
      ):
        for (i, j), preference in zip(chosen, votes, strict=False):
          if not np.isnan(preference):
            yield {
              'prompt': text(prompt),
              'response_a': text(tokens[i]),
              'response_b': text(tokens[j]),
              'probability': float(preference),
              'judge': collection.judge_name,
              'seed': collection.seed,
              'split': split,
            }
      advance(len(part.tokens))


def _pairs(
  rng: np.random.Generator, tokens: Int[np.ndarray, 'k T'], number: int | None
) -> list[Pair]:
  """Pairs of different responses; which stands first is drawn as well."""
  every = [
    (i, j)
    for i, j in itertools.combinations(range(len(tokens)), 2)
    if not np.array_equal(tokens[i], tokens[j])
  ]
  chosen = rng.permutation(len(every))[:number]
  return [every[n][:: rng.choice((1, -1))] for n in chosen]


def _judge(
  judge: PreferenceFn,
  prompts: Prompts,
  responses: Int[np.ndarray, 'B k T'],
  pairs: Sequence[Sequence[Pair]],
) -> Float[np.ndarray, 'B pairs']:
  """P(first ≻ second) of each prompt's pairs, in one call; prompts that have fewer are filled up with pairs of equals."""
  width = max(1, *map(len, pairs))
  places = np.array([[*chosen, *[(0, 0)] * (width - len(chosen))] for chosen in pairs])
  first, second = (
    np.take_along_axis(responses, places[..., side, None], axis=1).reshape(-1, responses.shape[-1])
    for side in (0, 1)
  )
  answers = np.asarray(judge(prompts, jnp.asarray(first), jnp.asarray(second)), np.float64)
  if not np.all(np.isnan(answers) | ((answers >= 0) & (answers <= 1))):
    raise ValueError('The judge answered outside [0, 1]: that is no vote.')
  return answers.reshape(len(pairs), width)
