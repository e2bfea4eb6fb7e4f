"""Llama and its kin (SmolLM2 and 3, Qwen2.5 and 3, Mistral, Phi-3, OLMo 2, Gemma) in Flax Linen, with the method signatures of `t5`.

A decoder-only network is one stack over a prompt and its response. Here its pass has two parts. `encode` runs the prompt
and gives its keys and values; `decode` runs responses, whose queries read those and their own. So the k responses to a
prompt share its pass and its cache, prompts need no padding on the left, and what works with T5 works with this.
The second part begins with the prompt's last token: a response's inputs start with it, where T5's start with PAD.

Sizes are in `llama_config`, attention is in `llama_attention`.

Source: Touvron et al. (2023), arXiv:2302.13971; Su et al. (2021), arXiv:2104.09864 (rotary positions).
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.networks import layers, llama_attention, network, rope
from nlhf_jax.networks.llama_config import LlamaConfig
from nlhf_jax.types import PAD


class LayerKind(NamedTuple):
  """What layers of a stack may differ in."""

  window: int | None
  # (base, scaling) of rotary positions; None: without positions.
  rotary: tuple[float, rope.Scaling | None] | None


def _layer_kind(cfg: LlamaConfig, layer: int) -> LayerKind:
  at = lambda pattern: pattern[layer % len(pattern)]
  window = cfg.sliding_window if at(cfg.window_pattern) else None
  rotary = cfg.rope_base, cfg.rope_scaling
  if window is not None and cfg.local_rope_base is not None:
    rotary = cfg.local_rope_base, None
  return LayerKind(window, rotary if at(cfg.rotary_pattern) else None)


# What a layer has besides weights: keys and values of the prompts, and its kind's number.
Own = tuple[kv_cache.KeysAndValues | None, int | Int[Array, '']]


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
  ) -> tuple[kv_cache.KeysAndValues, ...]:
    """Keys and values of prompts, one per layer; those of padding are never read."""
    del encoder_segment_ids, enable_dropout  # There is neither packing nor dropout.
    x = self._embed(encoder_input_tokens)
    return self.decoder.encode(x)

  def precompute(
    self, encoded: tuple[kv_cache.KeysAndValues, ...]
  ) -> tuple[kv_cache.KeysAndValues, ...]:
    """The same: `encode` made keys and values already."""
    return encoded

  def decode(self, *args: Any, **kwargs: Any) -> Float[Array, 'N T V']:
    """Logits of each target, float32; arguments as those of `decode_hidden`."""
    return self.logits(self.decode_hidden(*args, **kwargs))

  def logits(self, hidden: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """Of the next token, from what `decode_hidden` makes."""
    head = self.token_embedder.attend if self.config.logits_via_embedding else self.decoder.logits
    return llama_attention.soft_cap(head(hidden), self.config.logit_soft_cap)

  def _embed(self, tokens: Int[Array, '*b']) -> Float[Array, '*b E']:
    x = self.token_embedder(tokens)
    return x * math.sqrt(self.config.emb_dim) if self.config.scaled_embedding else x

  def decode_hidden(
    self,
    encoded: tuple[kv_cache.KeysAndValues, ...],
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    enable_dropout: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
  ) -> Float[Array, 'N T E']:
    """What logits are made of; meaningless where the target is padding.

    Args:
      encoded: what `encode` made of the prompts.
      encoder_input_tokens: the prompts, of at least one token each.
      decoder_input_tokens: the responses, moved right by one. The first is ignored: the prompt's last token takes its
        place.
      decoder_target_tokens, enable_dropout: as T5's; ignored.
      decode: the inputs are the next positions (usually one), those before them are in the collection `cache`, which
        the first such call makes.
      max_decode_length: positions of that cache.
      decoder_positions: of the inputs, where rows did not all begin at the first call.

    Raises:
      ValueError: N is no multiple of B; the text is longer than its rotary positions are known here.
    """
    del decoder_target_tokens, enable_dropout
    network.check_rows(decoder_input_tokens, encoder_input_tokens)
    prompts = encoder_input_tokens
    length = max_decode_length or decoder_input_tokens.shape[1]
    rope.check_length(self.config.rope_scaling, prompts.shape[1] + length - 1)
    last = jnp.sum(prompts != PAD, axis=-1) - 1
    start = self._embed(jnp.take_along_axis(prompts, last[:, None], axis=-1))
    x = self._embed(decoder_input_tokens)
    if decode:
      return self.decoder.extend(x, encoded, start, last, decoder_positions, max_decode_length)
    return self.decoder(x, encoded, start, last)

  @nn.nowrap
  def incremental(self) -> network.Decoder:
    """Its decoder, whose cache grows."""
    return network.cached_decoder(self)

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
    self.decoder_norm = layers.LayerNorm(cfg.dtype, cfg.norm_epsilon, offset=cfg.norm_offset)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(cfg.vocab_size, ('embed', 'vocab'), jnp.float32)

  def encode(self, x: Float[Array, 'B S E']) -> tuple[kv_cache.KeysAndValues, ...]:
    """Keys and values of prompts, for each layer."""
    positions = jnp.arange(x.shape[1])[None]
    views, own = self._views(
      llama_attention.distances(x.shape[1]), positions, [None] * len(self.layers), None
    )
    _, encoded = layers.run(self.layers, x, own, self.config.execution, positions, views)
    return tuple(encoded)

  def logits(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """By an output layer of its own."""
    return self.logits_dense(x)

  def __call__(
    self,
    x: Float[Array, 'N T E'],
    encoded: tuple[kv_cache.KeysAndValues, ...],
    start: Float[Array, 'B 1 E'],
    last: Int[Array, 'B'],
  ) -> Float[Array, 'N T E']:
    """Complete responses.

    Args:
      x: embedded inputs; the response's first is replaced by `start`.
      encoded: of the prompts.
      start: the prompts' last tokens, embedded.
      last: their positions.
    """
    queries = jnp.arange(x.shape[1])[None]
    x, positions = self._place(x, queries, start, last)
    views, own = self._views(
      llama_attention.distances(x.shape[1]), queries, encoded, (positions, last)
    )
    x, _ = layers.run(self.layers, x, own, self.config.execution, positions, views)
    return self.decoder_norm(x)

  def extend(
    self,
    x: Float[Array, 'N Q E'],
    encoded: tuple[kv_cache.KeysAndValues, ...],
    start: Float[Array, 'B 1 E'],
    last: Int[Array, 'B'],
    queries: Int[Array, 'N Q'] | None,
    max_decode_length: int | None,
  ) -> Float[Array, 'N Q E']:
    """The next positions of responses whose beginnings are in the cache; arguments as in `__call__`, and:

    queries: the new positions, counted in the response.
    """
    cache = kv_cache.advance(self, x.shape[1], max_decode_length, queries)
    x, positions = self._place(x, cache.positions, start, last)
    views, owns = self._views(cache.ages, cache.positions, encoded, (positions, last))
    x, _ = layers.run(self.layers, x, owns, layers.PLAIN, positions, views, cache)
    return self.decoder_norm(x)

  def _place(self, x, queries: Int[Array, '#N Q'], start, last):
    """The inputs with `start` at position 0, and their positions counted from the prompt's beginning."""
    lanes = x.shape[0] // last.shape[0]
    x = jnp.where((queries == 0)[..., None], jnp.repeat(start, lanes, axis=0), x)
    return x, jnp.repeat(last, lanes)[:, None] + queries

  def _views(
    self, ages, queries, encoded, place: tuple[Int[Array, 'N Q'], Int[Array, 'B']] | None
  ) -> tuple[list[llama_attention.View], list[Own]]:
    """Of each kind of layer that there is; and what each layer has. `place`: positions of queries, and prompts' last."""
    kinds = [_layer_kind(self.config, layer) for layer in range(self.config.num_layers)]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    views = []
    for window, rotary in numbers:
      base, scaling = rotary or (self.config.rope_base, None)
      frequencies = rope.frequencies(base, self.config.head_dim, scaling)
      prompt_mask = None
      if place:
        prompt_mask = llama_attention.sees_prompt(
          place[0], place[1], encoded[0].key.shape[-1], window
        )
      views.append(
        llama_attention.View(
          frequencies if rotary else np.zeros_like(frequencies),
          rope.amplitude(scaling),
          llama_attention.sees(ages, queries, window),
          prompt_mask,
        )
      )
    return views, [(prompt, numbers[kind]) for prompt, kind in zip(encoded, kinds, strict=True)]


