"""Attention of one new position of each lane, in the time that reading keys and values takes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.networks.cpu import native

# Keys, values, and what is added to the logits: [rows, heads, d, K], [rows, heads, K, d], [1, rows or N; 1 or heads; K].
Part = tuple[Array, Array, Array]


def available(size: int, dtype: Any) -> bool:
  """Whether it can be called here and is worth it, for heads of this size and type; compiles it, at the first call."""
  fits = size % 32 == 0 and jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
  return fits and native.available('attend')


def attend(
  query: Float[Array, 'N heads queries d'], parts: Sequence[Part]
) -> Float[Array, 'N heads queries d']:
  """softmax(q·k + bias) v over the keys of one or two parts together, summed up in float32; not differentiable.

  Args:
    query: float32, scaled.
    parts: consecutive lanes share a row of keys and values, in float32 or bfloat16; the bias is float32.
  """

  def plain(query: Array, *arrays: Array) -> Array:
    return attend_plainly(query, list(zip(*(arrays[n::3] for n in range(3)), strict=True)))

  return native.call('attend', plain, query.shape, query, *(x for part in parts for x in part))


def attend_plainly(
  query: Float[Array, 'N heads queries d'], parts: Sequence[Part]
) -> Float[Array, 'N heads queries d']:
  """The same by XLA, on any device."""
  lanes = query.shape[0]

  def by_lane(x: Array) -> Array:
    return jnp.repeat(x.astype(jnp.float32), lanes // x.shape[0], axis=0)

  keys, values, bias = ([by_lane(part[n]) for part in parts] for n in range(3))
  bias = [jnp.broadcast_to(x, (lanes, query.shape[1], x.shape[2])) for x in bias]
  logits = query @ jnp.concatenate(keys, axis=3) + jnp.concatenate(bias, axis=2)[:, :, None]
  return jax.nn.softmax(logits, axis=-1) @ jnp.concatenate(values, axis=2)
