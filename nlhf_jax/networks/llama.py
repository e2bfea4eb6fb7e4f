"""Llama and its kin (SmolLM2 and 3, Qwen2.5 and 3, Mistral, Phi-3, OLMo 2, Gemma) in Flax Linen, with the method signatures of `t5`.

A decoder-only network is one stack over a prompt and its response. Here its pass has two parts. `encode` runs the prompt
and gives its keys and values; `decode` runs responses, whose queries read those and their own. So the k responses to a
prompt share its pass and its cache, prompts need no padding on the left, and what works with T5 works with this.
The second part begins with the prompt's last token: a response's inputs start with it, where T5's start with PAD.

Source: Touvron et al. (2023), arXiv:2302.13971; Su et al. (2021), arXiv:2104.09864 (rotary positions); Ainslie et al.
(2023), arXiv:2305.13245 (grouped-query attention).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import attention, axes, layers, network, rope
from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.types import PAD


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The sizes of a decoder-only network."""

  vocab_size: int
  # Of activations; parameters and logits are float32.
  dtype: Any = jnp.float32
  emb_dim: int = 576
  num_heads: int = 9
  # Each serves num_heads / num_kv_heads heads of queries.
  num_kv_heads: int = 3
  num_layers: int = 30
  head_dim: int = 64
  mlp_dim: int = 1536
  rope_base: float = 1e4
  rope_scaling: rope.Scaling | None = None
  norm_epsilon: float = 1e-5
  # Qwen2.5 has biases on queries, keys and values.
  qkv_bias: bool = False
  # RMS norms of queries and keys before they are rotated: of each head's by itself ('head': Qwen3), of those of all heads
  # together ('projection': OLMo 2), or none.
  qk_norm: str | None = None
  # RMS norms before attention and MLP, and after them (OLMo 2: after alone; Gemma: both).
  norms_before: bool = True
  norms_after: bool = False
  # Added to the scales of RMS norms (Gemma: 1).
  norm_offset: float = 0.0
  mlp_activation: str = 'silu'
  # Whether embedded tokens are multiplied by √emb_dim (Gemma).
  scaled_embedding: bool = False
  # Products of queries and keys are divided by the root of this; None: of head_dim.
  query_dim: int | None = None
  # Bounds c of x → c tanh(x / c), of those products and of logits (Gemma 2); None: none.
  attention_soft_cap: float | None = None
  logit_soft_cap: float | None = None
  # Tokens that a token sees, itself included (Mistral 7B 0.1); None: all.
  sliding_window: int | None = None
  # Which layers have that window, and which rotate queries and keys: patterns, repeated over the stack.
  window_pattern: tuple[bool, ...] = (True,)
  rotary_pattern: tuple[bool, ...] = (True,)
  # Base of the rotations of layers with a window, which are not scaled (Gemma 3); None: as of the others.
  local_rope_base: float | None = None
  logits_via_embedding: bool = False
  # Whether layers are scanned and rematerialised.
  execution: layers.Execution = layers.PLAIN
  # Ids of padding and of the end in the network's own vocabulary. They change places with PAD and EOS where weights are
  # read or written (formats/hf.py) and in the tokenizer (data/vocabularies.py), so that one convention holds everywhere.
  pad_id: int = 0
  eos_id: int = 1
  # Tokens that end a response besides EOS, by the ids that they have here.
  other_ends: tuple[int, ...] = ()
  # What a model's config.json says besides, for who reads what is exported: the id before each text, in the network's own
  # vocabulary, and the longest context.
  bos_id: int | None = None
  max_position_embeddings: int | None = None
  # Whether files hold queries, keys and values in one tensor, and what the MLP reads of its input in another (Phi-3).
  fused_in_files: bool = False

  def __post_init__(self):
    layers.check_execution(self.execution)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}.'
      )
    if self.qk_norm not in (None, 'head', 'projection'):
      raise ValueError(f'qk_norm must be head, projection or None, got {self.qk_norm!r}.')
    if self.pad_id == self.eos_id:
      raise ValueError(
        f'pad_id and eos_id are both {self.pad_id}: name an id that no text uses for padding.'
      )


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


class View(NamedTuple):
  """How the layers of a kind see positions in one call."""

  # Radians per position; 0: without positions.
  frequencies: Float[Array | np.ndarray, 'h']
  # Of what is rotated.
  amplitude: float | Float[Array, '']
  mask: Bool[Array, '#N Q K']
  # None: there is no prompt.
  prompt_mask: Bool[Array, 'B M S'] | None


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
    return _soft_cap(head(hidden), self.config.logit_soft_cap)

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
    views, own = self._views(_distances(x.shape[1]), positions, [None] * len(self.layers), None)
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
    views, own = self._views(_distances(x.shape[1]), queries, encoded, (positions, last))
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
    for layer, own in zip(self.layers, owns, strict=True):
      x, _ = layer(x, own, positions, views, cache)
    return self.decoder_norm(x)

  def _place(self, x, queries: Int[Array, '#N Q'], start, last):
    """The inputs with `start` at position 0, and their positions counted from the prompt's beginning."""
    lanes = x.shape[0] // last.shape[0]
    x = jnp.where((queries == 0)[..., None], jnp.repeat(start, lanes, axis=0), x)
    return x, jnp.repeat(last, lanes)[:, None] + queries

  def _views(
    self, ages, queries, encoded, place: tuple[Int[Array, 'N Q'], Int[Array, 'B']] | None
  ) -> tuple[list[View], list[Own]]:
    """Of each kind of layer that there is; and what each layer has. `place`: positions of queries, and prompts' last."""
    kinds = [_layer_kind(self.config, layer) for layer in range(self.config.num_layers)]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    views = []
    for window, rotary in numbers:
      base, scaling = rotary or (self.config.rope_base, None)
      frequencies = rope.frequencies(base, self.config.head_dim, scaling)
      prompt_mask = None
      if place:
        prompt_mask = _sees_prompt(place[0], place[1], encoded[0].key.shape[-1], window)
      views.append(
        View(
          frequencies if rotary else np.zeros_like(frequencies),
          rope.amplitude(scaling),
          _sees(ages, queries, window),
          prompt_mask,
        )
      )
    return views, [(prompt, numbers[kind]) for prompt, kind in zip(encoded, kinds, strict=True)]


