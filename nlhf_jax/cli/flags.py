"""What the command line takes: one parser for each sub-command. Gin flags are T5X's."""

import argparse
import re

from nlhf_jax.arguments import Count, CountOrZero, Seed
from nlhf_jax.cli import annotate, collect, exploit, games, judge, personalise, ranges, votes

# The experiment that `nlhf demo` runs if none is named.
DEMO = 'builtin'


def parse(argv: list[str]) -> argparse.Namespace:
  """What was asked for: the sub-command, its flags, and gin's bindings as NAME=VALUE.

  Args:
    argv: without the program's name.
  """
  bindings = [a.removeprefix('--gin.') for a in argv if a.startswith('--gin.')]
  rest = [a for a in argv if not a.startswith('--gin.')]
  # Flags may be written with hyphens or underscores.
  args = make_parser().parse_args([re.sub(r'^--[\w-]+', _underscored, a) for a in rest])
  args.bindings = bindings
  return args


def make_parser() -> argparse.ArgumentParser:
  """The program's, with every sub-command."""
  parser = argparse.ArgumentParser(
    prog='nlhf',
    description='Nash learning from human feedback, in JAX.',
    epilog='Every sub-command has its own --help. Errors are one line; --traceback shows where they come from.',
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for add in (_add_demo, _add_train, _add_diagnose, _add_plan):
    add(commands)
  collect.add(commands, _command, _add_run)
  _add_win_rates(commands)
  exploit.add(commands, _command, _add_gin)
  for add in (_add_sample, _add_report, _add_export, _add_import, _add_tokenize):
    add(commands)
  games.add_solve(commands, _command)
  votes.add_rank(commands, _command)
  votes.add_voters(commands, _command)
  annotate.add(commands, _command)
  judge.add_judge(commands, _command)
  personalise.add(commands, _command)
  return parser


def _underscored(match: re.Match) -> str:
  return '--' + match[0][2:].replace('-', '_')


def _add_demo(commands) -> None:
  parser = _command(
    commands,
    'demo',
    'Runs every stage of an experiment and compares the policies.',
    'Each stage is a gin file of the experiment, run in the order of its stages.txt. Finished stages are not run again; '
    'an interrupted one goes on where it stopped.',
  )
  _add_gin(parser)
  parser.add_argument(
    '--experiment', default=DEMO, help=f'a name, or a directory of gin files (default: {DEMO})'
  )
  parser.add_argument('--run_dir', required=True, help='where the runs go, one directory each')


def _add_train(commands) -> None:
  parser = _command(
    commands,
    'train',
    'Trains one model: a policy by any method, a preference model or a reward model.',
    'An experiment or gin files describe it. A run directory that holds a run of the same configuration is resumed; one of '
    'another configuration is refused. SIGTERM makes it save and end. A run that starts from another (start_from), or is '
    'judged by one, looks for it beside its own directory.',
  )
  _add_run(parser)
  parser.add_argument('--run_dir', required=True, help='where checkpoints and metrics go')
  parser.add_argument(
    '--dry_run', action='store_true', help='print shapes and memory, and train nothing'
  )
  group = parser.add_argument_group(
    'many processes', 'Each is started with the same flags, and sees the same --run_dir.'
  )
  group.add_argument(
    '--multihost',
    action='store_true',
    help='join the others by what the cluster tells (TPU pods, SLURM, Open MPI, GKE)',
  )
  group.add_argument('--coordinator_address', help='HOST:PORT of the first process')
  ranges.add(group, '--process_count', Count)
  ranges.add(group, '--process_index', CountOrZero, help='from 0')


def _add_diagnose(commands) -> None:
  parser = _command(
    commands,
    'diagnose',
    'Tells what keeps a trained policy from its fixed point: judge, estimator, step, data or network.',
    'Trains the run again with every obstacle out of the way, with each alone out of the way, and with each alone put back, and '
    'measures the policies exactly. For tasks whose responses can be enumerated. Trials that are done are not trained again.',
  )
  parser.add_argument('--run_dir', required=True, help='the run; those that it names lie beside it')
  parser.add_argument('--output_dir', help='where the trials go (default: diagnosis in the run)')
  _add_binding(parser.add_argument_group('gin'))


def _add_plan(commands) -> None:
  parser = _command(
    commands,
    'plan',
    'Tells what a run would take on a mesh of devices that is not here.',
    'Compiles a step for simulated devices and prints, for each of them: memory, operations, bytes sent by kind '
    'and axes of the mesh, and the least time that these imply on named chips. Reads neither data nor weights, but gin files may ask where they would be.',
  )
  _add_run(parser)
  parser.add_argument(
    '--mesh', default='', help='such as data=1,fsdp=8,tensor=4 (default: 1 of what is not named)'
  )
  parser.add_argument(
    '--chips',
    nargs='+',
    choices=['v5e', 'v5p', 'h100', 'h200'],
    default=['v5e', 'v5p', 'h100', 'h200'],
    help='whose limits to tell (default: all)',
  )
  parser.add_argument('--output', help='a file for the same in JSON')


def _add_win_rates(commands) -> None:
  parser = _command(
    commands,
    'win-rates',
    'Compares trained policies pair by pair.',
    'Draws responses of every run to the same held-out prompts, lets the judge of the evaluation compare them in both '
    'orders, and writes votes.jsonl, win_rates.csv, win_rates.json, samples.jsonl and report.html. On tasks whose responses can be '
    'enumerated it writes exact.json too: worst case, duality gap and KL, free of sampling noise.',
  )
  _add_evaluation(parser)
  parser.add_argument(
    '--run_dirs',
    nargs='+',
    required=True,
    help='the runs; LABEL=DIR names one, DIR:average is its averaged weights',
  )
  parser.add_argument(
    '--output_dir',
    required=True,
    help='where tables and report go; a learned judge is looked for beside the first run',
  )


def _add_sample(commands) -> None:
  parser = _command(
    commands,
    'sample',
    'Prints responses of a trained policy, or of the pre-trained one that the gin files start from.',
    'Prompts come from --prompt, from a file with one prompt a line, or from the held-out prompts of the evaluation.',
  )
  _add_evaluation(parser)
  parser.add_argument('--run_dir', help='the run; without it, the pre-trained model')
  parser.add_argument('--prompt', action='append', help='a prompt (repeatable)')
  parser.add_argument('--prompts_file', help='a file with one prompt a line')
  ranges.add(parser, '--num_samples', Count, default=1, help='responses to a prompt')
  ranges.add(parser, '--seed', Seed, default=0)


def _add_report(commands) -> None:
  parser = _command(
    commands,
    'report',
    'Writes report.html of a directory of runs: one self-contained page.',
    'Reads what demo and win-rates left in the directory; what is missing is left out, and named.',
  )
  parser.add_argument('--run_dir', required=True, help='the directory')


def _add_export(commands) -> None:
  parser = _command(
    commands,
    'export',
    'Writes a trained run in the format of another tool.',
    'hf: config.json and safetensors, which transformers loads, adapters merged; t5x: a checkpoint_N that T5X resumes '
    'from; peft: the adapters alone.',
  )
  parser.add_argument('--run_dir', required=True, help='the run')
  parser.add_argument(
    '--output_dir', required=True, help='where to; must not exist (t5x: gets a checkpoint_N)'
  )
  parser.add_argument('--to', choices=['hf', 't5x', 'peft'], default='hf', help='default: hf')
  parser.add_argument('--dtype', choices=['float32', 'bfloat16'], help='of the weights (hf)')
  parser.add_argument(
    '--base_model', help='model that the weights came from; hf: its tokenizer goes along'
  )


def _add_import(commands) -> None:
  parser = _command(
    commands,
    'import',
    'Writes the model of a GGUF file as config.json, safetensors and tokenizer.',
    'The directory is then what MODEL_DIR of configs/networks/hugging_face.gin names. Quantised weights are dequantised.',
  )
  parser.add_argument('--gguf_file', required=True, help='the file')
  parser.add_argument('--output_dir', required=True, help='where to; must not exist')


def _add_tokenize(commands) -> None:
  parser = _command(
    commands,
    'tokenize',
    "Writes a run's data as tokens, for a machine that has neither seqio nor TensorFlow.",
    'Writes NAME.gin and the token files that it reads. There, nlhf train --gin_file=NAME.gin --data_dir=DIR trains on the same '
    'batches in the same order.',
  )
  _add_run(parser)
  parser.add_argument('--output_dir', required=True, help='where to')
  parser.add_argument('--runs_dir', help='directory of the runs whose votes it reads, if it does')
  parser.add_argument(
    '--name', help="of the gin file (default: the run's, or that of the last --gin_file)"
  )


def _command(commands, name, summary, details) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=summary, description=f'{summary} {details}')
  parser.add_argument('--traceback', action='store_true', help='show where an error comes from')
  parser.add_argument(
    '--trust',
    action='append',
    default=[],
    metavar='PACKAGE',
    help='a Python package that configurations of run directories may import (repeatable; docs/security.md)',
  )
  return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--experiment', help='EXPERIMENT/RUN, such as builtin/nash_md_pg: a run of its stages.txt'
  )
  _add_gin(parser)


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--experiment',
    help='whose evaluation.gin is read first: prompts, judge, how texts become tokens',
  )
  _add_gin(parser)


def _add_gin(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--data_dir', help='directory of the data; sets the macro DATA_DIR')
  group = parser.add_argument_group('gin')
  group.add_argument(
    '--gin_file', action='append', default=[], help='a gin file (repeatable; the later wins)'
  )
  group.add_argument(
    '--gin_search_paths', default='', help='comma-separated directories to look for gin files in'
  )
  _add_binding(group)


def _add_binding(group) -> None:
  group.add_argument(
    '--gin.NAME',
    metavar='VALUE',
    help='a binding, such as --gin.TAU=0.01; strings need quotes inside',
  )
