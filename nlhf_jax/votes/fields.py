"""Fields of rows as others wrote them: each is what it should be, or an error names it."""

import math
from collections.abc import Mapping
from typing import Any

from nlhf_jax import untrusted
from nlhf_jax.votes import table
from nlhf_jax.votes.table import FieldError


def text(row: Mapping[str, Any], field: str) -> str:
  """A text that is there and is not blank.

  Raises:
    FieldError: it is not.
  """
  value = row.get(field)
  if value is None:
    raise FieldError(f'field {field!r} is missing')
  if not isinstance(value, str):
    raise FieldError(f'field {field!r} must be a string, got {type(value).__name__}')
  if not value.strip():
    raise FieldError(f'field {field!r} is empty')
  return table.encodable(value, field)


def number_of(row: Mapping[str, Any], field: str) -> float:
  """A finite number, or a text that is one, as in a CSV.

  Raises:
    FieldError: it is not.
  """
  value = row.get(field)
  try:
    result = math.nan if isinstance(value, str) and '_' in value else float(value)  # type: ignore[arg-type]
  except (OverflowError, TypeError, ValueError):
    result = math.nan
  if isinstance(value, bool) or not math.isfinite(result):
    raise FieldError(f'field {field!r} must be a number, got {untrusted.quoted(value)}')
  return result


def one_of(row: Mapping[str, Any], field: str, values: Mapping[Any, Any]) -> Any:
  """What the value stands for.

  Raises:
    FieldError: it is none of them.
  """
  value = row.get(field)
  if isinstance(value, (list, dict)) or value not in values:
    raise FieldError(
      f'field {field!r} must be one of {", ".join(map(str, values))}, got {untrusted.quoted(value)}'
    )
  return values[value]


def list_of(row: Mapping[str, Any], field: str) -> list:
  """A list.

  Raises:
    FieldError: it is not.
  """
  if not isinstance(row.get(field), list):
    raise FieldError(f'field {field!r} must be a list, got {type(row.get(field)).__name__}')
  return row[field]


def name_of(row: Mapping[str, Any], *fields: str) -> str | None:
  """The first of them that is there, as a string; a column of numbers has NaN where there is none."""
  for field in fields:
    if not table.is_missing(row.get(field)):
      return str(row[field])
  return None


def voter_of(row: Mapping[str, Any], *fields: str) -> str | None:
  """The first of them that says who voted: a blank says nobody."""
  names = (name_of(row, field) for field in fields)
  return next((name for name in names if name and name.strip()), None)


def signed(value: float) -> str:
  """Of strengths below zero where the first is better."""
  return 'tie' if value == 0 else 'a' if value < 0 else 'b'
