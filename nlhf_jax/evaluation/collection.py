"""Votes on what policies write: comparisons that a preference model is trained on.

Responses of one or several policies to each prompt are paired at random, a judge votes on each pair, and the votes are a
file for each split, as `data.tasks.comparisons` reads them.
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, Seed
from nlhf_jax.evaluation.contestants import Contestant, as_text, batches, sampler
from nlhf_jax.judges import tables
from nlhf_jax.runtime import atomic, fingerprints, progress, run_directory, run_lock
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
  num_samples: Count = 4
  # Of a prompt's responses, drawn at random among those that differ; None: all.
  num_pairs: Count | None = None
  seed: Seed = 0
  # Prompts to a call of a policy or of the judge.
  batch_size: Count = 32


def collect(
  collection: Collection,
  contestants: Sequence[Contestant],
  output_dir: pathlib.Path,
  fields: Mapping[str, Any],
  config: str = '',
  judge: Mapping[str, str] | None = None,
) -> dict[str, int]:
  """Writes SPLIT.jsonl for each split; one that is there is passed over, and so is a batch that is.

  Args:
    collection: what is collected.
    contestants: the policies of its runs.
    output_dir: made if need be.
    fields: what identifies the collection; a directory of other ones, of other policies, or of another judge, is refused.
    config: text of the configuration, which is kept with it.
    judge: the identity of its weights (`training.weights.identity`); None: it has none.

  Returns:
    The number of votes that each file has that was written.

  Raises:
    ValueError: nothing can be paired; the judge is no PreferenceFn, or has answered outside [0, 1]; the directory holds another
      collection.
    OSError: another process writes to the directory; it has been removed, cannot be written to, or has links that lead out of it.
  """
  if not callable(collection.judge):
    raise ValueError(
      f'Votes are collected from a PreferenceFn, got {type(collection.judge).__name__}: resolve it first.'
    )
  if len(contestants) * collection.num_samples < 2:
    raise ValueError('One response has nothing to be compared with: set num_samples to 2 or more.')
  policies = [fingerprints.fingerprint_tree(one.params) for one in contestants]
  fields = {**fields, 'collection.policies': policies}
  if judge is not None:
    fields['collection.judge'] = dict(judge)
  run_directory.check_resumable(output_dir, fields, _has_begun(output_dir))
  k, seed = collection.num_samples, collection.seed
  samplers = [sampler(one, k, seed, stream) for stream, one in enumerate(contestants)]
  written = {}
  with run_lock.held(output_dir) as check_directory:
    for split, load in collection.prompts.items():
      path = output_dir / f'{split}.jsonl'
      if path.exists():
        continue
      prompts = load()
      run_directory.create(output_dir, config, fields, _has_begun(output_dir))
      written[split] = _collect_split(collection, samplers, prompts, split, path, check_directory)
  return written


def _has_begun(output_dir: pathlib.Path) -> bool:
  """A collection that failed before its first votes does not stand in the way of a better one."""
  return any(output_dir.glob('*.jsonl')) or any(output_dir.glob('*.parts/*.jsonl'))


def _collect_split(
  collection: Collection,
  samplers: Sequence[Callable[[Prompts, int], Int[np.ndarray, 'N T']]],
  prompts: Prompts,
  split: str,
  path: pathlib.Path,
  check_directory: Callable[[], None],
) -> int:
  """Batch by batch, each in a file of its own until all are there."""
  parts = path.with_suffix('.parts')
  untrusted.check_link(parts)
  parts.mkdir(exist_ok=True)
  files = []
  with progress.bar(split, len(prompts.tokens)) as advance:
    for number, part in enumerate(batches(prompts, collection.batch_size)):
      files.append(parts / f'{number:06d}.jsonl')
      if not files[-1].exists():
        size = len(part.tokens)
        drawn = [draw(part, number).reshape(size, collection.num_samples, -1) for draw in samplers]
        rng = np.random.default_rng([collection.seed, number])
        votes = _votes(collection, part, np.concatenate(drawn, axis=1), split, rng)
        lines = [json.dumps(vote, ensure_ascii=False) + '\n' for vote in votes]
        check_directory()
        atomic.write_text(files[-1], ''.join(lines))
      advance(len(part.tokens))
  text = ''.join(file.read_text(encoding='utf-8') for file in files)
  atomic.write_text(path, text)
  shutil.rmtree(parts)
  return text.count('\n')


def _votes(
  collection: Collection,
  prompts: Prompts,
  responses: Int[np.ndarray, 'B k T'],
  split: str,
  rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
  """Rows of the table of votes; a pair on which the judge gives no vote has none."""
  text = lambda tokens: as_text(collection.decode, tokens)
  pairs = [_pairs(rng, tokens, collection.num_pairs) for tokens in responses]
  preferences = _judge(collection.judge, prompts, responses, pairs)
  for prompt, tokens, chosen, votes in zip(
    prompts.tokens, responses, pairs, preferences, strict=True
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
  if not np.all(tables.are_answers(answers)):
    raise ValueError('The judge answered outside [0, 1]: that is no vote.')
  return answers.reshape(len(pairs), width)
