"""What few numbers for each response can say of a preference, and what they cannot: best fits, and the cyclic part.

| fit             | log-odds of i over j                        | what it can hold                                          |
|-----------------|---------------------------------------------|-----------------------------------------------------------|
| `bradley_terry` | r_i − r_j                                   | no cycle                                                  |
| `gpm`           | Σ_b λ_b (a_ib b_jb − b_ib a_jb)             | everything with ⌊Y/2⌋ blocks (`skew_blocks`); with one no |
|                 |                                             | cycle among those that one response beats                 |
| `hrc`           | r_i − r_j + Σ_b λ_b (a_ib b_jb − b_ib a_jb) | part of what `gpm` with a block more does: r_i − r_j is   |
|                 |                                             | the block (r, 1); less with unit norm                     |

Who plays against the log-odds in place of P finds another lottery: both favour the same side of every pair, by another measure.

Source: Bradley and Terry (1952); Jiang, Lim, Yao and Ye (2011), arXiv:0811.1067 (Hodge decomposition of pairwise
comparisons: P − ½ is the gradient of a score, and what no score explains, its cyclic part); Zhang et al. (2024),
arXiv:2410.02197 (GPM); arXiv:2605.17342 (HRC: a reward beside the blocks).
"""

from typing import NamedTuple

import numpy as np
import scipy  # Its `optimize` is imported at first use, so that training need not wait for it.
from jaxtyping import Float
from scipy import special

Matrix = Float[np.ndarray, 'Y Y']
Vectors = Float[np.ndarray, 'Y k']


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


class Blocks(NamedTuple):
  """Log-odds r_i − r_j + Σ_b λ_b (a_ib b_jb − b_ib a_jb)."""

  # r
  reward: Float[np.ndarray, 'Y']
  a: Vectors
  b: Vectors
  # λ ≥ 0
  scale: Float[np.ndarray, 'k']

  def logits(self) -> Matrix:
    """The log-odds, skew to the last bit."""
    half = (self.scale * self.a) @ self.b.T
    return self.reward[:, None] - self.reward + (half - half.T)


def skew_blocks(logits: Matrix, num_blocks: int | None = None) -> Blocks:
  """A skew matrix in blocks, its real Schur form: of the largest k, the nearest matrix of rank 2k in squares.

  The Hermitian matrix iS has eigenvalues ±λ_b with eigenvectors x ± iy, so that S = 2 Σ_b λ_b (y_b x_bᵀ − x_b y_bᵀ).

  Args:
    logits: S, with S = −Sᵀ.
    num_blocks: k; None: ⌊Y/2⌋, with which the form is exact.
  """
  size = len(logits)
  number = size // 2 if num_blocks is None else min(num_blocks, size // 2)
  values, vectors = np.linalg.eigh(1j * logits)
  largest = slice(size - 1, size - 1 - number, -1)
  a, b = np.sqrt(2) * vectors.imag[:, largest], np.sqrt(2) * vectors.real[:, largest]
  return Blocks(np.zeros(size), a, b, np.maximum(values[largest], 0))


def gpm(
  preference: Matrix,
  num_blocks: int,
  weights: Matrix | None = None,
  *,
  unit_norm: bool = False,
  ridge: float = 1e-3,
  num_starts: int = 8,
  seed: int = 0,
) -> Blocks:
  """The k blocks, without a reward, that fit P best; arguments and errors as of `hrc`."""
  options = {'ridge': ridge, 'num_starts': num_starts, 'seed': seed}
  return _fit(preference, num_blocks, weights, with_reward=False, unit_norm=unit_norm, **options)


def hrc(
  preference: Matrix,
  num_blocks: int,
  weights: Matrix | None = None,
  *,
  unit_norm: bool = False,
  ridge: float = 1e-3,
  num_starts: int = 8,
  seed: int = 0,
) -> Blocks:
  """A reward and k blocks that fit P best: the least cross-entropy found by L-BFGS from several starts.

  The first start is the best reward and the blocks of what it leaves, the others are random; the loss is not convex.

  Args:
    preference: P.
    num_blocks: k ≥ 1.
    weights: how often each pair is compared, ≥ 0; None: all alike.
    unit_norm: whether each response's (a, b) has norm 1, and λ is fitted; else norms are, and λ = 1.
    ridge: weight of the squares of all but λ, as of `bradley_terry`.
    num_starts: of L-BFGS.
    seed: of the random ones.

  Raises:
    ValueError: there is no block, or no start.
  """
  options = {'ridge': ridge, 'num_starts': num_starts, 'seed': seed}
  return _fit(preference, num_blocks, weights, with_reward=True, unit_norm=unit_norm, **options)


