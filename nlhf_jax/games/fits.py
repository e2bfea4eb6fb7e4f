"""What a reward can say of a preference, and what it cannot: the best Bradley-Terry fit, and the cyclic part.

Source: Bradley and Terry (1952); Jiang, Lim, Yao and Ye (2011), arXiv:0811.1067 (Hodge decomposition of pairwise
comparisons: P − ½ is the gradient of a score, and what no score explains, its cyclic part).
"""

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, 'Y Y']


def bradley_terry(
  preference: Matrix, weights: Matrix | None = None, *, ridge: float = 1e-3, max_steps: int = 100
) -> Float[np.ndarray, 'Y']:
  """Rewards r, of mean 0, that fit σ(r_i − r_j) to P(y_i ≻ y_j) best: the least cross-entropy that a reward can have.

  Args:
    preference: P.
    weights: how often each pair is compared, ≥ 0; None: all alike.
    ridge: weight of Σ r², which keeps rewards finite where a response loses always; relative to the mean pair's weight.
    max_steps: of Newton's method.

  Raises:
    ValueError: Newton's method does not settle.
  """
  size = len(preference)
  weights = np.ones((size, size)) if weights is None else weights + weights.T
  weights = weights / max(weights.mean(), 1e-300)
  r = np.zeros(size)
  for _ in range(max_steps):
    predicted = 0.5 * (1 + np.tanh(0.5 * (r[:, None] - r)))
    gradient = np.sum(weights * (predicted - preference), axis=1) + ridge * r
    curvature = weights * predicted * (1 - predicted)
    hessian = np.diag(curvature.sum(axis=1) + ridge) - curvature
    step = np.linalg.solve(hessian, gradient)
    r = r - step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
    if np.abs(step).max() < 1e-9:
      return r - r.mean()
  raise ValueError(f'No Bradley-Terry fit within {max_steps} steps: raise ridge above {ridge}.')


def cyclic_part(preference: Matrix) -> Matrix:
  """P − ½ less its gradient part s_i − s_j, s the row means: what no score explains. All pairs weigh alike."""
  advantage = preference - 0.5
  score = advantage.mean(axis=1)
  return advantage - (score[:, None] - score)
