"""Responses to compare: read from files by label, and paired. People and LLMs are asked the same pairs.

- Every two labels are compared on the prompts that both answer. Prompts are the same where their texts are; where all rows
  of both labels have ids, where these are.
- Of several responses the n-th is compared with the n-th. What has no counterpart is left out, with a warning.
- Equal responses are not asked, and make no vote: their number is logged. The same pair twice is asked once.
- The labels of a pair are in alphabetical order, whichever was named first.
"""

import collections
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.votes import fields, files, table
from nlhf_jax.votes.table import FieldError, Row


class Response(NamedTuple):
  """What a label answered to a prompt."""

  prompt: str
  text: str
  # Of the prompt; None: its text says which it is.
  id: str | None = None


class Pair(NamedTuple):
  """Two responses to one prompt; the labels are in alphabetical order."""

  prompt: str
  a: str
  b: str
  response_a: str
  response_b: str


# By label, in the order of the files.
Responses = Mapping[str, Sequence[Response]]


def read(items: Iterable[str]) -> dict[str, list[Response]]:
  """The responses that are named.

  Args:
    items: LABEL=FILE with rows of {prompt, response} and perhaps id, one file or several for each label; or FILE with rows of
      {prompt, responses: {label: text, or {text}}}, as samples.jsonl of a tournament has them.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed, or a label of a samples.jsonl is in another file too.
  """
  found: dict[str, list[Response]] = {}
  sources: dict[str, list[tuple[str, bool]]] = collections.defaultdict(list)
  for item in items:
    label, name = _label_and_file(item)
    for who, responses in _read_file(label, name).items():
      for before, was_named in sources[who]:
        if before == name or not (was_named and label):
          raise ValueError(
            f'The label {who!r} is in {before} and in {name}: give one another name with --responses LABEL=FILE.'
          )
      sources[who].append((name, bool(label)))
      found.setdefault(who, []).extend(responses)
  return found


def _label_and_file(item: str) -> tuple[str, str]:
  """The label is empty where the file has its own."""
  # A file's own name may hold an equals sign.
  exists = pathlib.Path(item).exists()
  label, _, name = ('', '', item) if exists or '=' not in item else item.partition('=')
  if not pathlib.Path(name).exists():
    raise FileNotFoundError(
      f'No file {name}: write LABEL=FILE, or a samples.jsonl of `nlhf demo` or `nlhf win-rates`.'
    )
  return label, name


def _read_file(label: str, name: str) -> dict[str, list[Response]]:
  found: dict[str, list[Response]] = {}

  def parse(row: Row) -> dict[str, str]:
    return {label: _response(row.get('response'), 'response')} if label else _samples(row)

  for row in files.read(name, lambda row: (fields.text(row, 'prompt'), _id(row), parse(row))):
    prompt, identity, texts = row
    for who, text in texts.items():
      found.setdefault(who, []).append(Response(prompt, text, identity))
  return found


def _id(row: Row) -> str | None:
  found = row.get('id')
  if found is not None and not isinstance(found, str | int | float):
    raise FieldError(f"field 'id' must be a text or a number, got {type(found).__name__}")
  return None if found is None else table.encodable(str(found), 'id')


def _samples(row: Row) -> dict[str, str]:
  responses = row.get('responses')
  if not isinstance(responses, dict):
    raise FieldError(
      'field \'responses\' must be {label: {"text": …}}; write LABEL=FILE for a file of one label'
    )
  texts = {k: x.get('text') if isinstance(x, dict) else x for k, x in responses.items()}
  return {
    table.encodable(label, 'responses'): _response(x, f'responses.{label}.text')
    for label, x in texts.items()
  }


def _response(value: object, field: str) -> str:
  """A response may be empty: a policy may have nothing to say."""
  if not isinstance(value, str):
    raise FieldError(f'field {field!r} must be a string, got {type(value).__name__}')
  return table.encodable(value, field)


def pairs(found: Responses) -> list[Pair]:
  """What there is to ask.

  Raises:
    ValueError: there is nothing to compare, or one id stands for two prompts.
  """
  if len(found) < 2:
    named = ', '.join(found) or 'none'
    raise ValueError(
      f'A comparison needs two labels, got {named}: name another with --responses LABEL=FILE.'
    )
  asked: dict[Pair, None] = {}
  equal = 0
  for a, b in itertools.combinations(sorted(found), 2):
    for prompt, of_a, of_b in _shared(found, a, b):
      for response_a, response_b in zip(of_a, of_b, strict=False):
        if response_a == response_b:
          equal += 1
        else:
          asked[Pair(prompt, a, b, response_a, response_b)] = None
  if not asked:
    raise ValueError(
      f'No prompt has different responses of two of the labels {", ".join(found)} ({equal} pairs are equal): prompts, or the ids '
      'that all rows have, must be those of another label.'
    )
  if equal:
    logging.warning('%d pairs of equal responses are not asked, and make no vote.', equal)
  prompts = dict.fromkeys(x.prompt for label in sorted(found) for x in found[label])
  place = {prompt: number for number, prompt in enumerate(prompts)}
  return sorted(asked, key=lambda pair: place[pair.prompt])


def _shared(found: Responses, a: str, b: str) -> Iterator[tuple[str, list[str], list[str]]]:
  """The prompts that both labels answer, and what each answers."""
  by_id = all(x.id is not None for label in (a, b) for x in found[label])
  of_a, of_b = (_grouped(label, found[label], by_id) for label in (a, b))
  common = [key for key in of_a if key in of_b]
  if not common:
    logging.warning('%s and %s have no %s in common.', a, b, 'id' if by_id else 'prompt')
  uneven = [key for key in common if len(of_a[key]) != len(of_b[key])]
  if uneven:
    left_out = sum(abs(len(of_a[key]) - len(of_b[key])) for key in uneven)
    logging.warning(
      '%s and %s differ in the number of responses on %d prompts, such as %r (%d and %d): %d without a counterpart are left out.',
      *(a, b, len(uneven), uneven[0][:60], len(of_a[uneven[0]]), len(of_b[uneven[0]]), left_out),
    )
  for key in common:
    prompt = of_a[key][0].prompt
    if by_id and prompt != of_b[key][0].prompt:
      raise ValueError(f'The id {key!r} stands for other prompts under {a} and {b}.')
    yield prompt, [x.text for x in of_a[key]], [x.text for x in of_b[key]]


def _grouped(label: str, responses: Sequence[Response], by_id: bool) -> dict[str, list[Response]]:
  result: dict[str, list[Response]] = collections.defaultdict(list)
  for response in responses:
    key = str(response.id) if by_id else response.prompt
    result[key].append(response)
    if result[key][0].prompt != response.prompt:
      raise ValueError(f'The id {key!r} stands for two prompts under {label}.')
  return dict(result)
