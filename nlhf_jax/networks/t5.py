"""T5 1.1 in Flax Linen, with T5X's parameter tree and method signatures, so that T5X's checkpoints load as they are.

Source: Raffel et al. (2020), arXiv:1910.10683; Shazeer (2020), arXiv:2002.05202 (gated GELU).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import decoding, layers


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The sizes of a T5; the defaults are T5X's."""

  vocab_size: int
  dtype: Any = jnp.float32  # Of activations; parameters and logits are float32.
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False


class Transformer(nn.Module):
  """An encoder that reads `encoder_input_tokens`, a decoder that predicts `decoder_target_tokens`; token 0 is padding.

  The decoder's batch may be a multiple k of the encoder's: its rows i·k … i·k + k − 1 then read prompt i.
  """

  config: T5Config

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg)

  def encode(
    self, encoder_input_tokens, encoder_segment_ids=None, enable_dropout=True
  ) -> Float[Array, 'B S E']:
    mask = _padding_mask(encoder_input_tokens)
    if encoder_segment_ids is not None:
      mask &= _same_segment(encoder_segment_ids, encoder_segment_ids)
    x = self.token_embedder(encoder_input_tokens)
    return self.encoder(x, mask, deterministic=not enable_dropout)

  def decode(
    self,
    encoded,
    encoder_input_tokens,
    decoder_input_tokens,
    decoder_target_tokens,
    encoder_segment_ids=None,
    decoder_segment_ids=None,
    decoder_positions=None,
    enable_dropout=True,
    decode=False,
    max_decode_length=None,
  ) -> Float[Array, 'N T V']:
    """Logits; with decode=True one position a call, whose keys and values the collection `cache` keeps.

    The first such call makes the cache, of `max_decode_length` positions. Positions play no part in T5.
    """
    del decoder_positions
    cross_mask = _padding_mask(encoder_input_tokens)
    if decoder_segment_ids is not None and not decode:
      cross_mask &= _same_segment(decoder_segment_ids, encoder_segment_ids)
    mask = None if decode else _decoder_mask(decoder_target_tokens, decoder_segment_ids)
    x = self.token_embedder(decoder_input_tokens)
    x = self.decoder(
      x,
      encoded,
      mask,
      cross_mask,
      deterministic=not enable_dropout,
      cache_length=max_decode_length if decode else None,
    )
    if self.config.logits_via_embedding:
      x = self.token_embedder.attend(x / jnp.sqrt(x.shape[-1]))
    return x.astype(jnp.float32)

  def __call__(
    self,
    encoder_input_tokens,
    decoder_input_tokens,
    decoder_target_tokens,
    encoder_segment_ids=None,
    decoder_segment_ids=None,
    encoder_positions=None,
    decoder_positions=None,
    *,
    enable_dropout=True,
    decode=False,
  ) -> Float[Array, 'N T V']:
    """Logits of every target, given the targets before it."""
    del encoder_positions
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout,
      decode,
    )


class Encoder(nn.Module):
  """A stack of self-attention and feed-forward."""

  config: T5Config

  @nn.compact
  def __call__(self, x, mask, *, deterministic: bool) -> Float[Array, 'B S E']:
    cfg = self.config
    positions = jnp.arange(x.shape[1])
    bias = layers.RelativePositionBias(
      cfg.num_heads, bidirectional=True, dtype=cfg.dtype, name='relpos_bias'
    )(positions, positions)
    dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
    x = dropout(x, deterministic)
    for number in range(cfg.num_encoder_layers):
      x = EncoderLayer(cfg, name=f'layers_{number}')(x, mask, bias, deterministic)
    x = layers.LayerNorm(cfg.dtype, name='encoder_norm')(x)
    return dropout(x, deterministic)


class EncoderLayer(nn.Module):
  config: T5Config

  @nn.compact
  def __call__(self, x, mask, bias, deterministic: bool) -> Float[Array, 'B S E']:
    cfg = self.config
    dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
    y = layers.LayerNorm(cfg.dtype, name='pre_attention_layer_norm')(x)
    y = _attention(cfg, 'attention')(y, y, mask, bias, deterministic=deterministic)
    x = x + dropout(y, deterministic)
    y = layers.LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
    return x + dropout(_mlp(cfg)(y, deterministic), deterministic)


