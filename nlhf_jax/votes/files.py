"""Rows of files, one at a time: JSONL, JSON, CSV, any of them gzipped, Parquet, and directories of Arrow files.

An error names file and line; malformed lines can be passed over, and are counted.
"""

import csv
import gzip
import io
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from nlhf_jax.games import sources
from nlhf_jax.votes.table import FieldError, Row

Parse = Callable[[Row], Any]

_ROWS_IN_MEMORY = 2_000


def read(path: str | pathlib.Path, parse: Parse, *, skip_malformed: bool = False) -> Iterator[Any]:
  """Yields what `parse` makes of each row of a file.

  Args:
    path: a file, or a directory as `datasets.save_to_disk` writes it.
    parse: raises FieldError where a row is malformed.
    skip_malformed: leave malformed rows out and log their number, where the default stops at the first.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed; names file, line and field.
  """
  path = pathlib.Path(path)
  skipped = 0
  for place, row in _rows(path):
    try:
      if isinstance(row, FieldError):
        raise row
      yield parse(row)
    except FieldError as error:
      if not skip_malformed:
        raise ValueError(f'{path}:{place}: {error}') from None
      skipped += 1
  if skipped:
    logging.warning('%s: skipped %d malformed rows.', path, skipped)


def _rows(path: pathlib.Path) -> Iterable[tuple[int, Row | FieldError]]:
  """Line numbers, or numbers of rows, and rows; an error in place of one that cannot be read."""
  if path.is_dir():
    return _arrow(path)
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}: name a file of votes.')
  kinds = {'.parquet': _parquet, '.csv': _csv, '.json': _json, '.arrow': _arrow}
  suffixes = [suffix for suffix in path.suffixes if suffix != '.gz']
  return kinds.get(suffixes[-1] if suffixes else '', _jsonl)(path)


def _binary(path: pathlib.Path) -> io.BufferedIOBase:
  opened = (gzip.open if path.suffix == '.gz' else open)(path, 'rb')
  return cast(io.BufferedIOBase, opened)


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  with _binary(path) as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        yield number, _parse_line(line)


def _parse_line(line: bytes) -> Row | FieldError:
  try:
    return _object(json.loads(line.decode('utf-8')))
  except UnicodeDecodeError as error:
    return FieldError(f'not UTF-8 (byte {line[error.start]:#x} at column {error.start + 1})')
  except json.JSONDecodeError as error:
    return FieldError(f'not JSON ({error.msg} at column {error.colno})')
  except RecursionError:
    return FieldError('not JSON that can be read: nested too deep')


def _object(value: Any) -> Row | FieldError:
  if not isinstance(value, dict):
    return FieldError(f'expected a JSON object, got {type(value).__name__}')
  return value


def _json(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  """One array of objects; a file so named that has an object a line is read as JSONL."""
  with _binary(path) as file:
    first = file.read(1024).lstrip()[:1]
  if first != b'[':
    yield from _jsonl(path)
    return
  with _binary(path) as file:
    content = file.read()
  try:
    rows = json.loads(content.decode('utf-8'))
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 (at byte {error.start}).') from None
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}:{error.lineno}: not JSON ({error.msg}).') from None
  for number, row in enumerate(rows, start=1):
    yield number, _object(row)


def _csv(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  with _binary(path) as binary:
    file = io.TextIOWrapper(cast(IO[bytes], binary), encoding='utf-8-sig', newline='')
    try:
      reader = csv.DictReader(file, delimiter=sources.delimiter(file.readline()))
      file.seek(0)
      for row in reader:
        if None in row or None in row.values():
          yield reader.line_num, FieldError(f'has not {len(reader.fieldnames or ())} fields')
        else:
          yield reader.line_num, {key: value if value != '' else None for key, value in row.items()}
    except UnicodeDecodeError as error:
      raise ValueError(f'{path}: not UTF-8 (at byte {error.start}).') from None


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
  import pyarrow
  import pyarrow.parquet

  try:
    file = pyarrow.parquet.ParquetFile(path)
  except pyarrow.ArrowInvalid as error:
    raise ValueError(f'{path}: no Parquet file ({error}).') from None
  with file:
    # Threads would hold several row groups at a time.
    yield from _numbered(file.iter_batches(_ROWS_IN_MEMORY, use_threads=False))


def _arrow(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
  """A stream of Arrow, or all *.arrow of a directory."""
  import pyarrow

  files = sorted(path.glob('*.arrow')) if path.is_dir() else [path]
  if not files:
    raise FileNotFoundError(f'No *.arrow in {path}: name a file, or a directory of Arrow files.')
  for each in files:
    try:
      with pyarrow.memory_map(str(each)) as source:
        yield from _numbered(pyarrow.ipc.open_stream(source))
    except pyarrow.ArrowInvalid as error:
      raise ValueError(f'{each}: no stream of Arrow ({error}).') from None


def _numbered(batches) -> Iterator[tuple[int, Row]]:
  number = 0
  for batch in batches:
    for row in batch.to_pylist():
      number += 1
      yield number, row
