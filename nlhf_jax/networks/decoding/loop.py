"""Incremental decoding: one jitted loop draws every lane's response, over any pytree of caches.

A lane is one response being written. A `Decoder` is one network's functions; the loops see just a function from tokens to
the next logits, so what they draw from may as well be a mixture of networks.

`sample` decodes all lanes side by side. `sample_with_slots` has fewer seats than prompts: where all responses to a prompt
have ended, the next prompt takes its seat. Both draw the same responses, since a lane's draws depend on its own key alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import axes, layers
from nlhf_jax.types import Params, PRNGKey, Rollout


class Sampling(NamedTuple):
  """How to draw a response."""

  max_length: int  # T; a response that has not ended by then is cut.
  eos_id: int = 1
  temperature: float = 1.0  # 0: greedy.
  top_k: int = 0  # 0: off.
  top_p: float = 1.0  # 1: off.
  # Prompts that are answered at a time; others take the places of those that are done. 0: all of them. It pays where the
  # lengths of responses differ widely and there are more lanes than it takes to keep the machine busy.
  num_slots: int = 0


class Decoder(NamedTuple):
  """A network as pure functions; L = B · lanes, the lanes of a prompt side by side."""

  # Weights as steps of so many lanes read them.
  weights: Callable[[Params, int], Params]
  # What responses read of prompts [B, S]: a pytree whose leaves have B rows.
  encode: Callable[[Params, Int[Array, 'B S']], Any]
  # Memory of L responses, with room for so many tokens of each; it holds nothing yet.
  empty: Callable[[Params, Any, int, int], Any]  # (params, encoded, lanes, length)
  # Logits of the next token and the cache, from the last tokens [L] (0 at first) and their positions [L] in their responses;
  # None: all lanes began together.
  step: Callable[
    ..., tuple[Float[Array, 'L V'], Any]
  ]  # (params, encoded, cache, tokens, positions)
  # The same memory with room for more tokens; None: it does not grow.
  grow: Callable[[Any, int], Any] | None = None


# Kernels of fewer weights are not worth a copy.
_LARGE = 2**16


def of_network(network: nn.Module) -> Decoder:
  """The functions of a network with `encode` and `decode`.

  A network that has `read` too, as ours do, prepares its encoding for many steps there, and can be asked for lanes that
  did not begin together; T5X's cannot.
  """
  ours = hasattr(network, 'read')
  names_of_axes = functools.cache(lambda: flax.traverse_util.flatten_dict(axes.logical_axes(network)))

  def weights(params, num_lanes: int):
    """In the type of activations, which a cast in the loop would make of them at each step; on a CPU, output-major.

    On a mesh they are gathered along `embed` once for all steps.
    """
    leaves = flax.traverse_util.flatten_dict(params)
    transposed = ours and layers.few_rows_on_cpu(num_lanes, network.config.dtype)
    result = {}
    for path, x in leaves.items():
      if path[-1] in ('kernel', 'embedding', 'bias') and path[-2] != 'logits_dense':
        x = x.astype(network.config.dtype)
      if axes.has_mesh():
        x = axes.gather(x, names_of_axes()[path])
      if transposed and path[-1] == 'kernel' and path[0] == 'decoder' and x.size > _LARGE:
        path, x = (*path[:-1], 'transposed'), x.T
      result[path] = x
    return flax.traverse_util.unflatten_dict(result)

  def encode(params, prompt_tokens: Int[Array, 'B S']):
    run = lambda method, *args, **kwargs: network.apply(
      {'params': params}, *args, method=method, **kwargs
    )
    encoded = run('encode', prompt_tokens, enable_dropout=False)
    return run('read', encoded) if ours else encoded, prompt_tokens

  def step(params, encoded, cache, tokens: Int[Array, 'L'], positions=None, length=None):
    if positions is not None and not ours:
      raise ValueError('A network of T5X decodes all lanes side by side: set num_slots = 0.')
    logits, changed = network.apply(
      {'params': params, 'cache': cache},
      *encoded,
      tokens[:, None],
      tokens[:, None],
      decoder_positions=None if positions is None else positions[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=length or _room(cache),
      mutable=['cache'],
      method='decode',
    )
    return logits[:, 0], changed['cache']

  def empty(params, encoded, num_lanes: int, length: int):
    first = jnp.zeros(num_lanes, jnp.int32)
    begin = lambda params, encoded, first: step(params, encoded, {}, first, length=length)
    _, cache = jax.eval_shape(begin, params, encoded, first)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)

  return Decoder(weights, encode, empty, step, _grow if ours else None)


_LENGTH_AXIS = {'cached_key': 3, 'cached_value': 2}


def _room(cache: Any) -> int:
  """Tokens that each response has room for."""
  leaves = flax.traverse_util.flatten_dict(cache)
  return next(x.shape[-1] for path, x in leaves.items() if path[-1] == 'cached_key')


def _grow(cache: Any, length: int) -> Any:
  def enlarge(path, x):
    axis = _LENGTH_AXIS.get(path[-1])
    if axis is None:
      return x
    more = [(0, length - x.shape[n] if n == axis else 0) for n in range(x.ndim)]
    return jnp.pad(x, more)

  leaves = flax.traverse_util.flatten_dict(cache)
  return flax.traverse_util.unflatten_dict({path: enlarge(path, x) for path, x in leaves.items()})


def stages(length: int) -> list[int]:
  """Lengths that a cache has one after another: a short response should not read room for a long one at each step.

  A program is compiled for each, so that short ones have but one.
  """
  return [length] if length <= 128 else [*stages(-(-length // 2)), length]


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


# Cache and last tokens in, logits of the next token and cache out.
Step = Callable[[Any, Int[Array, 'L']], tuple[Float[Array, 'L V'], Any]]


def sample(
  step: Step,
  cache: Any,
  num_lanes: int,
  rng: PRNGKey,
  sampling: Sampling,
  grow: Callable[[Any, int], Any] | None = None,
) -> Rollout:
  """Draws a response in each lane; stops as soon as all have ended.

  A lane's draws depend on its own key alone, so the same lane gets the same response in whatever
  company it is drawn.

  Args:
    step: cache and last tokens (0 at first) in, logits of the next token and cache out.
    cache: whatever `step` carries; empty, with room for the first of `stages(T)` if it can grow, or else for T tokens.
    num_lanes: L.
    rng: one key, split over lanes.
    sampling: static.
    grow: gives a cache more room.

  Returns:
    Tokens (0 after EOS), mask, and log-probs under the distribution that they were drawn from:
    tempered and truncated; for greedy decoding that at temperature 1.
  """
  length = sampling.max_length
  keys = jax.random.split(rng, num_lanes)

  def body(carry):
    t, cache, token, ended, out = carry
    logits, cache = step(cache, token)
    token, logp = _draw(_keys_at(keys, t), logits, ended, sampling)
    drawn = Rollout(token, ~ended, logp)
    out = jax.tree.map(lambda rows, x: rows.at[:, t].set(x), out, drawn)
    return t + 1, cache, token, ended | (token == sampling.eos_id), out

  def unfinished(carry, until):
    t, _, _, ended, _ = carry
    return (t < until) & ~jnp.all(ended)

  nothing = jnp.zeros(num_lanes, jnp.int32), jnp.zeros(num_lanes, bool)
  carry = 0, cache, *nothing, _blank((num_lanes, length))
  for number, until in enumerate(stages(length) if grow else [length]):
    if number > 0:
      t, cache, *rest = carry
      carry = t, grow(cache, until), *rest
    carry = jax.lax.while_loop(functools.partial(unfinished, until=until), body, carry)
  return carry[-1]


class _Seated(NamedTuple):
  """What `sample_with_slots` knows; W seats of M lanes each."""

  prompt: Int[Array, 'W']  # Who sits there; B: nobody.
  position: Int[Array, 'W']  # Of the next token.
  token: Int[Array, 'W M']  # The last one; 0 at first.
  ended: Bool[Array, 'W M']
  waiting: Int[Array, '']  # The next prompt that has no seat yet.
  reads: Any  # What the lanes of each seat read of its prompt.
  cache: Any
  out: Rollout  # [B + 1, M, T]; what nobody draws goes to the last row.


def sample_with_slots(
  step: Callable[..., tuple[Float[Array, 'L V'], Any]],
  encoded: Any,
  cache: Any,
  num_lanes: int,
  rng: PRNGKey,
  sampling: Sampling,
) -> Rollout:
  """What `sample` draws, with `sampling.num_slots` prompts at a time.

  Args:
    step: (what seats read, cache, tokens [W·M], positions [W·M]) -> logits, cache.
    encoded: what lanes read of the prompts; its leaves have B rows.
    cache: of W·M lanes; empty.
    num_lanes: M, lanes to a prompt.
    rng, sampling: as in `sample`.
  """
  seats, length = sampling.num_slots, sampling.max_length
  num_prompts = jax.tree.leaves(encoded)[0].shape[0]
  keys = jax.random.split(rng, num_prompts * num_lanes)
  keys = keys.reshape(num_prompts, num_lanes, *keys.shape[1:])
  of_seats = lambda flags, x: flags.reshape(-1, *[1] * (x.ndim - 1))

  def seat(state: _Seated) -> _Seated:
    """Whoever waits takes the seats of those who are done."""
    free = jnp.all(state.ended, axis=-1)
    prompt = jnp.minimum(state.waiting + jnp.cumsum(free) - 1, num_prompts)
    taken = free & (prompt < num_prompts)
    at = jnp.minimum(prompt, num_prompts - 1)
    reads = jax.tree.map(
      lambda old, new: jnp.where(of_seats(taken, old), new[at], old), state.reads, encoded
    )
    return state._replace(
      prompt=jnp.where(free, prompt, state.prompt),
      position=jnp.where(free, 0, state.position),
      token=jnp.where(free[:, None], 0, state.token),
      ended=jnp.where(free[:, None], ~taken[:, None], state.ended),
      waiting=state.waiting + jnp.sum(taken),
      reads=reads,
    )

  def draw(state: _Seated) -> _Seated:
    """A token in every lane."""
    positions = jnp.repeat(state.position, num_lanes)
    logits, cache = step(state.reads, state.cache, state.token.reshape(-1), positions)
    own = keys[jnp.minimum(state.prompt, num_prompts - 1)]
    own = own.reshape(seats * num_lanes, *keys.shape[2:])
    ended = state.ended.reshape(-1)
    token, logp = _draw(_keys_at(own, positions), logits, ended, sampling)
    drawn = Rollout(token, ~ended, logp)
    write = lambda rows, x: rows.at[state.prompt, :, state.position].set(
      x.reshape(seats, num_lanes), mode='drop'
    )
    position = state.position + 1
    ended = (ended | (token == sampling.eos_id)).reshape(seats, num_lanes)
    return state._replace(
      position=position,
      token=token.reshape(seats, num_lanes),
      ended=ended | (position >= length)[:, None],
      cache=cache,
      out=jax.tree.map(write, state.out, drawn),
    )

  def busy(state: _Seated):
    """Somebody is still drawing, and no seat is free that somebody waits for."""
    free = jnp.all(state.ended, axis=-1)
    return ~jnp.all(free) & ((state.waiting >= num_prompts) | ~jnp.any(free))

  def unfinished(state: _Seated):
    return (state.waiting < num_prompts) | ~jnp.all(state.ended)

  start = _empty_seats(encoded, cache, seats, (num_prompts, num_lanes, length))
  turn = lambda state: jax.lax.while_loop(busy, draw, seat(state))
  out = jax.lax.while_loop(unfinished, turn, start).out
  return jax.tree.map(lambda x: x[:-1].reshape(-1, length), out)


def _empty_seats(encoded: Any, cache: Any, seats: int, shape: tuple[int, int, int]) -> _Seated:
  """Before anybody sits down; the shape is that of all responses, [B, M, T]."""
  num_prompts, num_lanes, length = shape
  return _Seated(
    prompt=jnp.full(seats, num_prompts),
    position=jnp.zeros(seats, jnp.int32),
    token=jnp.zeros((seats, num_lanes), jnp.int32),
    ended=jnp.ones((seats, num_lanes), bool),
    waiting=jnp.zeros((), jnp.int32),
    reads=jax.tree.map(lambda x: x[:seats], encoded),
    cache=cache,
    out=_blank((num_prompts + 1, num_lanes, length)),
  )


def _blank(shape: tuple[int, ...]) -> Rollout:
  return Rollout(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape))


def _keys_at(keys, position) -> Any:
  """Each lane's key of the token at a position."""
  return jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(position) else None))(keys, position)


def _draw(keys, logits: Float[Array, 'L V'], ended: Bool[Array, 'L'], sampling: Sampling):
  """One token per lane and its log-prob; 0 and 0 where the response has ended."""
  logp = transform(logits, sampling)
  if sampling.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    token = jax.vmap(jax.random.categorical)(keys, logp)
  chosen = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
  return jnp.where(ended, 0, token).astype(jnp.int32), jnp.where(ended, 0, chosen)


def transform(logits: Float[Array, 'L V'], sampling: Sampling) -> Float[Array, 'L V']:
  """Log-probs that tokens are drawn from: temperature, then top-k, then top-p.

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
