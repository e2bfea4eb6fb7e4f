"""T5 1.1 in Flax Linen, with T5X's parameter tree and method signatures: its checkpoints load.

Source: Raffel et al. (2020), arXiv:1910.10683; Shazeer (2020), arXiv:2002.05202 (gated GELU).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.arguments import Count, Decay
from nlhf_jax.networks import attention, layers, network, pointer, position_bias
from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.types import PAD


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The sizes of a T5; the defaults are T5X's."""

  vocab_size: Count
  # Of activations; parameters and logits are float32.
  dtype: Any = jnp.float32
  emb_dim: Count = 512
  num_heads: Count = 8
  num_encoder_layers: Count = 6
  num_decoder_layers: Count = 6
  head_dim: Count = 64
  mlp_dim: Count = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: Decay = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  # Not T5X's: the encoder starts near-sighted, for training from scratch.
  local_init: bool = False
  # Not T5X's: whether the decoder points at tokens of the prompt, and reads what it pointed at (`networks.pointer`).
  pointer: bool = False
  # Not T5X's: tokens that start with the sum of what stands between them and the next one of them.
  separators: tuple[int, ...] = ()
  # Not T5X's: whether layers are scanned and rematerialised.
  execution: layers.Execution = layers.PLAIN
  # Not T5X's: tokens that end a response besides EOS.
  other_ends: tuple[int, ...] = ()

  def __post_init__(self):
    layers.check_execution(self.execution)
    for name in self.mlp_activations:
      if name != 'linear' and not hasattr(nn, name):
        raise ValueError(
          f"mlp_activations has {name!r}: use 'linear' or a function of flax.linen, like 'gelu'."
        )

  def check_published(self, other: str) -> None:
    """Raises ValueError where this is no T5 as published, which the other one is."""
    if self.pointer or self.separators:
      raise ValueError(
        f'{other} has no pointer and no separators: leave T5Config.pointer and .separators off.'
      )


class Precomputed(NamedTuple):
  """What a decoder that points reads of its prompts."""

  layers: tuple[kv_cache.KeysAndValues, ...]
  source: pointer.Source


class Transformer(nn.Module):
  """An encoder reads prompts, a decoder predicts responses.

  The decoder's batch may be a multiple k of the encoder's: its rows i·k … i·k + k − 1 then read
  prompt i.
  """

  config: T5Config

  def setup(self):
    cfg = self.config
    self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg)
    if cfg.separators:
      self.gather = pointer.Gather(tuple(cfg.separators), cfg.emb_dim, cfg.dtype)
    if cfg.pointer:
      self.pointer = pointer.Pointer(cfg.emb_dim, cfg.dtype)

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
    if self.config.separators:
      x = self.gather(x, encoder_input_tokens, mask)
    return self.encoder(x, mask, deterministic=not enable_dropout)

  def precompute(
    self, encoded: Float[Array, 'B S E']
  ) -> tuple[kv_cache.KeysAndValues, ...] | Precomputed:
    """Keys and values of the encoder's output for each layer of the decoder, which steps need not compute again."""
    of_layers = self.decoder.precompute(encoded)
    return (
      Precomputed(of_layers, self.pointer.source(encoded)) if self.config.pointer else of_layers
    )

  def decode(self, *args: Any, **kwargs: Any) -> Float[Array, 'N T V']:
    """Logits of each target, float32; arguments as those of `decode_hidden`."""
    return self.logits(self.decode_hidden(*args, **kwargs))

  def logits(self, hidden: Float[Array, '*b _']) -> Float[Array, '*b V']:
    """Of the next token, from what `decode_hidden` makes."""
    if self.config.pointer:
      hidden, pointed = jnp.split(hidden, [self.config.emb_dim], axis=-1)
      return jnp.logaddexp(self._generated(hidden), pointed)
    return self._generated(hidden)

  def _generated(self, hidden: Float[Array, '*b E']) -> Float[Array, '*b V']:
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(hidden) / jnp.sqrt(self.config.emb_dim)
    return self.decoder.logits(hidden)

  def decode_hidden(
    self,
    encoded: Float[Array, 'B S E'] | tuple[kv_cache.KeysAndValues, ...] | Precomputed,
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    decoder_segment_ids: Int[Array, 'N T'] | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'N T _']:
    """What logits are made of, with the pointer's beside it; meaningless where the target is padding.

    With decode=True the inputs are the next positions (usually one), those before them are in the
    collection `cache`. The first such call makes it, with `max_decode_length` positions; as in T5X,
    a first call without just allocates, as many positions as it has inputs. Rows that did not all
    begin at the first call need `decoder_positions`.

    Raises:
      ValueError: N is no multiple of B.
    """
    network.check_rows(decoder_input_tokens, encoder_input_tokens)
    cross_mask = _padding_mask(encoder_input_tokens)
    if decoder_segment_ids is not None and not decode:
      folded = decoder_segment_ids.reshape(encoder_input_tokens.shape[0], -1)
      cross_mask &= _same_segment(folded, encoder_segment_ids)
    x = self.token_embedder(decoder_input_tokens)
    source = None
    if self.config.pointer:
      if isinstance(encoded, Precomputed):
        encoded, source = encoded
      else:
        source = self.pointer.source(encoded)
      x = x + self.pointer.read(source, encoder_input_tokens, decoder_input_tokens, cross_mask)
    if decode:
      hidden = self.decoder.extend(x, encoded, cross_mask, decoder_positions, max_decode_length)
    else:
      mask = _decoder_mask(decoder_target_tokens, decoder_segment_ids)
      hidden = self.decoder(x, encoded, mask, cross_mask, not enable_dropout)
    if source is None:
      return hidden
    args = source, encoder_input_tokens, hidden, cross_mask, self.config.vocab_size
    return jnp.concatenate([hidden, self.pointer.logits(*args)], axis=-1)

  @nn.nowrap
  def incremental(self) -> network.Decoder:
    """Its decoder, whose cache grows."""
    return network.cached_decoder(self)

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

  def setup(self):
    cfg = self.config
    self.relpos_bias = _position_bias(cfg, bidirectional=True)
    self.layers = [EncoderLayer(cfg) for _ in range(cfg.num_encoder_layers)]
    self.encoder_norm = layers.LayerNorm(cfg.dtype)
    self.dropout = _dropout(cfg)

  def __call__(
    self, x: Float[Array, 'B S E'], mask: Bool[Array, 'B 1 #S S'], *, deterministic: bool
  ) -> Float[Array, 'B S E']:
    cfg = self.config
    bias = self.relpos_bias(_distances(x.shape[1]))
    x = self.dropout(x, deterministic)
    nothing = [None] * cfg.num_encoder_layers
    x, _ = layers.run(self.layers, x, nothing, cfg.execution, mask, bias, deterministic)
    return self.dropout(self.encoder_norm(x), deterministic)


