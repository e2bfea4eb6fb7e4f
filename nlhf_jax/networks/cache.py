"""Keys and values of what was read before: made, advanced, appended to and grown.

A decoder's cache is its collection `cache`: the keys and values of each layer's new positions, and how many positions
were written (`cache_index`). It is a ring: at each call the new keys and values of all rows go to the same place, the
oldest. A row may have begun its response at any call; it then sees only what is no older than that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import axes

# Logical axes of queries, keys and values, in any order of the last two.
PER_HEAD = ('batch', 'heads', None, None)
# Which axis of a layer's array is that of positions.
_LENGTH_AXIS = {'cached_key': 3, 'cached_value': 2}


class KeysAndValues(NamedTuple):
  """Keys and values of one layer, in the layouts that attention reads without copying."""

  key: Float[Array, 'B heads d S']
  value: Float[Array, 'B heads S d']


class Cache(NamedTuple):
  """What a decoder's layers know of its cache in one call, of Q new positions in a cache of K."""

  # K; static.
  capacity: int
  # Where the first new position goes.
  place: Int[Array, '']
  # The new positions, counted in their responses.
  positions: Int[Array, '#N Q']
  # How many positions before each new one every place was written; 0 is the new one itself.
  ages: Int[Array, 'Q K']
  # Whether this call just allocates; static.
  allocates: bool


def make(step: Callable[..., tuple[Any, Any]], *args: Any) -> Any:
  """An empty cache: zeros, of the shapes of what `step(*args)` would return second."""
  _, cache = jax.eval_shape(step, *args)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)


def advance(
  decoder: nn.Module,
  num_positions: int,
  max_decode_length: int | None,
  positions: Int[Array, 'N Q'] | None,
) -> Cache:
  """Counts the new positions of a call of a decoder that continues responses.

  The first call makes the cache. Without `max_decode_length` that call just allocates, as in T5X.

  Args:
    decoder: the bound module that owns the cache.
    num_positions: Q, new positions of each row.
    max_decode_length: K, length of the longest response.
    positions: of the new tokens in their responses; None: all rows began at the first call.
  """
  new = not decoder.has_variable('cache', 'cache_index')
  allocates = new and max_decode_length is None
  clock = jnp.zeros((), jnp.int32) if new else decoder.get_variable('cache', 'cache_index')
  decoder.put_variable('cache', 'cache_index', clock if allocates else clock + num_positions)
  length = max_decode_length or num_positions
  now = clock + jnp.arange(num_positions)
  ages = (now[:, None] - jnp.arange(length)) % length
  positions = now[None] if positions is None else positions
  return Cache(length, clock % length, positions, ages, allocates)


def append(attention: nn.Module, new: KeysAndValues, cache: Cache) -> KeysAndValues:
  """Writes the new positions into a layer's part of the cache and returns all that it holds."""

  def write(name: str, x: jax.Array) -> jax.Array:
    axis = _LENGTH_AXIS[name]
    shape = (*x.shape[:axis], cache.capacity, *x.shape[axis + 1 :])
    known = attention.has_variable('cache', name)
    held = attention.get_variable('cache', name) if known else jnp.zeros(shape, x.dtype)
    if not cache.allocates:
      held = jax.lax.dynamic_update_slice_in_dim(held, x, cache.place, axis)
    held = axes.constrain(held, *PER_HEAD)
    attention.put_variable('cache', name, held)
    return held

  return KeysAndValues(write('cached_key', new.key), write('cached_value', new.value))


def capacity(cache: Any) -> int:
  """Tokens of each response that a cache, T5X's too, can hold."""
  leaves = flax.traverse_util.flatten_dict(cache)
  return next(x.shape[-1] for path, x in leaves.items() if path[-1] == 'cached_key')


def grow(cache: Any, length: int) -> Any:
  """The same cache with capacity for more tokens; it must not have wrapped around."""

  def enlarge(path: tuple[str, ...], x: jax.Array) -> jax.Array:
    axis = _LENGTH_AXIS.get(path[-1])
    if axis is None:
      return x
    return jnp.pad(x, [(0, length - x.shape[n] if n == axis else 0) for n in range(x.ndim)])

  leaves = flax.traverse_util.flatten_dict(cache)
  return flax.traverse_util.unflatten_dict({path: enlarge(path, x) for path, x in leaves.items()})
