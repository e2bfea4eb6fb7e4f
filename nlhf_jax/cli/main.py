"""The command line.

  nlhf demo        SFT → preference and reward model → every method → win rates and a report
  nlhf train       one run
  nlhf diagnose    what keeps a trained policy from its fixed point
  nlhf plan        what a run would take on a mesh that is not here
  nlhf collect     votes on what policies write
  nlhf win-rates   trained policies against each other
  nlhf exploit     how far policies can be exploited
  nlhf sample      a trained policy's responses
  nlhf report      the report of a directory of runs
  nlhf export      a run as a model for other tools
  nlhf import      a GGUF file as a model's directory
  nlhf tokenize    a run's data as tokens, for a machine without seqio and TensorFlow
  nlhf solve       exact preference games on tables
  nlhf rank        rankings of alternatives
  nlhf voters      whose votes differ, and how soon a new voter is known
  nlhf annotate    a page on which people compare two responses
  nlhf judge       votes of LLMs on responses
  nlhf personalise agents that learn one person's taste

Gin flags are T5X's: --gin_file (repeatable), --gin.NAME=VALUE, --gin_search_paths.
"""

import argparse
import functools
import json
import logging
import math
import os
import pathlib
import stat
import sys
import traceback
from collections.abc import Sequence

from nlhf_jax import untrusted
from nlhf_jax.cli import (
  annotate,
  collect,
  described,
  exploit,
  flags,
  games,
  judge,
  personalise,
  quiet,
  ranges,
  trust,
  votes,
)

