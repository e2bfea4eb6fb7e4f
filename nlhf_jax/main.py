"""The command line: parses gin, runs what it describes. The only importer of gin.

  nlhf demo        SFT → preference and reward model → every method → win rates and a report
  nlhf train       one run
  nlhf plan        what a run would take on a mesh that is not here
  nlhf win-rates   trained policies against each other
  nlhf sample      a trained policy's responses
  nlhf report      the report of a directory of runs
  nlhf export      a run as a model for other tools
  nlhf import      a GGUF file as a model's directory
  nlhf solve       exact preference games on tables
  nlhf rank        rankings of alternatives

Gin flags are T5X's: --gin_file (repeatable), --gin.NAME=VALUE, --gin_search_paths.
"""

import argparse
import difflib
import json
import logging
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from nlhf_jax.games import commands as game_commands

_ROOT = pathlib.Path(__file__).resolve().parent.parent  # Where configs/ lies.
_DEMO = 'configs/experiments/builtin'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one sub-command; a user's mistake is one line on stderr and exit status 2."""
  if argv is None:
    _use_large_pages()
  args = _parse(sys.argv[1:] if argv is None else list(argv))
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow's start-up messages.
  logging.getLogger('absl').setLevel(logging.ERROR)
  _keep_compiled()
  from nlhf_jax.runtime import processes

  try:
    args.run(args)
  except (ValueError, OSError, FloatingPointError) as error:
    if args.traceback:
      raise
    print(f'nlhf {args.command}: {_one_line(error)}', file=sys.stderr, flush=True)
    processes.leave(2)
    return 2
  except RuntimeError as error:
    if processes.alone():
      raise
    if args.traceback:
      traceback.print_exc()
    print(
      f'nlhf {args.command}: an exchange with the other processes failed; one of them has probably ended. Start all '
      f'of them again: the run goes on from its newest checkpoint. ({_one_line(error)[:300]})',
      file=sys.stderr,
      flush=True,
    )
    processes.leave(3)
  return 0


def _use_large_pages() -> None:
  """Starts this process again with glibc's 2 MiB pages, unless the user has said which.

  A compiled program on the CPU maps its temporary arrays anew at every call; with 4 KiB pages the page faults took up to
  half of a training step.
  """
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if sys.platform == 'linux' and 'glibc.malloc.hugetlb' not in tunables:
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, [tunables, 'glibc.malloc.hugetlb=1']))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_compiled() -> None:
  """Compiled programs outlive the process, unless the user has said where they go or that they do not."""
  import jax

  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
    jax.config.update('jax_compilation_cache_dir', str(cache / 'nlhf_jax'))


def _parse(argv: list[str]) -> argparse.Namespace:
  bindings = [a.removeprefix('--gin.') for a in argv if a.startswith('--gin.')]
  rest = [a for a in argv if not a.startswith('--gin.')]
  parser = argparse.ArgumentParser(
    prog='nlhf',
    description='Nash learning from human feedback, in JAX.',
    epilog='Every sub-command has its own --help. Errors are one line; --traceback shows where they come from.',
  )
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for add in (
    _add_demo,
    _add_train,
    _add_plan,
    _add_win_rates,
    _add_sample,
    _add_report,
    _add_export,
    _add_import,
  ):
    add(commands)
  game_commands.add_solve(commands, _command)
  game_commands.add_rank(commands, _command)
  # Flags may be written with hyphens or underscores.
  args = parser.parse_args([re.sub(r'^--[\w-]+', _underscored, a) for a in rest])
  args.bindings = bindings
  return args


def _underscored(match: re.Match) -> str:
  return '--' + match[0][2:].replace('-', '_')


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
    'configuration is refused. SIGTERM makes it save and end. A run that starts from another (start_from), or is judged by one, looks for it beside '
    'its own directory.',
  )
  _add_gin(parser)
  parser.add_argument('--run_dir', required=True, help='where checkpoints and metrics go')
  parser.add_argument('--data_dir', help='directory of the data; sets the macro DATA_DIR')
  parser.add_argument(
    '--dry_run', action='store_true', help='print shapes and memory, and train nothing'
  )
  group = parser.add_argument_group(
    'many processes', 'Each is started with the same flags, and sees the same --run_dir.'
  )
  group.add_argument(
    '--multihost',
    action='store_true',
    help='join the others by what the cluster says (TPU pods, SLURM, Open MPI, GKE)',
  )
  group.add_argument('--coordinator_address', help='HOST:PORT of the first process')
  group.add_argument('--process_count', type=int)
  group.add_argument('--process_index', type=int, help='from 0')


