"""Flags of the responses that people (`nlhf annotate`) and LLMs (`nlhf judge`) compare: the same of both."""

import argparse
import pathlib

from nlhf_jax.votes.responses import Pair


def add(parser: argparse.ArgumentParser) -> None:
  """Adds --responses and --run_dirs."""
  parser.add_argument(
    '--responses',
    nargs='+',
    default=[],
    metavar='LABEL=FILE',
    help='rows of {prompt, response} and perhaps an id, one file or several for each label; or FILE, a samples.jsonl',
  )
  parser.add_argument(
    '--run_dirs',
    nargs='+',
    default=[],
    metavar='DIR',
    help='directories that hold a samples.jsonl, such as the --output_dir of `nlhf win-rates`',
  )


def pairs(args: argparse.Namespace) -> list[Pair]:
  """What is compared.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed, or there is nothing to compare.
  """
  from nlhf_jax.votes import responses

  samples = [str(pathlib.Path(directory, 'samples.jsonl')) for directory in args.run_dirs]
  if not (args.responses or samples):
    raise ValueError('Nothing to compare: name responses with --responses or --run_dirs.')
  return responses.pairs(responses.read([*args.responses, *samples]))
