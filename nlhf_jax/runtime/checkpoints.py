"""Checkpoints through orbax: a directory per step, written in the background, whole or not at all.

A step's directory holds `default` (arrays: parameter sets, the optimizer's state, the key, the step) and `metadata`: where the
data stood, sums of metrics, the configuration, versions of packages, which reference the run is held to, and a fingerprint
of every array. What is read is compared with these fingerprints, on whatever mesh it is read; a checkpoint that cannot be
read, or not as it was written, is named, put aside, and the one before it taken.
"""

import hashlib
import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as managers

from nlhf_jax.runtime import fingerprints
from nlhf_jax.types import Params, TrainState

_ARRAYS, _METADATA = 'default', 'run_metadata'
_PACKAGES = ('nlhf_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class CorruptCheckpointError(Exception):
  """A checkpoint cannot be read, or not as it was written."""


class Keep(NamedTuple):
  """Which checkpoints stay; any reason will do."""

  last: int | None = 2  # The newest; None: all.
  every: int | None = None  # Those whose step is a multiple of it.
  best: int = 0  # Those with the best metric.
  metric: str = 'loss'  # Of the log lines.
  highest: bool = False  # Whether more is better.

  def policy(self) -> Any:
    if self.last is None:
      return managers.LatestN()
    reasons = [managers.LatestN(self.last)]
    if self.every is not None:
      reasons.append(managers.EveryNSteps(self.every))
    if self.best:
      worth = lambda metrics: metrics[self.metric] if self.highest else -metrics[self.metric]
      reasons.append(
        managers.BestN(get_metric_fn=worth, n=self.best, keep_checkpoints_without_metrics=False)
      )
    return managers.AnyPreservationPolicy(reasons)


class Writer:
  """Saves the states of one run, in the background; use it as a context."""

  def __init__(self, directory: pathlib.Path, keep: Keep | None = None):
    """Args: directory of all steps of the run, made if need be; keep: which of them stay; None: the default."""
    self._directory, keep = directory, keep or Keep()
    options = ocp.CheckpointManagerOptions(
      create=True, preservation_policy=keep.policy(), cleanup_tmp_directories=True
    )
    try:
      self._manager = ocp.CheckpointManager(directory.resolve(), options=options)
    except OSError as error:
      raise self._failed(error) from error

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind, *_) -> None:
    if kind is not None and jax.process_count() > 1:
      return  # The others may be gone: waiting for them would hide why.
    try:
      self.wait()
    except OSError:
      if kind is None:  # Else that error is the one to tell of.
        raise
    finally:
      self._manager.close()

  def save(
    self, state: TrainState, metadata: dict[str, Any], metrics: dict[str, float] | None = None
  ) -> None:
    """Saves a state; the reference is left out, since another run holds it. Returns before it is written.

    Args:
      state: what to save; it may be donated to the next step at once.
      metadata: what else a resumed run needs to know, in JSON.
      metrics: by which the best are kept.

    Raises:
      OSError: an earlier save has failed.
      ValueError: the directory holds this step, or a later one. Orbax would leave it as it is, and say nothing.
    """
    self.check()
    step, saved = int(state.step), _saved(state)
    latest = self._manager.latest_step()
    if latest is not None and latest >= step:
      raise ValueError(
        f'{self._directory} already holds step {latest}, so step {step} was not saved: '
        'name another --run_dir, or delete it.'
      )
    metadata = _signed(
      metadata | {'step': step, 'fingerprints': fingerprints.fingerprint_arrays(saved), 'versions': _versions()}
    )
    parts = {_ARRAYS: ocp.args.StandardSave(saved), _METADATA: ocp.args.JsonSave(metadata)}
    try:
      self._manager.save(step, args=ocp.args.Composite(**parts), metrics=metrics)
    except OSError as error:
      raise self._failed(error) from error

  def check(self) -> None:
    """Raises OSError, with the reason, where a save has failed."""
    self._surely(self._manager.check_for_errors)

  def wait(self) -> None:
    """Returns once all is written. Raises as `check`."""
    self._surely(self._manager.wait_until_finished)

  def _surely(self, ask: Callable[[], None]) -> None:
    try:
      ask()
    except Exception as error:  # Whatever a background thread died of.
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> OSError:
    return OSError(
      f'Saving to {self._directory} failed ({" ".join(str(error).split()) or type(error).__name__}): '
      'see to its space and permissions, then run again; the run goes on from its newest whole checkpoint.'
    )


