"""A symmetric preference game on a table, and what policies are worth in it.

P[i, j] = P(y_i ≻ y_j), P + Pᵀ = 1; μ is the reference, τ the strength of the regularisation. Policies π, π' are
distributions over Y responses. The functions are pure, of one game, and in the precision of their arguments: `jax.vmap`
makes them functions of a batch of games, `jax.enable_x64(True)` makes them double. A contextual game is a batch, one
game a prompt x: its equilibrium is that of every prompt, and what it is worth is the mean over x ~ ρ.

Source: Munos et al. (2024), arXiv:2312.00886, sections 3 and 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

Distribution = Float[Array, 'Y'] | Float[np.ndarray, 'Y']
Scalar = Float[Array, ''] | Float[np.ndarray, ''] | float


class PreferenceGame(NamedTuple):
  """The regularised game; τ = 0 is the game itself."""

  preference: Float[Array, 'Y Y'] | Float[np.ndarray, 'Y Y']
  # μ; positive.
  reference: Distribution
  # Preference units per nat.
  tau: Scalar


def make(preference, reference=None, tau: float = 0.0) -> PreferenceGame:
  """A checked game, in double precision on the host.

  Args:
    preference: P [Y, Y].
    reference: μ [Y]; normalised. None: uniform.
    tau: τ ≥ 0.

  Raises:
    ValueError: P is no preference, μ no positive distribution of its size, or τ is negative; names the entry.
  """
  preference = np.asarray(preference, np.float64)
  check(preference)
  size = preference.shape[0]
  reference = np.full(size, 1 / size) if reference is None else np.asarray(reference, np.float64)
  if reference.shape != (size,):
    raise ValueError(
      f'The reference must have {size} entries, one a response: got {reference.shape}.'
    )
  for place in np.flatnonzero(~(reference > 0)):
    raise ValueError(
      f'The reference must be positive everywhere: entry {place} is {reference[place]}.'
    )
  if not tau >= 0:
    raise ValueError(f'tau must be 0 (no regularisation) or more, got {tau}.')
  return PreferenceGame(preference, reference / reference.sum(), np.float64(tau))


def check(preference: Float[np.ndarray, '...'], labels=None, tolerance: float = 1e-6) -> None:
  """Raises ValueError unless P is square, within [0, 1], and P + Pᵀ = 1; names the entry."""
  if preference.ndim != 2 or preference.shape[0] != preference.shape[1]:
    raise ValueError(f'P must be a square matrix, got shape {preference.shape}.')
  name = (lambda i: i) if labels is None else (lambda i: labels[i])
  for wrong, what in [
    (np.isnan(preference), 'is unknown: compare the two, or leave one out'),
    (~((preference >= 0) & (preference <= 1)), 'must be in [0, 1]'),
    (np.abs(preference + preference.T - 1) > tolerance, 'and its mirror must add up to 1'),
  ]:
    if wrong.any():
      i, j = np.argwhere(wrong)[0]
      raise ValueError(
        f'P[{name(i)}, {name(j)}] = {preference[i, j]} {what}; '
        f'P[{name(j)}, {name(i)}] = {preference[j, i]}.'
      )


def preference(game: PreferenceGame, policy: Distribution, opponent: Distribution) -> Scalar:
  """P(π ≻ π')."""
  return policy @ game.preference @ opponent


def regularised_preference(
  game: PreferenceGame, policy: Distribution, opponent: Distribution
) -> Scalar:
  """P_τ(π ≻ π') = P(π ≻ π') − τ KL(π‖μ) + τ KL(π'‖μ)."""
  cost = kl_divergence(opponent, game.reference) - kl_divergence(policy, game.reference)
  return preference(game, policy, opponent) + game.tau * cost


def payoffs(game: PreferenceGame, opponent: Distribution) -> Float[Array, 'Y']:
  """P(y ≻ π') of every response."""
  return jnp.asarray(game.preference) @ opponent


def best_response(game: PreferenceGame, opponent: Distribution) -> Float[Array, 'Y']:
  """argmax_π P_τ(π ≻ π')."""
  return reply(game, payoffs(game, opponent))


def reply(game: PreferenceGame, payoff: Float[Array, 'Y']) -> Float[Array, 'Y']:
  """The best response where responses earn `payoff`: softmax(log μ + q/τ); the first of the best where τ = 0."""
  soft = jax.nn.softmax(jnp.log(game.reference) + payoff / _positive(game.tau))
  return jnp.where(game.tau > 0, soft, jax.nn.one_hot(jnp.argmax(payoff), payoff.size))


def best_value(game: PreferenceGame, policy: Distribution) -> Scalar:
  """max_π' P_τ(π' ≻ π) = τ log Σ_y μ(y) exp(P(y ≻ π)/τ) + τ KL(π‖μ); without regularisation max_y P(y ≻ π)."""
  values = payoffs(game, policy)
  tau = _positive(game.tau)
  soft = tau * special.logsumexp(jnp.log(game.reference) + values / tau)
  soft += tau * kl_divergence(policy, game.reference)
  return jnp.where(game.tau > 0, soft, jnp.max(values))


def duality_gap(game: PreferenceGame, policy: Distribution) -> Scalar:
  """max_π' P_τ(π' ≻ π) − min_π' P_τ(π ≻ π'), ≥ 0, and 0 only at equilibria.

  The game is symmetric, so the minimum is 1 less the maximum.
  """
  return 2 * best_value(game, policy) - 1


def exploitability(game: PreferenceGame, policy: Distribution) -> Scalar:
  """max_π' P_τ(π' ≻ π) − 1/2: what the strongest competitor gains. Half the duality gap."""
  return best_value(game, policy) - 0.5


def worst_case(game: PreferenceGame, policy: Distribution) -> Scalar:
  """min_y P(π ≻ y), without regularisation: 1/2 for a Nash equilibrium, less for any other policy."""
  return jnp.min(policy @ jnp.asarray(game.preference))


def kl_divergence(policy: Distribution, reference: Distribution) -> Scalar:
  """KL(π‖μ) in nats."""
  return jnp.sum(special.rel_entr(policy, reference))


def residual(game: PreferenceGame, policy: Distribution) -> Scalar:
  """max_y |π(y) − softmax(log μ + Pπ/τ)(y)|: 0 only at π*_τ."""
  return jnp.max(jnp.abs(policy - best_response(game, policy)))


def has_unbeaten(preference: Float[np.ndarray, 'Y Y'], tolerance: float = 1e-9) -> bool:
  """Whether some response loses to none by majority: a Condorcet winner, or one that shares the place."""
  return bool(np.any(np.all(preference >= 0.5 - tolerance, axis=1)))


def _positive(tau: Scalar) -> Scalar:
  return jnp.where(tau > 0, tau, 1.0)
