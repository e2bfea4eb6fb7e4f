"""Decoder-only families of Hugging Face: config.json in both directions, and the names of their tensors."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlhf_jax.formats import hf_rope
from nlhf_jax.formats.hf_layout import (
  PROJECTIONS,
  Path,
  Rows,
  Tensor,
  expect,
  flag,
  moved_ids,
  number,
  number_or_none,
  of_layers,
  our_ids,
  section,
  size,
)
from nlhf_jax.networks import layers, llama, rope
from nlhf_jax.types import EOS, PAD

# By model_type.
KINDS = {
  'gemma2': 'Gemma2ForCausalLM',
  'gemma3_text': 'Gemma3ForCausalLM',
  'llama': 'LlamaForCausalLM',
  'mistral': 'MistralForCausalLM',
  'olmo2': 'Olmo2ForCausalLM',
  'phi3': 'Phi3ForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'smollm3': 'SmolLM3ForCausalLM',
}
# What a missing rope_theta means, where it is not 10,000; and families whose embedding is the output layer unless they say no.
_ROPE_BASES = {'smollm3': 2e6, 'gemma3_text': 1e6}
_TIED = ('smollm3', 'gemma2', 'gemma3_text')
_GEMMA = ('gemma2', 'gemma3_text')
# Fields of ours that config.json does not hold, or that are not a network's own.
_OURS: dict[str, Any] = {
  'dtype': 'float32',
  'execution': layers.PLAIN,
  'max_position_embeddings': None,
}


def config_from_json(values: Mapping[str, Any], dtype: Any) -> llama.LlamaConfig:
  """The network that a config.json describes; raises ValueError where it uses what the network here does not have."""
  kind, heads = values['model_type'], size(values, 'num_attention_heads')
  rotations, _ = _rotations(values)
  head_dim = _head_dim(values)
  scaling = hf_rope.read_scaling(rotations)
  _check_factors(scaling, head_dim)
  pad_id = values.get('pad_token_id') or PAD
  ends = values.get('eos_token_id')
  eos_id, *other_ends = [EOS] if ends is None else ends if isinstance(ends, list) else [ends]
  return llama.LlamaConfig(
    vocab_size=size(values, 'vocab_size'),
    dtype=dtype,
    emb_dim=size(values, 'hidden_size'),
    num_heads=heads,
    num_kv_heads=size(values, 'num_key_value_heads', heads),
    num_layers=size(values, 'num_hidden_layers'),
    head_dim=head_dim,
    mlp_dim=size(values, 'intermediate_size'),
    rope_base=hf_rope.read_base(rotations, _ROPE_BASES.get(kind, 1e4)),
    rope_scaling=scaling,
    norm_epsilon=number(values, 'rms_norm_eps', 1e-6),
    logits_via_embedding=flag(values, 'tie_word_embeddings', kind in _TIED),
    pad_id=pad_id,
    eos_id=eos_id,
    other_ends=our_ids(other_ends, moved_ids(pad_id, eos_id)),
    bos_id=values.get('bos_token_id'),
    max_position_embeddings=_size_or_none(values, 'max_position_embeddings'),
    **_features(values),
  )


def _head_dim(values: Mapping[str, Any]) -> int:
  """Features of a head, which are rotated in pairs; raises ValueError where they are no whole pairs."""
  heads, features = size(values, 'num_attention_heads'), size(values, 'hidden_size')
  if values.get('head_dim') is None and features % heads:
    raise ValueError(
      f'config.json has hidden_size = {features}, which is no multiple of num_attention_heads = {heads}, and no head_dim: '
      'download it again.'
    )
  found = size(values, 'head_dim', features // heads)
  if found % 2:
    raise ValueError(
      f'config.json has heads of {found} features, which must be even: download it again.'
    )
  return found


def _check_factors(scaling: rope.Scaling | None, head_dim: int) -> None:
  """Raises ValueError where rotations have not a factor each."""
  if isinstance(scaling, rope.LongScaling):
    for key, factors in (('short', scaling.short_factors), ('long', scaling.long_factors)):
      if len(factors) != head_dim // 2:
        raise ValueError(
          f'config.json has a {key}_factor of {len(factors)} numbers for {head_dim // 2} rotations: download it again.'
        )


def _size_or_none(values: Mapping[str, Any], key: str, default: int | None = None) -> int | None:
  return None if values.get(key, default) is None else size(values, key, default)


def _features(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of the network that are not sizes."""
  kind = values['model_type']
  if kind in _GEMMA:
    return _gemma_features(values)
  expect(values, 'hidden_act', 'silu', 'silu')
  expect(values, 'mlp_bias', False, False)
  if kind == 'qwen2':
    # Its queries, keys and values always have a bias; a window would be that of some layers alone.
    expect(values, 'use_sliding_window', False, False)
    return {'qkv_bias': True}
  expect(values, 'attention_bias', False, False)
  if kind in ('qwen3', 'smollm3'):
    expect(values, 'use_sliding_window', False, False)
  if kind == 'qwen3':
    return {'qk_norm': 'head'}
  if kind == 'smollm3':
    every = size(values, 'no_rope_layer_interval', 4)
    rotary = of_layers(values, 'no_rope_layers', (0, 1))
    rotary = rotary or [(n + 1) % every != 0 for n in range(size(values, 'num_hidden_layers'))]
    return {'rotary_pattern': _pattern(rotary)}
  if kind == 'olmo2':
    return {'qk_norm': 'projection', 'norms_before': False, 'norms_after': True}
  return {
    'sliding_window': _size_or_none(values, 'sliding_window'),
    'fused_in_files': kind == 'phi3',
  }


