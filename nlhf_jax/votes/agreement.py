"""How reliable judges are: whom they agree with, how often they see a tie, and whether the first answer wins."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from nlhf_jax.votes import table


class Judge(NamedTuple):
  """One kind of judge, by its votes."""

  name: str
  num_votes: float
  tie_share: float
  both_bad_share: float
  # Share of decisive votes for who was shown first, with a 95 % interval (Clopper-Pearson); NaN where orders are unknown.
  first_wins: float
  first_wins_low: float
  first_wins_high: float
  # Share of decisive votes that agree with another judge's on the same prompt and pair; NaN where there is none.
  agreement: float
  num_compared: int
  # The same of two votes of its own: by two voters, or in two orders.
  own_agreement: float
  num_own: int


def judges(votes: table.Votes) -> tuple[Judge, ...]:
  """Of each judge in the votes."""
  side = votes.verdict[:, 0] - votes.verdict[:, 1]
  with_others, with_own = _agreement(votes, side)
  return tuple(
    _judge(name, votes, votes.judge == number, side, with_others[number], with_own[number])
    for number, name in enumerate(votes.judges)
  )


def _judge(name, votes: table.Votes, own, side, with_others, with_own) -> Judge:
  count = votes.counts[own]
  total = count.sum()
  shown = own & (votes.order != 0) & (side != 0)
  first = float(votes.counts[shown & (np.sign(side) == votes.order)].sum())
  decided = float(votes.counts[shown].sum())
  interval = clopper_pearson(first, decided)
  ties, bad = (float(count @ votes.verdict[own, k] / total) for k in (2, 3))
  share = first / decided if decided else np.nan
  alike, alike_own = _share(*with_others), _share(*with_own)
  return Judge(name, float(total), ties, bad, share, *interval, *alike, *alike_own)


def _share(agreed: float, compared: float) -> tuple[float, int]:
  return (agreed / compared if compared else np.nan), int(compared)


def clopper_pearson(won: float, played: float) -> tuple[float, float]:
  """The 95 % interval of a share; NaN where nothing was played."""
  if not played:
    return np.nan, np.nan
  low = special.betaincinv(won, played - won + 1, 0.025) if won else 0.0
  high = special.betaincinv(won + 1, played - won, 0.975) if won < played else 1.0
  return float(low), float(high)


def _agreement(
  votes: table.Votes, side: Float[np.ndarray, 'N']
) -> tuple[Float[np.ndarray, 'J 2'], Float[np.ndarray, 'J 2']]:
  """Pairs of decisive votes on one question that agree, and all such pairs: with other judges, and of the judge's own."""
  number = len(votes.judges)
  chosen = (votes.prompt >= 0) & (side != 0)
  swapped = votes.a > votes.b
  low, high = np.where(swapped, votes.b, votes.a), np.where(swapped, votes.a, votes.b)
  question = np.column_stack([votes.prompt, low, high])[chosen]
  if not len(question):
    return np.zeros((number, 2)), np.zeros((number, 2))
  _, question = np.unique(question, axis=0, return_inverse=True)
  for_low = (np.where(swapped, -side, side) > 0)[chosen]
  won = np.zeros((question.max() + 1, number))
  lost = np.zeros_like(won)
  judge, count = votes.judge[chosen], votes.counts[chosen]
  np.add.at(won, (question.ravel(), judge), count * for_low)
  np.add.at(lost, (question.ravel(), judge), count * ~for_low)
  others_won = won.sum(axis=1, keepdims=True) - won
  others_lost = lost.sum(axis=1, keepdims=True) - lost
  agreed = (won * others_won + lost * others_lost).sum(axis=0)
  compared = ((won + lost) * (others_won + others_lost)).sum(axis=0)
  pairs_of = lambda x: (x * np.maximum(x - 1, 0) / 2).sum(axis=0)
  own = pairs_of(won) + pairs_of(lost), pairs_of(won + lost)
  return np.stack([agreed, compared], axis=1), np.stack(own, axis=1)
