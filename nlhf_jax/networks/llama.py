"""Llama and its kin (SmolLM2, Qwen2.5, Mistral) in Flax Linen, with the method signatures of `t5`.

A decoder-only network is one stack over a prompt and its response. Here its pass is cut in two. `encode` runs the prompt
and gives its keys and values; `decode` runs responses, whose queries read those and their own. So the k responses to a
prompt share its pass and its cache, prompts need no padding on the left, and whatever works with T5 works with this.
The cut lies before the prompt's last token: that is what a response's stream starts with, where T5's starts with token 0.

Source: Touvron et al. (2023), arXiv:2302.13971; Su et al. (2021), arXiv:2104.09864 (rotary positions); Ainslie et al.
(2023), arXiv:2305.13245 (grouped-query attention).
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import layers


class RopeScaling(NamedTuple):
  """Llama 3.1's stretch of slow rotations, for contexts longer than those of pre-training."""

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The sizes of a decoder-only network; token 0 is padding, and 1 ends a response, whatever its own vocabulary says."""

  vocab_size: int
  dtype: Any = jnp.float32  # Of activations; parameters and logits are float32.
  emb_dim: int = 576
  num_heads: int = 9
  num_kv_heads: int = 3  # Each serves num_heads / num_kv_heads heads of queries.
  num_layers: int = 30
  head_dim: int = 64
  mlp_dim: int = 1536
  rope_base: float = 1e4
  rope_scaling: RopeScaling | None = None
  norm_epsilon: float = 1e-5
  qkv_bias: bool = False  # Qwen2.5 has biases on queries, keys and values.
  sliding_window: int | None = None  # Mistral 7B 0.1: a token sees so many, itself included.
  logits_via_embedding: bool = False
  # Ids of padding and of the end in the network's own vocabulary. They change places with 0 and 1 where weights are read or
  # written (runtime/hf.py) and in the tokenizer (data/vocabularies.py), so that one convention holds everywhere.
  pad_id: int = 0
  eos_id: int = 1

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}.'
      )
    if self.pad_id == self.eos_id:
      raise ValueError(
        f'pad_id and eos_id are both {self.pad_id}: name an id that no text uses for padding.'
      )


class Encoded(NamedTuple):
  """A layer's keys and values of a prompt."""

  key: Float[Array, 'B G d S']
  value: Float[Array, 'B G d S']


class Transformer(nn.Module):
  """One stack: `encode` runs prompts through it, `decode` responses.

  The batch of responses may be a multiple k of that of prompts: its rows i·k … i·k + k − 1 then answer prompt i.
  """

  config: LlamaConfig

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.decoder = Decoder(cfg)

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    encoder_segment_ids: None = None,
    enable_dropout: bool = False,
  ) -> tuple[Encoded, ...]:
    """Keys and values of prompts, one per layer; those of padding are never read."""
    del encoder_segment_ids, enable_dropout  # There is neither packing nor dropout.
    x = self.token_embedder(encoder_input_tokens)
    return self.decoder.encode(x)

  def decode(
    self,
    encoded: tuple[Encoded, ...],
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    enable_dropout: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'N T V']:
    """Logits of each target, float32; those where the target is padding mean nothing.

    Args:
      encoded: what `encode` made of the prompts.
      encoder_input_tokens: the prompts, of at least one token each.
      decoder_input_tokens: the responses, moved right by one. The first of them is not looked at: the prompt's last
        token stands there.
      decoder_target_tokens, enable_dropout: as T5's; not looked at.
      decode: the inputs are the next positions (usually one), those before them are in the collection `cache`, which
        the first such call makes.
      max_decode_length: positions of that cache.

    Raises:
      ValueError: N is no multiple of B.
    """
    del decoder_target_tokens, enable_dropout
    layers.check_rows(decoder_input_tokens, encoder_input_tokens)
    prompts = encoder_input_tokens
    last = jnp.sum(prompts > 0, axis=-1) - 1
    start = jnp.take_along_axis(prompts, last[:, None], axis=-1)
    logits = self.decoder(
      self.token_embedder(decoder_input_tokens),
      encoded,
      self.token_embedder(start),
      last,
      decode=decode,
      max_decode_length=max_decode_length,
    )
    return self.token_embedder.attend(logits) if self.config.logits_via_embedding else logits

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    *,
    enable_dropout: bool = False,
  ) -> Float[Array, 'N T V']:
    """Logits of every target, given the prompt and the targets before it; see `decode`."""
    encoded = self.encode(encoder_input_tokens)
    return self.decode(
      encoded, encoder_input_tokens, decoder_input_tokens, decoder_target_tokens, enable_dropout
    )


