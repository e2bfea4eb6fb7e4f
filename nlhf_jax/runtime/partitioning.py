"""Where arrays lie: a mesh of devices, rules from the names of axes to the mesh's, and shardings of all that a run holds.

The mesh has three axes. Rows of a batch are cut along `data` and `fsdp`; parameters, averages and moments along `fsdp`, to
be gathered where they are computed with, and along `tensor`, where each device computes its part of every layer. One
program runs on all devices of all processes, and no number depends on how many there are, but for rounding.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nlhf_jax.networks import axes
from nlhf_jax.types import Params, PolicyParams, TrainState

ROWS = ('data', 'fsdp')
RULES: axes.Rules = (
  ('batch', ROWS),
  ('embed', 'fsdp'),
  ('mlp', 'tensor'),
  ('heads', 'tensor'),
  ('joined_kv', 'tensor'),
  ('vocab', 'tensor'),
)


class Devices(NamedTuple):
  """How many devices a mesh has along each axis; −1, of one of them: all that are left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def resolve_devices(devices: Devices, number: int) -> Devices:
  """The same with what is left of so many devices in place of −1.

  Raises:
    ValueError: they make another number.
  """
  given = math.prod(size for size in devices if size != -1)
  left = number // given if given > 0 and devices.count(-1) == 1 else -1
  sizes = Devices(*(left if size == -1 else size for size in devices))
  if math.prod(sizes) != number or min(sizes) < 1:
    raise ValueError(
      f'A mesh of data={devices.data}, fsdp={devices.fsdp}, tensor={devices.tensor} does not fit {number} devices: '
      'set MESH_DATA, MESH_FSDP and MESH_TENSOR so that their product is that number (-1: all that are left).'
    )
  return sizes


def make_mesh(devices: Devices, among: Sequence[Any] | None = None) -> Mesh:
  """A mesh of all devices of all processes, or of those in `among`. Raises as `resolve_devices`."""
  among = jax.devices() if among is None else list(among)
  sizes = resolve_devices(devices, len(among))
  grid = mesh_utils.create_device_mesh(sizes, among, allow_split_physical_axes=True)
  return Mesh(grid, Devices._fields)


class Layout(NamedTuple):
  """A mesh and its rules."""

  mesh: Mesh
  rules: axes.Rules = RULES

  @contextlib.contextmanager
  def active(self) -> Iterator[None]:
    """Within, networks cut their activations over the mesh."""
    with axes.use_mesh(self.mesh, self.rules):
      yield

  @property
  def replicated(self) -> NamedSharding:
    """Each device holds all of it."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """Of batches and rollouts: each device, or group that shares a model, holds some of the rows."""
    return NamedSharding(self.mesh, PartitionSpec(ROWS))

  def check_batch(self, batch_size: int) -> None:
    """Raises ValueError where a batch of so many prompts cannot be shared out evenly."""
    number = math.prod(self.mesh.shape[axis] for axis in ROWS)
    if batch_size % number:
      raise ValueError(
        f'A batch of {batch_size} prompts does not divide over {number} groups of devices '
        f'(data x fsdp): make BATCH_SIZE a multiple of {number}.'
      )

  def param_shardings(self, shapes: Params, names: Any | None) -> Any:
    """Shardings of parameters.

    Args:
      shapes: arrays, or their shapes.
      names: of their axes, a tuple for each (`networks.axes.logical_axes`); None: they are not cut.
    """
    if names is None:
      return jax.tree.map(lambda _: self.replicated, shapes)
    cut = lambda x, n: NamedSharding(self.mesh, axes.spec(n, x.shape, self.rules, self.mesh.shape))
    return jax.tree.map(cut, shapes, names)

  def state_shardings(self, state: TrainState, names: Any | None, base: Any | None = None) -> TrainState:
    """Shardings of a whole training state.

    Args:
      state: its shapes.
      names: of the axes of the trained parameters; None: nothing is cut.
      base: of those beneath adapters.
    """
    of = lambda name, x: None if x is None else self.param_shardings(x, base if name == 'base' else names)
    params = PolicyParams(**{name: of(name, x) for name, x in state.params._asdict().items()})
    moments = self._of_moments(state.opt_state, state.params.online, params.online)
    return TrainState(self.replicated, params, moments, self.replicated)

  def _of_moments(self, opt_state: Any, params: Params, shardings: Any) -> Any:
    """What an optimizer keeps for a parameter is cut as that is; of factored moments, along the axes that are left.

    An optimizer's state holds trees like that of the parameters: a leaf belongs to the parameter that its path ends in.
    """
    by_path = {
      _path(path): (x.shape, sharding.spec)
      for (path, x), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
      )
    }

    def cut(path, x):
      path = _path(path)
      owner = next((by_path[path[n:]] for n in range(len(path)) if path[n:] in by_path), None)
      spec = PartitionSpec() if owner is None else _what_is_left(x.shape, *owner)
      return NamedSharding(self.mesh, spec)

    return jax.tree_util.tree_map_with_path(cut, opt_state)

  def shard_rows(self, batch: Any) -> Any:
    """A batch that every process has read, its rows shared out: no two devices get the same ones, unless they share a model."""
    return put(batch, jax.tree.map(lambda _: self.rows, batch))


def put(tree: Any, shardings: Any) -> Any:
  """Arrays that every process has whole, laid out; no device is given more than its part.

  Args:
    tree: arrays of NumPy, or of JAX.
    shardings: of each.
  """

  def cut(x, sharding):
    if jax.process_count() == 1 or not getattr(x, 'is_fully_addressable', True):
      return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

  return jax.tree.map(cut, tree, shardings)


def to_device(tree: Any) -> Any:
  """Arrays that lie in the host's memory, or their shapes, moved to that of the devices that they are cut over; others stay."""

  def move(x):
    if not on_host(x):
      return x
    where = x.sharding.with_memory_kind('device')
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return jax.device_put(x, where)

  return jax.tree.map(move, tree)


def on_host(x: Any) -> bool:
  """Whether an array, or one of this shape, lies in the host's memory."""
  kind = getattr(getattr(x, 'sharding', None), 'memory_kind', None)
  return kind not in (None, 'device')


def with_shardings(tree: Any, shardings: Any) -> Any:
  """Shapes that know where their arrays would lie."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings
  )


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _what_is_left(shape, of_parameter, spec: PartitionSpec) -> PartitionSpec:
  """Cuts of an array that lacks one axis of a parameter, or none."""
  cuts = [*spec, *[None] * (len(of_parameter) - len(spec))]
  if shape == of_parameter:
    return spec
  for lacking in range(len(of_parameter)):
    if shape == (*of_parameter[:lacking], *of_parameter[lacking + 1 :]):
      return PartitionSpec(*cuts[:lacking], *cuts[lacking + 1 :])
  return PartitionSpec()