def steps(directory: pathlib.Path) -> list[int]:
  """Those saved in a directory, in order."""
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def latest_step(directory: pathlib.Path) -> int | None:
  """The newest step saved in a directory; None: there is none."""
  return max(steps(directory), default=None)


def save(directory: pathlib.Path, state: TrainState, metadata: dict[str, Any] | None = None) -> None:
  """Saves one state and waits until it is written. Raises as `Writer.save`."""
  with Writer(directory, Keep(last=None)) as writer:
    writer.save(state, metadata or {})


def restore(
  directory: pathlib.Path, like: TrainState, *, quarantine: bool = False
) -> tuple[TrainState, dict[str, Any]]:
  """The newest whole state in a directory and its metadata, in the shapes, types and shardings of `like`.

  The reference, which is not saved, is that of `like`.

  Args:
    directory: of all steps of a run.
    like: arrays or their shapes.
    quarantine: move damaged checkpoints out of the way, to `damaged/` beside the directory, so that their steps can be
      saved again.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: an array is missing, left over, or of another shape; or none of the checkpoints is whole.
  """
  expected = _saved(like)

  def read(path):
    found = _arrays_of(path)
    _compare(directory, found['params'], expected['params'])
    _compare(directory, found['opt_state'], expected['opt_state'], 'optimizer')
    return _read(path, expected)

  saved, metadata = _newest_whole(directory, read, quarantine)
  params = like.params._replace(**{name: saved['params'][name] for name in saved['params']})
  return TrainState(saved['step'], params, saved['opt_state'], saved['rng']), metadata


def restore_params(directory: pathlib.Path, like: Any, name: str) -> Params:
  """One parameter set of the newest whole checkpoint, such as 'online', in the shapes, types and shardings of `like`.

  Reads no other arrays. Raises as `restore`.
  """

  def read(path):
    found = _arrays_of(path)
    if found['params'].get(name) is None:
      raise ValueError(
        f'Checkpoint {directory} holds no parameter set {name!r}: '
        f'name one of {sorted(found["params"])}.'
      )
    _compare(directory, found['params'][name], like)
    return _read(path, {'params': {name: like}}, partial=True)

  return _newest_whole(directory, read)[0]['params'][name]


def _newest_whole(directory: pathlib.Path, read, quarantine: bool = False) -> Any:
  """What `read` makes of the newest checkpoint that is not damaged."""
  damaged = []
  for step in reversed(steps(directory)):
    path = directory.resolve() / str(step)
    try:
      return _together(lambda path=path: read(path))
    except CorruptCheckpointError as error:
      damaged.append(f'{path}: {error}')
      logging.warning('Checkpoint %s is damaged (%s): the one before it is taken.', path, error)
    if quarantine:
      _put_aside(path)
  if damaged:
    raise ValueError(f'No whole checkpoint in {directory}: {"; ".join(damaged)}.')
  raise FileNotFoundError(f'No checkpoint in {directory}: train that run first.')


def _together(read: Callable[[], Any]) -> Any:
  """What every process reads; if it is damaged for one, it is so for all."""
  try:
    result, error = read(), None
  except CorruptCheckpointError as caught:
    result, error = None, caught
  if jax.process_count() > 1:
    whole = multihost_utils.process_allgather(np.array(error is None))
    if error is None and not whole.all():
      error = CorruptCheckpointError(f'process {int(np.argmin(whole))} cannot read its part')
  if error is not None:
    raise error
  return result


def _put_aside(path: pathlib.Path) -> None:
  if jax.process_index() == 0:
    aside = path.parent.with_name('damaged')
    aside.mkdir(exist_ok=True)
    number = sum(1 for other in aside.iterdir() if other.name.split('.')[0] == path.name)
    path.rename(aside / (f'{path.name}.{number}' if number else path.name))
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'put aside {path.name}')


def _damage(error: Exception) -> CorruptCheckpointError:
  text = ' '.join(str(error).split())
  return CorruptCheckpointError(f'{type(error).__name__}: {text[:200]}')


