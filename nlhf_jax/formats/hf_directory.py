"""Directories in Hugging Face's layout: where a model is, what its JSON says, and which file holds which tensor.

A directory may hold a model, or an adapter of `peft`, which names the model that it changes.
"""

import contextlib
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from nlhf_jax import untrusted

ADAPTER = 'adapter_config.json'
SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_HUB, _REPOSITORY = 'hf://', re.compile(r'[\w.-]+/[\w.-]+')
# Types of floats that tensors may be stored in, as safetensors calls them.
_FLOATS = ('F64', 'F32', 'F16', 'BF16')
# Weights that are looked at in one go, so that no large array is made.
_AT_A_TIME = 1 << 18


class Model(NamedTuple):
  """Where the parts of a model are."""

  # Holds config.json and weights.
  base: pathlib.Path
  # Holds an adapter that changes these; None: there is none.
  adapter: pathlib.Path | None
  # Holds tokenizer.json and chat template: an adapter's own, where it has one.
  tokenizer: pathlib.Path


def find(name: str | pathlib.Path, adapter: str | pathlib.Path | None = None) -> Model:
  """The parts of a model.

  Args:
    name: a directory, or hf://OWNER/NAME@REVISION on the hub, of a model or of an adapter; an adapter's config names its base.
    adapter: an adapter for the model of that name, whatever base its own config names; None: none, or that of `name`.

  Raises:
    FileNotFoundError: one of them is not there.
    ValueError: there is more than one adapter, or an adapter beside other weights.
  """
  directory = locate(name)
  if adapter is not None:
    own = locate(adapter)
    if not (own / ADAPTER).is_file():
      raise FileNotFoundError(f'No {own / ADAPTER}: name the directory of a PEFT adapter.')
    _check_no_adapter(directory, own)
    return Model(directory, own, directory)
  if not (directory / ADAPTER).is_file():
    return Model(directory, None, directory)
  if _has_weights(directory):
    raise ValueError(
      f'{directory} holds a model, and an adapter too ({ADAPTER}): take one of them away, or name the directory as the '
      'adapter too, which then changes the model beside it.'
    )
  base = _base_of(directory, is_on_hub(name))
  _check_no_adapter(base, directory)
  return Model(base, directory, directory if (directory / 'tokenizer.json').is_file() else base)


def _check_no_adapter(base: pathlib.Path, adapter: pathlib.Path) -> None:
  if is_adapter(base):
    raise ValueError(
      f'{base} is an adapter itself, and no model for the adapter {adapter}: merge it into its own base where peft is '
      'installed, with merge_and_unload().save_pretrained(NEW_DIR), and name NEW_DIR.'
    )


def is_adapter(directory: pathlib.Path) -> bool:
  """Whether a directory holds an adapter, and no model."""
  return (directory / ADAPTER).is_file() and not _has_weights(directory)


def _has_weights(directory: pathlib.Path) -> bool:
  return any((directory / file).is_file() for file in (SINGLE, INDEX))


def _base_of(directory: pathlib.Path, from_hub: bool) -> pathlib.Path:
  """The hub is asked for the base of an adapter only where the adapter is from there too."""
  values = read_json(directory / ADAPTER)
  base, revision = values.get('base_model_name_or_path'), values.get('revision')
  remedy = 'name its base, such as hf://OWNER/NAME@REVISION, and this directory as its adapter.'
  if not isinstance(base, str) or not base:
    raise ValueError(
      f'{directory / ADAPTER} has base_model_name_or_path = {base!r}, which is no model: {remedy}'
    )
  try:
    pinned = f'@{revision}' if isinstance(revision, str) and revision else ''
    return locate(f'{_HUB}{base}{pinned}' if from_hub and not pathlib.Path(base).is_dir() else base)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{directory} holds a PEFT adapter of {base!r}, which is not here ({error}) Or {remedy}'
    ) from error


