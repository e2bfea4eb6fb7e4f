"""Names of the axes of arrays; T5X's, where it has them. Networks say what an axis is, not how it is sharded.

Parameters have embed, mlp, heads, kv (of one head), joined_kv, vocab and relpos_buckets; activations have batch (rows of any kind: prompts,
responses, lanes), and mlp, heads, joined_kv and vocab too. Rules, a list of (name, axes of the mesh), say which axes of a
mesh each is sharded over; outside of `use_mesh` nothing is sharded, and nothing here does anything.
"""

import contextlib
import functools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import flax.core.meta
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jax.sharding import Mesh, PartitionSpec

from nlhf_jax.types import PRNGKey

# Of an array's axes; None: an axis that is never sharded.
Names = tuple[str | None, ...]
Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]


@runtime_checkable
class HasInit(Protocol):
  """A Linen module."""

  def init(self, rngs: PRNGKey, *args: Any, **kwargs: Any) -> Any:
    """Linen's: random variables."""
    ...


def logical_axes(network: HasInit) -> Any:
  """Names of the axes of a network's parameters: a tree like that of `init`, with a tuple for each array."""
  return flax.traverse_util.unflatten_dict(
    {path: names for path, (_, names) in _declared(network).items()}
  )


def shapes(network: HasInit) -> Any:
  """Shapes of a network's parameters: a tree like that of `init`."""
  return flax.traverse_util.unflatten_dict(
    {path: shape for path, (shape, _) in _declared(network).items()}
  )


_Declared = dict[tuple[str, ...], tuple[jax.ShapeDtypeStruct, Names]]


def _declared(network: HasInit) -> _Declared:
  """Each parameter's path -> its shape and the names of its axes."""
  try:
    hash(network)
  except TypeError:  # Some attribute is a list or an array.
    return _trace.__wrapped__(network)
  return _trace(cast(Hashable, network))


# A run asks for each of its models, and for each player of each program.
@functools.lru_cache(maxsize=64)
def _trace(network: Any) -> _Declared:
  made = jax.eval_shape(lambda: variables(network, jax.random.PRNGKey(0)))
  found = flax.traverse_util.flatten_dict(made['params'])
  if 'params_axes' in made:
    named = partitioning.get_axis_names(made['params_axes'])
    names = {path: tuple(x) for path, x in flax.traverse_util.flatten_dict(named).items()}
  else:
    names = {}
  return {path: (x, names.get(path, (None,) * x.ndim)) for path, x in found.items()}


def variables(network: HasInit, rng: PRNGKey) -> Any:
  """Random ones of a network with T5X's call signature, and names of their axes."""
  dummy = jnp.ones((1, 2), jnp.int32)
  return network.init(rng, dummy, dummy, dummy, enable_dropout=False)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules) -> Iterator[None]:
  """Within, arrays are sharded over a mesh by these rules."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def has_mesh() -> bool:
  """Whether there is a mesh, and rules."""
  return bool(nn.get_logical_axis_rules()) and flax.core.meta.global_mesh_defined()


def spec(
  names: Names, shape: Sequence[int], rules: Rules, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
  """How an array is sharded.

  An axis that does not divide evenly is not sharded, and no axis of the mesh is used twice.

  Args:
    names: of the array's axes.
    shape: of the array.
    rules: the first that names an axis counts.
    mesh_shape: devices along each axis of the mesh.
  """
  by_name, entries = dict(reversed(rules)), []
  used: set[str] = set()
  for name, size in zip(names, shape, strict=True):
    axes = by_name.get(name) or ()
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    axes = tuple(axis for axis in axes if mesh_shape.get(axis, 1) > 1)
    uneven = size % math.prod(mesh_shape[axis] for axis in axes) or used & set(axes)
    entries.append(None if uneven or not axes else axes)
    used |= set() if uneven else set(axes)
  return PartitionSpec(*entries)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """The same array, sharded by the names of its axes."""
  if not has_mesh():
    return x
  rules, mesh = nn.get_logical_axis_rules(), flax.core.meta.get_global_mesh()
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape, rules, mesh.shape))


def gather(weights: jax.Array, names: Names) -> jax.Array:
  """Weights as they are computed with: complete along `embed`, which is sharded so that no device need keep all of them."""
  return constrain(weights, *(None if name == 'embed' else name for name in names))


def size_on_device(shape: Sequence[int], *names: str | None) -> int:
  """How many numbers each device has of an array of this shape, sharded by the names of its axes."""
  if not has_mesh():
    return math.prod(shape)
  rules, mesh = nn.get_logical_axis_rules(), flax.core.meta.get_global_mesh()
  over = jax.tree.leaves(tuple(spec(names, shape, rules, mesh.shape)))
  return math.prod(shape) // math.prod(mesh.shape[axis] for axis in over)
