"""The files of one checkpoint: its arrays and its metadata, read back and compared with what was written.

A checkpoint is a directory of two items: `default` holds the arrays, `run_metadata` a JSON object with a fingerprint of
each array and a signature of its own. A file that cannot be read, or not as it was written, is a
`CorruptCheckpointError`; what belongs to another network, or to another version, is a ValueError with a remedy.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import nlhf_jax
from nlhf_jax.runtime import fingerprints

ARRAYS, METADATA = 'default', 'run_metadata'
_METADATA_OF_0_1 = 'facts'
# As XLA and TensorStore call them.
_OF_THE_MACHINE = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'UNAVAILABLE')
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class CorruptCheckpointError(Exception):
  """A checkpoint cannot be read, or not as it was written."""


def describe(arrays: Any, step: int, metadata: dict[str, Any]) -> dict[str, Any]:
  """The metadata of a checkpoint: the caller's, its step, fingerprints of its arrays, versions, and a signature.

  Args:
    arrays: all that the checkpoint holds.
    step: updates done.
    metadata: what else a resumed run needs, in JSON.
  """
  # Of a checkout that was not installed, too: the version that runs, whatever is installed beside it.
  versions = {'nlhf_jax': nlhf_jax.__version__}
  versions |= {name: version_of(name) for name in _PACKAGES}
  written = {
    'step': step,
    'fingerprints': fingerprints.fingerprint_arrays(arrays),
    'versions': versions,
  }
  return _signed(metadata | written)


def version_of(package: str) -> str:
  """The version of an installed package; 'unknown' of a source tree."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def load_metadata(path: pathlib.Path) -> dict[str, Any]:
  """The metadata of a checkpoint.

  Raises:
    CorruptCheckpointError: it cannot be read, or is not what was written.
    ValueError: version 0.1.0 wrote it.
  """
  _check_version(path)
  with _reading():
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
      metadata = checkpointer.restore(path / METADATA)
    unsigned = {name: value for name, value in metadata.items() if name != 'signature'}
    if metadata['signature'] != _signed(unsigned)['signature']:
      raise ValueError('its metadata are not what was written')
    return metadata


def load_shapes(path: pathlib.Path) -> Any:
  """The tree of arrays that a checkpoint holds, each with its shape and type; reads none of them.

  Raises:
    CorruptCheckpointError, ValueError: as `load_metadata`.
  """
  _check_version(path)
  with _reading():
    with ocp.StandardCheckpointer() as checkpointer:
      tree = checkpointer.metadata(path / ARRAYS).item_metadata.tree
    if not {'params', 'opt_state'} <= tree.keys():
      raise ValueError('it lacks params or opt_state')
    return tree


def load_arrays(
  path: pathlib.Path, like: Any, metadata: dict[str, Any], *, partial: bool = False
) -> Any:
  """Arrays of a checkpoint, compared with the fingerprints that were written with them.

  Args:
    path: of the checkpoint.
    like: arrays, or their shapes, in the types and shardings that they are to have.
    metadata: of the checkpoint.
    partial: whether `like` is a part of the tree; no more is read.

  Raises:
    CorruptCheckpointError: they cannot be read, or are not what was written.
  """
  written = metadata['fingerprints']
  with _reading():
    abstract = jax.tree.map(_abstract, like)
    with _checkpointer() as checkpointer:
      restored = checkpointer.restore(
        path / ARRAYS,
        args=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
          partial_restore=partial,
        ),
      )
    # Orbax may give NumPy arrays, which every call of a compiled function would copy to the device.
    restored = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), restored)
    for name, value in fingerprints.fingerprint_arrays(restored).items():
      if written.get(name) != value:
        raise ValueError(f'{name} is not what was written')
    if name := first_not_finite(restored['params']):
      raise ValueError(f'{name} is not finite')
    return restored


def first_not_finite(tree: Any) -> str | None:
  """The path of an array that has NaN or infinities; None: all are finite."""
  on_host = lambda x: np.isfinite(x).all()
  is_finite = on_host if fingerprints.is_small(tree) else _is_finite
  all_finite = jax.device_get(jax.tree.map(is_finite, tree))
  for path, finite in jax.tree_util.tree_leaves_with_path(all_finite):
    if not finite:
      return jax.tree_util.keystr(path, simple=True, separator='/')
  return None


@jax.jit
def _is_finite(x: jax.Array) -> jax.Array:
  return jnp.all(jnp.isfinite(x))


def check_shapes(directory: pathlib.Path, found: Any, like: Any, owner: str = 'network') -> None:
  """Raises ValueError, with a remedy, at the first array that does not match.

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
          f'the vocabularies differ: give the network vocab_size = {found[name][0]}, and use the '
          'vocabulary that it was trained with'
        )
    raise ValueError(f'Checkpoint {directory} {what}: {remedy}.')


def _check_version(path: pathlib.Path) -> None:
  if (path / _METADATA_OF_0_1).is_dir() and not (path / METADATA).is_dir():
    raise ValueError(
      f'Checkpoint {path} was written by nlhf_jax 0.1.0: read it with that version (commit bb3ff7b).'
    )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
  """Within, whatever goes wrong is a corrupt file, which may raise anything, unless it is the machine that has failed."""
  try:
    yield
  except Exception as error:
    if _is_of_the_machine(error):
      raise
    text = ' '.join(str(error).split())
    raise CorruptCheckpointError(f'{type(error).__name__}: {text[:200]}') from error


def _is_of_the_machine(error: Exception) -> bool:
  """Memory, permissions, a network's disk, the device: of these a checkpoint is not to blame, and can be read another time."""
  if isinstance(error, OSError):
    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return not isinstance(error, missing)
  of_the_device = MemoryError, jax.errors.JaxRuntimeError
  return isinstance(error, of_the_device) or any(word in str(error) for word in _OF_THE_MACHINE)


def _signed(metadata: dict[str, Any]) -> dict[str, Any]:
  text = json.dumps(metadata, sort_keys=True)
  return metadata | {'signature': hashlib.sha256(text.encode()).hexdigest()}


def _checkpointer() -> ocp.Checkpointer:
  """One that reads by itself: a process that fails must not leave others waiting for it."""
  several = jax.process_count() > 1
  options = ocp.options.MultiprocessingOptions(
    primary_host=None if several else 0,
    active_processes={jax.process_index()} if several else None,
    barrier_sync_key_prefix=f'process_{jax.process_index()}' if several else None,
  )
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def _abstract(x: Any) -> Any:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
