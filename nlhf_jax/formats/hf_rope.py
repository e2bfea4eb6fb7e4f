"""Rotary positions in config.json: `rope_parameters` of transformers 5, `rope_theta` and `rope_scaling` of those before."""

import math
from collections.abc import Mapping
from typing import Any

from nlhf_jax.formats.hf_layout import expect
from nlhf_jax.networks import rope

_KINDS = ('default', 'linear', 'dynamic', 'yarn', 'longrope', 'llama3')


def read_base(values: Mapping[str, Any], default: float) -> float:
  """Base of the rotations; of config.json, and what a missing one means."""
  parameters = values.get('rope_parameters') or {}
  return float(parameters.get('rope_theta') or values.get('rope_theta') or default)


def read_scaling(values: Mapping[str, Any]) -> rope.Scaling | None:
  """How rotations are stretched, by config.json.

  Raises:
    ValueError: in a way that is not known here, or of a part of each head alone.
  """
  expect(values, 'partial_rotary_factor', 1.0, 1.0)
  own = values.get('rope_parameters') or values.get('rope_scaling') or {}
  expect(own, 'partial_rotary_factor', 1.0, 1.0)
  kind = own.get('rope_type', own.get('type', 'default'))
  if kind == 'su' or (kind == 'yarn' and 'short_factor' in own):
    kind = 'longrope'  # As Phi-3 once called it.
  if kind not in _KINDS:
    raise ValueError(
      f'config.json scales rotary positions by rope_type = {kind!r}: only {", ".join(_KINDS)} are supported.'
    )
  if kind == 'default':
    return None
  longest = values.get('max_position_embeddings')
  if kind == 'linear':
    return rope.LinearScaling(float(own['factor']))
  if kind == 'dynamic':
    return rope.DynamicScaling(float(own['factor']), longest)
  length = values.get('original_max_position_embeddings')
  length = length or own.get('original_max_position_embeddings') or longest
  factor = float(own.get('factor') or longest / length)
  if kind == 'llama3':
    return rope.RopeScaling(
      factor, float(own['low_freq_factor']), float(own['high_freq_factor']), length
    )
  if kind == 'longrope':
    given = own.get('attention_factor')
    largest = math.sqrt(1 + math.log(max(factor, 1)) / math.log(length))
    factors = tuple(map(float, own['short_factor'])), tuple(map(float, own['long_factor']))
    attention_factor = largest if given is None else float(given)
    return rope.LongScaling(factors[0], length, attention_factor, factors[1])
  return rope.YarnScaling(
    factor,
    length,
    _yarn_attention_factor(own, factor),
    float(own.get('beta_fast') or 32),
    float(own.get('beta_slow') or 1),
    own.get('truncate', True),
  )


def _yarn_attention_factor(own: Mapping[str, Any], factor: float) -> float:
  """As given, or √(1/t) = 0.1 ln(factor) + 1 of the paper, or a ratio of two such."""
  if own.get('attention_factor') is not None:
    return float(own['attention_factor'])
  grown = lambda scale: 0.1 * scale * math.log(max(factor, 1)) + 1
  if own.get('mscale') and own.get('mscale_all_dim'):
    return grown(own['mscale']) / grown(own['mscale_all_dim'])
  return grown(1)


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
