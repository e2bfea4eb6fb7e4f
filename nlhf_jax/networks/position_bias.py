"""T5's bias of attention by relative position. Source: Raffel et al. (2020), arXiv:1910.10683, section 2.1."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import axes, parameters

_FAN_AVG = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


class RelativePositionBias(nn.Module):
  """One learnt bias per head and bucket of distance; a stack's layers share it."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32
  # Start with heads that see a few neighbours.
  near_sighted: bool = False

  @nn.compact
  def __call__(self, distance: Int[Array, 'Q K']) -> Float[Array, '1 heads Q K']:
    """The biases of keys that stand `distance` positions after the query; before it where that is negative."""
    embedding = parameters.declare(
      self,
      'rel_embedding',
      self._near_sighted_init if self.near_sighted else _FAN_AVG,
      (self.num_heads, self.num_buckets),
      ('heads', 'relpos_buckets'),
    )
    number = jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
    buckets = jnp.asarray(self._buckets())[number]
    bias = jnp.asarray(embedding, self.dtype)[:, buckets][None]
    return axes.constrain(bias, None, 'heads', None, None)

  def _near_sighted_init(self, key, shape, dtype) -> Float[Array, 'heads buckets']:
    """+1 within a head's window, −4 outside; the heads' windows alternate: next 5, previous 5, next 1, everything.

    A marker has to gather its sentence before anything else can be learnt. Started like this, a
    policy reads its posts after 400 steps; T5's small random biases take over 2,000 (docs/LOG.md).
    """
    del key
    windows = [range(1, 6), range(-5, 0), range(1, 2), range(-self.max_distance, self.max_distance)]
    bias = np.full(shape, -4.0)
    for head in range(self.num_heads):
      seen = np.array(windows[head % len(windows)]) + self.max_distance
      bias[head, self._buckets()[seen]] = 1.0
    return jnp.asarray(bias, dtype)

  def _buckets(self) -> np.ndarray:
    """The bucket of each distance from −max_distance to max_distance; farther ones share the last.

    Half of a direction's buckets hold one distance each, the others grow on a log scale. In NumPy,
    since a compiler's logarithm may round a distance of 16 or 32, which lies on the edge of two
    buckets, to the wrong side.
    """
    distance = np.arange(-self.max_distance, self.max_distance + 1)
    buckets, offset = self.num_buckets, np.zeros_like(distance)
    if self.bidirectional:
      buckets //= 2
      offset = np.where(distance > 0, buckets, 0)
      distance = np.abs(distance)
    else:
      distance = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / np.log(self.max_distance / exact)
    shared = exact + np.floor(ratio * (buckets - exact) + 1e-6).astype(int)
    return offset + np.where(distance < exact, distance, np.minimum(shared, buckets - 1))