def _gemma_features(values: Mapping[str, Any]) -> dict[str, Any]:
  tanh = 'gelu_pytorch_tanh'
  expect(values, 'hidden_activation', tanh, tanh)
  expect(values, 'attention_bias', False, False)
  if values.get('use_bidirectional_attention'):
    expect(values, 'use_bidirectional_attention', False, False)
  third, layers_in_all = values['model_type'] == 'gemma3_text', size(values, 'num_hidden_layers')
  every = size(values, 'sliding_window_pattern', 6) if third else 2
  types = of_layers(values, 'layer_types', ('sliding_attention', 'full_attention'))
  windows = (
    [name == 'sliding_attention' for name in types]
    if types
    else [(n + 1) % every != 0 for n in range(layers_in_all)]
  )
  return {
    'sliding_window': _size_or_none(values, 'sliding_window', 4096),
    'window_pattern': _pattern(windows),
    'local_rope_base': _rotations(values)[1] if third else None,
    'qk_norm': 'head' if third else None,
    'norms_after': True,
    'norm_offset': 1.0,
    'mlp_activation': 'gelu',
    'scaled_embedding': True,
    'query_dim': size(values, 'query_pre_attn_scalar', 256),
    'attention_soft_cap': number_or_none(values, 'attn_logit_softcapping', None if third else 50.0),
    'logit_soft_cap': number_or_none(values, 'final_logit_softcapping', None if third else 30.0),
  }


def _rotations(values: Mapping[str, Any]) -> tuple[Mapping[str, Any], float]:
  """config.json as of models whose layers all rotate alike, and the base of layers with a window."""
  own = section(values, 'rope_parameters')
  if 'full_attention' not in own:
    return values, number(values, 'rope_local_base_freq', 1e4)
  local = section(own, 'sliding_attention')
  expect(local, 'rope_type', 'default', 'default')
  return {**values, 'rope_parameters': own['full_attention']}, number(local, 'rope_theta', 1e4)


def _gemma_json(config: llama.LlamaConfig) -> dict[str, Any]:
  windows = _repeated(config.window_pattern, config)
  return {
    'hidden_act': 'gelu_pytorch_tanh',
    'hidden_activation': 'gelu_pytorch_tanh',
    'rope_local_base_freq': config.local_rope_base or config.rope_base,
    'layer_types': ['sliding_attention' if x else 'full_attention' for x in windows],
    'query_pre_attn_scalar': config.query_dim,
    'attn_logit_softcapping': config.attention_soft_cap,
    'final_logit_softcapping': config.logit_soft_cap,
  }


def _pattern(of_layers: Sequence[Any]) -> tuple[bool, ...]:
  """The shortest that makes these, where it is repeated."""
  given = [bool(x) for x in of_layers]
  lengths = range(1, len(given) + 1)
  return next(
    tuple(given[:n]) for n in lengths if all(x == given[i % n] for i, x in enumerate(given))
  )


def _repeated(pattern: Sequence[bool], config: llama.LlamaConfig) -> list[bool]:
  """Of each layer."""
  return [pattern[n % len(pattern)] for n in range(config.num_layers)]


def config_to_json(config: llama.LlamaConfig) -> dict[str, Any]:
  """config.json of the family that has what the network has.

  Raises:
    ValueError: there is none.
  """
  kind = _kind(config)
  values = {
    'architectures': [KINDS[kind]],
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
    # Qwen's; Mistral's goes by its size alone.
    'use_sliding_window': False,
    'tie_word_embeddings': config.logits_via_embedding,
    **hf_rope.scaling_to_json(config.rope_scaling),
    'bos_token_id': config.bos_id,
    'pad_token_id': config.pad_id,
    'eos_token_id': _ends(config),
  }
  if kind in _GEMMA:
    values |= _gemma_json(config)
  if kind == 'smollm3':
    values['no_rope_layers'] = [int(x) for x in _repeated(config.rotary_pattern, config)]
  if config.max_position_embeddings is not None:
    values['max_position_embeddings'] = config.max_position_embeddings
  if kind == 'phi3' and isinstance(config.rope_scaling, rope.LongScaling):
    # Where it looks first.
    values['original_max_position_embeddings'] = config.rope_scaling.original_length
  _check_that_it_reads_back(values, config)
  return values