def _fit(
  preference: Matrix,
  num_blocks: int,
  weights: Matrix | None,
  *,
  with_reward: bool,
  unit_norm: bool,
  ridge: float,
  num_starts: int,
  seed: int,
) -> Blocks:
  if num_blocks < 1 or num_starts < 1:
    raise ValueError(
      f'num_blocks and num_starts must be at least 1, got {num_blocks} and {num_starts}.'
    )
  size = len(preference)
  weights = np.ones((size, size)) if weights is None else weights + weights.T
  weights = weights / max(weights.mean(), 1e-300)
  shape = _Shape(size, num_blocks, with_reward, unit_norm)
  rng = np.random.default_rng(seed)
  # A start without noise can be a saddle, where a symmetric P leaves it no way to go.
  starts = [_near_logits(shape, preference, weights) + 0.01 * rng.normal(size=shape.num_parameters)]
  starts += [rng.normal(size=shape.num_parameters) for _ in range(num_starts - 1)]
  loss = lambda flat: _loss(shape, flat, preference, weights, ridge)
  settings = {'maxiter': 1000, 'ftol': 1e-14, 'gtol': 1e-8, 'maxcor': 20}
  fit = lambda x: scipy.optimize.minimize(loss, x, jac=True, method='L-BFGS-B', options=settings)
  return _split(shape, min(map(fit, starts), key=lambda found: found.fun).x)[0]


class _Shape(NamedTuple):
  """Of the parameters: rewards, (a, b) of each response, log λ with unit norm."""

  size: int
  num_blocks: int
  with_reward: bool
  unit_norm: bool

  @property
  def num_rewards(self) -> int:
    return self.size * self.with_reward

  @property
  def num_parameters(self) -> int:
    vectors = 2 * self.size * self.num_blocks
    return self.num_rewards + vectors + self.num_blocks * self.unit_norm


def _split(shape: _Shape, flat: Float[np.ndarray, 'p']) -> tuple[Blocks, Float[np.ndarray, 'Y 1']]:
  """The blocks, and the norms that were taken out of (a, b)."""
  k, end = shape.num_blocks, shape.num_parameters - shape.num_blocks * shape.unit_norm
  reward = flat[: shape.num_rewards] if shape.with_reward else np.zeros(shape.size)
  vectors, norm = flat[shape.num_rewards : end].reshape(shape.size, 2 * k), np.ones((shape.size, 1))
  if shape.unit_norm:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / norm
  scale = np.exp(flat[end:]) if shape.unit_norm else np.ones(k)
  return Blocks(reward, vectors[:, :k], vectors[:, k:], scale), norm


def _near_logits(shape: _Shape, preference: Matrix, weights: Matrix) -> Float[np.ndarray, 'p']:
  """The best reward, and the blocks of the log-odds that it leaves."""
  reward = bradley_terry(preference, weights) if shape.with_reward else np.zeros(shape.size)
  logits = special.logit(np.clip(preference, 0.01, 0.99)) - (reward[:, None] - reward)
  blocks = skew_blocks((logits - logits.T) / 2, shape.num_blocks)
  missing = [(0, 0), (0, shape.num_blocks - len(blocks.scale))]
  halves = [np.pad(x * np.sqrt(blocks.scale), missing) for x in (blocks.a, blocks.b)]
  vectors = np.concatenate(halves, axis=1)
  if not shape.unit_norm:
    return np.concatenate([reward[: shape.num_rewards], vectors.ravel()])
  size = np.log(np.mean(np.sum(vectors**2, axis=1)) + 1e-3)
  parts = reward[: shape.num_rewards], vectors.ravel(), np.full(shape.num_blocks, size)
  return np.concatenate(parts)


def _loss(
  shape: _Shape, flat: Float[np.ndarray, 'p'], preference: Matrix, weights: Matrix, ridge: float
) -> tuple[float, Float[np.ndarray, 'p']]:
  """Cross-entropy of the pairs and the ridge, and their gradient; E = w(σ(s) − P) is that of s."""
  blocks, norm = _split(shape, flat)
  logits = blocks.logits()
  value = np.sum(weights * (np.logaddexp(0, logits) - preference * logits)) / 2
  error = weights * (special.expit(logits) - preference)
  of_a, of_b = error @ blocks.b, -error @ blocks.a
  of_vectors = np.concatenate([of_a * blocks.scale, of_b * blocks.scale], axis=1)
  # Rewards and blocks that grow without bound, where P is 0 or 1, are held; so is λ in their place.
  held = flat.copy()
  parts = [error.sum(axis=1)] if shape.with_reward else []
  if shape.unit_norm:
    unit = np.concatenate([blocks.a, blocks.b], axis=1)
    along = np.sum(unit * of_vectors, axis=1, keepdims=True)
    of_log_scale = np.sum(blocks.a * of_a, axis=0) * blocks.scale
    parts += [(of_vectors - unit * along) / norm, of_log_scale]
    held[shape.num_rewards : -shape.num_blocks] = 0
    held[-shape.num_blocks :] = blocks.scale
  else:
    parts += [of_vectors]
  slope = held.copy()
  if shape.unit_norm:
    slope[-shape.num_blocks :] *= blocks.scale
  gradient = np.concatenate([x.ravel() for x in parts]) + ridge * slope
  return value + ridge / 2 * held @ held, gradient
