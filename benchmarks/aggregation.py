"""What each aggregation is to the worst-off reader of the built-in headlines, and to their mean: exact, by tables alone.

  python benchmarks/aggregation.py --output out.json

The game of a day has its 36 headlines and three readers, and μ is what SFT imitates: of two drafts the favourite of a
reader drawn at random. Worst-off is the reader who comes off worst on that day; intervals are over days, differences paired.
`worst of a pair` is the policy that would be best were every pair judged by whoever likes it least: not maximin, for the
opponent then chooses a reader anew for each response.

  python benchmarks/aggregation.py --bias --num_days=3

measures instead how far `blackwell_pg`'s advantages are from the exact ones in the mean, at the saddle point, by samples.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from rich import console, table
from scipy import special

from nlhf_jax import losses
from nlhf_jax.evaluation import win_rates
from nlhf_jax.games import aggregation, sources
from nlhf_jax.judges import headlines
from nlhf_jax.runtime import progress

MEASURES = {
  'worst_off_worst_case': 'worst-off: min P_u(π ≻ y)',
  'worst_off_win_rate': 'worst-off: P_u(π ≻ μ)',
  'mean_worst_case': 'mean: min P(π ≻ y)',
  'mean_win_rate': 'mean: P(π ≻ μ)',
  'kl': 'KL(π‖μ), nats',
}
BETAS = (0.0, 10.0)
# Of the estimator: responses to a prompt, and how often it is drawn.
SAMPLES, NUM_DRAWS = (4, 16, 32), 500


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
  names = ('mean', 'maximin', 'egalitarian', 'personalised')
  found = {name: aggregation.aggregate(name, game) for name in names}
  found['mixture'] = game.weights @ found['personalised']
  for beta in BETAS:
    found[f'proportional, β = {beta:g}'] = aggregation.proportional(game, beta)
  pessimist = game._replace(preference=game.preference.min(axis=0)[None], weights=np.ones(1))
  found['worst of a pair'] = aggregation.aggregate('maximin', pessimist)
  return found | {'μ': game.reference}


def measure(game: aggregation.PopulationGame, policy: np.ndarray) -> list[float]:
  """MEASURES."""
  found = aggregation.standing(game, policy)
  worst = float(found.worst_case.min()), float(found.win_rate.min())
  kl = special.rel_entr(policy, game.reference).sum(axis=-1).mean()
  return [*worst, found.mean_worst_case, found.mean_win_rate, float(kl)]


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


def advantages(game, policy, drawn_by, tau, k, key):
  """One draw of `blackwell_pg`'s advantage of every response, judged by the same k − 1 others and k opponents."""
  first, second = jax.random.split(key)
  size, num_readers = len(policy), len(game.weights)
  i = jax.random.categorical(first, jnp.log(policy), shape=(k - 1,))
  j = jax.random.categorical(second, jnp.log(drawn_by), shape=(k,))
  rows = jnp.concatenate([jnp.arange(size)[:, None], jnp.broadcast_to(i, (size, k - 1))], axis=1)
  preference = jnp.asarray(game.preference.transpose(1, 2, 0))[rows[:, :, None], j]
  log_weight = jnp.log(game.reference / drawn_by)[j]
  log_weight = jnp.broadcast_to(log_weight[:, None], (size, k, num_readers))
  payoff, baseline = losses.hardest_preference(preference, log_weight, tau=tau)
  return (payoff - baseline)[:, 0]


def bias(tau: float, num_days: int) -> list[table.Table]:
  """Root mean square, over responses of π, of the mean advantage less the exact one; and of the exact one."""
  shown = table.Table(title=f"τ = τ' = {tau:g}, {num_days} days, {NUM_DRAWS} draws")
  for column in ('opponents drawn by', 'exact', *(f'bias, {k} samples' for k in SAMPLES)):
    shown.add_column(column)
  for name in ('π', 'μ'):
    found = []
    for game in (day(number, tau) for number in range(num_days)):
      policy, opponent = aggregation.regularised_maximin(game)
      exact = np.einsum('uik,uk->i', game.preference, opponent)
      exact -= policy @ exact
      drawn_by = policy if name == 'π' else game.reference
      row = [np.sqrt(policy @ exact**2)]
      for k in SAMPLES:
        draw = functools.partial(advantages, game, policy, drawn_by, tau, k)
        keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
        drawn = np.array(jax.jit(lambda x, draw=draw: jax.lax.map(draw, x, batch_size=50))(keys))
        # No gradient has what is the same for all responses.
        drawn -= (drawn @ policy)[:, None]
        # Less what is the mean's own noise.
        square = (drawn.mean(axis=0) - exact) ** 2 - drawn.var(axis=0) / NUM_DRAWS
        row.append(np.sqrt(max(policy @ square, 0)))
      found.append(row)
    shown.add_row(name, *(f'{x:.4f}' for x in np.mean(found, axis=0)))
  return [shown]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--num_days', type=int, default=400, help='held-out days (default: 400)')
  parser.add_argument('--tau', type=float, nargs='+', default=[0.0, 0.1], help='τ (default: 0 .1)')
  parser.add_argument('--bias', action='store_true', help='of the estimator, where τ > 0')
  parser.add_argument('--output', help='JSON file')
  args = parser.parse_args()
  if args.bias:
    for tau in filter(None, args.tau):
      for shown in bias(tau, args.num_days):
        console.Console(width=140).print(shown)
    return
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
