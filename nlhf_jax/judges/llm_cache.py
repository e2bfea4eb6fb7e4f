"""Answers of servers, kept on disk by what was asked: no call that was answered is made again.

One line of JSON for each answer, appended in one write: a process that is killed leaves at most a line without its end,
which is passed over. Neither keys nor the texts that were asked are stored.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

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
    """Reads what is there, and writes nothing.

    Args:
      directory: made by `prepare`, if need be; None: answers are kept in memory, and end with the process.
    """
    self._answers: dict[str, bytes] = {}
    self._places: dict[str, int] = {}
    self._path = None if directory is None else pathlib.Path(directory) / _NAME
    self._file: BinaryIO | None = None
    if self._path is not None and self._path.exists():
      self._index(self._path)

  def __len__(self) -> int:
    return len(self._answers) + len(self._places)

  def get(self, key: str) -> Answer | None:
    """The answer, if there is one."""
    line = self._answers.get(key)
    if self._path is not None and key in self._places:
      with self._path.open('rb') as file:
        file.seek(self._places[key])
        line = file.readline()
    found = None if line is None else _parse(line)
    return None if found is None else found[1]

  def prepare(self) -> None:
    """Opens the file to append to: before anything is asked, so that what cannot be written costs no call.

    Raises:
      OSError: the directory or file cannot be made, or not be written to; the file is a link out of the directory.
    """
    if self._path is not None and self._file is None:
      self._file = _opened(self._path)

  def put(self, key: str, answer: Answer) -> None:
    """Keeps an answer.

    Raises:
      OSError: the disk is full, or as of `prepare`.
    """
    self.prepare()
    line = json.dumps({'key': key, **answer._asdict()}).encode() + b'\n'
    if self._file is None:
      self._answers[key] = line
      return
    if self._file.write(line) != len(line):
      raise OSError(f'{self._path}: an answer could not be written; is the disk full?')
    self._places[key] = self._file.tell() - len(line)

  def _index(self, path: pathlib.Path) -> None:
    place = 0
    with path.open('rb') as file:
      for line in file:
        if found := _parse(line):
          self._places[found[0]] = place
        place += len(line)


def _opened(path: pathlib.Path) -> BinaryIO:
  """To append lines to; a last line that was torn has an end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  untrusted.check_link(path)
  file = path.open('a+b', buffering=0)
  size = file.seek(0, os.SEEK_END)
  if size:
    file.seek(size - 1)
    if file.read(1) != b'\n':
      file.write(b'\n')
  return file


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
