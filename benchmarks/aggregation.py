"""What each aggregation is to the worst-off reader of the built-in headlines, and to their mean: exact, by tables alone.

  python benchmarks/aggregation.py --output out.json

The game of a day has its 36 headlines and three readers, and μ is what SFT imitates: of two drafts the favourite of a
reader drawn at random. Worst-off is the reader who comes off worst on that day; intervals are over days, differences paired.
`worst of a pair` is the policy that would be best were every pair judged by whoever likes it least: not maximin, for the
opponent then chooses a reader anew for each response.
"""

import argparse
import json
import pathlib

import numpy as np
from rich import console, table

from nlhf_jax.evaluation import win_rates
from nlhf_jax.games import aggregation, sources
from nlhf_jax.judges import headlines
from nlhf_jax.runtime import progress

MEASURES = {
  'worst_off_worst_case': 'worst-off: min P_u(π ≻ y)',
  'worst_off_win_rate': 'worst-off: P_u(π ≻ μ)',
  'mean_worst_case': 'mean: min P(π ≻ y)',
  'mean_win_rate': 'mean: P(π ≻ μ)',
}
BETAS = (0.0, 10.0)


def day(number: int, tau: float) -> aggregation.PopulationGame:
  """The game of one day's headlines."""
  ids = {story: token for token, story in enumerate(headlines.word_list(), start=2)}
  responses, scores = headlines.ballot(headlines.prompt(number), ids)
  voters = np.stack([sources.from_scores(row[None]) for row in scores.astype(np.float64)])
  length = np.sum(responses > 1, axis=1)
  draft = 1 / (length.max() * np.bincount(length)[length])
  # Of two drafts, y is written where it is either and beats the other: 2 d(y) P(y ≻ d).
  return aggregation.make(voters, None, 2 * draft * (voters.mean(axis=0) @ draft), tau)


def policies(game: aggregation.PopulationGame) -> dict[str, np.ndarray]:
  """Of every aggregation, by name."""
  found = {
    name: aggregation.aggregate(name, game) for name in aggregation.NAMED if name != 'proportional'
  }
  for beta in BETAS:
    found[f'proportional, β = {beta:g}'] = aggregation.proportional(game, beta)
  pessimist = game._replace(preference=game.preference.min(axis=0)[None], weights=np.ones(1))
  found['worst of a pair'] = aggregation.aggregate('maximin', pessimist)
  return found | {'μ': game.reference}


def measure(game: aggregation.PopulationGame, policy: np.ndarray) -> list[float]:
  """MEASURES."""
  found = aggregation.standing(game, policy)
  worst = float(found.worst_case.min()), float(found.win_rate.min())
  return [*worst, found.mean_worst_case, found.mean_win_rate]


def run(tau: float, num_days: int, advance) -> dict:
  """Means and intervals of every aggregation, and of maximin less each."""
  rows = []
  for number in range(num_days):
    game = day(number, tau)
    rows.append({name: measure(game, policy) for name, policy in policies(game).items()})
    advance(1)
  # [days, aggregations, measures]
  values = np.array([list(row.values()) for row in rows])
  best = values[:, [list(rows[0]).index('maximin')]]
  ends = lambda x: dict(zip(('mean', 'low', 'high'), win_rates.mean_with_interval(x), strict=True))
  shown = {'values': ends(values), 'maximin_less': ends(best - values)}
  as_lists = {k: {end: x.tolist() for end, x in v.items()} for k, v in shown.items()}
  return {'tau': tau, 'aggregations': list(rows[0]), 'measures': list(MEASURES), **as_lists}


def tables(found: dict) -> list[table.Table]:
  """One of the values, one of what maximin has more."""
  result = []
  for key, title in (('values', 'values'), ('maximin_less', 'maximin less each')):
    shown = table.Table(title=f'τ = {found["tau"]:g}: {title}')
    for column in ('aggregation', *MEASURES.values()):
      shown.add_column(column)
    for i, name in enumerate(found['aggregations']):
      cells = [
        ' '.join(f'{found[key][end][i][m]:.3f}' for end in ('mean', 'low', 'high'))
        for m in range(len(MEASURES))
      ]
      shown.add_row(name, *cells)
    result.append(shown)
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--num_days', type=int, default=400, help='held-out days (default: 400)')
  parser.add_argument('--tau', type=float, nargs='+', default=[0.0, 0.1], help='τ (default: 0 .1)')
  parser.add_argument('--output', help='JSON file')
  args = parser.parse_args()
  found = []
  with progress.bar('days', args.num_days * len(args.tau)) as advance:
    for tau in args.tau:
      found.append(run(tau, args.num_days, advance))
  for one in found:
    for shown in tables(one):
      console.Console(width=140).print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
  main()
