"""Batches of fixed shape from a seqio task, or from a stream. Batch number n is a function of task, seed and n alone.

A task is tokenised as its rows are needed; each epoch goes through them in an order of its own. So a run that resumes
at batch n gets exactly what it would have got, on any number of devices and hosts: each host has the same batches, and
gives its own devices their rows. Prompts of like length may share a batch (`buckets`). A stream makes its rows when they
are asked for, and its training prompts have no end.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from nlhf_jax.arguments import Count, CountOrZero, Seed
from nlhf_jax.data import batching, encoded
from nlhf_jax.data.batching import Batch
from nlhf_jax.data.encoded import Task
from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.types import NO_VOTERS, Comparison, Demonstration, Prompts, Rollout, VoterNames
from nlhf_jax.votes import readers


class Stream(NamedTuple):
  """Rows by the number of their prompt, made when they are asked for."""

  name: str
  # Number → its rows {index, prompt, response?, alternative?, preference?, voter?}.
  rows: Callable[[int], Iterable[readers.Row]]
  # Name of a split → its numbers. Those of training come in their order, once.
  splits: Mapping[str, range]
  # Of prompt and responses; padding is 0 and EOS 1.
  vocabulary: Vocabulary
  # Names of the voters, by number.
  voters: VoterNames = NO_VOTERS


def batches(
  task: Task | Stream,
  *,
  split: str,
  batch_size: Count,
  prompt_length: Count,
  response_length: Count,
  responses_per_prompt: Count = 1,
  num_prompt_lengths: Count = 1,
  num_response_lengths: Count = 1,
  start: CountOrZero = 0,
  seed: Seed = 0,
) -> Iterator[Batch]:
  """Endless shuffled batches; what they hold follows the task's features.

  Args:
    task: of `data.tasks`, `data.corpora` or `data.written`.
    split: such as 'train'.
    batch_size: prompts of a batch, on all devices together.
    prompt_length: S; longer prompts lose their end, or what a chat template leaves to the user's words theirs.
    response_length: T; longer responses lose their end, EOS included.
    responses_per_prompt: k consecutive rows of the task that share a prompt, which is then encoded once for all.
    num_prompt_lengths: how many lengths the prompts of a batch may have, those that leave the least padding; 1: all have
      `prompt_length`.
    num_response_lengths: the same, of responses in the data.
    start: number of the first batch.
    seed: of the order; a stream has its own.

  Raises:
    ValueError: the split has fewer prompts than a batch, rows that were to share a prompt do not, or there is no length;
      a stream was to have several.
  """
  sizes = batching.Sizes(
    batch_size,
    prompt_length,
    response_length,
    responses_per_prompt,
    num_prompt_lengths,
    num_response_lengths,
  )
  batching.check_numbers(sizes)
  if isinstance(task, Stream):
    yield from _fresh_batches(task, split, sizes, start)
  else:
    rows = encoded.open_split(task, split, prompt_length)
    yield from batching.shuffled(rows, sizes, task.name, split, start, seed)


def shapes(
  kind: type,
  *,
  batch_size: Count,
  prompt_length: Count,
  response_length: Count,
  responses_per_prompt: Count = 1,
  voters: bool = False,
) -> Batch:
  """What the largest batches look like, without any data.

  Args:
    kind: Prompts, Demonstration or Comparison.
    batch_size, prompt_length, response_length, responses_per_prompt: as of `batches`.
    voters: whether comparisons say who voted.
  """
  array: Callable[..., Any] = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  prompts = Prompts(array(np.int32, batch_size, prompt_length), array(np.int32, batch_size))
  if kind is Prompts:
    return prompts
  rows = batch_size * responses_per_prompt
  response = Rollout(array(np.int32, rows, response_length), array(bool, rows, response_length))
  if kind is Demonstration:
    return Demonstration(prompts, response)
  voter = array(np.int32, rows) if voters else None
  return Comparison(prompts, response, response, array(np.float32, rows), voter=voter)


def voters(task: Task | Stream) -> VoterNames:
  """The voters, by the numbers that batches have, and how many voted in training: what a run keeps beside what it learns of each.

  Raises:
    ValueError: no vote says who voted.
  """
  found = task.voters if isinstance(task, Stream) else encoded.voters_of(task)
  if not found.names:
    raise ValueError(
      f'{task.name} does not say who voted: it needs votes that have a voter, each a row of its own (soft_labels = False).'
    )
  return found


def _fresh_batches(
  stream: Stream, split: str, sizes: batching.Sizes, start: int
) -> Iterator[Batch]:
  """Batch n has the n-th `batch_size` prompts of the split, with the first rows of each."""
  if max(sizes.numbers) > 1:
    raise ValueError(
      f'{stream.name} makes its rows when they are asked for, so that its batches have one length: num_prompt_lengths and '
      f'num_response_lengths must be 1, got {sizes.num_prompt_lengths} and {sizes.num_response_lengths}.'
    )
  numbers, size = _numbers(stream, split), sizes.batch_size

  def make() -> Iterator[tuple[Batch, bool]]:
    for first in range(start * size, len(numbers) - size + 1, size):
      examples = [
        encoded.encode(row, stream.vocabulary, sizes.prompt_length)
        for number in numbers[first : first + size]
        for row in _rows(stream, number, sizes.responses_per_prompt)
      ]
      batch = batching.group_rows(batching.collate(examples, *sizes.lengths), size)
      yield batch, any(x['is_long'] for x in examples)

  return batching.warning_once(stream.name, sizes.prompt_length, make())


def _rows(stream: Stream, number: int, responses_per_prompt: int) -> list[readers.Row]:
  """The first rows of a prompt."""
  rows = list(stream.rows(number))
  if len(rows) < responses_per_prompt:
    raise ValueError(
      f'{stream.name} has {len(rows)} rows to prompt {number}: lower responses_per_prompt.'
    )
  return rows[:responses_per_prompt]


def load_split(
  task: Task | Stream,
  *,
  split: str,
  prompt_length: Count,
  response_length: Count,
  limit: Count | None = None,
) -> Batch:
  """All of a split as one batch, in the task's order.

  Args:
    task, split, prompt_length, response_length: as of `batches`.
    limit: keep the first rows only.

  Raises:
    ValueError: the task has no such split, or it has no rows.
  """
  if isinstance(task, Stream):
    found = (row for number in _numbers(task, split) for row in task.rows(number))
    some = itertools.islice(found, limit)
    examples = [encoded.encode(row, task.vocabulary, prompt_length) for row in some]
  else:
    rows = encoded.open_split(task, split, prompt_length)
    examples = [rows.example(n) for n in range(len(rows.index))[:limit]]
  return batching.in_order(examples, task.name, split, prompt_length, response_length)


def _numbers(stream: Stream, split: str) -> range:
  """The prompts of a split."""
  encoded.check_split(stream.name, split, stream.splits)
  return stream.splits[split]
