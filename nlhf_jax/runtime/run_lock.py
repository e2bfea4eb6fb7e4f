"""One writer to a directory at a time: a lock that the kernel takes back when its process ends, however it ends.

The lock is an flock on `.lock` in the directory, which says who has it: host, process, since when. What it says counts only while it is
locked: after a crash the file stays, nobody has it locked, and the next writer takes it. Readers need no lock.

A library of locks would add little to the one call of flock; here the file also names its holder, is gone when nobody writes, and tells
a writer whose directory has been removed.

Where it holds. On a local disk always. On NFS, Linux has the server lock the file for all clients, so that it holds between hosts too; after
a crash of a host it stays until the server has noticed (NFS 4: a lease, of 90 s by default). Mounts with `nolock` or `local_lock=flock`, Lustre
with `localflock`, and most buckets that are mounted as directories lock within one host alone. A file system that has no locks costs a
warning, not the run.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import IO

from nlhf_jax.runtime import atomic

FILE = '.lock'
# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class InUseError(BlockingIOError):
  """Another process writes to the directory."""


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[Callable[[], None]]:
  """Holds the lock of a directory, which is made if need be; if nothing has been written into it, it is removed again.

  Args:
    directory: of a run, or what a command writes to.

  Yields:
    A function that raises FileNotFoundError once the directory is not the one that was locked: it has been removed, moved or
    replaced. It is called at the end, too.

  Raises:
    InUseError: another process holds it, or this one does already.
    OSError: the directory cannot be made, or not be written to.
  """
  path = directory / FILE
  with _left_if_filled(directory), _locked(path, directory) as file:

    def check() -> None:
      if not _is_at(file, path):
        raise FileNotFoundError(
          f'{directory} has been removed, moved or replaced while it was being written to: nothing more is written. Run again, or '
          'where it is now.'
        )

    yield check
    check()


@contextlib.contextmanager
def file_held(path: pathlib.Path) -> Iterator[None]:
  """Holds the lock of one file that is appended to, `.NAME.lock` beside it; others may write to its directory, which is made if need be.

  A link stands for the file that it leads to.

  Raises:
    InUseError: another process holds it, or this one does already.
    OSError: the directory cannot be made, or not be written to.
  """
  file = path.resolve()
  with _left_if_filled(file.parent), _locked(file.with_name(f'.{file.name}{FILE}'), path):
    yield


@contextlib.contextmanager
def _left_if_filled(directory: pathlib.Path) -> Iterator[None]:
  """Of the directory and those above it, what is not there yet goes again if it stays empty."""
  new = [path for path in (directory, *directory.parents) if not path.exists()]
  try:
    yield
  finally:
    with contextlib.suppress(OSError):  # Not empty, as it should be.
      for path in new:
        path.rmdir()


@contextlib.contextmanager
def _locked(path: pathlib.Path, what: pathlib.Path) -> Iterator[IO]:
  file = _lock(path, what)
  try:
    with atomic.naming(path):
      _write_holder(file)
    yield file
  finally:
    # Removed while it is locked: who opens it from now on opens another.
    if _is_at(file, path):
      path.unlink()
    file.close()


def _lock(path: pathlib.Path, what: pathlib.Path) -> IO:
  """The file, open and locked; its directory is made if need be. `what` it stands for is named where it is refused."""
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      file = os.fdopen(_descriptor(path), 'a+', encoding='utf-8')
    except FileNotFoundError:
      # The last holder has just removed the directory: links, of which it could be something else, are not followed.
      continue
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        raise InUseError(
          f'{what} is in use: {_read_holder(file)} writes to it. Wait until it has ended, or name another.'
        ) from None
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        file.close()
        raise
      logging.warning(
        '%s cannot be locked (%s): see to it that nothing else writes to %s.',
        path,
        error.strerror,
        what,
      )
    if _is_at(file, path):
      return file
    file.close()  # Its holder has just removed it.


def _descriptor(path: pathlib.Path) -> int:
  """Of the file, made if need be. Its content is replaced, so it must be no link: none is made here, and any file may be behind one."""
  try:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
    raise OSError(
      f'{path} is a link to {os.readlink(path)}, and no lock is one: delete the link; if someone else made the directory, look for more '
      'of them.'
    ) from None


def _is_at(file: IO, path: pathlib.Path) -> bool:
  """Whether the open file is the one of this name."""
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.lstat())
  except (FileNotFoundError, NotADirectoryError):
    return False


def _write_holder(file: IO) -> None:
  now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
  file.truncate(0)
  file.write(json.dumps({'host': socket.gethostname(), 'process': os.getpid(), 'since': now}))
  file.flush()
  os.fsync(file.fileno())  # Other hosts read it.


def _read_holder(file: IO) -> str:
  file.seek(0)
  try:
    holder = json.loads(file.read())
    return f'process {holder["process"]} on {holder["host"]}, since {holder["since"]},'
  except (ValueError, KeyError, TypeError):
    return 'another process'  # Which has not written yet who it is.