# Characters.
_LONGEST_MESSAGE = 4000
# Where a package has another name than what is imported.
_PACKAGES = {'gin': 'gin-config', 'orbax': 'orbax-checkpoint'}
# What XLA says of a GPU that has failed, or that another process holds.
_OF_A_GPU = 'INTERNAL', 'UNAVAILABLE', 'FAILED_PRECONDITION', 'Unable to initialize backend'
_OTHERS = (
  'Other processes may hold the memory of the GPU (nvidia-smi): a process takes three quarters of it, or what '
  'XLA_PYTHON_CLIENT_MEM_FRACTION says. '
)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one sub-command; whatever ends it is one line on stderr.

  Exit status 2 is a user's mistake, 3 a machine that gave out, 1 a fault of this program, 130 an interrupt.
  """
  args = flags.parse(sys.argv[1:] if argv is None else list(argv))
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  quiet.load_tensorflow_quietly()
  _show_warnings(args.command)
  try:
    if argv is None:
      from nlhf_jax.runtime import processes

      processes.remember_interrupts()
    keep_compiled()
    ranges.check(args)
    trust.reset(args.trust)
    _COMMANDS[args.command](args)
  except (Exception, KeyboardInterrupt) as error:
    status = _ended_by(error, args, raises=argv is not None)
    if argv is None:
      from nlhf_jax.runtime import processes

      processes.end_despite_threads(status)
    return status
  return 0


def _show_warnings(command: str) -> None:
  """On stderr, as errors are, unless whoever calls has said where messages go."""
  logging.getLogger('absl').setLevel(logging.ERROR)
  handler = logging.StreamHandler()
  handler.setFormatter(_Printable(f'nlhf {command}: %(levelname)s: %(message)s'))
  logging.basicConfig(handlers=[handler])


class _Printable(logging.Formatter):
  """A warning in one line: what it quotes may hold what a terminal obeys."""

  def formatMessage(self, record: logging.LogRecord) -> str:
    return untrusted.printable(super().formatMessage(record))


def _ended_by(error: BaseException, args: argparse.Namespace, *, raises: bool) -> int:
  """Reports what ended a command, or raises it to who has called with --traceback; one of many processes then ends at once."""
  from nlhf_jax.runtime import processes

  single = processes.is_single_process()
  if args.traceback and single and raises:
    raise error
  if args.traceback:
    traceback.print_exception(error)
  status, text = _account(error, single)
  text = untrusted.shorten(untrusted.printable(text), _LONGEST_MESSAGE)
  print(f'nlhf {args.command}: {text}', file=sys.stderr, flush=True)
  processes.abort(status)
  return status


def _account(error: BaseException, single: bool) -> tuple[int, str]:
  """The exit status, and what is said of an error."""
  from nlhf_jax.cli import gin_config

  text = gin_config.one_line(error)
  if isinstance(error, KeyboardInterrupt):
    return (
      130,
      'interrupted; runs and collections go on from what they have saved.',
    )
  if isinstance(error, ModuleNotFoundError) and not (error.name or '').startswith('nlhf_jax'):
    package = _PACKAGES.get(error.name or '', error.name)
    return (
      2,
      f'the package {package} is not installed, which this needs: pip install it, or one of the extras of nlhf_jax.',
    )
  if isinstance(error, (ValueError, OSError, FloatingPointError)):
    return 2, text
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text:
    return 3, (
      'out of memory: take a smaller batch (BATCH_SIZE), more microbatches (Experiment.num_microbatches), or adapters; nlhf plan '
      f'tells what a run needs. {_OTHERS if _is_of_a_gpu(error) else ""}({text[:300]})'
    )
  if single and _is_of_a_gpu(error) and any(word in text for word in _OF_A_GPU):
    return 3, f'the device has failed, or cannot be had. {_OTHERS}({text[:300]})'
  if isinstance(error, RuntimeError) and not single:
    return 3, (
      'an exchange with the other processes failed; one of them has probably ended. Start all of them again: the run '
      f'goes on from its newest checkpoint. ({text[:300]})'
    )
  return (
    1,
    f'a fault of nlhf_jax, not yours: {type(error).__name__}: {text[:500]} (--traceback shows where.)',
  )


def _is_of_a_gpu(error: BaseException) -> bool:
  """Whether XLA speaks of one, or JAX of none that it should have found."""
  text = str(error).lower()
  return isinstance(error, RuntimeError) and any(word in text for word in ('gpu', 'cuda', 'cublas'))


def keep_compiled() -> None:
  """Compiled programs outlive the process, unless the user has set where they go or that they do not.

  They are native code, which later processes run: the directory is the user's own, and no one else may enter it.
  """
  import jax

  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    try:
      directory = _cache_home() / 'nlhf_jax'
      problem = _unsafe(directory)
    except RuntimeError as error:  # There is no home.
      problem = f'{error} Set JAX_COMPILATION_CACHE_DIR'
    if problem:
      logging.warning('%s; nothing that is compiled is kept.', problem)
    else:
      jax.config.update('jax_compilation_cache_dir', str(directory))
  # JAX keeps what took a second; a run has dozens of shorter programs, which take three seconds together.
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.02)


def _cache_home() -> pathlib.Path:
  """By the XDG specification, which passes over what is not absolute."""
  given = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  return given if given.is_absolute() else pathlib.Path.home() / '.cache'


def _unsafe(directory: pathlib.Path) -> str | None:
  """Makes a directory that only this user can enter; why it cannot be had, or None."""
  try:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode):
      return f'{directory} is a link or a file: remove it, or set JAX_COMPILATION_CACHE_DIR'
    if hasattr(os, 'getuid') and found.st_uid != os.getuid():
      return f'{directory} belongs to another user: set JAX_COMPILATION_CACHE_DIR'
    if found.st_mode & 0o022:
      return f'{directory} can be written by others, who may have put code there: remove it, or set JAX_COMPILATION_CACHE_DIR'
    directory.chmod(0o700)
  except OSError as error:
    return f'{directory} cannot be made ({error.strerror}): set JAX_COMPILATION_CACHE_DIR'
  return None


def _demo(args: argparse.Namespace) -> None:
  from nlhf_jax.cli import experiments
  from nlhf_jax.evaluation import report, tournament

  directory, root = experiments.locate(args.experiment), pathlib.Path(args.run_dir)
  contestants, evaluation = experiments.contestants(directory), directory / 'evaluation.gin'
  if not evaluation.is_file():
    raise FileNotFoundError(f'No file {evaluation}: run the stages of {directory} with nlhf train.')
  # Not only once all is trained.
  tournament.check_replaceable(root)
  for stage in experiments.stages(directory):
    configure = functools.partial(described.configure_stage, args, stage, root)
    if stage.command == 'collect':
      collect.collect_votes(configure, root / stage.name)
    elif not _train_to_the_end(configure(), root / stage.name):
      return
  runs = {label: str(root / run) for label, run in contestants.items()}
  _compare(args, [evaluation], runs, root, ignore_unknown_macros=True)
  report.print_tables(root)


def _train(args: argparse.Namespace) -> None:
  from nlhf_jax.cli import gin_config
  from nlhf_jax.planning import plan
  from nlhf_jax.runtime import processes

  if args.multihost or args.coordinator_address or args.process_count is not None:
    processes.join(args.coordinator_address, args.process_count, args.process_index)
  configured = described.configure_run(args, pathlib.Path(args.run_dir).parent)
  described.warn_of_unread(configured)
  if args.dry_run:
    with gin_config.naming_flags(configured):
      print(json.dumps(plan.summary(configured.value), indent=2))
    return
  run_dir = pathlib.Path(args.run_dir)
  if _train_to_the_end(configured, run_dir) and processes.is_primary():
    print(f'Trained: {run_dir}')


def _train_to_the_end(configured, run_dir: pathlib.Path) -> bool:
  """False where the process was asked to end before; it has then saved where it is."""
  from nlhf_jax.cli import gin_config
  from nlhf_jax.training import run

  experiment = configured.value
  with gin_config.naming_flags(configured):
    step = int(run.train(experiment, run_dir, configured.fields, configured.text).step)
  if step < experiment.num_steps:
    print(f'Stopped: {run_dir} at step {step} of {experiment.num_steps}; run again to go on.')
  return step >= experiment.num_steps


def _diagnose(args: argparse.Namespace) -> None:
  from nlhf_jax import algorithms
  from nlhf_jax.cli import gin_config
  from nlhf_jax.evaluation import report
  from nlhf_jax.runtime import run_directory
  from nlhf_jax.training import diagnosis
  from nlhf_jax.training.experiment import Experiment

  run_dir = pathlib.Path(args.run_dir)
  output_dir = pathlib.Path(args.output_dir or run_dir / 'diagnosis')
  text, name = run_directory.read_config(run_dir), str(run_dir / run_directory.CONFIG)
  configured = gin_config.from_text(Experiment, text, args.bindings, name)
  with gin_config.naming_flags(configured):
    result = diagnosis.diagnose(
      configured.value, run_dir, output_dir, algorithms.sft, configured.fields, configured.text
    )
  if result is None:
    print(f'Stopped: {output_dir}; run again to go on.')
    return
  table, sentences = diagnosis.report(result)
  report.console().print(table)
  print(*sentences, f'Written: {output_dir / "diagnosis.json"}', sep='\n')


def _plan(args: argparse.Namespace) -> None:
  sizes = _mesh_sizes(args.mesh)
  import jax

  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', math.prod(sizes.values()))
  # Instructions in the order that takes the least memory, as accelerators have them; a CPU would rather run many at once.
  in_order = '--xla_cpu_enable_concurrency_optimized_scheduler=false'
  os.environ['XLA_FLAGS'] = ' '.join(filter(None, [os.environ.get('XLA_FLAGS'), in_order]))
  import rich

  from nlhf_jax.cli import gin_config
  from nlhf_jax.planning import plan
  from nlhf_jax.runtime import atomic, partitioning

  configured = described.configure_run(args)
  described.warn_of_unread(configured)
  mesh = partitioning.make_mesh(partitioning.Devices(**sizes))
  with gin_config.naming_flags(configured):
    result = plan.make(configured.value, mesh)
  for table in plan.report(result, args.chips):
    rich.print(table)
  if args.output:
    atomic.write_json(pathlib.Path(args.output), plan.as_json(result), follow=True)


def _mesh_sizes(text: str) -> dict[str, int]:
  """Devices along each axis, of data=N,fsdp=N,tensor=N."""
  sizes = {'data': 1, 'fsdp': 1, 'tensor': 1}
  for part in filter(None, text.split(',')):
    name, _, size = part.partition('=')
    if name not in sizes or not size.isdecimal() or int(size) < 1:
      raise ValueError(f'--mesh has {part!r}: write data=N,fsdp=N,tensor=N.')
    sizes[name] = int(size)
  return sizes


def _win_rates(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  runs = described.labelled(args.run_dirs)
  _compare(args, described.evaluation_files(args), runs, pathlib.Path(args.output_dir))
  report.print_tables(pathlib.Path(args.output_dir))


def _sample(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import tournament

  read = []
  if args.run_dir:
    run_dir, _ = described.run_and_set(args.run_dir)
    read.append(described.configuration_of(run_dir, args.bindings))
    contestant = described.contestant(args.run_dir, read[0].value)
  else:
    contestant = described.untrained(args)
  read.append(described.configure(args, tournament.Evaluation, described.evaluation_files(args)))
  described.warn_of_unread(*read)
  texts = list(args.prompt or [])
  if args.prompts_file:
    texts += _read_prompts(pathlib.Path(args.prompts_file))
  for prompt, responses in tournament.sample(
    read[-1].value, contestant, texts, num_samples=args.num_samples, seed=args.seed
  ):
    print(untrusted.json_line({'prompt': prompt, 'responses': responses}))


def _read_prompts(path: pathlib.Path) -> list[str]:
  """One a line, as it stands; blank lines are none."""
  from nlhf_jax.cli import experiments

  prompts = [line for line in experiments.split_lines(path) if line.strip()]
  if not prompts:
    raise ValueError(f'{path} holds no prompt: write one a line, or leave --prompts_file out.')
  return prompts


def _export(args: argparse.Namespace) -> None:
  from nlhf_jax.training import export

  run_dir, output_dir = pathlib.Path(args.run_dir), pathlib.Path(args.output_dir)
  for flag, formats in (('dtype', ['hf']), ('base_model', ['hf', 'peft'])):
    if getattr(args, flag) and args.to not in formats:
      raise ValueError(
        f'--{flag} says nothing with --to={args.to}: leave it out, or use --to={formats[0]}.'
      )
  experiment = described.experiment_of(run_dir)
  export.export(
    experiment, run_dir, output_dir, args.to, dtype=args.dtype, base_model=args.base_model
  )
  print(f'Written: {output_dir}')


def _import(args: argparse.Namespace) -> None:
  from nlhf_jax.formats import gguf

  gguf.convert(args.gguf_file, args.output_dir)
  print(f'Written: {args.output_dir}')


def _tokenize(args: argparse.Namespace) -> None:
  from nlhf_jax.cli import tokens

  described.configure_run(args, args.runs_dir and pathlib.Path(args.runs_dir))
  last = args.experiment or pathlib.Path(args.gin_file[-1]).stem
  name = args.name or last.rstrip('/').split('/')[-1]
  print(f'Written: {tokens.tokenize(name, pathlib.Path(args.output_dir))}')


def _report(args: argparse.Namespace) -> None:
  from nlhf_jax.evaluation import report

  print(report.from_run_dir(pathlib.Path(args.run_dir)))


def _compare(
  args, gin_files, runs: dict[str, str], output_dir: pathlib.Path, *, ignore_unknown_macros=False
) -> None:
  """Loads every run's policy by its own configuration, then the evaluation and its judge, and plays.

  The evaluation is read before the policies too, so that a wrong label is found at once. A judge that another run trained is looked for beside the first of these runs, as a run looks for its own.
  """
  from nlhf_jax.cli import gin_config
  from nlhf_jax.evaluation import tournament
  from nlhf_jax.training import resolve

  configure = functools.partial(
    described.configure,
    args,
    tournament.Evaluation,
    gin_files,
    ignore_unknown_macros=ignore_unknown_macros,
  )
  tournament.check_replaceable(output_dir)
  tournament.check_reference(configure().value, list(runs))
  contestants = {label: described.contestant(run) for label, run in runs.items()}
  configured = configure()
  if not ignore_unknown_macros:
    described.warn_of_unread(configured)
  beside = described.run_and_set(next(iter(runs.values())))[0].parent
  with gin_config.naming_flags(configured):
    judge = resolve.bind_feedback(configured.value.judge, beside)
    tournament.compare(configured.value._replace(judge=judge), contestants, output_dir)


_COMMANDS = {
  'demo': _demo,
  'train': _train,
  'diagnose': _diagnose,
  'plan': _plan,
  'collect': collect.collect,
  'win-rates': _win_rates,
  'exploit': exploit.exploit,
  'sample': _sample,
  'report': _report,
  'export': _export,
  'import': _import,
  'tokenize': _tokenize,
  'solve': games.solve,
  'rank': votes.rank,
  'voters': votes.voters,
  'annotate': annotate.annotate,
  'judge': judge.judge,
  'personalise': personalise.personalise,
}


if __name__ == '__main__':
  sys.exit('The command line is python -m nlhf_jax, or nlhf.')
