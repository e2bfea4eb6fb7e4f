"""Scores and times of one peer on votes that `votes_speed.py` wrote; runs in an environment of its own.

python benchmarks/votes_peers.py PEER VOTES.npz OUT.json

VOTES.npz has `models`, and `i`, `j`, `counts` [pairs, 4]: i won, j won, tie, both bad. Scores are in nats, mean 0.
"""

import json
import sys

import numpy as np
from timing import seconds


def choix(votes) -> dict:
  """Decisive votes."""
  import choix as peer

  wins = _wins(votes)
  fit = lambda: peer.ilsr_pairwise_dense(wins, alpha=0.0, tol=1e-10)
  return {'bradley_terry': _centred(fit()), 'bradley_terry_seconds': seconds(fit, 1)}


def evalica(votes) -> dict:
  """Decisive votes, as weighted rows."""
  import evalica as peer

  rows = _rows(votes, (0, 1))
  winners = [peer.Winner.X if kind == 0 else peer.Winner.Y for kind in rows['kind']]
  index = {name: number for number, name in enumerate(votes['models'])}

  def fit():
    return peer.bradley_terry(
      rows['a'], rows['b'], winners, weights=rows['count'], tolerance=1e-10, limit=10_000
    )

  scores = np.empty(len(index))
  for name, score in fit().scores.items():
    scores[index[name]] = np.log(score)
  return {'bradley_terry': _centred(scores), 'bradley_terry_seconds': seconds(fit, 1)}


def leaderbot(votes) -> dict:
  """Davidson's ties; both bad left out."""
  from leaderbot import models

  pairs = [tuple(pair) for pair in np.column_stack([votes['i'], votes['j']]).tolist()]
  counts = [tuple(row) for row in votes['counts'][:, :3].astype(int).tolist()]
  data = {'models': votes['models'], 'X': pairs, 'Y': counts}

  def fit():
    model = models.Davidson(data, k_cov=None, k_tie=0)
    model.train(method='BFGS', max_iter=1500, tol=1e-8)
    return np.array(model.param)

  found = fit()
  size = len(votes['models'])
  return {
    'davidson': _centred(found[:size]),
    'log_nu': float(found[size]),
    'davidson_seconds': seconds(fit, 1),
  }


def arena_rank(votes) -> dict:
  """Decisive votes, with sandwich intervals of independent rows."""
  import jax.numpy as jnp
  import pandas
  from arena_rank.models.bradley_terry import BradleyTerry
  from arena_rank.utils.data_utils import PairDataset

  del pandas
  rows = _rows(votes, (0, 1))
  index = {name: number for number, name in enumerate(votes['models'])}
  pairs = jnp.array([[index[a], index[b]] for a, b in zip(rows['a'], rows['b'], strict=True)])
  outcomes = jnp.array([1.0 - kind for kind in rows['kind']])
  count = jnp.array(rows['count'])
  data = PairDataset(votes['models'], pairs, outcomes, count, jnp.ones_like(count), count)

  def fit():
    # With less of its ridge, 1e-5 of all votes, which moves intervals by .01 nats here.
    model = BradleyTerry(len(index), hessian_reg=1e-9, ftol=0.0, gtol=1e-11, max_iter=5000)
    return model, model.compute_ratings_and_cis(data)

  model, found = fit()
  points = 400 / np.log(10)
  names = [index[name] for name in found['competitors']]
  width = np.empty(len(names))
  width[names] = (
    (np.asarray(found['rating_upper']) - np.asarray(found['rating_lower'])) / 2 / points
  )
  return {
    'bradley_terry': _centred(np.asarray(model.params['ratings'])),
    'half_width': width.tolist(),
    'bradley_terry_seconds': seconds(fit, 1),
  }


def _wins(votes) -> np.ndarray:
  size = len(votes['models'])
  wins = np.zeros((size, size))
  wins[votes['i'], votes['j']] = votes['counts'][:, 0]
  wins[votes['j'], votes['i']] = votes['counts'][:, 1]
  return wins


def _rows(votes, kinds) -> dict[str, list]:
  rows: dict[str, list] = {'a': [], 'b': [], 'kind': [], 'count': []}
  for i, j, counts in zip(votes['i'], votes['j'], votes['counts'], strict=True):
    for kind in kinds:
      if counts[kind]:
        for name, value in (
          ('a', votes['models'][i]),
          ('b', votes['models'][j]),
          ('kind', kind),
          ('count', float(counts[kind])),
        ):
          rows[name].append(value)
  return rows


def _centred(scores) -> list[float]:
  scores = np.asarray(scores, np.float64)
  return (scores - scores.mean()).tolist()


def main() -> None:
  """Writes what the peer found."""
  name, source, output = sys.argv[1:]
  with np.load(source) as file:
    votes = {key: file[key] for key in file}
  votes['models'] = votes['models'].tolist()
  found = {'choix': choix, 'evalica': evalica, 'leaderbot': leaderbot, 'arena_rank': arena_rank}
  with open(output, 'w') as file:
    json.dump(found[name](votes), file)


if __name__ == '__main__':
  main()
