"""Optimizers and schedules by name, on optax."""

import optax

from nlhf_jax.arguments import Count, CountOrZero, Decay, NonNegative, Positive, Share


def adafactor(
  learning_rate: Positive | optax.Schedule = 3e-5,
  *,
  decay_rate: Share = 0.8,
  clip_norm: Positive | None = 1.0,
) -> optax.GradientTransformation:
  """Adafactor as T5X runs it: factored second moments, update clipping, steps relative to the parameters' scale."""
  return _clipped(optax.adafactor(learning_rate, decay_rate=decay_rate), clip_norm)


def adamw(
  learning_rate: Positive | optax.Schedule = 1e-4,
  *,
  b1: Decay = 0.9,
  b2: Decay = 0.999,
  weight_decay: NonNegative = 0.0,
  clip_norm: Positive | None = 1.0,
) -> optax.GradientTransformation:
  """AdamW after clipping the gradient's global norm."""
  return _clipped(optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay), clip_norm)


def warmup_linear(
  peak: Positive,
  *,
  num_steps: Count,
  warmup_steps: CountOrZero = 0,
  end_fraction: Share = 0.0,
  num_updates: Count = 1,
) -> optax.Schedule:
  """Linear from 0 to `peak` over the warm-up, then linear to `end_fraction · peak` at `num_steps`.

  Args:
    peak: the largest learning rate.
    num_steps: of the run.
    warmup_steps: of the warm-up.
    end_fraction: of the peak, at the end.
    num_updates: to a step.

  Raises:
    ValueError: the warm-up is longer than the run.
  """
  if not 0 <= warmup_steps <= num_steps:
    raise ValueError(f'warmup_steps must be in [0, {num_steps}], got {warmup_steps}.')
  warmup, rest = warmup_steps * num_updates, (num_steps - warmup_steps) * num_updates
  return optax.join_schedules(
    [
      optax.linear_schedule(0.0, peak, max(warmup, 1)),
      optax.linear_schedule(peak, end_fraction * peak, max(rest, 1)),
    ],
    [warmup],
  )


def _clipped(optimizer: optax.GradientTransformation, clip_norm: float | None):
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
