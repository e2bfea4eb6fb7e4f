"""Checkpoints through orbax: a directory per step, written whole or not at all."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from nlhf_jax.types import TrainState


def _manager(directory: pathlib.Path, keep: int | None = None) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, create=True, enable_async_checkpointing=False
  )
  return ocp.CheckpointManager(directory.resolve(), options=options)


def latest_step(directory: pathlib.Path) -> int | None:
  """The newest step saved in a directory; None: there is none."""
  if not directory.is_dir():
    return None
  with _manager(directory) as manager:
    return manager.latest_step()


def save(directory: pathlib.Path, step: int, state: TrainState, *, keep: int | None = 2) -> None:
  """Saves a state; the reference is left out, since another run holds it.

  Args:
    directory: of all steps of a run.
    step: names the checkpoint; later than those saved before.
    state: what to save.
    keep: newest checkpoints to keep; None: all.

  Raises:
    ValueError: the directory holds this step, or a later one. Orbax would leave it as it is, and
      say nothing.
  """
  with _manager(directory, keep) as manager:
    if not manager.save(step, args=ocp.args.StandardSave(_saved(state))):
      raise ValueError(
        f'{directory} already holds step {manager.latest_step()}, so step {step} was not saved: '
        'name another --run_dir, or delete it.'
      )


def restore(directory: pathlib.Path, like: TrainState, step: int | None = None) -> TrainState:
  """The newest state in a directory, or that of `step`, in the shapes and types of `like`.

  The reference, which is not saved, is that of `like`.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: an array is missing, left over, or of another shape.
  """
  saved = _restore(directory, _saved(like), step)
  params = like.params._replace(**{name: saved['params'][name] for name in saved['params']})
  return TrainState(saved['step'], params, saved['opt_state'], saved['rng'])


def restore_params(directory: pathlib.Path, like: Any, name: str, step: int | None = None) -> Any:
  """One parameter set of a checkpoint, such as 'online', in the shapes and types of `like`.

  Reads no other arrays. Raises as `restore`.
  """
  found = _metadata(directory, step)
  if found['params'].get(name) is None:
    raise ValueError(
      f'Checkpoint {directory} holds no parameter set {name!r}: '
      f'name one of {sorted(found["params"])}.'
    )
  _compare(directory, found['params'][name], like)
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  with ocp.PyTreeCheckpointer() as checkpointer:
    restored = checkpointer.restore(
      _step_directory(directory, step) / 'default',
      args=ocp.args.PyTreeRestore(
        item={'params': {name: abstract}},
        restore_args=ocp.checkpoint_utils.construct_restore_args({'params': {name: abstract}}),
        partial_restore=True,
      ),
    )
  # Orbax gives NumPy arrays, which every call of a compiled function would copy to the device.
  return jax.tree.map(jnp.asarray, restored['params'][name])


def _saved(state: TrainState) -> dict[str, Any]:
  params = {'online': state.params.online}
  for name in ('ema', 'past'):
    if getattr(state.params, name) is not None:
      params[name] = getattr(state.params, name)
  return {'step': state.step, 'params': params, 'opt_state': state.opt_state, 'rng': state.rng}


def _step_directory(directory: pathlib.Path, step: int | None) -> pathlib.Path:
  found = latest_step(directory) if step is None else step
  if found is None:
    raise FileNotFoundError(f'No checkpoint in {directory}: train that run first.')
  path = directory.resolve() / str(found)
  if not (path / 'default').is_dir():
    remedy = f'delete {path}' if path.exists() else 'name a step that it holds'
    raise FileNotFoundError(f'No whole checkpoint of step {found} in {directory}: {remedy}.')
  return path


def _metadata(directory: pathlib.Path, step: int | None) -> Any:
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.metadata(_step_directory(directory, step) / 'default').item_metadata.tree


def _restore(directory: pathlib.Path, like: Any, step: int | None) -> Any:
  path = _step_directory(directory, step)
  found = _metadata(directory, step)
  _compare(directory, found['params'], like['params'])
  _compare(directory, found['opt_state'], like['opt_state'], 'optimizer')
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path / 'default', jax.tree.map(_abstract, like))


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
