"""Rows of files, one at a time: JSONL, JSON, CSV, any of them gzipped, Parquet, and directories of Arrow files.

An error names file and line; malformed lines can be passed over, and are counted.
"""

import codecs
import contextlib
import csv
import gzip
import io
import logging
import pathlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from nlhf_jax import untrusted
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
  yield from _parsed(path, _rows(path), parse, skip_malformed)


def read_lines(path: pathlib.Path, lines: Iterable[bytes], parse: Parse) -> Iterator[Any]:
  """Yields what `parse` makes of lines of a JSONL file, its first ones, that have been read; raises as `read` does."""
  return _parsed(path, _numbered_lines(lines), parse, skip_malformed=False)


def _parsed(
  path: pathlib.Path,
  rows: Iterable[tuple[int, Row | FieldError]],
  parse: Parse,
  skip_malformed: bool,
) -> Iterator[Any]:
  skipped = 0
  for place, row in rows:
    try:
      if isinstance(row, FieldError):
        raise row
      yield parse(row)
    except FieldError as error:
      if not skip_malformed:
        raise ValueError(f'{path}:{place}: {untrusted.message(str(error))}') from None
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


@contextlib.contextmanager
def _binary(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
  """The file, unzipped; raises ValueError where it was not zipped, or its end is lost."""
  opened = (gzip.open if path.suffix == '.gz' else open)(path, 'rb')
  try:
    with cast(io.BufferedIOBase, opened) as file:
      yield file
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise ValueError(f'{path}: no intact gzip file ({error}): copy it again.') from None


def _jsonl(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  with _binary(path) as file:
    yield from _numbered_lines(file)


def _numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Row | FieldError]]:
  for number, line in enumerate(lines, start=1):
    if line.strip():
      yield number, _parse_line(line)


def _parse_line(line: bytes) -> Row | FieldError:
  try:
    return _object(untrusted.parse_json(line))
  except untrusted.ContentError as error:
    return FieldError(str(error))


def _object(value: Any) -> Row | FieldError:
  if not isinstance(value, dict):
    return FieldError(f'expected a JSON object, got {type(value).__name__}')
  return value


def _json(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  """One array of objects; a file so named that has an object a line is read as JSONL."""
  with _binary(path) as file:
    first = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
  if first != b'[':
    yield from _jsonl(path)
    return
  with _binary(path) as file:
    content = file.read()
  try:
    rows = untrusted.parse_json(content)
  except untrusted.ContentError as error:
    raise ValueError(f'{path}:{error.line}: {error}.') from None
  for number, row in enumerate(rows, start=1):
    yield number, _object(row)


def _csv(path: pathlib.Path) -> Iterator[tuple[int, Row | FieldError]]:
  with _binary(path) as binary:
    file = io.TextIOWrapper(cast(IO[bytes], binary), encoding='utf-8-sig', newline='')
    try:
      reader = csv.DictReader(file, delimiter=sources.delimiter(file.readline()))
      file.seek(0)
      twice = [x for x, number in Counter(reader.fieldnames or ()).items() if number > 1]
      if twice:
        raise ValueError(f'{path}:1: the column {untrusted.quoted(twice[0])} stands twice.')
      for row in reader:
        yield reader.line_num, _csv_row(row, len(reader.fieldnames or ()))
    except csv.Error as error:
      raise ValueError(
        f'{path}:{reader.line_num}: no CSV ({error}): is a quote before it never closed?'
      ) from None
    except UnicodeDecodeError:
      raise _not_text(path) from None


def _csv_row(row: dict[str | None, Any], num_fields: int) -> Row | FieldError:
  if None in row or None in row.values():
    return FieldError(f'has not {num_fields} fields')
  if any('\0' in value for value in row.values()):
    return FieldError('holds a NUL: save the file as UTF-8')
  return {str(key): value if value != '' else None for key, value in row.items()}


def _not_text(path: pathlib.Path) -> ValueError:
  """Says in which line a file of text is none."""
  with _binary(path) as file:
    for number, line in enumerate(file, start=1):
      try:
        line.decode('utf-8')
      except UnicodeDecodeError as error:
        problem = f'not UTF-8 (byte {line[error.start]:#x} at column {error.start + 1})'
        return ValueError(f'{path}:{number}: {problem}.')
  return ValueError(f'{path}: not UTF-8.')


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
  import pyarrow
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      _check_columns(file.schema_arrow)
      # Threads would hold several row groups at a time.
      yield from _numbered(file.iter_batches(_ROWS_IN_MEMORY, use_threads=False))
  except _arrow_errors() as error:
    raise ValueError(f'{path}: no Parquet file ({untrusted.message(str(error))}).') from None


def _arrow(path: pathlib.Path) -> Iterator[tuple[int, Row]]:
  """A stream of Arrow, or all *.arrow of a directory."""
  import pyarrow

  files = [path]
  if path.is_dir():
    # What `datasets` made of the rows once, beside them.
    files = sorted(x for x in path.glob('*.arrow') if not x.name.startswith(('cache-', 'tmp')))
  if not files:
    raise FileNotFoundError(f'No *.arrow in {path}: name a file, or a directory of Arrow files.')
  for each in files:
    try:
      with pyarrow.memory_map(str(each)) as source:
        stream = pyarrow.ipc.open_stream(source)
        _check_columns(stream.schema)
        yield from _numbered(stream)
    except _arrow_errors() as error:
      raise ValueError(f'{each}: no stream of Arrow ({untrusted.message(str(error))}).') from None


def _arrow_errors() -> tuple[type[Exception], ...]:
  """What pyarrow raises of damaged files; OSError too, of which not all are Arrow's own."""
  import pyarrow

  return pyarrow.ArrowException, OSError, UnicodeDecodeError


def _check_columns(schema) -> None:
  """Raises ArrowInvalid where two columns have one name."""
  import pyarrow

  twice = [name for name, number in Counter(schema.names).items() if number > 1]
  if twice:
    raise pyarrow.ArrowInvalid(f'the column {untrusted.quoted(twice[0])} stands twice')


def _numbered(batches) -> Iterator[tuple[int, Row]]:
  number = 0
  for batch in batches:
    for row in batch.to_pylist():
      number += 1
      yield number, row
