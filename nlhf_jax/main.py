"""The command line: parses gin, runs what it describes. The only importer of gin.

  nlhf demo        SFT → preference and reward model → every method → win rates and a report
  nlhf train       one run
  nlhf win-rates   trained policies against each other
  nlhf sample      a trained policy's responses
  nlhf report      the report of a directory of runs

Gin flags are T5X's: --gin_file (repeatable), --gin.NAME=VALUE, --gin_search_paths.
"""

import argparse
import difflib
import pathlib
import re
import sys
from collections.abc import Sequence

_ROOT = pathlib.Path(__file__).resolve().parent.parent  # Where configs/ lies.
_DEMO = 'configs/experiments/builtin'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one sub-command; a user's mistake is one line on stderr and exit status 2."""
  args = _parse(sys.argv[1:] if argv is None else list(argv))
  try:
    args.run(args)
  except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
    if args.traceback:
      raise
    print(f'nlhf {args.command}: {_one_line(error)}', file=sys.stderr)
    return 2
  return 0


def _parse(argv: list[str]) -> argparse.Namespace:
  bindings = [a.removeprefix('--gin.') for a in argv if a.startswith('--gin.')]
  rest = [a for a in argv if not a.startswith('--gin.')]
  parser = argparse.ArgumentParser(
    prog='nlhf',
    description='Nash learning from human feedback, in JAX.',
    epilog='Every sub-command has its own --help. Errors are one line; --traceback shows where they come from.',
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for add in (_add_demo, _add_train, _add_win_rates, _add_sample, _add_report):
    add(commands)
  args = parser.parse_args(rest)
  args.bindings = bindings
  return args


def _add_demo(commands) -> None:
  parser = _command(
    commands,
    'demo',
    _demo,
    'Runs every stage of an experiment and compares the policies.',
    'Each stage is a gin file of the experiment, run in the order of its stages.txt. Finished stages are not run again; '
    'an interrupted one goes on where it stopped.',
  )
  _add_gin(parser)
  parser.add_argument(
    '--experiment', default=_DEMO, help=f'directory of gin files (default: {_DEMO})'
  )
  parser.add_argument('--run_dir', required=True, help='where the runs go, one directory each')
  parser.add_argument('--data_dir', help='directory of the data, for experiments that read files')


def _add_train(commands) -> None:
  parser = _command(
    commands,
    'train',
    _train,
    'Trains one model: a policy by any method, a preference model or a reward model.',
    'The gin files say which. A run directory that holds a run of the same configuration is resumed; one of another '
    'configuration is refused. A run that starts from another (start_from), or is judged by one, looks for it beside '
    'its own directory.',
  )
  _add_gin(parser)
  parser.add_argument('--run_dir', required=True, help='where checkpoints and metrics go')
  parser.add_argument('--data_dir', help='directory of the data; sets the macro DATA_DIR')
  parser.add_argument(
    '--dry_run', action='store_true', help='print shapes and memory, and train nothing'
  )


def _add_win_rates(commands) -> None:
  parser = _command(
    commands,
    'win-rates',
    _win_rates,
    'Compares trained policies pair by pair.',
    'Draws responses of every run to the same held-out prompts, lets the judge of the gin file compare them in both '
    'orders, and writes win_rates.csv, win_rates.json, samples.jsonl and report.html. On tasks whose responses can be '
    'enumerated it writes exact.json too: worst case, duality gap and KL, free of sampling noise.',
  )
  _add_gin(parser)
  parser.add_argument('--run_dirs', nargs='+', required=True, help='the runs; LABEL=DIR names one')
  parser.add_argument('--output_dir', required=True, help='where tables and report go')
  parser.add_argument('--data_dir', help='directory of the data; sets the macro DATA_DIR')


def _add_sample(commands) -> None:
  parser = _command(
    commands,
    'sample',
    _sample,
    'Prints responses of a trained policy.',
    'Prompts come from --prompt, from a file with one prompt a line, or from the held-out prompts of --gin_file.',
  )
  _add_gin(parser)
  parser.add_argument('--run_dir', required=True, help='the run')
  parser.add_argument('--prompt', action='append', help='a prompt (repeatable)')
  parser.add_argument('--prompts_file', help='a file with one prompt a line')
  parser.add_argument('--num_samples', type=int, default=1, help='responses to a prompt')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--data_dir', help='directory of the data; sets the macro DATA_DIR')


def _add_report(commands) -> None:
  parser = _command(
    commands,
    'report',
    _report,
    'Writes report.html of a directory of runs: one self-contained page.',
    'Reads what demo and win-rates left in the directory; what is missing is left out, and said.',
  )
  parser.add_argument('--run_dir', required=True, help='the directory')


def _command(commands, name, run, summary, details) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=summary, description=f'{summary} {details}')
  parser.set_defaults(run=run)
  parser.add_argument(
    '--traceback', action='store_true', help='show where an error comes from'
  )
  return parser


def _add_gin(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group('gin')
  group.add_argument(
    '--gin_file', action='append', default=[], help='a gin file (repeatable; the later wins)'
  )
  group.add_argument(
    '--gin_search_paths', default='', help='comma-separated directories to look for gin files in'
  )
  group.add_argument(
    '--gin.NAME', metavar='VALUE', help='a binding, such as --gin.TAU=0.01; strings need quotes inside'
  )


def _demo(args: argparse.Namespace) -> None:
  from nlhf_jax import comparison

  _find_experiment(args.experiment)
  root = pathlib.Path(args.run_dir)
  for stage in _stages(args.experiment):
    _train_stage(args, [f'{args.experiment}/{stage}.gin', *args.gin_file], root / stage)
  policies = _stages(args.experiment, 'policies.txt')
  runs = {label: root / stage for stage, label in (line.split(None, 1) for line in policies)}
  evaluation = _configured(
    args, [f'{args.experiment}/evaluation.gin', *args.gin_file], 'Evaluation'
  )
  comparison.compare(evaluation, {k: (_policy_of(d), d) for k, d in runs.items()}, root)


def _report(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  print(report.from_run_dir(pathlib.Path(args.run_dir)))
