"""A symmetric preference game on a table: P(y ≻ y'), the reference μ and the strength τ; what policies are worth in it.

Float64 NumPy, one game. π, π' and μ are distributions over Y responses; P[i, j] = P(y_i ≻ y_j), P + Pᵀ = 1.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

Distribution = Float[np.ndarray, 'Y']
Matrix = Float[np.ndarray, 'Y Y']


def check(preference: Matrix, tolerance: float = 1e-6) -> None:
  """Raises ValueError unless P is square, within [0, 1], and P + Pᵀ = 1; names the entry."""
  if preference.ndim != 2 or preference.shape[0] != preference.shape[1]:
    raise ValueError(f'P must be a square matrix, got shape {preference.shape}.')
  for wrong, what in [
    (~((preference >= 0) & (preference <= 1)), 'must be in [0, 1]'),
    (np.abs(preference + preference.T - 1) > tolerance, 'and its mirror must add up to 1'),
  ]:
    if wrong.any():
      i, j = np.argwhere(wrong)[0]
      raise ValueError(
        f'P[{i}, {j}] = {preference[i, j]} {what}; P[{j}, {i}] = {preference[j, i]}.'
      )


def from_scores(scores: Float[np.ndarray, 'K Y']) -> Matrix:
  """The share of K annotators who score y above y'; a tie is half a vote. −inf ties with −inf."""
  above = scores[:, :, None] > scores[:, None]
  return np.mean(0.5 + 0.5 * above - 0.5 * above.swapaxes(1, 2), axis=0)


def worst_case(preference: Matrix, policy: Distribution) -> float:
  """min_y P(π ≻ y): what the strongest competitor leaves; 1/2 for a Nash equilibrium, less for any other policy."""
  return float(np.min(policy @ preference))


def best_response(
  preference: Matrix, opponent: Distribution, reference: Distribution, tau: float
) -> Distribution:
  """argmax_π P_τ(π ≻ π') = softmax(log μ + P(· ≻ π')/τ)."""
  return special.softmax(np.log(reference) + preference @ opponent / tau)


def duality_gap(
  preference: Matrix, policy: Distribution, reference: Distribution, tau: float
) -> float:
  """max_π' P_τ(π' ≻ π) − min_π' P_τ(π ≻ π'), ≥ 0, and 0 at π*_τ alone; both ends by log-sum-exp against μ.

  P_τ(π' ≻ π) = P(π' ≻ π) − τ KL(π'‖μ) + τ KL(π‖μ).
  """
  values = preference @ policy
  kl = kl_divergence(policy, reference)
  best = tau * special.logsumexp(np.log(reference) + values / tau) + tau * kl
  return float(2 * best - 1)  # The other end is 1 minus the first: the game is symmetric.


def kl_divergence(policy: Distribution, reference: Distribution) -> float:
  """KL(π‖μ) in nats."""
  return float(np.sum(special.rel_entr(policy, reference)))


def has_unbeaten(preference: Matrix, tolerance: float = 1e-9) -> bool:
  """Whether some response loses to none by majority: a Condorcet winner, or one that shares the place."""
  return bool(np.any(np.all(preference >= 0.5 - tolerance, axis=1)))
