"""The model families of Hugging Face that this package knows: their config.json, and the names of their tensors.

A family is a network's configuration in both directions, and a function from a path in our parameter tree to the tensor
that holds it there.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from nlhf_jax.formats import hf_decoders
from nlhf_jax.formats.hf_layout import PROJECTIONS, Path, Tensor, expect, flag, size
from nlhf_jax.networks import llama, t5
from nlhf_jax.types import EOS, PAD

Config = t5.T5Config | llama.LlamaConfig
# What T5 has for an MLP; its GELU is the approximate one where it is gated, and another where it is not.
_T5_MLPS = ('relu', 'silu', 'gated-relu', 'gated-silu', 'gated-gelu')


def config_from_json(values: Mapping[str, Any], dtype: Any = 'float32') -> Config:
  """The network that a config.json describes.

  Args:
    values: of config.json.
    dtype: of activations.

  Raises:
    ValueError: it is of another family, or uses what the networks here do not have.
  """
  if quantised := values.get('quantization_config'):
    kind = quantised.get('quant_method') if isinstance(quantised, Mapping) else quantised
    raise ValueError(
      f'config.json has quantization_config of quant_method {kind!r}, and quantised weights are not read: take the model in '
      'bfloat16, float16 or float32.'
    )
  kind = values.get('model_type')
  if kind in ('t5', 'mt5'):
    return _t5_config(values, dtype)
  if isinstance(kind, str) and kind in hf_decoders.KINDS:
    return hf_decoders.config_from_json(values, dtype)
  known = ', '.join(sorted({'t5', *hf_decoders.KINDS}))
  raise ValueError(
    f'config.json is of model_type {kind!r}, which is not supported: take one of {known}.'
  )


def network_from_config(config: Config) -> nn.Module:
  """The network of a configuration, without weights."""
  return t5.Transformer(config) if isinstance(config, t5.T5Config) else llama.Transformer(config)


def tensor_for(config: Config) -> Callable[[Path], Tensor]:
  """The function from a path in the parameter tree to its tensor."""
  if isinstance(config, t5.T5Config):
    return _t5_tensor
  return hf_decoders.tensor_for(config)


def config_to_json(config: Config, dtype: str = 'float32') -> str:
  """config.json for a network of ours whose weights are stored in this type."""
  values = (
    _t5_json(config) if isinstance(config, t5.T5Config) else hf_decoders.config_to_json(config)
  )
  values['torch_dtype'] = dtype
  return json.dumps(values, indent=2) + '\n'


def embedding(config: Config) -> str:
  """The tensor that holds the embedding."""
  return tensor_for(config)(('token_embedder', 'embedding')).name


def copies(config: Config) -> frozenset[str]:
  """Tensors that checkpoints may hold besides, which are the embedding under other names."""
  names = set()
  if isinstance(config, t5.T5Config):
    names = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  return frozenset(names | ({'lm_head.weight'} if config.logits_via_embedding else set()))


def constants(config: Config) -> frozenset[str]:
  """Tensors that checkpoints may hold besides, which follow from config.json."""
  if isinstance(config, t5.T5Config):
    return frozenset()
  layers = range(config.num_layers)
  return frozenset(f'model.layers.{n}.self_attn.rotary_emb.inv_freq' for n in layers)


def _t5_config(values: Mapping[str, Any], dtype: Any) -> t5.T5Config:
  expect(values, 'relative_attention_num_buckets', 32, 32)
  expect(values, 'relative_attention_max_distance', 128, 128)
  expect(values, 'layer_norm_epsilon', 1e-6, 1e-6)
  kind = values.get('feed_forward_proj', 'relu')
  if kind not in _T5_MLPS:
    raise ValueError(
      f'config.json has feed_forward_proj = {kind!r}: only {", ".join(_T5_MLPS)} are supported, so take another model.'
    )
  gated, _, activation = kind.rpartition('-')
  layers = size(values, 'num_layers')
  # transformers 5 writes tie_word_embeddings = true for all of them, and gives apart whether the tied logits are scaled.
  tied = flag(values, 'scale_decoder_outputs', flag(values, 'tie_word_embeddings', True))
  return t5.T5Config(
    vocab_size=size(values, 'vocab_size'),
    dtype=dtype,
    emb_dim=size(values, 'd_model'),
    num_heads=size(values, 'num_heads'),
    num_encoder_layers=layers,
    num_decoder_layers=size(values, 'num_decoder_layers', layers),
    head_dim=size(values, 'd_kv'),
    mlp_dim=size(values, 'd_ff'),
    mlp_activations=(activation, 'linear') if gated else (activation,),
    dropout_rate=0.0,
    logits_via_embedding=tied,
  )


def _t5_json(config: t5.T5Config) -> dict[str, Any]:
  activation, *gate = config.mlp_activations
  kind = f'gated-{activation}' if gate else activation
  if gate not in ([], ['linear']) or kind not in _T5_MLPS:
    raise ValueError(f'T5 of Hugging Face has no feed-forward of {config.mlp_activations}.')
  config.check_published('T5 of Hugging Face')
  return {
    'architectures': ['T5ForConditionalGeneration'],
    'model_type': 't5',
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_heads': config.num_heads,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': kind,
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'dropout_rate': config.dropout_rate,
    'tie_word_embeddings': config.logits_via_embedding,
    'is_encoder_decoder': True,
    'decoder_start_token_id': PAD,
    'pad_token_id': PAD,
    'eos_token_id': EOS,
  }


def _t5_tensor(path: Path) -> Tensor:
  stack, *rest = path
  if stack == 'token_embedder':
    return Tensor('shared.weight')
  if rest == ['logits_dense', 'kernel']:
    return Tensor('lm_head.weight', transposed=True)
  if rest == [f'{stack}_norm', 'scale']:
    return Tensor(f'{stack}.final_layer_norm.weight')
  if rest[0] == 'relpos_bias':
    name = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    return Tensor(name, transposed=True)
  block, part, *inside = rest
  parts = (
    ['attention', 'mlp'] if stack == 'encoder' else ['self_attention', 'cross_attention', 'mlp']
  )
  part = part.replace('encoder_decoder_attention', 'cross_attention')
  start = f'{stack}.block.{block.removeprefix("layers_")}.layer.'
  if norm := re.fullmatch(r'pre_(\w+)_layer_norm', part):
    return Tensor(f'{start}{parts.index(norm[1])}.layer_norm.weight')
  start += str(parts.index(part))
  if part == 'mlp':
    return Tensor(f'{start}.DenseReluDense.{inside[0]}.weight', transposed=True)
  kind = 'EncDec' if part == 'cross_attention' else 'Self'
  return Tensor(f'{start}.{kind}Attention.{PROJECTIONS[inside[0]]}.weight', transposed=True)
