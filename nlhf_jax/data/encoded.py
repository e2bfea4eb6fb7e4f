"""Rows of a split as tokens, encoded when they are asked for; of those asked for last, the tokens are kept."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from nlhf_jax.data import columns, vocabularies
from nlhf_jax.data.batching import Example, Rows, check_rows
from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.types import EOS, NO_VOTERS, VoterNames
from nlhf_jax.votes import readers

# Rows whose tokens are kept; of a split that has no more, token counts are exact.
_KEPT = 2**16
_SAMPLE = 2**10


@runtime_checkable
class Task(Protocol):
  """A seqio task, or what has its attributes. Those of `data.tasks` have rows that can be read in any order (`source.columns`), and voters (`source.voters`)."""

  name: str
  source: Any
  output_features: Mapping[str, Any]

  @property
  def splits(self) -> Iterable[str]:
    """Their names."""
    ...

  def get_dataset(self, *args: Any, **kwargs: Any) -> Any:
    """A split's rows, tokenised by seqio: how a task of someone else's is read."""
    ...


def voters_of(task: Task) -> VoterNames:
  """Names of a task's voters by their numbers, those of training first; none where votes do not say who voted."""
  return getattr(task.source, 'voters', NO_VOTERS)


def encode(row: readers.Row, vocabulary: Vocabulary, prompt_length: int) -> Example:
  """A row's features; responses end with EOS.

  Args:
    row: {index, prompt, messages?, response?, alternative?, preference?, voter?}.
    vocabulary: of prompt and responses.
    prompt_length: tokens that a prompt may have.
  """
  responses = {
    feature: _response(row[field], vocabulary)
    for field, feature in columns.RESPONSES.items()
    if field in row
  }
  numbers = {key: row[key] for key in ('index', 'preference', 'voter') if key in row}
  return _prompt(row, vocabulary, prompt_length) | responses | numbers


def open_split(task: Task, split: str, prompt_length: int) -> Rows:
  """The rows of a split; those of a task that is none of `data.tasks` are all read at once.

  Raises:
    ValueError: there is no such split, or it has no rows.
  """
  check_split(task.name, split, task.splits)
  if hasattr(task.source, 'columns'):
    rows = _of_columns(task.source.columns(split), task.output_features, prompt_length)
  else:
    rows = _of_dataset(task, split, prompt_length)
  check_rows(task.name, split, len(rows.index))
  return rows


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
  """Raises ValueError where a task has no such split."""
  if split not in splits:
    raise ValueError(f'{name} has no split {split!r}, but {", ".join(map(repr, splits))}.')


def _prompt(row: readers.Row, vocabulary: Vocabulary, length: int) -> Example:
  tokens, is_long = vocabularies.encode_prompt(
    vocabulary, row['prompt'], row.get('messages'), length
  )
  return {'inputs': np.array(tokens, np.int32), 'is_long': is_long}


def _response(text: str, vocabulary: Vocabulary) -> Int[np.ndarray, 'T']:
  return np.array([*vocabulary.encode(text), EOS], np.int32)


def _of_columns(rows: columns.Columns, features: Mapping[str, Any], prompt_length: int) -> Rows:
  vocabulary = features.get('targets', features['inputs']).vocabulary
  # Rows that share a prompt mostly come together.
  prompt = functools.lru_cache(_KEPT)(
    lambda number: _prompt(rows.prompt_text(number), vocabulary, prompt_length)
  )

  @functools.lru_cache(_KEPT)
  def responses(place: int) -> Example:
    texts = rows.responses_of(place)
    return {columns.RESPONSES[field]: _response(text, vocabulary) for field, text in texts.items()}

  def example(place: int) -> Example:
    return prompt(int(rows.prompt[place])) | responses(place) | rows.numbers_of(place)

  return Rows(rows.index, example, functools.partial(_count_tokens, rows, example))


def _count_tokens(rows: columns.Columns, example: Callable[[int], Example]):
  """By encoding them; of more rows than are kept, by the bytes of each and the tokens per byte of some."""
  size = len(rows.index)
  sample = np.arange(size) if size <= _KEPT else np.linspace(0, size - 1, _SAMPLE).astype(int)
  counted = np.array([_lengths(example(n)) for n in sample.tolist()]).T
  if len(sample) == size:
    return tuple(counted)
  return tuple(
    _estimate(sizes, counts, sizes[sample])
    for counts, sizes in zip(counted, rows.num_bytes(), strict=True)
  )


def _estimate(
  sizes: Int[np.ndarray, 'N'], counts: Int[np.ndarray, 'n'], sizes_of_counted: Int[np.ndarray, 'n']
) -> Int[np.ndarray, 'N']:
  """Tokens of texts of these bytes; the ratio is that of the shorter ones, of which none was shortened."""
  short = sizes_of_counted <= np.median(sizes_of_counted)
  ratio = counts[short].sum() / max(sizes_of_counted[short].sum(), 1)
  return np.minimum(np.ceil(sizes * ratio), counts.max()).astype(int)


def _lengths(example: Example) -> tuple[int, int]:
  responses = [len(example[x]) for x in columns.RESPONSES.values() if x in example]
  return len(example['inputs']), max(responses, default=0)


def _of_dataset(task: Task, split: str, prompt_length: int) -> Rows:
  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
  examples = [
    dict(x) | {'is_long': len(x['inputs']) > prompt_length} for x in dataset.as_numpy_iterator()
  ]
  index = np.array([x['index'] for x in examples], np.int32)
  count_tokens = lambda: tuple(np.array([_lengths(x) for x in examples]).T)
  return Rows(index, examples.__getitem__, count_tokens)
