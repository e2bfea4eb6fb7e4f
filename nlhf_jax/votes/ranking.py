"""Rankings of alternatives, how sure they are, and what forbids one: cycles.

A maximal lottery is the one that NLHF stands for: the mixture that no alternative beats. Borda, Copeland and scores put
everything on a line, and disagree where preferences cycle.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csgraph

from nlhf_jax.games import fits, solve, sources
from nlhf_jax.votes import (
  agreement,
  bradley_terry,
  certainty,
  cycles,
  likelihood,
  reliability,
  resampling,
  table,
)

Matrix = Float[np.ndarray, 'Y Y']
Scores = Float[np.ndarray, 'Y']
# Shares this close to 1/2 are ties.
_TOLERANCE = 1e-9
# Beyond, a plane of circles takes minutes to simulate.
_MAX_SKEW = 40


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


def elo(preference: Matrix, prior: float = 1e-3) -> Scores:
  """Elo ratings of the Bradley-Terry model nearest to P, mean 1500; 400 points are odds of 10.

  Args:
    preference: P, all pairs weighing alike; of votes use `certainty.scores`.
    prior: weight of a Gaussian around the mean, in comparisons; it keeps one who never lost finite.
  """
  return 1500 + bradley_terry.ELO * fits.bradley_terry(preference, ridge=2 * prior)


def maximal_lottery(preference: Matrix) -> Scores:
  """Probabilities in a mixture that no alternative beats."""
  return solve.maximal_lottery(preference).policy


class Interval(NamedTuple):
  """A number for each alternative, NaN where it is not known, and between what it lies."""

  value: Scores
  low: Scores
  high: Scores


class Ranking(NamedTuple):
  """All that can be said of n alternatives."""

  labels: tuple[str, ...]
  # Shares of votes, ties half; NaN where two never met.
  preference: Matrix
  # By method: maximal_lottery, borda, copeland, and elo of shares. Intervals: 95 % of resampled votes, or, where pairs are
  # missing, whatever these could be.
  orders: dict[str, Interval]
  # Whether the maximal lottery is the only one; None where pairs are missing.
  lottery_is_unique: bool | None
  condorcet_winner: int | None
  # None where pairs are missing.
  smith_set: Bool[np.ndarray, 'n'] | None
  num_cyclic_triples: int
  # What follows is of votes, and None of shares alone.
  wins: Matrix | None = None
  fit: bradley_terry.Fit | None = None
  scores: certainty.Scores | None = None
  # Without features and order, where the votes have some.
  plain: certainty.Scores | None = None
  cyclic_shares: cycles.Shares | None = None
  significant_cycles: tuple[cycles.Cycle, ...] = ()
  skew: cycles.SkewTest | None = None
  judges: tuple[agreement.Judge, ...] = ()
  # Those with enough votes, the least reliable first.
  voters: tuple[reliability.Voter, ...] = ()


def of_shares(shares: sources.Table) -> Ranking:
  """Orders of P alone, without intervals: nothing is known of how many votes there were."""
  p = shares.preference
  orders = _orders(p)
  if not np.isnan(p).any():
    orders['elo'] = Interval(*[elo(p)] * 3)
  return _of_matrix(shares.labels, p, orders)


def of_votes(
  votes: table.Votes,
  model: likelihood.Model = likelihood.DEFAULT,
  *,
  cluster: resampling.Cluster | None = None,
  num_resamples: int = 200,
  num_simulations: int = 199,
  seed: int = 0,
  advance: Callable[[int], None] = lambda steps: None,
) -> Ranking:
  """Scores with intervals and rank ranges, orders, cycles and judges.

  Args:
    votes: at least two alternatives.
    model: what scores are fitted by.
    cluster: what is drawn in resamples of orders; None: voters, prompts or votes, the first that all votes know.
    num_resamples: of orders.
    num_simulations: of the test for a plane of circles; 0: no test.
    seed: of both.
    advance: called with 1 after each resample and simulation.
  """
  wins = table.wins(votes)
  p = sources.from_wins(wins, votes.labels).preference
  fit, scores = certainty.scores(votes, model, seed=seed)
  orders = _orders(p)
  if not np.isnan(p).any():
    drawn = resampling.resampled_wins(
      votes, cluster or resampling.widest_cluster(votes), num_resamples, seed
    )
    orders = _with_intervals(orders, drawn, votes.labels, advance)
  result = _of_matrix(votes.labels, p, orders)
  controlled = votes.x.size or np.any(votes.order)
  bare = model._replace(order=False, features=())
  plain = certainty.scores(votes, bare, seed=seed)[1] if controlled else None
  result = result._replace(
    wins=wins,
    fit=fit,
    scores=scores,
    plain=plain,
    judges=agreement.judges(votes),
    voters=reliability.voters(votes),
  )
  cyclic = cycles.shares(votes)
  if cyclic is None:
    return result
  skew = None
  if num_simulations and 3 < len(votes.labels) <= _MAX_SKEW:
    skew = cycles.skew_test(votes, num_simulations=num_simulations, seed=seed, advance=advance)
  found = tuple(cycles.significant(votes))
  return result._replace(cyclic_shares=cyclic, significant_cycles=found, skew=skew)


def _of_matrix(labels: tuple[str, ...], p: Matrix, orders: dict[str, Interval]) -> Ranking:
  if np.isnan(p).any():
    known = np.where(np.isnan(p), 0.5, p)
    return Ranking(
      labels, p, orders, None, condorcet_winner(known), None, num_cyclic_triples(known)
    )
  lottery = solve.maximal_lottery(p)
  cyclic = num_cyclic_triples(p)
  return Ranking(labels, p, orders, lottery.unique, condorcet_winner(p), smith_set(p), cyclic)


def _orders(p: Matrix) -> dict[str, Interval]:
  """Of a complete table as they are; of one with gaps whatever they may be."""
  unknown = np.isnan(p)
  if not unknown.any():
    found = {'maximal_lottery': maximal_lottery(p), 'borda': borda(p), 'copeland': copeland(p)}
    return {name: Interval(values, values, values) for name, values in found.items()}
  lower, upper = np.where(unknown, 0.0, p), np.where(unknown, 1.0, p)
  nothing = np.full(len(p), np.nan)
  beaten = np.nan_to_num(p, nan=0.5)
  missing = unknown.sum(axis=1) / (len(p) - 1) / 2
  share = copeland(beaten)
  return {
    'maximal_lottery': Interval(nothing, *solve.lottery_bounds(upper - 0.5)),
    'borda': Interval(nothing, borda(lower), borda(upper)),
    'copeland': Interval(nothing, share - missing, share + missing),
  }


def _with_intervals(
  orders: dict[str, Interval],
  drawn: Float[np.ndarray, 'R Y Y'],
  labels: tuple[str, ...],
  advance: Callable[[int], None],
) -> dict[str, Interval]:
  found: dict[str, list[Scores]] = {name: [] for name in orders}
  for wins in drawn:
    # A resample may leave a pair out.
    p = np.nan_to_num(sources.from_wins(wins, labels).preference, nan=0.5)
    for name, order in _orders(p).items():
      found[name].append(order.value)
    advance(1)
  return {
    name: Interval(order.value, *np.percentile(found[name], [2.5, 97.5], axis=0))
    for name, order in orders.items()
  }


def _beats(preference: Matrix) -> Bool[np.ndarray, 'Y Y']:
  return preference > 0.5 + _TOLERANCE
