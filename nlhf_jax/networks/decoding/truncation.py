"""How a response is drawn: temperature, top-k and top-p, and the distribution that they leave."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.arguments import Count, CountOrZero, NonNegative, PositiveShare


class Sampling(NamedTuple):
  """How to draw a response."""

  # T, in tokens; a response that has not ended by then stops there, without EOS.
  max_length: Count
  # 0: greedy.
  temperature: NonNegative = 1.0
  # 0: off.
  top_k: CountOrZero = 0
  # 1: off.
  top_p: PositiveShare = 1.0
  # Prompts that are answered at a time; others queue, and take the slots of those that are done. 0: all of them. It pays
  # where the lengths of responses differ widely and there are more lanes than it takes to keep the machine busy.
  num_slots: int = 0


def validate(sampling: Sampling) -> None:
  """Raises ValueError where a setting makes no sense."""
  if sampling.max_length < 1:
    raise ValueError(f'max_length must be at least 1, got {sampling.max_length}.')
  if sampling.temperature < 0:
    raise ValueError(f'temperature must be at least 0 (0: greedy), got {sampling.temperature}.')
  if sampling.top_k < 0:
    raise ValueError(f'top_k must be at least 0 (0: off), got {sampling.top_k}.')
  if sampling.num_slots < 0:
    raise ValueError(f'num_slots must be at least 0 (0: all at once), got {sampling.num_slots}.')
  if not 0 < sampling.top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1] (1: off), got {sampling.top_p}.')


def transform(logits: Float[Array, 'L V'], sampling: Sampling) -> Float[Array, 'L V']:
  """Log-probs that tokens are drawn from, in nats: temperature, then top-k, then top-p.

  Greedy decoding reports those at temperature 1, of all tokens.
  """
  logits = logits.astype(jnp.float32)
  if sampling.temperature > 0:
    logits = logits / sampling.temperature
    if sampling.top_k:
      logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
      logits = keep_top_p(logits, sampling.top_p)
  return jax.nn.log_softmax(logits, axis=-1)


def keep_top_k(logits: Float[Array, 'L V'], k: int) -> Float[Array, 'L V']:
  """Rules out all but the k most probable tokens; ties with the last of them stay."""
  least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
  return jnp.where(logits >= least, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, 'L V'], p: float) -> Float[Array, 'L V']:
  """Rules out all but the smallest set of most probable tokens whose probabilities reach p."""
  ordered = jnp.sort(logits, axis=-1)[:, ::-1]
  probabilities = jax.nn.softmax(ordered, axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities  # Mass above each token.
  least = jnp.min(jnp.where(before < p, ordered, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits >= least, logits, -jnp.inf)
