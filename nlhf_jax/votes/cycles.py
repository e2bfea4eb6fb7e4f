"""Whether votes go round in circles: how much of them no score explains, and whether that is more than chance.

At the Bradley-Terry fit a pair of n votes has the residual e = (share − p)/(p(1 − p)), in nats, with weight w = n p(1 − p). The
flow (θ_i − θ_j) + e is the votes'; its parts are orthogonal under w (Jiang, Lim, Yao and Ye 2011, arXiv:0811.1067):
the gradient θ_i − θ_j; what goes round triangles, curl; what goes round longer ways alone, harmonic. Σ w e² is Pearson's
statistic, χ² with E − n + 1 degrees of freedom where scores explain all and votes are independent.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, sparse, special, stats

from nlhf_jax.votes import bradley_terry, table
from nlhf_jax.votes.likelihood import Model


class Shares(NamedTuple):
  """Of the votes' flow, and what chance alone would make of them."""

  gradient: float
  curl: float
  harmonic: float
  # Of curl and harmonic part together: what scores and chance give in the mean, and in 19 of 20 cases at most.
  chance: float
  chance_at_most: float
  pearson: float
  degrees: int
  p_value: float


class Cycle(NamedTuple):
  """Three alternatives, each over the next and the last over the first, by majorities that chance does not explain."""

  members: tuple[int, int, int]
  # Votes for and against, edge by edge.
  votes: tuple[tuple[float, float], ...]
  # Of the weakest edge, times the number of triples.
  p_value: float


class SkewTest(NamedTuple):
  """Likelihood ratio of scores alone against scores and one plane of circles, θ_i − θ_j + u_i v_j − v_i u_j."""

  statistic: float
  p_value: float
  num_simulations: int


class _Pairs(NamedTuple):
  """Decisive votes of each pair that has some, within the largest group of finite differences."""

  # Of the group's alternatives, numbered from 0.
  i: Int[np.ndarray, 'E']
  j: Int[np.ndarray, 'E']
  won: Float[np.ndarray, 'E']
  played: Float[np.ndarray, 'E']
  members: Int[np.ndarray, 'n']

  @property
  def size(self) -> int:
    return len(self.members)


def _pairs(votes: table.Votes) -> _Pairs:
  wins = table.wins(votes._replace(verdict=votes.verdict * np.array([1.0, 1.0, 0.0, 0.0])))
  group = bradley_terry.groups(table.from_wins(wins, votes.labels))[1]
  members = np.flatnonzero(group == 0)
  wins = wins[np.ix_(members, members)]
  played = wins + wins.T
  i, j = np.nonzero(np.triu(played, 1))
  return _Pairs(i, j, wins[i, j], played[i, j], members)


def _scores(pairs: _Pairs, won: Float[np.ndarray, 'E']) -> Float[np.ndarray, 'n']:
  """The Bradley-Terry fit of so many wins."""
  a, b = np.concatenate([pairs.i, pairs.j]), np.concatenate([pairs.j, pairs.i])
  count = np.concatenate([won, pairs.played - won])
  verdict = np.tile(np.eye(4)[0], (len(a), 1))
  counted = table.from_counts(a, b, verdict, count, [str(n) for n in range(pairs.size)])
  return bradley_terry.fit(counted, Model(ties='drop', both_bad='drop')).scores


def shares(votes: table.Votes) -> Shares | None:
  """The parts of the decisive votes' flow, within the largest group of finite differences; None: no pair closes a round."""
  pairs = _pairs(votes)
  degrees = len(pairs.i) - pairs.size + 1
  if degrees < 1:
    return None
  theta = _scores(pairs, pairs.won)
  flow = theta[pairs.i] - theta[pairs.j]
  p = special.expit(flow)
  weight = pairs.played * p * (1 - p)
  residual = (pairs.won / pairs.played - p) / (p * (1 - p))
  gradient, pearson = float(weight @ flow**2), float(weight @ residual**2)
  curl = _curl(pairs, weight, residual)
  total = max(gradient + pearson, 1e-300)
  limit = stats.chi2.ppf(0.95, degrees)
  return Shares(
    gradient / total,
    curl / total,
    max(pearson - curl, 0.0) / total,
    degrees / (gradient + degrees),
    limit / (gradient + limit),
    pearson,
    degrees,
    float(stats.chi2.sf(pearson, degrees)),
  )


def _curl(pairs: _Pairs, weight: Float[np.ndarray, 'E'], residual: Float[np.ndarray, 'E']) -> float:
  """Σ w x² of the residual's projection on the circles of triangles."""
  edge = {
    pair: number for number, pair in enumerate(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True))
  }
  triangles = _triangles(pairs)
  if not triangles:
    return 0.0
  entries = [
    (edge[pair], number, sign)
    for number, (i, j, k) in enumerate(triangles)
    for pair, sign in (((i, j), 1.0), ((j, k), 1.0), ((i, k), -1.0))
  ]
  row, column, value = map(np.array, zip(*entries, strict=True))
  shape = len(pairs.i), len(triangles)
  scaled = sparse.csr_matrix((value / np.sqrt(weight[row]), (row, column)), shape=shape)
  target = np.sqrt(weight) * residual
  coefficients = sparse.linalg.lsqr(scaled, target, atol=1e-10, btol=1e-10)[0]
  return float(np.sum((scaled @ coefficients) ** 2))


