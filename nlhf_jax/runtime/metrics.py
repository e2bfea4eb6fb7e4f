"""What a run reports: metrics.jsonl, one object a line, and warnings.jsonl.

A writer is three functions. Of these files there is one here, and if it fails that ends the run; others are in `runtime.events`,
in `runtime.trackers`, or a user's own, and `runtime.background` calls them where they cannot hold training up, nor end it.
"""

import importlib.util
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax import untrusted
from nlhf_jax.runtime import atomic

METRICS, WARNINGS = 'metrics.jsonl', 'warnings.jsonl'


class About(NamedTuple):
  """What a writer is told of the run."""

  # Exists; a writer may keep files of its own in it.
  run_dir: pathlib.Path
  # Resolved configuration, by name; values are JSON.
  fields: Mapping[str, Any] = {}
  # Steps that are done: what was reported of later ones will be reported again.
  resume_step: int = 0


class Writer(NamedTuple):
  """What takes a run's reports; one thread calls it."""

  # (step, values by name), which may be NaN or infinite.
  scalars: Callable[[int, Mapping[str, float]], None]
  # (step, name, text): a line for people, such as a warning.
  text: Callable[[int, str, str], None] = lambda step, name, text: None
  # (whether the run ended without an error)
  close: Callable[[bool], None] = lambda fine: None


# Begins to write: what `Experiment.writers` holds.
MakeWriter = Callable[[About], Writer]


class Tracker(NamedTuple):
  """A `MakeWriter` that needs a package: who only reads a run's configuration need not have it."""

  package: str
  make: MakeWriter

  def __call__(self, about: About) -> Writer:
    """Begins to write."""
    return self.make(about)


def check_installed(writers: Sequence[MakeWriter]) -> None:
  """Before a run begins: what is missing must not be found out on the way.

  Raises:
    ValueError: a tracker's package is not installed.
  """
  for writer in writers:
    # Of a.b, a: to look for b would import a.
    package = writer.package.partition('.')[0] if isinstance(writer, Tracker) else None
    if package and package not in sys.modules and importlib.util.find_spec(package) is None:
      raise ValueError(
        f"trackers.{package} needs the package {package}, which is not installed: pip install 'nlhf_jax[{package}]', or take it "
        'out of Experiment.writers.'
      )


def files(about: About) -> Writer:
  """Appends to the run's own files. A resumed run first drops what it will write again.

  Raises:
    ValueError: a line of them is no JSON.
    OSError: they cannot be written.
  """
  metrics_path, warnings_path = (about.run_dir / name for name in (METRICS, WARNINGS))
  for path in (metrics_path, warnings_path):
    drop_later(path, about.resume_step)
  append_rows(metrics_path, [])  # What cannot be written must not cost a step.

  def scalars(step: int, values: Mapping[str, float]) -> None:
    """NaN and infinity become null, since JSON knows neither."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    append_rows(metrics_path, [{'step': step} | finite])

  def text(step: int, name: str, text: str) -> None:
    # Few are written, and in most runs none: then there is no file.
    append_rows(warnings_path, [{'step': step, 'name': name, 'text': text}])

  return Writer(scalars, text)


def append_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Appends to a metrics.jsonl, or to another such file of a run. Other programs see the rows at once.

  Args:
    path: made if need be; its directory exists.
    rows: lines to be.

  Raises:
    OSError: they cannot be written, with the reason; it is a link that leads out of its directory.
  """
  untrusted.check_link(path)
  try:
    with path.open('a', encoding='utf-8') as file:
      file.write(''.join(json.dumps(row) + '\n' for row in rows))
  except OSError as error:
    raise OSError(
      f'Writing {path} failed ({error.strerror}): see to its space and permissions, then run again; the run goes on from its '
      'newest intact checkpoint.'
    ) from error


def drop_later(
  path: pathlib.Path,
  step: int,
  step_of: Callable[[dict[str, Any]], int] = lambda row: row['step'],
) -> None:
  """Takes the lines of later steps out of a file of a run, if it is there; a kill in between loses nothing.

  Args:
    path: JSONL; a last line that a kill has truncated goes too.
    step: the last one that stays.
    step_of: of a line.

  Raises:
    OSError: it is a link that leads out of its directory.
  """
  untrusted.check_link(path)
  if path.is_file():
    kept = [row for row in read_rows(path) if step_of(row) <= step]
    atomic.write_text(path, ''.join(json.dumps(row) + '\n' for row in kept))


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics.jsonl, or of another such file of a run; none where there is no file.

  A last line that a kill has truncated is dropped.

  Raises:
    ValueError: another line is no JSON, or no object.
  """
  if not path.is_file():
    return []
  # Of bytes: texts may hold characters that end a line elsewhere.
  lines, rows = path.read_bytes().splitlines(), []
  for number, line in enumerate(lines, start=1):
    try:
      row = untrusted.parse_json(line)
      if not isinstance(row, dict):
        raise untrusted.ContentError(f'expected an object, got {type(row).__name__}')
      rows.append(row)
    except untrusted.ContentError as error:
      if number < len(lines):
        raise ValueError(f'{path}:{number} is no JSON ({error}): delete that line.') from error
  return rows
