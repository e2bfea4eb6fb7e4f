"""Batches of fixed shape from a seqio task. Batch number n is a function of task, seed and n alone.

A task is tokenised once and held in memory; each epoch goes through it in an order of its own. So a run that resumes
at batch n sees exactly what it would have seen, on however many devices and hosts: each host has the same batches, and
hands its own devices their rows. Prompts of like length may be put together: a batch then is as long as
its prompts need, and a program is compiled for each of a few lengths.
"""

import functools
import itertools
import logging
from collections.abc import Iterator
from typing import NamedTuple

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
  num_prompt_lengths: int = 1,
  num_response_lengths: int = 1,
  start: int = 0,
  seed: int = 0,
) -> Iterator[Batch]:
  """Endless shuffled batches; what they hold follows the task's features.

  Args:
    task: of `data.tasks` or `data.summaries`.
    split: such as 'train'.
    batch_size: prompts of a batch, on all devices together.
    prompt_length: S; longer prompts lose their end.
    response_length: T; longer responses lose their end, EOS included.
    responses_per_prompt: k consecutive rows of the task that share a prompt, which is then encoded once for all.
    num_prompt_lengths: how many lengths the prompts of a batch may have, those that leave the least padding; 1: all have
      `prompt_length`.
    num_response_lengths: the same, of responses that are read.
    start: number of the first batch.
    seed: of the order.

  Raises:
    ValueError: the split has fewer rows than a batch, rows that were to share a prompt do not, or there is no length.
  """
  rows = load_split(task, split=split, prompt_length=prompt_length, response_length=response_length)
  groups = _grouped(rows, responses_per_prompt, task.name)
  per_epoch = len(groups) // batch_size
  if per_epoch == 0:
    raise ValueError(
      f'Split {split!r} of {task.name} has {len(groups)} prompts: batch_size must not exceed them, got {batch_size}.'
    )
  if num_prompt_lengths < 1 or num_response_lengths < 1:
    raise ValueError(
      f'There must be at least one length of prompts and of responses, got {num_prompt_lengths} and '
      f'{num_response_lengths}.'
    )
  shapes = _shapes(rows, groups, num_prompt_lengths, num_response_lengths)
  number, plan = start, functools.lru_cache(maxsize=2)(functools.partial(_plan, shapes))
  while True:
    epoch, place = divmod(number, per_epoch)
    shape, members = plan(batch_size, seed, epoch)[place]
    yield _cut(_select(rows, groups[members]), *shape)
    number += 1


def shapes(
  kind: type,
  *,
  batch_size: int,
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int = 1,
) -> Batch:
  """What the largest batches look like, without reading any.

  Args:
    kind: Prompts, Demonstration or Comparison.
    batch_size, prompt_length, response_length, responses_per_prompt: as of `batches`.
  """
  of = lambda dtype, *size: jax.ShapeDtypeStruct(size, dtype)
  prompts = Prompts(of(np.int32, batch_size, prompt_length), of(np.int32, batch_size))
  if kind is Prompts:
    return prompts
  rows = batch_size * responses_per_prompt
  response = Rollout(of(np.int32, rows, response_length), of(bool, rows, response_length))
  if kind is Demonstration:
    return Demonstration(prompts, response)
  return Comparison(prompts, response, response, of(np.float32, rows))


class _Shapes(NamedTuple):
  """The shapes that batches come in, and which of them each group of rows fits."""

  of: list[tuple[int, int]]  # (S, T)
  after: list[int]  # The next larger shape of each, which comes later; their number: none.
  smallest: Int[np.ndarray, 'G']  # The smallest shape that holds a group.


