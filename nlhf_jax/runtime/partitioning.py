"""How arrays are sharded: a mesh of devices, rules from logical axes to the mesh's, and shardings of all that a run holds.

The mesh has three axes. Rows of a batch are sharded over `data` and `fsdp`; parameters, averages and moments over
`fsdp`, to be gathered where they are computed with, and over `tensor`, where each device computes its part of every
layer. One program runs on all devices of all processes, and no number depends on how many there are, but for rounding.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nlhf_jax.arguments import AxisSize
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
  """Number of devices of a mesh along each axis; −1, of one of them: all that are left."""

  data: AxisSize = -1
  fsdp: AxisSize = 1
  tensor: AxisSize = 1


def resolve_devices(devices: Devices, number: int) -> Devices:
  """The same with what is left of all devices in place of −1.

  Args:
    devices: along each axis.
    number: of all devices.

  Raises:
    ValueError: the product of the axes is another number.
  """
  given = math.prod(size for size in devices if size != -1)
  left = number // given if given > 0 and devices.count(-1) == 1 else -1
  sizes = Devices(*(left if size == -1 else size for size in devices))
  if math.prod(sizes) != number or min(sizes) < 1:
    raise ValueError(
      f'A mesh of data={devices.data}, fsdp={devices.fsdp}, tensor={devices.tensor} does not fit {number} devices: '
      'choose data, fsdp and tensor so that their product is that number (-1: all that are left).'
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
    """Within, networks shard their activations over the mesh."""
    with axes.use_mesh(self.mesh, self.rules):
      yield

  @property
  def replicated(self) -> NamedSharding:
    """Of what each device holds all of."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def rows(self) -> NamedSharding:
    """Of batches and rollouts: each device, or group that shares a model, holds a part of the rows."""
    return NamedSharding(self.mesh, PartitionSpec(ROWS))

  def check_batch(self, batch_size: int) -> None:
    """Raises ValueError where a batch of `batch_size` prompts does not divide over the mesh."""
    number = math.prod(self.mesh.shape[axis] for axis in ROWS)
    if batch_size % number:
      raise ValueError(
        f'A batch of {batch_size} prompts does not divide over {number} groups of devices '
        f'(data x fsdp): make batch_size a multiple of {number}.'
      )

  def param_shardings(self, shapes: Params, logical_axes: Any | None) -> Any:
    """Shardings of parameters.

    Args:
      shapes: arrays, or their shapes.
      logical_axes: a tuple of names for each (`networks.axes.logical_axes`); None: they are not sharded.
    """
    if logical_axes is None:
      return jax.tree.map(lambda _: self.replicated, shapes)
    spec = lambda x, names: axes.spec(names, x.shape, self.rules, self.mesh.shape)
    return jax.tree.map(
      lambda x, names: NamedSharding(self.mesh, spec(x, names)), shapes, logical_axes
    )

  def state_shardings(
    self, state: TrainState, logical_axes: Any | None, base: Any | None = None
  ) -> TrainState:
    """Shardings of a training state.

    Args:
      state: its shapes.
      logical_axes: of the trained parameters, and of all their sets; None: nothing is sharded.
      base: logical axes of the parameters beneath adapters.
    """
    online = self.param_shardings(state.params.online, logical_axes)
    sets = {name: self._set_shardings(x, logical_axes) for name, x in state.params.sets.items()}
    beneath = state.params.base
    beneath = None if beneath is None else self.param_shardings(beneath, base)
    moments = self._moment_shardings(state.opt_state, state.params.online, online)
    params = PolicyParams(online, sets, beneath)
    return TrainState(self.replicated, params, moments, self.replicated)

  def _set_shardings(self, params: Params | tuple[Params, ...], logical_axes: Any | None) -> Any:
    """Of a parameter set; a ring is a tuple of trees that are alike."""
    if isinstance(params, tuple):
      return tuple(self.param_shardings(member, logical_axes) for member in params)
    return self.param_shardings(params, logical_axes)

  def _moment_shardings(self, opt_state: Any, params: Params, shardings: Any) -> Any:
    """What an optimizer keeps for a parameter is sharded as that is; factored moments, along the axes that remain.

    An optimizer's state holds trees like that of the parameters: a leaf belongs to the parameter that its path ends in.
    """
    by_path = {
      _path(path): (x.shape, sharding.spec)
      for (path, x), sharding in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
      )
    }

    def sharding(path, x):
      path = _path(path)
      owner = next((by_path[path[n:]] for n in range(len(path)) if path[n:] in by_path), None)
      spec = PartitionSpec() if owner is None else _remaining_spec(x.shape, *owner)
      return NamedSharding(self.mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)

  def shard_rows(self, batch: Any) -> Any:
    """A batch that every process has read, sharded by rows: no two devices get the same ones, unless they share a model."""
    return put(batch, jax.tree.map(lambda _: self.rows, batch))


def put(tree: Any, shardings: Any) -> Any:
  """Arrays of which every process has all entries, sharded; no device is given more than its shard.

  Args:
    tree: arrays of NumPy, or of JAX.
    shardings: of each.
  """

  def shard(x, sharding):
    if jax.process_count() == 1 or not getattr(x, 'is_fully_addressable', True):
      return jax.device_put(x, sharding)
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

  return jax.tree.map(shard, tree, shardings)


def to_device(tree: Any) -> Any:
  """Arrays in the host's memory, or their shapes, moved to that of the devices that they are sharded over; others stay."""

  def move(x):
    if not on_host(x):
      return x
    sharding = x.sharding.with_memory_kind('device')
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.device_put(x, sharding)

  return jax.tree.map(move, tree)


def on_host(x: Any) -> bool:
  """Whether an array, or one of this shape, is in the host's memory."""
  kind = getattr(getattr(x, 'sharding', None), 'memory_kind', None)
  return kind not in (None, 'device')


def with_shardings(tree: Any, shardings: Any) -> Any:
  """Shapes that know how their arrays would be sharded."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, 'weak_type', False)
    ),
    tree,
    shardings,
  )


def _path(path: tuple[Any, ...]) -> tuple[str, ...]:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _remaining_spec(
  shape: tuple[int, ...], parameter_shape: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
  """The spec of an array that lacks at most one axis of a parameter, from the parameter's; else of none."""
  entries = [*spec, *[None] * (len(parameter_shape) - len(spec))]
  if shape == parameter_shape:
    return spec
  for lacking in range(len(parameter_shape)):
    if shape == (*parameter_shape[:lacking], *parameter_shape[lacking + 1 :]):
      return PartitionSpec(*entries[:lacking], *entries[lacking + 1 :])
  return PartitionSpec()
