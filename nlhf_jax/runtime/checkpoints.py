"""Checkpoints through orbax: a directory per step, written in the background, completely or not at all.

A step's directory holds arrays (parameter sets, the optimizer's state, the key, the step) and metadata: where the data
stood, sums of metrics, versions of packages, which reference the run is held to, and a fingerprint of every array. What
is read is compared with these fingerprints, however it is sharded; a checkpoint that cannot be read, or not as it was
written, is named, moved to quarantine, and the one before it taken.
"""

import contextlib
import functools
import logging
import math
import pathlib
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero
from nlhf_jax.runtime import checkpoint_files, processes, run_directory
from nlhf_jax.runtime.checkpoint_files import CorruptCheckpointError
from nlhf_jax.types import Params, PolicyParams, TrainState

_T = TypeVar('_T')


@functools.cache
def silence_threads() -> None:
  """Has a save that fails be told once, by what is raised: orbax and asyncio log it too, and TensorStore prints that nobody waits for it."""

  def is_news(record: logging.LogRecord) -> bool:
    by_asyncio = 'never retrieved' in record.getMessage()
    return not (record.exc_info and (by_asyncio or 'orbax' in record.pathname))

  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(is_news)
  before = sys.unraisablehook

  def unraisablehook(told):
    if str(told.exc_value) != 'Event loop is closed':
      before(told)

  sys.unraisablehook = unraisablehook


class Keep(NamedTuple):
  """Which checkpoints stay; any reason will do."""

  # The newest; None: all.
  last: Count | None = 2
  # Those whose step is a multiple of it.
  every: Count | None = None
  # Those with the best metric.
  best: CountOrZero = 0
  # Of the log lines.
  metric: str = 'loss'
  # Whether more is better.
  highest: bool = False

  def policy(self, worth: Mapping[int, float]) -> Any:
    """The same for orbax; `worth` is what each step's checkpoint is worth, and may be filled later."""
    if self.last is None:
      return managers.LatestN()
    reasons = [managers.LatestN(self.last)]
    if self.every is not None:
      reasons.append(managers.EveryNSteps(self.every))
    if self.best:
      reasons.append(_Best(self.best, worth))
    return managers.AnyPreservationPolicy(reasons)

  def worth_of(self, metrics: Mapping[str, float]) -> float:
    """The more, the better; −∞ where the metric is not known, or not a number."""
    value = metrics.get(self.metric, math.nan)
    if math.isnan(value):
      return -math.inf
    return value if self.highest else -value


