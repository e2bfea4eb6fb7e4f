"""Gin files as they are read: what is no text, or opens what it never closes, is refused by file and line."""

import io
import pathlib
import tokenize

_PAIRS = {')': '(', ']': '[', '}': '{'}


def read(path: str) -> io.StringIO:
  """What gin reads in place of a file: its text, without a byte order mark.

  Raises:
    ValueError: it is no text in UTF-8, or a bracket or a quote in it is never closed.
  """
  data = pathlib.Path(path).read_bytes()
  try:
    text = data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data[: error.start].count(b'\n') + 1
    raise ValueError(
      f'{path}, line {line}: {data[error.start]:#04x} is no UTF-8: save the file as UTF-8.'
    ) from None
  if '\0' in text:
    raise ValueError(f'{path}, line {_line(text, text.index(chr(0)))}: holds a NUL: remove it.')
  check_closed(text, path)
  result = io.StringIO(text)
  result.name = path  # For gin's messages.
  return result


def check_closed(text: str, name: str) -> None:
  """Raises ValueError, with the line, where a bracket or a quote of three marks is never closed."""
  opened: list[tokenize.TokenInfo] = []
  try:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
      if token.string in _PAIRS.values():
        opened.append(token)
      elif token.string in _PAIRS and opened and opened[-1].string == _PAIRS[token.string]:
        opened.pop()
  except tokenize.TokenError as error:
    what, line = (
      (opened[-1].string, opened[-1].start[0]) if opened else ('a quote', error.args[1][0])
    )
    raise ValueError(f'{name}, line {line}: {what} is never closed.') from None
  except SyntaxError:
    pass  # gin says where.


def explain(error: SyntaxError) -> str:
  """gin's own complaint in one line: file, line, what, and the line itself."""
  what = ' '.join(str(error.msg).split('\n')[-1].split())
  place = f'{error.filename}, line {error.lineno}' if error.filename else 'A binding'
  line = (error.text or '').strip()
  return f'{place}: {what.rstrip(".")}: {line}' if line else f'{place}: {what}'


def _line(text: str, place: int) -> int:
  return text.count('\n', 0, place) + 1
