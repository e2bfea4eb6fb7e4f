"""P(y ≻ y'|x) from one vector for each response: k responses cost k passes, and all pairs of them hardly more.

A rater reads one response and gives a vector v(x, y); a pair function makes the log-odds of two vectors:

| pair function   | log-odds of y over y'                  | what it can hold                                              |
|-----------------|----------------------------------------|---------------------------------------------------------------|
| `cyclic_blocks` | r − r' + Σ_b (a_b b'_b − b_b a'_b)     | every preference between n responses with n/2 − 1 blocks      |
| `mixed_tastes`  | those of mean_m σ(r_m − r'_m)          | voters of M tastes, each of whom a Bradley-Terry reward ranks |

With no block, or one taste, it is a Bradley-Terry reward. Blocks and tastes hold cycles.

Source: Zhang et al. (2024), arXiv:2410.02197 (blocks: the general preference model; here not normalised, and with a
reward of its own beside them).
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.models.preference_model import PreferenceModel
from nlhf_jax.models.rater import Rater
from nlhf_jax.types import Params, Prompts


@runtime_checkable
class PairFn(Protocol):
  """Log-odds of y over y' from their vectors; swapped, their negative."""

  def __call__(
    self, vector: Float[Array, '*#rows D'], other: Float[Array, '*#rows D']
  ) -> Float[Array, '*rows']: ...


def cyclic_blocks(vector: Array, other: Array) -> Array:
  """r − r' + Σ_b (a_b b'_b − b_b a'_b), of vectors (r, a_1 … a_k, b_1 … b_k).

  Raises:
    ValueError: the vectors' size is even.
  """
  size = vector.shape[-1]
  if size % 2 == 0:
    raise ValueError(
      f'A vector of cyclic_blocks has a reward and two numbers for each block, got {size}: make num_features odd.'
    )
  a, b = jnp.split(vector[..., 1:], 2, axis=-1)
  other_a, other_b = jnp.split(other[..., 1:], 2, axis=-1)
  cyclic = jnp.sum(a * other_b, axis=-1) - jnp.sum(b * other_a, axis=-1)
  return vector[..., 0] - other[..., 0] + cyclic


def mixed_tastes(vector: Array, other: Array) -> Array:
  """Log-odds of mean_m σ(r_m − r'_m), of vectors (r_1 … r_M)."""
  difference = vector - other
  for_y = jax.nn.logsumexp(jax.nn.log_sigmoid(difference), axis=-1)
  return for_y - jax.nn.logsumexp(jax.nn.log_sigmoid(-difference), axis=-1)


def from_rater(rater: Rater, pair_fn: PairFn = cyclic_blocks) -> PreferenceModel:
  """The preference model of a rater of one response whose head gives vectors, such as `rater.linear(7)`.

  Raises:
    ValueError: the rater's template takes more than one response.
  """
  if rater.num_responses != 1:
    raise ValueError(
      'A general preference model embeds one response at a time, but the template of its rater takes '
      f'{rater.num_responses}: give the rater one of three pieces, such as prompts.reward_template.'
    )

  def scores(params, prompts, response, alternative):
    logit = pair_fn(*embed(rater, params, prompts, response, alternative)).reshape(-1)
    return logit, -logit

  def table(params, prompts, responses, alternatives=None):
    groups = [responses] if alternatives is None else [responses, alternatives]
    vectors = embed(rater, params, prompts, *groups)
    return pair_fn(vectors[0][:, :, None], vectors[-1][:, None])

  return PreferenceModel(rater.init, scores, rater.axes, table, rater.render)


def embed(
  rater: Rater, params: Params, prompts: Prompts, *groups: Int[Array, '_ T']
) -> list[Float[Array, 'B _ D']]:
  """Vectors of each group of responses, k to a prompt; all in one batch, so that prompts are encoded once."""
  size = prompts.tokens.shape[0]
  by_prompt = [x.reshape(size, -1, x.shape[-1]) for x in groups]
  rows = jnp.concatenate(by_prompt, axis=1).reshape(-1, groups[0].shape[-1])
  vectors = rater.score(params, prompts, rater.render(prompts, rows))
  vectors = vectors.reshape(size, -1, vectors.shape[-1])
  ends = [sum(x.shape[1] for x in by_prompt[: n + 1]) for n in range(len(groups) - 1)]
  return jnp.split(vectors, ends, axis=1)