def _view_of(views: list[View], number: int | Int[Array, '']) -> View:
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
    views: list[View],
    cache: kv_cache.Cache | None = None,
  ) -> tuple[Float[Array, 'N Q E'], kv_cache.KeysAndValues]:
    """The next layer's input, and this one's keys and values of `x`."""
    cfg = self.config
    norm = functools.partial(layers.LayerNorm, cfg.dtype, cfg.norm_epsilon, offset=cfg.norm_offset)
    before = lambda part, x: norm(name=f'pre_{part}_layer_norm')(x) if cfg.norms_before else x
    after = lambda part, x: norm(name=f'post_{part}_layer_norm')(x) if cfg.norms_after else x
    attend = Attention(cfg, name='self_attention')
    prompt, kind = own
    y = before('self_attention', x)
    y, encoded = attend(y, positions, _view_of(views, kind), prompt, cache)
    x = x + after('self_attention', y)
    activations = cfg.mlp_activation, 'linear'
    mlp = layers.MlpBlock(cfg.mlp_dim, activations, 0.0, cfg.dtype, name='mlp')
    return x + after('mlp', mlp(before('mlp', x), deterministic=True)), encoded


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
    parts = [_attend(query, own, view.mask, cap)]
    if prompt is not None:
      parts.append(_attend_shared(query, prompt, view.prompt_mask, cap))
    attended = _join(parts).astype(cfg.dtype).transpose(0, 3, 1, 2, 4).reshape(*x.shape[:2], -1)
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


def _soft_cap(x: Float[Array, '*b'], cap: float | None) -> Float[Array, '*b']:
  return x if cap is None else cap * jnp.tanh(x / cap)


def _attend(
  query: Float[Array, 'N G R Q d'],
  inputs: kv_cache.KeysAndValues,
  mask: Bool[Array, '#N #Q K'],
  cap: float | None,
) -> _Part:
  size = query.shape
  rows = query.reshape(*size[:2], -1, size[-1])  # All that read one head, in one product.
  logits = jnp.matmul(rows, inputs.key, preferred_element_type=jnp.float32)
  logits = _soft_cap(logits, cap)
  logits = jnp.where(mask[:, None, None], logits.reshape(*size[:-1], -1), attention.MASKED)
  # Any constant in place of the largest gives the same attention, so that no gradient is lost.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  weights = jnp.exp(logits - largest[..., None])
  rows = weights.reshape(*size[:2], -1, weights.shape[-1]).astype(inputs.value.dtype)
  total = jnp.matmul(rows, inputs.value, preferred_element_type=jnp.float32)
  return _Part(total.reshape(size), jnp.sum(weights, axis=-1), largest)


def _attend_shared(
  query: Float[Array, 'N G R Q d'],
  prompt: kv_cache.KeysAndValues,
  mask: Bool[Array, 'B M S'],
  cap: float | None,
) -> _Part:
  """Onto the prompts: the k rows that answer one are folded into its length of queries."""
  size, num_prompts = query.shape, prompt.key.shape[0]
  folded = query.reshape(num_prompts, -1, *size[1:]).transpose(0, 2, 3, 1, 4, 5)  # B G R k Q d
  part = _attend(folded.reshape(num_prompts, *size[1:3], -1, size[-1]), prompt, mask, cap)

  def unfold(x):
    x = x.reshape(*x.shape[:3], -1, size[3], *x.shape[4:])
    return jnp.moveaxis(x, 3, 1).reshape(size[0], *size[1:4], *x.shape[5:])

  return jax.tree.map(unfold, part)


def _join(parts: list[_Part]) -> Float[Array, 'N G R Q d']:
  """Softmax attention over the keys of all parts."""
  largest = jnp.max(jnp.stack([part.largest for part in parts]), axis=0)
  scales = [jnp.exp(part.largest - largest) for part in parts]
  scaled = list(zip(parts, scales, strict=True))
  total = sum((part.total * scale[..., None] for part, scale in scaled), jnp.float32(0))
  weight = sum((part.weight * scale for part, scale in scaled), jnp.float32(0))
  return total / weight[..., None]


def _distances(length: int) -> Int[Array, 'length length']:
  """How many positions each key stands before each query."""
  positions = jnp.arange(length)
  return positions[:, None] - positions


def _sees(
  ages: Int[Array, 'Q K'], positions: Int[Array, '#N Q'], window: int | None
) -> Bool[Array, '#N Q K']:
  """Itself and what came before, since position 0 and within the window; `ages` are distances backwards."""
  furthest = positions if window is None else jnp.minimum(positions, window - 1)
  return (ages >= 0) & (ages <= furthest[..., None])


def _sees_prompt(
  positions: Int[Array, 'N Q'], last: Int[Array, 'B'], length: int, window: int | None
) -> Bool[Array, 'B M S']:
  """All of the prompt but its last token and padding, within the window; rows folded as in `_attend_shared`."""
  keys = jnp.arange(length)
  mask = (keys < last[:, None])[:, None]
  if window is None:
    return mask
  return mask & (positions.reshape(last.shape[0], -1, 1) - keys < window)