class EncoderLayer(nn.Module):
  """Reads all the positions that are not padding."""

  config: T5Config

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B S E'],
    nothing: None,
    mask: Bool[Array, 'B 1 #S S'],
    bias: Float[Array, '1 heads S S'],
    deterministic: bool,
  ) -> tuple[Float[Array, 'B S E'], None]:
    cfg = self.config
    dropout = lambda x: _dropout(cfg)(x, deterministic)
    y = layers.LayerNorm(cfg.dtype, name='pre_attention_layer_norm')(x)
    x = x + dropout(
      attention.SelfAttention(**_heads(cfg), name='attention')(y, mask, bias, deterministic)
    )
    y = layers.LayerNorm(cfg.dtype, name='pre_mlp_layer_norm')(x)
    return x + dropout(_mlp(cfg, name='mlp')(y, deterministic)), nothing


class Decoder(nn.Module):
  """A stack of causal self-attention, attention onto the encoder, and feed-forward."""

  config: T5Config

  def setup(self):
    cfg = self.config
    self.relpos_bias = _position_bias(cfg, bidirectional=False)
    self.layers = [DecoderLayer(cfg) for _ in range(cfg.num_decoder_layers)]
    self.decoder_norm = layers.LayerNorm(cfg.dtype)
    self.dropout = _dropout(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(cfg.vocab_size, ('embed', 'vocab'), jnp.float32)

  def precompute(self, encoded: Float[Array, 'B S E']) -> tuple[kv_cache.KeysAndValues, ...]:
    """Keys and values of the encoder's output, for each layer."""
    return tuple(layer.encoder_decoder_attention.keys_and_values(encoded) for layer in self.layers)

  def logits(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """By an output layer of its own."""
    return self.logits_dense(x)

  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: Float[Array, 'B S E'] | tuple[kv_cache.KeysAndValues, ...],
    mask: Bool[Array, 'N 1 T T'],
    cross_mask: Bool[Array, 'B 1 M S'],
    deterministic: bool,
  ) -> Float[Array, 'N T E']:
    """Complete responses."""
    cfg = self.config
    bias = self.relpos_bias(_distances(x.shape[1]))
    x = self.dropout(x, deterministic)
    args = (mask, cross_mask, bias, deterministic)
    x, _ = layers.run(self.layers, x, self._each(encoded), cfg.execution, *args)
    return self.dropout(self.decoder_norm(x), deterministic)

  def extend(
    self,
    x: Float[Array, 'N Q E'],
    encoded: Float[Array, 'B S E'] | tuple[kv_cache.KeysAndValues, ...],
    cross_mask: Bool[Array, 'B 1 1 S'],
    positions: Int[Array, 'N 1'] | None,
    max_decode_length: int | None,
  ) -> Float[Array, 'N Q E']:
    """The next positions of responses whose beginnings are in the cache."""
    cache = kv_cache.advance(self, x.shape[1], max_decode_length, positions)
    mask = (cache.ages <= cache.positions[..., None])[:, None]
    bias = self.relpos_bias(-cache.ages)
    args = mask, cross_mask, bias, True, cache
    x, _ = layers.run(self.layers, x, self._each(encoded), layers.PLAIN, *args)
    return self.decoder_norm(x)

  def _each(self, encoded):
    """What each layer reads of the prompts."""
    return encoded if isinstance(encoded, tuple) else (encoded,) * self.config.num_decoder_layers


class DecoderLayer(nn.Module):
  """Reads the response so far, then the prompt."""

  config: T5Config

  def setup(self):
    cfg = self.config
    self.pre_self_attention_layer_norm = layers.LayerNorm(cfg.dtype)
    self.self_attention = attention.SelfAttention(**_heads(cfg))
    self.pre_cross_attention_layer_norm = layers.LayerNorm(cfg.dtype)
    self.encoder_decoder_attention = attention.CrossAttention(**_heads(cfg))
    self.pre_mlp_layer_norm = layers.LayerNorm(cfg.dtype)
    self.mlp = _mlp(cfg)
    self.dropout = _dropout(cfg)

  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: Float[Array, 'B S E'] | kv_cache.KeysAndValues,
    mask: Bool[Array, '#N 1 T K'],
    cross_mask: Bool[Array, 'B 1 M S'],
    bias: Float[Array, '1 heads T K'],
    deterministic: bool,
    cache: kv_cache.Cache | None = None,
  ) -> tuple[Float[Array, 'N T E'], None]:
    dropout = lambda x: self.dropout(x, deterministic)
    y = self.pre_self_attention_layer_norm(x)
    x = x + dropout(self.self_attention(y, mask, bias, deterministic, cache))
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(y, encoded, cross_mask, deterministic, cache is not None)
    x = x + dropout(y)
    y = self.pre_mlp_layer_norm(x)
    return x + dropout(self.mlp(y, deterministic)), None


