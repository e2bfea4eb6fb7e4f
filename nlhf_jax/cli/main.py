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

from nlhf_jax.cli import flags
from nlhf_jax.cli import games as game_commands

_ROOT = pathlib.Path(__file__).resolve().parent.parent  # Where configs/ lies.


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one sub-command; a user's mistake is one line on stderr and exit status 2."""
  if argv is None:
    _use_large_pages()
  args = flags.parse(sys.argv[1:] if argv is None else list(argv))
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow's start-up messages.
  logging.getLogger('absl').setLevel(logging.ERROR)
  _keep_compiled()
  try:
    _COMMANDS[args.command](args)
  except Exception as error:
    return _ended_by(error, args)
  return 0


def _ended_by(error: Exception, args: argparse.Namespace) -> int:
  """Says what ended a command; one of many processes then ends at once. Raises what is nobody's mistake."""
  import jax

  from nlhf_jax.runtime import processes

  alone, text = processes.is_single_process(), _one_line(error)
  mistake = isinstance(error, (ValueError, OSError, FloatingPointError))
  if alone and (args.traceback or not mistake):
    raise error
  if args.traceback or not (mistake or isinstance(error, jax.errors.JaxRuntimeError)):
    traceback.print_exception(error)
  if isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' not in text:  # That is memory.
    text = (
      'an exchange with the other processes failed; one of them has probably ended. Start all of them again: the run '
      f'goes on from its newest checkpoint. ({text[:300]})'
    )
  print(f'nlhf {args.command}: {text}', file=sys.stderr, flush=True)
  status = 2 if mistake else 3
  processes.abort(status)
  return status


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


