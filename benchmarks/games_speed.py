"""Speed of `games`: against NumPy, against Nashpy and OpenSpiel, and against the machine's memory.

  python benchmarks/games_speed.py --output out.json

Everything is measured in one run, in double precision; times are the best of several. Nashpy and OpenSpiel are
installed from the package index into an environment of their own (benchmarks/.venv-games).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import environments
import jax
import jax.numpy as jnp
import numpy as np
from rich import console, table
from scipy import special
from timing import seconds

from nlhf_jax.games import game as games
from nlhf_jax.games import solve, solvers

PEERS = ('nashpy==0.0.43', 'open_spiel==2.0.2', 'cvxpy', 'ecos')
ETA = 0.5


def preferences(rng: np.random.Generator, *shape: int) -> np.ndarray:
  """Random games, [..., Y, Y]."""
  noise = rng.normal(size=shape).astype(np.float32)
  return special.expit(2 * (noise - noise.swapaxes(-1, -2))).astype(np.float64)


def numpy_nash_md(preference, tau: float, num_steps: int) -> np.ndarray:
  """The same updates; games along the leading axis."""
  size = preference.shape[-1]
  log_reference = np.full(preference.shape[:-1], -np.log(size))
  log_policy = log_reference
  for _ in range(num_steps):
    mixed = special.softmax((1 - ETA * tau) * log_policy + ETA * tau * log_reference, axis=-1)
    payoff = np.matmul(preference, mixed[..., None])[..., 0]
    logits = (1 - ETA * tau) * log_policy + ETA * tau * log_reference + ETA * payoff
    log_policy = special.log_softmax(logits, axis=-1)
  return np.exp(log_policy)


def numpy_nash_mp(preference, tau: float, gap: float) -> int:
  """Steps of Nash-MP until the duality gap is small enough."""
  size = preference.shape[-1]
  log_reference = np.full(size, -np.log(size))
  log_policy, eta, steps = log_reference, 2 * tau, 0
  while True:
    for _ in range(10):
      ahead = log_policy
      for _ in range(2):
        payoff = preference @ np.exp(ahead)
        logits = (log_policy + eta * log_reference + eta / tau * payoff) / (1 + eta)
        ahead = special.log_softmax(logits)
      log_policy = ahead
    steps += 10
    policy = np.exp(log_policy)
    kl = np.sum(policy * (log_policy - log_reference))
    best = tau * special.logsumexp(log_reference + preference @ policy / tau) + tau * kl
    if 2 * best - 1 <= gap:
      return steps


def our_nash_mp(game, gap: float):
  """The same, compiled."""
  solver = solvers.nash_mp()

  def unfinished(carry):
    return carry[1] > gap

  def advance(carry):
    state, _ = carry
    state = solve.iterate(solver, game, state, 0, 10, jax.random.key(0))
    return state, games.duality_gap(game, jnp.exp(state.log_policy))

  start = solver.init(game), jnp.asarray(jnp.inf, jnp.float64)
  return jax.lax.while_loop(unfinished, advance, start)[1]


def batch_of_games(rng) -> dict:
  """1,000 games of 100 responses, Nash-MD, a step of all of them."""
  tau, num_steps = 0.1, 200
  preference = preferences(rng, 1000, 100, 100)
  batch = games.PreferenceGame(
    jnp.asarray(preference), jnp.full((1000, 100), 0.01), jnp.full(1000, tau)
  )
  solver = solvers.nash_md(ETA)

  def one(game):
    state = solve.iterate(solver, game, solver.init(game), 0, num_steps, jax.random.key(0))
    return jnp.exp(state.log_policy)

  vmapped = jax.jit(jax.vmap(one))
  mapped = jax.jit(lambda batch: jax.lax.map(one, batch, batch_size=10))
  theirs = numpy_nash_md(preference, tau, num_steps)
  np.testing.assert_allclose(mapped(batch), theirs, atol=1e-12)
  return {
    'vmap': seconds(lambda: vmapped(batch).block_until_ready()) / num_steps,
    'map, 10 games at a time': seconds(lambda: mapped(batch).block_until_ready()) / num_steps,
    'numpy': seconds(lambda: numpy_nash_md(preference, tau, num_steps)) / num_steps,
  }


def large_game(rng) -> dict:
  """One game of 5,000 responses: a step, the pass over memory that it needs, and the time to a gap of 1e-6."""
  tau, num_steps = 0.1, 50
  preference = preferences(rng, 5000, 5000)
  game = games.PreferenceGame(
    jnp.asarray(preference), jnp.full(5000, 1 / 5000), jnp.asarray(tau, jnp.float64)
  )
  solver = solvers.nash_md(ETA)
  run = jax.jit(lambda g: solve.iterate(solver, g, solver.init(g), 0, num_steps, jax.random.key(0)))
  policy = np.full(5000, 1 / 5000)
  total = jax.jit(jnp.sum)
  passes = {
    'numpy matrix-vector product': seconds(lambda: preference @ policy, 10),
    'sum of the matrix': seconds(lambda: total(game.preference).block_until_ready(), 10),
  }
  solved = jax.jit(lambda g: our_nash_mp(g, 1e-6))
  return {
    'step': seconds(lambda: run(game).log_policy.block_until_ready()) / num_steps,
    'numpy step': seconds(lambda: numpy_nash_md(preference, tau, 20)) / 20,
    'memory': passes,
    'to a gap of 1e-6': seconds(lambda: solved(game).block_until_ready()),
    'numpy to a gap of 1e-6': seconds(lambda: numpy_nash_mp(preference, tau, 1e-6), 1),
  }


def equilibria(rng) -> dict:
  """The maximal lottery of one game of 200 responses, and steps of learning, beside the peers'."""
  preference = preferences(rng, 200, 200)
  game = games.make(preference)
  learner = solvers.fictitious_play()
  run = jax.jit(lambda g: solve.iterate(learner, g, learner.init(g), 0, 1000, jax.random.key(0)))
  ours = {
    'linear_program': seconds(lambda: solve.maximal_lottery(preference)),
    'linear_program_value': solve.maximal_lottery(preference).value - 0.5,
    'fictitious_play_step': seconds(lambda: run(game).log_policy.block_until_ready()) / 1000,
  }
  return {'ours': ours} | _peers(preference)


