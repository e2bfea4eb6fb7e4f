"""Batches of fixed shape from a seqio task, or from a stream. Batch number n is a function of task, seed and n alone.

A task is tokenised once and held in memory; each epoch goes through it in an order of its own. So a run that resumes
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

from nlhf_jax.data import buckets, vocabularies
from nlhf_jax.types import EOS, PAD, Comparison, Demonstration, Prompts, Rollout
from nlhf_jax.votes import readers

Batch = Prompts | Demonstration | Comparison
# One text's.
Tokens = np.ndarray | list[int]


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
    prompt_length: S; longer prompts lose their end.
    response_length: T; longer responses lose their end, EOS included.
    responses_per_prompt: k consecutive rows of the task that share a prompt, which is then encoded once for all.
    num_prompt_lengths: how many lengths the prompts of a batch may have, those that leave the least padding; 1: all have
      `prompt_length`.
    num_response_lengths: the same, of responses in the data.
    start: number of the first batch.
    seed: of the order.

  Raises:
    ValueError: the split has fewer prompts than a batch, rows that were to share a prompt do not, or there is no length.
  """
  if num_prompt_lengths < 1 or num_response_lengths < 1:
    raise ValueError(
      'num_prompt_lengths and num_response_lengths must be at least 1, got '
      f'{num_prompt_lengths} and {num_response_lengths}.'
    )
  if isinstance(task, Stream):
    yield from _fresh_batches(
      task, split, batch_size, prompt_length, response_length, responses_per_prompt, start
    )
    return
  rows = load_split(task, split=split, prompt_length=prompt_length, response_length=response_length)
  groups = _group(rows, responses_per_prompt, task.name)
  per_epoch = len(groups) // batch_size
  if per_epoch == 0:
    raise ValueError(
      f'Split {split!r} of {task.name} has {len(groups)} prompts: batch_size must not exceed them, got {batch_size}.'
    )
  found = _choose_buckets(rows, groups, (num_prompt_lengths, num_response_lengths))
  plan = functools.lru_cache(maxsize=2)(functools.partial(buckets.plan_epoch, found))
  number = start
  while True:
    epoch, place = divmod(number, per_epoch)
    batch = plan(batch_size, seed, epoch)[place]
    yield _trim(_select(rows, groups[batch.groups]), *batch.shape)
    number += 1


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
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int,
  start: int,
) -> Iterator[Batch]:
  """Batch n has the n-th `batch_size` prompts of the split, with the first rows of each."""
  numbers = stream.splits[split]
  for first in range(start * batch_size, len(numbers) - batch_size + 1, batch_size):
    examples = []
    for number in numbers[first : first + batch_size]:
      rows = list(stream.rows(number))
      if len(rows) < responses_per_prompt:
        raise ValueError(
          f'{stream.name} has {len(rows)} rows to prompt {number}: lower responses_per_prompt.'
        )
      examples += [_encode(row, stream.vocabulary) for row in rows[:responses_per_prompt]]
    batch = _collate(stream.name, examples, prompt_length, response_length)
    yield _select(batch, np.arange(len(examples)).reshape(batch_size, -1))


def _encode(row: readers.Row, vocabulary: seqio.Vocabulary) -> dict[str, Any]:
  """The features that seqio would make of a row."""
  example = {'inputs': vocabularies.for_prompts(vocabulary).encode(row['prompt'])}
  for field, feature in [('response', 'targets'), ('alternative', 'alternative')]:
    if field in row:
      example[feature] = [*vocabulary.encode(row[field]), EOS]
  return example | {key: row[key] for key in ('index', 'preference') if key in row}


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
  if split not in task.splits:
    raise ValueError(
      f'{task.name} has no split {split!r}, but {", ".join(map(repr, task.splits))}.'
    )
  if isinstance(task, Stream):
    found = (row for number in task.splits[split] for row in task.rows(number))
    examples = [_encode(row, task.vocabulary) for row in itertools.islice(found, limit)]
  else:
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    if limit is not None:
      dataset = dataset.take(limit)
    examples = list(dataset.as_numpy_iterator())
  if not examples:
    raise ValueError(f'Split {split!r} of {task.name} has no rows: give it some, or name another.')
  return _collate(task.name, examples, prompt_length, response_length)


def _collate(
  name: str, examples: list[dict[str, Any]], prompt_length: int, response_length: int
) -> Batch:
  """Examples as arrays of fixed width."""
  column = lambda name: [example[name] for example in examples]
  numbers: Callable[..., Any] = lambda name, dtype: np.array(column(name), dtype)
  _warn_of_long_prompts(name, column('inputs'), prompt_length)
  prompts = Prompts(_pad(column('inputs'), prompt_length), numbers('index', np.int32))
  if 'targets' not in examples[0]:
    return prompts
  response = _rollout(column('targets'), response_length)
  if 'alternative' not in examples[0]:
    return Demonstration(prompts, response)
  alternative = _rollout(column('alternative'), response_length)
  return Comparison(prompts, response, alternative, numbers('preference', np.float32))


def _warn_of_long_prompts(name: str, prompts: list[Tokens], length: int) -> None:
  if number := sum(len(tokens) > length for tokens in prompts):
    message = '%s: %d of %d prompts are longer than %d tokens and lose their end.'
    logging.warning(message, name, number, len(prompts), length)


def _pad(sequences: list[Tokens], length: int) -> Any:
  """NumPy's, [N, length]."""
  padded = np.full((len(sequences), length), PAD, np.int32)
  for row, tokens in zip(padded, sequences, strict=True):
    row[: len(tokens)] = tokens[:length]
  return padded


def _rollout(sequences: list[Tokens], length: int) -> Rollout:
  tokens = _pad(sequences, length)
  return Rollout(tokens, tokens != PAD)


def _group(rows: Batch, size: int, name: str) -> Int[np.ndarray, 'G k']:
  """Row numbers of every group of rows that share a prompt."""
  index = _prompts(rows).index
  numbers = np.arange(len(index) // size * size).reshape(-1, size)
  if not (index[numbers] == index[numbers[:, :1]]).all():
    raise ValueError(f'Rows of {name} do not come {size} to a prompt: lower responses_per_prompt.')
  return numbers


def _choose_buckets(
  rows: Batch, groups: Int[np.ndarray, 'G k'], numbers: tuple[int, int]
) -> buckets.Buckets:
  count = lambda tokens: (tokens != PAD).sum(axis=-1)
  prompts, responses = _prompts(rows).tokens, [x.tokens for x in rows if isinstance(x, Rollout)]
  longest_response = np.zeros(len(groups), int)
  for tokens in responses:
    longest_response = np.maximum(longest_response, count(tokens[groups]).max(axis=-1))
  longest = prompts.shape[1], responses[0].shape[1] if responses else 0
  return buckets.choose(count(prompts[groups[:, 0]]), longest_response, longest, numbers)


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
