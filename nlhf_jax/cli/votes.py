"""The command line of votes: `nlhf rank`."""

import argparse
import pathlib
from collections.abc import Callable

from nlhf_jax.cli import games


def add_rank(commands, command: Callable[..., argparse.ArgumentParser]) -> None:
  """Adds `nlhf rank`."""
  parser = command(
    commands,
    'rank',
    'Ranks alternatives by maximal lottery, Borda, Elo and Copeland side by side.',
    'A CSV of counts gives bootstrap intervals; one of shares, such as win_rates.csv, gives none.',
  )
  parser.add_argument('--game', required=True, help='a CSV file or a name, as for `nlhf solve`')
  parser.add_argument('--num_resamples', type=int, default=200, help='of the bootstrap')
  parser.add_argument('--seed', type=int, default=0, help='of the bootstrap')
  parser.add_argument('--output', help='JSON file for the scores')


def rank(args: argparse.Namespace) -> None:
  """Runs `nlhf rank`."""
  from rich import console, markup
  from rich import table as rich_table

  from nlhf_jax.games import study
  from nlhf_jax.runtime import progress
  from nlhf_jax.votes import ranking

  table = games.read_table(args.game)
  with progress.bar('resamples', args.num_resamples if table.wins is not None else 0) as advance:
    ranks = ranking.rank(table, num_resamples=args.num_resamples, seed=args.seed, advance=advance)
  winner = ranking.condorcet_winner(table.preference)
  smith = ranking.smith_set(table.preference)
  summary = {
    'condorcet_winner': None if winner is None else table.labels[winner],
    'smith_set': [label for label, inside in zip(table.labels, smith, strict=True) if inside],
    'num_cyclic_triples': ranking.num_cyclic_triples(table.preference),
  }
  shown = rich_table.Table(title=_summary_in_words(summary))
  shown.add_column('alternative')
  for name in ranks:
    shown.add_column(name.replace('_', ' '), justify='right')
  first = ranks['maximal_lottery'].scores + 1e-6 * ranks['borda'].scores
  for i in sorted(range(len(table.labels)), key=lambda i: -first[i]):
    cells = [_cell(name, result, i) for name, result in ranks.items()]
    shown.add_row(markup.escape(table.labels[i]), *cells)
  console.Console().print(shown)
  if args.output:
    scores = {
      name: {k: None if v is None else v.tolist() for k, v in result._asdict().items()}
      for name, result in ranks.items()
    }
    content = {'game': args.game, 'labels': list(table.labels), **summary, 'ranks': scores}
    study.write_json(pathlib.Path(args.output), content)


def _summary_in_words(summary) -> str:
  winner = summary['condorcet_winner']
  who = f'{winner} beats all others' if winner else 'no one beats all others'
  cycles = summary['num_cyclic_triples']
  return f'{who}; {cycles} cyclic triple{"" if cycles == 1 else "s"}; Smith set of {len(summary["smith_set"])}'


def _cell(name: str, result, i: int) -> str:
  digits = 0 if name == 'elo' else 3
  text = f'{result.scores[i]:.{digits}f}'
  if result.low is None:
    return text
  return f'{text} [{result.low[i]:.{digits}f}, {result.high[i]:.{digits}f}]'
