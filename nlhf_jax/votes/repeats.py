"""Votes that stand in two files, such as a file and its backup: they must not be counted twice in silence."""

import array
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nlhf_jax.votes.table import Row

# A row with none of them says too little to be known again.
_TELLING = ('prompt', 'response', 'response_a', 'time')


def check_files(paths: Sequence[pathlib.Path]) -> None:
  """Raises ValueError where two files are one, or are the same byte for byte."""
  for one, other in itertools.combinations(paths, 2):
    if one.is_file() and other.is_file() and _are_same(one, other):
      raise ValueError(
        f'{other} is the same as {one}, and would be counted twice: if it is a backup, move it elsewhere.'
      )


def _are_same(one: pathlib.Path, other: pathlib.Path) -> bool:
  if one.samefile(other):
    return True
  same_size = one.stat().st_size == other.stat().st_size
  # Two empty files repeat nothing.
  return same_size and one.stat().st_size > 0 and _digest(one) == _digest(other)


def _digest(path: pathlib.Path) -> bytes:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def warned(files: Iterable[tuple[pathlib.Path, Iterable[Row]]]) -> Iterator[Row]:
  """The rows of all files; a line in the log for each two of which the smaller has half its rows in the other."""
  hashes: dict[pathlib.Path, Any] = {}
  for path, rows in files:
    own = hashes.setdefault(path, array.array('q'))
    for row in rows:
      if any(row.get(name) is not None for name in _TELLING):
        own.append(hash(tuple(str(value) for value in row.values())))
      yield row
  found = {path: np.unique(np.frombuffer(own, np.int64)) for path, own in hashes.items() if own}
  for one, other in itertools.combinations(found, 2):
    number = len(np.intersect1d(found[one], found[other], assume_unique=True))
    if 2 * number >= min(len(found[one]), len(found[other])):
      logging.warning(
        '%d different rows of %s are in %s too, and counted twice: if one is a backup, move it elsewhere.',
        *(number, other, one),
      )
