"""Random parameters of a network, with few compiled draws.

A network of thirty layers draws hundreds of arrays, and XLA compiles each draw by itself: a minute of a GPU's first step. So a
parameter that is declared here is put off while the network is initialised, and those of one kind are drawn together, each with
the key that Linen gives it, by one compiled loop. The numbers are those of Linen's own `init`.
"""

import contextvars
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jax.sharding import PartitionSpec

from nlhf_jax.networks import axes
from nlhf_jax.types import Params, PRNGKey

# (key, shape, dtype) -> an array.
Initializer = Callable[..., jax.Array]


class Draw(NamedTuple):
  """A random array that is wanted."""

  key: PRNGKey
  # Draws that have the very same one, shape, dtype and axes are made together.
  initializer: Initializer
  shape: tuple[int, ...]
  axes: axes.Names
  dtype: Any = jnp.float32


# id of a placeholder → the placeholder, which is kept so that ids stay unique, and the draw that replaces it; None: draws are made at once.
_deferred: contextvars.ContextVar[dict[int, tuple[jax.Array, Draw]] | None] = (
  contextvars.ContextVar('deferred', default=None)
)


def declare(
  module: nn.Module,
  name: str,
  initializer: Initializer,
  shape: tuple[int, ...],
  names: axes.Names,
) -> jax.Array:
  """The parameter of a Linen module, float32.

  Args:
    module: whose parameter it is; outside of Linen's lifted transforms (`nn.remat`, `nn.scan`), whose tracers cannot be kept.
    name: of the parameter.
    initializer: layers must share one function object, or each array is compiled and drawn by itself.
    shape: of the parameter.
    names: of its axes.
  """
  if module.has_variable('params', name):
    # Linen would trace the initialiser here, for the shape, at every use of every parameter.
    found: jax.Array = module.get_variable('params', name)
    if found.shape != shape:
      where = '/'.join([*module.scope.path, name])
      raise ValueError(f'{where} must have the shape {shape}, got {found.shape}.')
    return partitioning.with_sharding_constraint(found, PartitionSpec(*names))

  def make(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    deferred = _deferred.get()
    if deferred is None:
      return initializer(key, shape, dtype)
    place = jnp.zeros(shape, dtype)
    deferred[id(place)] = place, Draw(key, initializer, shape, names, dtype)
    return place

  return partitioning.param_with_axes(name, make, shape, jnp.float32, axes=names, module=module)


def init(network: axes.HasInit) -> Callable[[PRNGKey], Params]:
  """rng -> parameters of a network with T5X's call signature."""

  def run(rng: PRNGKey) -> Params:
    deferred: dict[int, tuple[jax.Array, Draw]] = {}
    token = _deferred.set(deferred)
    try:
      places = axes.variables(network, rng)['params']
    finally:
      _deferred.reset(token)
    drawn = dict(zip(deferred, draw([wanted for _, wanted in deferred.values()]), strict=True))
    if missing := set(drawn) - {id(x) for x in jax.tree.leaves(places)}:
      raise RuntimeError(
        f'{len(missing)} parameters were declared and not kept as they were given.'
      )
    return jax.tree.map(lambda x: drawn.get(id(x), x), places)

  return run


def draw(wanted: Sequence[Draw]) -> list[jax.Array]:
  """The arrays, in the order asked for; those of one kind by one compiled loop."""
  alike = defaultdict(list)
  for number, each in enumerate(wanted):
    alike[each._replace(key=None)].append(number)
  found: dict[int, jax.Array] = {}
  for kind, numbers in alike.items():

    def one(key: PRNGKey, kind: Draw = kind) -> jax.Array:
      return axes.constrain(kind.initializer(key, kind.shape, kind.dtype), *kind.axes)

    keys = jax.lax.concatenate([_typed(wanted[number].key)[None] for number in numbers], 0)
    arrays = jax.lax.map(one, keys) if len(numbers) > 1 else [one(keys[0])]
    found |= dict(zip(numbers, arrays, strict=True))
  return [found[number] for number in range(len(wanted))]


def _typed(key: PRNGKey) -> PRNGKey:
  """A key of the new kind, which has no axes; Linen gives some of either."""
  return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
