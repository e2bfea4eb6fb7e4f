"""Attention of decoder-only networks: grouped queries read a prompt, shared by its responses, and their own response.

Each of the two is attended apart, and their softmaxes are joined.

Source: Ainslie et al. (2023), arXiv:2305.13245 (grouped-query attention).
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import attention, axes, layers, rope
from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.networks.cpu import attend as on_cpu
from nlhf_jax.networks.llama_config import LlamaConfig


class View(NamedTuple):
  """How the layers of a kind see positions in one call."""

  # Radians per position; 0: without positions.
  frequencies: Float[Array | np.ndarray, 'h']
  # Of what is rotated.
  amplitude: float | Float[Array, '']
  mask: Bool[Array, '#N Q K']
  # None: there is no prompt.
  prompt_mask: Bool[Array, 'B M S'] | None


def distances(length: int) -> Int[Array, 'length length']:
  """How many positions each key stands before each query."""
  positions = jnp.arange(length)
  return positions[:, None] - positions


def sees(
  ages: Int[Array, 'Q K'], positions: Int[Array, '#N Q'], window: int | None
) -> Bool[Array, '#N Q K']:
  """Itself and what came before, since position 0 and within the window; `ages` are distances backwards."""
  furthest = positions if window is None else jnp.minimum(positions, window - 1)
  return (ages >= 0) & (ages <= furthest[..., None])


def sees_prompt(
  positions: Int[Array, 'N Q'], last: Int[Array, 'B'], length: int, window: int | None
) -> Bool[Array, 'B M S']:
  """All of the prompt but its last token and padding, within the window; rows folded as in `_attend_shared`."""
  keys = jnp.arange(length)
  mask = (keys < last[:, None])[:, None]
  if window is None:
    return mask
  return mask & (positions.reshape(last.shape[0], -1, 1) - keys < window)


def soft_cap(x: Float[Array, '*b'], cap: float | None) -> Float[Array, '*b']:
  """c tanh(x / c): x itself near 0, and never beyond ±c; x where there is no bound."""
  return x if cap is None else cap * jnp.tanh(x / cap)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions: R heads of queries share each of the G heads of keys and values."""

  config: LlamaConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    positions: Int[Array, '#N Q'],
    view: View,
    prompt: kv_cache.KeysAndValues | None,
    cache: kv_cache.Cache | None,
  ) -> tuple[Float[Array, 'N Q E'], kv_cache.KeysAndValues]:
    cfg = self.config
    rotation = rope.rotation(positions, view.frequencies, view.amplitude)
    scale = 1 / math.sqrt(cfg.query_dim or cfg.head_dim)
    query = _grouped(rope.rotate(self._project('query', x, cfg.num_heads), rotation) * scale, cfg)
    own = kv_cache.KeysAndValues(
      rope.rotate(self._project('key', x, cfg.num_kv_heads), rotation).transpose(0, 2, 3, 1),
      self._project('value', x, cfg.num_kv_heads).swapaxes(1, 2),
    )
    own = kv_cache.KeysAndValues(*(axes.constrain(x, *kv_cache.PER_HEAD) for x in own))
    if cache is not None:
      own = kv_cache.append(self, own, cache)
    cap = cfg.attention_soft_cap
    one = cache is not None and x.shape[1] == 1
    if one and cap is None and on_cpu.available(cfg.head_dim, own.key.dtype):
      attended = _attend_on_cpu(query, own, view, prompt)
    elif one and prompt is not None:
      attended = _attend_at_once(query, own, view, prompt, cap)
    else:
      parts = [_attend(query, own, view.mask, cap)]
      if prompt is not None:
        parts.append(_attend_shared(query, prompt, view.prompt_mask, cap))
      attended = _join(parts)
    attended = attended.astype(cfg.dtype).transpose(0, 3, 1, 2, 4).reshape(*x.shape[:2], -1)
    out = layers.Dense(cfg.emb_dim, ('joined_kv', 'embed'), cfg.dtype, name='out')(attended)
    return out, own

  def _project(
    self, name: str, x: Float[Array, 'N Q E'], heads: int
  ) -> Float[Array, 'N Q heads d']:
    cfg = self.config
    features = heads * cfg.head_dim
    dense = layers.Dense(
      features, ('embed', 'joined_kv'), cfg.dtype, use_bias=cfg.qkv_bias, name=name
    )
    y, norm_of = dense(x), cfg.qk_norm if name != 'value' else None
    norm = functools.partial(
      layers.LayerNorm,
      cfg.dtype,
      cfg.norm_epsilon,
      offset=cfg.norm_offset,
      name=f'{name}_norm',
    )
    y = norm('joined_kv')(y) if norm_of == 'projection' else y
    y = y.reshape(*x.shape[:2], heads, cfg.head_dim)
    return norm('kv')(y) if norm_of == 'head' else y


def _grouped(query: Float[Array, 'N Q heads d'], cfg: LlamaConfig) -> Float[Array, 'N G R Q d']:
  """Queries by the head of keys and values that they share."""
  query = query.reshape(*query.shape[:2], cfg.num_kv_heads, -1, cfg.head_dim)
  return query.transpose(0, 2, 3, 1, 4)


