"""The files of `nlhf judge`: responses of each label, pairs of them, and votes that a second run adds to."""

import collections
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax.judges.llm import Judgement, Question, TextPair
from nlhf_jax.votes import files, table

Labels = tuple[str, str]


class Answered(NamedTuple):
  """A prompt, and responses to it."""

  prompt: str
  responses: list[str]


# Label -> id of a prompt, or its text -> what was answered.
Responses = dict[str, dict[str, Answered]]


def responses(items: Sequence[str]) -> Responses:
  """Reads LABEL=FILE, or FILE in the form of samples.jsonl.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed, or one id has two prompts.
  """
  result: Responses = {}
  for item in items:
    # A file's own name may hold an equals sign.
    label, _, name = ('', '', item) if pathlib.Path(item).is_file() else item.partition('=')
    if not pathlib.Path(name).is_file():
      raise FileNotFoundError(f'No file {item}: write --responses LABEL=FILE, or samples.jsonl.')
    parse = _labelled(label) if label else _sample
    for identity, prompt, found in files.read(name, parse):
      for who, text in found.items():
        _add(result.setdefault(who, {}), identity, prompt, text, name)
  return result


def _add(answered: dict[str, Answered], identity: str, prompt: str, text: str, name: str) -> None:
  entry = answered.setdefault(identity, Answered(prompt, []))
  if entry.prompt != prompt:
    raise ValueError(f'{name}: the id {identity!r} stands for two prompts.')
  entry.responses.append(text)


def _labelled(label: str):
  """Rows of one label."""

  def parse(row: table.Row) -> tuple[str, str, dict[str, str]]:
    prompt, response = _text(row, 'prompt'), _text(row, 'response')
    identity = row.get('id')
    return prompt if identity is None else str(identity), prompt, {label: response}

  return parse


def _sample(row: table.Row) -> tuple[str, str, dict[str, str]]:
  """Rows of {prompt, responses: {label: text, or {text}}}."""
  prompt, found = _text(row, 'prompt'), row.get('responses')
  if not isinstance(found, Mapping):
    raise table.FieldError(
      "field 'responses' must be responses by label; write LABEL=FILE for a file of one label"
    )
  rows = {k: v if isinstance(v, Mapping) else {'text': v} for k, v in found.items()}
  return prompt, prompt, {label: _text(value, 'text') for label, value in rows.items()}


def _text(row: Mapping[str, Any], field: str) -> str:
  value = row.get(field)
  if not isinstance(value, str):
    raise table.FieldError(f'field {field!r} must be a string, got {type(value).__name__}')
  return table.encodable(value, field)


def contests(found: Responses) -> list[tuple[Labels, TextPair]]:
  """Every two labels on every prompt that both answer; the k-th response of one meets the k-th of the other.

  Raises:
    ValueError: there are not two labels, one id has two prompts, or two labels answer no common prompt.
  """
  if len(found) < 2:
    raise ValueError(
      f'A comparison needs two labels, got {", ".join(found) or "none"}: name another with --responses LABEL=FILE.'
    )
  result: dict[tuple[Labels, TextPair], None] = {}
  for a, b in itertools.combinations(found, 2):
    common = [identity for identity in found[a] if identity in found[b]]
    if not common:
      raise ValueError(
        f'{a} and {b} answer no common prompt: their ids, or prompts, must be equal.'
      )
    for identity in common:
      one, other = found[a][identity], found[b][identity]
      if one.prompt != other.prompt:
        raise ValueError(f'The id {identity!r} stands for other prompts under {a} and {b}.')
      for pair in zip(one.responses, other.responses, strict=False):
        result[(a, b), TextPair(one.prompt, *pair)] = None
  return list(result)


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
  """Keys of the votes that a file has. A last line without its end, of a run that was killed, is taken off.

  Raises:
    ValueError: a row is no vote.
  """
  if not path.exists():
    return set()
  with path.open('r+b') as file:
    for last in collections.deque(file, maxlen=1):
      if not last.endswith(b'\n'):
        file.truncate(file.tell() - len(last))
  fields = ('judge', 'order', 'a', 'b', 'prompt', 'response_a', 'response_b')
  return {tuple(row[name] for name in fields) for row in votes(path)}


def votes(path: pathlib.Path) -> Iterator[table.Row]:
  """The rows of a file of votes."""
  return files.read(path, table.checked)
