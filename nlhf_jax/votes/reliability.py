"""How reliable each voter is: whether the others' scores foretell its votes, and who votes like a coin, or against all.

Scores θ are Bradley-Terry's of all decisive votes, with a weak prior that keeps them finite. Without voter v they are, by one
step of Newton's method (influence),

  θ₋ᵥ = θ − (H − Hᵥ)⁻¹ gᵥ,   Hᵥ, gᵥ: what v's votes add to the Hessian and to the log-likelihood's gradient at θ,

and foretell its vote by P(a ≻ b) = σ(d/√(1 + π s²/8)), d = θₐ − θ_b, s² the variance of d (MacKay 1992): of those whom the
others have hardly compared nothing is foretold. X, the number of v's votes for whom the others hold better, is tested

- against the others' scores: P(X or fewer) if v votes as they foretell, a sum of coins of different weights;
- against chance: P(X or fewer), and P(X or more), if v tosses a fair coin.

Honest voters have tastes of their own, so that X varies more than coins do: its variance is that of the coins and n²τ² of n
votes. τ is what brings the median of all voters' squared deviations to that of χ², which a few unreliable ones do not move
(an empirical null: Efron 2004), with Student's t for what that median does not know. Tests of all voters are corrected by
Benjamini and Hochberg (1995), so that of those flagged no more than the level are flagged wrongly, in the mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special, stats

from nlhf_jax.votes import agreement, table

# Decisive votes on whom the others tell apart; with fewer nothing is said of a voter.
MIN_VOTES = 10
# Of false discoveries.
LEVEL = 0.05
# A voter who beats chance as surely as this is no coin, though it may agree less than others do.
_SURELY = 0.01
# Of the prior, whose standard deviation is 4.5 nats.
_PRECISION = 0.05
# Of the median of squares beside their mean: τ has that share of the voters as its degrees of freedom.
_EFFICIENCY = 0.37
# Beyond, a sum of coins is normal for all that matters.
_EXACT = 1000


class Voter(NamedTuple):
  """One voter, by the scores that the others' votes give."""

  name: str
  num_votes: int
  # Share of its votes for whom the others hold better, with a 95 % interval (Clopper-Pearson), and what they would foretell.
  accuracy: float
  low: float
  high: float
  expected: float
  # Nats of a vote; log 2 = .693 is a coin's.
  log_loss: float
  # Of this share or a smaller one: if it votes as the others foretell; if it tosses a coin.
  p_others: float
  p_chance: float
  # 'coin': agrees less than the others foretell, and not surely more than a coin; 'against': less than a coin; '': neither.
  flag: str = ''


class Record(NamedTuple):
  """What a voter did, vote by vote."""

  name: str
  # P that each vote is for whom the others hold better, as they foretell.
  better: Float[np.ndarray, 'N']
  agreed: int
  log_loss: float


def voters(votes: table.Votes, level: float = LEVEL) -> tuple[Voter, ...]:
  """Voters with at least MIN_VOTES, the least reliable first.

  Args:
    votes: some by voters that are known.
    level: share of false discoveries.
  """
  decisive = votes.counts[:, None] * votes.verdict[:, :2]
  wins = np.zeros((len(votes.labels),) * 2)
  np.add.at(wins, (votes.a, votes.b), decisive[:, 0])
  np.add.at(wins, (votes.b, votes.a), decisive[:, 1])
  theta, covariance = fit(wins)
  found = []
  for number, rows in _by_voter(votes):
    pair = np.stack([votes.a[rows], votes.b[rows]], axis=1)
    foretold = _foretold(pair, decisive[rows], theta, covariance)
    name = votes.voters[number] if votes.voters else f'voter {number}'
    one = _record(name, foretold, decisive[rows], votes.counts[rows])
    if len(one.better) >= MIN_VOTES:
      found.append(one)
  tau = spread(found)
  flagged = _flagged([_voter(one, tau, _EFFICIENCY * len(found)) for one in found], level)
  return tuple(sorted(flagged, key=lambda x: (not x.flag, x.p_others, x.p_chance)))


def fit(
  wins: Float[np.ndarray, 'n n'], max_steps: int = 100
) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n n']]:
  """θ in nats of decisive votes, wins[i, j] of i over j, and its covariance H⁻¹."""
  played, theta = wins + wins.T, np.zeros(len(wins))
  for _ in range(max_steps):
    p = special.expit(theta[:, None] - theta)
    weight = played * p * (1 - p)
    hessian = np.diag(weight.sum(axis=1) + _PRECISION) - weight
    step = np.linalg.solve(hessian, (wins - played * p).sum(axis=1) - _PRECISION * theta)
    longest = np.abs(step).max()
    # No step is longer than a nat, so that it does not overshoot where σ is flat.
    theta = theta + step / max(longest, 1)
    if longest < 1e-9:
      break
  return theta, np.linalg.inv(hessian)


def _by_voter(votes: table.Votes) -> list[tuple[int, Int[np.ndarray, 'N']]]:
  """Rows with a winner, of each voter who may have enough."""
  chosen = np.flatnonzero((votes.voter >= 0) & (votes.verdict[:, 0] != votes.verdict[:, 1]))
  chosen = chosen[np.argsort(votes.voter[chosen], kind='stable')]
  number, first = np.unique(votes.voter[chosen], return_index=True)
  parts = np.split(chosen, first[1:]) if len(chosen) else []
  pairs = zip(number.tolist(), parts, strict=True)
  return [(n, rows) for n, rows in pairs if votes.counts[rows].sum() >= MIN_VOTES]


