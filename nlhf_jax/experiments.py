"""What a gin file describes, and how it runs: train one model, or compare trained policies.

A run is a directory: config.gin, checkpoints/, metrics.jsonl and TensorBoard events. Runs name each other by directory,
relative to their common parent: a policy starts from 'sft' and is judged by 'preference'.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nlhf_jax import preference_model, reward_model
from nlhf_jax.evaluation import judges
from nlhf_jax.runtime import checkpoints, metrics, progress, run_directory
from nlhf_jax.training import loop
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  Params,
  Policy,
  PreferenceFn,
  RewardFn,
  TrainState,
)

_JUDGE = 'judge.json'
Model = Policy | preference_model.PreferenceModel | reward_model.RewardModel
Feedback = PreferenceFn | RewardFn


class Experiment(NamedTuple):
  """One training run.

  A method that has a reference is trained against the parameters that it starts from.
  """

  model: Model
  algorithm: Callable[
    ..., Algorithm
  ]  # Of `algorithms`, its constants bound; takes the model, and the feedback if any.
  batches: Callable[..., Iterator[Any]]  # start -> batches from that number on.
  optimizer: optax.GradientTransformation
  num_steps: int
  feedback: Callable[[pathlib.Path], Feedback] | None = (
    None  # Takes the directory that holds the runs.
  )
  start_from: str | None = None  # A run: the parameters to start from. None: random ones.
  held_out: Callable[[], Comparison] | None = (
    None  # Comparisons that a judge is tested on, once it is trained.
  )
  num_microbatches: int = 1
  ema_decay: float | None = None
  log_every: int = 10
  save_every: int | None = None
  seed: int = 0


def trained_preference(model: preference_model.PreferenceModel, run: str):
  """Feedback: the preference model that another run trained."""

  def load(runs: pathlib.Path) -> PreferenceFn:
    return preference_model.preference_fn(model, load_params(model, runs / run))

  return load


def trained_reward(model: reward_model.RewardModel, run: str):
  """Feedback: the reward model that another run trained."""

  def load(runs: pathlib.Path) -> RewardFn:
    return reward_model.reward_fn(model, load_params(model, runs / run))

  return load


def exact_preference(judge: PreferenceFn):
  """Feedback: a judge that needs no training, such as an electorate."""
  return lambda runs: judge


def load_params(model: Model, run_dir: pathlib.Path) -> Params:
  """The trained parameters θ of a run, checked against the model's shapes."""
  like = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  return checkpoints.restore_params(run_dir / 'checkpoints', like, 'online')


def train(experiment: Experiment, run_dir: pathlib.Path, config: str) -> TrainState:
  """Trains to the end, from the newest checkpoint if there is one.

  Args:
    experiment: what to run.
    run_dir: made if need be, once everything it depends on has been found.
    config: text of the configuration, which is kept with the run.

  Raises:
    ValueError: the directory holds a run of another configuration.
  """
  run_directory.check(run_dir, config)
  algorithm, state = prepare(experiment, run_dir.parent)
  run_directory.open(run_dir, config)
  directory = run_dir / 'checkpoints'
  if checkpoints.latest_step(directory) is not None:
    state = checkpoints.restore(directory, state)
  start = int(state.step)
  untested = experiment.held_out is not None and not (run_dir / _JUDGE).exists()
  if start >= experiment.num_steps and not untested:
    return state
  with (
    metrics.Writer(run_dir, resume_step=start) as writer,
    progress.bar(run_dir.name, experiment.num_steps, done=start) as advance,
  ):
    hooks = loop.Hooks(
      log=writer.scalars,
      save=lambda state: checkpoints.save(directory, int(state.step), state),
      advance=advance,
    )
    try:
      state = loop.train(
        algorithm,
        experiment.optimizer,
        state,
        experiment.batches(start=start),
        hooks,
        num_steps=experiment.num_steps,
        num_microbatches=experiment.num_microbatches,
        ema_decay=experiment.ema_decay,
        log_every=experiment.log_every,
        save_every=experiment.save_every,
      )
    except loop.NonFiniteError as error:
      raise FloatingPointError(f'{error} Its batch: {_keep_batch(run_dir, error)}.') from error
  if experiment.held_out is not None:
    _test_judge(experiment, state.params.online, run_dir)
  return state


def prepare(experiment: Experiment, runs: pathlib.Path) -> tuple[Algorithm, TrainState]:
  """The method and its first state; reads what other runs left, writes nothing."""
  needs = [] if experiment.feedback is None else [experiment.feedback(runs)]
  algorithm = experiment.algorithm(experiment.model, *needs)
  start = experiment.start_from
  _check_sets(experiment, algorithm)
  online = None if start is None else load_params(experiment.model, runs / start)
  state = loop.init_state(
    algorithm,
    experiment.optimizer,
    experiment.seed,
    online=online,
    reference=online if 'reference' in algorithm.plays else None,
    with_ema=experiment.ema_decay is not None,
  )
  return algorithm, state


def _check_sets(experiment: Experiment, algorithm: Algorithm) -> None:
  """Raises ValueError where a method plays parameters that the run would not have."""
  if 'reference' in algorithm.plays and experiment.start_from is None:
    raise ValueError('This method needs a reference: name the run to start from (START_FROM).')
  if 'ema' in algorithm.plays and experiment.ema_decay is None:
    raise ValueError('This method plays averaged weights: set EMA_DECAY, such as 0.999.')


def judge_of(model: Model, params: Params) -> PreferenceFn:
  """A trained preference or reward model as a judge."""
  if isinstance(model, preference_model.PreferenceModel):
    return preference_model.preference_fn(model, params)
  return reward_model.bradley_terry(reward_model.reward_fn(model, params))


def _test_judge(experiment: Experiment, params: Params, run_dir: pathlib.Path) -> None:
  """Writes judge.json: how well a trained judge predicts held-out votes."""
  comparisons = experiment.held_out()
  result = judges.test(judge_of(experiment.model, params), comparisons)
  if isinstance(experiment.model, preference_model.PreferenceModel):
    result['position_bias'] = judges.position_bias(experiment.model, params, comparisons)
  (run_dir / _JUDGE).write_text(json.dumps(result, indent=2) + '\n')


def _keep_batch(run_dir: pathlib.Path, error: loop.NonFiniteError) -> pathlib.Path:
  path = run_dir / f'not_finite_at_step_{error.step}.npz'
  leaves, _ = jax.tree_util.tree_flatten_with_path(error.batch)
  np.savez(path, **{jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves})
  return path


def summary(experiment: Experiment) -> dict[str, Any]:
  """What a dry run reports: parameters and batch, by shape, without running a step."""
  params = jax.eval_shape(experiment.model.init, jax.random.PRNGKey(0))
  opt_state = jax.eval_shape(experiment.optimizer.init, params)
  batch = next(experiment.batches(start=0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return {
    'parameters': sum(x.size for x in jax.tree.leaves(params)),
    'parameter_bytes': size(params),
    'optimizer_bytes': size(opt_state),
    'batch': jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', batch._asdict()),
    'devices': [str(device) for device in jax.devices()],
  }
