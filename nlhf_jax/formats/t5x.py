"""T5X's checkpoints, read and written without T5X: the single msgpack file, the native directory, and orbax's.

A native checkpoint is an index in msgpack beside one zarr array for each leaf; each device's shard of an array is read
by itself, so that no host ever holds the complete model.
"""

import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tensorstore

from nlhf_jax import untrusted
from nlhf_jax.formats import hf_directory
from nlhf_jax.runtime import checkpoints, run_directory
from nlhf_jax.types import Params, TrainState

_VERSION = 3
_LAYOUTS = ('native', 'orbax')


def weights(path: str) -> Callable[[Params], Params]:
  """Reads a checkpoint's weights, when it is called with the shapes, types and shardings that they are to have."""
  return lambda like: load(path, like)


def load(path: str | pathlib.Path, like: Params) -> Params:
  """The weights of a checkpoint.

  Args:
    path: a checkpoint, or a directory of them, of which the newest is meant.
    like: arrays, or `jax.ShapeDtypeStruct`s; with shardings, each device's shard is read by itself.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: an array is missing, left over, of another shape, of integers, or not finite; the checkpoint is damaged.
  """
  path = locate(path)
  wanted = flax.traverse_util.flatten_dict(like, sep='/')
  if (path / 'state').is_dir():
    return _load_orbax(path, wanted)
  index = path / 'checkpoint' if path.is_dir() else path
  target = _read_index(index)
  found = {name: _open_array(index.parent, leaf) for name, leaf in target.items()}
  _check_shapes(path, {name: tuple(x.shape) for name, x in found.items()}, wanted)
  _check_types(path, found)
  leaves = {name: _to_device(path, name, found[name], x) for name, x in wanted.items()}
  return flax.traverse_util.unflatten_dict(leaves, sep='/')


def _read_index(index: pathlib.Path) -> dict[str, Any]:
  """Name -> array, or where it is."""
  try:
    contents = flax.serialization.msgpack_restore(index.read_bytes())
  except Exception as error:  # Whatever msgpack and NumPy meet in a damaged file.
    raise ValueError(f'{index} {_damaged(error)}') from None
  try:
    return flax.traverse_util.flatten_dict(
      contents['optimizer']['target'], sep='/', is_leaf=lambda _, x: 'kvstore' in x
    )
  except (AssertionError, AttributeError, KeyError, TypeError, RecursionError):
    raise ValueError(f'{index} is no checkpoint of T5X: it has no optimizer/target.') from None


def _damaged(error: Exception) -> str:
  problem = untrusted.message(f'{type(error).__name__}: {error}')
  return f'is damaged, or no checkpoint of T5X ({problem}): copy it again.'


def locate(path: str | pathlib.Path) -> pathlib.Path:
  """The checkpoint itself: the path, or the newest checkpoint_N in it."""
  path = pathlib.Path(path)
  if path.is_file() or (path / 'checkpoint').is_file() or (path / 'state').is_dir():
    return path
  steps = {
    int(match[1]): child
    for child in (path.iterdir() if path.is_dir() else ())
    if (match := re.fullmatch(r'checkpoint_(\d+)', child.name))
  }
  if not steps:
    raise FileNotFoundError(
      f'No checkpoint of T5X at {path}: name a checkpoint_N, or what holds it.'
    )
  return steps[max(steps)]


def save(state: TrainState, output_dir: str | pathlib.Path, layout: str = 'orbax') -> pathlib.Path:
  """Writes a checkpoint that T5X resumes from: weights θ, step, and Adafactor's state where there is one.

  Args:
    state: what to write; of its parameters the online ones.
    output_dir: the checkpoint is checkpoint_N in it, where N is the step.
    layout: 'native' or 'orbax'.

  Returns:
    The checkpoint.

  Raises:
    FileExistsError: it is there already.
    OSError: it cannot be written, with the reason.
    ValueError: there is no such layout.
  """
  if layout not in _LAYOUTS:
    raise ValueError(f'layout must be one of {", ".join(_LAYOUTS)}, got {layout!r}.')
  step = int(state.step)
  path = pathlib.Path(output_dir) / f'checkpoint_{step}'
  if path.exists():
    raise FileExistsError(f'{path} exists: name another directory, or delete it.')
  params = state.params.online
  contents = {
    'target': params,
    'state': {'step': np.int32(step), 'param_states': param_states(params, state.opt_state)},
  }
  try:
    (_save_orbax if layout == 'orbax' else _save_native)(contents, path, step)
  except FileExistsError:
    raise
  except (OSError, ValueError) as error:  # The latter are TensorStore's.
    shutil.rmtree(path.with_name(f'{path.name}.orbax-checkpoint-tmp'), ignore_errors=True)
    reason = ' '.join(str(error).split())
    raise OSError(f'Writing {path} failed ({reason}): see to its space and permissions.') from error
  return path


def _save_orbax(contents: dict[str, Any], path: pathlib.Path, step: int) -> None:
  checkpoints.silence_threads()
  options = ocp.CheckpointManagerOptions(
    step_prefix='checkpoint', create=True, enable_async_checkpointing=False
  )
  with ocp.CheckpointManager(path.parent.resolve(), options=options) as manager:
    manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(contents)))


def _save_native(contents: dict[str, Any], path: pathlib.Path, step: int) -> None:
  del step  # Among the contents.
  weights = flax.traverse_util.flatten_dict({'target': contents['target']}, sep='.')
  with run_directory.atomic_directory(path) as directory:
    index = {name: _write_array(directory, name, x) for name, x in weights.items()}
    tree = flax.traverse_util.unflatten_dict(index, sep='.')
    # Moments are small, and T5X takes those that it does not shard from the index alone.
    tree['state'] = jax.tree.map(np.asarray, contents['state'])
    (directory / 'checkpoint').write_bytes(
      flax.serialization.msgpack_serialize({'version': _VERSION, 'optimizer': tree})
    )


