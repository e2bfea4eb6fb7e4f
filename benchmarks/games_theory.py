"""The theory of preference games, reproduced: oracles, Theorem 1, rates, solvers side by side.

  python benchmarks/games_theory.py --games DIR --output out.json

Takes the CSV games of a directory, and random ones: --num_random of them, of 2 to 200 responses, log-odds Gaussian, μ
from a flat Dirichlet distribution, τ log-uniform in [0.01, 1].
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import console, table
from scipy import special

from nlhf_jax.games import game as games
from nlhf_jax.games import solve, solvers, sources
from nlhf_jax.runtime import progress

SIZES = (2, 3, 4, 5, 7, 10, 14, 20, 27, 38, 50, 64, 80, 100, 110, 125, 140, 160, 180, 200)
GAP = 1e-8
# Steps that a solver may take, and those between two looks at the gap.
LIMITS = {
  'egpo': (20_000, 100),
  'nash_mp': (20_000, 100),
  'omwu': (40_000, 200),
  # `magnetic` is the same under the map of step sizes.
  'self_play': (100_000, 2000),
  'nash_md': (20_000, 1000),
  'nash_ema': (20_000, 1000),
  'fictitious_play': (20_000, 1000),
}


def random_batch(size: int, count: int, rng: np.random.Generator) -> games.PreferenceGame:
  """`count` games of one size."""
  noise = rng.normal(size=(count, size, size))
  tau = np.exp(rng.uniform(np.log(0.01), 0, count))
  batch = [
    games.make(special.expit(2 * (x - x.T)), rng.dirichlet(np.ones(size)), t)
    for x, t in zip(noise, tau, strict=True)
  ]
  return jax.tree.map(lambda *x: np.stack(x), *batch)


def file_batches(directory: pathlib.Path) -> list[games.PreferenceGame]:
  """Every file at three strengths, a batch each."""
  batches = []
  for path in sorted(directory.glob('*.csv')):
    found = [games.make(sources.read_table(path).preference, tau=tau) for tau in (0.01, 0.1, 1.0)]
    batches.append(jax.tree.map(lambda *x: np.stack(x), *found))
  return batches


def one_by_one(batch):
  """The games of a batch."""
  return [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(len(batch.tau))]


def oracles(batches, advance) -> dict:
  """The fixed point's residual, and the linear program's value."""
  residuals, values, unique = [], [], 0
  for batch in batches:
    for one in one_by_one(batch):
      nash = solve.regularised_nash(one)
      target = special.softmax(np.log(one.reference) + one.preference @ nash / one.tau)
      residuals.append(np.abs(nash - target).max())
      lottery = solve.maximal_lottery(one.preference)
      values.append(abs(lottery.value - 0.5))
      unique += lottery.unique
      advance(1)
  return {
    'games': len(residuals),
    'largest_residual': float(max(residuals)),
    'largest_error_of_value': float(max(values)),
    'unique': unique,
  }


@functools.partial(jax.jit, static_argnums=(0, 2))
def _advance(solver, batch, num_steps, states, start):
  def one(game, state):
    state = solve.iterate(solver, game, state, start, num_steps, jax.random.key(0))
    return state, games.duality_gap(game, jnp.exp(state.log_policy))

  return jax.lax.map(lambda x: one(*x), (batch, states), batch_size=10)


def last_iterates(name: str, batches, advance) -> dict:
  """Steps until the gap of every game is below 1e-8, or what it is when the steps are spent."""
  limit, every = LIMITS[name]
  solver = solvers.NAMED[name]()
  steps, gaps, taus = [], [], []
  for batch in batches:
    batch = jax.tree.map(jnp.asarray, batch)
    states = jax.vmap(solver.init)(batch)
    needed, gap = np.full(len(batch.tau), limit), None
    for start in range(0, limit, every):
      states, gap = _advance(solver, batch, every, states, start)
      gap = np.asarray(gap)
      needed = np.where((gap <= GAP) & (needed == limit), start + every, needed)
      if np.all(gap <= GAP):
        break
    steps.append(needed)
    gaps.append(gap)
    taus.append(np.asarray(batch.tau))
    advance(1)
  steps, gaps, taus = map(np.concatenate, (steps, gaps, taus))
  reached = gaps <= GAP
  return {
    'reached': float(reached.mean()),
    'smallest_tau_missed': None if reached.all() else float(taus[~reached].min()),
    'largest_tau_missed': None if reached.all() else float(taus[~reached].max()),
    'largest_gap': float(gaps.max()),
    'median_steps': float(np.median(steps)),
    'steps_times_tau_median': float(np.median(steps * taus)),
    'steps_times_tau_squared_median': float(np.median(steps * taus**2)),
  }


def theorem_1(batches, num_steps: int, advance) -> dict:
  """Bounds of KL(π*, π_t) at every step, at the theorem's step size and at three constant ones."""
  worst = {}
  for schedule in ('theorem', 0.1, 0.5, 1.0):
    ratios = []
    for batch in batches:
      batch = jax.tree.map(jnp.asarray, batch)
      nash, _ = jax.vmap(lambda g: solve.fixed_point(g, 1e-12, 1_000_000))(batch)

      def one(game, nash, schedule=schedule):
        eta = None if schedule == 'theorem' else schedule / game.tau
        solver = solvers.nash_md(eta)
        state = solver.init(game)
        first = solve.kl_to(nash, state.log_policy)
        _, curve = solve.trace(solver, game, state, 0, num_steps, 1, jax.random.key(0), nash=nash)
        kl, t = jnp.append(first, curve.kl_to_nash), jnp.arange(num_steps + 1)
        if schedule == 'theorem':
          bound = 8 / (game.tau**2 * (t[1:] + 1))
          eta = 2 / (game.tau * (t[:-1] + 2))
        else:
          bound = jnp.inf
        recursion = (1 - eta * game.tau) * kl[:-1] + 2 * eta**2
        return jnp.max(kl[1:] / jnp.minimum(bound, recursion))

      ratios.append(np.asarray(jax.jit(jax.vmap(one))(batch, nash)))
      advance(1)
    worst[str(schedule)] = float(np.concatenate(ratios).max())
  return {'largest_share_of_the_bound': worst}