def _foretold(
  pair: Int[np.ndarray, 'N 2'],
  won: Float[np.ndarray, 'N 2'],
  theta: Float[np.ndarray, 'n'],
  covariance: Float[np.ndarray, 'n n'],
) -> Float[np.ndarray, 'N']:
  """P(a ≻ b) of each of a voter's votes, by the votes of the others; all is of those alone whom it compares."""
  own, place = np.unique(pair, return_inverse=True)
  place = place.reshape(pair.shape)
  rows = np.arange(len(pair))
  design = np.zeros((len(pair), len(own)))
  design[rows, place[:, 0]], design[rows, place[:, 1]] = 1, -1
  p = special.expit(design @ theta[own])
  played = won.sum(axis=1)
  gradient = design.T @ (won[:, 0] - played * p)
  hessian = design.T * (played * p * (1 - p)) @ design
  # (H − Hᵥ)⁻¹ among its alternatives, by Woodbury's identity.
  block = covariance[np.ix_(own, own)]
  others = np.linalg.solve(np.eye(len(own)) - block @ hessian, block)
  difference = design @ (theta[own] - others @ gradient)
  variance = np.maximum(np.einsum('nm,mk,nk->n', design, others, design), 0)
  return special.expit(difference / np.sqrt(1 + np.pi * variance / 8))


def _record(
  name: str,
  foretold: Float[np.ndarray, 'N'],
  won: Float[np.ndarray, 'N 2'],
  counts: Float[np.ndarray, 'N'],
) -> Record:
  times = np.rint(counts).astype(np.int64)
  # Of two whom the others hold equal neither is better.
  told = np.abs(foretold - 0.5) > 1e-9
  times, foretold, for_a = times[told], foretold[told], (won[:, 0] > won[:, 1])[told]
  agreed = int(times @ (for_a == (foretold > 0.5)))
  log_loss = -float(times @ np.log(np.where(for_a, foretold, 1 - foretold)))
  better = np.repeat(np.maximum(foretold, 1 - foretold), times)
  return Record(name, better, agreed, log_loss / max(len(better), 1))


def spread(records: Sequence[Record]) -> float:
  """τ: how far honest voters' shares lie apart beyond chance, as a standard deviation; 0 where chance explains all."""
  if not records:
    return 0.0
  squared = np.array([(x.agreed - x.better.sum()) ** 2 for x in records])
  variance = np.array([np.sum(x.better * (1 - x.better)) for x in records])
  size = np.array([len(x.better) for x in records])
  half = stats.chi2.ppf(0.5, 1)
  excess = lambda tau: float(np.median(squared / (variance + (size * tau) ** 2)) - half)
  if excess(0.0) <= 0:
    return 0.0
  return float(optimize.brentq(excess, 0, 1)) if excess(1.0) < 0 else 1.0


def _voter(record: Record, tau: float, degrees: float) -> Voter:
  total, agreed = len(record.better), record.agreed
  low, high = agreement.clopper_pearson(float(agreed), float(total))
  expected = float(record.better.mean())
  p_others = _at_most(agreed, record.better, tau * total, degrees)
  p_chance = float(special.bdtr(agreed, total, 0.5))
  name, log_loss = record.name, record.log_loss
  return Voter(name, total, agreed / total, low, high, expected, log_loss, p_others, p_chance)


def _at_most(
  count: int, p: Float[np.ndarray, 'N'], noise: float = 0.0, degrees: float = np.inf
) -> float:
  """P(X ≤ count) of a sum of coins of these weights and noise, of Student's t.

  Exact by the sum's characteristic function; where there are many coins, of Student's t as well.
  """
  size = len(p) + 1
  if size > _EXACT:
    deviation = np.sqrt(np.sum(p * (1 - p)) + noise**2)
    known = degrees if noise else np.inf
    return float(special.stdtr(known, (count + 0.5 - p.sum()) / deviation))
  turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
  mass = np.fft.irfft(np.prod(1 - p + p * turn[:, None], axis=1), size)
  if noise:
    below = special.stdtr(degrees, (count + 0.5 - np.arange(size)) / noise)
    return float(np.clip(mass @ below, 0, 1))
  return float(np.clip(mass[: count + 1].sum(), 0, 1))


def _flagged(found: list[Voter], level: float) -> list[Voter]:
  if not found:
    return []
  less = discoveries(np.array([x.p_others for x in found]), level)
  against = discoveries(np.array([x.p_chance for x in found]), level)
  result = []
  for one, agrees_less, is_against in zip(found, less, against, strict=True):
    agreed = round(one.accuracy * one.num_votes)
    beats_chance = special.bdtr(one.num_votes - agreed, one.num_votes, 0.5) <= _SURELY
    flag = 'against' if is_against else 'coin' if agrees_less and not beats_chance else ''
    result.append(one._replace(flag=flag))
  return result


def discoveries(p_values: Float[np.ndarray, 'N'], level: float):
  """Which nulls are rejected at a rate of false discoveries (Benjamini and Hochberg 1995)."""
  return stats.false_discovery_control(p_values) <= level
