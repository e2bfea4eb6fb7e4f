"""Rotary positions: radians per position, and how they are stretched for contexts longer than those of pre-training.

A pair i of a head's h = d/2 pairs turns by ω_i = base^(−i/h) per position. A stretch changes the ω_i, and may multiply
what is rotated, queries and keys alike, by an amplitude.

Source: Su et al. (2021), arXiv:2104.09864; Chen et al. (2023), arXiv:2306.15595 (linear); Peng et al. (2023),
arXiv:2309.00071 (dynamic and YaRN); Ding et al. (2024), arXiv:2402.13753 (LongRoPE).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Rotation = tuple[Float[Array, '#N Q 1 h'], Float[Array, '#N Q 1 h']]


class RopeScaling(NamedTuple):
  """Llama 3.1's stretch of slow rotations."""

  factor: float = 8.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_length: int = 8192


class LinearScaling(NamedTuple):
  """All rotations are slower by a factor."""

  factor: float


class DynamicScaling(NamedTuple):
  """None within the original length; beyond it the base would depend on the length of the text, which is refused."""

  factor: float
  original_length: int


class YarnScaling(NamedTuple):
  """Slow rotations are slower by a factor, fast ones are kept, by a ramp over the pairs."""

  factor: float
  original_length: int
  # Of queries and of keys.
  attention_factor: float
  # Rotations within the original length from which on they are kept, and up to which they are stretched.
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  # Whether the ramp begins and ends at a pair.
  truncate: bool = True


class LongScaling(NamedTuple):
  """LongRoPE: each rotation by a factor of its own. Beyond the original length others would apply, which is refused."""

  short_factors: tuple[float, ...]
  original_length: int
  attention_factor: float
  # Not used here: for who reads what is exported.
  long_factors: tuple[float, ...]


Scaling = RopeScaling | LinearScaling | DynamicScaling | YarnScaling | LongScaling


def frequencies(base: float, head_dim: int, scaling: Scaling | None) -> Float[np.ndarray, 'h']:
  """Radians per position of each pair."""
  half = head_dim // 2
  plain = base ** (-np.arange(half) / half)
  match scaling:
    case None | DynamicScaling():
      scaled = plain
    case LinearScaling():
      scaled = plain / scaling.factor
    case LongScaling():
      scaled = plain / np.asarray(scaling.short_factors)
    case YarnScaling():
      kept = 1 - _ramp(base, head_dim, scaling)
      scaled = plain * (kept + (1 - kept) / scaling.factor)
    case RopeScaling():
      # Within the original context.
      rotations = scaling.original_length * plain / (2 * np.pi)
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      kept = np.clip((rotations - low) / (high - low), 0, 1)
      scaled = plain * (kept + (1 - kept) / scaling.factor)
  return scaled.astype(np.float32)


def _ramp(base: float, head_dim: int, scaling: YarnScaling) -> Float[np.ndarray, 'h']:
  """YaRN: 0 of the pairs that turn fast, 1 of those that turn slowly."""

  def pair(rotations: float) -> float:
    """The pair that turns that often within the original length; a fraction."""
    ratio = scaling.original_length / (rotations * 2 * math.pi)
    return head_dim * math.log(ratio) / (2 * math.log(base))

  start, end = pair(scaling.beta_fast), pair(scaling.beta_slow)
  if scaling.truncate:
    start, end = math.floor(start), math.ceil(end)
  start, end = max(start, 0), min(end, head_dim - 1)
  end = end + 0.001 if start == end else end
  return np.clip((np.arange(head_dim // 2) - start) / (end - start), 0, 1)


def amplitude(scaling: Scaling | None) -> float:
  """What rotated queries and keys are multiplied by."""
  return scaling.attention_factor if isinstance(scaling, YarnScaling | LongScaling) else 1.0


def check_length(scaling: Scaling | None, length: int) -> None:
  """Raises ValueError where rotations would depend on the length of the text."""
  if isinstance(scaling, DynamicScaling | LongScaling) and length > scaling.original_length:
    raise ValueError(
      f'Prompt and response have up to {length} tokens: rotary positions of {type(scaling).__name__} are known up to '
      f'{scaling.original_length} here. Shorten prompts or responses.'
    )


def rotation(
  positions: Int[Array, '#N Q'],
  frequencies: Float[Array | np.ndarray, 'h'],
  amplitude: float | Float[Array, ''],
) -> Rotation:
  """cos and sin of each position's angles."""
  angles = positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies)
  return amplitude * jnp.cos(angles)[:, :, None], amplitude * jnp.sin(angles)[:, :, None]


def rotate(x: Float[Array, 'N Q heads d'], rotation: Rotation) -> Float[Array, 'N Q heads d']:
  """Rotates the pairs (x_i, x_{i + d/2}), in float32."""
  cos, sin = rotation
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
