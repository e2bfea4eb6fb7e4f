"""Batches of fixed shape from a seqio task, or from a stream. Batch number n is a function of task, seed and n alone.

A task is tokenised as its rows are needed; each epoch goes through them in an order of its own. So a run that resumes
at batch n gets exactly what it would have got, on any number of devices and hosts: each host has the same batches, and
gives its own devices their rows. Prompts of like length may share a batch (`buckets`). A stream makes its rows when they
are asked for, and its training prompts have no end.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import seqio
from jaxtyping import Int

from nlhf_jax.data import buckets, encoded
from nlhf_jax.types import PAD, Comparison, Demonstration, Prompts, Rollout
from nlhf_jax.votes import readers

Batch = Prompts | Demonstration | Comparison


class Stream(NamedTuple):
  """Rows by the number of their prompt, made when they are asked for."""

  name: str
  # Number → its rows {index, prompt, response?, alternative?, preference?}.
  rows: Callable[[int], Iterable[readers.Row]]
  # Name of a split → its numbers. Those of training come in their order, once.
  splits: Mapping[str, range]
  # Of prompt and responses; padding is 0 and EOS 1.
  vocabulary: seqio.Vocabulary


def batches(
  task: seqio.Task | Stream,
  *,
  split: str,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int = 1,
  num_prompt_lengths: int = 1,
  num_response_lengths: int = 1,
  start: int = 0,
  seed: int = 0,
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
  lengths, numbers = (prompt_length, response_length), (num_prompt_lengths, num_response_lengths)
  if min(numbers) < 1:
    raise ValueError(
      'num_prompt_lengths and num_response_lengths must be at least 1, got '
      f'{num_prompt_lengths} and {num_response_lengths}.'
    )
  if isinstance(task, Stream):
    if max(numbers) > 1:
      raise ValueError(
        f'{task.name} makes its rows when they are asked for, so that its batches have one length: num_prompt_lengths and '
        f'num_response_lengths must be 1, got {num_prompt_lengths} and {num_response_lengths}.'
      )
    found = _fresh_batches(task, split, batch_size, lengths, responses_per_prompt, start)
  else:
    rows = encoded.open_split(task, split, prompt_length)
    groups = _group(rows.index, responses_per_prompt, task.name)
    if len(groups) < batch_size:
      raise ValueError(
        f'Split {split!r} of {task.name} has {len(groups)} prompts: batch_size must not exceed them, got {batch_size}.'
      )
    found = _epochs(rows, groups, batch_size, lengths, numbers, start, seed)
  yield from _warning_once(task.name, prompt_length, found)


def _epochs(
  rows: encoded.Rows,
  groups: Int[np.ndarray, 'G k'],
  batch_size: int,
  lengths: tuple[int, int],
  numbers: tuple[int, int],
  start: int,
  seed: int,
) -> Iterator[tuple[Batch, bool]]:
  """Batches, and whether one of their prompts was too long."""
  chosen = _choose_buckets(rows, groups, lengths, numbers)
  plan = functools.lru_cache(maxsize=2)(functools.partial(buckets.plan_epoch, chosen))
  for number in itertools.count(start):
    epoch, place = divmod(number, len(groups) // batch_size)
    of_batch = groups[plan(batch_size, seed, epoch)[place].groups]
    examples = [rows.example(n) for n in of_batch.reshape(-1).tolist()]
    batch = _select(_collate(examples, *lengths), np.arange(len(examples)).reshape(batch_size, -1))
    shape = buckets.smallest(chosen, *_longest(batch))
    yield _trim(batch, *shape), any(x['is_long'] for x in examples)


def _warning_once(
  name: str, prompt_length: int, batches: Iterable[tuple[Batch, bool]]
) -> Iterator[Batch]:
  warned = False
  for batch, has_long in batches:
    if has_long and not warned:
      message = '%s: some prompts are longer than %d tokens and lose their end.'
      logging.warning(message, name, prompt_length)
      warned = True
    yield batch


def shapes(
  kind: type,
  *,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int = 1,
) -> Batch:
  """What the largest batches look like, without any data.

  Args:
    kind: Prompts, Demonstration or Comparison.
    batch_size, prompt_length, response_length, responses_per_prompt: as of `batches`.
  """
  array: Callable[..., Any] = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  prompts = Prompts(array(np.int32, batch_size, prompt_length), array(np.int32, batch_size))
  if kind is Prompts:
    return prompts
  rows = batch_size * responses_per_prompt
  response = Rollout(array(np.int32, rows, response_length), array(bool, rows, response_length))
  if kind is Demonstration:
    return Demonstration(prompts, response)
  return Comparison(prompts, response, response, array(np.float32, rows))


def _fresh_batches(
  stream: Stream,
  split: str,
  batch_size: int,
  lengths: tuple[int, int],
  responses_per_prompt: int,
  start: int,
) -> Iterator[tuple[Batch, bool]]:
  """Batch n has the n-th `batch_size` prompts of the split, with the first rows of each."""
  numbers = _numbers(stream, split)
  for first in range(start * batch_size, len(numbers) - batch_size + 1, batch_size):
    examples = []
    for number in numbers[first : first + batch_size]:
      rows = list(stream.rows(number))
      if len(rows) < responses_per_prompt:
        raise ValueError(
          f'{stream.name} has {len(rows)} rows to prompt {number}: lower responses_per_prompt.'
        )
      for row in rows[:responses_per_prompt]:
        examples.append(encoded.encode(row, stream.vocabulary, lengths[0]))
    batch = _collate(examples, *lengths)
    groups = np.arange(len(examples)).reshape(batch_size, -1)
    yield _select(batch, groups), any(x['is_long'] for x in examples)


def load_split(
  task: seqio.Task | Stream,
  *,
  split: str,
  prompt_length: int,
  response_length: int,
  limit: int | None = None,
) -> Batch:
  """All of a split as one batch, in the task's order.

  Args:
    task, split, prompt_length, response_length: as of `batches`.
    limit: keep the first rows only.

  Raises:
    ValueError: the task has no such split, or it has no rows.
  """
  lengths = prompt_length, response_length
  if isinstance(task, Stream):
    found = (row for number in _numbers(task, split) for row in task.rows(number))
    some = itertools.islice(found, limit)
    examples = [encoded.encode(row, task.vocabulary, prompt_length) for row in some]
  else:
    rows = encoded.open_split(task, split, prompt_length)
    examples = [rows.example(n) for n in range(len(rows.index))[:limit]]
  encoded.check_rows(task.name, split, len(examples))
  if number := sum(x['is_long'] for x in examples):
    message = '%s: %d of %d prompts are longer than %d tokens and lose their end.'
    logging.warning(message, task.name, number, len(examples), prompt_length)
  return _collate(examples, *lengths)


def _collate(examples: list[encoded.Example], prompt_length: int, response_length: int) -> Batch:
  """Examples as arrays of fixed width."""
  column = lambda name: [example[name] for example in examples]
  numbers: Callable[..., Any] = lambda name, dtype: np.array(column(name), dtype)
  prompts = Prompts(_pad(column('inputs'), prompt_length), numbers('index', np.int32))
  if 'targets' not in examples[0]:
    return prompts
  response = _rollout(column('targets'), response_length)
  if 'alternative' not in examples[0]:
    return Demonstration(prompts, response)
  alternative = _rollout(column('alternative'), response_length)
  return Comparison(prompts, response, alternative, numbers('preference', np.float32))


def _pad(sequences: list[np.ndarray], length: int) -> Any:
  """NumPy's, [N, length]."""
  padded = np.full((len(sequences), length), PAD, np.int32)
  for row, tokens in zip(padded, sequences, strict=True):
    row[: len(tokens)] = tokens[:length]
  return padded


