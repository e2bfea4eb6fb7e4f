"""The command line of votes: `nlhf rank`, `nlhf voters`."""

import argparse
import pathlib
from collections.abc import Callable

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero, Seed, Several
from nlhf_jax.cli import ranges


def add_rank(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf rank`."""
  parser = command(
    commands,
    'rank',
    'Ranks alternatives from votes, and says how sure the ranking is.',
    'Votes: JSONL, JSON, CSV, Parquet or PrefLib of any public format (docs/votes.md), or a CSV matrix of counts. A matrix of '
    'shares, such as win_rates.csv, has no intervals.',
  )
  parser.add_argument(
    '--votes',
    '--game',
    dest='votes',
    nargs='+',
    required=True,
    help='files of votes; or one matrix, or a game by name, as for `nlhf solve`',
  )
  _add_reading(parser)
  parser.add_argument(
    '--ties',
    choices=['davidson', 'rao_kupper', 'half', 'drop'],
    default='davidson',
    help='what a tie is to scores (default: davidson, an outcome of its own)',
  )
  parser.add_argument(
    '--both_bad',
    choices=['verdict', 'tie', 'drop'],
    default='verdict',
    help='what "both bad" is to scores (default: verdict, an outcome of its own)',
  )
  parser.add_argument(
    '--features',
    nargs='*',
    metavar='NAME',
    help='features held constant, such as tokens (default: all that the votes have)',
  )
  parser.add_argument(
    '--ignore_order',
    action='store_true',
    help='do not hold constant who was shown first, as where a judge always prefers the same side',
  )
  ranges.add(parser, '--num_resamples', Count, default=200, help='of the bootstrap')
  ranges.add(
    parser,
    '--num_simulations',
    CountOrZero,
    default=199,
    help='of the test for circles; 0: no test',
  )
  ranges.add(parser, '--seed', Seed, default=0, help='of both')
  parser.add_argument('--output', help='JSON file for all of it')
  parser.add_argument('--report', help='HTML file for a page with plots')


def _add_reading(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--format', help='of the votes (default: told from the first row)')
  parser.add_argument(
    '--skip_malformed', action='store_true', help='pass malformed rows over and count them'
  )


def add_voters(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf voters`."""
  parser = command(
    commands,
    'voters',
    'Tells whose votes differ, by what, and how soon a new voter is known.',
    'Votes: as of `nlhf rank`, with voters. Tastes are for the features that the votes have (x), or else for whose responses are '
    'compared (a, b). Every voter is unseen in turn, a fold of them at a time.',
  )
  parser.add_argument('--votes', nargs='+', required=True, help='files of votes that say who voted')
  _add_reading(parser)
  parser.add_argument(
    '--features', nargs='+', metavar='NAME', help='of the votes that tastes are for (default: all)'
  )
  parser.add_argument(
    '--alternatives',
    action='store_true',
    help='tastes are for whose responses are compared, though the votes have features',
  )
  ranges.add(
    parser, '--max_voters', Count, help='keep those with the most votes only, as of very many'
  )
  ranges.add(parser, '--num_folds', Several, default=5, help='of voters')
  ranges.add(parser, '--seed', Seed, default=0, help='of folds and of the order of votes')
  parser.add_argument('--output', help='JSON file for all of it, with every voter')


def voters(args: argparse.Namespace) -> None:
  """Runs `nlhf voters`."""
  from nlhf_jax.evaluation import report, voter_accuracy, voter_report
  from nlhf_jax.runtime import atomic

  votes, x_names = _taste_votes(args)
  found = voter_accuracy.measure(votes, x_names, num_folds=args.num_folds, seed=args.seed)
  out = report.console()
  for sentence in voter_report.sentences(found):
    out.print(untrusted.as_text(f'- {sentence}'))
  out.print(voter_report.accuracy_table(found))
  out.print(voter_report.calibration_table(found))
  if args.output:
    content = {'source': ', '.join(args.votes), 'features': list(x_names)} | found
    atomic.write_json(pathlib.Path(args.output), content, indent=1, follow=True)


def _taste_votes(args: argparse.Namespace):
  """Votes on features, and the features' names; each is divided by its root mean square."""
  from nlhf_jax.votes import readers, table, tastes

  rows = readers.votes_of_files(args.votes, args.format, skip_malformed=args.skip_malformed)
  votes = table.columns(rows)
  names = votes.x_names
  if args.features and (args.alternatives or not names):
    reason = (
      '--alternatives asks for none' if args.alternatives else 'the votes have none (field x)'
    )
    raise ValueError(f'--features {" ".join(args.features)}: {reason}: leave --features out.')
  if args.alternatives or not names:
    votes, names = votes._replace(x=votes.x[:, :0]), votes.labels
  elif args.features:
    votes, names = table.with_features(votes, args.features), tuple(args.features)
  return tastes.scaled(tastes.from_table(votes, args.max_voters)), names


def rank(args: argparse.Namespace) -> None:
  """Runs `nlhf rank`."""
  from nlhf_jax.evaluation import ranking_report, report
  from nlhf_jax.runtime import atomic

  found = _ranking(args)
  out = report.console()
  for sentence in ranking_report.sentences(found):
    out.print(untrusted.as_text(f'- {sentence}'))
  out.print(ranking_report.table(found))
  if judges := ranking_report.judges_table(found):
    out.print(judges)
  if voters := ranking_report.voters_table(found):
    out.print(voters)
  source = ', '.join(args.votes)
  if args.output:
    content = ranking_report.to_json(found, source)
    atomic.write_json(pathlib.Path(args.output), content, indent=1, follow=True)
  if args.report:
    ranking_report.write_page(found, source, pathlib.Path(args.report))
    out.print(untrusted.as_text(f'Report: {args.report}'))


def _ranking(args: argparse.Namespace):
  from nlhf_jax.games import sources
  from nlhf_jax.runtime import progress
  from nlhf_jax.votes import likelihood, ranking

  votes = _votes(args)
  if isinstance(votes, sources.Table):
    return ranking.of_shares(votes)
  features = None if args.features is None else tuple(args.features)
  model = likelihood.Model(args.ties, args.both_bad, not args.ignore_order, features)
  total = args.num_resamples + args.num_simulations
  with progress.bar('resamples', total) as advance:
    return ranking.of_votes(
      votes,
      model,
      num_resamples=args.num_resamples,
      num_simulations=args.num_simulations,
      seed=args.seed,
      advance=advance,
    )


def _votes(args: argparse.Namespace):
  """The votes of all files, or a table of shares."""
  from nlhf_jax.games import sources
  from nlhf_jax.votes import readers, table

  if len(args.votes) == 1 and (game := sources.named(args.votes[0])) is not None:
    return game
  paths = [pathlib.Path(path) for path in args.votes]
  if len(paths) == 1 and args.format is None and sources.is_matrix(paths[0]):
    game = sources.read_table(paths[0])
    return game if game.wins is None else table.from_wins(game.wins, game.labels)
  rows = readers.votes_of_files(paths, args.format, skip_malformed=args.skip_malformed)
  return table.columns(rows)
