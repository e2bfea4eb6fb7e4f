"""A run's directory, which belongs to one configuration; and directories that are written completely or not at all.

`run.json` holds the resolved fields of a run, by which it is decided whether the run may resume; `config.gin` the text
that they came from.
"""

import contextlib
import errno
import fnmatch
import json
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import nlhf_jax
from nlhf_jax import untrusted
from nlhf_jax.runtime import atomic

CONFIG, JUDGE, _RUN = 'config.gin', 'judge.json', 'run.json'
# By which trackers know a run (`runtime.trackers`).
_TRACKED = '*.id'
# Names of parameters that hold keys, and keys as their makers begin them.
_KEY_NAMES = re.compile(
  r'(^|[._])(api_?key|key|token|secret|password|credentials?)$', re.IGNORECASE
)
_KEYS = re.compile(r'\b(sk-|hf_|gh[pousr]_|github_pat_|xox[abp]-|AKIA|AIza)[\w-]{12,}')
# Fields that say where a run runs, what it keeps and to whom it reports, not what it computes: they may differ when it resumes.
_MAY_CHANGE = (
  'Devices.data',
  'Devices.fsdp',
  'Devices.tensor',
  'Keep.*',
  'Experiment.save_every',
  'Experiment.reference_on_host',
  'Experiment.traced',
  'Traces.*',
  'decoder.*',
  'Experiment.writers',
  'wandb.*',
  'mlflow.*',
  'trackio.*',
)
# Fields that versions before did not keep: a directory without them goes on.
_KEPT_LATER = ('collection.judge',)


def check_resumable(run_dir: pathlib.Path, fields: Mapping[str, Any], begun: bool = True) -> None:
  """Refuses a directory that no run of these fields can have. Writes nothing.

  A run may resume on another mesh, and with other checkpoints kept.

  Args:
    run_dir: of the run; it need not exist.
    fields: resolved, by name, such as 'Experiment.num_steps'; values are JSON.
    begun: whether the run that it holds has anything to lose; if not, any other may have its place.

  Raises:
    FileExistsError: it is a file, or is below one.
    ValueError: it holds a run of other fields, or one of nlhf_jax 0.1.0.
  """
  for parent in (run_dir, *run_dir.parents):
    if parent.exists() and not parent.is_dir():
      raise FileExistsError(f'{parent} is a file, not a directory: name another run_dir.')
  if not begun:
    return
  if not (run_dir / CONFIG).is_file():
    if not _has_checkpoints(run_dir):
      return
    if not (run_dir / _RUN).is_file():
      raise ValueError(
        f'{run_dir} has checkpoints, but neither {CONFIG} nor {_RUN}, which tell by what they were trained: put these back, or '
        'name another run_dir.'
      )
  changed = _first_change(_read_fields(run_dir), _as_json(fields))
  if changed is not None:
    raise ValueError(
      f'{run_dir} holds a run of another configuration ({changed}): '
      'name another run_dir, delete it, or set the field as it was.'
    )


def check_owner(run_dir: pathlib.Path, checkpoint: pathlib.Path, fields: Mapping[str, Any]) -> None:
  """Refuses a checkpoint that another run wrote than the one that its directory belongs to.

  Args:
    run_dir: of the run; where it is none, there is nothing to compare.
    checkpoint: is in it.
    fields: that were written with it.

  Raises:
    ValueError: they are not the run's.
  """
  if not (run_dir / _RUN).is_file():
    return
  changed = _first_change(_as_json(fields), _read_fields(run_dir))
  if changed is not None:
    raise ValueError(
      f'Checkpoint {checkpoint} was written by another run than that of {run_dir / _RUN} ({changed}): put back the one that '
      'belongs there, or train the run again in another run_dir.'
    )


def create(
  run_dir: pathlib.Path, config: str, fields: Mapping[str, Any], begun: bool = True
) -> None:
  """Makes the directory and writes its configuration, completely or not at all.

  Args:
    run_dir: made if need be.
    config: text of the configuration.
    fields, begun: as of `check_resumable`. Of a run that has not begun the directory keeps no test of a judge, and no name by which
      trackers knew it, unless its fields are these.

  Raises:
    FileExistsError, ValueError: as `check_resumable`.
  """
  check_resumable(run_dir, fields, begun)
  if begun and (run_dir / CONFIG).is_file():
    return
  (run_dir / CONFIG).unlink(missing_ok=True)
  if not begun:
    _forget(run_dir, fields)
  run_dir.mkdir(parents=True, exist_ok=True)
  run = {'nlhf_jax': nlhf_jax.__version__, 'fields': dict(fields)}
  private = _may_hold_keys(fields, config)
  text = json.dumps(run, indent=2, sort_keys=True) + '\n'
  # The configuration comes last: a directory that has it has all.
  atomic.write_text(run_dir / _RUN, text, private=private)
  atomic.write_text(run_dir / CONFIG, config, private=private)