def _arrays_of(path: pathlib.Path) -> Any:
  """The tree of shapes that a checkpoint holds."""
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.metadata(path / _ARRAYS).item_metadata.tree
    if not {'params', 'opt_state'} <= tree.keys():
      raise ValueError('it lacks params or opt_state')
    return tree
  except Exception as error:  # A damaged file may raise anything.
    raise _damage(error) from error


def _read(path: pathlib.Path, like: Any, *, partial: bool = False) -> tuple[Any, dict[str, Any]]:
  """Arrays and metadata of a checkpoint, compared with its fingerprints."""
  try:
    metadata = _read_metadata(path)
    abstract = jax.tree.map(_abstract, like)
    with _checkpointer() as checkpointer:
      restored = checkpointer.restore(
        path / _ARRAYS,
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=partial,
        ),
      )
    # Orbax may give NumPy arrays, which every call of a compiled function would copy to the device.
    restored = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), restored)
    written = metadata['fingerprints']
    for name, value in fingerprints.fingerprint_arrays(restored).items():
      if written.get(name) != value:
        raise ValueError(f'{name} is not what was written')
    return restored, metadata
  except Exception as error:
    raise _damage(error) from error


def _checkpointer() -> ocp.Checkpointer:
  """One that reads by itself: a process that fails must not leave others waiting for it."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=None if jax.process_count() > 1 else 0,
    active_processes={jax.process_index()} if jax.process_count() > 1 else None,
    barrier_sync_key_prefix=f'process_{jax.process_index()}' if jax.process_count() > 1 else None,
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
  return ocp.Checkpointer(handler, multiprocessing_options=alone)


def read_metadata(directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
  """What a checkpoint says beside its arrays; of the newest, or of a step.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: it cannot be read.
  """
  found = latest_step(directory) if step is None else step
  if found is None:
    raise FileNotFoundError(f'No checkpoint in {directory}: train that run first.')
  try:
    return _read_metadata(directory / str(found))
  except Exception as error:
    raise _damage(error) from error


def _read_metadata(path: pathlib.Path) -> dict[str, Any]:
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
    metadata = checkpointer.restore(path / _METADATA)
  if (
    metadata['signature'] != _signed({k: v for k, v in metadata.items() if k != 'signature'})['signature']
  ):
    raise ValueError('its metadata are not what was written')
  return metadata


def _signed(metadata: dict[str, Any]) -> dict[str, Any]:
  text = json.dumps(metadata, sort_keys=True)
  return metadata | {'signature': hashlib.sha256(text.encode()).hexdigest()}


def _versions() -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _saved(state: TrainState) -> dict[str, Any]:
  params = {'online': state.params.online}
  for name in ('ema', 'past'):
    if getattr(state.params, name) is not None:
      params[name] = getattr(state.params, name)
  return {'step': state.step, 'params': params, 'opt_state': state.opt_state, 'rng': state.rng}


def _abstract(x: Any) -> Any:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _compare(directory: pathlib.Path, found: Any, like: Any, owner: str = 'network') -> None:
  """Raises ValueError at the first array that does not match, and says how to mend it.

  Args:
    directory: of the checkpoint.
    found: the arrays that it holds.
    like: the arrays that are expected.
    owner: what they belong to: the network or the optimizer.
  """
  found, expected = _shapes(found), _shapes(like)
  # The embedding first: if that differs, the vocabularies do, and all else follows.
  for name in sorted(found.keys() | expected.keys(), key=lambda x: ('token_embedder' not in x, x)):
    if found.get(name) == expected.get(name):
      continue
    remedy = f'use the {owner} that it was trained with'
    if name not in expected:
      what = f'holds {name} {found[name]}, which the {owner} lacks'
    elif name not in found:
      what = f'lacks {name} {expected[name]}, which the {owner} has'
    else:
      what = f'holds {name} {found[name]}, the {owner} expects {expected[name]}'
      if name.endswith('token_embedder/embedding') and found[name][1] == expected[name][1]:
        remedy = (
          f'the vocabularies differ: set VOCAB_SIZE = {found[name][0]}, and use the vocabulary '
          'it was trained with'
        )
    raise ValueError(f'Checkpoint {directory} {what}: {remedy}.')
