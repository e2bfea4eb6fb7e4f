"""Rows of tokens, and the batches that are made of them; where rows come from, a task or a file, is no matter here.

Batch number n is a function of the rows, the seed and n alone. Needs neither seqio nor TensorFlow.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from nlhf_jax.data import buckets
from nlhf_jax.types import PAD, Comparison, Demonstration, Prompts, Rollout

Batch = Prompts | Demonstration | Comparison

# Features of a row, as seqio names them: inputs, targets?, alternative?, index, preference?, voter?; and is_long: the prompt is
# longer than it may be.
Example = dict[str, Any]


class Rows(NamedTuple):
  """The N rows of a split."""

  # Number of each row's prompt.
  index: Int[np.ndarray, 'N']  # type: ignore[assignment]
  # The features of a row, by its place.
  example: Callable[[int], Example]
  # Tokens of each row's prompt, and of the longer of its responses, 0 where it has none; of many rows about.
  count_tokens: Callable[[], tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'N']]]


class Sizes(NamedTuple):
  """The shape of batches; fields as of `pipeline.batches`."""

  batch_size: int
  prompt_length: int
  response_length: int
  responses_per_prompt: int = 1
  num_prompt_lengths: int = 1
  num_response_lengths: int = 1

  @property
  def lengths(self) -> tuple[int, int]:
    """S and T."""
    return self.prompt_length, self.response_length

  @property
  def numbers(self) -> tuple[int, int]:
    """How many lengths prompts and responses may have."""
    return self.num_prompt_lengths, self.num_response_lengths


def check_numbers(sizes: Sizes) -> None:
  """Raises ValueError where there is no length."""
  if min(sizes.numbers) < 1:
    raise ValueError(
      'num_prompt_lengths and num_response_lengths must be at least 1, got '
      f'{sizes.num_prompt_lengths} and {sizes.num_response_lengths}.'
    )


def check_rows(name: str, split: str, number: int) -> None:
  """Raises ValueError where a split has no rows."""
  if not number:
    raise ValueError(f'Split {split!r} of {name} has no rows: give it some, or name another.')


def shuffled(
  rows: Rows, sizes: Sizes, name: str, split: str, start: int, seed: int
) -> Iterator[Batch]:
  """Endless batches, each epoch in an order of its own.

  Args:
    rows: of a split.
    sizes: of batches.
    name, split: whose rows they are, for messages.
    start: number of the first batch.
    seed: of the order.

  Raises:
    ValueError: there are fewer prompts than a batch takes, or rows that were to share a prompt do not.
  """
  groups = _group(rows.index, sizes.responses_per_prompt, name)
  if len(groups) < sizes.batch_size:
    raise ValueError(
      f'Split {split!r} of {name} has {len(groups)} prompts: batch_size must not exceed them, got {sizes.batch_size}.'
    )
  found = _epochs(rows, groups, sizes, start, seed)
  return warning_once(name, sizes.prompt_length, found)


def _epochs(
  rows: Rows, groups: Int[np.ndarray, 'G k'], sizes: Sizes, start: int, seed: int
) -> Iterator[tuple[Batch, bool]]:
  """Batches, and whether one of their prompts was too long."""
  chosen = _choose_buckets(rows, groups, sizes.lengths, sizes.numbers)
  plan = functools.lru_cache(maxsize=2)(functools.partial(buckets.plan_epoch, chosen))
  for number in itertools.count(start):
    epoch, place = divmod(number, len(groups) // sizes.batch_size)
    of_batch = groups[plan(sizes.batch_size, seed, epoch)[place].groups]
    examples = [rows.example(n) for n in of_batch.reshape(-1).tolist()]
    batch = group_rows(collate(examples, *sizes.lengths), sizes.batch_size)
    shape = buckets.smallest(chosen, *_longest(batch))
    yield _trim(batch, *shape), any(x['is_long'] for x in examples)


def warning_once(
  name: str, prompt_length: int, batches: Iterable[tuple[Batch, bool]]
) -> Iterator[Batch]:
  """The batches; a line in the log at the first prompt that was too long."""
  warned = False
  for batch, has_long in batches:
    if has_long and not warned:
      message = '%s: some prompts are longer than %d tokens and lose their end.'
      logging.warning(message, name, prompt_length)
      warned = True
    yield batch


def in_order(
  examples: list[Example], name: str, split: str, prompt_length: int, response_length: int
) -> Batch:
  """Rows as one batch, each with its prompt; a line in the log where prompts are too long.

  Raises:
    ValueError: there are none.
  """
  check_rows(name, split, len(examples))
  if number := sum(x['is_long'] for x in examples):
    message = '%s: %d of %d prompts are longer than %d tokens and lose their end.'
    logging.warning(message, name, number, len(examples), prompt_length)
  return collate(examples, prompt_length, response_length)


def collate(examples: list[Example], prompt_length: int, response_length: int) -> Batch:
  """Examples as arrays of fixed width, a prompt to each."""
  column = lambda name: [example[name] for example in examples]
  numbers: Callable[..., Any] = lambda name, dtype: np.array(column(name), dtype)
  prompts = Prompts(_pad(column('inputs'), prompt_length), numbers('index', np.int32))
  if 'targets' not in examples[0]:
    return prompts
  response = _rollout(column('targets'), response_length)
  if 'alternative' not in examples[0]:
    return Demonstration(prompts, response)
  alternative = _rollout(column('alternative'), response_length)
  voter = numbers('voter', np.int32) if 'voter' in examples[0] else None
  return Comparison(prompts, response, alternative, numbers('preference', np.float32), voter=voter)


def _pad(sequences: list[np.ndarray], length: int) -> Any:
  """NumPy's, [N, length]."""
  padded = np.full((len(sequences), length), PAD, np.int32)
  for row, tokens in zip(padded, sequences, strict=True):
    row[: len(tokens)] = tokens[:length]
  return padded


def _rollout(sequences: list[np.ndarray], length: int) -> Rollout:
  tokens = _pad(sequences, length)
  return Rollout(tokens, tokens != PAD)


def _group(index: Int[np.ndarray, 'N'], size: int, name: str) -> Int[np.ndarray, 'G k']:
  """Row numbers of every group of rows that share a prompt."""
  numbers = np.arange(len(index) // size * size).reshape(-1, size)
  if not (index[numbers] == index[numbers[:, :1]]).all():
    raise ValueError(f'Rows of {name} do not come {size} to a prompt: lower responses_per_prompt.')
  return numbers


def _choose_buckets(
  rows: Rows,
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


def group_rows(rows: Batch, num_prompts: int) -> Batch:
  """Rows of which as many as come to a prompt share it, with each prompt once."""
  prompts = jax.tree.map(lambda x: x[:: len(x) // num_prompts], _prompts(rows))
  return prompts if isinstance(rows, Prompts) else rows._replace(prompts=prompts)


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