def _demo(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  directory, root = _experiment(args.experiment), pathlib.Path(args.run_dir)
  stages = _lines(directory / 'stages.txt')
  for stage in stages:
    experiment, config = _configure(args, [directory / f'{stage}.gin'], 'Experiment')
    if not _train_to_the_end(experiment, root / stage, config):
      return
  players = dict(line.split(None, 1) for line in _lines(directory / 'players.txt'))
  runs = {label: str(root / stage) for stage, label in players.items()}
  for_evaluation = argparse.Namespace(**vars(args), pass_over=True)
  _compare(for_evaluation, [directory / 'evaluation.gin'], runs, root)
  report.print_tables(root)


def _train(args: argparse.Namespace) -> None:
  from nlhf_jax.planning import plan
  from nlhf_jax.runtime import processes

  if args.multihost or args.coordinator_address or args.process_count is not None:
    processes.join(args.coordinator_address, args.process_count, args.process_index)
  experiment, config = _configure(args, [], 'Experiment')
  if args.dry_run:
    print(json.dumps(plan.summary(experiment), indent=2))
    return
  if _train_to_the_end(experiment, pathlib.Path(args.run_dir), config) and processes.is_primary():
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
  # Instructions in the order that takes the least memory, as accelerators have them; a CPU would rather run many at once.
  in_order = '--xla_cpu_enable_concurrency_optimized_scheduler=false'
  os.environ['XLA_FLAGS'] = ' '.join(filter(None, [os.environ.get('XLA_FLAGS'), in_order]))
  import rich

  from nlhf_jax.planning import plan
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
  from nlhf_jax.training import experiment

  step = int(experiment.train(experiment, run_dir, config).step)
  if step < experiment.num_steps:
    print(f'Stopped: {run_dir} at step {step} of {experiment.num_steps}; run again to go on.')
  return step >= experiment.num_steps


def _win_rates(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  runs = {}
  for item in args.run_dirs:
    # A directory's own name may hold an equals sign.
    label, _, run = ('', '', item) if _parts(item)[0].exists() else item.partition('=')
    label, run = (label, run) if run else ('', item)
    runs[label or pathlib.Path(run).name] = run
  if len(runs) < len(args.run_dirs):
    raise ValueError('Two runs have the same label: name them with --run_dirs LABEL=DIR.')
  _compare(args, [], runs, pathlib.Path(args.output_dir))
  report.print_tables(pathlib.Path(args.output_dir))


def _sample(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import tournament

  player = _player(args.run_dir) if args.run_dir else _untrained(args)
  evaluation, _ = _configure(args, [], 'Evaluation')
  texts = list(args.prompt or [])
  if args.prompts_file:
    texts += _lines(pathlib.Path(args.prompts_file))
  for prompt, responses in tournament.sample(
    evaluation, player, texts, num_samples=args.num_samples, seed=args.seed
  ):
    print(json.dumps({'prompt': prompt, 'responses': responses}, ensure_ascii=False))


def _export(args: argparse.Namespace) -> None:
  from nlhf_jax.training import experiment

  run_dir, output_dir = pathlib.Path(args.run_dir), pathlib.Path(args.output_dir)
  experiment = _experiment_of(run_dir)
  experiment.export(
    experiment, run_dir, output_dir, args.to, dtype=args.dtype, base_model=args.base_model
  )
  print(f'Written: {output_dir}')


def _import(args: argparse.Namespace) -> None:
  from nlhf_jax.formats import gguf

  gguf.convert(args.gguf_file, args.output_dir)
  print(f'Written: {args.output_dir}')


def _report(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  print(report.from_run_dir(pathlib.Path(args.run_dir)))


def _compare(args, gin_files, runs: dict[str, str], output_dir: pathlib.Path) -> None:
  """Loads every run's policy by its own configuration, then the evaluation, and plays."""
  from nlhf_jax.evaluation import tournament

  players = {label: _player(run) for label, run in runs.items()}
  evaluation, _ = _configure(args, gin_files, 'Evaluation')
  tournament.compare(evaluation, players, output_dir)


def _parts(run: str) -> tuple[pathlib.Path, str]:
  """A run's directory, and which set of its parameters: of DIR:SET, or of DIR, whose own name may hold a colon."""
  directory, colon, name = run.rpartition(':')
  whole = not colon or pathlib.Path(run).exists()
  return (pathlib.Path(run), 'online') if whole else (pathlib.Path(directory), name)


def _player(run: str):
  """The policy of a run, DIR or DIR:SET, and its parameters."""
  from nlhf_jax.training import experiment
  from nlhf_jax.evaluation import tournament

  run_dir, parameters = _parts(run)
  experiment = _experiment_of(run_dir)
  if not hasattr(experiment.model, 'play'):
    raise ValueError(
      f'{run_dir} holds no policy but a judge: name a run of sft, rlhf or a Nash method.'
    )
  return tournament.Contestant(
    experiment.model, experiment.trained_params(experiment, run_dir, parameters)
  )


def _untrained(args: argparse.Namespace):
  """The policy that the experiment of the gin files would start from."""
  from nlhf_jax.training import experiment
  from nlhf_jax.evaluation import tournament

  experiment, _ = _configure(args, [], 'Experiment')
  if not callable(experiment.start_from):
    raise ValueError('Name a run with --run_dir, or gin files that start from a pre-trained model.')
  params = experiment.load_params(experiment.model, experiment.start_from, pathlib.Path())
  return tournament.Contestant(experiment.model, params)


def _experiment_of(run_dir: pathlib.Path):
  """The Experiment that a run's own configuration describes."""
  import gin

  from nlhf_jax.training import experiment
  from nlhf_jax.runtime import run_directory

  config = run_directory.read_config(run_dir)
  gin.clear_config()
  gin.parse_config(config)
  return gin.get_configurable(experiment.Experiment)()


def _configure(args: argparse.Namespace, gin_files: Sequence[pathlib.Path], what: str):
  """The Experiment or Evaluation that gin files and flags describe, and the configuration as text."""
  import gin

  from nlhf_jax.training import experiment
  from nlhf_jax.evaluation import tournament

  gin.clear_config()
  _read_only_files()
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
    described = {'Experiment': experiment.Experiment, 'Evaluation': tournament.Evaluation}[what]
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


def _read_only_files() -> None:
  """Takes away gin's second reader, for files within Python packages.

  It is asked before the search paths are. Of each file that is on one of these it says that it is not found, and where
  `configs` looks like a package without an __init__.py, it fails.
  """
  import gin

  gin.config._FILE_READERS[:] = [(open, os.path.isfile)]


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


_COMMANDS = {
  'demo': _demo,
  'train': _train,
  'plan': _plan,
  'win-rates': _win_rates,
  'sample': _sample,
  'report': _report,
  'export': _export,
  'import': _import,
  'solve': game_commands.solve,
  'rank': game_commands.rank,
}


if __name__ == '__main__':
  sys.exit(main())
