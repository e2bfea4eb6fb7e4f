"""The command line of exact games: `nlhf solve`."""

import argparse
import pathlib
from collections.abc import Callable

from nlhf_jax.arguments import Count, Decay, NonNegative, Positive, Seed
from nlhf_jax.cli import ranges


def add_solve(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf solve`."""
  parser = command(
    commands,
    'solve',
    'Solves a preference game on a table by one or several algorithms.',
    'Prints the policies, what they guarantee, how far from the exact equilibrium they are and who beats them. Games are '
    'CSV files (labels in the first row and column, P(i ≻ j) or counts of wins) or names: section_3_2:0.1, appendix_a, '
    'appendix_c_2, rock_paper_scissors:3, blotto:5,3, cyclic:9,0. Several CSV files, an .npz or a .json are the games of several '
    'voters (docs/whose_preference.md): algorithms play their mean, --aggregation chooses what is best for all.',
  )
  parser.add_argument(
    '--game', nargs='+', metavar='FILE', help='a CSV file or a name; or the games of several voters'
  )
  parser.add_argument(
    '--ballots',
    nargs='+',
    metavar='FILE',
    help='in its place, files of votes that name their voters',
  )
  parser.add_argument(
    '--aggregation',
    nargs='+',
    metavar='NAME',
    help='mean, maximin, egalitarian, proportional, personalised, mixture: solved exactly, in place of --algorithm',
  )
  ranges.add(
    parser, '--tau_opponent', Positive, help="τ' of maximin's opponent (default: that of --tau)"
  )
  parser.add_argument(
    '--voter_weights', help='CSV of voter,weight (default: those of the file, or all alike)'
  )
  parser.add_argument(
    '--algorithm',
    nargs='+',
    default=['nash_md'],
    metavar='NAME',
    help='nash_md, self_play, magnetic, mixed, best_response, nash_ema, egpo, nash_mp, omwu, fictitious_play, '
    'reset_magnet, mnpo, onpo, rspo, stackelberg (default: nash_md)',
  )
  ranges.add(parser, '--tau', NonNegative, default=0.1, help='τ, 0: none (default: 0.1)')
  parser.add_argument('--reference', help='CSV of label,probability: μ (default: uniform)')
  ranges.add(parser, '--num_steps', Count, default=10_000, help='steps (default: 10000)')
  ranges.add(parser, '--eta', Positive, help='step size η (default: what theory allows)')
  ranges.add(
    parser,
    '--beta',
    NonNegative,
    help='weight of μ in the opponent of `mixed`; or β of `proportional` (default: 0)',
  )
  ranges.add(parser, '--decay', Decay, help='of the average of `nash_ema` (default: 0.9)')
  ranges.add(
    parser,
    '--num_samples',
    Count,
    help='estimate payoffs from this many alternatives (default: exact)',
  )
  parser.add_argument(
    '--votes', action='store_true', help='with --num_samples: votes of 0 or 1 in place of P'
  )
  ranges.add(parser, '--seed', Seed, default=0, help='of the estimates')
  parser.add_argument('--output', help='JSON file for policies and curves')
  parser.add_argument('--plot', help='image of the convergence curves')


def solve(args: argparse.Namespace) -> None:
  """Runs `nlhf solve`."""
  from rich import console

  from nlhf_jax.games import aggregation, solvers, study
  from nlhf_jax.games import game as games
  from nlhf_jax.runtime import atomic, progress

  if args.votes and args.num_samples is None:
    raise ValueError('--votes needs --num_samples.')
  population = _population(args)
  if args.aggregation:
    _aggregate(args, population)
    return
  if population is None:
    table = read_table(args.game[0])
    labels = table.labels
    game = games.make(table.preference, _reference(args.reference, labels), args.tau)
  else:
    _, labels, of_voters = population
    game = aggregation.mean_game(of_voters)
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
      labels, game, algorithms, args.num_steps, payoff=payoff, seed=args.seed, advance=advance
    )
  for shown in study.tables(found):
    console.Console().print(shown)
  if args.output:
    content = {'game': ', '.join(args.ballots or args.game), **study.to_json(found)}
    atomic.write_json(pathlib.Path(args.output), content, indent=1, follow=True)
  if args.plot:
    path = pathlib.Path(args.plot)
    with atomic.replaced(path, 'wb', follow=True) as file:
      study.plot(found).savefig(file, format=path.suffix[1:] or None, dpi=150)


def _aggregate(args: argparse.Namespace, population) -> None:
  """Solves a game of several voters by what is to be best for all; one voter's where there are no others."""
  from rich import console

  from nlhf_jax.games import aggregation, population_study
  from nlhf_jax.runtime import atomic

  if args.plot or args.num_samples is not None:
    raise ValueError('--aggregation is solved exactly: leave out --plot and --num_samples.')
  if population is None:
    table = read_table(args.game[0])
    reference = _reference(args.reference, table.labels)
    game = aggregation.make([table.preference], None, reference, args.tau)
    population = ('all',), table.labels, game
  voters, labels, game = population
  settings = {'beta': args.beta or 0.0, 'tau_opponent': args.tau_opponent}
  found = population_study.run(voters, labels, game, args.aggregation, **settings)
  for shown in population_study.tables(found):
    console.Console().print(shown)
  if args.output:
    content = {
      'game': ', '.join(args.ballots or args.game),
      **population_study.to_json(found),
    }
    atomic.write_json(pathlib.Path(args.output), content, indent=1, follow=True)


def _population(args: argparse.Namespace):
  """Names of voters, labels and their game; None where there is one game of all."""
  import logging

  from nlhf_jax.games import aggregation, voters

  if bool(args.game) == bool(args.ballots):
    raise ValueError('Give one of --game and --ballots.')
  if args.ballots:
    found = _of_ballots(args.ballots)
  elif voters.is_population(args.game):
    found = voters.read(args.game)
  elif args.voter_weights:
    raise ValueError('--voter_weights needs the games of several voters.')
  else:
    return None
  found, gaps = voters.filled(found)
  if gaps:
    logging.warning(
      '%d pairs of %d voters were not compared: they get the mean of those who did.',
      gaps,
      len(found.names),
    )
  weights = _column(args.voter_weights, found.names, 'weight', '--voter_weights')
  weights = found.weights if weights is None else weights
  reference = _reference(args.reference, found.labels)
  game = aggregation.make(found.preference, weights, reference, args.tau, found.names)
  return found.names, found.labels, game


def _of_ballots(files: list[str]):
  """Voters and the shares of their own votes."""
  import numpy as np

  from nlhf_jax.games import sources, voters
  from nlhf_jax.votes import readers, table

  votes = table.columns(readers.votes_of_files(files))
  names, wins = table.wins_of_voters(votes)
  shares = [sources.from_wins(own, votes.labels).preference for own in wins]
  return voters.Voters(names, votes.labels, np.stack(shares))


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
  return _column(path, labels, 'probability', '--reference')


def _column(path: str | None, labels, what: str, flag: str):
  """A number for each label, from a CSV of label,number."""
  if path is None:
    return None
  import csv
  import io

  from nlhf_jax import untrusted

  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'No file {path}: name a CSV of label,{what} with {flag}.')
  try:
    lines = list(csv.reader(io.StringIO(untrusted.read_text(path), newline='')))
  except csv.Error as error:
    raise ValueError(f'{path}: no CSV ({error}).') from None
  pairs = [line[:2] for line in lines if len(line) >= 2]
  rows = dict(pairs)
  for label in labels:
    if label not in rows:
      raise ValueError(f'{path} has no {what} for {untrusted.quoted(label)}.')
    if sum(name == label for name, _ in pairs) > 1:
      raise ValueError(f'{path} has two lines for {untrusted.quoted(label)}: leave one.')
  try:
    return [float(rows[label]) for label in labels]
  except ValueError as error:
    raise ValueError(f'{path}: {untrusted.message(str(error))}.') from error
