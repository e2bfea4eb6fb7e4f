"""The model families of Hugging Face that this package knows: their config.json, and the names of their tensors.

A family is a network's configuration in both directions, and a function from a path in our parameter tree to the tensor
that holds it there.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from nlhf_jax.networks import llama, t5
from nlhf_jax.types import EOS, PAD

Path = tuple[str, ...]
Config = t5.T5Config | llama.LlamaConfig
_ROTARY = {'llama', 'qwen2', 'mistral'}
_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


class Tensor(NamedTuple):
  """The tensor that holds a leaf of ours."""

  name: str
  # Linear layers are stored [out, in] there, [in, out] here.
  transposed: bool = False
  # Its rows are by token of the vocabulary, some of which have other ids there.
  by_token: bool = False


def config_from_json(values: Mapping[str, Any], dtype: Any = 'float32') -> Config:
  """The network that a config.json describes.

  Args:
    values: of config.json.
    dtype: of activations.

  Raises:
    ValueError: it is of another family, or uses what the networks here do not have.
  """
  kind = values.get('model_type')
  if kind in ('t5', 'mt5'):
    return _t5_config(values, dtype)
  if kind in _ROTARY:
    return _llama_config(values, dtype)
  known = ', '.join(sorted({'t5', *_ROTARY}))
  raise ValueError(f'config.json is of model_type {kind!r}, which is not supported: {known} are.')


def network_from_config(config: Config) -> nn.Module:
  """The network of a configuration, without weights."""
  return t5.Transformer(config) if isinstance(config, t5.T5Config) else llama.Transformer(config)


def tensor_for(config: Config) -> Callable[[Path], Tensor]:
  """The function from a path in the parameter tree to its tensor."""
  if isinstance(config, t5.T5Config):
    return _t5_tensor
  return lambda path: _llama_tensor(path)._replace(by_token=_is_by_token(path))


def moved_ids(pad_id: int, eos_id: int) -> dict[int, int]:
  """Our id → theirs, for the tokens whose ids differ: padding changes places with 0, then the end with 1."""
  ids = {number: number for number in (PAD, EOS, pad_id, eos_id)}
  for ours, theirs in ((PAD, pad_id), (EOS, eos_id)):
    place = next(number for number, token in ids.items() if token == theirs)
    ids[ours], ids[place] = ids[place], ids[ours]
  return {ours: theirs for ours, theirs in ids.items() if ours != theirs}


def our_ids(theirs: Sequence[int], moved: Mapping[int, int]) -> tuple[int, ...]:
  """Ours of some of their ids; `moved` is of `moved_ids`."""
  ours = {their: our for our, their in moved.items()}
  return tuple(ours.get(number, number) for number in theirs)


def config_to_json(config: Config, dtype: str = 'float32') -> str:
  """config.json for a network of ours whose weights are stored in this type."""
  values = _t5_json(config) if isinstance(config, t5.T5Config) else _llama_json(config)
  values['torch_dtype'] = dtype
  return json.dumps(values, indent=2) + '\n'


def aliases(config: Config) -> frozenset[str]:
  """Tensors that checkpoints may hold besides, copies of others or constants."""
  if isinstance(config, t5.T5Config):
    names = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  else:
    names = {f'model.layers.{n}.self_attn.rotary_emb.inv_freq' for n in range(config.num_layers)}
  return frozenset(names | ({'lm_head.weight'} if config.logits_via_embedding else set()))


def _t5_config(values: Mapping[str, Any], dtype: Any) -> t5.T5Config:
  _expect(values, 'relative_attention_num_buckets', 32, 32)
  _expect(values, 'relative_attention_max_distance', 128, 128)
  _expect(values, 'layer_norm_epsilon', 1e-6, 1e-6)
  gated, _, activation = values.get('feed_forward_proj', 'relu').rpartition('-')
  layers = values['num_layers']
  # transformers 5 writes tie_word_embeddings = true for all of them, and gives apart whether the tied logits are scaled.
  tied = values.get('scale_decoder_outputs', values.get('tie_word_embeddings', True))
  return t5.T5Config(
    vocab_size=values['vocab_size'],
    dtype=dtype,
    emb_dim=values['d_model'],
    num_heads=values['num_heads'],
    num_encoder_layers=layers,
    num_decoder_layers=values.get('num_decoder_layers') or layers,
    head_dim=values['d_kv'],
    mlp_dim=values['d_ff'],
    mlp_activations=(activation, 'linear') if gated else (activation,),
    dropout_rate=0.0,
    logits_via_embedding=tied,
  )


def _t5_json(config: t5.T5Config) -> dict[str, Any]:
  activation, *gate = config.mlp_activations
  if gate not in ([], ['linear']):
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
    'feed_forward_proj': f'gated-{activation}' if gate else activation,
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
  return Tensor(f'{start}.{kind}Attention.{_PROJECTIONS[inside[0]]}.weight', transposed=True)


def _llama_config(values: Mapping[str, Any], dtype: Any) -> llama.LlamaConfig:
  _expect(values, 'hidden_act', 'silu', 'silu')
  _expect(values, 'mlp_bias', False, False)
  kind, heads = values['model_type'], values['num_attention_heads']
  window = values.get('sliding_window')
  if kind == 'qwen2':
    # Its queries, keys and values always have a bias; a window would be that of some layers alone.
    _expect(values, 'use_sliding_window', False, False)
    window = None
  else:
    _expect(values, 'attention_bias', False, False)
  rope = values.get('rope_parameters') or {}
  pad_id = values.get('pad_token_id') or PAD
  ends = values.get('eos_token_id')
  eos_id, *other_ends = [EOS] if ends is None else ends if isinstance(ends, list) else [ends]
  return llama.LlamaConfig(
    vocab_size=values['vocab_size'],
    dtype=dtype,
    emb_dim=values['hidden_size'],
    num_heads=heads,
    num_kv_heads=values.get('num_key_value_heads') or heads,
    num_layers=values['num_hidden_layers'],
    head_dim=values.get('head_dim') or values['hidden_size'] // heads,
    mlp_dim=values['intermediate_size'],
    rope_base=float(rope.get('rope_theta', values.get('rope_theta', 1e4))),
    rope_scaling=_rope_scaling(rope or values.get('rope_scaling') or {}),
    norm_epsilon=values.get('rms_norm_eps', 1e-6),
    qkv_bias=kind == 'qwen2',
    sliding_window=window,
    logits_via_embedding=values.get('tie_word_embeddings', False),
    pad_id=pad_id,
    eos_id=eos_id,
    other_ends=our_ids(other_ends, moved_ids(pad_id, eos_id)),
    bos_id=values.get('bos_token_id'),
    max_position_embeddings=values.get('max_position_embeddings'),
  )


def _rope_scaling(values: Mapping[str, Any]) -> llama.RopeScaling | None:
  kind = values.get('rope_type', values.get('type', 'default'))
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise ValueError(
      f"config.json scales rotary positions by {kind!r}: only 'llama3' is supported."
    )
  return llama.RopeScaling(
    float(values['factor']),
    float(values['low_freq_factor']),
    float(values['high_freq_factor']),
    values['original_max_position_embeddings'],
  )


def _llama_json(config: llama.LlamaConfig) -> dict[str, Any]:
  kind, name = 'llama', 'LlamaForCausalLM'
  if config.qkv_bias:
    kind, name = 'qwen2', 'Qwen2ForCausalLM'
  elif config.sliding_window:
    kind, name = 'mistral', 'MistralForCausalLM'
  values = {
    'architectures': [name],
    'model_type': kind,
    'vocab_size': config.vocab_size,
    'hidden_size': config.emb_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': config.norm_epsilon,
    'rope_theta': config.rope_base,
    'sliding_window': config.sliding_window,
    # Qwen2's; Mistral's goes by its size alone.
    'use_sliding_window': False,
    'tie_word_embeddings': config.logits_via_embedding,
    'max_position_embeddings': config.max_position_embeddings,
    'bos_token_id': config.bos_id,
    'pad_token_id': config.pad_id,
    'eos_token_id': _ends(config),
  }
  if config.max_position_embeddings is None:
    del values['max_position_embeddings']
  if config.rope_scaling:
    factor, low, high, length = config.rope_scaling
    values['rope_scaling'] = {
      'rope_type': 'llama3',
      'factor': factor,
      'low_freq_factor': low,
      'high_freq_factor': high,
      'original_max_position_embeddings': length,
    }
    values.setdefault('max_position_embeddings', int(length * factor))
  return values


def _ends(config: llama.LlamaConfig) -> int | list[int]:
  """Theirs; of several, the first is EOS."""
  moved = moved_ids(config.pad_id, config.eos_id)
  others = [moved.get(number, number) for number in config.other_ends]
  return [config.eos_id, *others] if others else config.eos_id


def _llama_tensor(path: Path) -> Tensor:
  if path == ('token_embedder', 'embedding'):
    return Tensor('model.embed_tokens.weight')
  _, block, *rest = path
  if block == 'logits_dense':
    return Tensor('lm_head.weight', transposed=True)
  if block == 'decoder_norm':
    return Tensor('model.norm.weight')
  start = f'model.layers.{block.removeprefix("layers_")}.'
  part, *inside = rest
  if part == 'pre_self_attention_layer_norm':
    return Tensor(f'{start}input_layernorm.weight')
  if part == 'pre_mlp_layer_norm':
    return Tensor(f'{start}post_attention_layernorm.weight')
  if part == 'mlp':
    name = {'wi_0': 'gate', 'wi_1': 'up', 'wo': 'down'}[inside[0]]
    return Tensor(f'{start}mlp.{name}_proj.weight', transposed=True)
  name = f'{start}self_attn.{_PROJECTIONS[inside[0]]}_proj'
  if inside[1] == 'bias':
    return Tensor(f'{name}.bias')
  return Tensor(f'{name}.weight', transposed=True)


def _is_by_token(path: Path) -> bool:
  return 'token_embedder' in path or 'logits_dense' in path


def _expect(values: Mapping[str, Any], key: str, default: Any, known: Any) -> None:
  if values.get(key, default) != known:
    raise ValueError(f'config.json has {key} = {values[key]!r}: only {known!r} is supported.')