def _view_of(
  views: list[llama_attention.View], number: int | Int[Array, '']
) -> llama_attention.View:
  """The one of a number, which is an array where layers are scanned or rematerialised."""
  if len(views) == 1 or isinstance(number, int):
    return views[number if isinstance(number, int) else 0]
  select = lambda *x: jax.lax.select_n(number, *jnp.broadcast_arrays(*x))
  return jax.tree.map(select, *views)


class DecoderLayer(nn.Module):
  """Reads what came before, prompt and response; then feed-forward."""

  config: LlamaConfig

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'N Q E'],
    own: Own,
    positions: Int[Array, '#N Q'],
    views: list[llama_attention.View],
    cache: kv_cache.Cache | None = None,
  ) -> tuple[Float[Array, 'N Q E'], kv_cache.KeysAndValues]:
    """The next layer's input, and this one's keys and values of `x`."""
    cfg = self.config
    norm = functools.partial(layers.LayerNorm, cfg.dtype, cfg.norm_epsilon, offset=cfg.norm_offset)
    before = lambda part, x: norm(name=f'pre_{part}_layer_norm')(x) if cfg.norms_before else x
    after = lambda part, x: norm(name=f'post_{part}_layer_norm')(x) if cfg.norms_after else x
    attend = llama_attention.Attention(cfg, name='self_attention')
    prompt, kind = own
    y = before('self_attention', x)
    y, encoded = attend(y, positions, _view_of(views, kind), prompt, cache)
    x = x + after('self_attention', y)
    activations = cfg.mlp_activation, 'linear'
    mlp = layers.MlpBlock(cfg.mlp_dim, activations, 0.0, cfg.dtype, name='mlp')
    return x + after('mlp', mlp(before('mlp', x), deterministic=True)), encoded
