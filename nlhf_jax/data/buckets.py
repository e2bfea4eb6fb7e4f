"""Length bucketing: the few shapes that batches come in, and which rows share one.

A batch is padded to the smallest of a few prompt lengths S and response lengths T that hold it, and a program is
compiled for each pair (S, T) that occurs.
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Buckets(NamedTuple):
  """The shapes of batches, and the smallest of them that holds each group of rows."""

  # (S, T) of each bucket.
  shapes: list[tuple[int, int]]
  # Number of the bucket that takes what does not fill a batch: a later and larger one. len(shapes): there is none.
  overflow: list[int]
  # Number of each group's bucket.
  of_group: Int[np.ndarray, 'G']


class Batch(NamedTuple):
  """The shape and the groups of one batch."""

  # (S, T)
  shape: tuple[int, int]
  # Numbers of groups.
  groups: Int[np.ndarray, 'B']


def choose(
  prompt_lengths: Int[np.ndarray, 'G'],
  response_lengths: Int[np.ndarray, 'G'],
  longest: tuple[int, int],
  numbers: tuple[int, int],
) -> Buckets:
  """The buckets of groups of rows that share a prompt.

  Args:
    prompt_lengths: tokens of each group's prompt.
    response_lengths: tokens of the longest response of each group; 0: none are read.
    longest: the largest S and T; a T of 0: no responses are read.
    numbers: how many prompt lengths and how many response lengths there may be; 1: the largest alone.
  """
  sizes = prompt_lengths, response_lengths
  edges = [
    best_lengths(lengths, number, most) if number > 1 and most else [most]
    for lengths, number, most in zip(sizes, numbers, longest, strict=True)
  ]
  row, column = (np.searchsorted(e, lengths) for e, lengths in zip(edges, sizes, strict=True))
  num_columns = len(edges[1])
  shapes = list(itertools.product(edges[0], edges[1]))
  # What one shape leaves over goes to longer responses; what the longest of these leaves, to longer prompts.
  overflow = [n + 1 if (n + 1) % num_columns else n + num_columns for n in range(len(shapes))]
  return Buckets(shapes, [min(n, len(shapes)) for n in overflow], row * num_columns + column)


def smallest(buckets: Buckets, prompt_length: int, response_length: int) -> tuple[int, int]:
  """The smallest shape that holds a prompt and a response of these lengths."""
  return min((s, t) for s, t in buckets.shapes if s >= prompt_length and t >= response_length)


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


def _round_up(lengths: Int[np.ndarray, 'N']) -> Int[np.ndarray, 'N']:
  return -(-lengths // 8) * 8


def plan_epoch(buckets: Buckets, batch_size: int, seed: int, epoch: int) -> list[Batch]:
  """The batches of an epoch, in an order that is a function of seed and epoch.

  What does not fill a batch of its shape goes to the next larger one; what the largest leaves over waits for the next
  epoch, which is in another order.
  """
  rng = np.random.default_rng([seed, epoch])
  order = rng.permutation(len(buckets.of_group))
  queues = [order[buckets.of_group[order] == number] for number in range(len(buckets.shapes))]
  queues.append(order[:0])
  batches = []
  for number, shape in enumerate(buckets.shapes):
    queue, overflow = queues[number], buckets.overflow[number]
    full = len(queue) // batch_size * batch_size
    batches += [Batch(shape, groups) for groups in queue[:full].reshape(-1, batch_size)]
    queues[overflow] = np.concatenate([queue[full:], queues[overflow]])
  if len(buckets.shapes) == 1:
    return batches
  return [batches[place] for place in rng.permutation(len(batches))]