def _check_that_it_reads_back(values: Mapping[str, Any], config: llama.LlamaConfig) -> None:
  found, wanted = (
    vars(dataclasses.replace(x, **_OURS)) for x in (config_from_json(values, None), config)
  )
  for name, value in wanted.items():
    if found[name] != value:
      raise ValueError(
        f'No model of Hugging Face that is known here has this network: {values["model_type"]} comes closest, with '
        f'{name} = {found[name]} in place of {value}.'
      )


def _kind(config: llama.LlamaConfig) -> str:
  """The family whose features a network has."""
  if config.qkv_bias:
    return 'qwen2'
  if config.scaled_embedding:
    return 'gemma3_text' if config.qk_norm else 'gemma2'
  if config.qk_norm:
    return 'qwen3' if config.qk_norm == 'head' else 'olmo2'
  if not all(config.rotary_pattern):
    return 'smollm3'
  if config.fused_in_files:
    return 'phi3'
  return 'mistral' if config.sliding_window else 'llama'


def _ends(config: llama.LlamaConfig) -> int | list[int]:
  """Theirs; of several, the first is EOS."""
  moved = moved_ids(config.pad_id, config.eos_id)
  others = [moved.get(number, number) for number in config.other_ends]
  return [config.eos_id, *others] if others else config.eos_id


def tensor_for(config: llama.LlamaConfig) -> Callable[[Path], Tensor]:
  """The function from a path in the parameter tree to its tensor."""
  find = _fused_tensor if config.fused_in_files else _tensor
  return lambda path: find(path, config)


def _fused_tensor(path: Path, config: llama.LlamaConfig) -> Tensor:
  """Queries, keys and values in one tensor, and what the MLP reads of its input."""
  heads, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  for module, sizes in (
    ('self_attn.qkv_proj', {'query': heads, 'key': shared, 'value': shared}),
    ('mlp.gate_up_proj', {'wi_0': config.mlp_dim, 'wi_1': config.mlp_dim}),
  ):
    if path[-2] in sizes:
      ends = dict(zip(sizes, itertools.accumulate(sizes.values()), strict=True))
      end, total = ends[path[-2]], sum(sizes.values())
      rows = Rows(end - sizes[path[-2]], end, total)
      name = f'model.layers.{path[1].removeprefix("layers_")}.{module}.weight'
      return Tensor(name, transposed=True, rows=rows)
  return _tensor(path, config)


def _tensor(path: Path, config: llama.LlamaConfig) -> Tensor:
  if path == ('token_embedder', 'embedding'):
    return Tensor('model.embed_tokens.weight', by_token=True)
  _, block, *rest = path
  if block == 'logits_dense':
    return Tensor('lm_head.weight', transposed=True, by_token=True)
  if block == 'decoder_norm':
    return Tensor('model.norm.weight')
  start = f'model.layers.{block.removeprefix("layers_")}.'
  part, *inside = rest
  if part.endswith('_layer_norm'):
    return Tensor(f'{start}{_norm(part, config)}.weight')
  if part == 'mlp':
    name = {'wi_0': 'gate', 'wi_1': 'up', 'wo': 'down'}[inside[0]]
    return Tensor(f'{start}mlp.{name}_proj.weight', transposed=True)
  if inside[0] in ('query_norm', 'key_norm'):
    return Tensor(f'{start}self_attn.{inside[0][0]}_norm.weight')
  name = f'{start}self_attn.{PROJECTIONS[inside[0]]}_proj'
  if inside[1] == 'bias':
    return Tensor(f'{name}.bias')
  return Tensor(f'{name}.weight', transposed=True)


def _norm(part: str, config: llama.LlamaConfig) -> str:
  """What they call a norm; the one before the MLP comes after attention, where none else does."""
  before_mlp = 'pre_feedforward_layernorm' if config.norms_after else 'post_attention_layernorm'
  return {
    'pre_self_attention_layer_norm': 'input_layernorm',
    'pre_mlp_layer_norm': before_mlp,
    'post_self_attention_layer_norm': 'post_attention_layernorm',
    'post_mlp_layer_norm': 'post_feedforward_layernorm',
  }[part]
