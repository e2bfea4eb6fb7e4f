"""How sure a ranking is: intervals, bounds where the maximum is at infinity, and rank ranges.

Ranks come from simultaneous bounds on all differences (Mogstad, Romano, Shaikh and Wilhelm 2024), by the largest |t|.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from nlhf_jax.votes import bradley_terry, likelihood, table

_LEVEL = 0.95
# Of max |t|, whose quantile has a standard error of .02 then.
_NUM_DRAWS = 10_000
# Farther apart than anyone could measure, in nats.
_FAR = 40.0


class Scores(NamedTuple):
  """Scores of n alternatives, in nats, and what is known of their order."""

  # Against the mean of its core; ±∞: beyond all of it.
  score: Float[np.ndarray, 'n']
  low: Float[np.ndarray, 'n']
  high: Float[np.ndarray, 'n']
  # Alternatives of different components never met, directly or by way of others.
  component: Int[np.ndarray, 'n']
  # Simultaneously for all pairs: i is above j.
  above: Bool[np.ndarray, 'n n']
  # Of each pair's difference; ∞ where it has no finite maximum.
  error: Float[np.ndarray, 'n n']
  # What |t| has to exceed for that.
  critical: float

  @property
  def best_rank(self) -> Int[np.ndarray, 'n']:
    """From 1; of all alternatives."""
    return 1 + self.above.sum(axis=0)

  @property
  def worst_rank(self) -> Int[np.ndarray, 'n']:
    return len(self.score) - self.above.sum(axis=1)


def scores(
  votes: table.Votes, model: likelihood.Model = likelihood.DEFAULT, *, seed: int = 0
) -> tuple[bradley_terry.Fit, Scores]:
  """The fit, 95 % intervals and rank ranges.

  The core of a component is its largest group of alternatives with finite differences. Within it intervals are clustered
  ones; all others are above it, below it or anywhere, by the profile likelihood. Rank ranges hold for all alternatives at
  once, with 95 %.

  Raises:
    ValueError: see `bradley_terry.fit`.
  """
  fit = bradley_terry.fit(votes, model)
  component = bradley_terry.components(votes)
  votes = likelihood.as_modelled(votes, model)
  core = _cores(fit.group, component)
  within = _quantile(fit.degrees) * np.sqrt(np.diag(fit.covariance)[: len(core)])
  score, low, high = fit.scores.copy(), fit.scores - within, fit.scores + within
  least = bradley_terry.least_loss(votes, model)
  for i in np.flatnonzero(fit.group != core).tolist():
    members = np.flatnonzero(fit.group == core[i])
    low[i], high[i] = -np.inf, np.inf
    score[i] = np.nan
    if fit.above[i, members[0]]:
      score[i], low[i] = np.inf, _bound(votes, model, i, members, least)
    elif fit.above[members[0], i]:
      score[i], high[i] = -np.inf, _bound(votes, model, i, members, least)
  error = _errors(fit)
  critical = _critical(fit, error, seed)
  above = _above(votes, model, fit, error, critical, least)
  return fit, Scores(score, low, high, component, above, error, critical)


def _cores(group: Int[np.ndarray, 'n'], component: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
  """The group that is each alternative's core; groups are numbered from the largest."""
  first = np.full(component.max() + 1, group.max() + 1)
  np.minimum.at(first, component, group)
  return first[component]


def _bound(
  votes: table.Votes,
  model: likelihood.Model,
  i: int,
  core: Int[np.ndarray, 'c'],
  least: float,
) -> float:
  """The distance of i from the core's mean at which twice the loss has risen by χ²'s quantile."""
  allowed = stats.chi2.ppf(_LEVEL, 1) / 2 + least
  rise = lambda far: bradley_terry.least_loss_at(votes, model, i, core, far) - allowed
  return float(optimize.brentq(rise, -_FAR, _FAR, xtol=1e-6))


def _quantile(degrees: float) -> float:
  """Of |t| at the level."""
  return float(stats.t.ppf((1 + _LEVEL) / 2, max(degrees, 1)))


def _errors(fit: bradley_terry.Fit) -> Float[np.ndarray, 'n n']:
  size = len(fit.labels)
  v = fit.covariance[:size, :size]
  variance = np.diag(v)[:, None] + np.diag(v) - 2 * v
  finite = fit.group[:, None] == fit.group
  return np.where(finite, np.sqrt(np.maximum(variance, 0)), np.inf)


def _critical(fit: bradley_terry.Fit, error: Float[np.ndarray, 'n n'], seed: int) -> float:
  """The 95 % quantile of the largest |t| over all pairs with finite differences."""
  size = len(fit.labels)
  i, j = np.triu_indices(size, 1)
  finite = np.isfinite(error[i, j]) & (error[i, j] > 0)
  i, j = i[finite], j[finite]
  if not len(i):
    return _quantile(fit.degrees)
  values, vectors = np.linalg.eigh(fit.covariance[:size, :size])
  root = vectors * np.sqrt(np.maximum(values, 0))
  rng = np.random.default_rng(seed)
  largest = []
  for _ in range(_NUM_DRAWS // 500):
    z = rng.standard_normal((500, size)) @ root.T
    if np.isfinite(fit.degrees):
      z /= np.sqrt(rng.chisquare(max(fit.degrees, 1), (500, 1)) / max(fit.degrees, 1))
    largest.append(np.abs((z[:, i] - z[:, j]) / error[i, j]).max(axis=1))
  return float(np.quantile(np.concatenate(largest), _LEVEL))


def _above(
  votes: table.Votes,
  model: likelihood.Model,
  fit: bradley_terry.Fit,
  error: Float[np.ndarray, 'n n'],
  critical: float,
  least: float,
) -> Bool[np.ndarray, 'n n']:
  difference = fit.scores[:, None] - fit.scores
  finite = np.isfinite(error)
  result = finite & (difference > critical * np.where(finite, error, 1))
  for i, j in np.argwhere(fit.above).tolist():
    result[i, j] = 2 * (_loss_as_one(votes, model, i, j) - least) > critical**2
  return result


def _loss_as_one(votes: table.Votes, model: likelihood.Model, i: int, j: int) -> float:
  """Of the best fit in which i and j are equal."""
  a, b = (np.where(side == j, i, side) for side in (votes.a, votes.b))
  return bradley_terry.least_loss(votes._replace(a=a, b=b), model)
