"""What flags describe: experiments of gin files and of run directories, and the policies that runs trained."""

import argparse
import logging
import pathlib
from collections.abc import Sequence


def run_and_set(run: str) -> tuple[pathlib.Path, str]:
  """A run's directory, and which set of its parameters: of DIR:SET, or of DIR, whose own name may hold a colon."""
  directory, colon, name = run.rpartition(':')
  if not colon or pathlib.Path(run).exists():
    return pathlib.Path(run), 'online'
  return pathlib.Path(directory), name


def labelled(run_dirs: Sequence[str]) -> dict[str, str]:
  """Label → run, of LABEL=DIR, or DIR, whose own name is its label.

  Raises:
    ValueError: two runs have one label.
  """
  runs = {}
  for item in run_dirs:
    # A directory's own name may hold an equals sign.
    label, _, run = ('', '', item) if run_and_set(item)[0].exists() else item.partition('=')
    label, run = (label, run) if run else ('', item)
    runs[label or pathlib.Path(run).name] = run
  if len(runs) < len(run_dirs):
    raise ValueError('Two runs have the same label: name them with --run_dirs LABEL=DIR.')
  return runs


def contestant(run: str, experiment=None):
  """The policy of a run, DIR or DIR:SET, and its parameters; of its own configuration, unless its experiment is given."""
  from nlhf_jax.evaluation.contestants import Contestant
  from nlhf_jax.training import resolve, weights
  from nlhf_jax.types import Policy

  run_dir, parameters = run_and_set(run)
  experiment = experiment or experiment_of(run_dir)
  if not isinstance(experiment.model, Policy):
    raise ValueError(
      f'{run_dir} holds no policy but a judge: name a run of sft, rlhf or a Nash method.'
    )
  params = weights.trained_params(experiment, run_dir, parameters)
  return Contestant(experiment.model, params, resolve.fixed_point(experiment))


def untrained(args: argparse.Namespace):
  """The policy that the experiment of the gin files would start from."""
  from nlhf_jax.evaluation.contestants import Contestant
  from nlhf_jax.training import weights
  from nlhf_jax.training.experiment import Experiment

  experiment = configure(args, Experiment, []).value
  if not callable(experiment.start_from):
    raise ValueError('Name a run with --run_dir, or gin files that start from a pre-trained model.')
  params = weights.load_params(experiment.model, experiment.start_from, pathlib.Path())
  return Contestant(experiment.model, params)


def experiment_of(run_dir: pathlib.Path):
  """The Experiment that a run's own configuration describes."""
  return configuration_of(run_dir).value


def configuration_of(run_dir: pathlib.Path, bindings: Sequence[str] = ()):
  """A run's own configuration, and bindings that win over it; those of macros that it lacks are passed over."""
  from nlhf_jax.cli import gin_config
  from nlhf_jax.runtime import run_directory
  from nlhf_jax.training.experiment import Experiment

  text, name = run_directory.read_config(run_dir), str(run_dir / run_directory.CONFIG)
  return gin_config.from_text(Experiment, text, bindings, name, ignore_unknown_macros=True)


def warn_of_unread(*configured) -> None:
  """Names the flags that reach nothing in any of these configurations."""
  for binding in configured[0].unread:
    if all(binding in one.unread for one in configured):
      name = binding.partition('=')[0].strip()
      flag = '--data_dir' if name == 'DATA_DIR' else f'--gin.{name}'
      logging.warning('%s says nothing here: nothing that is run reads it.', flag)


def configure_run(
  args: argparse.Namespace, runs: pathlib.Path | None = None, command: str = 'train'
):
  """What --experiment=EXPERIMENT/RUN, or gin files alone describe: an Experiment, or what `nlhf collect` collects.

  Raises:
    ValueError: the stage of that name is another command's.
  """
  from nlhf_jax.cli import experiments

  if not args.experiment:
    return configure(args, _described_for(command), [], runs=runs)
  stage = experiments.stage(args.experiment)
  if stage.command != command:
    raise ValueError(f'{args.experiment} is a stage of another command: use nlhf {stage.command}.')
  return configure_stage(args, stage, runs)


def configure_stage(args: argparse.Namespace, stage, runs: pathlib.Path | None):
  """What a stage of an experiment describes."""
  return configure(args, _described_for(stage.command), stage.files, stage.bindings, runs=runs)


def _described_for(command: str):
  from nlhf_jax.evaluation.collection import Collection
  from nlhf_jax.training.experiment import Experiment

  return {'train': Experiment, 'collect': Collection}[command]


def evaluation_files(args: argparse.Namespace) -> list[pathlib.Path]:
  """The evaluation.gin of --experiment, if that is given."""
  from nlhf_jax.cli import experiments

  return [experiments.evaluation(args.experiment)] if args.experiment else []


def configure(args, described, gin_files, bindings=(), *, ignore_unknown_macros=False, runs=None):
  """What gin files and flags describe; those of the command line win.

  Args:
    args: the flags.
    described: such as `Experiment`.
    gin_files: read before those of the flags.
    bindings: of these files.
    ignore_unknown_macros: whether flags that name macros of other files are passed over.
    runs: the directory of the runs that the files may name: the macro RUNS.
  """
  from nlhf_jax.cli import gin_config

  of_user = list(args.bindings)
  if getattr(args, 'data_dir', None):
    if not pathlib.Path(args.data_dir).is_dir():
      raise FileNotFoundError(f'No directory {args.data_dir}: name the data with --data_dir.')
    of_user.append(f'DATA_DIR = {str(pathlib.Path(args.data_dir).resolve())!r}')
  search_paths = [path for path in args.gin_search_paths.split(',') if path]
  layers = [gin_config.Layer(gin_files, bindings), gin_config.Layer(args.gin_file, of_user)]
  known = [] if runs is None else [f'RUNS = {str(runs.resolve())!r}']
  source = gin_config.Source(layers, search_paths, ignore_unknown_macros, known)
  return gin_config.configure(described, source)
