"""Exact equilibria of a table: by linear program without regularisation, by a fixed point with it."""

import numpy as np
from scipy import optimize, special

from nlhf_jax.games.game import Distribution, Matrix


def nash(preference: Matrix) -> Distribution:
  """A maximal lottery: π with P(π ≻ y) ≥ 1/2 for every y. There may be more than one."""
  size = preference.shape[0]
  # Maximise v subject to πᵀ(P − 1/2) ≥ v, with π on the simplex.
  objective = np.append(np.zeros(size), -1.0)
  constraints = np.hstack([-(preference - 0.5).T, np.ones((size, 1))])
  simplex = np.append(np.ones(size), 0.0)[None]
  bounds = [(0, None)] * size + [(None, None)]
  result = optimize.linprog(
    objective, constraints, np.zeros(size), simplex, np.ones(1), bounds, method='highs'
  )
  if not result.success:
    raise ValueError(f'The linear program of {size} responses has no solution: {result.message}')
  policy = np.maximum(result.x[:size], 0)
  return policy / policy.sum()


def regularised_nash(
  preference: Matrix,
  reference: Distribution,
  tau: float,
  *,
  tolerance: float = 1e-12,
  max_steps: int = 1_000_000,
) -> Distribution:
  """π*_τ, the fixed point of π = softmax(log μ + Pπ/τ), by Nash-MP: each step looks ahead and starts again.

  Raises:
    ValueError: τ is not positive, or the residual does not reach the tolerance.

  Source: Tiapkin et al. (2025), arXiv:2505.19731.
  """
  if tau <= 0:
    raise ValueError(f'tau must be positive, got {tau}: without regularisation use `nash`.')
  log_reference = np.log(reference)
  log_policy, policy = log_reference, reference
  eta = min(2 * tau, 1.0)
  for _ in range(max_steps):
    target = special.softmax(log_reference + preference @ policy / tau)
    if np.abs(policy - target).max() < tolerance:
      return policy
    ahead = policy
    for _ in range(2):
      logits = log_policy + eta * log_reference + eta / tau * (preference @ ahead)
      ahead = special.softmax(logits / (1 + eta))
    log_policy, policy = special.log_softmax(logits / (1 + eta)), ahead
  raise ValueError(f'No fixed point within {tolerance} after {max_steps} steps at tau = {tau}.')
