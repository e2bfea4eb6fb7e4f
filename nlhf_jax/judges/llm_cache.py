"""Answers of servers, kept on disk by what was asked: no call that was answered is made again.

One line of JSON for each answer, appended in one write: a process that is killed leaves at most a line without its end,
which is passed over. Neither keys nor the texts that were asked are stored.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from nlhf_jax import untrusted
from nlhf_jax.judges.llm_answers import Answer, Position

_NAME = 'answers.jsonl'


def content_key(model: str, text: str, parameters: Mapping[str, Any]) -> str:
  """SHA-256 of what is asked of whom, and how it is sampled."""
  content = json.dumps([model, text, dict(parameters)], sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
  """Answers by `content_key`, in memory or in one file of a directory. Only their places in the file are in memory."""

  def __init__(self, directory: str | pathlib.Path | None = None):
    """Opens the cache.

    Args:
      directory: made if need be; None: answers are kept in memory, and end with the process.
    """
    self._answers: dict[str, bytes] = {}
    self._places: dict[str, int] = {}
    self._file = None
    if directory is not None:
      directory = pathlib.Path(directory)
      directory.mkdir(parents=True, exist_ok=True)
      self._path = directory / _NAME
      self._file = self._path.open('ab', buffering=0)
      self._index()

  def __len__(self) -> int:
    return len(self._answers) + len(self._places)

  def get(self, key: str) -> Answer | None:
    """The answer, if there is one."""
    line = self._answers.get(key)
    if line is None and key in self._places:
      with self._path.open('rb') as file:
        file.seek(self._places[key])
        line = file.readline()
    found = None if line is None else _parse(line)
    return None if found is None else found[1]

  def put(self, key: str, answer: Answer) -> None:
    """Keeps an answer.

    Raises:
      OSError: the disk is full.
    """
    line = json.dumps({'key': key, **answer._asdict()}).encode() + b'\n'
    if self._file is None:
      self._answers[key] = line
      return
    if self._file.write(line) != len(line):
      raise OSError(f'{self._path}: an answer could not be written; is the disk full?')
    self._places[key] = self._file.tell() - len(line)

  def _index(self) -> None:
    place, line = 0, b'\n'
    with self._path.open('rb') as file:
      for line in file:
        if found := _parse(line):
          self._places[found[0]] = place
        place += len(line)
    if not line.endswith(b'\n'):
      self._file.write(b'\n')


def _parse(line: bytes) -> tuple[str, Answer] | None:
  """Key and answer; None: the line is torn, or not one of ours."""
  try:
    row = untrusted.parse_json(line)
    positions = tuple(
      Position(token, tuple((name, float(value)) for name, value in choices))
      for token, choices in row['positions']
    )
    answer = Answer(row['text'], positions, int(row['num_tokens']), float(row['time']))
    numbers = [answer.time, *(value for position in positions for _, value in position.choices)]
    is_ours = isinstance(row['key'], str) and isinstance(answer.text, str)
    return (row['key'], answer) if is_ours and all(map(math.isfinite, numbers)) else None
  except (ValueError, KeyError, OverflowError, TypeError):
    return None
