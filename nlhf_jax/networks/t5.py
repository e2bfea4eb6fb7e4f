"""T5 1.1 in Flax Linen, with T5X's parameter tree and method signatures: its checkpoints load.

Source: Raffel et al. (2020), arXiv:1910.10683; Shazeer (2020), arXiv:2002.05202 (gated GELU).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import layers


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
  local_init: bool = False  # Not T5X's: the encoder starts near-sighted. For training from scratch.

  def __post_init__(self):
    for name in self.mlp_activations:
      if name != 'linear' and not hasattr(nn, name):
        raise ValueError(
          f"mlp_activations has {name!r}: use 'linear' or a function of flax.linen, like 'gelu'."
        )


class Transformer(nn.Module):
  """An encoder reads prompts, a decoder predicts responses; token 0 is padding.

  The decoder's batch may be a multiple k of the encoder's: its rows i·k … i·k + k − 1 then read
  prompt i.
  """

  config: T5Config

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg)

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    enable_dropout: bool = True,
  ) -> Float[Array, 'B S E']:
    """What the decoder reads; rows of padding are never read, and hold nothing of use."""
    mask = _padding_mask(encoder_input_tokens)
    if encoder_segment_ids is not None:
      mask &= _same_segment(encoder_segment_ids, encoder_segment_ids)
    x = self.token_embedder(encoder_input_tokens)
    return self.encoder(x, mask, deterministic=not enable_dropout)

  def decode(
    self,
    encoded: Float[Array, 'B S E'],
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    decoder_segment_ids: Int[Array, 'N T'] | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'N T V']:
    """Logits of each target, float32; those where the target is padding mean nothing.

    With decode=True the inputs are the next positions (usually one), those before them are in the
    collection `cache`. The first such call makes it, with `max_decode_length` positions, and keeps
    the keys and values of `encoded` too, which later calls do not compute again. As in T5X, a first
    call without `max_decode_length` just allocates, as many positions as it has inputs; calls that
    follow one compute the encoder's keys and values anew.

    Raises:
      ValueError: N is no multiple of B.
    """
    del decoder_positions  # The relative bias of T5 knows distances only.
    layers.check_rows(decoder_input_tokens, encoder_input_tokens)
    cross_mask = _padding_mask(encoder_input_tokens)
    if decoder_segment_ids is not None and not decode:
      folded = decoder_segment_ids.reshape(encoder_input_tokens.shape[0], -1)
      cross_mask &= _same_segment(folded, encoder_segment_ids)
    logits = self.decoder(
      self.token_embedder(decoder_input_tokens),
      encoded,
      None if decode else _decoder_mask(decoder_target_tokens, decoder_segment_ids),
      cross_mask,
      deterministic=not enable_dropout,
      decode=decode,
      max_decode_length=max_decode_length,
    )
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(logits) / jnp.sqrt(self.config.emb_dim)
    return logits

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    decoder_segment_ids: Int[Array, 'N T'] | None = None,
    encoder_positions: Int[Array, 'B S'] | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
  ) -> Float[Array, 'N T V']:
    """Logits of every target, given the targets before it; see `decode`."""
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
  def __call__(
    self, x: Float[Array, 'B S E'], mask: Bool[Array, 'B 1 #S S'], *, deterministic: bool
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    positions = jnp.arange(x.shape[1])
    bias = _position_bias(cfg, bidirectional=True)(positions, positions)
    dropout = _dropout(cfg, deterministic)
    x = dropout(x)
    for number in range(cfg.num_encoder_layers):
      x = EncoderLayer(cfg, name=f'layers_{number}')(x, mask, bias, deterministic)
    return dropout(layers.LayerNorm(cfg.dtype, name='encoder_norm')(x))


class EncoderLayer(nn.Module):
  """Reads all the positions that are not padding."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B S E'],
    mask: Bool[Array, 'B 1 #S S'],
    bias: Float[Array, '1 heads S S'],
    deterministic: bool,
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    dropout = _dropout(cfg, deterministic)
    y = layers.LayerNorm(cfg.dtype, name='pre_attention_layer_norm')(x)
    attention = layers.SelfAttention(**_heads(cfg), name='attention')
    x = x + dropout(attention(y, mask, bias, deterministic=deterministic))
    y = layers.LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
    return x + dropout(_mlp(cfg)(y, deterministic))