class _Best(NamedTuple):
  """Keeps the checkpoints that are worth most. Orbax's own asks for metrics that it holds in memory, and forgets."""

  number: int
  worth: Mapping[int, float]

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Whether each stays."""
    del context
    known = [x.step for x in checkpoints if self.worth.get(x.step, -math.inf) > -math.inf]
    best = sorted(known, key=lambda step: self.worth[step])[-self.number :]
    return [x.step in best for x in checkpoints]


class Writer:
  """Saves the states of one run, in the background; use it as a context."""

  def __init__(self, directory: pathlib.Path, keep: Keep | None = None):
    """Opens a directory.

    Args:
      directory: of all steps of the run, made if need be.
      keep: which of them stay; None: the default.

    Raises:
      OSError: the directory cannot be made, or not be written to; it is a link that leads out of the run's.
    """
    untrusted.check_link(directory)
    self._directory, self._keep = directory, keep or Keep()
    self._worth = _read_worth(directory, self._keep) if self._keep.best else {}
    silence_threads()
    options = ocp.CheckpointManagerOptions(
      create=True,
      preservation_policy=self._keep.policy(self._worth),
      cleanup_tmp_directories=True,
    )
    try:
      self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
    except OSError as error:
      raise self._failed(error) from error
    self._check_writable()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is not None and jax.process_count() > 1:
      return  # The others may be gone: waiting for them would hide why.
    try:
      self.wait()
      self._raise_failure(self._manager.close)
    except OSError:
      with contextlib.suppress(Exception):  # What it died of, again.
        self._manager.close()
      if kind is None:  # Else that error is the one to report.
        raise

  def save(
    self,
    state: TrainState,
    metadata: dict[str, Any],
    metrics: dict[str, float] | None = None,
    saved: Sequence[str] | None = None,
  ) -> None:
    """Saves a state. Returns before it is written.

    Args:
      state: what to save; it may be donated to the next step at once.
      metadata: what else a resumed run needs to know, in JSON.
      metrics: by which the best are kept, a line of the log; that which `Keep` names need not be in each.
      saved: names of the parameter sets that are saved besides θ (`parameter_sets.saved`); None: all that the state has.

    Raises:
      FloatingPointError: a parameter is NaN or infinite; nothing is written.
      OSError: an earlier save has failed.
      ValueError: the directory holds this step, or a later one. Orbax would silently leave it as it is.
    """
    self.check()
    step, arrays = int(state.step), _arrays(state, saved)
    if name := checkpoint_files.first_not_finite(arrays['params']):
      raise FloatingPointError(
        f'The parameters are not finite after step {step} ({name}): it was not saved.'
      )
    latest = self._manager.latest_step()
    self._check_writable()
    if latest is not None and latest >= step:
      raise ValueError(
        f'{self._directory} already holds step {latest}, so step {step} was not saved: '
        'name another run_dir, or delete it.'
      )
    if self._keep.best and math.isfinite(worth := self._keep.worth_of(metrics or {})):
      metadata = metadata | {'metrics': {self._keep.metric: float(metrics[self._keep.metric])}}
      self._worth[step] = worth
    items = {
      checkpoint_files.ARRAYS: ocp.args.StandardSave(arrays),
      checkpoint_files.METADATA: ocp.args.JsonSave(
        checkpoint_files.describe(arrays, step, metadata)
      ),
    }
    arguments = ocp.args.Composite(**items)
    self._raise_failure(lambda: self._manager.save(step, args=arguments))

  def check(self) -> None:
    """Raises OSError, with the reason, where a save has failed."""
    self._raise_failure(self._manager.check_for_errors)

  def wait(self) -> None:
    """Returns once all is written. Raises as `check`."""
    self._raise_failure(self._manager.wait_until_finished)

  def _check_writable(self) -> None:
    """Raises OSError where no directory can be made. Orbax would find out on one of its threads, and leave the others waiting."""
    if processes.is_primary():
      probe = self._directory / f'.{uuid.uuid4().hex}'
      try:
        probe.mkdir()
        probe.rmdir()
      except OSError as error:
        raise self._failed(error) from error

  def _raise_failure(self, ask: Callable[[], Any]) -> None:
    try:
      ask()
    except Exception as error:  # Whatever a background thread died of.
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> OSError:
    return OSError(
      f'Saving to {self._directory} failed ({" ".join(str(error).split()) or type(error).__name__}): '
      'see to its space and permissions, then run again; the run goes on from its newest intact checkpoint.'
    )


def _read_worth(directory: pathlib.Path, keep: Keep) -> dict[int, float]:
  """What the checkpoints are worth that are there already."""
  result = {}
  for step in steps(directory):
    with contextlib.suppress(CorruptCheckpointError, OSError, ValueError):
      metadata = checkpoint_files.load_metadata(directory.resolve() / str(step))
      result[step] = keep.worth_of(metadata.get('metrics', {}))
  return result


def save(
  directory: pathlib.Path,
  state: TrainState,
  metadata: dict[str, Any] | None = None,
  saved: Sequence[str] | None = None,
) -> None:
  """Saves one state and waits until it is written. Arguments and errors as of `Writer.save`."""
  with Writer(directory, Keep(last=None)) as writer:
    writer.save(state, metadata or {}, saved=saved)


def steps(directory: pathlib.Path) -> list[int]:
  """Those saved in a directory, in order."""
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def latest_step(directory: pathlib.Path) -> int | None:
  """The newest step saved in a directory; None: there is none."""
  return max(steps(directory), default=None)


def restore(
  directory: pathlib.Path,
  like: TrainState,
  saved: Sequence[str] | None = None,
  *,
  quarantine: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
  """The newest intact state in a directory and its metadata, in the shapes, types and shardings of `like`.

  Parameter sets that are not saved, and the base beneath adapters, are those of `like`.

  Args:
    directory: of all steps of a run.
    like: arrays or their shapes.
    saved: as of `Writer.save`.
    quarantine: move corrupt checkpoints to `quarantine/` beside the directory, so that their steps can be saved again.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: an array is missing, left over, or of another shape; none of the checkpoints is intact; or nlhf_jax 0.1.0
      wrote them.
    OSError: what would be moved, or `quarantine/`, is a link that leads out of the run's directory.
  """
  expected = _arrays(like, saved)

  def load(path):
    metadata = _load_own_metadata(path)
    shapes = checkpoint_files.load_shapes(path)
    checkpoint_files.check_shapes(directory, shapes['params'], expected['params'])
    checkpoint_files.check_shapes(
      directory, shapes['opt_state'], expected['opt_state'], 'optimizer'
    )
    return checkpoint_files.load_arrays(path, expected, metadata), metadata

  arrays, metadata = _newest_intact(directory, load, quarantine)
  sets = dict(arrays['params'])
  params = PolicyParams(sets.pop('online'), {**like.params.sets, **sets}, like.params.base)
  return TrainState(arrays['step'], params, arrays['opt_state'], arrays['rng']), metadata


def restore_params(directory: pathlib.Path, like: Any, name: str) -> Params:
  """One parameter set of the newest intact checkpoint, in the shapes, types and shardings of `like`.

  Args:
    directory: of all steps of a run.
    like: arrays or their shapes; others are not read.
    name: as of `PolicyParams.named`: 'online', 'average', or a ring's member such as 'ring.2'.

  Raises:
    FileNotFoundError, ValueError: as `restore`; or there is no such set.
  """
  key, _, member = name.partition('.')

  def load(path):
    metadata = _load_own_metadata(path)
    found = checkpoint_files.load_shapes(path)['params']
    size = len(found[key]) if isinstance(found.get(key), list) else 0
    known = _names(found)
    if name not in known:
      raise ValueError(
        f'Checkpoint {directory} holds no parameter set {name!r}: name one of {known}.'
      )
    # A ring is restored with all its members, which are alike.
    wanted = (like,) * size if member else like
    checkpoint_files.check_shapes(directory, found[key], wanted)
    return checkpoint_files.load_arrays(path, {'params': {key: wanted}}, metadata, partial=True)

  found = _newest_intact(directory, load)['params'][key]
  return found[int(member)] if member else found


def _names(params: Any) -> list[str]:
  """Parameter sets by name, of a ring its members."""
  rings = {name: len(x) for name, x in params.items() if isinstance(x, list)}
  plain = [name for name, x in params.items() if x is not None and name not in rings]
  return sorted([*plain, *(f'{name}.{n}' for name, size in rings.items() for n in range(size))])


def read_metadata(directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
  """What a checkpoint holds beside its arrays; of the newest, or of a step.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: it cannot be read.
    ValueError: nlhf_jax 0.1.0 wrote it.
  """
  found = latest_step(directory) if step is None else step
  if found is None:
    raise FileNotFoundError(f'No checkpoint in {directory}: train that run first.')
  return checkpoint_files.load_metadata(directory / str(found))


def newest_metadata(directory: pathlib.Path) -> dict[str, Any]:
  """That of the newest intact checkpoint, whose arrays are the ones that are restored. Errors as of `restore`."""
  return _newest_intact(directory, _load_own_metadata)


def check_kind(directory: pathlib.Path, kind: str) -> None:
  """Refuses checkpoints of another kind of model, whose weights may have the same shapes.

  Args:
    directory: of all steps of a run.
    kind: such as 'PreferenceModel'.

  Raises:
    FileNotFoundError, ValueError: as `restore`; or it is of another kind.
  """
  found = newest_metadata(directory).get('model', kind)
  if found != kind:
    raise ValueError(
      f'{directory.parent} has trained a {found}, where a {kind} is needed: name a run of that.'
    )


def _load_own_metadata(path: pathlib.Path) -> dict[str, Any]:
  """The metadata of a checkpoint, which the run wrote in whose directory it is."""
  metadata = checkpoint_files.load_metadata(path)
  if 'fields' in metadata:
    run_directory.check_owner(path.parent.parent, path, metadata['fields'])
  return metadata


def _arrays(state: TrainState, saved: Sequence[str] | None) -> dict[str, Any]:
  """What of a state is saved."""
  sets = state.params.sets if saved is None else {name: state.params.sets[name] for name in saved}
  params = {'online': state.params.online, **sets}
  return {'step': state.step, 'params': params, 'opt_state': state.opt_state, 'rng': state.rng}


def _newest_intact(
  directory: pathlib.Path, load: Callable[[pathlib.Path], _T], quarantine: bool = False
) -> _T:
  """What `load` makes of the newest checkpoint that is not corrupt."""
  if quarantine:
    untrusted.check_link(directory)
  corrupt = []
  for step in reversed(steps(directory)):
    path = directory.resolve() / str(step)
    try:
      return _agreed(functools.partial(load, path))
    except CorruptCheckpointError as error:
      corrupt.append(f'{path}: {error}')
      logging.warning('Checkpoint %s is corrupt (%s): the one before it is taken.', path, error)
    if quarantine:
      _quarantine(path)
  if corrupt:
    raise ValueError(
      f'No intact checkpoint in {directory} ({"; ".join(corrupt)}): train that run again, in another run_dir.'
    )
  raise FileNotFoundError(f'No checkpoint in {directory}: train that run first.')


def _agreed(load: Callable[[], _T]) -> _T:
  """What every process reads; if it is corrupt for one, it is so for all."""
  try:
    result, error = load(), None
  except CorruptCheckpointError as caught:
    result, error = None, caught
  if jax.process_count() > 1:
    intact = multihost_utils.process_allgather(np.array(error is None))
    if error is None and not intact.all():
      error = CorruptCheckpointError(f'process {int(np.argmin(intact))} cannot read its shards')
  if error is not None:
    try:
      raise error
    finally:
      # By its traceback and this frame it would hold all that was read.
      del error
  return result


def _quarantine(path: pathlib.Path) -> None:
  """Moves a checkpoint to `quarantine/` beside the directory of all steps, under a name that is free."""
  if processes.is_primary():
    destination = path.parent.with_name('quarantine')
    untrusted.check_link(destination)
    destination.mkdir(exist_ok=True)
    number = sum(1 for other in destination.iterdir() if other.name.split('.')[0] == path.name)
    path.rename(destination / (f'{path.name}.{number}' if number else path.name))
  processes.barrier(f'quarantine {path.name}')
