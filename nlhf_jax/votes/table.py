"""The table of votes: one row for each time that someone compared two responses, whoever did.

People, judges and models write it; preference models, rankings and games are made from it. A row is a dictionary, in files
one JSON object a line:

| field                  | what                                                                                     |
|------------------------|------------------------------------------------------------------------------------------|
| a, b                   | who is compared: names of models, policies or candidates; different ones                   |
| verdict                | 'a', 'b', 'tie' or 'both_bad'                                                              |
| probability            | in its place: P(a ≻ b), a judge's                                                          |
| prompt                 | its text or its id                                                                         |
| messages               | where it is a conversation: [{"role": "user", "content": …}, …], of which prompt is the transcript |
| response_a, response_b | what was compared                                                                          |
| voter, judge           | who voted; which kind of judge: 'human', a model's name                                    |
| order                  | 'ab' or 'ba': who was shown first                                                          |
| x                      | numbers by name: a's features less b's, such as {"tokens": 120}                            |
| time, seed, weight     | seconds since 1970; of what was drawn, responses or their order; how many equal votes it is      |
| split                  | 'train' or another: what the vote is meant for                                             |

A verdict or a probability is needed, and what it is about: `a` and `b`, both responses, or all four. The rest is null or
absent where unknown; a voter that is blank, or NaN, is unknown, and no one voter. A judgement that failed is no row; but pairs of responses that training kept (`training.traces`), which
have a field `rollout` of their own in the file, stay there without a vote.
"""

import array
import hashlib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nlhf_jax import untrusted

Row = dict[str, Any]

VERDICTS = ('a', 'b', 'tie', 'both_bad')
ORDERS = ('ab', 'ba')
_TEXTS = ('a', 'b', 'prompt', 'response_a', 'response_b', 'voter', 'judge', 'split')
_NUMBERS = ('time', 'seed', 'weight')
FIELDS = (
  *_TEXTS[:3],
  'messages',
  'verdict',
  'probability',
  'order',
  'x',
  *_TEXTS[3:],
  *_NUMBERS,
)
# Of something that is not known.
UNKNOWN = -1
_SIGNS = {'ab': 1, 'ba': -1, None: 0}


def stable_hash(value: str) -> int:
  """The same number in every process, unlike `hash`."""
  return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], 'big')


class FieldError(ValueError):
  """A field is missing or malformed."""


class Votes(NamedTuple):
  """A table in columns, for statistics: N different votes, each with its count."""

  labels: tuple[str, ...]
  # Who is compared, by label.
  a: Int[np.ndarray, 'N']
  b: Int[np.ndarray, 'N']
  # Share of each of VERDICTS: all of one, or a probability's two parts.
  verdict: Float[np.ndarray, 'N 4']
  # How many equal votes this is.
  counts: Float[np.ndarray, 'N']
  # Numbers of their names; UNKNOWN: each vote has its own.
  voter: Int[np.ndarray, 'N']
  prompt: Int[np.ndarray, 'N']
  # Index into `judges`.
  judge: Int[np.ndarray, 'N']
  # 1: a was shown first, −1: b, 0: unknown.
  order: Int[np.ndarray, 'N']
  # a's features less b's.
  x: Float[np.ndarray, 'N C']
  judges: tuple[str, ...] = ('',)
  x_names: tuple[str, ...] = ()
  # Names of `voter`'s numbers, where they have some.
  voters: tuple[str, ...] = ()


def checked(row: Mapping[str, Any]) -> Row:
  """A row with every field of the schema, null where it has none.

  Raises:
    FieldError: names the field.
  """
  for name in row:
    if name not in FIELDS:
      raise FieldError(f'field {untrusted.quoted(name)} is none of a vote: {", ".join(FIELDS)}')
  result = {name: row.get(name) for name in FIELDS}
  result['voter'] = _known_voter(result['voter'])
  for name in _TEXTS:
    if result[name] is not None and not isinstance(result[name], str):
      raise FieldError(f'field {name!r} must be a string, got {type(result[name]).__name__}')
    if result[name] is not None:
      encodable(result[name], name)
  _check_both(result)
  for name in _NUMBERS:
    if result[name] is not None:
      result[name] = _number(result[name], name)
  if result['weight'] is not None and result['weight'] < 0:
    raise FieldError(f"field 'weight' must be 0 or more, got {result['weight']!r}")
  _check_choice(result, 'verdict', VERDICTS)
  _check_choice(result, 'order', ORDERS)
  _check_probability(result)
  result['x'] = _features(result['x'])
  if result['messages'] is not None:
    result['messages'] = messages_of(result['messages'], 'messages')
  return result


def is_missing(value: Any) -> bool:
  """Whether a field holds nothing: null, or NaN, as a column of numbers has it in Parquet."""
  return value is None or (isinstance(value, numbers.Real) and math.isnan(value))