class Decoder(nn.Module):
  """A stack of causal self-attention, attention onto the encoder, and feed-forward."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: Float[Array, 'B S E'],
    mask: Bool[Array, 'N 1 T T'] | None,
    cross_mask: Bool[Array, 'B 1 M S'],
    *,
    deterministic: bool,
    decode: bool,
    max_decode_length: int | None,
  ) -> Float[Array, 'N T out']:
    """Logits, or what the tied embedding makes them from."""
    cfg = self.config
    queries = keys = jnp.arange(x.shape[1])
    cache = None
    if decode:
      cache, first = layers.open_cache(self, x.shape[1], max_decode_length)
      queries, keys = first + queries, jnp.arange(cache.length)
      mask = (keys <= queries[:, None])[None, None]
    bias = _position_bias(cfg, bidirectional=False)(queries, keys)
    dropout = _dropout(cfg, deterministic)
    x = dropout(x)
    for number in range(cfg.num_decoder_layers):
      layer = DecoderLayer(cfg, name=f'layers_{number}')
      x = layer(x, encoded, mask, cross_mask, bias, deterministic, cache)
    x = dropout(layers.LayerNorm(cfg.dtype, name='decoder_norm')(x))
    if cfg.logits_via_embedding:
      return x
    return layers.Dense(cfg.vocab_size, ('embed', 'vocab'), jnp.float32, name='logits_dense')(x)


class DecoderLayer(nn.Module):
  """Reads the response so far, then the prompt."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: Float[Array, 'B S E'],
    mask: Bool[Array, '#N 1 T K'],
    cross_mask: Bool[Array, 'B 1 M S'],
    bias: Float[Array, '1 heads T K'],
    deterministic: bool,
    cache: layers.Cache | None,
  ) -> Float[Array, 'N T E']:
    cfg = self.config
    dropout = _dropout(cfg, deterministic)
    how = {'deterministic': deterministic, 'cache': cache}
    y = layers.LayerNorm(cfg.dtype, name='pre_self_attention_layer_norm')(x)
    x = x + dropout(
      layers.SelfAttention(**_heads(cfg), name='self_attention')(y, mask, bias, **how)
    )
    y = layers.LayerNorm(cfg.dtype, name='pre_cross_attention_layer_norm')(x)
    cross_attention = layers.CrossAttention(**_heads(cfg), name='encoder_decoder_attention')
    x = x + dropout(cross_attention(y, encoded, cross_mask, **how))
    y = layers.LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
    return x + dropout(_mlp(cfg)(y, deterministic))


def _heads(cfg: T5Config) -> dict[str, Any]:
  return {
    'num_heads': cfg.num_heads,
    'head_dim': cfg.head_dim,
    'dropout_rate': cfg.dropout_rate,
    'dtype': cfg.dtype,
    'float32_logits': cfg.float32_attention_logits,
  }


def _mlp(cfg: T5Config) -> layers.MlpBlock:
  return layers.MlpBlock(cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, name='mlp')


def _position_bias(cfg: T5Config, bidirectional: bool) -> layers.RelativePositionBias:
  return layers.RelativePositionBias(
    cfg.num_heads,
    bidirectional,
    dtype=cfg.dtype,
    near_sighted=cfg.local_init and bidirectional,
    name='relpos_bias',
  )


def _dropout(cfg: T5Config, deterministic: bool) -> nn.Dropout:
  """Drops a feature at all positions of a row at once."""
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,), deterministic=deterministic)


def _padding_mask(tokens: Int[Array, 'B S']) -> Bool[Array, 'B 1 1 S']:
  return (tokens > 0)[:, None, None]


def _same_segment(queries: Int[Array, 'B Q'], keys: Int[Array, 'B K']) -> Bool[Array, 'B 1 Q K']:
  """Packed examples do not see each other."""
  return (queries[:, :, None] == keys[:, None])[:, None]


def _decoder_mask(
  targets: Int[Array, 'N T'], segment_ids: Int[Array, 'N T'] | None
) -> Bool[Array, 'N 1 T T']:
  positions = jnp.arange(targets.shape[1])
  mask = _padding_mask(targets) & (positions[:, None] >= positions)
  return mask if segment_ids is None else mask & _same_segment(segment_ids, segment_ids)