class _Part(NamedTuple):
  """Attention over some of the keys: Σ_k e^{a_k − m} v_k, Σ_k e^{a_k − m}, and m, the largest a_k; float32."""

  total: Float[Array, 'N G R Q d']
  weight: Float[Array, 'N G R Q']
  largest: Float[Array, 'N G R Q']


def _attend(
  query: Float[Array, 'N G R Q d'],
  inputs: kv_cache.KeysAndValues,
  mask: Bool[Array, '#N #Q K'],
  cap: float | None,
) -> _Part:
  logits = _logits(query, inputs.key, mask, cap)
  # Any constant in place of the largest gives the same attention, so that no gradient is lost.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  weights = jnp.exp(logits - largest[..., None])
  return _Part(_total(weights, inputs.value), jnp.sum(weights, axis=-1), largest)


def _logits(
  query: Float[Array, 'N G R Q d'],
  key: Float[Array, 'N G d K'],
  mask: Bool[Array, '#N #Q K'],
  cap: float | None,
) -> Float[Array, 'N G R Q K']:
  size = query.shape
  rows = query.reshape(*size[:2], -1, size[-1])  # All that read one head, in one product.
  logits = soft_cap(jnp.matmul(rows, key, preferred_element_type=jnp.float32), cap)
  return jnp.where(mask[:, None, None], logits.reshape(*size[:-1], -1), attention.MASKED)


def _total(
  weights: Float[Array, 'N G R Q K'], value: Float[Array, 'N G K d']
) -> Float[Array, 'N G R Q d']:
  size = weights.shape
  rows = weights.reshape(*size[:2], -1, size[-1]).astype(value.dtype)
  total = jnp.matmul(rows, value, preferred_element_type=jnp.float32)
  return total.reshape(*size[:-1], -1)


def _attend_shared(
  query: Float[Array, 'N G R Q d'],
  prompt: kv_cache.KeysAndValues,
  mask: Bool[Array, 'B M S'],
  cap: float | None,
) -> _Part:
  """Onto the prompts: the k rows that answer one are folded into its length of queries."""
  part = _attend(_fold(query, prompt.key.shape[0]), prompt, mask, cap)
  return jax.tree.map(functools.partial(_unfold, length=query.shape[3]), part)


def _fold(x: Float[Array, 'N G R Q *d'], num_prompts: int) -> Float[Array, 'B G R kQ *d']:
  """The k rows of each prompt side by side."""
  size = x.shape
  folded = jnp.moveaxis(x.reshape(num_prompts, -1, *size[1:]), 1, 3)
  return folded.reshape(num_prompts, *size[1:3], -1, *size[4:])


def _unfold(x: Float[Array, 'B G R kQ *d'], length: int) -> Float[Array, 'N G R Q *d']:
  """The rows again, of Q positions each."""
  x = x.reshape(*x.shape[:3], -1, length, *x.shape[4:])
  x = jnp.moveaxis(x, 3, 1)
  return x.reshape(-1, *x.shape[2:])


def _attend_at_once(
  query: Float[Array, 'N G R 1 d'],
  own: kv_cache.KeysAndValues,
  view: View,
  prompt: kv_cache.KeysAndValues,
  cap: float | None,
) -> Float[Array, 'N G R 1 d']:
  """One new position of each row, onto the keys of both parts: fewer operations, of which each starts a kernel, than `_join` takes."""
  num_prompts, num_own = prompt.key.shape[0], own.key.shape[-1]
  on_prompt = _logits(_fold(query, num_prompts), prompt.key, view.prompt_mask, cap)
  logits = [_logits(query, own.key, view.mask, cap), _unfold(on_prompt, 1)]
  weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
  total = _total(_fold(weights[..., num_own:], num_prompts), prompt.value)
  return _total(weights[..., :num_own], own.value) + _unfold(total, 1)


def _attend_on_cpu(
  query: Float[Array, 'N G R 1 d'],
  own: kv_cache.KeysAndValues,
  view: View,
  prompt: kv_cache.KeysAndValues | None,
) -> Float[Array, 'N G R 1 d']:
  """One new position of each row, onto all that it sees at once."""

  def part(inputs: kv_cache.KeysAndValues, mask: Bool[Array, '#N #Q K']) -> on_cpu.Part:
    bias = jnp.where(mask, 0.0, attention.MASKED).reshape(-1, 1, mask.shape[-1])
    return inputs.key, inputs.value, bias.astype(jnp.float32)

  parts = [part(own, view.mask)]
  if prompt is not None:
    parts.append(part(prompt, view.prompt_mask))
  return on_cpu.attend(query[..., 0, :].astype(jnp.float32), parts)[..., None, :]


def _join(parts: list[_Part]) -> Float[Array, 'N G R Q d']:
  """Softmax attention over the keys of all parts."""
  largest = jnp.max(jnp.stack([part.largest for part in parts]), axis=0)
  scales = [jnp.exp(part.largest - largest) for part in parts]
  scaled = list(zip(parts, scales, strict=True))
  total = sum((part.total * scale[..., None] for part, scale in scaled), jnp.float32(0))
  weight = sum((part.weight * scale for part, scale in scaled), jnp.float32(0))
  return total / weight[..., None]
