"""Layers of T5 1.1 and of decoder-only networks, with T5X's parameter names, logical axes and numerics."""

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import axes

MASKED = -1e10
_FAN_AVG = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
_FAN_IN = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


def output_major(weights: Float[Array, 'F E'], x: Float[Array, '*b E']) -> Float[Array, '*b F']:
  """x Wᵀ for few rows on a CPU: so many outputs of one row after another, rather than rows of outputs.

  A compiler for CPUs reads the weights a third to a half faster like this, and would put it back if it were let.
  """
  product = jnp.matmul(weights, x.reshape(-1, x.shape[-1]).T)
  return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], -1)


def few_rows_on_cpu(num_rows: int, dtype: Any) -> bool:
  """Whether a product takes its time for reading the weights, as `output_major` does faster."""
  return jax.default_backend() == 'cpu' and jnp.dtype(dtype) == jnp.float32 and num_rows <= 32


@jax.custom_vjp
def _multiply_on_cpu(x: Float[Array, '*b E'], kernel: Float[Array, 'E F']) -> Float[Array, '*b F']:
  """x W as a CPU does it best.

  Accelerators sum up in float32 anyway; on a CPU, asking for it is three times as fast. For the gradient of W either x or
  that of x W is laid out anew, together with all that it is computed from; autodiff takes the latter, this the narrower.
  """
  return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _multiply_forwards(x, kernel):
  return _multiply_on_cpu(x, kernel), (x, kernel)


def _multiply_backwards(inputs, gradient):
  x, kernel = inputs
  rows, of_rows = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  narrow = rows.shape[1] <= of_rows.shape[1]
  of_kernel = product(rows.T, of_rows) if narrow else product(of_rows.T, rows).T
  return product(gradient, kernel.T).astype(x.dtype), of_kernel.astype(kernel.dtype)


_multiply_on_cpu.defvjp(_multiply_forwards, _multiply_backwards)


