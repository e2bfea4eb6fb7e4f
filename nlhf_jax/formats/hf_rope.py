"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` of those before."""

import math
from collections.abc import Mapping
from typing import Any

from nlhf_jax.formats.hf_layout import expect, flag, number, numbers, section, size
from nlhf_jax.networks import rope

_KINDS = ('default', 'linear', 'dynamic', 'yarn', 'longrope', 'llama3')


def read_base(values: Mapping[str, Any], default: float) -> float:
  """Base of the rotations; of config.json, and what a missing one means."""
  return number(
    section(values, 'rope_parameters'), 'rope_theta', number(values, 'rope_theta', default)
  )


def read_scaling(values: Mapping[str, Any]) -> rope.Scaling | None:
  """How rotations are stretched, by config.json.

  Raises:
    ValueError: in a way that is not known here, or of a part of each head alone.
  """
  expect(values, 'partial_rotary_factor', 1.0, 1.0)
  own = section(values, 'rope_parameters') or section(values, 'rope_scaling')
  expect(own, 'partial_rotary_factor', 1.0, 1.0)
  kind = own.get('rope_type', own.get('type', 'default'))
  if kind == 'su' or (kind == 'yarn' and 'short_factor' in own):
    kind = 'longrope'  # As Phi-3 once called it.
  if kind not in _KINDS:
    raise ValueError(
      f'config.json scales rotary positions by rope_type = {kind!r}: only {", ".join(_KINDS)} are supported, so take another '
      'model.'
    )
  match kind:
    case 'default':
      return None
    case 'linear':
      return rope.LinearScaling(number(own, 'factor'))
    case 'dynamic':
      return rope.DynamicScaling(number(own, 'factor'), size(values, 'max_position_embeddings'))
  return _relative_scaling(kind, values, own)


def _relative_scaling(kind: str, values: Mapping[str, Any], own: Mapping[str, Any]) -> rope.Scaling:
  """Stretches that go by the length of pre-training: llama3, longrope and yarn."""
  key = 'original_max_position_embeddings'
  known = values if values.get(key) else own if own.get(key) else values
  length = size(known, key if known.get(key) else 'max_position_embeddings')
  longest = size(values, 'max_position_embeddings', length)
  factor = number(own, 'factor', longest / length)
  if kind == 'llama3':
    low, high = number(own, 'low_freq_factor'), number(own, 'high_freq_factor')
    if low >= high:
      raise ValueError(
        f'config.json has low_freq_factor = {low}, which must be below high_freq_factor = {high}: download it again.'
      )
    return rope.RopeScaling(number(own, 'factor'), low, high, length)
  if kind == 'longrope':
    largest = math.sqrt(1 + math.log(max(factor, 1)) / math.log(max(length, 2)))
    short, long = numbers(own, 'short_factor'), numbers(own, 'long_factor')
    return rope.LongScaling(short, length, number(own, 'attention_factor', largest), long)
  return rope.YarnScaling(
    factor,
    length,
    _yarn_attention_factor(own, factor),
    number(own, 'beta_fast', 32.0),
    number(own, 'beta_slow', 1.0),
    flag(own, 'truncate', True),
  )


def _yarn_attention_factor(own: Mapping[str, Any], factor: float) -> float:
  """As given, or √(1/t) = 0.1 ln(factor) + 1 of the paper, or a ratio of two such."""
  grown = lambda scale: 0.1 * scale * math.log(max(factor, 1)) + 1
  if own.get('mscale') and own.get('mscale_all_dim'):
    default = grown(number(own, 'mscale')) / grown(number(own, 'mscale_all_dim'))
  else:
    default = grown(1)
  return number(own, 'attention_factor', default)


def scaling_to_json(scaling: rope.Scaling | None) -> dict[str, Any]:
  """What config.json says of a stretch: `rope_scaling`, and how long texts may be; nothing of none."""
  own: dict[str, Any]
  match scaling:
    case None:
      return {}
    case rope.LinearScaling():
      return {'rope_scaling': {'rope_type': 'linear', 'factor': scaling.factor}}
    case rope.DynamicScaling():
      own = {'rope_type': 'dynamic', 'factor': scaling.factor}
      return {'rope_scaling': own, 'max_position_embeddings': scaling.original_length}
    case rope.RopeScaling():
      kind, own = 'llama3', scaling._asdict()
    case rope.YarnScaling():
      kind, own = 'yarn', scaling._asdict()
    case rope.LongScaling():
      kind, own = 'longrope', scaling._asdict()
      own['short_factor'] = list(own.pop('short_factors'))
      own['long_factor'] = list(own.pop('long_factors'))
  length = own.pop('original_length')
  own = {'rope_type': kind, **own, 'original_max_position_embeddings': length}
  longest = {'max_position_embeddings': int(length * own.get('factor', 1))}
  return {'rope_scaling': own, **longest}