def _add_plan(commands) -> None:
  parser = _command(
    commands,
    'plan',
    _plan,
    'Tells what a run would take on a mesh of devices that is not here.',
    'Compiles a step for so many simulated devices and prints, for each of them: memory, operations, bytes sent by kind '
    'and axes of the mesh, and the least time that these imply on named chips. Needs neither data nor weights.',
  )
  _add_gin(parser)
  parser.add_argument(
    '--mesh', default='', help='such as data=1,fsdp=8,tensor=4 (default: 1 of what is not named)'
  )
  parser.add_argument(
    '--chips',
    nargs='+',
    choices=['v5e', 'v5p', 'h100', 'h200'],
    default=['v5e', 'v5p', 'h100', 'h200'],
  )
  parser.add_argument('--output', help='a file for the same in JSON')


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
    'Prints responses of a trained policy, or of the pre-trained one that the gin files start from.',
    'Prompts come from --prompt, from a file with one prompt a line, or from the held-out prompts of --gin_file.',
  )
  _add_gin(parser)
  parser.add_argument('--run_dir', help='the run; without it, the pre-trained model')
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


def _add_export(commands) -> None:
  parser = _command(
    commands,
    'export',
    _export,
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
    _import,
    'Writes the model of a GGUF file as config.json, safetensors and tokenizer.',
    'The directory is then what START_FROM, NETWORK and VOCABULARY of a gin file name. Quantised weights are dequantised.',
  )
  parser.add_argument('--gguf_file', required=True, help='the file')
  parser.add_argument('--output_dir', required=True, help='where to; must not exist')


def _command(commands, name, run, summary, details) -> argparse.ArgumentParser:
  parser = commands.add_parser(name, help=summary, description=f'{summary} {details}')
  parser.set_defaults(run=run)
  parser.add_argument('--traceback', action='store_true', help='show where an error comes from')
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
    '--gin.NAME',
    metavar='VALUE',
    help='a binding, such as --gin.TAU=0.01; strings need quotes inside',
  )


def _demo(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  directory, root = _experiment(args.experiment), pathlib.Path(args.run_dir)
  stages = _lines(directory / 'stages.txt')
  for stage in stages:
    experiment, config = _configure(args, [directory / f'{stage}.gin'], 'Experiment')
    if not _train_to_the_end(experiment, root / stage, config):
      return
  players = dict(line.split(None, 1) for line in _lines(directory / 'players.txt'))
  runs = {label: root / stage for stage, label in players.items()}
  for_evaluation = argparse.Namespace(**vars(args), pass_over=True)
  _compare(for_evaluation, [directory / 'evaluation.gin'], runs, root)
  report.print_tables(root)


def _train(args: argparse.Namespace) -> None:
  from nlhf_jax import plan
  from nlhf_jax.runtime import processes

  if args.multihost or args.coordinator_address or args.process_count is not None:
    processes.join(args.coordinator_address, args.process_count, args.process_index)
  experiment, config = _configure(args, [], 'Experiment')
  if args.dry_run:
    print(json.dumps(plan.summary(experiment), indent=2))
    return
  if _train_to_the_end(experiment, pathlib.Path(args.run_dir), config) and processes.first():
    print(f'Trained: {args.run_dir}')


def _plan(args: argparse.Namespace) -> None:
  sizes = {'data': 1, 'fsdp': 1, 'tensor': 1}
  for part in filter(None, args.mesh.split(',')):
    name, _, size = part.partition('=')
    if name not in sizes or not size.isdecimal() or int(size) < 1:
      raise ValueError(f'--mesh has {part!r}: write data=N,fsdp=N,tensor=N.')
    sizes[name] = int(size)
  import jax

  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', math.prod(sizes.values()))
  import rich

  from nlhf_jax import plan
  from nlhf_jax.runtime import partitioning

  experiment, _ = _configure(args, [], 'Experiment')
  mesh = partitioning.make_mesh(partitioning.Devices(**sizes))
  result = plan.make(experiment, mesh)
  for table in plan.report(result, args.chips):
    rich.print(table)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(plan.as_json(result), indent=2) + '\n')


