"""Voters' tastes: who votes is part of the model, and a new voter is known from a handful of votes.

Voter u prefers y to y' with

  P_u(y ≻ y') = σ(s + w_u·x),   x = φ(y) − φ(y'),   w_u ~ N(m, Σ),

s a log-odds that all share (0 where the features say all). The population (m, Σ) is fitted by EM, each voter's ŵ, H by a
Laplace step, with H = Σ_votes p(1 − p) x xᵀ + Σ⁻¹:

  m = mean_u ŵ_u,   Σ = mean_u[(ŵ_u − m)(ŵ_u − m)ᵀ + H_u⁻¹].

A new voter's taste is N(ŵ, H⁻¹) of the same few steps of Newton's method. What is foretold is the integral of σ over that normal
distribution, by quadrature in the one dimension of the log-odds; without a vote it is E_u P_u, of whoever comes. A Laplace step
takes the mode of a posterior for its mean: m and Σ come out too small, by a tenth with 40 votes of a voter on one feature, and
by 1/n of that with n times as many; of strong tastes for many features by more.

Features may be any that are linear in what tastes value: numbers of the votes, who wrote the response, or those that a network
learnt (`models.voter_preference`).
"""

import functools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from nlhf_jax.votes import table

# Nodes of the quadrature, in standard deviations: an error below 1e-5 for deviations of up to 10 nats.
_NODES = np.linspace(-7, 7, 97)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.exp(-(_NODES**2) / 2).sum()
# Of the largest variance: below, all have the same taste in that direction.
_FLAT = 1e-12
# Of the pooled fit's prior, against features that are zero or copies of others.
_RIDGE = 1e-3
# Numbers of an array of features of several voters.
_CHUNK = 2**22
# The same of weighted votes, each as many times as it counts.
_MAX_REPEATED = 2**25
_MAX_HALVINGS = 40


class TasteVotes(NamedTuple):
  """N votes, each a comparison of two responses by their features."""

  # Numbers of the voters; `table.UNKNOWN`: each such vote is of another one.
  voter: Int[np.ndarray, 'N']
  # φ(y) − φ(y').
  x: Float[np.ndarray, 'N D']
  # Of the vote for y: 1, 0, or 1/2 for a tie.
  share: Float[np.ndarray, 'N']
  # Log-odds that all voters share.
  offset: Float[np.ndarray, 'N']
  # How many equal votes this is.
  weight: Float[np.ndarray, 'N']


class Taste(NamedTuple):
  """w ~ N(mean, covariance): of a population, or what is known of one voter."""

  mean: Float[np.ndarray, 'D']
  covariance: Float[np.ndarray, 'D D']


class Tastes(NamedTuple):
  """What is known of each of U voters, in the order of their numbers."""

  voter: Int[np.ndarray, 'U']
  mean: Float[np.ndarray, 'U D']
  covariance: Float[np.ndarray, 'U D D']

  def of_voter(self, number: int) -> Taste:
    """One voter's.

    Raises:
      KeyError: it has no vote here.
    """
    place = int(np.searchsorted(self.voter, number))
    if place == len(self.voter) or self.voter[place] != number:
      raise KeyError(f'Voter {number} has no vote: the population foretells it.')
    return Taste(self.mean[place], self.covariance[place])


class Disagreement(NamedTuple):
  """Parts of the variance ¼ of a vote for either side, which add up to 1.

  ¼ = (P̄ − ½)² + Var_u(P_u) + E_u[P_u(1 − P_u)],   P̄ = E_u P_u, in the mean over pairs.
  """

  # What the mean preference settles.
  agreed: float
  # Who votes.
  voters: float
  # What one voter would not answer the same again.
  noise: float

  @property
  def share_of_voters(self) -> float:
    """Of all disagreement."""
    return self.voters / max(self.voters + self.noise, np.finfo(float).tiny)


class _Group(NamedTuple):
  """Votes of u voters with about as many votes each, n; what is missing has no weight."""

  # Places of the voters among all.
  place: Int[np.ndarray, 'u']
  x: Float[np.ndarray, 'u n D']
  share: Float[np.ndarray, 'u n']
  offset: Float[np.ndarray, 'u n']
  weight: Float[np.ndarray, 'u n']


