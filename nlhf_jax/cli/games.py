"""The command line of exact games: `nlhf solve`."""

import argparse
import pathlib
from collections.abc import Callable


def add_solve(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf solve`."""
  parser = command(
    commands,
    'solve',
    'Solves a preference game on a table by one or several algorithms.',
    'Prints the policies, what they guarantee, how far from the exact equilibrium they are and who beats them. Games are '
    'CSV files (labels in the first row and column, P(i ≻ j) or counts of wins) or names: section_3_2:0.1, appendix_a, '
    'appendix_c_2, rock_paper_scissors:3, blotto:5,3, cyclic:9,0.',
  )
  parser.add_argument('--game', required=True, help='a CSV file or a name')
  parser.add_argument(
    '--algorithm',
    nargs='+',
    default=['nash_md'],
    metavar='NAME',
    help='nash_md, self_play, magnetic, mixed, best_response, nash_ema, egpo, nash_mp, omwu, fictitious_play, '
    'reset_magnet, mnpo, onpo, rspo, stackelberg (default: nash_md)',
  )
  parser.add_argument('--tau', type=float, default=0.1, help='τ, 0: none (default: 0.1)')
  parser.add_argument('--reference', help='CSV of label,probability: μ (default: uniform)')
  parser.add_argument('--num_steps', type=int, default=10_000, help='steps (default: 10000)')
  parser.add_argument('--eta', type=float, help='step size η (default: what theory allows)')
  parser.add_argument('--beta', type=float, help='weight of μ in the opponent of `mixed`')
  parser.add_argument('--decay', type=float, help='of the average of `nash_ema` (default: 0.9)')
  parser.add_argument(
    '--num_samples', type=int, help='estimate payoffs from this many alternatives (default: exact)'
  )
  parser.add_argument(
    '--votes', action='store_true', help='with --num_samples: votes of 0 or 1 in place of P'
  )
  parser.add_argument('--seed', type=int, default=0, help='of the estimates')
  parser.add_argument('--output', help='JSON file for policies and curves')
  parser.add_argument('--plot', help='image of the convergence curves')


def solve(args: argparse.Namespace) -> None:
  """Runs `nlhf solve`."""
  from rich import console

  from nlhf_jax.games import game as games
  from nlhf_jax.games import solvers, study
  from nlhf_jax.runtime import atomic, progress

  if args.votes and args.num_samples is None:
    raise ValueError('--votes needs --num_samples.')
  if args.num_samples is not None and args.num_samples < 1:
    raise ValueError(f'--num_samples must be at least 1, got {args.num_samples}.')
  table = read_table(args.game)
  game = games.make(table.preference, _reference(args.reference, table.labels), args.tau)
  # A setting is for the solvers that have it; with one solver, it must be that one's.
  settings = {'eta': args.eta, 'beta': args.beta, 'decay': args.decay}
  algorithms = {
    name: solvers.named(name, **_taken(name, settings, len(args.algorithm) > 1))
    for name in args.algorithm
  }
  exact = args.num_samples is None
  payoff = solvers.exact if exact else solvers.sampled(args.num_samples, args.votes)
  with progress.bar('steps', args.num_steps * len(algorithms)) as advance:
    found = study.run(
      table.labels, game, algorithms, args.num_steps, payoff=payoff, seed=args.seed, advance=advance
    )
  for shown in study.tables(found):
    console.Console().print(shown)
  if args.output:
    content = {'game': args.game, **study.to_json(found)}
    atomic.write_json(pathlib.Path(args.output), content, indent=1)
  if args.plot:
    path = pathlib.Path(args.plot)
    with atomic.replaced(path, 'wb') as file:
      study.plot(found).savefig(file, format=path.suffix[1:] or None, dpi=150)


def _taken(name: str, settings: dict[str, float | None], several: bool) -> dict[str, float | None]:
  from nlhf_jax.games import solvers

  if not several or name not in solvers.NAMED:
    return settings
  takes = solvers.settings(name)
  return {key: value for key, value in settings.items() if key in takes}


def read_table(name: str):
  """A game by its name, or from a CSV file."""
  from nlhf_jax.games import sources

  return sources.named(name) or sources.read_table(pathlib.Path(name))


def _reference(path: str | None, labels):
  """μ from a CSV of label,probability."""
  if path is None:
    return None
  import csv

  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'No file {path}: name a CSV of label,probability with --reference.')
  with open(path, newline='') as file:
    rows = dict(line[:2] for line in csv.reader(file) if len(line) >= 2)
  missing = [label for label in labels if label not in rows]
  if missing:
    raise ValueError(f'{path} has no probability for {missing[0]!r}.')
  try:
    return [float(rows[label]) for label in labels]
  except ValueError as error:
    raise ValueError(f'{path}: {error}.') from error
