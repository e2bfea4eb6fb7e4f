"""Layers of T5 1.1 and of decoder-only networks, with T5X's parameter names, logical axes and numerics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e10
_FAN_AVG = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
_FAN_IN = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class Dense(nn.Module):
  """x W, and + b where asked for."""

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b F']:
    kernel = partitioning.param_with_axes(
      'kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32, axes=self.kernel_axes
    )
    y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
    if not self.use_bias:
      return y
    bias = partitioning.param_with_axes(
      'bias', nn.initializers.zeros, (self.features,), jnp.float32, axes=self.kernel_axes[1:]
    )
    return y + bias.astype(self.dtype)


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
    return jnp.asarray(self.embedding, self.dtype)[tokens]

  def attend(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """Logits, in float32 whatever the compute dtype."""
    return jnp.dot(x.astype(jnp.float32), self.embedding.T)


class RelativePositionBias(nn.Module):
  """One learnt bias per head and bucket of distance; a stack's layers share it."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32
  near_sighted: bool = False  # Start with heads that see a few neighbours.

  @nn.compact
  def __call__(
    self, query_positions: Int[Array, 'Q'], key_positions: Int[Array, 'K']
  ) -> Float[Array, '1 heads Q K']:
    embedding = partitioning.param_with_axes(
      'rel_embedding',
      self._near_sighted_init if self.near_sighted else _FAN_AVG,
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )
    distance = key_positions[None, :] - query_positions[:, None]
    number = jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
    buckets = jnp.asarray(self._buckets())[number]
    return jnp.asarray(embedding, self.dtype)[:, buckets][None]

  def _near_sighted_init(self, key, shape, dtype) -> Float[Array, 'heads buckets']:
    """+1 within a head's window, −4 outside; windows in turn: next 5, previous 5, next 1, everything.

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


class Cache(NamedTuple):
  """How a decoder's layers use the collection `cache` in one call; static."""

  length: int  # Positions that it holds.
  keep_encoded: bool  # Whether this call stores the keys and values of the encoder's output.
  prepare: bool  # Whether this call allocates only: positions are not advanced.


def open_cache(
  decoder: nn.Module, num_positions: int, max_decode_length: int | None
) -> tuple[Cache, Int[Array, '']]:
  """How a call of a decoder uses its cache, and the first position that it decodes.

  The first call makes the cache. Without `max_decode_length` it just allocates, as in T5X.
  """
  new = not decoder.has_variable('cache', 'cache_index')
  prepare = new and max_decode_length is None
  first = jnp.zeros((), jnp.int32) if new else decoder.get_variable('cache', 'cache_index')
  decoder.put_variable('cache', 'cache_index', first if prepare else first + num_positions)
  return Cache(max_decode_length or num_positions, new and not prepare, prepare), first


def append_to_cache(
  attention: nn.Module,
  key: Float[Array, 'N heads d Q'],
  value: Float[Array, 'N heads d Q'],
  cache: Cache,
) -> tuple[Float[Array, 'N heads d K'], Float[Array, 'N heads d K']]:
  """Writes the new positions into an attention's cache and returns all of it."""
  index = attention.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
  shape = (*key.shape[:-1], cache.length)

  def write(name, new):
    cached = attention.variable('cache', name, jnp.zeros, shape, new.dtype)
    cached.value = jax.lax.dynamic_update_slice(cached.value, new, (0, 0, 0, index.value))
    return cached.value

  result = write('cached_key', key), write('cached_value', value)
  if not cache.prepare:
    index.value = index.value + key.shape[-1]
  return result


