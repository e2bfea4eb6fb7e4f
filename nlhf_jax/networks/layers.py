"""Layers of T5 1.1, with T5X's parameter names, logical axes and numerics."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e10
_FAN_IN = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class Dense(nn.Module):
  """x W, no bias."""

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b F']:
    kernel = partitioning.param_with_axes(
      'kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32, axes=self.kernel_axes
    )
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class LayerNorm(nn.Module):
  """RMS norm: a scale, no mean and no bias; in float32."""

  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b E']:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    scale = partitioning.param_with_axes(
      'scale', nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=('embed',)
    )
    return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Embed(nn.Module):
  """Token embedding, which may serve as the output layer too."""

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    self.embedding = partitioning.param_with_axes(
      'embedding',
      nn.initializers.normal(1.0),
      (self.num_embeddings, self.features),
      jnp.float32,
      axes=('vocab', 'embed'),
    )

  def __call__(self, tokens: Int[Array, '*b']) -> Float[Array, '*b E']:
    return self.embedding.astype(self.dtype)[tokens]

  def attend(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    return jnp.dot(x.astype(self.dtype), self.embedding.astype(self.dtype).T)


class RelativePositionBias(nn.Module):
  """One learnt bias per head and bucket of distance; a stack's layers share it."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, query_positions: Int[Array, 'Q'], key_positions: Int[Array, 'K']
  ) -> Float[Array, '1 heads Q K']:
    embedding = partitioning.param_with_axes(
      'rel_embedding',
      nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform'),
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )
    buckets = self._bucket(key_positions[None, :] - query_positions[:, None])
    return embedding.astype(self.dtype)[:, buckets][None]

  def _bucket(self, distance: Int[Array, 'Q K']) -> Int[Array, 'Q K']:
    """Half of the buckets hold one distance each, the others share what is farther, on a log scale."""
    buckets, offset = self.num_buckets, 0
    if self.bidirectional:
      buckets //= 2
      offset = jnp.where(distance > 0, buckets, 0)
      distance = jnp.abs(distance)
    else:
      distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact + np.finfo(np.float32).eps)
    far = exact + (ratio / np.log(self.max_distance / exact) * (buckets - exact)).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class MlpBlock(nn.Module):
  """Gated feed-forward: (act(x W_0) · x W_1) W_o; with one activation, act(x W) W_o."""

  mlp_dim: int
  activations: Sequence[str]
  dropout_rate: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b T E'], deterministic: bool) -> Float[Array, '*b T E']:
    hidden = 1.0
    for number, name in enumerate(self.activations):
      dense_name = 'wi' if len(self.activations) == 1 else f'wi_{number}'
      projected = Dense(self.mlp_dim, ('embed', 'mlp'), self.dtype, name=dense_name)(x)
      hidden = hidden * (projected if name == 'linear' else getattr(nn, name)(projected))
    hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic)
    return Dense(x.shape[-1], ('mlp', 'embed'), self.dtype, name='wo')(hidden)


class Attention(nn.Module):
  """Multi-head attention, as self-attention or onto an encoder's output, cached or not.

  No 1/√d: the initialiser of the query is scaled instead. With decode=True self-attention appends one position a call
  to its cache; attention onto an encoder keeps that encoder's keys and values from the first call on. An encoder batch
  of B serves N = B·k decoder rows without being repeated: the k rows of a prompt are folded into its query length.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float
  dtype: Any = jnp.float32
  float32_logits: bool = False

  @nn.compact
  def __call__(
    self,
    inputs_q: Float[Array, 'N Q E'],
    inputs_kv: Float[Array, 'B K F'],
    mask: Bool[Array, 'M 1 R J'] | None = None,
    bias: Float[Array, '1 heads R J'] | None = None,
    *,
    deterministic: bool = True,
    cache_length: int | None = None,
    cross: bool = False,
  ) -> Float[Array, 'N Q E']:
    """Args: mask is True where a query may look; cache_length turns decoding on; cross tells the two kinds apart."""
    project = self._projections()
    rows, num_queries = inputs_q.shape[:2]
    query = self._split(project['query'](inputs_q))
    if cache_length is None:
      key, value = (self._split(project[name](inputs_kv)) for name in ('key', 'value'))
    elif cross:
      key, value = self._keep(project, inputs_kv)
    else:
      key, value = self._append(project, inputs_kv, cache_length)
    query = query.reshape(key.shape[0], -1, self.num_heads, self.head_dim)  # k rows a prompt: one.
    x = self._attend(query, key, value, mask, bias, deterministic)
    x = x.reshape(rows, num_queries, self.num_heads * self.head_dim)
    return Dense(inputs_q.shape[-1], ('joined_kv', 'embed'), self.dtype, _FAN_IN, name='out')(x)

  def _projections(self) -> dict[str, Dense]:
    features = self.num_heads * self.head_dim

    def query_init(*args):
      return _FAN_IN(*args) / np.sqrt(self.head_dim)

    inits = {'query': query_init, 'key': _FAN_IN, 'value': _FAN_IN}
    return {
      name: Dense(features, ('embed', 'joined_kv'), self.dtype, init, name=name)
      for name, init in inits.items()
    }

  def _split(self, x: Float[Array, 'N Q joined']) -> Float[Array, 'N Q heads d']:
    return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

  def _attend(self, query, key, value, mask, bias, deterministic) -> Float[Array, 'B Q heads d']:
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    if bias is not None:
      logits = logits + bias
    if mask is not None:
      logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(self.dtype)
    weights = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(weights, deterministic)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, value)

  def _keep(self, project, encoded):
    """Keys and values of the encoder's output: computed at the first call, kept for the others."""

    def compute(name):
      return lambda: self._split(project[name](encoded))

    return tuple(
      self.variable('cache', f'cached_{name}', compute(name)).value for name in ('key', 'value')
    )

  def _append(self, project, inputs, length: int):
    """Writes this position's key and value into the cache, and returns all of them."""
    shape = (inputs.shape[0], length, self.num_heads, self.head_dim)
    index = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
    result = []
    for name in ('key', 'value'):
      cached = self.variable('cache', f'cached_{name}', jnp.zeros, shape, self.dtype)
      new = self._split(project[name](inputs))
      cached.value = jax.lax.dynamic_update_slice(cached.value, new, (0, index.value, 0, 0))
      result.append(cached.value)
    index.value = index.value + 1
    return result
