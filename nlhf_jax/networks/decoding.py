"""Incremental decoding: one jitted loop draws every lane's response, over any pytree of caches.

A lane is one response being written. A `Decoder` is one network's prefill and step; the loop sees
just a function from tokens to the next logits, so what it draws from may as well be a mixture of
networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.types import Params, PRNGKey, Rollout


class Sampling(NamedTuple):
  """How to draw a response."""

  max_length: int  # T; a response that has not ended by then is cut.
  eos_id: int = 1
  temperature: float = 1.0  # 0: greedy.
  top_k: int = 0  # 0: off.
  top_p: float = 1.0  # 1: off.


class Decoder(NamedTuple):
  """A network as pure functions; L = B · lanes, the lanes of a prompt side by side."""

  prefill: Callable[
    [Params, Int[Array, 'B S'], int], tuple[Float[Array, 'L V'], Any]
  ]  # Logits of the first token.
  step: Callable[
    [Params, Any, Int[Array, 'L']], tuple[Float[Array, 'L V'], Any]
  ]  # Logits of the next token.


def of_network(network: nn.Module, max_length: int) -> Decoder:
  """Prefill and step of a network with `encode` and `decode`, for responses of up to `max_length` tokens.

  Prefill encodes each prompt once; its lanes share the keys and values onto it.
  """

  def step(params, state, tokens: Int[Array, 'L']):
    encoded, prompt_tokens, cache = state
    logits, changed = network.apply(
      {'params': params, 'cache': cache},
      encoded,
      prompt_tokens,
      tokens[:, None],
      tokens[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=max_length,
      mutable=['cache'],
      method='decode',
    )
    return logits[:, 0], (encoded, prompt_tokens, changed['cache'])

  def prefill(params, prompt_tokens: Int[Array, 'B S'], lanes: int):
    encoded = network.apply(
      {'params': params}, prompt_tokens, enable_dropout=False, method='encode'
    )
    start = jnp.zeros(prompt_tokens.shape[0] * lanes, jnp.int32)
    return step(params, (encoded, prompt_tokens, {}), start)

  return Decoder(prefill, step)


def validate(sampling: Sampling) -> None:
  """Raises ValueError where a setting makes no sense."""
  if sampling.max_length < 1:
    raise ValueError(f'max_length must be at least 1, got {sampling.max_length}.')
  if sampling.temperature < 0:
    raise ValueError(f'temperature must be at least 0 (0: greedy), got {sampling.temperature}.')
  if sampling.top_k < 0:
    raise ValueError(f'top_k must be at least 0 (0: off), got {sampling.top_k}.')
  if not 0 < sampling.top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1] (1: off), got {sampling.top_p}.')


def sample(
  step: Callable[[Any, Int[Array, 'L']], tuple[Float[Array, 'L V'], Any]],
  logits: Float[Array, 'L V'],
  cache: Any,
  rng: PRNGKey,
  sampling: Sampling,
) -> Rollout:
  """Draws a response in each lane; stops as soon as all have ended.

  A lane's draws depend on its own key alone, so the same lane gets the same response in whatever
  company it is drawn.

  Args:
    step: cache and last tokens in, logits of the next token and cache out.
    logits: of the first token.
    cache: whatever `step` carries.
    rng: one key, split over lanes.
    sampling: static.

  Returns:
    Tokens (0 after EOS), mask, and log-probs under the distribution that they were drawn from:
    tempered and truncated; for greedy decoding that at temperature 1.
  """
  num_lanes, length = logits.shape[0], sampling.max_length
  keys = jax.random.split(rng, num_lanes)

  def draw(t, logits, ended, out: Rollout):
    token, logp = _draw(jax.vmap(jax.random.fold_in, (0, None))(keys, t), logits, sampling)
    token, logp = jnp.where(ended, 0, token), jnp.where(ended, 0, logp)
    out = Rollout(
      out.tokens.at[:, t].set(token),
      out.mask.at[:, t].set(~ended),
      out.token_logp.at[:, t].set(logp),
    )
    return token, ended | (token == sampling.eos_id), out

  def body(carry):
    t, cache, token, ended, out = carry
    logits, cache = step(cache, token)
    return t + 1, cache, *draw(t, logits, ended, out)

  def unfinished(carry):
    t, _, _, ended, _ = carry
    return (t < length) & ~jnp.all(ended)

  empty = Rollout(
    jnp.zeros((num_lanes, length), jnp.int32),
    jnp.zeros((num_lanes, length), bool),
    jnp.zeros((num_lanes, length), jnp.float32),
  )
  token, ended, out = draw(0, logits, jnp.zeros(num_lanes, bool), empty)
  *_, out = jax.lax.while_loop(unfinished, body, (1, cache, token, ended, out))
  return out


def _draw(keys, logits: Float[Array, 'L V'], sampling: Sampling):
  """One token per lane and its log-prob."""
  logp = transform(logits, sampling)
  if sampling.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    token = jax.vmap(jax.random.categorical)(keys, logp)
  token = token.astype(jnp.int32)
  return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


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
