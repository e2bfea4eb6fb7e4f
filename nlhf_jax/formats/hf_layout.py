"""What is common to all families of Hugging Face: how a tensor holds a leaf of ours, and which ids change places."""

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
    raise ValueError(f'config.json has {key} = {values[key]!r}: only {known!r} is supported.')