def rates(num_games: int, rng: np.random.Generator) -> dict:
  """KL(π*, π_k) per step beside (1 + η)^{−1}; Nash-MP by its paper's formula, EGPO by ours under the step-size map."""
  rows = []
  for tau in (0.02, 0.05, 0.1, 0.3):
    measured, differences, eta = [], [], 2 * tau
    for _ in range(num_games):
      one = random_batch(30, 1, rng)
      one = games.PreferenceGame(one.preference[0], one.reference[0], np.float64(tau))
      nash = solve.regularised_nash(one)
      solver = solvers.egpo(eta / (tau * (1 + eta)))
      _, curve = solve.run(solver, one, 400, num_records=400, nash=nash)
      kl = nash_mp_in_numpy(one, nash, eta, 400)
      differences.append(np.abs(kl - curve.kl_to_nash).max())
      last = int(np.flatnonzero(kl > 1e-12)[-1])  # Above rounding.
      measured.append((kl[last] / kl[0]) ** (1 / last))
    row = {'tau': tau, 'promised': 1 / (1 + eta), 'measured_mean': float(np.mean(measured))}
    row |= {'measured_worst': float(max(measured)), 'mp_less_egpo': float(max(differences))}
    rows.append(row)
  return {'rows': rows}


def nash_mp_in_numpy(one, nash, eta: float, num_steps: int) -> np.ndarray:
  """KL(π*, π_k) of log π_{k+½} = [log π_k + η log μ + (η/τ) P(y ≻ π_k)]/(1 + η) + c, and again from π_k."""
  log_reference = np.log(one.reference)
  log_policy, found = log_reference, []
  for _ in range(num_steps + 1):
    found.append(np.sum(nash * (np.log(nash) - log_policy)))
    ahead = log_policy
    for _ in range(2):
      payoff = one.preference @ np.exp(ahead)
      logits = (log_policy + eta * log_reference + eta / one.tau * payoff) / (1 + eta)
      ahead = special.log_softmax(logits)
    log_policy = ahead
  return np.array(found)


def last_iterate_of_nash_md(batch) -> dict:
  """Nash-MD against mirror descent in self-play, at the same step sizes 2/(τ(t + 2)): median KL(π*, π_T)."""
  result = {}
  same = lambda game, t: 2 / (game.tau * (t + 2))
  for name, solver in [('nash_md', solvers.nash_md(same)), ('self_play', solvers.self_play(same))]:
    found = []
    for one in one_by_one(batch):
      nash = solve.regularised_nash(one)
      _, curve = solve.run(solver, one, 10_000, num_records=10_000, nash=nash)
      found.append(curve.kl_to_nash[[10, 100, 1000, 10_000]])
    result[name] = np.median(found, axis=0).tolist()
  return {'steps': [10, 100, 1000, 10_000], 'median_kl': result}


def measure(files, num_random: int) -> dict:
  """All results.

  Args:
    files: batches of games from files.
    num_random: random games besides.
  """
  rng = np.random.default_rng(0)
  batches = files + [random_batch(size, num_random // len(SIZES), rng) for size in SIZES]
  result = {}
  with progress.bar('oracles', sum(len(b.tau) for b in batches)) as advance:
    result['oracles'] = oracles(batches, advance)
  with progress.bar('Theorem 1', 4 * len(batches)) as advance:
    result['theorem_1'] = theorem_1(batches, 1000, advance)
  result['rates'] = rates(20, rng)
  result['last_iterate'] = last_iterate_of_nash_md(random_batch(20, 20, rng))
  for name in LIMITS:
    with progress.bar(name, len(batches)) as advance:
      result[name] = last_iterates(name, batches, advance)
  return result


def show(result: dict) -> None:
  """The table of last iterates, and all else as it is."""
  shown = table.Table(title=f'Last iterates: gap ≤ {GAP:g} on {result["oracles"]["games"]} games')
  for column in ('solver', 'reached', 'largest gap', 'τ missed', 'median steps', 'steps · τ'):
    shown.add_column(column)
  for name in LIMITS:
    r = result[name]
    missed = '–'
    if r['reached'] < 1:
      missed = f'{r["smallest_tau_missed"]:.3f} to {r["largest_tau_missed"]:.3f}'
    cells = f'{r["reached"]:.3f}', f'{r["largest_gap"]:.1e}', missed, f'{r["median_steps"]:.0f}'
    shown.add_row(name, *cells, f'{r["steps_times_tau_median"]:.0f}')
  others = {k: result[k] for k in ('oracles', 'theorem_1', 'rates', 'last_iterate')}
  console.Console().print(shown, others)


def main() -> None:
  """Measures, writes and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--games', required=True, help='directory of CSV games')
  parser.add_argument('--num_random', type=int, default=1000)
  parser.add_argument('--output', required=True)
  args = parser.parse_args()
  start = time.monotonic()
  with jax.enable_x64(True):
    result = measure(file_batches(pathlib.Path(args.games)), args.num_random)
  result['seconds'] = time.monotonic() - start
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')
  show(result)


if __name__ == '__main__':
  main()
