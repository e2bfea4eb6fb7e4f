"""P(y ≻ y'|x) from one vector for each response: k responses cost k passes, and all pairs of them hardly more.

A rater reads one response and gives a vector v(x, y); a pair function makes the log-odds of two vectors:

| pair function     | log-odds of y over y'                        | what it can hold                                              |
|-------------------|----------------------------------------------|---------------------------------------------------------------|
| `skew_blocks`     | ⟨R(x) v, v'⟩/τ                               | GPM: every preference between n responses with n/2 blocks     |
| `reward_and_skew` | C₁ (r − r') + C₂ ⟨R(x) v, v'⟩                | HRC: the same with n/2 − 1; part of what GPM with a block more does |
| `cyclic_blocks`   | r − r' + Σ_b (a_b b'_b − b_b a'_b)           | HRC without gate and unit norm                                |
| `mixed_tastes`    | those of mean_m σ(r_m − r'_m)                | voters of M tastes, each of whom a Bradley-Terry reward ranks |

⟨R(x) v, v'⟩ = Σ_b λ_b(x) (a_b b'_b − b_b a'_b) with v = (a_1 … a_k, b_1 … b_k): R has k blocks of two rows, each a rotation by a right
angle times its eigenvalue λ_b ≥ 0. With no block, or one taste, it is a Bradley-Terry reward. Blocks and tastes hold cycles; one block
holds none among those that one response beats, unless a reward stands beside it (`games.fits` has the exact fits). All are
antisymmetric to the last bit.

Source: Zhang et al. (2024), arXiv:2410.02197 (GPM); arXiv:2605.17342 (HRC: a reward beside the blocks, r clipped, ‖v‖ = 1).
GPM's released code has τ = .1 and λ = k softmax(W h_x/√d), h_x the prompt's last hidden state. As released this cannot run (it names
`math` and `hidden_dim`, which nothing defines), and the lines that normalise v are commented out. Here 1/√d stands in the first
weights of W (`rater.gated_linear`), v's two halves are not interleaved, and v has unit norm if asked. HRC's D(x) R D(x) is R(x) here.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.arguments import NonNegative, Positive
from nlhf_jax.models.preference_model import PreferenceModel
from nlhf_jax.models.rater import Rater
from nlhf_jax.types import Params, Prompts


@runtime_checkable
class PairFn(Protocol):
  """Log-odds of y over y' from their vectors; swapped, their negative."""

  def __call__(
    self, vector: Float[Array, '*#rows D'], other: Float[Array, '*#rows D']
  ) -> Float[Array, '*rows']: ...


def skew_blocks(
  vector: Array, other: Array, *, tau: Positive = 0.1, gated: bool = False, unit_norm: bool = False
) -> Array:
  """GPM: Σ_b λ_b (a_b b'_b − b_b a'_b)/τ, of vectors (a_1 … a_k, b_1 … b_k), and (λ_1 … λ_k) behind them.

  Args:
    vector, other: of 2k numbers, with a gate of 3k.
    tau: τ > 0, what a difference of 1 in log-odds is divided by.
    gated: whether vectors end with λ(x), as `rater.gated_linear` makes them; else λ = 1.
    unit_norm: whether (a, b) is divided by its norm; log-odds are then at most max_b λ_b/τ.

  Raises:
    ValueError: the vectors' size is no multiple of two, with a gate of three.
  """
  return _skew(vector, other, gated=gated, unit_norm=unit_norm) / tau


def reward_and_skew(
  vector: Array,
  other: Array,
  *,
  gated: bool = False,
  unit_norm: bool = False,
  reward_scale: NonNegative = 1.0,
  cyclic_scale: NonNegative = 1.0,
  max_reward: Positive | None = None,
) -> Array:
  """HRC: C₁ (r − r') + C₂ Σ_b λ_b (a_b b'_b − b_b a'_b), of vectors (r, a_1 … a_k, b_1 … b_k), and (λ_1 … λ_k) behind them.

  Args:
    vector, other: of 1 + 2k numbers, with a gate of 1 + 3k.
    gated, unit_norm: as of `skew_blocks`.
    reward_scale: C₁.
    cyclic_scale: C₂.
    max_reward: r is clipped at ± this; None: it is not.

  Raises:
    ValueError: the vectors' size less one is no multiple of two, with a gate of three.
  """
  reward, other_reward = vector[..., 0], other[..., 0]
  if max_reward is not None:
    reward, other_reward = (jnp.clip(x, -max_reward, max_reward) for x in (reward, other_reward))
  blocks = vector[..., 1:], other[..., 1:]
  cyclic = _skew(*blocks, gated=gated, unit_norm=unit_norm, with_reward=True)
  return reward_scale * (reward - other_reward) + cyclic_scale * cyclic


def cyclic_blocks(vector: Array, other: Array) -> Array:
  """r − r' + Σ_b (a_b b'_b − b_b a'_b), of vectors (r, a_1 … a_k, b_1 … b_k).

  Raises:
    ValueError: the vectors' size is even.
  """
  return reward_and_skew(vector, other)


def _skew(
  vector: Array, other: Array, *, gated: bool, unit_norm: bool, with_reward: bool = False
) -> Array:
  """Σ_b λ_b (a_b b'_b − b_b a'_b), of vectors (a, b) or (a, b, λ)."""
  size, parts = vector.shape[-1], 3 if gated else 2
  if size % parts:
    raise ValueError(
      f'A vector of k blocks has {"a reward and " if with_reward else ""}{parts} k numbers, got {size + with_reward}: '
      f'make num_features {"2 k + 1" if with_reward else "2 k"}{", and num_gates k" if gated else ""}.'
    )
  if unit_norm:
    vector, other = (_normalise(x, 2 * size // parts) for x in (vector, other))
  (a, b, *gate), (other_a, other_b, *other_gate) = (
    jnp.split(x, parts, axis=-1) for x in (vector, other)
  )
  # Of one prompt, so that they differ by rounding at most.
  eigenvalue = 0.5 * (gate[0] + other_gate[0]) if gated else 1.0
  forward = jnp.sum(eigenvalue * (a * other_b), axis=-1)
  backward = jnp.sum(eigenvalue * (b * other_a), axis=-1)
  # The smaller half from the larger, whatever the direction: a compiler that fuses a product with the difference rounds
  # one of the two alone.
  swap = forward < backward
  larger, smaller = jnp.where(swap, backward, forward), jnp.where(swap, forward, backward)
  return jnp.where(swap, -1.0, 1.0) * (larger - smaller)


def _normalise(vector: Array, size: int) -> Array:
  """The first `size` numbers with unit norm, the others as they are; a gradient is finite at 0 too."""
  scale = jax.lax.rsqrt(jnp.sum(vector[..., :size] ** 2, axis=-1, keepdims=True) + 1e-12)
  return jnp.concatenate([vector[..., :size] * scale, vector[..., size:]], axis=-1)


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
