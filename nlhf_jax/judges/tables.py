"""A judge's preferences between all of a prompt's responses."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.types import AllPairsJudge, PreferenceFn, Prompts


def preference_table(
  preference_fn: PreferenceFn,
  prompts: Prompts,
  responses: Int[Array, 'N T'],
  alternatives: Int[Array, 'M T'] | None = None,
) -> Float[Array, 'B k m']:
  """P(y_i ≻ y'_j|x) of all k·m pairs of each prompt, by the judge's own table if it has one; None: of each other."""
  if isinstance(preference_fn, AllPairsJudge):
    return preference_fn.table(prompts, responses, alternatives)
  alternatives = responses if alternatives is None else alternatives
  size = prompts.tokens.shape[0]
  first, second = (x.reshape(size, -1, x.shape[-1]) for x in (responses, alternatives))
  shape = size, first.shape[1], second.shape[1]
  flat = lambda x: jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(-1, x.shape[-1])
  preference = preference_fn(prompts, flat(first[:, :, None]), flat(second[:, None]))
  return jnp.asarray(preference).reshape(shape)
