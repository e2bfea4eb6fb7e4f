"""Rankings of alternatives, and what forbids one: cycles.

A maximal lottery is the one that NLHF stands for: the mixture that no alternative beats. Borda, Copeland and Elo put
everything on a line, and disagree where preferences cycle.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csgraph

from nlhf_jax.games import fits, solve, sources

Matrix = Float[np.ndarray, 'Y Y']
Scores = Float[np.ndarray, 'Y']
# Shares this close to 1/2 are ties.
_TOLERANCE = 1e-9


def condorcet_winner(preference: Matrix) -> int | None:
  """The alternative that beats all others by majority; None where there is none."""
  (winners,) = np.nonzero(_beats(preference).sum(axis=1) == len(preference) - 1)
  return int(winners[0]) if winners.size else None


def num_cyclic_triples(preference: Matrix) -> int:
  """Triples i, j, k with i over j over k over i, by majority."""
  beats = _beats(preference).astype(np.int64)
  return int(np.trace(beats @ beats @ beats)) // 3


def smith_set(preference: Matrix) -> Bool[np.ndarray, 'Y']:
  """The smallest set whose members beat all others by majority, ties counting as beating each other."""
  reaches = ~_beats(preference).T  # i reaches j: i is not beaten by j.
  _, component = csgraph.connected_components(reaches, connection='strong')
  # A member weakly beats all outside and itself, so no one outside weakly beats as many.
  return component == component[np.argmax(reaches.sum(axis=1))]


def borda(preference: Matrix) -> Scores:
  """Mean share of votes against the other alternatives."""
  return (preference.sum(axis=1) - 0.5) / (len(preference) - 1)


def copeland(preference: Matrix) -> Scores:
  """Share of the other alternatives that it beats by majority, ties half."""
  beats = _beats(preference)
  return ((beats.sum(axis=1) - beats.sum(axis=0)) / (len(preference) - 1) + 1) / 2


def elo(preference: Matrix, weights: Matrix | None = None, prior: float = 1e-3) -> Scores:
  """Elo ratings of maximum likelihood under Bradley-Terry, mean 1500; 400 points are odds of 10.

  Args:
    preference: P.
    weights: comparisons of each pair; None: all alike.
    prior: weight of a Gaussian around the mean, in comparisons; it keeps one who never lost finite.
  """
  rewards = fits.bradley_terry(preference, weights, ridge=2 * prior)
  return 1500 + 400 / np.log(10) * rewards


def maximal_lottery(preference: Matrix) -> Scores:
  """Probabilities in a mixture that no alternative beats."""
  return solve.maximal_lottery(preference).policy


class Ranking(NamedTuple):
  """Scores of all alternatives by one method; intervals where counts are known."""

  scores: Scores
  low: Scores | None
  high: Scores | None


def rank(
  table: sources.Table,
  *,
  num_resamples: int = 200,
  seed: int = 0,
  advance: Callable[[int], None] = lambda steps: None,
) -> dict[str, Ranking]:
  """Every method's scores side by side, with 95 % percentile intervals where the table has counts.

  A resample draws, for each pair, as many comparisons as it has, at the share that was observed.

  Args:
    table: shares, and counts if there are any.
    num_resamples: of the bootstrap.
    seed: of the resamples.
    advance: called with 1 after each resample.
  """
  weights = None if table.wins is None else table.wins + table.wins.T
  scores = _scores(table.preference, weights)
  if weights is None:
    return {name: Ranking(values, None, None) for name, values in scores.items()}
  rng = np.random.default_rng(seed)
  draws = []
  for _ in range(num_resamples):
    draws.append(_scores(_resample(rng, table.preference, weights), weights))
    advance(1)
  result = {}
  for name, values in scores.items():
    low, high = np.percentile([draw[name] for draw in draws], [2.5, 97.5], axis=0)
    result[name] = Ranking(values, low, high)
  return result


def _scores(preference: Matrix, weights: Matrix | None) -> dict[str, Scores]:
  return {
    'maximal_lottery': maximal_lottery(preference),
    'borda': borda(preference),
    'elo': elo(preference, weights),
    'copeland': copeland(preference),
  }


def _resample(rng: np.random.Generator, preference: Matrix, weights: Matrix) -> Matrix:
  upper = np.triu_indices(len(preference), 1)
  played = np.round(weights[upper]).astype(np.int64)
  share = rng.binomial(played, preference[upper]) / np.maximum(played, 1)
  result = np.full_like(preference, 0.5)
  result[upper] = np.where(played > 0, share, 0.5)
  result.T[upper] = 1 - result[upper]
  return result


def _beats(preference: Matrix) -> Bool[np.ndarray, 'Y Y']:
  return preference > 0.5 + _TOLERANCE