def _known_voter(value: Any) -> Any:
  """None for all that names nobody, lest the votes of all who are unknown be one voter's."""
  blank = isinstance(value, str) and not value.strip()
  return None if blank or is_missing(value) else value


def messages_of(value: Any, field: str) -> list[dict[str, str]]:
  """The turns of a conversation, of each its role and its content alone.

  Raises:
    FieldError: it is no list of messages.
  """
  if not isinstance(value, list) or not value:
    raise FieldError(f'field {field!r} must be a list of messages, got {type(value).__name__}')
  found = []
  for number, message in enumerate(value):
    if not isinstance(message, Mapping):
      raise FieldError(
        f'field {field!r} must be a list of messages, got {untrusted.quoted(message)} in it'
      )
    for name in ('role', 'content'):
      if not isinstance(message.get(name), str) or not message[name].strip():
        raise FieldError(f'field {field}.{number} must have a text as its {name!r}')
    found.append({name: encodable(message[name], field) for name in ('role', 'content')})
  return found


def encodable(value: str, field: str) -> str:
  """The text, if it can be written.

  Raises:
    FieldError: it holds half of a character.
  """
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise FieldError(
      f'field {field!r} holds {value[error.start]!r} at character {error.start + 1}, half of a character'
    ) from None
  return value


def _check_both(row: Row) -> None:
  for one, other in (('a', 'b'), ('response_a', 'response_b')):
    if (row[one] is None) != (row[other] is None):
      raise FieldError(f'field {one if row[one] is None else other!r} is missing')
  if row['a'] is None and row['response_a'] is None:
    raise FieldError("field 'a' is missing")
  for name in ('a', 'b'):
    if row[name] is not None and not row[name].strip():
      raise FieldError(f'field {name!r} is empty')
  if row['a'] is not None and row['a'] == row['b']:
    raise FieldError(
      f"fields 'a' and 'b' are both {untrusted.quoted(row['a'])}: a vote compares two"
    )


def _number(value: Any, field: str) -> float:
  try:
    result = math.nan if isinstance(value, bool) else float(value)
  except (OverflowError, TypeError, ValueError):
    result = math.nan
  if not isinstance(value, numbers.Real) or not math.isfinite(result):
    raise FieldError(f'field {field!r} must be a finite number, got {untrusted.quoted(value)}')
  return result


def _check_choice(row: Row, field: str, choices: Sequence[str]) -> None:
  if row[field] is not None and row[field] not in choices:
    raise FieldError(
      f'field {field!r} must be one of {", ".join(choices)}, got {untrusted.quoted(row[field])}'
    )


def _check_probability(row: Row) -> None:
  if (row['verdict'] is None) == (row['probability'] is None):
    raise FieldError("needs one of the fields 'verdict' and 'probability'")
  if row['probability'] is not None:
    row['probability'] = _number(row['probability'], 'probability')
    if not 0 <= row['probability'] <= 1:
      raise FieldError(f"field 'probability' must be within [0, 1], got {row['probability']!r}")


def _features(value: Any) -> dict[str, float] | None:
  if value is None:
    return None
  if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
    raise FieldError("field 'x' must be numbers by name")
  return {encodable(name, 'x'): _number(number, f'x.{name}') for name, number in value.items()}


class _Codes(dict):
  """Numbers of names, in order of appearance; None is UNKNOWN."""

  def __missing__(self, name):
    self[name] = UNKNOWN if name is None else len(self) - (None in self)
    return self[name]

  def names(self) -> tuple[str, ...]:
    return tuple(name for name in self if name is not None)


def columns(rows: Iterable[Row]) -> Votes:
  """A table from its rows, as `checked` makes them.

  Rows are taken one at a time and their responses dropped: a million votes take some hundred megabytes.

  Raises:
    ValueError: no rows, or a row whose features are not those of the first.
  """
  labels, voters, prompts, judges = _Codes(), _Codes(), _Codes(), _Codes()
  names: tuple[str, ...] | None = None
  codes, numbers_ = array.array('i'), array.array('d')
  for row in rows:
    if row['a'] is None:
      raise ValueError(
        'The votes do not say whose responses they compare: fields a and b are needed here.'
      )
    x = row['x'] or {}
    names = tuple(x) if names is None else names
    if set(x) != set(names):
      raise ValueError(
        f'A vote on {row["a"]!r} and {row["b"]!r} has the features {sorted(x)}, the first vote {sorted(names)}: '
        'all need the same.'
      )
    codes.extend((labels[row['a']], labels[row['b']], voters[row['voter']], prompts[row['prompt']]))
    codes.extend((judges[row['judge'] or ''], _SIGNS[row['order']]))
    numbers_.append(1.0 if row['weight'] is None else row['weight'])
    numbers_.extend(_shares(row))
    numbers_.extend(x[name] for name in names)
  if not codes:
    raise ValueError('There are no votes.')
  a, b, voter, prompt, judge, order = np.array(codes, np.int32).reshape(-1, 6).T
  table = np.array(numbers_).reshape(len(a), -1)
  count, verdict, x = table[:, 0], table[:, 1:5], table[:, 5:]
  known = judges.names(), names or (), voters.names()
  return Votes(labels.names(), a, b, verdict, count, voter, prompt, judge, order, x, *known)


