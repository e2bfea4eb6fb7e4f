"""Voters' tastes from votes alone: a planted population, and the annotators of the built-in headlines.

  python benchmarks/voter_tastes.py [--output FILE]

1. Planted: d = 16, tastes of rank 3 about a common mean, 150 known voters, 200 unseen ones. Accuracy is against the side that the
   voter would take without noise.
2. Headlines (`judges.headlines`), by exact features: how often each story is in a headline. Known voters are the three readers and
   57 mixtures of them, unseen ones 200 other mixtures; votes are noisy (5 points) or sure. Accuracy is against votes.

Intervals are Student's t over voters. NumPy alone; a minute on two CPU cores.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import numpy as np
from scipy import special

from nlhf_jax.evaluation import judge_accuracy, voter_accuracy
from nlhf_jax.judges import electorate, headlines
from nlhf_jax.votes import tastes

PLANTED_SIZES = (0, 1, 2, 4, 8, 16, 64)
NUM_DAYS = 500


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', help='JSON file')
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  found = {'planted': planted(args.seed)}
  for noise in (5.0, 0.0):
    found[f'headlines, noise {noise:g}'] = of_headlines(noise, args.seed)
  text = json.dumps(found, indent=1)
  print(text)
  if args.output:
    pathlib.Path(args.output).write_text(text + '\n', encoding='utf-8')


def planted(seed: int, size: int = 16, rank: int = 3, deviation: float = 4.0) -> dict:
  """Few-shot curves by (m, Σ) of the known voters' true tastes, by EM of their votes, and by the same variance in all directions."""
  rng = np.random.default_rng(seed)
  directions = rng.normal(size=(size, rank))
  directions *= deviation / np.linalg.norm(directions)
  mean = rng.normal(size=size)
  mean *= 0.45 * deviation / np.linalg.norm(mean)
  draw = lambda number: mean + rng.normal(size=(number, rank)) @ directions.T
  known, unseen = draw(150), draw(200)
  _, votes = _planted_votes(rng, known, 60)
  true_side, test = _planted_votes(rng, unseen, max(PLANTED_SIZES) + 200)
  priors = {'tastes known': tastes.Taste(known.mean(axis=0), np.cov(known.T))}
  priors |= {'by EM': tastes.fit(votes), 'isotropic': tastes.isotropic(priors['tastes known'])}
  result = {}
  for name, prior in priors.items():
    # In the place of the population's model: whom the voter would take without noise.
    found = voter_accuracy.few_shot(prior, test, true_side, sizes=PLANTED_SIZES)
    agreed = [judge_accuracy.agreement(one.own, one.population) for one in found]
    means = [voter_accuracy.by_voter(x, one.voter) for x, one in zip(agreed, found, strict=True)]
    result[name] = dict(zip(PLANTED_SIZES, map(voter_accuracy.interval, means), strict=True))
  result['variance by EM'] = float(np.trace(priors['by EM'].covariance) / deviation**2)
  return result


def _planted_votes(rng, weights, number: int):
  x = rng.normal(size=(len(weights), number, weights.shape[1]))
  log_odds = np.einsum('und,ud->un', x, weights).ravel()
  share = (rng.random(log_odds.size) < special.expit(log_odds)).astype(float)
  voter = np.repeat(np.arange(len(weights)), number)
  return (log_odds > 0).astype(float), tastes.votes_on(
    x.reshape(-1, weights.shape[1]), share, voter
  )


class Votes(NamedTuple):
  """Votes on headlines, and the differences of the readers' scores."""

  votes: tastes.TasteVotes
  readers: np.ndarray
  # P of the voter that voted.
  chances: np.ndarray


