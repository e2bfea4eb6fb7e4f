"""What is common to all families of Hugging Face: how a tensor holds a leaf of ours, and which ids change places."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax.types import EOS, PAD

Path = tuple[str, ...]
PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


class Rows(NamedTuple):
  """Rows of a tensor that holds several leaves, one below the other."""

  start: int
  stop: int
  # Of all leaves together.
  total: int


class Tensor(NamedTuple):
  """The tensor that holds a leaf of ours."""

  name: str
  # Linear layers are stored [out, in] there, [in, out] here.
  transposed: bool = False
  # Its rows are by token of the vocabulary, some of which have other ids there.
  by_token: bool = False
  # Where the leaf is in the tensor; None: it is all of it.
  rows: Rows | None = None


def moved_ids(pad_id: int, eos_id: int) -> dict[int, int]:
  """Our id → theirs, for the tokens whose ids differ: padding changes places with 0, then the end with 1."""
  ids = {number: number for number in (PAD, EOS, pad_id, eos_id)}
  for ours, theirs in ((PAD, pad_id), (EOS, eos_id)):
    place = next(number for number, token in ids.items() if token == theirs)
    ids[ours], ids[place] = ids[place], ids[ours]
  return {ours: theirs for ours, theirs in ids.items() if ours != theirs}


def our_ids(theirs: Sequence[int], moved: Mapping[int, int]) -> tuple[int, ...]:
  """Ours of some of their ids; `moved` is of `moved_ids`."""
  ours = {their: our for our, their in moved.items()}
  return tuple(ours.get(number, number) for number in theirs)


def expect(values: Mapping[str, Any], key: str, default: Any, known: Any) -> None:
  """Raises ValueError where a setting is not the only known one; `default` is what a missing one means."""
  if values.get(key, default) != known:
    raise ValueError(
      f'config.json has {key} = {values[key]!r}: only {known!r} is supported, so take another model.'
    )


def size(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
  """A whole number above 0; `default` is what null and a missing one mean, and None that there must be one.

  Raises:
    ValueError: it is none.
  """
  found = values.get(key)
  found = default if found is None else found
  if isinstance(found, bool) or not isinstance(found, int) or found < 1:
    raise ValueError(_wanted(values, key, 'a whole number above 0'))
  return found


def number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
  """A finite number above 0; default and errors as of `size`."""
  found = values.get(key)
  found = default if found is None else found
  if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
    raise ValueError(_wanted(values, key, 'a number above 0'))
  return float(found)


def number_or_none(values: Mapping[str, Any], key: str, default: float | None) -> float | None:
  """The same, but that null means none; `default` is what a missing one means."""
  return None if values.get(key, default) is None else number(values, key, default)


def flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
  """True or false; default and errors as of `size`."""
  found = values.get(key)
  found = default if found is None else found
  if not isinstance(found, bool):
    raise ValueError(_wanted(values, key, 'true or false'))
  return found


def numbers(values: Mapping[str, Any], key: str) -> tuple[float, ...]:
  """Finite numbers above 0; raises ValueError where they are none."""
  found = values.get(key)
  if not isinstance(found, list) or not found:
    raise ValueError(_wanted(values, key, 'a list of numbers'))
  return tuple(number({key: each}, key) for each in found)


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  """An object within config.json; empty where it is null or missing; raises ValueError where it is none."""
  found = values.get(key)
  if found is not None and not isinstance(found, Mapping):
    raise ValueError(_wanted(values, key, 'an object'))
  return found or {}


def of_layers(values: Mapping[str, Any], key: str, known: Sequence[Any]) -> list[Any] | None:
  """One of the known values for each layer; None where it is null, missing or empty; raises ValueError for all else."""
  found, layers = values.get(key), size(values, 'num_hidden_layers')
  if not found and not isinstance(found, bool | int):
    return None
  if not isinstance(found, list) or len(found) < layers or any(x not in known for x in found):
    raise ValueError(_wanted(values, key, f'a list of {known} for each of {layers} layers'))
  return found[:layers]


def _wanted(values: Mapping[str, Any], key: str, wanted: str) -> str:
  if key not in values:
    return f'config.json lacks {key}, {wanted}: download it again.'
  return f'config.json has {key} = {values[key]!r}, where {wanted} is needed: download it again.'
