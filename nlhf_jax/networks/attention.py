"""T5's multi-head attention, with T5X's parameter names, logical axes and numerics."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nlhf_jax.networks import axes, layers, parameters
from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.networks.cpu import attend as on_cpu

# A logit of what a query must not see.
MASKED = -1e10
_FAN_IN = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


@functools.cache
def _scaled(head_dim: int) -> parameters.Initializer:
  """Of queries: in place of dividing logits by √d; one object for all layers, which are drawn together."""
  return lambda *args: _FAN_IN(*args) / np.sqrt(head_dim)


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
    inwards = functools.partial(layers.Dense, joined, ('embed', 'joined_kv'), self.dtype)
    self.query = inwards(_scaled(self.head_dim))
    self.key, self.value = inwards(_FAN_IN), inwards(_FAN_IN)
    self.out = layers.Dense(self.features, ('joined_kv', 'embed'), self.dtype, _FAN_IN)
    self.dropout = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))

  def keys_and_values(self, x: Float[Array, 'N K E']) -> kv_cache.KeysAndValues:
    """What queries read of `x`."""
    key, value = self._heads(self.key(x)), self._heads(self.value(x))
    return kv_cache.KeysAndValues(key.swapaxes(2, 3), value)

  def _heads(self, x: Float[Array, 'N Q joined']) -> Float[Array, 'N heads Q d']:
    heads = x.reshape(*x.shape[:2], self.num_heads, self.head_dim).swapaxes(1, 2)
    return axes.constrain(heads, *kv_cache.PER_HEAD)

  def _attend(
    self,
    query: Float[Array, 'B heads Q d'],
    inputs: kv_cache.KeysAndValues,
    mask: Bool[Array, '#B 1 #Q K'] | None,
    bias: Float[Array, '1 heads Q K'] | None,
    deterministic: bool,
    one_mask_for_all: bool = False,
  ) -> Float[Array, 'B heads Q d']:
    """softmax(q·k + bias) v over the keys that the mask allows.

    Args:
      query, inputs, mask, bias, deterministic: as of attention everywhere.
      one_mask_for_all: this is decoding, and all queries of a row see the same keys with the same bias.
    """
    if one_mask_for_all and deterministic and on_cpu.available(self.head_dim, inputs.key.dtype):
      return self._attend_on_cpu(query, inputs, mask, bias)
    key = inputs.key
    if self.float32_logits:
      query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.matmul(query, key)
    if bias is not None:
      logits = logits + bias
    if mask is not None:
      logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(self.dtype)
    return jnp.matmul(self.dropout(weights, deterministic), inputs.value)

  def _attend_on_cpu(
    self,
    query: Float[Array, 'B heads Q d'],
    inputs: kv_cache.KeysAndValues,
    mask: Bool[Array, '#B 1 1 K'] | None,
    bias: Float[Array, '1 heads 1 K'] | None,
  ) -> Float[Array, 'B heads Q d']:
    """`_attend` where there is one mask for all; weights are not rounded to the type of activations."""
    added = jnp.zeros((1, 1, inputs.key.shape[-1])) if bias is None else bias[:, :, 0]
    if mask is not None:
      added = jnp.where(mask[:, :, 0], added, MASKED)
    part = inputs.key, inputs.value, added.astype(jnp.float32)
    return on_cpu.attend(query.astype(jnp.float32), [part]).astype(self.dtype)

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
    cache: kv_cache.Cache | None = None,
  ) -> Float[Array, 'N Q E']:
    query, inputs = self._heads(self.query(x)), self.keys_and_values(x)
    if cache is not None:
      inputs = kv_cache.append(self, inputs, cache)
    one = cache is not None and x.shape[1] == 1
    return self._output(self._attend(query, inputs, mask, bias, deterministic, one))


class CrossAttention(_Attention):
  """Attention of a decoder onto an encoder's output.

  An encoder batch of B serves N = B·k decoder rows without being repeated: the k rows of a prompt
  are folded into its query length. This is exact, since here no query is masked or biased by its
  position; dropout of attention weights, which broadcasts over queries, is shared by the k rows.
  """

  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    encoded: Float[Array, 'B K E'] | kv_cache.KeysAndValues,
    mask: Bool[Array, 'B 1 M K'],
    deterministic: bool,
    decode: bool = False,
  ) -> Float[Array, 'N Q E']:
    if isinstance(encoded, kv_cache.KeysAndValues):
      inputs = encoded
    else:
      inputs = self.keys_and_values(encoded)
    folded = self.query(x).reshape(inputs.key.shape[0], -1, self.num_heads * self.head_dim)
    one = decode and mask.shape[2] == 1
    attended = self._attend(self._heads(folded), inputs, mask, None, deterministic, one)
    return self._output(attended).reshape(x.shape)