class Decoder(nn.Module):
  """The stack, over prompts or over responses."""

  config: LlamaConfig

  def setup(self):
    cfg = self.config
    self.layers = [DecoderLayer(cfg) for _ in range(cfg.num_layers)]
    self.decoder_norm = layers.LayerNorm(cfg.dtype, cfg.norm_epsilon)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(cfg.vocab_size, ('embed', 'vocab'), jnp.float32)

  def encode(self, x: Float[Array, 'B S E']) -> tuple[Encoded, ...]:
    positions = jnp.arange(x.shape[1])[None]
    mask = _sees(positions, positions, self.config.sliding_window)
    result = []
    for layer in self.layers:
      x, encoded = layer(x, positions, mask)
      result.append(encoded)
    return tuple(result)

  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: tuple[Encoded, ...],
    start: Float[Array, 'B 1 E'],
    last: Int[Array, 'B'],
    *,
    decode: bool,
    max_decode_length: int | None,
  ) -> Float[Array, 'N T out']:
    """Logits, or what the tied embedding makes them from.

    Args:
      x: embedded inputs; the response's first is replaced by `start`.
      encoded: of the prompts.
      start: the prompts' last tokens, embedded.
      last: their positions.
      decode, max_decode_length: see `Transformer.decode`.
    """
    cache, first, num_keys = None, 0, x.shape[1]
    if decode:
      cache, first = layers.open_cache(self, x.shape[1], max_decode_length)
      num_keys = cache.length
    lanes = x.shape[0] // last.shape[0]
    queries, keys = first + jnp.arange(x.shape[1]), jnp.arange(num_keys)
    x = jnp.where((queries == 0)[:, None], jnp.repeat(start, lanes, axis=0), x)
    positions = jnp.repeat(last, lanes)[:, None] + queries
    window = self.config.sliding_window
    mask = _sees(queries[None], keys[None], window)
    prompt_mask = _sees_prompt(positions, last, encoded[0].key.shape[-1], window)
    for layer, prompt in zip(self.layers, encoded, strict=True):
      x, _ = layer(x, positions, mask, prompt, prompt_mask, cache)
    x = self.decoder_norm(x)
    return x if self.config.logits_via_embedding else self.logits_dense(x)


class DecoderLayer(nn.Module):
  """Reads what came before, prompt and response; then feed-forward."""

  config: LlamaConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    positions: Int[Array, '#N Q'],
    mask: Bool[Array, '#N Q K'],
    prompt: Encoded | None = None,
    prompt_mask: Bool[Array, 'B M S'] | None = None,
    cache: layers.Cache | None = None,
  ) -> tuple[Float[Array, 'N Q E'], Encoded]:
    """The next layer's input, and this one's keys and values of `x`."""
    cfg = self.config
    norm = lambda name: layers.LayerNorm(cfg.dtype, cfg.norm_epsilon, name=name)
    y = norm('pre_self_attention_layer_norm')(x)
    attention = Attention(cfg, name='self_attention')
    y, encoded = attention(y, positions, mask, prompt, prompt_mask, cache)
    x = x + y
    y = norm('pre_mlp_layer_norm')(x)
    mlp = layers.MlpBlock(cfg.mlp_dim, ('silu', 'linear'), 0.0, cfg.dtype, name='mlp')
    return x + mlp(y, deterministic=True), encoded


class Attention(nn.Module):
  """Grouped-query attention with rotary positions: R heads of queries share each of the G heads of keys and values."""

  config: LlamaConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    positions: Int[Array, '#N Q'],
    mask: Bool[Array, '#N Q K'],
    prompt: Encoded | None,
    prompt_mask: Bool[Array, 'B M S'] | None,
    cache: layers.Cache | None,
  ) -> tuple[Float[Array, 'N Q E'], Encoded]:
    cfg = self.config
    rotation = _rotation(positions, cfg)
    query = _rotate(self._project('query', x, cfg.num_heads), rotation)
    query = query.reshape(*x.shape[:2], cfg.num_kv_heads, -1, cfg.head_dim) / math.sqrt(
      cfg.head_dim
    )
    key = layers.length_last(_rotate(self._project('key', x, cfg.num_kv_heads), rotation))
    value = layers.length_last(self._project('value', x, cfg.num_kv_heads))
    if cache is not None:
      key, value = layers.append_to_cache(self, key, value, cache)
    parts = [_attend(query, key, value, mask)]
    if prompt is not None:
      parts.append(_attend_shared(query, prompt, prompt_mask))
    attended = _join(parts).astype(cfg.dtype).reshape(*x.shape[:2], -1)
    out = layers.Dense(cfg.emb_dim, ('joined_kv', 'embed'), cfg.dtype, name='out')(attended)
    return out, Encoded(key, value)

  def _project(
    self, name: str, x: Float[Array, 'N Q E'], heads: int
  ) -> Float[Array, 'N Q heads d']:
    cfg = self.config
    features = heads * cfg.head_dim
    dense = layers.Dense(
      features, ('embed', 'joined_kv'), cfg.dtype, use_bias=cfg.qkv_bias, name=name
    )
    return dense(x).reshape(*x.shape[:2], heads, cfg.head_dim)