def votes_on(
  x: Float[np.ndarray, 'N D'],
  share: Float[np.ndarray, 'N'],
  voter: Int[np.ndarray, 'N'] | None = None,
  offset: Float[np.ndarray, 'N'] | None = None,
) -> TasteVotes:
  """Votes of equal weight; of one voter (None), and with nothing that all share (None)."""
  size = len(x)
  voter = np.zeros(size, np.int64) if voter is None else np.asarray(voter, np.int64)
  offset = np.zeros(size) if offset is None else np.asarray(offset, np.float64)
  x, share = np.asarray(x, np.float64), np.asarray(share, np.float64)
  return TasteVotes(voter, x, share, offset, np.ones(size))


def from_table(votes: table.Votes, max_voters: int | None = None) -> TasteVotes:
  """Votes on the features of the table; without any, on who is compared: each voter's own Bradley-Terry scores.

  A tie is half a vote for each side; what was bad on both sides says nothing. Votes of unknown voters are left out.

  Args:
    votes: some of voters that are known.
    max_voters: keep those who have the most votes; None: all.

  Raises:
    ValueError: no vote says who voted.
  """
  if not np.any(votes.voter >= 0):
    raise ValueError(
      'No vote says who voted: the field voter is needed to tell voters apart (docs/votes.md#public-formats).'
    )
  if max_voters is not None:
    known = table.select(votes, votes.voter >= 0)
    counts = np.bincount(known.voter, known.counts)
    most = np.argsort(-counts, kind='stable')[:max_voters]
    votes = table.select(votes, np.isin(votes.voter, most))
  x = votes.x if votes.x.shape[1] else incidence(votes)
  for_a, for_b, tie, _ = votes.verdict.T
  told = for_a + for_b + tie
  share = (for_a + tie / 2) / np.where(told > 0, told, 1)
  found = TasteVotes(votes.voter, x, share, np.zeros(len(x)), votes.counts * told)
  return select(found, (votes.voter >= 0) & (found.weight > 0))


def incidence(votes: table.Votes) -> Float[np.ndarray, 'N labels']:
  """1 for a, −1 for b."""
  rows = np.arange(len(votes.a))
  result = np.zeros((len(rows), len(votes.labels)))
  result[rows, votes.a], result[rows, votes.b] = 1, -1
  return result


def scaled(votes: TasteVotes) -> TasteVotes:
  """Features divided by their root mean squares, so that they may be of any unit."""
  total = max(float(votes.weight.sum()), np.finfo(float).tiny)
  size = np.sqrt(votes.weight @ votes.x**2 / total)
  return votes._replace(x=votes.x / np.where(size > 0, size, 1))


