"""The sizes and features of a decoder-only network."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nlhf_jax.arguments import Count, CountOrZero, NonNegative, Positive
from nlhf_jax.networks import layers, rope


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """The sizes of a decoder-only network."""

  vocab_size: Count
  # Of activations; parameters and logits are float32.
  dtype: Any = jnp.float32
  emb_dim: Count = 576
  num_heads: Count = 9
  # Each serves num_heads / num_kv_heads heads of queries.
  num_kv_heads: Count = 3
  num_layers: Count = 30
  head_dim: Count = 64
  mlp_dim: Count = 1536
  rope_base: Positive = 1e4
  rope_scaling: rope.Scaling | None = None
  norm_epsilon: Positive = 1e-5
  # Qwen2.5 has biases on queries, keys and values.
  qkv_bias: bool = False
  # RMS norms of queries and keys before they are rotated: of each head's by itself ('head': Qwen3), of those of all heads
  # together ('projection': OLMo 2), or none.
  qk_norm: str | None = None
  # RMS norms before attention and MLP, and after them (OLMo 2: after alone; Gemma: both).
  norms_before: bool = True
  norms_after: bool = False
  # Added to the scales of RMS norms (Gemma: 1).
  norm_offset: NonNegative = 0.0
  mlp_activation: str = 'silu'
  # Whether embedded tokens are multiplied by √emb_dim (Gemma).
  scaled_embedding: bool = False
  # Products of queries and keys are divided by the root of this; None: of head_dim.
  query_dim: Count | None = None
  # Bounds c of x → c tanh(x / c), of those products and of logits (Gemma 2); None: none.
  attention_soft_cap: Positive | None = None
  logit_soft_cap: Positive | None = None
  # Tokens that a token sees, itself included (Mistral 7B 0.1); None: all.
  sliding_window: Count | None = None
  # Which layers have that window, and which rotate queries and keys: patterns, repeated over the stack.
  window_pattern: tuple[bool, ...] = (True,)
  rotary_pattern: tuple[bool, ...] = (True,)
  # Base of the rotations of layers with a window, which are not scaled (Gemma 3); None: as of the others.
  local_rope_base: Positive | None = None
  logits_via_embedding: bool = False
  # Whether layers are scanned and rematerialised.
  execution: layers.Execution = layers.PLAIN
  # Ids of padding and of the end in the network's own vocabulary. They change places with PAD and EOS where weights are
  # read or written (formats/hf.py) and in the tokenizer (data/vocabularies.py), so that one convention holds everywhere.
  pad_id: CountOrZero = 0
  eos_id: CountOrZero = 1
  # Tokens that end a response besides EOS, by the ids that they have here.
  other_ends: tuple[int, ...] = ()
  # What a model's config.json says besides, for who reads what is exported: the id before each text, in the network's own
  # vocabulary, and the longest context.
  bos_id: CountOrZero | None = None
  max_position_embeddings: Count | None = None
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
