"""Numbers that tell whether arrays are what they were, however they are sharded; they guard against corruption, not malice."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Numbers of a tree's arrays that NumPy goes through sooner than XLA compiles a program for each shape.
_SMALL = 1 << 22


def fingerprint_arrays(tree: Any) -> dict[str, int]:
  """A number for each array, by its path: any change to any one entry changes it, its sharding does not."""
  tree = jax.tree.map(_plain, tree)
  # On the device by one program for each shape, and not one for all arrays, which takes longer to compile than to run.
  number = _number_on_host if is_small(tree) else _number_on_device
  numbers = jax.device_get(jax.tree.map(number, tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): int(x)
    for path, x in jax.tree_util.tree_leaves_with_path(numbers)
  }


def fingerprint_tree(tree: Any) -> str:
  """One for all arrays of a tree together."""
  return fingerprint_json(fingerprint_arrays(tree))


def fingerprint_json(value: Any) -> str:
  """One of what JSON can hold, such as the numbers of a tree's arrays."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def is_small(tree: Any) -> bool:
  """Whether this process has all of a tree's arrays of JAX, and NumPy is the faster way through them."""
  leaves = jax.tree.leaves(tree)
  return sum(x.size for x in leaves) <= _SMALL and all(x.is_fully_addressable for x in leaves)


def _plain(x: Any) -> jax.Array:
  """As an array of JAX; of a typed key its numbers."""
  x = jnp.asarray(x)
  return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _number_on_host(array: jax.Array) -> np.uint32:
  x = np.asarray(array)
  bits = np.ravel(x if x.dtype == bool else x.view(f'uint{8 * x.dtype.itemsize}'))
  return _sum_of_bits(bits, np.arange(x.size, dtype=np.uint32))


@jax.jit
def _number_on_device(x: jax.Array) -> jax.Array:
  bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(np.uint32, bits.shape, axis)
  return _sum_of_bits(bits, index)


def _sum_of_bits(bits: Any, index: Any) -> Any:
  """Σ_i h(bits_i ⊕ h(i + 1)) mod 2³²: integers, so that the order of summation does not matter."""
  scattered = _scatter(bits.astype(np.uint32) ^ _scatter(index + np.uint32(1)))
  return scattered.sum(dtype=np.uint32)


def _scatter(x: Any) -> Any:
  """The finaliser of MurmurHash3, a bijection of 32 bits."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
