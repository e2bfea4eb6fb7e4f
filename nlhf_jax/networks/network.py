"""What is asked of a network's logits, without all of them in memory at once."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.types import Params


def hidden_and_head(
  network: nn.Module,
  params: Params,
  prompt_tokens: Int[Array, 'B S'],
  inputs: Int[Array, 'N T'],
  targets: Int[Array, 'N T'],
) -> tuple[Float[Array, 'N T _'], Callable[[Array], Array]]:
  """A network's pass up to what its logits are made of, and the function that makes them.

  A network of T5X's has no such place: it gives its logits, and the identity.

  Args:
    network: a Linen module with T5X's `encode` and `decode`, and perhaps with `decode_hidden` and `logits`.
    params: its parameters.
    prompt_tokens: what the encoder reads.
    inputs: what the decoder reads.
    targets: what it is to predict; 0 where nothing.
  """
  apply = functools.partial(network.apply, {'params': params})
  if not hasattr(network, 'decode_hidden'):
    return apply(prompt_tokens, inputs, targets, enable_dropout=False), lambda x: x
  encoded = apply(prompt_tokens, method='encode', enable_dropout=False)
  read = encoded, prompt_tokens
  hidden = apply(*read, inputs, targets, method='decode_hidden', enable_dropout=False)
  return hidden, functools.partial(apply, method='logits')


def map_in_chunks(
  function: Callable[[Array, Array], Array],
  hidden: Float[Array, 'N T E'],
  tokens: Int[Array, 'N T'],
  length: int,
) -> Float[Array, 'N T']:
  """function(hidden, tokens) in parts of so many positions, one after another; each is computed again for its gradient."""
  size = tokens.shape[1]
  if length >= size:
    return function(hidden, tokens)
  number = -(-size // length)

  def parts(x):
    x = jnp.pad(x, [(0, 0), (0, number * length - size), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], number, length, *x.shape[2:]), 1, 0)

  again = jax.checkpoint(lambda part: function(*part))
  result = jax.lax.map(again, (parts(hidden), parts(tokens)))  # [number, N, length]
  return jnp.moveaxis(result, 0, 1).reshape(tokens.shape[0], -1)[:, :size]