def is_on_hub(name: str | pathlib.Path) -> bool:
  """Whether a name is one of the hub's: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""
  return str(name).startswith(_HUB)


def locate(name: str | pathlib.Path) -> pathlib.Path:
  """The directory of a name: a path on disk, or hf://OWNER/NAME@REVISION, a repository on the hub.

  The hub is asked for nothing else: a mistyped path could be the name of a stranger's model there.

  Raises:
    FileNotFoundError: there is no such directory, or the hub cannot be reached.
  """
  if is_on_hub(name):
    return _download(str(name))
  path = pathlib.Path(name)
  if path.is_dir():
    return path
  if path.exists():
    raise FileNotFoundError(
      f'{name} is a file: name the directory that holds config.json and safetensors, or make one of a GGUF file with '
      'nlhf import.'
    )
  on_hub = f', or {_HUB}{name} if you mean the hub' if _REPOSITORY.fullmatch(str(name)) else ''
  raise FileNotFoundError(
    f'No directory {name}: name one that holds config.json and safetensors{on_hub}.'
  )


def _download(name: str) -> pathlib.Path:
  repository, _, revision = name.removeprefix(_HUB).partition('@')
  if not _REPOSITORY.fullmatch(repository):
    raise FileNotFoundError(f'{name} is no name on the hub: write {_HUB}OWNER/NAME@REVISION.')
  import huggingface_hub

  try:
    patterns = ['*.json', '*.safetensors', '*.jinja', '*.model']
    download = huggingface_hub.snapshot_download
    found = pathlib.Path(download(repository, revision=revision or None, allow_patterns=patterns))
  except Exception as error:  # Its own kinds, and those of three network libraries below it.
    reason = str(error).split('\n')[0]
    raise FileNotFoundError(
      f'The hub has not given it, {name} ({type(error).__name__}: {reason}): name a directory that holds config.json and '
      'safetensors, or a repository and revision that the hub has.'
    ) from error
  if not revision:
    logging.warning(
      '%s is at revision %s today: %s@%s pins it.', name, found.name, name, found.name
    )
  return found


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object that a model's file holds; an empty one where there is no such file.

  Raises:
    PermissionError: this user may not read it.
    ValueError: the file is damaged.
  """
  try:
    if not path.is_file():
      return {}
    values = untrusted.parse_json(path.read_bytes())
  except PermissionError:
    raise PermissionError(f'{path} may not be read by this user: allow it with chmod.') from None
  except untrusted.ContentError as error:
    raise ValueError(f'{path} is no JSON ({error}): download it again.') from None
  if not isinstance(values, dict):
    raise ValueError(f'{path} holds no JSON object: download it again.')
  return values


@contextlib.contextmanager
def open_tensors(path: pathlib.Path) -> Iterator[Any]:
  """An open safetensors file.

  Raises:
    PermissionError: this user may not read it.
    ValueError: it is damaged, or lacks a tensor that it is asked for.
  """
  try:
    with safetensors.safe_open(path, framework='np') as file:
      yield file
  except PermissionError:
    raise PermissionError(f'{path} may not be read by this user: allow it with chmod.') from None
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is damaged ({error}): download it again.') from None


def write_tensors(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
  """Writes a safetensors file.

  Raises:
    OSError: it cannot be written, with the reason.
  """
  try:
    safetensors.numpy.save_file(arrays, path, metadata={'format': 'pt'})
  except safetensors.SafetensorError as error:
    raise OSError(f'Writing {path} failed ({error}): see to its space and permissions.') from error


def check_floats(path: pathlib.Path, name: str, stored: Any) -> None:
  """Raises ValueError where a tensor is not stored in floats of 16 bits or more: it is quantised."""
  if stored.get_dtype() not in _FLOATS:
    raise ValueError(
      f'{path}: tensor {name} is stored as {stored.get_dtype()}, and quantised weights are not read: take the model in '
      'bfloat16, float16 or float32.'
    )


def check_finite(path: pathlib.Path, name: str, x: np.ndarray) -> None:
  """Raises ValueError where a weight is NaN or infinite: nothing that is computed with it would be a number."""
  flat = x.reshape(-1)
  for start in range(0, flat.size, _AT_A_TIME):
    if not np.isfinite(flat[start : start + _AT_A_TIME]).all():
      raise ValueError(
        f'{path}: tensor {name} has weights that are NaN or infinite: download it again, or save it in bfloat16 or float32, '
        'where float16 has overflown.'
      )


def are_equal(one: Any, other: Any) -> bool:
  """Whether two stored tensors are the same, a thousand rows at a time."""
  rows = one.get_shape()[0]
  parts = (slice(n, min(n + 1000, rows)) for n in range(0, rows, 1000))
  return one.get_shape() == other.get_shape() and all(
    np.array_equal(one[part], other[part]) for part in parts
  )


def tensor_files(directory: pathlib.Path) -> dict[str, str]:
  """The file that holds each tensor.

  Raises:
    FileNotFoundError: there is none, or not each that the index names.
    ValueError: the index or a file is damaged; there are pickles alone.
  """
  if (directory / INDEX).is_file():
    return _indexed(directory)
  if (directory / SINGLE).is_file():
    with open_tensors(directory / SINGLE) as stored:
      return dict.fromkeys(stored.keys(), SINGLE)
  if pickled := sorted(directory.glob('*.bin')):
    raise ValueError(
      f'{pickled[0]} is a pickle, which could run any code and is not read: convert it where you trust it, with '
      'AutoModel….from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True) of transformers.'
    )
  raise FileNotFoundError(f'No {SINGLE} and no {INDEX} in {directory}: download them.')


def _indexed(directory: pathlib.Path) -> dict[str, str]:
  path = directory / INDEX
  files = read_json(path).get('weight_map')
  if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
    raise ValueError(f'{path} has no weight_map from tensors to files: download it again.')
  for file in sorted(set(files.values())):
    if pathlib.PurePath(file).name != file:
      raise ValueError(
        f'{path} names {file!r}, which is not a file beside it: take the model from where you trust it.'
      )
    if not (directory / file).is_file():
      raise FileNotFoundError(f'No {directory / file}, which {INDEX} names: download it again.')
    with open_tensors(directory / file) as stored:
      lost = {name for name, where in files.items() if where == file} - set(stored.keys())
    if lost:
      raise ValueError(
        f'{directory / file} lacks the tensor {min(lost)}, which {INDEX} places there: download both again.'
      )
  return files
