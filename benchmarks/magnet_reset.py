"""The magnet reset: how near stages around a moving μ come to the game without regularisation, and where one stage stops.

  python benchmarks/magnet_reset.py --games DIR --output out.json

Takes the CSV games of a directory, with a uniform μ. A stage is solved exactly: π_{n+1} ∝ π_n exp(P(y ≻ π_{n+1})/τ) to 1e-12. All gaps
are those of the game without regularisation.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
from rich import console, table

from nlhf_jax.games import game as games
from nlhf_jax.games import solve, solvers, sources
from nlhf_jax.runtime import progress

GAP = 1e-6
# Below it a probability is none, and its logarithm no number.
SMALLEST = 1e-300
FLOORS = (0.1, 0.03, 0.01, 0.003)


def gap(preference: np.ndarray, policy: np.ndarray) -> float:
  """Of the game without regularisation."""
  with jax.enable_x64(True):
    return float(games.duality_gap(games.make(preference), policy))


def stages(preference: np.ndarray, tau: float, max_stages: int) -> list[float]:
  """The gap after each stage, until it is small enough."""
  policy, gaps = np.full(len(preference), 1 / len(preference)), []
  for _ in range(max_stages):
    magnet = np.maximum(policy, SMALLEST)
    policy = solve.regularised_nash(games.make(preference, magnet, tau))
    gaps.append(gap(preference, policy))
    if gaps[-1] <= GAP:
      break
  return gaps


def measure(preference: np.ndarray, tau: float, max_stages: int, num_steps: int) -> dict:
  """One game: floors, exact stages, and the solver's stages of 200 steps."""
  floors = {
    str(t): gap(preference, solve.regularised_nash(games.make(preference, tau=t))) for t in FLOORS
  }
  gaps = stages(preference, tau, max_stages)
  inexact, _ = solve.run(
    solvers.reset_magnet(tau), games.make(preference), num_steps, num_records=1
  )
  return {
    'responses': len(preference),
    'one_equilibrium': solve.maximal_lottery(preference).unique,
    'gap_of_regularised': floors,
    'stages': len(gaps),
    'gap': gaps[-1],
    'gap_of_solver': gap(preference, inexact),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--games', type=pathlib.Path, required=True, help='a directory of CSV games')
  parser.add_argument('--tau', type=float, default=0.003, help='of a stage (default: 0.003)')
  parser.add_argument('--max_stages', type=int, default=1000)
  parser.add_argument('--num_steps', type=int, default=40_000, help='of the solver reset_magnet')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  paths, found = sorted(args.games.glob('*.csv')), {}
  if not paths:
    raise SystemExit(f'No CSV games in {args.games}.')
  with progress.bar('games', len(paths)) as advance:
    for path in paths:
      preference = sources.read_table(path).preference
      found[path.stem] = measure(preference, args.tau, args.max_stages, args.num_steps)
      advance(1)
  columns = [f'gap of π*, τ = {t}' for t in FLOORS]
  shown = table.Table('game', *columns, 'exact stages', 'gap', f'gap, {args.num_steps} steps')
  for name, x in found.items():
    numbers = [*x['gap_of_regularised'].values(), x['gap'], x['gap_of_solver']]
    texts = [f'{max(n, 0):.2g}' for n in numbers]
    shown.add_row(name, *texts[:-2], str(x['stages']), *texts[-2:])
  console.Console().print(shown)
  if args.output:
    content = {'tau': args.tau, 'target': GAP, 'num_steps': args.num_steps, 'games': found}
    args.output.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  main()
