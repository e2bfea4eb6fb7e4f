"""From markers to the sentences that they stand for, on the device: what annotators and raters read."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nlhf_jax.types import PAD, Prompts

Render = Callable[[Prompts, jax.Array], jax.Array]


def render(
  prompts: Prompts, responses: Int[Array, 'N T'], marker_ids: Sequence[int], max_length: int
) -> Int[Array, 'N R']:
  """The sentences after the markers of a response, in its order, without the markers.

  Args:
    prompts: B marked texts.
    responses: N = B·k rows of markers.
    marker_ids: the tokens that are markers.
    max_length: R; what is longer loses its end.
  """
  text = prompts.tokens
  is_marker = jnp.isin(text, jnp.array(marker_ids))
  positions = jnp.where(is_marker, jnp.arange(text.shape[-1]), 0)
  marker = jnp.take_along_axis(text, jax.lax.cummax(positions, axis=1), axis=-1)
  # The marker of each word's sentence.
  marker = jnp.where(is_marker | (text == PAD), -1, marker)
  by_prompt = responses.reshape(text.shape[0], -1, responses.shape[-1], 1)
  picked = jnp.where(marker[:, None, None] == by_prompt, text[:, None, None], PAD)  # [B, k, T, S]
  picked = picked.reshape(responses.shape[0], -1)
  order = jnp.argsort(picked == PAD, axis=-1, stable=True)[:, :max_length]
  return jnp.take_along_axis(picked, order, axis=-1)


def renderer(marker_ids: Sequence[int], max_length: int) -> Render:
  """`render` for a preference or a reward model."""
  return lambda prompts, responses: render(prompts, responses, marker_ids, max_length)