def _forget(run_dir: pathlib.Path, fields: Mapping[str, Any]) -> None:
  """Removes what a run that never saved, or whose checkpoints are gone, has left and the next would take for its own."""
  (run_dir / JUDGE).unlink(missing_ok=True)
  try:
    is_same = _first_change(_read_fields(run_dir), _as_json(fields)) is None
  except ValueError:  # Nobody knows whose directory it was.
    is_same = False
  for path in () if is_same else run_dir.glob(_TRACKED):
    path.unlink()


def _may_hold_keys(fields: Mapping[str, Any], config: str) -> bool:
  """Whether others should not read them: keys belong into the environment, but a user's own functions may take them."""
  named = any(isinstance(x, str) and _KEY_NAMES.search(name) for name, x in fields.items())
  return named or bool(_KEYS.search(config))


def read_config(run_dir: pathlib.Path) -> str:
  """The text of a run's configuration.

  Raises:
    FileNotFoundError: there is no run.
    ValueError: it is a run of nlhf_jax 0.1.0.
  """
  path = run_dir / CONFIG
  if not path.is_file():
    raise FileNotFoundError(
      f'No run in {run_dir} (it has no {CONFIG}): name the directory of a trained run.'
    )
  _check_version(run_dir)
  return untrusted.read_text(path)


@contextlib.contextmanager
def atomic_directory(output_dir: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A directory to write into, which takes its name once all is written; what fails half-way leaves nothing.

  Until then its name is one that nobody else has, so that of two that write to one place the later fails, and harms nothing; a kill leaves it.

  Raises:
    FileExistsError: there is something at output_dir, before or by now.
  """
  output_dir = pathlib.Path(output_dir)
  message = f'{output_dir} exists: name another directory, or delete it.'
  if output_dir.exists():
    raise FileExistsError(message)
  partial = output_dir.with_name(f'.{output_dir.name}.{uuid.uuid4().hex}.partial')
  partial.mkdir(parents=True)
  try:
    with atomic.naming(output_dir):
      yield partial
    try:
      partial.rename(output_dir)
    except OSError as error:
      if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        raise FileExistsError(message) from error
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _has_checkpoints(run_dir: pathlib.Path) -> bool:
  found = run_dir / 'checkpoints'
  return found.is_dir() and any(path.name.isdecimal() for path in found.iterdir())


def _first_change(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
  """In words; None: they are the same run."""
  for name in sorted(old.keys() | new.keys()):
    before, now = old.get(name, 'not set'), new.get(name, 'not set')
    is_new = name in _KEPT_LATER and name not in old
    if before != now and not is_new and not _may_change(name):
      return f'{name} was {before}, now {now}'
  return None


def _check_version(run_dir: pathlib.Path) -> None:
  if not (run_dir / _RUN).is_file():
    raise ValueError(
      f'{run_dir} is a run of nlhf_jax 0.1.0 (it has no {_RUN}): '
      'read it with that version (commit bb3ff7b).'
    )


def _read_fields(run_dir: pathlib.Path) -> dict[str, str]:
  _check_version(run_dir)
  path = run_dir / _RUN
  try:
    return _as_json(json.loads(path.read_text(encoding='utf-8'))['fields'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
    raise ValueError(
      f'{path} cannot be read ({reason}): name another run_dir, or delete it.'
    ) from error


def _as_json(fields: Mapping[str, Any]) -> dict[str, str]:
  """Each value as text, so that a tuple is a list, and NaN itself."""
  return {name: json.dumps(value, sort_keys=True) for name, value in fields.items()}


def _may_change(name: str) -> bool:
  """By the class and the field alone: 'scope/module.Keep.last' is Keep.last."""
  field = '.'.join(name.rpartition('/')[2].split('.')[-2:])
  return any(fnmatch.fnmatchcase(field, pattern) for pattern in _MAY_CHANGE)