def _shares(row: Row) -> tuple[float, ...]:
  """Of each of VERDICTS."""
  if row['verdict'] is None:
    return (row['probability'], 1 - row['probability'], 0.0, 0.0)
  return tuple(float(row['verdict'] == verdict) for verdict in VERDICTS)


def from_wins(wins: Float[np.ndarray, 'Y Y'], labels: Sequence[str]) -> Votes:
  """Votes of a matrix of counts, wins[i, j] of i over j, of which no more is known.

  A half is half a vote for each side: a matrix does not say which of them were ties.
  """
  a, b = np.nonzero(wins)
  return from_counts(a, b, np.eye(4)[np.zeros(len(a), np.int64)], wins[a, b], labels)


def from_counts(
  a: Int[np.ndarray, 'N'],
  b: Int[np.ndarray, 'N'],
  verdict: Float[np.ndarray, 'N 4'],
  count: Float[np.ndarray, 'N'],
  labels: Sequence[str],
) -> Votes:
  """Votes of which nothing is known but who was compared and what came out."""
  size = len(a)
  unknown = np.full(size, UNKNOWN, np.int32)
  zeros = np.zeros(size, np.int32)
  pair = np.asarray(a, np.int32), np.asarray(b, np.int32)
  x = np.zeros((size, 0))
  return Votes(tuple(labels), *pair, verdict, count, unknown, unknown, zeros, zeros, x)


def wins(votes: Votes) -> Float[np.ndarray, 'Y Y']:
  """wins[i, j]: votes for i over j, ties half on both sides; what was bad on both sides says nothing of the two."""
  size = len(votes.labels)
  result = np.zeros((size, size))
  for_a, for_b, tie, _ = (votes.counts[:, None] * votes.verdict).T
  np.add.at(result, (votes.a, votes.b), for_a + tie / 2)
  np.add.at(result, (votes.b, votes.a), for_b + tie / 2)
  return result


def wins_of_voters(votes: Votes) -> tuple[tuple[str, ...], Float[np.ndarray, 'U Y Y']]:
  """The voters by name, and the `wins` of each; votes of unknown voters are left out.

  Raises:
    ValueError: no vote says whose it is.
  """
  known = np.unique(votes.voter[votes.voter != UNKNOWN])
  if not known.size:
    raise ValueError('No vote says whose it is: field voter is needed here.')
  names = tuple(votes.voters[u] if votes.voters else str(u) for u in known)
  return names, np.stack([wins(select(votes, votes.voter == u)) for u in known])


def counted_together(votes: Votes) -> tuple[Votes, Int[np.ndarray, 'N']]:
  """Equal votes as one with their count, and which of them each was."""
  columns = [votes.a, votes.b, votes.voter, votes.prompt, votes.judge, votes.order]
  number = np.zeros(len(votes.a), np.int64)
  # Column by column, for a sort of rows takes ten times as long.
  for column in (*columns, *votes.verdict.T, *votes.x.T):
    _, code = np.unique(column, return_inverse=True)
    if code.max(initial=0):
      _, number = np.unique(number * (code.max() + 1) + code, return_inverse=True)
  _, first, inverse = np.unique(number, return_index=True, return_inverse=True)
  inverse = inverse.ravel()
  counts = np.bincount(inverse, weights=votes.counts)
  return select(votes, first)._replace(counts=counts), inverse


def select(votes: Votes, chosen: np.ndarray) -> Votes:
  """Some of them, by mask or by number."""
  columns = ('a', 'b', 'verdict', 'counts', 'voter', 'prompt', 'judge', 'order', 'x')
  return votes._replace(**{name: getattr(votes, name)[chosen] for name in columns})


def with_features(votes: Votes, names: Sequence[str]) -> Votes:
  """The votes with these features only.

  Raises:
    ValueError: they have no such feature.
  """
  for name in names:
    if name not in votes.x_names:
      raise ValueError(f'The votes have no feature {name!r}, only: {", ".join(votes.x_names)}.')
  x = votes.x[:, [votes.x_names.index(name) for name in names]]
  return votes._replace(x=x, x_names=tuple(names))
