"""Continuous batching: fewer slots than prompts, and a queue of prompts that take the slots of those that are done.

What is drawn is what `loop.sample` draws, since a lane's draws depend on its own key alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks.decoding import loop, truncation
from nlhf_jax.types import EOS, PAD, PRNGKey, Rollout

# (what slots read, cache, last tokens [W·M], their positions [W·M]) -> logits of the next token, cache.
Step = Callable[
  [Any, Any, Int[Array, 'L'], Int[Array, 'L']],
  tuple[Float[Array, 'L V'], Any],
]


class _Slots(NamedTuple):
  """The state of W slots of M lanes each, for B prompts."""

  # The prompt in each slot; B: none.
  prompt: Int[Array, 'W']
  # Of the next token.
  position: Int[Array, 'W']
  # The last one; PAD at first.
  token: Int[Array, 'W M']
  ended: Bool[Array, 'W M']
  # The prompt at the head of the queue; B: the queue is empty.
  queue: Int[Array, '']
  # What the lanes of each slot read of its prompt; leaves have W rows.
  encoded: Any
  cache: Any
  # [B + 1, M, T]; what slots without a prompt draw goes to the last row.
  out: Rollout

  @property
  def num_prompts(self) -> int:
    """B."""
    return self.out.tokens.shape[0] - 1

  @property
  def free(self) -> Bool[Array, 'W']:
    """Slots whose responses have all ended."""
    return jnp.all(self.ended, axis=-1)


def sample(
  step: Step,
  encoded: Any,
  cache: Any,
  num_lanes: int,
  rng: PRNGKey,
  sampling: truncation.Sampling,
) -> Rollout:
  """What `loop.sample` draws, with `sampling.num_slots` prompts at a time.

  Args:
    step: what slots read, cache, last tokens (PAD at first) and their positions in, logits and cache out.
    encoded: what lanes read of the prompts; its leaves have B rows.
    cache: of W·M lanes; empty, with capacity for T tokens.
    num_lanes: M, lanes to a prompt.
    rng: one key, split over lanes.
    sampling: static.

  Returns:
    As of `loop.sample`, of B·M rows.
  """
  num_prompts = jax.tree.leaves(encoded)[0].shape[0]
  keys = jax.random.split(rng, num_prompts * num_lanes)
  keys = keys.reshape(num_prompts, num_lanes, *keys.shape[1:])
  body = functools.partial(_draw, step=step, keys=keys, sampling=sampling)

  def refill_and_draw(state: _Slots) -> _Slots:
    return jax.lax.while_loop(_is_busy, body, _refill(state, encoded))

  start = _empty(encoded, cache, num_lanes, sampling)
  out = jax.lax.while_loop(_is_unfinished, refill_and_draw, start).out
  return jax.tree.map(lambda x: x[:-1].reshape(-1, sampling.max_length), out)


def _empty(encoded: Any, cache: Any, num_lanes: int, sampling: truncation.Sampling) -> _Slots:
  """All prompts are in the queue."""
  num_slots, num_prompts = sampling.num_slots, jax.tree.leaves(encoded)[0].shape[0]
  return _Slots(
    prompt=jnp.full(num_slots, num_prompts),
    position=jnp.zeros(num_slots, jnp.int32),
    token=jnp.full((num_slots, num_lanes), PAD, jnp.int32),
    ended=jnp.ones((num_slots, num_lanes), bool),
    queue=jnp.zeros((), jnp.int32),
    encoded=jax.tree.map(lambda x: x[:num_slots], encoded),
    cache=cache,
    out=loop.blank((num_prompts + 1, num_lanes, sampling.max_length)),
  )


def _refill(state: _Slots, encoded: Any) -> _Slots:
  """The first prompts of the queue take the free slots."""
  free, num_prompts = state.free, state.num_prompts
  prompt = jnp.minimum(state.queue + jnp.cumsum(free) - 1, num_prompts)
  taken = free & (prompt < num_prompts)
  at = jnp.minimum(prompt, num_prompts - 1)

  def replace(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(taken.reshape(-1, *[1] * (old.ndim - 1)), new[at], old)

  return state._replace(
    prompt=jnp.where(free, prompt, state.prompt),
    position=jnp.where(free, 0, state.position),
    token=jnp.where(free[:, None], PAD, state.token),
    ended=jnp.where(free[:, None], ~taken[:, None], state.ended),
    queue=state.queue + jnp.sum(taken),
    encoded=jax.tree.map(replace, state.encoded, encoded),
  )


def _draw(state: _Slots, step: Step, keys: Any, sampling: truncation.Sampling) -> _Slots:
  """A token in every lane."""
  shape = state.token.shape
  positions = jnp.repeat(state.position, shape[1])
  logits, cache = step(state.encoded, state.cache, state.token.reshape(-1), positions)
  own = keys[jnp.minimum(state.prompt, state.num_prompts - 1)]
  own = own.reshape(-1, *keys.shape[2:])
  ended = state.ended.reshape(-1)
  token, logp = loop.draw(loop.keys_at(own, positions), logits, ended, sampling)

  def write(rows: jax.Array, x: jax.Array) -> jax.Array:
    return rows.at[state.prompt, :, state.position].set(x.reshape(shape), mode='drop')

  position = state.position + 1
  ended_now = (ended | (token == EOS)).reshape(shape)
  return state._replace(
    position=position,
    token=token.reshape(shape),
    ended=ended_now | (position >= sampling.max_length)[:, None],
    cache=cache,
    out=jax.tree.map(write, state.out, Rollout(token, ~ended, logp)),
  )


def _is_busy(state: _Slots) -> Bool[Array, '']:
  """Some slot is drawing, and none is free while prompts are in the queue."""
  queue_is_empty = state.queue >= state.num_prompts
  return ~jnp.all(state.free) & (queue_is_empty | ~jnp.any(state.free))


def _is_unfinished(state: _Slots) -> Bool[Array, '']:
  return (state.queue < state.num_prompts) | ~jnp.all(state.ended)
