"""Networks in the sizes that were published, by name; and `t5_1_1_tiny`, one for two CPU cores.

Weights come apart, from T5X's or Hugging Face's files. The sizes of a model on disk come from its own config.json
(`formats.hf.network`). `tests/networks/sizes_test.py` counts the parameters of each.
"""

import dataclasses
import difflib
from typing import Any

from nlhf_jax.arguments import DType
from nlhf_jax.networks import layers, llama, rope, t5
from nlhf_jax.networks.network import Network

# emb_dim, mlp_dim, num_heads, head_dim, layers of the encoder and of the decoder.
_T5_1_1 = {
  't5_1_1_tiny': (64, 128, 4, 16, 2),
  't5_1_1_small': (512, 1024, 6, 64, 8),
  't5_1_1_base': (768, 2048, 12, 64, 12),
  't5_1_1_large': (1024, 2816, 16, 64, 24),
  't5_1_1_xl': (2048, 5120, 32, 64, 24),
  't5_1_1_xxl': (4096, 10240, 64, 64, 24),
}
_SIZES = ('emb_dim', 'mlp_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'num_layers')
_DECODER_ONLY = {
  'llama_3_8b': (4096, 14336, 32, 8, 128, 32),
  'llama_3_1_8b': (4096, 14336, 32, 8, 128, 32),
  'llama_3_1_70b': (8192, 28672, 64, 8, 128, 80),
  'llama_3_2_1b': (2048, 8192, 32, 8, 64, 16),
  'llama_3_2_3b': (3072, 8192, 24, 8, 128, 28),
  'mistral_7b_v0_1': (4096, 14336, 32, 8, 128, 32),
  'mistral_7b_v0_3': (4096, 14336, 32, 8, 128, 32),
  'gemma_2_2b': (2304, 9216, 8, 4, 256, 26),
  'gemma_2_9b': (3584, 14336, 16, 8, 256, 42),
  'gemma_3_1b': (1152, 6912, 4, 1, 256, 26),
  'gemma_3_4b': (2560, 10240, 8, 4, 256, 34),
  'olmo2_1b': (2048, 8192, 16, 16, 128, 16),
  'olmo2_7b': (4096, 11008, 32, 32, 128, 32),
  'phi_3_mini': (3072, 8192, 32, 32, 96, 32),
  'qwen2_5_0_5b': (896, 4864, 14, 2, 64, 24),
  'qwen2_5_1_5b': (1536, 8960, 12, 2, 128, 28),
  'qwen2_5_3b': (2048, 11008, 16, 2, 128, 36),
  'qwen2_5_7b': (3584, 18944, 28, 4, 128, 28),
  'qwen2_5_14b': (5120, 13824, 40, 8, 128, 48),
  'qwen3_0_6b': (1024, 3072, 16, 8, 128, 28),
  'qwen3_1_7b': (2048, 6144, 16, 8, 128, 28),
  'qwen3_4b': (2560, 9728, 32, 8, 128, 36),
  'qwen3_8b': (4096, 12288, 32, 8, 128, 36),
  'smollm3_3b': (2048, 11008, 16, 4, 128, 36),
  'smollm2_135m': (576, 1536, 9, 3, 64, 30),
  'smollm2_360m': (960, 2560, 15, 5, 64, 32),
  'smollm2_1_7b': (2048, 8192, 32, 32, 64, 24),
}
_GEMMA = {
  'norm_epsilon': 1e-6,
  'norms_after': True,
  'norm_offset': 1.0,
  'mlp_activation': 'gelu',
  'scaled_embedding': True,
  'query_dim': 256,
  'logits_via_embedding': True,
  'pad_id': 0,
}
# What the sizes of a family have in common; ids are those of the instruct models: padding, and the end of a turn.
_FAMILIES: dict[str, dict[str, Any]] = {
  'llama_3': {'vocab_size': 128256, 'rope_base': 5e5, 'pad_id': 128004, 'eos_id': 128009},
  'mistral': {'vocab_size': 32768, 'rope_base': 1e6, 'pad_id': 0, 'eos_id': 2},
  'gemma_2': {
    **_GEMMA,
    'vocab_size': 256000,
    'sliding_window': 4096,
    'window_pattern': (True, False),
    'attention_soft_cap': 50.0,
    'logit_soft_cap': 30.0,
    'eos_id': 107,
  },
  'gemma_3': {
    **_GEMMA,
    'vocab_size': 262144,
    'rope_base': 1e6,
    'local_rope_base': 1e4,
    'sliding_window': 512,
    'window_pattern': (True, True, True, True, True, False),
    'qk_norm': 'head',
    'eos_id': 106,
  },
  'olmo2': {
    'vocab_size': 100352,
    'rope_base': 5e5,
    'norm_epsilon': 1e-6,
    'qk_norm': 'projection',
    'norms_before': False,
    'norms_after': True,
    'pad_id': 100277,
    'eos_id': 100257,
  },
  'phi_3': {
    'vocab_size': 32064,
    'sliding_window': 2047,
    'fused_in_files': True,
    'pad_id': 32000,
    'eos_id': 32007,
  },
  'qwen2_5': {
    'vocab_size': 151936,
    'rope_base': 1e6,
    'norm_epsilon': 1e-6,
    'qkv_bias': True,
    'pad_id': 151643,
    'eos_id': 151645,
  },
  'qwen3': {
    'vocab_size': 151936,
    'rope_base': 1e6,
    'norm_epsilon': 1e-6,
    'qk_norm': 'head',
    'logits_via_embedding': True,
    'pad_id': 151643,
    'eos_id': 151645,
  },
  'smollm3': {
    'vocab_size': 128256,
    'rope_base': 5e6,
    'rotary_pattern': (True, True, True, False),
    'norm_epsilon': 1e-6,
    'logits_via_embedding': True,
    'pad_id': 128004,
    'eos_id': 128012,
  },
  'smollm2': {
    'vocab_size': 49152,
    'rope_base': 1e5,
    'logits_via_embedding': True,
    'pad_id': 0,
    'eos_id': 2,
  },
}
_LLAMA_3_1 = {'rope_scaling': rope.RopeScaling(factor=8.0)}
_LLAMA_3_2 = {'rope_scaling': rope.RopeScaling(factor=32.0), 'logits_via_embedding': True}
# Where a size differs from its family.
_OWN: dict[str, dict[str, Any]] = {
  'llama_3_1_8b': _LLAMA_3_1,
  'llama_3_1_70b': _LLAMA_3_1,
  'llama_3_2_1b': _LLAMA_3_2,
  'llama_3_2_3b': _LLAMA_3_2,
  # The text's part.
  'gemma_3_4b': {
    'vocab_size': 262208,
    'sliding_window': 1024,
    'rope_scaling': rope.LinearScaling(8.0),
  },
  'mistral_7b_v0_1': {'vocab_size': 32000, 'rope_base': 1e4, 'sliding_window': 4096},
  'qwen2_5_0_5b': {'logits_via_embedding': True},
  'qwen2_5_1_5b': {'logits_via_embedding': True},
  'qwen2_5_3b': {'logits_via_embedding': True},
  'qwen2_5_7b': {'vocab_size': 152064},
  'qwen2_5_14b': {'vocab_size': 152064},
  'qwen3_8b': {'logits_via_embedding': False},
  'smollm2_1_7b': {'rope_base': 1.3e5},
}
NAMES = (*_T5_1_1, *_DECODER_ONLY)


def config(
  name: str, dtype: DType = 'float32', execution: layers.Execution = layers.PLAIN, **changes: Any
) -> t5.T5Config | llama.LlamaConfig:
  """The configuration of a network in a published size.

  Args:
    name: one of NAMES.
    dtype: of activations; parameters are float32.
    execution: whether layers are scanned and rematerialised.
    **changes: fields of the configuration in place of the published ones; `num_layers` of a T5 is of both stacks.

  Raises:
    ValueError: there is no such size.
  """
  if name not in NAMES:
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f' Did you mean {close[0]}?' if close else ''
    raise ValueError(f'No network {name!r}: known are {", ".join(NAMES)}.{hint}')
  common: dict[str, Any] = {'dtype': dtype, 'execution': execution}
  if name in _T5_1_1:
    if 'num_layers' in changes:
      layers_of_both = changes.pop('num_layers')
      changes |= {'num_encoder_layers': layers_of_both, 'num_decoder_layers': layers_of_both}
    return dataclasses.replace(_t5_1_1(*_T5_1_1[name], **common), **changes)
  family = next(x for start, x in _FAMILIES.items() if name.startswith(start))
  sizes = dict(zip(_SIZES, _DECODER_ONLY[name], strict=True))
  return llama.LlamaConfig(**{**sizes, **family, **_OWN.get(name, {}), **common, **changes})


def network(
  name: str, dtype: DType = 'float32', execution: layers.Execution = layers.PLAIN, **changes: Any
) -> Network:
  """The network itself; arguments and errors as of `config`."""
  found = config(name, dtype, execution, **changes)
  return t5.Transformer(found) if isinstance(found, t5.T5Config) else llama.Transformer(found)


def _t5_1_1(
  emb_dim: int, mlp_dim: int, num_heads: int, head_dim: int, num_layers: int, **common: Any
) -> t5.T5Config:
  """Gated GELU, no dropout in pre-training, a padded vocabulary of 32,128."""
  return t5.T5Config(
    vocab_size=32128,
    emb_dim=emb_dim,
    mlp_dim=mlp_dim,
    num_heads=num_heads,
    head_dim=head_dim,
    num_encoder_layers=num_layers,
    num_decoder_layers=num_layers,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.0,
    logits_via_embedding=False,
    **common,
  )
