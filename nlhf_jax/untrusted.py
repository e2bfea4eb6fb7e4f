"""What others wrote: read without believing it, and shown without obeying it.

Reading: a file is text in UTF-8, JSON or arrays, or one line says where it is not. Showing: labels, prompts and responses may hold
escape sequences that a terminal obeys, letters that turn lines around, markup of `rich` and formulas of spreadsheets. Writing: a directory may
hold links to files that are not its own.
"""

import json
import math
import os
import pathlib
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import rich.text

# Of a value that a message quotes, and of a message.
_QUOTED, _MESSAGE = 120, 600
# What begins a formula in a spreadsheet.
_FORMULA = ('=', '+', '-', '@', '\t', '\r')


class ContentError(ValueError):
  """A content is not what it should be."""

  def __init__(self, problem: str, line: int = 1):
    """The problem, and the line, from 1, that it is in."""
    super().__init__(problem)
    self.line = line


def decode(data: bytes) -> str:
  """The text, without a byte order mark.

  Raises:
    ContentError: it is not UTF-8.
  """
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    # Counted after the mark.
    bad, start = error.object[error.start], error.start
    line_start = error.object.rfind(b'\n', 0, start) + 1
    problem = f'not UTF-8 (byte {bad:#x} at column {start - line_start + 1})'
    raise ContentError(problem, error.object.count(b'\n', 0, start) + 1) from None


def parse_json(data: bytes) -> Any:
  """The value of a JSON text in UTF-8.

  Raises:
    ContentError: it is none; a key stands twice in an object; it is nested too deep; a number has thousands of digits.
  """
  text = decode(data)
  try:
    return json.loads(text, object_pairs_hook=_object)
  except ContentError:
    raise
  except json.JSONDecodeError as error:
    raise ContentError(f'not JSON ({error.msg} at column {error.colno})', error.lineno) from None
  except RecursionError:
    raise ContentError('not JSON that can be read: nested too deep') from None
  except ValueError:
    raise ContentError('not JSON that can be read: a number has more than 4,300 digits') from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for number, name in enumerate(names) if name in names[:number])
    raise ContentError(f'the key {quoted(twice)} stands twice in one object')
  return found


def read_text(path: str | pathlib.Path) -> str:
  """The text of a file.

  Raises:
    ValueError: it is not UTF-8; names file and line.
  """
  return _placed(path, decode)


def read_json(path: str | pathlib.Path) -> Any:
  """The value of a JSON file.

  Raises:
    ValueError: as of `parse_json`; names file and line.
  """
  return _placed(path, parse_json)


def _placed(path: str | pathlib.Path, parse: Callable[[bytes], Any]) -> Any:
  try:
    return parse(pathlib.Path(path).read_bytes())
  except ContentError as error:
    raise ValueError(f'{path}:{error.line}: {error}.') from None


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz, without pickles; what a header claims must be in the file before memory is taken for it.

  Raises:
    ValueError: it is damaged, or no .npz; the message does not name the file.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.infolist():
        _check_header(archive, member)
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except _DAMAGED as error:
    problem = ' '.join(str(error).split()) or type(error).__name__
    raise ValueError(f'no intact .npz ({problem})') from None


# NumPy and zipfile meet them in damaged files.
_DAMAGED = (
  zipfile.BadZipFile,
  zlib.error,
  EOFError,
  KeyError,
  MemoryError,
  # Encrypted, or compressed in a way that is not known.
  RuntimeError,
  SyntaxError,
  ValueError,
)


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
  with archive.open(member) as file:
    shape, dtype, start = _header(file)
  if dtype.hasobject:
    raise ValueError(f'{member.filename} is a pickle, which could run any code')
  held = member.file_size - start
  if math.prod(shape) * dtype.itemsize != held:
    raise ValueError(f'{member.filename} claims {shape} of {dtype}, and holds {held} bytes')


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
  """Shape, type, and where the numbers begin."""
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  else:
    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
  return shape, dtype, file.tell()


def check_link(path: pathlib.Path) -> None:
  """Before something is written into a directory under a name that the user has not chosen: it must not land outside of it.

  Links within the directory are followed, and so are those to devices that take what comes, such as /dev/null.

  Raises:
    OSError: there is a link that leads out of the directory, or in a circle.
  """
  if not path.is_symlink():
    return
  target = pathlib.Path(os.path.realpath(path))
  is_inside = target.is_relative_to(os.path.realpath(path.parent)) and not target.is_symlink()
  if not is_inside and not target.is_char_device():
    raise OSError(
      f'{path} is a link to {target}, outside of its directory: nothing is written through it. Delete the link, or put what it leads to '
      'in its place.'
    )


def quoted(value: Any) -> str:
  """A value as messages quote it: in ASCII quotes, printable, and short."""
  if isinstance(value, str | bytes) and len(value) > _QUOTED:
    return f'{printable(repr(value[:_QUOTED]))}…'
  return shorten(printable(repr(value)), _QUOTED)


def message(text: str) -> str:
  """An error's message in one line that may be printed, whatever it quotes."""
  return shorten(printable(' '.join(text.split())), _MESSAGE)


def shorten(text: str, size: int) -> str:
  """The text, or its beginning and an ellipsis where it is longer."""
  return text if len(text) <= size else f'{text[: size - 1]}…'


def printable(text: str) -> str:
  """The text in one line; what would steer a terminal, or turn or hide letters, is written as an escape, such as \\x1b."""
  if text.isprintable():
    return text
  return ''.join(c if _is_visible(c) else c.encode('unicode_escape').decode() for c in text)


def _is_visible(character: str) -> bool:
  # Blanks of every width print as themselves.
  return character.isprintable() or unicodedata.category(character) == 'Zs'


def json_line(value: Any) -> str:
  """JSON in one line that may be printed, letters of all languages as they are."""
  text = json.dumps(value, ensure_ascii=False)
  return ''.join(c if _is_visible(c) else json.dumps(c)[1:-1] for c in text)


def as_text(text: str, style: str = '') -> rich.text.Text:
  """What `rich` prints as it is: neither markup nor the names of emoji are read in it."""
  return rich.text.Text(printable(text), style=style)


def csv_row(cells: Iterable[Any]) -> list[Any]:
  """Cells of a CSV of which a spreadsheet makes no formula: an apostrophe stands before a text that would be one.

  Numbers stay numbers, written as texts too.
  """
  return [f"'{cell}" if _is_formula(cell) else cell for cell in cells]


def _is_formula(cell: Any) -> bool:
  if not isinstance(cell, str) or not cell.lstrip(' ').startswith(_FORMULA):
    return False
  try:
    float(cell)
  except ValueError:
    return True
  return False