class Decoder(nn.Module):
  """A stack of causal self-attention, attention onto the encoder, and feed-forward."""

  config: T5Config

  @nn.compact
  def __call__(
    self, x, encoded, mask, cross_mask, *, deterministic: bool, cache_length: int | None
  ) -> Float[Array, 'N T out']:
    """Logits, or what the tied embedding makes them from."""
    cfg = self.config
    relpos_bias = layers.RelativePositionBias(
      cfg.num_heads, bidirectional=False, dtype=cfg.dtype, name='relpos_bias'
    )
    if cache_length is None:
      positions = jnp.arange(x.shape[1])
      bias = relpos_bias(positions, positions)
    else:
      position = self.variable('cache', 'position', jnp.zeros, (), jnp.int32)
      keys = jnp.arange(cache_length)
      bias = relpos_bias(position.value[None], keys)
      mask = (keys <= position.value)[None, None, None]
      position.value = position.value + 1
    dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
    x = dropout(x, deterministic)
    for number in range(cfg.num_decoder_layers):
      layer = DecoderLayer(cfg, name=f'layers_{number}')
      x = layer(x, encoded, mask, cross_mask, bias, deterministic, cache_length)
    x = dropout(layers.LayerNorm(cfg.dtype, name='decoder_norm')(x), deterministic)
    if cfg.logits_via_embedding:
      return x
    return layers.Dense(cfg.vocab_size, ('embed', 'vocab'), jnp.float32, name='logits_dense')(x)


class DecoderLayer(nn.Module):
  config: T5Config

  @nn.compact
  def __call__(
    self, x, encoded, mask, cross_mask, bias, deterministic: bool, cache_length: int | None
  ) -> Float[Array, 'N T E']:
    cfg = self.config
    dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
    how = {'deterministic': deterministic, 'cache_length': cache_length}
    y = layers.LayerNorm(cfg.dtype, name='pre_self_attention_layer_norm')(x)
    y = _attention(cfg, 'self_attention')(y, y, mask, bias, **how)
    x = x + dropout(y, deterministic)
    y = layers.LayerNorm(cfg.dtype, name='pre_cross_attention_layer_norm')(x)
    attend = _attention(cfg, 'encoder_decoder_attention')
    y = attend(y, encoded, cross_mask, cross=True, **how)
    x = x + dropout(y, deterministic)
    y = layers.LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
    return x + dropout(_mlp(cfg)(y, deterministic), deterministic)


def _attention(cfg: T5Config, name: str) -> layers.Attention:
  return layers.Attention(
    cfg.num_heads,
    cfg.head_dim,
    cfg.dropout_rate,
    cfg.dtype,
    cfg.float32_attention_logits,
    name=name,
  )


def _mlp(cfg: T5Config) -> layers.MlpBlock:
  return layers.MlpBlock(
    cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, name='mlp'
  )


def _padding_mask(tokens: Int[Array, 'B S']) -> Bool[Array, 'B 1 1 S']:
  return (tokens > 0)[:, None, None]


def _same_segment(
  queries: Int[Array, 'B Q'], keys: Int[Array, 'B K']
) -> Bool[Array, 'B 1 Q K']:
  """Packed examples do not see each other."""
  return (queries[:, None, :, None] == keys[:, None, None]) & (queries > 0)[:, None, :, None]


def _decoder_mask(
  targets: Int[Array, 'N T'], segment_ids: Int[Array, 'N T'] | None
) -> Bool[Array, 'N 1 T T']:
  positions = jnp.arange(targets.shape[1])
  mask = _padding_mask(targets) & (positions[:, None] >= positions)
  return mask if segment_ids is None else mask & _same_segment(segment_ids, segment_ids)


def decoder(network: nn.Module, max_length: int) -> decoding.Decoder:
  """Prefill and step of a T5 for responses of up to `max_length` tokens.

  Prefill encodes each prompt once and computes the keys and values onto it once; its lanes share them.
  """

  def run(params, state, tokens):
    encoded, prompt_tokens, cache = state
    logits, changed = network.apply(
      {'params': params, **cache},
      encoded,
      prompt_tokens,
      tokens[:, None],
      tokens[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=max_length,
      mutable=['cache'],
      method='decode',
    )
    return logits[:, 0], (encoded, prompt_tokens, changed)

  def prefill(params, prompt_tokens: Int[Array, 'B S'], lanes: int):
    encoded = network.apply({'params': params}, prompt_tokens, enable_dropout=False, method='encode')
    start = jnp.zeros(prompt_tokens.shape[0] * lanes, jnp.int32)
    return run(params, (encoded, prompt_tokens, {}), start)

  return decoding.Decoder(prefill, run)