def _train_to_the_end(experiment, run_dir: pathlib.Path, config: str) -> bool:
  """False where the process was asked to end before; it has then saved where it is."""
  from nlhf_jax import experiments

  step = int(experiments.train(experiment, run_dir, config).step)
  if step < experiment.num_steps:
    print(f'Stopped: {run_dir} at step {step} of {experiment.num_steps}; run again to go on.')
  return step >= experiment.num_steps


def _win_rates(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  runs = {}
  for item in args.run_dirs:
    # A directory's own name may hold an equals sign.
    label, _, directory = ('', '', item) if pathlib.Path(item).exists() else item.partition('=')
    label, directory = (label, directory) if directory else ('', item)
    runs[label or pathlib.Path(directory).name] = pathlib.Path(directory)
  if len(runs) < len(args.run_dirs):
    raise ValueError('Two runs have the same label: name them with --run_dirs LABEL=DIR.')
  _compare(args, [], runs, pathlib.Path(args.output_dir))
  report.print_tables(pathlib.Path(args.output_dir))


def _sample(args: argparse.Namespace) -> None:
  from nlhf_jax import tournament

  player = _player(pathlib.Path(args.run_dir)) if args.run_dir else _untrained(args)
  evaluation, _ = _configure(args, [], 'Evaluation')
  texts = list(args.prompt or [])
  if args.prompts_file:
    texts += _lines(pathlib.Path(args.prompts_file))
  for prompt, responses in tournament.sample(
    evaluation, player, texts, num_samples=args.num_samples, seed=args.seed
  ):
    print(json.dumps({'prompt': prompt, 'responses': responses}, ensure_ascii=False))


def _export(args: argparse.Namespace) -> None:
  from nlhf_jax import experiments

  run_dir, output_dir = pathlib.Path(args.run_dir), pathlib.Path(args.output_dir)
  experiment = _experiment_of(run_dir)
  experiments.export(
    experiment, run_dir, output_dir, args.to, dtype=args.dtype, base_model=args.base_model
  )
  print(f'Written: {output_dir}')


def _import(args: argparse.Namespace) -> None:
  from nlhf_jax.runtime import gguf

  gguf.convert(args.gguf_file, args.output_dir)
  print(f'Written: {args.output_dir}')


def _report(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  print(report.from_run_dir(pathlib.Path(args.run_dir)))


def _compare(args, gin_files, runs: dict[str, pathlib.Path], output_dir: pathlib.Path) -> None:
  """Loads every run's policy by its own configuration, then the evaluation, and plays."""
  from nlhf_jax import tournament

  players = {label: _player(directory) for label, directory in runs.items()}
  evaluation, _ = _configure(args, gin_files, 'Evaluation')
  tournament.compare(evaluation, players, output_dir)


def _player(run_dir: pathlib.Path):
  """The policy of a run and its trained parameters."""
  from nlhf_jax import experiments, tournament

  experiment = _experiment_of(run_dir)
  if not hasattr(experiment.model, 'play'):
    raise ValueError(
      f'{run_dir} holds no policy but a judge: name a run of sft, rlhf or a Nash method.'
    )
  return tournament.Player(experiment.model, experiments.trained_params(experiment, run_dir))


def _untrained(args: argparse.Namespace):
  """The policy that the experiment of the gin files would start from."""
  from nlhf_jax import experiments, tournament

  experiment, _ = _configure(args, [], 'Experiment')
  if not callable(experiment.start_from):
    raise ValueError('Name a run with --run_dir, or gin files that start from a pre-trained model.')
  params = experiments.load_params(experiment.model, experiment.start_from, pathlib.Path())
  return tournament.Player(experiment.model, params)


def _experiment_of(run_dir: pathlib.Path):
  """The Experiment that a run's own configuration describes."""
  import gin

  from nlhf_jax import experiments
  from nlhf_jax.runtime import run_directory

  config = run_directory.config(run_dir)
  gin.clear_config()
  gin.parse_config(config)
  return gin.get_configurable(experiments.Experiment)()


def _configure(args: argparse.Namespace, gin_files: Sequence[pathlib.Path], what: str):
  """The Experiment or Evaluation that gin files and flags describe, and the configuration as text."""
  import gin

  from nlhf_jax import experiments, tournament

  gin.clear_config()
  search_paths = [*filter(None, args.gin_search_paths.split(',')), str(_ROOT)]
  for path in search_paths:
    gin.add_config_file_search_path(path)
  files = [*map(str, gin_files), *args.gin_file]
  for file in files:
    if not any((pathlib.Path(path) / file).is_file() for path in ('', *search_paths)):
      raise FileNotFoundError(
        f'No gin file {file} in {", ".join(search_paths)}: see --gin_search_paths.'
      )
  if not files:
    raise ValueError(
      'No configuration: name a gin file with --gin_file, such as one of configs/experiments.'
    )
  bindings = list(args.bindings)
  if getattr(args, 'data_dir', None):
    if not pathlib.Path(args.data_dir).is_dir():
      raise FileNotFoundError(f'No directory {args.data_dir}: name the data with --data_dir.')
    bindings.append(f'DATA_DIR = {str(pathlib.Path(args.data_dir).resolve())!r}')
  try:
    gin.parse_config_files_and_bindings(files, [], finalize_config=False)
    known = set(re.findall(r'^(\w+) =', gin.config_str(), re.MULTILINE))
    if getattr(args, 'pass_over', False):  # Macros that an evaluation lacks were the stages'.
      bindings = [b for b in bindings if _macro(b) is None or _macro(b) in known]
    _check_macros(bindings, known)
    gin.parse_config(bindings)
    gin.finalize()
    described = {'Experiment': experiments.Experiment, 'Evaluation': tournament.Evaluation}[what]
    return gin.get_configurable(described)(), gin.config_str()
  except (
    AttributeError,
    ModuleNotFoundError,
    NameError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
  ) as error:
    raise ValueError(_explain(error)) from error


def _check_macros(bindings: Sequence[str], known: set[str]) -> None:
  """Raises ValueError where a flag sets a macro that no file has: gin itself would let it pass unused."""
  for binding in bindings:
    if (name := _macro(binding)) and name not in known:
      raise ValueError(f'No macro {name} in these gin files.{_nearest(name, known)}')


def _macro(binding: str) -> str | None:
  """The macro that a binding sets, if it does not bind a parameter."""
  name = binding.split('=')[0].strip()
  return name if re.fullmatch(r'\w+', name) else None


def _explain(error: Exception) -> str:
  """gin's message in one line, with the nearest name that exists."""
  text = _one_line(error)
  match = re.search(r"(?:module '([\w.]+)'.*|<module '([\w.]+)'.*)has no attribute '?(\w+)'?", text)
  if match:
    module = sys.modules.get(match[1] or match[2])
    return text + _nearest(match[3], dir(module))
  if match := re.search(r"No configurable matching '([\w.]*?)(\w+)'", text):
    modules = [m for name, m in sys.modules.items() if f'{name}.'.endswith(match[1] or '.')]
    return text + _nearest(match[2], {name for module in modules for name in dir(module)})
  if missing := re.search(r'[Rr]equired bindings for .*', text):
    return f'Something must be set: {missing[0]}'
  return text


def _nearest(name: str, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' Did you mean {close[0]}?' if close else ''


def _experiment(name: str) -> pathlib.Path:
  """The directory of an experiment, here or where the package lies."""
  for directory in (pathlib.Path(name), _ROOT / name):
    if (directory / 'stages.txt').is_file():
      return directory
  known = sorted(p.parent.name for p in _ROOT.glob('configs/experiments/*/stages.txt'))
  raise FileNotFoundError(
    f'No experiment {name} (no stages.txt in it): known are {", ".join(known)}.'
  )


def _lines(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}.')
  lines = (line.strip() for line in path.read_text().splitlines())
  return [line for line in lines if line and not line.startswith('#')]


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())


if __name__ == '__main__':
  sys.exit(main())
