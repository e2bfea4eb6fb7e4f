"""A split's rows as tokens in one file, so that a machine without seqio and TensorFlow has the batches of one that has them.

The file is NumPy's .npz, without pickles: row n has the next `inputs_sizes[n]` of all `inputs`, and so on. Order, buckets and
batches are made of the rows as they are elsewhere (`batching`), so they do not depend on who reads.
"""

import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from nlhf_jax import untrusted
from nlhf_jax.data import batching
from nlhf_jax.runtime import atomic

_SEQUENCES = ('inputs', 'targets', 'alternative')
# By kind of type, what numbers of a row may be.
_WIDEST = {'i': np.int64, 'f': np.float64, 'b': np.bool_}
_NUMBERS = {'index': np.int32, 'preference': np.float32, 'voter': np.int32, 'is_long': np.bool_}


def write(
  path: str | os.PathLike,
  rows: batching.Rows,
  *,
  name: str,
  split: str,
  prompt_length: int,
  limit: int | None = None,
) -> None:
  """Writes rows; a file that is there is replaced.

  Args:
    path: of the file, .npz.
    rows: of a split, as of `encoded.open_split`.
    name, split: whose rows they are.
    prompt_length: that they were encoded for: shorter prompts may have other tokens, as a chat template leaves them.
    limit: keep the first rows only.
  """
  size = len(range(len(rows.index))[:limit])
  examples = [rows.example(n) for n in range(size)]
  batching.check_rows(name, split, size)
  arrays: dict[str, Any] = {'name': name, 'split': split, 'prompt_length': prompt_length}
  for key, dtype in _NUMBERS.items():
    if key in examples[0]:
      arrays[key] = np.array([x[key] for x in examples], dtype)
  for key in _SEQUENCES:
    if key in examples[0]:
      arrays[key] = np.concatenate([x[key] for x in examples]).astype(np.int32)
      arrays[f'{key}_sizes'] = np.array([len(x[key]) for x in examples], np.int32)
  # What lengths are chosen by: of very many rows it is about, so it cannot be counted again.
  prompts, responses = rows.count_tokens()
  arrays |= {'prompt_tokens': prompts[:size], 'response_tokens': responses[:size]}
  with atomic.replaced(pathlib.Path(path), 'wb') as file:
    np.savez_compressed(file, **arrays)


def batches(
  file: str,
  *,
  directory: str = '.',
  batch_size: int,
  prompt_length: int,
  response_length: int,
  responses_per_prompt: int = 1,
  num_prompt_lengths: int = 1,
  num_response_lengths: int = 1,
  start: int = 0,
  seed: int = 0,
) -> Iterator[batching.Batch]:
  """The batches that `pipeline.batches` makes of the task that the file was written of.

  Args:
    file: that `write` wrote.
    directory: which holds it.
    batch_size, prompt_length, response_length, responses_per_prompt, num_prompt_lengths, num_response_lengths: as of
      `pipeline.batches`; prompt_length must be the file's.
    start, seed: as of `pipeline.batches`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no such file, or was written for another prompt_length; and as of `pipeline.batches`.
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
  arrays = _read(pathlib.Path(directory) / file, prompt_length)
  name, split = str(arrays['name']), str(arrays['split'])
  yield from batching.shuffled(_rows(arrays), sizes, name, split, start, seed)


def load_split(
  file: str,
  *,
  directory: str = '.',
  prompt_length: int,
  response_length: int,
  limit: int | None = None,
) -> batching.Batch:
  """All rows as one batch, in their order: what `pipeline.load_split` makes of the same split.

  Args:
    file, directory: as of `batches`.
    prompt_length, response_length: as of `batches`.
    limit: keep the first rows only.

  Raises:
    FileNotFoundError, ValueError: as of `batches`.
  """
  arrays = _read(pathlib.Path(directory) / file, prompt_length)
  rows = _rows(arrays)
  examples = [rows.example(n) for n in range(len(rows.index))[:limit]]
  name, split = str(arrays['name']), str(arrays['split'])
  return batching.in_order(examples, name, split, prompt_length, response_length)


def _read(path: pathlib.Path, prompt_length: int) -> dict[str, np.ndarray]:
  """The arrays of a file; raises ValueError where it is none, or for another prompt_length."""
  if not path.is_file():
    raise FileNotFoundError(f'No token file {path}: write it with nlhf tokenize.')
  try:
    arrays = untrusted.read_npz(path)
  except ValueError as error:
    raise ValueError(f'{path} is no token file, or is damaged ({error}): write it anew.') from None
  needed = {'name', 'split', 'prompt_length', 'index', 'is_long', 'inputs', 'inputs_sizes'}
  needed |= {'prompt_tokens', 'response_tokens'}
  needed |= {f'{key}_sizes' for key in _SEQUENCES if key in arrays}
  if missing := sorted(needed - set(arrays)):
    raise ValueError(f'{path} is no token file: it lacks {", ".join(missing)}.')
  if wrong := _problem(arrays):
    raise ValueError(f'{path} is damaged, {wrong}: write it anew.')
  if int(arrays['prompt_length']) != prompt_length:
    raise ValueError(
      f'{path} was written for prompts of {arrays["prompt_length"]} tokens: prompt_length must be that, got {prompt_length}; or '
      'write it anew.'
    )
  return arrays


def _problem(arrays: dict[str, np.ndarray]) -> str | None:
  """What does not fit together; None: nothing."""
  for key, kind in (('name', np.str_), ('split', np.str_), ('prompt_length', np.integer)):
    if arrays[key].shape or not np.issubdtype(arrays[key].dtype, kind):
      return f'its {key} is {arrays[key].dtype} {arrays[key].shape}'
  size = arrays['index'].size
  columns = {key: _NUMBERS.get(key, np.int32) for key in arrays if key in _NUMBERS}
  columns |= {key: np.int32 for key in arrays if key.endswith(('_sizes', '_tokens'))}
  for key, dtype in columns.items():
    found = arrays[key]
    if found.shape != (size,) or not np.can_cast(found.dtype, _WIDEST[np.dtype(dtype).kind]):
      return f'its {key} is {found.dtype} {found.shape}, for {size} rows'
  for key in filter(arrays.__contains__, _SEQUENCES):
    tokens, sizes = arrays[key], arrays[f'{key}_sizes']
    if tokens.ndim != 1 or tokens.dtype != np.int32 or tokens.min(initial=0) < 0:
      return f'its {key} are no tokens'
    if sizes.min(initial=0) < 0 or sizes.sum(dtype=np.int64) != tokens.size:
      return f'its {key}_sizes do not add up to {tokens.size} tokens'
  preference = arrays.get('preference', np.zeros(0))
  if not np.all((preference >= 0) & (preference <= 1)):
    return 'a preference is not within [0, 1]'
  return None


def _rows(arrays: dict[str, np.ndarray]) -> batching.Rows:
  ends = {
    key: np.cumsum(arrays[f'{key}_sizes'], dtype=np.int64) for key in _SEQUENCES if key in arrays
  }
  numbers = [key for key in _NUMBERS if key in arrays]

  def example(place: int) -> batching.Example:
    result: batching.Example = {key: arrays[key][place] for key in numbers}
    for key, end in ends.items():
      result[key] = arrays[key][end[place] - arrays[f'{key}_sizes'][place] : end[place]]
    return result

  counts = arrays['prompt_tokens'], arrays['response_tokens']
  return batching.Rows(arrays['index'], example, lambda: counts)