def _rollout(sequences: list[np.ndarray], length: int) -> Rollout:
  tokens = _pad(sequences, length)
  return Rollout(tokens, tokens != PAD)


def _numbers(stream: Stream, split: str) -> range:
  """The prompts of a split."""
  encoded.check_split(stream.name, split, stream.splits)
  return stream.splits[split]


def _group(index: Int[np.ndarray, 'N'], size: int, name: str) -> Int[np.ndarray, 'G k']:
  """Row numbers of every group of rows that share a prompt."""
  numbers = np.arange(len(index) // size * size).reshape(-1, size)
  if not (index[numbers] == index[numbers[:, :1]]).all():
    raise ValueError(f'Rows of {name} do not come {size} to a prompt: lower responses_per_prompt.')
  return numbers


def _choose_buckets(
  rows: encoded.Rows,
  groups: Int[np.ndarray, 'G k'],
  lengths: tuple[int, int],
  numbers: tuple[int, int],
) -> buckets.Buckets:
  if max(numbers) == 1:
    none = np.zeros(len(groups), int)
    return buckets.choose(none, none, lengths, numbers)
  prompts, responses = rows.count_tokens()
  longest_response = lengths[1] if responses.any() else 0
  shortened = np.minimum(prompts[groups[:, 0]], lengths[0])
  longest = np.minimum(responses[groups].max(axis=-1), longest_response)
  return buckets.choose(shortened, longest, (lengths[0], longest_response), numbers)


def _longest(batch: Batch) -> tuple[int, int]:
  """Tokens of the longest prompt and response of a batch."""
  count = lambda tokens: int((tokens != PAD).sum(axis=-1).max())
  responses = [count(x.tokens) for x in batch if isinstance(x, Rollout)]
  return count(_prompts(batch).tokens), max(responses, default=0)


def _select(rows: Batch, groups: Int[np.ndarray, 'B k']) -> Batch:
  """The rows of some groups; their prompts once."""
  prompts = Prompts(*(x[groups[:, 0]] for x in _prompts(rows)))
  if isinstance(rows, Prompts):
    return prompts
  pick = lambda x: x[groups.reshape(-1)]
  return type(rows)(prompts, *jax.tree.map(pick, tuple(rows)[1:]))


def _trim(batch: Batch, prompt_length: int, response_length: int) -> Batch:
  """The batch without the columns beyond these lengths, which hold padding alone."""
  prompts = _prompts(batch)
  prompts = prompts._replace(tokens=prompts.tokens[:, :prompt_length])
  if isinstance(batch, Prompts):
    return prompts
  trim = lambda x: jax.tree.map(lambda leaf: leaf[:, :response_length], x)
  fields = {name: trim(x) for name, x in batch._asdict().items() if isinstance(x, Rollout)}
  return batch._replace(prompts=prompts, **fields)


def _prompts(rows: Batch) -> Prompts:
  return rows if isinstance(rows, Prompts) else rows.prompts
