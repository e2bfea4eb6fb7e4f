"""A file of votes that one process appends to: each line is on disk before the next is made, and can be taken back.

Plain lines: what they hold is the caller's, and so is the lock, `run_lock.file_held`. Readers find either the file before a change or the
one after it.
"""

import codecs
import contextlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable

from nlhf_jax.votes import files

# What a line that ends within a number, a word or an escape has left where JSON stops understanding it.
_BEGUN = re.compile(
  r'\s*|-|t|tr|tru|f|fa|fal|fals|n|nu|nul|\.(\d+[eE][+-]?)?|[eE][+-]?|\\?(u[0-9a-fA-F]{0,4})?'
)


def check_name(path: pathlib.Path) -> None:
  """Raises ValueError where a file is none that votes can be appended to, by its name."""
  if path.suffix != '.jsonl':
    raise ValueError(f'Votes are appended to JSONL, got {path}: name a file that ends in .jsonl.')


class VoteFile:
  """A JSONL file that nobody else writes."""

  def __init__(self, path: pathlib.Path, parse: files.Parse):
    """Opens it, made if need be; half a line that a crash left goes.

    Args:
      path: of the file.
      parse: raises FieldError where a row is none of the caller's; all are read before the file is changed.

    Raises:
      ValueError: it is no JSONL of such rows; it is as before.
    """
    check_name(path)
    # A link stays one.
    self.path = path.resolve()
    is_new = not self.path.exists()
    content = b'' if is_new else self.path.read_bytes()
    intact = _without_half(content)
    for _ in files.read_lines(path, io.BytesIO(intact), parse):
      pass
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self.path.open('ab', buffering=0)
    if len(intact) < len(content):
      self._file.truncate(len(intact))
    elif intact and not intact.endswith(b'\n'):
      _write(self._file, b'\n')
    if is_new:
      _sync_directory(self.path.parent)

  def close(self) -> None:
    """Lets go of the file."""
    self._file.close()

  def append(self, line: str) -> None:
    """Adds a line; it is on disk when this returns.

    Raises:
      OSError: it could not be written; the file is as before.
    """
    self._check_place()
    before = os.fstat(self._file.fileno()).st_size
    try:
      _write(self._file, f'{line}\n'.encode())
    except OSError as error:
      # No half of a line stays before the next vote.
      self._file.truncate(before)
      raise _naming(error, self.path) from error

  def remove_last(self, chosen: Callable[[bytes], bool]) -> None:
    """Writes the file without the last line that is chosen; all others stay byte for byte.

    Raises:
      OSError: it could not be written; the file is as before.
    """
    self._check_place()
    lines = self.path.read_bytes().splitlines(keepends=True)
    for number in reversed(range(len(lines))):
      if chosen(lines[number]):
        del lines[number]
        break
    beside = self.path.with_name(f'{self.path.name}.tmp')
    beside.unlink(missing_ok=True)
    new = beside.open('ab', buffering=0)
    try:
      shutil.copymode(self.path, beside)
      _write(new, b''.join(lines))
      os.replace(beside, self.path)
    except OSError as error:
      new.close()
      beside.unlink(missing_ok=True)
      raise _naming(error, self.path) from error
    self._file.close()
    self._file = new
    _sync_directory(self.path.parent)

  def _check_place(self) -> None:
    """Votes must not go to a file that an editor has since replaced."""
    is_there = self.path.exists()
    if not is_there or not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
      raise OSError(f'{self.path} was moved or replaced since the start: start again.')


def _naming(error: OSError, path: pathlib.Path) -> OSError:
  """A failed write does not say of which file."""
  return OSError(error.errno, error.strerror or str(error), str(path))


def _write(file: io.FileIO, content: bytes) -> None:
  """All of it, and on disk when this returns."""
  rest = memoryview(content)
  while rest:
    rest = rest[file.write(rest) :]
  os.fsync(file.fileno())


def _without_half(content: bytes) -> bytes:
  """Without the half of a line that a crash left: whoever voted was not told that it counts."""
  end = content.rfind(b'\n') + 1
  return content[:end] if _is_half(content[end:]) else content


def _is_half(line: bytes) -> bool:
  """Whether a JSON object begins so, and is not at its end."""
  if not line.startswith(b'{'):
    return False
  try:
    # Without the half of a character.
    text = codecs.getincrementaldecoder('utf-8')().decode(line)
    json.loads(text)
  except json.JSONDecodeError as error:
    if error.msg.startswith('Unterminated string'):
      return True
    rest = text[error.pos :]
    if 'escape' in error.msg:
      rest = text[text.rfind('\\') :]
    return _BEGUN.fullmatch(rest) is not None
  except (UnicodeDecodeError, RecursionError, ValueError):
    pass
  return False


def _sync_directory(path: pathlib.Path) -> None:
  """Names of new files are on disk too; some systems cannot be asked to."""
  with contextlib.suppress(OSError):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