def repeated(votes: TasteVotes) -> tuple[TasteVotes, Int[np.ndarray, 'M']]:
  """Each vote as many times as it counts, all of weight 1, and which vote each was.

  Raises:
    ValueError: a weight is no whole number, or there are more votes than memory should hold.
  """
  whole = np.rint(votes.weight)
  broken = np.flatnonzero((np.abs(votes.weight - whole) > 1e-9) | (whole < 0))
  if broken.size:
    raise ValueError(
      f'Of votes with a voter, number {broken[0] + 1} has weight {votes.weight[broken[0]]:g}: weights must be whole numbers here, '
      'of how many equal votes each is; leave the field weight out, or round it.'
    )
  num_features, most = votes.x.shape[1], max(_MAX_REPEATED // max(votes.x.shape[1], 1), len(whole))
  if whole.sum() > most:
    raise ValueError(
      f'Weights that add up to {whole.sum():,.0f} are more than {most:,}, the most votes on {num_features} features that are '
      'measured: divide the field weight of all votes, or keep fewer voters or features.'
    )
  which = np.repeat(np.arange(len(whole)), whole.astype(np.int64))
  return select(votes, which)._replace(weight=np.ones(len(which))), which


def select(votes: TasteVotes, chosen: np.ndarray) -> TasteVotes:
  """Some of them, by mask or by number."""
  return TasteVotes(*(column[chosen] for column in votes))


def pooled(votes: TasteVotes) -> Taste:
  """One taste for all, as if one voter had cast every vote: what a model without voters knows."""
  size = votes.x.shape[1]
  spread = np.average(votes.x**2, axis=0, weights=votes.weight)
  # A ridge that scales with the features.
  prior = Taste(np.zeros(size), np.diag(1 / (_RIDGE * np.where(spread > 0, spread, 1))))
  found = posterior(prior, votes._replace(voter=np.zeros_like(votes.voter)))
  return Taste(found.mean, np.zeros((size, size)))


def fit(votes: TasteVotes, max_steps: int = 300, tolerance: float = 1e-3) -> Taste:
  """The population by EM.

  Args:
    votes: of many voters; one seen once tells little and does no harm.
    max_steps: of EM; a fit that has not settled by then is warned of, as where voters never contradict a taste.
    tolerance: it has settled when no entry of m or Σ moves by more than this share of their size.

  Raises:
    ValueError: there are fewer than two voters.
  """
  groups, num_voters = _groups(votes)
  if num_voters < 2:
    raise ValueError(
      f'Tastes of a population need votes of at least two voters, got those of {num_voters}.'
    )
  start = pooled(votes)
  size = len(start.mean)
  # Log-odds of a variance of about 1.
  variance = 1 / max(float(np.mean(np.sum(votes.x**2, axis=1))), np.finfo(float).tiny)
  taste, weights = Taste(start.mean, variance * np.eye(size)), np.tile(start.mean, (num_voters, 1))
  change = np.inf
  for _ in range(max_steps):
    new = _em_step(taste, groups, weights)
    change = _change(taste, new)
    taste = new
    if change < tolerance:
      return taste
  logging.warning(
    'The tastes of %d voters have not settled: the last of %d steps moved them by %.1g, where %.0g would do. With few votes, or '
    'votes that never contradict themselves, they know no bounds.',
    *(num_voters, max_steps, change, tolerance),
  )
  return taste


def _em_step(taste: Taste, groups: list[_Group], weights: Float[np.ndarray, 'U D']) -> Taste:
  """Moves `weights`, each voter's ŵ, in place."""
  spread = np.zeros_like(taste.covariance)
  for group in groups:
    found, covariance = _laplace(taste, group, weights[group.place])
    weights[group.place] = found
    spread += covariance.sum(axis=0)
  mean = weights.mean(axis=0)
  centred = weights - mean
  return Taste(mean, (centred.T @ centred + spread) / len(weights))


def _change(old: Taste, new: Taste) -> float:
  size = np.sqrt(np.trace(new.covariance)) + np.linalg.norm(new.mean)
  moved = np.abs(new.mean - old.mean).max(initial=0)
  spread = np.abs(new.covariance - old.covariance).max(initial=0)
  return float(moved / max(size, 1e-300) + spread / max(np.trace(new.covariance), 1e-300))


def isotropic(taste: Taste) -> Taste:
  """The same variance in every direction: a prior that does not know which tastes go together."""
  size = len(taste.mean)
  return taste._replace(covariance=np.trace(taste.covariance) / size * np.eye(size))


def posterior(population: Taste, votes: TasteVotes) -> Taste:
  """What is known of one voter after its votes; without a vote, the population."""
  found = posteriors(population, votes._replace(voter=np.zeros_like(votes.voter)))
  if not len(found.voter):
    return population
  return Taste(found.mean[0], found.covariance[0])


def posteriors(population: Taste, votes: TasteVotes) -> Tastes:
  """What is known of every voter."""
  groups, num_voters = _groups(votes)
  mean = np.tile(population.mean, (num_voters, 1))
  covariance = np.zeros((num_voters, *population.covariance.shape))
  for group in groups:
    found = _laplace(population, group, mean[group.place])
    mean[group.place], covariance[group.place] = found
  return Tastes(_numbers(votes)[0], mean, covariance)


def _laplace(
  population: Taste, group: _Group, start: Float[np.ndarray, 'u D']
) -> tuple[Float[np.ndarray, 'u D'], Float[np.ndarray, 'u D D']]:
  """ŵ and H⁻¹ of some voters, by Newton's method in z, w = m + L z with Σ = L Lᵀ, so that Σ may have any rank."""
  factor = _factor(population.covariance)
  x = group.x @ factor
  offset = group.offset + group.x @ population.mean
  z = (start - population.mean) @ np.linalg.pinv(factor).T
  value = functools.partial(_nats, x, offset, group)
  nats = value(z)
  for _ in range(100):
    gradient, hessian = _derivatives(x, offset, group, z)
    step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    size = np.ones(len(z))
    for _ in range(_MAX_HALVINGS):
      new = value(z + size[:, None] * step)
      worse = new > nats + 1e-12 * (1 + np.abs(nats))
      if not worse.any():
        break
      size = np.where(worse, size / 2, size)
    z, nats = z + size[:, None] * step, new
    if np.abs(step).max(initial=0) < 1e-8:
      break
  _, hessian = _derivatives(x, offset, group, z)
  covariance = factor @ np.linalg.solve(
    hessian, np.broadcast_to(factor.T, (len(z), *factor.T.shape))
  )
  return population.mean + z @ factor.T, covariance


def _nats(x, offset, group: _Group, z: Float[np.ndarray, 'u R']) -> Float[np.ndarray, 'u']:
  """−log of each voter's likelihood and prior."""
  logit = offset + np.matmul(x, z[..., None])[..., 0]
  votes = np.logaddexp(0, logit) - group.share * logit
  return np.sum(group.weight * votes, axis=1) + 0.5 * np.sum(z**2, axis=1)


def _derivatives(x, offset, group: _Group, z):
  """Gradient [u, R] and Hessian [u, R, R] of `_nats`."""
  p = special.expit(offset + np.matmul(x, z[..., None])[..., 0])
  residual = group.weight * (p - group.share)
  gradient = np.matmul(residual[:, None], x)[:, 0] + z
  weighted = (group.weight * p * (1 - p))[..., None] * x
  return gradient, np.matmul(weighted.swapaxes(1, 2), x) + np.eye(x.shape[-1])


def _factor(covariance: Float[np.ndarray, 'D D']) -> Float[np.ndarray, 'D R']:
  """L with L Lᵀ = Σ, a column for each direction in which tastes differ."""
  variance, directions = np.linalg.eigh(covariance)
  kept = variance > _FLAT * max(variance.max(initial=0), np.finfo(float).tiny)
  return directions[:, kept] * np.sqrt(variance[kept])


def _numbers(votes: TasteVotes) -> tuple[Int[np.ndarray, 'U'], Int[np.ndarray, 'N']]:
  """Voters' numbers, and the place of each vote's among them; an unknown voter is one of its own, numbered below 0."""
  unknown = votes.voter < 0
  voter = np.where(unknown, -1 - np.cumsum(unknown), votes.voter)
  numbers, place = np.unique(voter, return_inverse=True)
  return numbers, place.ravel()


def _groups(votes: TasteVotes) -> tuple[list[_Group], int]:
  """All votes by voter, those of like number together, and the number of voters."""
  numbers, place = _numbers(votes)
  order = np.argsort(place, kind='stable')
  counts = np.bincount(place, minlength=len(numbers))
  first = np.cumsum(counts) - counts
  by_count = np.argsort(counts, kind='stable')
  return [
    _group(votes, order, first, counts, some) for some in _parts(by_count, counts, votes)
  ], len(numbers)


def _parts(by_count, counts, votes: TasteVotes) -> Iterator[Int[np.ndarray, 'u']]:
  """Voters in order of their number of votes, in parts of which none is more than half empty, nor too large."""
  start = 0
  while start < len(by_count):
    most = 2 * counts[by_count[start]]
    stop = int(np.searchsorted(counts[by_count], most, side='right'))
    room = max(1, _CHUNK // max(1, int(most) * votes.x.shape[1]))
    stop = min(stop, start + room)
    yield by_count[start:stop]
    start = stop


def _group(votes: TasteVotes, order, first, counts, voters: Int[np.ndarray, 'u']) -> _Group:
  width = int(counts[voters].max())
  there = np.arange(width) < counts[voters, None]
  rows = order[np.where(there, first[voters, None] + np.arange(width), 0)]
  weight = np.where(there, votes.weight[rows], 0)
  return _Group(voters, votes.x[rows], votes.share[rows], votes.offset[rows], weight)


def preference(
  taste: Taste, x: Float[np.ndarray, 'N D'], offset: Float[np.ndarray, 'N'] | float = 0.0
) -> Float[np.ndarray, 'N']:
  """P(y ≻ y') of who has such a taste, the mean of σ(s + w·x) over it; P(y ≻ y') + P(y' ≻ y) = 1."""
  return _expected(*_moments(taste, x, offset))[0]


def foretold(population: Taste, known: Tastes, votes: TasteVotes) -> Float[np.ndarray, 'N']:
  """`preference` of each vote's own voter; of one who is not known, the population's."""
  result = preference(population, votes.x, votes.offset)
  if not len(known.voter):
    return result
  place = np.minimum(np.searchsorted(known.voter, votes.voter), len(known.voter) - 1)
  rows = np.flatnonzero(known.voter[place] == votes.voter)
  size = max(1, _CHUNK // votes.x.shape[1] ** 2)
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    x, of = votes.x[part], place[part]
    mean = np.sum(x * known.mean[of], axis=1) + votes.offset[part]
    variance = np.sum(np.matmul(x[:, None], known.covariance[of])[:, 0] * x, axis=1)
    result[part] = _expected(mean, np.maximum(variance, 0))[0]
  return result


def _moments(taste: Taste, x, offset) -> tuple[np.ndarray, np.ndarray]:
  """Mean and variance of the log-odds."""
  variance = np.einsum('nd,nd->n', x @ taste.covariance, x)
  return x @ taste.mean + offset, np.maximum(variance, 0)


def _expected(
  mean: Float[np.ndarray, 'N'], variance: Float[np.ndarray, 'N']
) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """E σ(z) and E σ(z)² of normal log-odds z."""
  first, second = np.zeros_like(mean), np.zeros_like(mean)
  deviation = np.sqrt(variance)
  for node, weight in zip(_NODES, _WEIGHTS, strict=True):
    p = special.expit(mean + deviation * node)
    first += weight * p
    second += weight * p**2
  return first, second


def disagreement(population: Taste, votes: TasteVotes) -> Disagreement:
  """How much of what votes differ by is voters, and how much is noise."""
  mean, square = _expected(*_moments(population, votes.x, votes.offset))
  average = lambda values: float(4 * np.average(values, weights=votes.weight))
  return Disagreement(average((mean - 0.5) ** 2), average(square - mean**2), average(mean - square))


def directions(population: Taste, votes: TasteVotes) -> tuple[np.ndarray, np.ndarray]:
  """Along which tastes differ: shares of the variance of voters' log-odds on these pairs [D], and directions of w [D, D].

  With C = mean x xᵀ the variance is tr(ΣC). The directions, largest share first, are the columns of C^−½ V, V the eigenvectors of
  C^½ Σ C^½: in units in which each alone moves the log-odds of a pair by 1, in the root mean square.
  """
  second = np.einsum('n,nd,ne->de', votes.weight, votes.x, votes.x) / votes.weight.sum()
  variance, axes = np.linalg.eigh(second)
  kept = variance > _FLAT * max(variance.max(), np.finfo(float).tiny)
  root = np.where(kept, np.sqrt(np.maximum(variance, 0)), 0)
  inverse = np.where(kept, 1 / np.where(kept, root, 1), 0)
  half, back = (axes * root) @ axes.T, (axes * inverse) @ axes.T
  values, vectors = np.linalg.eigh(half @ population.covariance @ half)
  values = np.maximum(values[::-1], 0)
  return values / max(values.sum(), np.finfo(float).tiny), back @ vectors[:, ::-1]