class _Part(NamedTuple):
  """Attention over some of the keys: Σ_k e^{a_k − m} v_k, Σ_k e^{a_k − m}, and m, the largest a_k; float32."""

  total: Float[Array, 'N Q G R d']
  weight: Float[Array, 'N Q G R']
  largest: Float[Array, 'N Q G R']


def _attend(
  query: Float[Array, 'N Q G R d'],
  key: Float[Array, 'N G d K'],
  value: Float[Array, 'N G d K'],
  mask: Bool[Array, '#N #Q K'],
) -> _Part:
  logits = jnp.einsum('nqgrd,ngdk->nqgrk', query, key, preferred_element_type=jnp.float32)
  logits = jnp.where(mask[:, :, None, None], logits, layers.MASKED)
  # Any constant in place of the largest gives the same attention, so that no gradient is lost.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  weights = jnp.exp(logits - largest[..., None])
  total = jnp.einsum(
    'nqgrk,ngdk->nqgrd', weights.astype(value.dtype), value, preferred_element_type=jnp.float32
  )
  return _Part(total, jnp.sum(weights, axis=-1), largest)


def _attend_shared(
  query: Float[Array, 'N Q G R d'], prompt: Encoded, mask: Bool[Array, 'B M S']
) -> _Part:
  """Onto the prompts: the k rows that answer one are folded into its length of queries."""
  folded = query.reshape(prompt.key.shape[0], -1, *query.shape[2:])
  part = _attend(folded, prompt.key, prompt.value, mask)
  return jax.tree.map(lambda x: x.reshape(*query.shape[:2], *x.shape[2:]), part)


def _join(parts: list[_Part]) -> Float[Array, 'N Q G R d']:
  """Softmax attention over the keys of all parts."""
  largest = jnp.max(jnp.stack([part.largest for part in parts]), axis=0)
  scales = [jnp.exp(part.largest - largest) for part in parts]
  total = sum(part.total * scale[..., None] for part, scale in zip(parts, scales, strict=True))
  weight = sum(part.weight * scale for part, scale in zip(parts, scales, strict=True))
  return total / weight[..., None]


def _sees(
  queries: Int[Array, '#N Q'], keys: Int[Array, '#N K'], window: int | None
) -> Bool[Array, '#N Q K']:
  """Itself and what came before, within the window."""
  distance = queries[:, :, None] - keys[:, None]
  return (distance >= 0) & (distance < (window or np.iinfo(np.int32).max))


def _sees_prompt(
  queries: Int[Array, 'N Q'], last: Int[Array, 'B'], length: int, window: int | None
) -> Bool[Array, 'B M S']:
  """All of the prompt but its last token and padding, within the window; rows folded as in `_attend_shared`."""
  keys = jnp.arange(length)[None]
  mask = (keys < last[:, None])[:, None]
  if window is None:
    return mask
  return mask & _sees(queries.reshape(last.shape[0], -1), keys, window)


def _rotation(
  positions: Int[Array, '#N Q'], config: LlamaConfig
) -> tuple[Float[Array, '#N Q 1 h'], Float[Array, '#N Q 1 h']]:
  """cos and sin of each position's angles; h = head_dim / 2."""
  angles = positions[..., None].astype(jnp.float32) * jnp.asarray(_frequencies(config))
  return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def _frequencies(config: LlamaConfig) -> Float[np.ndarray, 'h']:
  """Radians per position."""
  half = config.head_dim // 2
  frequencies = config.rope_base ** (-np.arange(half) / half)
  scaling = config.rope_scaling
  if scaling is None:
    return frequencies.astype(np.float32)
  turns = scaling.original_length * frequencies / (2 * np.pi)  # Within the original context.
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return (frequencies * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


def _rotate(
  x: Float[Array, 'N Q heads d'],
  rotation: tuple[Float[Array, '#N Q 1 h'], Float[Array, '#N Q 1 h']],
) -> Float[Array, 'N Q heads d']:
  """Turns the pairs (x_i, x_{i + d/2}), in float32."""
  cos, sin = rotation
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
