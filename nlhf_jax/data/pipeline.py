"""Batches of fixed shape from a seqio task. Batch number n is a function of task, seed, host and n alone.

A task is tokenised once and held in memory; each epoch goes through it in an order of its own. So a run that resumes
at batch n sees exactly what it would have seen.
"""

import functools
import logging
from collections.abc import Iterator

import jax
import numpy as np
import seqio
from jaxtyping import Bool, Int

from nlhf_jax.types import Comparison, Demonstration, Prompts, Rollout

Batch = Prompts | Demonstration | Comparison


def batches(
  task: seqio.Task,
  *,
  split: str,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int = 1,
  start: int = 0,
  seed: int = 0,
  shard: int = 0,
  num_shards: int = 1,
) -> Iterator[Batch]:
  """Endless shuffled batches; what they hold follows the task's features.

  Args:
    task: of `data.tasks` or `data.summaries`.
    split: such as 'train'.
    batch_size: prompts of a batch, on this host.
    prompt_length: S; longer prompts lose their end.
    response_length: T; longer responses lose their end, EOS included.
    responses_per_prompt: k consecutive rows of the task that share a prompt, which is then encoded once for all.
    start: number of the first batch.
    seed: of the order.
    shard: this host, of `num_shards`; their rows never overlap.
    num_shards: number of hosts.

  Raises:
    ValueError: the split has fewer rows than a batch, or rows that were to share a prompt do not.
  """
  rows = everything(task, split=split, prompt_length=prompt_length, response_length=response_length)
  groups = _grouped(rows, responses_per_prompt, task.name)
  mine = np.arange(shard, groups.shape[0], num_shards)
  per_epoch = mine.size // batch_size
  if per_epoch == 0:
    raise ValueError(
      f'Split {split!r} of {task.name} has {mine.size} prompts on this host: batch_size must not exceed them, '
      f'got {batch_size}.'
    )
  number = start
  while True:
    epoch, place = divmod(number, per_epoch)
    order = _order(mine.size, seed, epoch)
    chosen = mine[order[place * batch_size : (place + 1) * batch_size]]
    yield _select(rows, groups[chosen])
    number += 1


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> Int[np.ndarray, 'N']:
  return np.random.default_rng([seed, epoch]).permutation(size)


def everything(
  task: seqio.Task,
  *,
  split: str,
  prompt_length: int,
  response_length: int,
  limit: int | None = None,
) -> Batch:
  """A whole split as one batch, in the task's order.

  Args:
    task, split, prompt_length, response_length: as in `batches`.
    limit: keep the first rows only.

  Raises:
    ValueError: the task has no such split.
  """
  if split not in task.splits:
    raise ValueError(
      f'{task.name} has no split {split!r}, but {", ".join(map(repr, task.splits))}.'
    )
  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
  if limit is not None:
    dataset = dataset.take(limit)
  examples = list(dataset.as_numpy_iterator())
  column = lambda name: [example[name] for example in examples]
  if cut := sum(len(tokens) > prompt_length for tokens in column('inputs')):
    logging.warning(
      '%s: %d of %d prompts are longer than %d tokens and lose their end.',
      task.name,
      cut,
      len(examples),
      prompt_length,
    )
  prompts = Prompts(_pad(column('inputs'), prompt_length), np.array(column('index'), np.int32))
  if 'targets' not in task.output_features:
    return prompts
  response = _rollout(column('targets'), response_length)
  if 'alternative' not in task.output_features:
    return Demonstration(prompts, response)
  alternative = _rollout(column('alternative'), response_length)
  return Comparison(prompts, response, alternative, np.array(column('preference'), np.float32))


def _pad(sequences: list[np.ndarray], length: int) -> Int[np.ndarray, 'N length']:
  padded = np.zeros((len(sequences), length), np.int32)
  for row, tokens in zip(padded, sequences, strict=True):
    row[: len(tokens)] = tokens[:length]
  return padded


def _rollout(sequences: list[np.ndarray], length: int) -> Rollout:
  tokens = _pad(sequences, length)
  mask: Bool[np.ndarray, 'N length'] = tokens > 0
  return Rollout(tokens, mask)


def _grouped(rows: Batch, size: int, name: str) -> Int[np.ndarray, 'groups size']:
  """Row numbers of every group of rows that share a prompt."""
  index = rows.index if isinstance(rows, Prompts) else rows.prompts.index
  numbers = np.arange(len(index) // size * size).reshape(-1, size)
  if not (index[numbers] == index[numbers[:, :1]]).all():
    raise ValueError(f'Rows of {name} do not come {size} to a prompt: lower RESPONSES_PER_PROMPT.')
  return numbers


def _select(rows: Batch, groups: Int[np.ndarray, 'B size']) -> Batch:
  """The rows of some groups; their prompts once."""
  if isinstance(rows, Prompts):
    return Prompts(*(x[groups[:, 0]] for x in rows))
  prompts = _select(rows.prompts, groups)
  pick = lambda x: x[groups.reshape(-1)]
  return type(rows)(prompts, *jax.tree.map(pick, tuple(rows)[1:]))