def _peers(preference: np.ndarray) -> dict:
  here = pathlib.Path(__file__).parent
  python = environments.python_of('.venv-games', PEERS)
  with tempfile.TemporaryDirectory() as scratch:
    game, out = pathlib.Path(scratch) / 'game.npy', pathlib.Path(scratch) / 'out.json'
    np.save(game, preference)
    command = [python, here / 'games_peers.py', game, out]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(out.read_text())


def main() -> None:
  """Measures, writes the seconds, and prints ratios."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--output', required=True)
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    result = {'batch': batch_of_games(rng), 'large': large_game(rng), 'peers': equilibria(rng)}
  show(result)
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


def show(result: dict) -> None:
  """The table of ratios."""
  batch, large, peers = result['batch'], result['large'], result['peers']
  memory = min(large['memory'].values())
  shown = table.Table(title='Games: seconds, and ratios of the same run')
  for column in ('what', 'ours', 'theirs', 'theirs / ours'):
    shown.add_column(column)

  def row(what, ours, theirs):
    shown.add_row(what, f'{ours:.2e}', f'{theirs:.2e}', f'{theirs / ours:.2f}')

  best = min(batch['vmap'], batch['map, 10 games at a time'])
  row('Nash-MD, a step of 1,000 games of 100, NumPy', best, batch['numpy'])
  row('Nash-MD, a step of one game of 5,000, NumPy', large['step'], large['numpy step'])
  row('the same, one pass over the matrix', large['step'], memory)
  row(
    'gap of 1e-6, game of 5,000, NumPy', large['to a gap of 1e-6'], large['numpy to a gap of 1e-6']
  )
  ours = peers['ours']
  for peer in ('nashpy', 'open_spiel'):
    row(f'linear program, 200, {peer}', ours['linear_program'], peers[peer]['linear_program'])
  steps = peers['nashpy']['fictitious_play_step'], peers['open_spiel']['regret_matching_step']
  row('fictitious play, a step of 200, Nashpy', ours['fictitious_play_step'], steps[0])
  row("the same, a step of OpenSpiel's regret matching", ours['fictitious_play_step'], steps[1])
  console.Console().print(shown)


if __name__ == '__main__':
  main()
