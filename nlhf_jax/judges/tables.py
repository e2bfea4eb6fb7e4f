"""A judge's preferences between all of a prompt's responses."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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


def are_answers(preference: Float[np.ndarray, '*rows']) -> Bool[np.ndarray, '*rows']:
  """Whether each is what a judge may answer: P in [0, 1], or NaN, which is no vote."""
  return np.isnan(preference) | ((preference >= 0) & (preference <= 1))


def mean_of_votes(preference: Float[Array, '*rows m']) -> Float[Array, '*rows']:
  """The mean over those of m preferences that are votes; NaN where none is."""
  is_vote = ~jnp.isnan(preference)
  number = jnp.sum(is_vote, axis=-1)
  total = jnp.sum(jnp.where(is_vote, preference, 0), axis=-1)
  return jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)
