"""The votes of `nlhf judge`: rows of its judgements, and which of them a file has, so that a second run adds the others."""

import pathlib
from collections.abc import Iterator
from typing import Any

from nlhf_jax.judges.llm import Judgement, Question
from nlhf_jax.votes import files, table


def vote(judgement: Judgement, a: str, b: str) -> table.Row:
  """A judgement that has not failed as a row of the table, without fields that are unknown."""
  question, preference = judgement.question, judgement.preference
  row: dict[str, Any] = {'a': a, 'b': b, 'prompt': question.pair.prompt}
  if judgement.from_log_probs:
    row['probability'] = preference
  else:
    row['verdict'] = {1.0: 'a', 0.0: 'b', 0.5: 'tie'}[preference]
  row |= {'order': question.order, 'judge': question.model, 'time': judgement.time}
  row |= {'response_a': question.pair.a, 'response_b': question.pair.b}
  return {name: value for name, value in table.checked(row).items() if value is not None}


def key(question: Question, a: str, b: str) -> tuple[str | None, ...]:
  """What makes a vote another vote."""
  return (question.model, question.order, a, b, *question.pair)


def done(path: pathlib.Path) -> set[tuple[str | None, ...]]:
  """Keys of the votes that a file has.

  Raises:
    ValueError: a row is no vote.
  """
  return {_key_of_row(row) for row in votes(path)}


def _key_of_row(row: table.Row) -> tuple[str | None, ...]:
  """As `key`, of a pair whose labels are in alphabetical order."""
  names = ('judge', 'order', 'a', 'b', 'prompt', 'response_a', 'response_b')
  if row['a'] is not None and row['a'] > row['b']:
    order = {'ab': 'ba', 'ba': 'ab', None: None}[row['order']]
    row = row | {'a': row['b'], 'b': row['a'], 'order': order}
    row |= {'response_a': row['response_b'], 'response_b': row['response_a']}
  return tuple(row[name] for name in names)


def votes(path: pathlib.Path) -> Iterator[table.Row]:
  """The rows of a file of votes."""
  return files.read(path, table.checked)