def _triangles(pairs: _Pairs) -> list[tuple[int, int, int]]:
  """i < j < k of which all three pairs met."""
  met: list[set[int]] = [set() for _ in range(pairs.size)]
  for i, j in zip(pairs.i.tolist(), pairs.j.tolist(), strict=True):
    met[i].add(j)
  return [
    (i, j, k) for i in range(pairs.size) for j in sorted(met[i]) for k in sorted(met[i] & met[j])
  ]


def significant(votes: table.Votes, level: float = 0.05) -> list[Cycle]:
  """The cycles of majorities whose three edges all hold, corrected for the number of triples; the surest first.

  Within the largest group of finite differences. An edge's p-value is the binomial's, one-sided; a cycle's that of its weakest edge, since all three must hold.
  """
  pairs = _pairs(votes)
  wins = np.zeros((pairs.size, pairs.size))
  wins[pairs.i, pairs.j], wins[pairs.j, pairs.i] = pairs.won, pairs.played - pairs.won
  played = wins + wins.T
  p = np.where(played > 0, stats.binom.sf(np.ceil(wins) - 1, np.round(played), 0.5), 1.0)
  number = len(_triangles(pairs))
  sure = p * max(number, 1) <= level
  found = []
  for i, j in np.argwhere(sure):
    # Each cycle once: begin with its smallest member.
    for k in np.flatnonzero(sure[j] & sure[:, i]):
      if i < min(j, k):
        edges = tuple(itertools.pairwise((i, j, k, i)))
        weakest = max(p[edge] for edge in edges)
        counts = tuple((float(wins[e]), float(wins[e[::-1]])) for e in edges)
        members = int(pairs.members[i]), int(pairs.members[j]), int(pairs.members[k])
        found.append(Cycle(members, counts, float(min(1.0, weakest * number))))
  return sorted(found, key=lambda cycle: cycle.p_value)


def skew_test(
  votes: table.Votes,
  *,
  num_simulations: int = 199,
  seed: int = 0,
  advance: Callable[[int], None] = lambda steps: None,
) -> SkewTest:
  """Whether one plane of circles explains what scores do not, with the ratio's distribution simulated.

  Its parameters vanish where there are no circles, so that the ratio has no χ² distribution.

  Args:
    votes: of which the decisive ones within the largest group of finite differences count.
    num_simulations: of votes of the fitted scores.
    seed: of them.
    advance: called with 1 after each.
  """
  pairs = _pairs(votes)
  theta = _scores(pairs, pairs.won)
  p = special.expit(theta[pairs.i] - theta[pairs.j])
  observed = _ratio(pairs, pairs.won, theta)
  rng = np.random.default_rng(seed)
  larger = 0
  for _ in range(num_simulations):
    won = rng.binomial(np.round(pairs.played).astype(np.int64), p).astype(np.float64)
    larger += _ratio(pairs, won, theta) >= observed
    advance(1)
  return SkewTest(observed, (1 + larger) / (1 + num_simulations), num_simulations)


def _ratio(pairs: _Pairs, won: Float[np.ndarray, 'E'], theta: Float[np.ndarray, 'n']) -> float:
  """2(ℓ of scores and a plane − ℓ of scores), the maximum near the plane that fits the residual best."""
  n = pairs.size
  lost = pairs.played - won

  def loss(parameters):
    scores, u, v = parameters.reshape(3, n)
    logit = scores[pairs.i] - scores[pairs.j] + u[pairs.i] * v[pairs.j] - v[pairs.i] * u[pairs.j]
    error = pairs.played * special.expit(logit) - won
    value = won @ np.logaddexp(0, -logit) + lost @ np.logaddexp(0, logit)
    gradient = np.zeros((3, n))
    for side, other, sign in ((pairs.i, pairs.j, 1.0), (pairs.j, pairs.i, -1.0)):
      np.add.at(gradient[0], side, sign * error)
      np.add.at(gradient[1], side, sign * error * v[other])
      np.add.at(gradient[2], side, -sign * error * u[other])
    # Holds what the likelihood leaves free, and what chance would send to infinity.
    return value + _RIDGE / 2 * parameters @ parameters, gradient.ravel() + _RIDGE * parameters

  def scores_alone(scores):
    value, gradient = loss(np.concatenate([scores, np.zeros(2 * n)]))
    return value, gradient[:n]

  alone = optimize.minimize(scores_alone, theta, jac=True, method='L-BFGS-B')
  p = special.expit(alone.x[pairs.i] - alone.x[pairs.j])
  residual = np.zeros((n, n))
  residual[pairs.i, pairs.j] = (won - pairs.played * p) / np.sqrt(pairs.played * p * (1 - p))
  left, size, right = np.linalg.svd(residual - residual.T)
  scale = np.sqrt(size[0] / max(np.mean(np.sqrt(pairs.played)), 1e-9) / n)
  start = np.concatenate([alone.x, scale * left[:, 0], scale * right[0]])
  plane = optimize.minimize(loss, start, jac=True, method='L-BFGS-B', options={'maxiter': 500})
  return max(0.0, 2 * float(alone.fun - plane.fun))


_RIDGE = 1e-3
