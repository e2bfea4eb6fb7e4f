"""A run's directory, which belongs to one configuration; and directories that are written whole or not at all."""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

_CONFIG = 'config.gin'
# Macros that say where a run runs and what it leaves, not what it computes: they may differ when it goes on.
_MAY_CHANGE = re.compile(r'(MESH_\w+|REFERENCE_ON_HOST|SAVE_EVERY|KEEP_\w+) = ')


def check_resumable(run_dir: pathlib.Path, config: str) -> None:
  """Refuses a directory that no run of this configuration can have. Writes nothing.

  A run may go on on another mesh, and with other checkpoints kept.

  Raises:
    FileExistsError: it is a file, or lies below one.
    ValueError: it holds a run of another configuration.
  """
  for parent in (run_dir, *run_dir.parents):
    if parent.exists() and not parent.is_dir():
      raise FileExistsError(f'{parent} is a file, not a directory: name another --run_dir.')
  path = run_dir / _CONFIG
  if not path.is_file():
    return
  pairs = itertools.zip_longest(path.read_text().splitlines(), config.splitlines(), fillvalue='')
  for number, (old, new) in enumerate(pairs, start=1):
    may_change = _MAY_CHANGE.match(old)
    if old != new and not (may_change and new.startswith(may_change[0])):
      raise ValueError(
        f'{run_dir} holds a run of another configuration '
        f'({_CONFIG}:{number}: {old!r}, now {new!r}): name another --run_dir, or delete it.'
      )


def create(run_dir: pathlib.Path, config: str) -> None:
  """Makes the directory and writes its configuration, whole or not at all. Raises as `check`."""
  check_resumable(run_dir, config)
  if (run_dir / _CONFIG).is_file():
    return
  run_dir.mkdir(parents=True, exist_ok=True)
  partial = run_dir / f'{_CONFIG}.partial'
  partial.write_text(config)
  os.replace(partial, run_dir / _CONFIG)


def read_config(run_dir: pathlib.Path) -> str:
  """The configuration of a run.

  Raises:
    FileNotFoundError: there is no run.
  """
  path = run_dir / _CONFIG
  if not path.is_file():
    raise FileNotFoundError(
      f'No run in {run_dir} (it has no {_CONFIG}): name the directory of a trained run.'
    )
  return path.read_text()


@contextlib.contextmanager
def atomic_directory(output_dir: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory to write into, which takes its name once all is written; what fails half-way leaves nothing.

  Raises:
    FileExistsError: there is something at output_dir.
  """
  output_dir = pathlib.Path(output_dir)
  if output_dir.exists():
    raise FileExistsError(f'{output_dir} exists: name another directory, or delete it.')
  partial = output_dir.with_name(output_dir.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.rename(output_dir)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