class Dense(nn.Module):
  """x W, and + b where asked for.

  In place of its `kernel` it may be given one that is `transposed` (see `decoding.of_network`).
  """

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b F']:
    x = x.astype(self.dtype)
    cut = None if self.kernel_axes[1] == 'embed' else self.kernel_axes[1]
    if self.has_variable('params', 'transposed'):
      y = output_major(self.get_variable('params', 'transposed'), x)
    else:
      shape = (x.shape[-1], self.features)
      kernel = partitioning.param_with_axes(
        'kernel', self.kernel_init, shape, jnp.float32, axes=self.kernel_axes
      )
      multiply = _multiply_on_cpu if jax.default_backend() == 'cpu' else jnp.dot
      y = multiply(x, axes.gather(kernel.astype(self.dtype), self.kernel_axes))
    y = axes.constrain(y, 'batch', *[None] * (y.ndim - 2), cut)
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
    scale = axes.gather(scale, ('embed',))
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
    x = self._table()[tokens]
    return axes.constrain(x, 'batch', *[None] * (x.ndim - 1))

  def attend(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """Logits, summed up in float32 whatever the compute dtype."""
    embedding = self._table()
    if few_rows_on_cpu(x.size // x.shape[-1], x.dtype):
      logits = output_major(embedding, x)
    else:
      logits = jnp.dot(x.astype(self.dtype), embedding.T, preferred_element_type=jnp.float32)
    return axes.constrain(logits, 'batch', *[None] * (x.ndim - 2), 'vocab')

  def _table(self) -> Float[Array, 'V E']:
    return axes.gather(self.embedding.astype(self.dtype), ('vocab', 'embed'))


class RelativePositionBias(nn.Module):
  """One learnt bias per head and bucket of distance; a stack's layers share it."""

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: Any = jnp.float32
  near_sighted: bool = False  # Start with heads that see a few neighbours.

  @nn.compact
  def __call__(self, distance: Int[Array, 'Q K']) -> Float[Array, '1 heads Q K']:
    """The biases of keys that lie so many positions after the query."""
    embedding = partitioning.param_with_axes(
      'rel_embedding',
      self._near_sighted_init if self.near_sighted else _FAN_AVG,
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=('heads', 'relpos_buckets'),
    )
    number = jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance
    buckets = jnp.asarray(self._buckets())[number]
    bias = jnp.asarray(embedding, self.dtype)[:, buckets][None]
    return axes.constrain(bias, None, 'heads', None, None)

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


PER_HEAD = (
  'batch',
  'heads',
  None,
  None,
)  # Axes of queries, keys and values, in any order of the last two.


class Encoded(NamedTuple):
  """A layer's keys and values of prompts, as attention reads them."""

  key: Float[Array, 'B heads d S']
  value: Float[Array, 'B heads S d']


class Cache(NamedTuple):
  """What a decoder's layers know of the collection `cache` in one call.

  It is a ring: at each call the new keys and values of all rows go to the same place, whose turn it is. A row may have
  begun its response at any call; it then sees only what is no older than that.
  """

  length: int  # Places; static.
  place: Int[Array, '']  # Where the first new position goes.
  prepare: bool  # Whether this call allocates only; static.


def open_cache(
  decoder: nn.Module,
  num_positions: int,
  max_decode_length: int | None,
  positions: Int[Array, 'N 1'] | None,
) -> tuple[Cache, Int[Array, '#N Q'], Int[Array, 'Q K']]:
  """The cache of a call of a decoder that continues responses.

  The first call makes it. Without `max_decode_length` that call just allocates, as in T5X.

  Args:
    decoder: the module that owns the cache.
    num_positions: Q, new positions of each row.
    max_decode_length: length of the longest response.
    positions: of the new tokens in their responses; None: all rows began at the first call.

  Returns:
    The cache, the positions, and the age of every place, counted in positions before each new one.
  """
  new = not decoder.has_variable('cache', 'cache_index')
  prepare = new and max_decode_length is None
  clock = jnp.zeros((), jnp.int32) if new else decoder.get_variable('cache', 'cache_index')
  decoder.put_variable('cache', 'cache_index', clock if prepare else clock + num_positions)
  length = max_decode_length or num_positions
  now = clock + jnp.arange(num_positions)
  ages = (now[:, None] - jnp.arange(length)) % length
  return Cache(length, clock % length, prepare), now[None] if positions is None else positions, ages


def append_to_cache(attention: nn.Module, new: Encoded, cache: Cache) -> Encoded:
  """Writes the new positions into an attention's cache and returns all of it."""

  def write(name, x, axis):
    shape = (*x.shape[:axis], cache.length, *x.shape[axis + 1 :])
    known = attention.has_variable('cache', name)
    whole = attention.get_variable('cache', name) if known else jnp.zeros(shape, x.dtype)
    if not cache.prepare:
      whole = jax.lax.dynamic_update_slice_in_dim(whole, x, cache.place, axis)
    whole = axes.constrain(whole, *PER_HEAD)
    attention.put_variable('cache', name, whole)
    return whole

  return Encoded(write('cached_key', new.key, 3), write('cached_value', new.value, 2))


class Execution(NamedTuple):
  """How the layers of a stack are run where a gradient may be taken; results are the same."""

  # One compiled layer for all: programs compile sooner. The weights of the layers are stacked anew at each step, which takes
  # memory, and time on a CPU (docs/LOG.md); dropout must be off.
  scan: bool = False
  # What is computed again in the backward pass: 'none', 'layers' (all that is inside of them) or 'dots' (all but products
  # with weights). Dropout must be off.
  remat: str = 'none'


PLAIN = Execution()
_REMAT = {'layers': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def check_execution(how: Execution) -> None:
  if how.remat not in ('none', *_REMAT):
    raise ValueError(f'remat must be one of none, {", ".join(_REMAT)}, got {how.remat!r}.')


def run(
  stack: Sequence[nn.Module], x: Any, inputs: Sequence[Any], how: Execution, *args: Any
) -> tuple[Any, list[Any]]:
  """Runs the layers of a stack one after another: x, y = layer(x, input of the layer, *args).

  Args:
    stack: bound modules of one kind.
    x: what the first layer gets.
    inputs: of each layer, besides what the layer before makes; all of one shape, or one object for all.
    how: scanned, rematerialised, both or neither.
    *args: what all layers get; what is no array or pytree of arrays must be hashable.

  Returns:
    What the last layer makes, and the y of every layer.
  """
  if how == PLAIN or stack[0].is_initializing():
    return _one_by_one(
      lambda x, layer: layer[0](x, layer[1], *args), x, zip(stack, inputs, strict=True)
    )
  apply = stack[0].clone(parent=None).apply
  weights = [layer.variables['params'] for layer in stack]
  common = all(own is inputs[0] for own in inputs)

  def call(x, layer):
    return apply({'params': layer[0]}, x, inputs[0] if common else layer[1], *args)

  if how.remat != 'none':
    call = jax.checkpoint(call, policy=_REMAT[how.remat], prevent_cse=not how.scan)
  owned = list(zip(weights, [None] * len(stack) if common else inputs, strict=True))
  if not how.scan:
    return _one_by_one(call, x, owned)
  x, stacked = jax.lax.scan(call, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *owned))
  return x, [jax.tree.map(operator.itemgetter(n), stacked) for n in range(len(stack))]


def _one_by_one(call: Any, x: Any, owned: Iterable[Any]) -> tuple[Any, list[Any]]:
  """`jax.lax.scan` over what layers own, without a loop in the program."""
  results = []
  for layer in owned:
    x, y = call(x, layer)
    results.append(y)
  return x, results


class _Attention(nn.Module):
  """Multi-head attention; no 1/√d: the initialiser of the query is scaled instead."""

  num_heads: int
  head_dim: int
  features: int
  dropout_rate: float
  dtype: Any = jnp.float32
  float32_logits: bool = False

  def setup(self):
    joined = self.num_heads * self.head_dim
    inwards = functools.partial(Dense, joined, ('embed', 'joined_kv'), self.dtype)
    self.query = inwards(lambda *args: _FAN_IN(*args) / np.sqrt(self.head_dim))
    self.key, self.value = inwards(_FAN_IN), inwards(_FAN_IN)
    self.out = Dense(self.features, ('joined_kv', 'embed'), self.dtype, _FAN_IN)
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

  def _heads(self, x: Float[Array, 'N Q joined']) -> Float[Array, 'N heads Q d']:
    heads = x.reshape(*x.shape[:2], self.num_heads, self.head_dim).swapaxes(1, 2)
    return axes.constrain(heads, *PER_HEAD)

  def read(self, x: Float[Array, 'N K E']) -> Encoded:
    """Keys and values in the layouts that a step of decoding reads as they lie, without copying."""
    return Encoded(self._heads(self.key(x)).swapaxes(2, 3), self._heads(self.value(x)))

  def _attend(
    self,
    query: Float[Array, 'B heads Q d'],
    read: Encoded,
    mask: Bool[Array, '#B 1 #Q K'] | None,
    bias: Float[Array, '1 heads Q K'] | None,
    deterministic: bool,
  ) -> Float[Array, 'B heads Q d']:
    """softmax(q·k + bias) v over the keys that the mask allows."""
    key = read.key
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.matmul(query, key)
    if bias is not None:
      logits = logits + bias
    if mask is not None:
      logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(self.dtype)
    return jnp.matmul(self.dropout(weights, deterministic), read.value)

  def _output(self, x: Float[Array, 'N heads Q d']) -> Float[Array, 'N Q E']:
    return self.out(x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1))


class SelfAttention(_Attention):
  """Attention of a sequence onto itself; with a cache, of new positions onto those before them."""

  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    mask: Bool[Array, '#N 1 #Q K'] | None,
    bias: Float[Array, '1 heads Q K'],
    deterministic: bool,
    cache: Cache | None = None,
  ) -> Float[Array, 'N Q E']:
    query, read = self._heads(self.query(x)), self.read(x)
    if cache is not None:
      read = append_to_cache(self, read, cache)
    return self._output(self._attend(query, read, mask, bias, deterministic))


class CrossAttention(_Attention):
  """Attention of a decoder onto an encoder's output.

  An encoder batch of B serves N = B·k decoder rows without being repeated: the k rows of a prompt
  are folded into its query length. This is exact, since here no query is masked or biased by its
  position; dropout of attention weights, which broadcasts over queries, is shared by the k rows.
  """

  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    encoded: Float[Array, 'B K E'] | Encoded,
    mask: Bool[Array, 'B 1 M K'],
    deterministic: bool,
  ) -> Float[Array, 'N Q E']:
    read = encoded if isinstance(encoded, Encoded) else self.read(encoded)
    folded = self.query(x).reshape(read.key.shape[0], -1, self.num_heads * self.head_dim)
    attended = self._attend(self._heads(folded), read, mask, None, deterministic)
    return self._output(attended).reshape(x.shape)


def check_rows(responses: Int[Array, 'N T'], prompts: Int[Array, 'B S']) -> None:
  if responses.shape[0] % prompts.shape[0]:
    raise ValueError(
      f'{responses.shape[0]} decoder rows for {prompts.shape[0]} prompts: '
      'give each prompt the same number of rows.'
    )