class _Attention(nn.Module):
  """Multi-head attention; no 1/√d: the initialiser of the query is scaled instead."""

  num_heads: int
  head_dim: int
  dropout_rate: float
  dtype: Any = jnp.float32
  float32_logits: bool = False

  def _project(self, name: str, x: Float[Array, 'N Q E']) -> Float[Array, 'N Q heads d']:
    scale = np.sqrt(self.head_dim) if name == 'query' else 1.0
    x = Dense(
      self.num_heads * self.head_dim,
      ('embed', 'joined_kv'),
      self.dtype,
      lambda *args: _FAN_IN(*args) / scale,
      name=name,
    )(x)
    return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

  def _attend(
    self,
    query: Float[Array, 'B Q heads d'],
    key: Float[Array, 'B heads d K'],
    value: Float[Array, 'B heads d K'],
    mask: Bool[Array, '#B 1 #Q K'] | None,
    bias: Float[Array, '1 heads Q K'] | None,
    deterministic: bool,
  ) -> Float[Array, 'B Q heads d']:
    """softmax(q·k + bias) v over the keys that the mask allows."""
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.einsum('bqhd,bhdk->bhqk', query, key)
    if bias is not None:
      logits = logits + bias
    if mask is not None:
      logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(self.dtype)
    weights = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(weights, deterministic)
    return jnp.einsum('bhqk,bhdk->bqhd', weights, value)

  def _output(self, x: Float[Array, 'N Q heads d'], features: int) -> Float[Array, 'N Q E']:
    x = x.reshape(*x.shape[:2], -1)
    return Dense(features, ('joined_kv', 'embed'), self.dtype, _FAN_IN, name='out')(x)


def length_last(x: Float[Array, 'N K heads d']) -> Float[Array, 'N heads d K']:
  """The layout of caches: attention reads it as it lies, copying any other at each step."""
  return x.transpose(0, 2, 3, 1)


class SelfAttention(_Attention):
  """Attention of a sequence onto itself; with a cache, of new positions onto those before them."""

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    mask: Bool[Array, '#N 1 #Q K'] | None,
    bias: Float[Array, '1 heads Q K'],
    *,
    deterministic: bool,
    cache: Cache | None = None,
  ) -> Float[Array, 'N Q E']:
    query = self._project('query', x)
    key, value = (length_last(self._project(name, x)) for name in ('key', 'value'))
    if cache is not None:
      key, value = append_to_cache(self, key, value, cache)
    return self._output(self._attend(query, key, value, mask, bias, deterministic), x.shape[-1])


class CrossAttention(_Attention):
  """Attention of a decoder onto an encoder's output.

  An encoder batch of B serves N = B·k decoder rows without being repeated: the k rows of a prompt
  are folded into its query length. This is exact, since here no query is masked or biased by its
  position; dropout of attention weights, which broadcasts over queries, is shared by the k rows.
  With a cache, keys and values are computed at the first step.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    encoded: Float[Array, 'B K E'],
    mask: Bool[Array, 'B 1 M K'],
    *,
    deterministic: bool,
    cache: Cache | None = None,
  ) -> Float[Array, 'N Q E']:
    rows, num_queries = x.shape[:2]
    query = self._project('query', x)
    query = query.reshape(encoded.shape[0], -1, self.num_heads, self.head_dim)
    key, value = (self._read(name, encoded, cache) for name in ('key', 'value'))
    attended = self._attend(query, key, value, mask, None, deterministic)
    attended = attended.reshape(rows, num_queries, self.num_heads, self.head_dim)
    return self._output(attended, x.shape[-1])

  def _read(
    self, name: str, encoded: Float[Array, 'B K E'], cache: Cache | None
  ) -> Float[Array, 'B heads d K']:
    def compute():
      return length_last(self._project(name, encoded))

    cached = f'cached_{name}'
    if cache is not None and (cache.keep_encoded or self.has_variable('cache', cached)):
      return self.variable('cache', cached, compute).value
    return compute()


def check_rows(responses: Int[Array, 'N T'], prompts: Int[Array, 'B S']) -> None:
  if responses.shape[0] % prompts.shape[0]:
    raise ValueError(
      f'{responses.shape[0]} decoder rows for {prompts.shape[0]} prompts: '
      'give each prompt the same number of rows.'
    )
