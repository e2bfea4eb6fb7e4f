"""Result files that are replaced in one step: a reader finds the old one or the new one, and what fails leaves the old."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import IO, Any

from nlhf_jax import untrusted

# Errors of writing to a file that is open; they come without its name.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
  """Has the error of a full disk, and its like, say which file it was that could not be written."""
  try:
    yield
  except OSError as error:
    if error.errno in _OF_WRITING and error.filename is None:
      error.filename = str(path)
    raise


@contextlib.contextmanager
def replaced(
  path: pathlib.Path,
  mode: str = 'w',
  *,
  private: bool = False,
  follow: bool = False,
  **settings: Any,
) -> Iterator[IO]:
  """A file to write into, which takes its place once all is written and on disk.

  Directories above it are made if need be. A link within its directory stays one; what is no file, such as /dev/stdout, is written as it
  is.

  Args:
    path: of the file.
    mode: 'w' or 'wb'.
    private: a new file is for this user alone to read.
    follow: a link may lead anywhere: the user has named this very file, and not a directory that has it.
    **settings: further ones of `open`.

  Raises:
    OSError: as of `untrusted.check_link`, unless `follow`; it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  if not follow:
    untrusted.check_link(path)
  if path.exists() and not path.is_file():
    with path.open(mode, **settings) as file:
      yield file
    return
  path = path.resolve()
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    partial.unlink(missing_ok=True)
    if private:
      partial.touch(mode=0o600)
    with naming(path), partial.open(mode, **settings) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    if path.exists():
      shutil.copymode(path, partial)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(
  path: pathlib.Path, text: str, *, private: bool = False, follow: bool = False
) -> None:
  """The text in UTF-8, in place of what was there; see `replaced`."""
  with replaced(path, private=private, follow=follow, encoding='utf-8') as file:
    file.write(text)


def write_json(path: pathlib.Path, content: Any, *, follow: bool = False, **settings: Any) -> None:
  """A result for programs to read, in place of what was there; see `replaced`.

  Args:
    path: of the file.
    content: nothing that JSON does not know.
    follow: as of `replaced`.
    **settings: further ones of `json.dumps`.
  """
  write_text(path, json.dumps(content, **{'indent': 2, **settings}) + '\n', follow=follow)
