"""One jitted loop that draws the responses of all lanes, side by side, over any pytree of caches.

A lane is one response being written. The loop sees just a function from tokens to the next logits, so what it draws from
may as well be a mixture of networks. A lane's draws depend on its own key alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks.decoding import truncation
from nlhf_jax.types import EOS, PAD, PRNGKey, Rollout

# (cache, last tokens) -> logits of the next token, cache.
Step = Callable[[Any, Int[Array, 'L']], tuple[Float[Array, 'L V'], Any]]


def sample(
  step: Step,
  cache: Any,
  num_lanes: int,
  rng: PRNGKey,
  sampling: truncation.Sampling,
  grow: Callable[[Any, int], Any] | None = None,
) -> Rollout:
  """Draws a response in each lane; stops as soon as all have ended.

  A lane gets the same response whatever other lanes draw.

  Args:
    step: cache and last tokens (PAD at first) in, logits of the next token and cache out.
    cache: a pytree that `step` carries; empty, with capacity for the first of `stages(T)` if it can grow, or else for T
      tokens.
    num_lanes: L.
    rng: one key, split over lanes.
    sampling: static.
    grow: gives a cache more capacity.

  Returns:
    Tokens (PAD after EOS), mask, and log-probs under the distribution that they were drawn from:
    tempered and truncated; for greedy decoding that at temperature 1.
  """
  length = sampling.max_length
  keys = jax.random.split(rng, num_lanes)

  def body(carry):
    t, cache, token, ended, out = carry
    logits, cache = step(cache, token)
    token, logp = draw(keys_at(keys, t), logits, ended, sampling)
    drawn = Rollout(token, ~ended, logp)
    out = jax.tree.map(lambda rows, x: rows.at[:, t].set(x), out, drawn)
    return t + 1, cache, token, ended | (token == EOS), out

  def unfinished(carry, until):
    t, _, _, ended, _ = carry
    return (t < until) & ~jnp.all(ended)

  nothing = jnp.full(num_lanes, PAD, jnp.int32), jnp.zeros(num_lanes, bool)
  carry = 0, cache, *nothing, blank((num_lanes, length))
  for number, until in enumerate(stages(length) if grow else [length]):
    if number > 0:
      t, cache, *rest = carry
      carry = t, grow(cache, until), *rest
    carry = jax.lax.while_loop(functools.partial(unfinished, until=until), body, carry)
  return carry[-1]


def stages(length: int) -> list[int]:
  """Capacities that a cache has one after another: a short response should not read places for a long one at each step.

  A program is compiled for each, so that short ones have but one.
  """
  return [length] if length <= 128 else [*stages(-(-length // 2)), length]


def blank(shape: tuple[int, ...]) -> Rollout:
  """Responses of which nothing is written yet."""
  return Rollout(jnp.full(shape, PAD, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape))


def keys_at(keys: Any, position: int | Int[Array, ''] | Int[Array, 'L']) -> Any:
  """Each lane's key of the token at a position, one for all lanes or one for each."""
  return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(position) else None))(keys, position)


def draw(
  keys: Any, logits: Float[Array, 'L V'], ended: Bool[Array, 'L'], sampling: truncation.Sampling
) -> tuple[Int[Array, 'L'], Float[Array, 'L']]:
  """One token per lane and its log-prob in nats; PAD and 0 where the response has ended."""
  logp = truncation.transform(logits, sampling)
  if sampling.temperature == 0:
    token = _largest(logits)
  else:
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logp.shape[1:], logp.dtype))(keys)
    token = _largest(logp + noise)
  chosen = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
  return jnp.where(ended, PAD, token).astype(jnp.int32), jnp.where(ended, 0, chosen)


def _largest(x: Float[Array, 'L V']) -> Int[Array, 'L']:
  """`argmax` of each row, in two passes: a CPU goes through the loop of `argmax` one entry at a time."""
  # Or both passes would compute it, and need not agree to the bit.
  x = jax.lax.optimization_barrier(x)
  place = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  is_nan = x != x  # The first of which argmax takes.
  is_largest = (x == jnp.max(x, axis=-1, keepdims=True)) | is_nan
  return jnp.min(jnp.where(is_largest, place, x.shape[-1] - 1), axis=-1)
