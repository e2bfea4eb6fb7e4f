"""The command line of votes on what policies write: `nlhf collect`."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

from nlhf_jax.cli import described


def add(
  commands,
  command: Callable[..., argparse.ArgumentParser],
  add_run: Callable[[argparse.ArgumentParser], None],
) -> None:
  """Adds `nlhf collect`."""
  parser = command(
    commands,
    'collect',
    'Lets a judge vote on what policies write: comparisons for a preference model.',
    'Draws responses of the runs that the gin file names, which lie beside --run_dir, pairs them at random, asks the judge, and '
    'writes the votes, a file for each split. A collection that was stopped goes on with the batch that it was at; a directory '
    'of another one is refused.',
  )
  add_run(parser)
  parser.add_argument('--run_dir', required=True, help='where the votes go')


def collect(args: argparse.Namespace) -> None:
  """Runs `nlhf collect`."""
  run_dir = pathlib.Path(args.run_dir)
  collect_votes(lambda: described.configure_run(args, run_dir.parent, 'collect'), run_dir)


def collect_votes(configure: Callable[[], Any], run_dir: pathlib.Path) -> None:
  """Collects what is described; the runs that it names, and a learned judge's, lie beside the directory."""
  from nlhf_jax.cli import gin_config
  from nlhf_jax.evaluation import collection
  from nlhf_jax.training import resolve

  runs = configure().value.runs
  contestants = [described.contestant(str(run_dir.parent / run)) for run in runs]
  # Once more: each run was read by its own configuration.
  configured = configure()
  with gin_config.naming_flags(configured):
    judge, weights = resolve.bind_and_identify(configured.value.judge, run_dir.parent)
    written = collection.collect(
      configured.value._replace(judge=judge),
      contestants,
      run_dir,
      configured.fields,
      configured.text,
      weights,
    )
  for split, number in written.items():
    print(f'Written: {run_dir / split}.jsonl, {number:,} votes')
