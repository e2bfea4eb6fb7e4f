"""What a run reports: metrics.jsonl, one object a line, and the same as TensorBoard events."""

import json
import math
import pathlib

import tensorboardX

from nlhf_jax.runtime import atomic


class Writer:
  """Appends to a run's metrics. A resumed run first drops what it will write again."""

  def __init__(self, run_dir: pathlib.Path, *, resume_step: int = 0):
    """Opens the file.

    Args:
      run_dir: must exist.
      resume_step: lines of later steps are dropped.
    """
    self._path = run_dir / 'metrics.jsonl'
    kept = [row for row in read_rows(self._path) if row['step'] <= resume_step]
    # A kill in between loses nothing.
    atomic.write_text(self._path, ''.join(json.dumps(row) + '\n' for row in kept))
    self._file = self._path.open('a')
    # A run killed before its first checkpoint starts anew, and left events too.
    self._events = tensorboardX.SummaryWriter(str(run_dir), purge_step=resume_step + 1)

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    self._events.close()

  def scalars(self, step: int, values: dict[str, float]) -> None:
    """Writes the values of a step; NaN and infinity become null, since JSON knows neither."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._file.write(json.dumps({'step': step} | finite) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)


def read_rows(path: pathlib.Path) -> list[dict[str, float | int | None]]:
  """The rows of a metrics.jsonl; none where there is no file.

  A last line that a kill has truncated is dropped.

  Raises:
    ValueError: another line is no JSON.
  """
  if not path.is_file():
    return []
  lines, rows = path.read_text().splitlines(), []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f'{path}:{number} is no JSON ({error}): delete that line.') from error
  return rows
