"""Games of several voters, from files: a table of each, or all in one.

| file           | what                                                                                              |
|----------------|---------------------------------------------------------------------------------------------------|
| several CSV    | a voter's game each, as `sources.read_table` reads it, of the same alternatives; named by the files |
| .npz           | arrays `preference` [voters, alternatives, alternatives], and perhaps `weights`, `labels`, `voters` |
| .json          | an object with the same fields                                                                     |

A pair that a voter never compared is NaN (null), and gets the mean of those who did.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from nlhf_jax import untrusted
from nlhf_jax.games import sources

_FIELDS = ('preference', 'weights', 'labels', 'voters')


class Voters(NamedTuple):
  """Voters, and what each prefers."""

  names: tuple[str, ...]
  # Of the alternatives.
  labels: tuple[str, ...]
  # P_u; NaN: never compared.
  preference: Float[np.ndarray, 'U Y Y']
  # None: all alike.
  weights: Float[np.ndarray, 'U'] | None = None


def is_population(paths: Sequence[str]) -> bool:
  """Whether files hold the games of several voters."""
  return len(paths) > 1 or pathlib.Path(paths[0]).suffix in ('.npz', '.json')


def read(paths: Sequence[str]) -> Voters:
  """The voters of some files.

  Raises:
    FileNotFoundError, ValueError: names the file, and what is wrong with it.
  """
  for path in map(pathlib.Path, paths):
    if not path.is_file():
      raise FileNotFoundError(f'No file {path}: name a CSV of each voter, or one .npz or .json.')
  if len(paths) > 1:
    return _from_tables({path: sources.read_table(pathlib.Path(path)) for path in paths})
  path = pathlib.Path(paths[0])
  try:
    return _from_fields(_fields(path))
  except (ValueError, TypeError, OverflowError, OSError) as error:
    raise ValueError(f'{path}: {untrusted.message(str(error))}') from error


def filled(voters: Voters) -> tuple[Voters, int]:
  """With the mean of those who compared a pair for those who did not, and how many gaps there were.

  Raises:
    ValueError: nobody compared two alternatives; names them.
  """
  known = ~np.isnan(voters.preference)
  number = known.sum(axis=0)
  for i, j in np.argwhere(number == 0):
    raise ValueError(
      f'No voter compared {voters.labels[i]} with {voters.labels[j]}: have them compared, or leave one out.'
    )
  mean = np.where(known, voters.preference, 0).sum(axis=0) / number
  preference = np.where(known, voters.preference, mean)
  return voters._replace(preference=preference), int(np.sum(~known)) // 2


def _from_tables(tables: Mapping[str, sources.Table]) -> Voters:
  labels = next(iter(tables.values())).labels
  rows = []
  for path, table in tables.items():
    if sorted(table.labels) != sorted(labels):
      odd = sorted(set(table.labels) ^ set(labels))[0]
      raise ValueError(
        f'{path}: voters must compare the same alternatives, {odd!r} is not in all files.'
      )
    order = [table.labels.index(label) for label in labels]
    rows.append(table.preference[np.ix_(order, order)])
  names = tuple(pathlib.Path(path).stem for path in tables)
  return Voters(names if len(set(names)) == len(names) else tuple(tables), labels, np.stack(rows))


def _fields(path: pathlib.Path) -> Mapping[str, Any]:
  if path.suffix == '.npz':
    return untrusted.read_npz(path)
  try:
    content = untrusted.parse_json(path.read_bytes())
  except untrusted.ContentError as error:
    raise ValueError(f'line {error.line}: {error}') from None
  if not isinstance(content, dict):
    raise ValueError(f'must hold an object with the fields {", ".join(_FIELDS)}')
  return content


def _from_fields(fields: Mapping[str, Any]) -> Voters:
  for name in fields:
    if name not in _FIELDS:
      raise ValueError(f'field {untrusted.quoted(name)} is none of {", ".join(_FIELDS)}')
  if 'preference' not in fields:
    raise ValueError("field 'preference' is missing: [voters, alternatives, alternatives]")
  preference = np.asarray(fields['preference'], np.float64)
  if preference.ndim != 3 or preference.shape[1] != preference.shape[2] or not preference.size:
    raise ValueError(
      f'preference must be [voters, alternatives, alternatives], got shape {preference.shape}'
    )
  names = [str(x) for x in fields.get('voters', range(len(preference)))]
  if len(names) != len(preference):
    raise ValueError(f'{len(names)} voters are named, preference has {len(preference)}')
  labels = fields.get('labels')
  labels = None if labels is None else [str(x) for x in labels]
  checked = [_checked(name, one, labels) for name, one in zip(names, preference, strict=True)]
  weights = fields.get('weights')
  weights = None if weights is None else np.asarray(weights, np.float64)
  stacked = np.stack([one.preference for one in checked])
  return Voters(tuple(names), checked[0].labels, stacked, weights)


def _checked(name: str, preference: Float[np.ndarray, 'Y Y'], labels: Sequence[str] | None):
  itself = np.eye(len(preference), dtype=bool) & np.isnan(preference)
  try:
    return sources.from_matrix(np.where(itself, 0.5, preference), labels)
  except ValueError as error:
    raise ValueError(f'voter {name}: {error}') from error
