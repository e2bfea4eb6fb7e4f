"""Numbers that tell whether arrays are what they were, however they are sharded; they guard against corruption, not malice."""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp


def fingerprint_arrays(tree: Any) -> dict[str, int]:
  """A number for each array, by its path: any change to any one entry changes it, its sharding does not."""
  # One program for each shape, and not one of all arrays, which takes longer to compile than to run.
  numbers = jax.device_get(jax.tree.map(lambda x: _sum_of_bits(_plain(x)), tree))
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


def _plain(x: jax.Array) -> jax.Array:
  """The numbers of a typed key; all else as it is."""
  return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@jax.jit
def _sum_of_bits(x: jax.Array) -> jax.Array:
  """Σ_i h(bits_i ⊕ h(i)) mod 2³²: integers, so that the order of summation does not matter."""
  bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return jnp.sum(_scatter(bits.astype(jnp.uint32) ^ _scatter(index + 1)), dtype=jnp.uint32)


def _scatter(x: jax.Array) -> jax.Array:
  """The finaliser of MurmurHash3, a bijection of 32 bits."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