def _heads(cfg: T5Config) -> dict[str, Any]:
  return {
    'num_heads': cfg.num_heads,
    'head_dim': cfg.head_dim,
    'features': cfg.emb_dim,
    'dropout_rate': cfg.dropout_rate,
    'dtype': cfg.dtype,
    'float32_logits': cfg.float32_attention_logits,
  }


def _mlp(cfg: T5Config, name: str | None = None) -> layers.MlpBlock:
  return layers.MlpBlock(cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, name=name)


def _position_bias(cfg: T5Config, bidirectional: bool) -> position_bias.RelativePositionBias:
  return position_bias.RelativePositionBias(
    cfg.num_heads,
    bidirectional,
    dtype=cfg.dtype,
    near_sighted=cfg.local_init and bidirectional,
  )


def _distances(length: int) -> Int[Array, 'length length']:
  """How many positions each key stands after each query."""
  positions = jnp.arange(length)
  return positions[None] - positions[:, None]


def _dropout(cfg: T5Config) -> nn.Dropout:
  """Drops a feature at all positions of a row at once."""
  return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))


def _padding_mask(tokens: Int[Array, 'B S']) -> Bool[Array, 'B 1 1 S']:
  return (tokens != PAD)[:, None, None]


def _same_segment(queries: Int[Array, 'B Q'], keys: Int[Array, 'B K']) -> Bool[Array, 'B 1 Q K']:
  """Packed examples do not see each other."""
  return (queries[:, :, None] == keys[:, None])[:, None]


def _decoder_mask(
  targets: Int[Array, 'N T'], segment_ids: Int[Array, 'N T'] | None
) -> Bool[Array, 'N 1 T T']:
  positions = jnp.arange(targets.shape[1])
  mask = _padding_mask(targets) & (positions[:, None] >= positions)
  return mask if segment_ids is None else mask & _same_segment(segment_ids, segment_ids)
