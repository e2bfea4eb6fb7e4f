"""A file of votes that one process appends to: each line is on disk before the next is made, and can be taken back.

Plain lines: what they hold is the caller's, and so is the lock, `run_lock.file_held`. Readers find either the file before a change or the
one after it.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable


class VoteFile:
  """A JSONL file that nobody else writes."""

  def __init__(self, path: pathlib.Path):
    """Opens it, made if need be; half a line that a crash left goes."""
    # A link stays one.
    self.path = path.resolve()
    self.path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not self.path.exists()
    self._file = _opened(self.path)
    _mend(self.path, self._file)
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
    new = _opened(beside)
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


def _opened(path: pathlib.Path) -> io.FileIO:
  """The file for appending, unbuffered."""
  return path.open('ab', buffering=0)


def _naming(error: OSError, path: pathlib.Path) -> OSError:
  """A failed write does not say of which file."""
  return OSError(error.errno, error.strerror or str(error), str(path))


def _write(file: io.FileIO, content: bytes) -> None:
  """All of it, and on disk when this returns."""
  rest = memoryview(content)
  while rest:
    rest = rest[file.write(rest) :]
  os.fsync(file.fileno())


def _mend(path: pathlib.Path, file: io.FileIO) -> None:
  """Ends the last line. Where a crash left half of one, it goes: its annotator was not told that it counts."""
  content = path.read_bytes()
  last = content[content.rfind(b'\n') + 1 :]
  if not last:
    return
  try:
    json.loads(last)
    file.write(b'\n')
  except ValueError:
    if last.startswith(b'{'):
      file.truncate(len(content) - len(last))


def _sync_directory(path: pathlib.Path) -> None:
  """Names of new files are on disk too; some systems cannot be asked to."""
  with contextlib.suppress(OSError):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