def of_headlines(noise: float, seed: int) -> dict:
  """What is recovered of the readers, how well unseen voters are foretold, and what is voters and what noise."""
  rng = np.random.default_rng(seed)
  voters = electorate.mixtures(260, len(headlines.READERS), noise=noise, seed=seed)
  known = vote_on_headlines(rng, voters, np.repeat(np.arange(60), 100))
  unseen = vote_on_headlines(rng, voters, np.repeat(np.arange(60, 260), 16 + 100))
  fresh = vote_on_headlines(rng, voters, np.zeros(5000, int))
  three = vote_on_headlines(rng, voters, np.repeat(np.arange(3), 400))
  population = tastes.fit(known.votes)
  pooled = tastes.pooled(known.votes)
  foretold = tastes.preference(pooled, unseen.votes.x)
  curves = {}
  for name, prior in (('by EM', population), ('isotropic', tastes.isotropic(population))):
    found = voter_accuracy.few_shot(prior, unseen.votes, foretold)
    curves[name] = dict(zip(voter_accuracy.SIZES, map(voter_accuracy.scores, found), strict=True))
  calibration = voter_accuracy.calibration(found[-1])['error']
  shares, directions = tastes.directions(population, known.votes)
  return {
    'three readers': recovered(tastes.fit(three.votes), three.votes, fresh),
    'readers among 60': recovered(population, known.votes, fresh),
    'shares of directions': shares[:4].tolist(),
    'readers within two directions': in_plane(directions[:, :2], fresh),
    'disagreement': tastes.disagreement(population, fresh.votes)._asdict(),
    'true disagreement': true_disagreement(voters, fresh)._asdict(),
    'unseen': curves,
    'calibration after 16': calibration,
  }


def vote_on_headlines(rng, voters: electorate.Voters, who: np.ndarray) -> Votes:
  """One vote of each of these voters on two random headlines of a day."""
  words = headlines.word_list()
  ids = {story: number for number, story in enumerate(words, start=2)}
  days = rng.integers(NUM_DAYS, size=len(who))
  features, scores = np.zeros((2, len(who), len(words))), np.zeros((2, 3, len(who)))
  for day in np.unique(days):
    rows = np.flatnonzero(days == day)
    ballot = headlines.ballot(headlines.prompt(int(day)), ids)
    chosen = electorate.drafts(rng, ballot, (2, len(rows)))
    for side in range(2):
      tokens = ballot.responses[chosen[side]]
      features[side, rows] = (tokens[:, :, None] == np.arange(2, 2 + len(words))).sum(axis=1)
      scores[side][:, rows] = ballot.scores[:, chosen[side]]
  chances = electorate.preferences_of(voters, who, *scores)
  share = np.where(chances == 0.5, 0.5, rng.random(len(who)) < chances)
  votes = tastes.votes_on(features[0] - features[1], share, who)
  return Votes(votes, (scores[0] - scores[1]).T, chances)


def recovered(population: tastes.Taste, votes: tastes.TasteVotes, fresh: Votes) -> dict:
  """Of each reader: how far its log-odds, as its votes tell, go with each reader's scores; and of what sets it apart, the share of
  the variance that is told."""
  known = tastes.posteriors(population, votes)
  log_odds = fresh.votes.x @ known.mean[:3].T
  readers = fresh.readers
  apart = lambda x: x - x.mean(axis=1, keepdims=True)
  correlation = np.corrcoef(log_odds.T, readers.T)[:3, 3:]
  own = np.corrcoef(apart(log_odds).T, apart(readers).T)[:3, 3:]
  return {
    'correlation': correlation.tolist(),
    'correlation apart': own.tolist(),
    'share of variance': (np.diag(own) ** 2).tolist(),
  }


def in_plane(directions: np.ndarray, fresh: Votes) -> list[float]:
  """R² of what sets each reader apart, regressed on the log-odds along two directions."""
  x = fresh.votes.x @ directions
  apart = fresh.readers - fresh.readers.mean(axis=1, keepdims=True)
  left = apart - x @ np.linalg.lstsq(x, apart, rcond=None)[0]
  return (1 - np.sum(left**2, axis=0) / np.sum(apart**2, axis=0)).tolist()


def true_disagreement(voters: electorate.Voters, fresh: Votes) -> tastes.Disagreement:
  """By the known voters' true preferences."""
  scores = fresh.readers.T
  p = np.stack([
    electorate.preferences_of(voters, np.full(scores.shape[1], u), scores, np.zeros_like(scores))
    for u in range(60)
  ])  # fmt: skip
  mean, square = p.mean(axis=0), (p**2).mean(axis=0)
  parts = (mean - 0.5) ** 2, square - mean**2, mean - square
  return tastes.Disagreement(*(float(4 * part.mean()) for part in parts))


if __name__ == '__main__':
  main()