def _shapes(
  rows: Batch, groups: Int[np.ndarray, 'G k'], num_prompt_lengths: int, num_response_lengths: int
) -> _Shapes:
  prompts = (rows if isinstance(rows, Prompts) else rows.prompts).tokens
  responses = [] if isinstance(rows, Prompts) else [x for x in rows if isinstance(x, Rollout)]
  size = lambda tokens: (tokens > 0).sum(axis=-1)
  long = [size(prompts[groups[:, 0]]), np.zeros(len(groups), int)]
  for x in responses:
    long[1] = np.maximum(long[1], size(x.tokens[groups]).max(axis=-1))
  longest = [prompts.shape[1], responses[0].tokens.shape[1] if responses else 0]
  edges = [
    best_lengths(x, number, most) if number > 1 and most else [most]
    for x, number, most in zip(
      long, (num_prompt_lengths, num_response_lengths), longest, strict=True
    )
  ]
  row, column = (np.searchsorted(e, x) for e, x in zip(edges, long, strict=True))
  across = len(edges[1])
  of = list(itertools.product(*edges))
  # What is left over of a shape goes to longer responses; of the longest, to longer prompts.
  after = [n + 1 if (n + 1) % across else n + across for n in range(len(of))]
  return _Shapes(of, [min(n, len(of)) for n in after], row * across + column)


def best_lengths(lengths: Int[np.ndarray, 'N'], number: int, longest: int) -> list[int]:
  """The few lengths that leave the least padding, when each sequence is padded to the next of them.

  Args:
    lengths: of the sequences, at most `longest`.
    number: how many to choose.
    longest: no choice exceeds it.

  Returns:
    At most `number` of them, ascending, multiples of 8 or `longest`; the last one holds all sequences.
  """
  edges = np.minimum(np.unique(_round_up(lengths)), longest)
  below = np.searchsorted(np.sort(lengths), edges, side='right')  # Sequences that fit each.
  # cost[j]: tokens of the sequences up to edge j, the last choice being j; by dynamic programming over choices.
  cost, chosen = below * edges, [[edge] for edge in edges]
  for _ in range(number - 1):
    step = cost[:, None] + (below - below[:, None]) * edges  # [previous choice, next one]
    step[np.tril_indices(len(edges))] = np.iinfo(int).max
    better = step.min(axis=0) < cost
    before = step.argmin(axis=0)
    chosen = [
      [*chosen[b], e] if m else c for b, e, m, c in zip(before, edges, better, chosen, strict=True)
    ]
    cost = np.where(better, step.min(axis=0), cost)
  return [int(edge) for edge in chosen[-1]]


def _round_up(length):
  return -(-length // 8) * 8


def _plan(
  shapes: _Shapes, batch_size: int, seed: int, epoch: int
) -> list[tuple[tuple[int, int], Int[np.ndarray, 'B']]]:
  """The batches of an epoch: shape and groups. What does not fill a batch of its shape goes to the next larger one."""
  rng = np.random.default_rng([seed, epoch])
  order = rng.permutation(len(shapes.smallest))
  waiting = [order[shapes.smallest[order] == number] for number in range(len(shapes.of))] + [
    order[:0]
  ]
  batches = []
  for number, shape in enumerate(shapes.of):
    full = len(waiting[number]) // batch_size * batch_size
    batches += [(shape, members) for members in waiting[number][:full].reshape(-1, batch_size)]
    after = shapes.after[number]
    waiting[after] = np.concatenate([waiting[number][full:], waiting[after]])
  if len(shapes.of) == 1:
    return batches
  return [batches[place] for place in rng.permutation(len(batches))]


def _cut(batch: Batch, prompt_length: int, response_length: int) -> Batch:
  """The batch without the columns that only hold padding."""
  if isinstance(batch, Prompts):
    return batch._replace(tokens=batch.tokens[:, :prompt_length])
  cut = lambda x: jax.tree.map(lambda leaf: leaf[:, :response_length], x)
  fields = {name: cut(x) for name, x in batch._asdict().items() if isinstance(x, Rollout)}
  return batch._replace(prompts=_cut(batch.prompts, prompt_length, 0), **fields)


def load_split(
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