def param_states(params: Params, opt_state: Any) -> Params:
  """The second moments of Adafactor as T5X keeps them, {m, v, v_col, v_row} at each leaf; zeros where there are none.

  optax factors the same arrays over the same dimensions, as long as none has more than two.
  """
  is_moments = lambda x: isinstance(x, optax.FactoredState)
  states = [x for x in jax.tree.leaves(opt_state, is_leaf=is_moments) if is_moments(x)]
  if not states:
    states = [optax.scale_by_factored_rms().init(params)]
  moments = states[0]
  return jax.tree.map(
    lambda v, v_col, v_row: {'m': np.zeros(1, np.float32), 'v': v, 'v_col': v_col, 'v_row': v_row},
    moments.v,
    moments.v_col,
    moments.v_row,
  )


def _load_orbax(path: pathlib.Path, wanted: Mapping[str, Any]) -> Params:
  directory = (path / 'state').resolve()
  with ocp.PyTreeCheckpointer() as checkpointer:
    try:
      metadata = checkpointer.metadata(directory).item_metadata.tree
      found = flax.traverse_util.flatten_dict(metadata['target'], sep='/')
      shapes_found = {name: tuple(x.shape) for name, x in found.items()}
    except Exception as error:  # orbax has none of its own.
      raise ValueError(f'{path} {_damaged(error)}') from None
    _check_shapes(path, shapes_found, wanted)
    _check_types(path, found)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in wanted.items()}
    item = {'target': flax.traverse_util.unflatten_dict(shapes, sep='/')}
    args = ocp.checkpoint_utils.construct_restore_args(
      item,
      {
        'target': flax.traverse_util.unflatten_dict(
          {n: _sharding(x) for n, x in wanted.items()}, sep='/'
        )
      },
    )
    restore = ocp.args.PyTreeRestore(item=item, restore_args=args, partial_restore=True)
    try:
      restored = checkpointer.restore(directory, args=restore)
    except ValueError as error:
      raise ValueError(f'{path} {_damaged(error)}') from None
  for name, x in flax.traverse_util.flatten_dict(restored['target'], sep='/').items():
    for shard in x.addressable_shards:
      hf_directory.check_finite(path, name, np.asarray(shard.data))
  return restored['target']


def _sharding(like: Any) -> jax.sharding.Sharding:
  return getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _open_array(directory: pathlib.Path, leaf: Any):
  """An array of the index itself, or the zarr array that it names."""
  if not isinstance(leaf, dict):
    return np.asarray(leaf)
  # Old files have the path at the top.
  store = leaf['kvstore'] if isinstance(leaf['kvstore'], dict) else {}
  name = store.get('path', leaf.get('path', ''))
  if not isinstance(name, str):
    raise ValueError(f'The index of {directory} names {name!r}, which is no file: copy it again.')
  path = (directory / name).resolve()
  if not path.is_relative_to(directory.resolve()):
    raise ValueError(f'The index of {directory} names {name!r}, which is outside of it.')
  if not path.is_dir():
    raise FileNotFoundError(f'No {path}, which the index names: copy the complete checkpoint.')
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': str(path)}}
  try:
    return tensorstore.open(spec, open=True, read=True).result()
  except ValueError as error:
    raise ValueError(f'{path} {_damaged(error)}') from None


def _to_device(path: pathlib.Path, name: str, found: Any, like: Any) -> jax.Array:
  """One leaf, in the type and on the devices of `like`."""

  def shard(index) -> np.ndarray:
    x = found[index]
    try:
      x = x if isinstance(x, np.ndarray) else x.read().result()
    except ValueError as error:
      raise ValueError(f'{path}: array {name} {_damaged(error)}') from None
    hf_directory.check_finite(path, name, x)
    return x.astype(like.dtype, copy=False)

  return jax.make_array_from_callback(tuple(like.shape), _sharding(like), shard)


def _check_shapes(path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any]) -> None:
  """Raises ValueError at the first array that does not match."""
  for name in sorted(found.keys() | wanted.keys()):
    if name not in wanted:
      raise ValueError(f'{path} holds {name} {found[name]}, which the network lacks.')
    shape = tuple(wanted[name].shape)
    if name not in found:
      raise ValueError(f'{path} lacks {name} {shape}, which the network has.')
    if found[name] != shape:
      raise ValueError(f'{path} holds {name} {found[name]}, the network expects {shape}.')


def _check_types(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Raises ValueError at the first array of other numbers than floats."""
  for name, x in sorted(found.items()):
    dtype = np.dtype(getattr(x.dtype, 'numpy_dtype', x.dtype))
    if not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(
        f'{path}: array {name} holds {dtype}, where weights are floats: copy the checkpoint again.'
      )


def _write_array(directory: pathlib.Path, name: str, leaf: Any) -> dict[str, Any]:
  """Writes an array beside the index, and returns its entry there."""
  x = np.asarray(leaf)
  kind = jnp.dtype(x.dtype).name
  metadata = {'shape': list(x.shape), 'chunks': list(x.shape), 'compressor': {'id': 'gzip'}}
  spec = {'driver': 'zarr', 'dtype': kind, 'kvstore': {'driver': 'file', 'path': name}}
  kvstore = {'driver': 'file', 'path': str(directory / name)}
  array = tensorstore.open({**spec, 'kvstore': kvstore, 'metadata': metadata}, create=True).result()
  array.write(x).result()
  return {**spec, 'metadata': metadata}
