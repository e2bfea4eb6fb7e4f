"""What a gin file describes, and how it runs: train one model, hand it on.

A run is a directory: config.gin, checkpoints/, metrics.jsonl and TensorBoard events. Runs name each other by directory,
relative to their common parent: a policy starts from 'sft' and is judged by 'preference'.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax import lora, preference_model, reward_model
from nlhf_jax.evaluation import judges
from nlhf_jax.networks import t5
from nlhf_jax.runtime import checkpoints, hf, metrics, progress, run_directory, t5x
from nlhf_jax.training import loop
from nlhf_jax.types import (
  Adapted,
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
# Parameters to start from: takes their shapes and the directory that holds the runs.
Start = Callable[[Params, pathlib.Path], Params]


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
  start_from: str | Start | None = (
    None  # A run, `from_run` or `pretrained`. None: random parameters.
  )
  adapters: lora.Lora | None = (
    None  # Train these alone, on what the run starts from; μ is that without them.
  )
  network: nn.Module | None = None  # The model's, for those who take its weights elsewhere.
  held_out: Callable[[], Comparison] | None = (
    None  # Comparisons that a judge is tested on, once it is trained.
  )
  num_microbatches: int = 1
  ema_decay: float | None = None
  log_every: int = 10
  save_every: int | None = None
  seed: int = 0


def pretrained(weights: Callable[[Params], Params]) -> Start:
  """Start: weights of another kind of file, such as `hf.weights(…)` or `t5x.weights(…)`."""
  return lambda like, runs: weights(like)


def from_run(
  name: str, adapters: lora.Lora | None = None, start_from: str | Start | None = None
) -> Start:
  """Start: what another run trained.

  Args:
    name: of the run.
    adapters: those that it trained, if it did so, to be merged into what it started from.
    start_from: what that was.
  """

  def load(like: Params, runs: pathlib.Path) -> Params:
    directory = runs / name / 'checkpoints'
    if adapters is None:
      return checkpoints.restore_params(directory, like, 'online')
    shapes = jax.eval_shape(lambda: lora.init(adapters, like, jax.random.PRNGKey(0)))
    trained = checkpoints.restore_params(directory, shapes, 'online')
    return lora.merge(adapters, Adapted(_start(start_from)(like, runs), trained))

  return load


def trained_preference(model: preference_model.PreferenceModel, run: str | Start):
  """Feedback: the preference model that another run trained."""
  return lambda runs: preference_model.preference_fn(model, load_params(model, run, runs))


def trained_reward(model: reward_model.RewardModel, run: str | Start):
  """Feedback: the reward model that another run trained."""
  return lambda runs: reward_model.reward_fn(model, load_params(model, run, runs))


def exact_preference(judge: PreferenceFn):
  """Feedback: a judge that needs no training, such as an electorate."""
  return lambda runs: judge


def load_params(model: Model, start: str | Start, runs: pathlib.Path) -> Params:
  """Parameters to start from, or to judge by, checked against the model's shapes."""
  return _start(start)(jax.eval_shape(model.init, jax.random.PRNGKey(0)), runs)


def trained_params(experiment: Experiment, run_dir: pathlib.Path) -> Params:
  """What an experiment has trained, adapters merged."""
  start = from_run(run_dir.name, experiment.adapters, experiment.start_from)
  return load_params(experiment.model, start, run_dir.parent)


def export(
  experiment: Experiment,
  run_dir: pathlib.Path,
  output_dir: pathlib.Path,
  to: str,
  *,
  dtype: str | None = None,
  base_model: str | None = None,
) -> None:
  """Writes what a run has trained in another format.

  Args:
    experiment: the run's.
    run_dir: the run.
    output_dir: where to.
    to: 'hf': a model for `transformers`; 't5x': a checkpoint that T5X resumes from; 'peft': adapters alone.
    dtype: of the arrays of 'hf'; None: as they are.
    base_model: the model that the weights came from: its tokenizer goes along with 'hf', its name with 'peft'.

  Raises:
    ValueError: the run has no such thing.
  """
  if experiment.network is None:
    raise ValueError(f'{run_dir} does not say which network it trained: bind Experiment.network.')
  config = experiment.network.config
  if to == 'hf':
    params = trained_params(experiment, run_dir)
    hf.save(params, config, output_dir, dtype=dtype, tokenizer_from=base_model)
    return
  if to == 'peft' and experiment.adapters is None:
    raise ValueError(f'{run_dir} trained no adapters: export it with --to=hf.')
  if to == 't5x' and not isinstance(config, t5.T5Config):
    raise ValueError(f'{run_dir} trained no T5, which T5X needs: export it with --to=hf.')
  _, state = prepare(experiment, run_dir.parent)
  state = checkpoints.restore(run_dir / 'checkpoints', state)
  if to == 'peft':
    alpha = experiment.adapters.alpha
    adapters = state.params.online
    hf.save_adapters(adapters, config, output_dir, alpha=alpha, base_model=base_model or '')
    return
  if experiment.adapters is not None:
    state = state._replace(params=state.params._replace(online=trained_params(experiment, run_dir)))
    state = state._replace(opt_state=())  # The adapters' moments say nothing of the merged weights.
  t5x.save(state, output_dir)


def _start(start: str | Start | None) -> Start:
  if start is None:
    raise ValueError('Adapters need weights to sit on: name a run, or a checkpoint (START_FROM).')
  return from_run(start) if isinstance(start, str) else start


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
    params = state.params.online
    if experiment.adapters is not None:
      params = lora.merge(experiment.adapters, Adapted(state.params.base, params))
    _test_judge(experiment, params, run_dir)
  return state


def prepare(experiment: Experiment, runs: pathlib.Path) -> tuple[Algorithm, TrainState]:
  """The method and its first state; reads what other runs left, writes nothing."""
  needs = [] if experiment.feedback is None else [experiment.feedback(runs)]
  algorithm = experiment.algorithm(_trained_model(experiment), *needs)
  _check_sets(experiment, algorithm)
  start = None
  if experiment.adapters is not None or experiment.start_from is not None:
    start = load_params(experiment.model, experiment.start_from, runs)
  return algorithm, _first_state(experiment, algorithm, start)


def _first_state(experiment: Experiment, algorithm: Algorithm, start: Params | None) -> TrainState:
  """The state before the first step, from the parameters that the run starts from."""
  adapted = experiment.adapters is not None
  return loop.init_state(
    algorithm,
    experiment.optimizer,
    experiment.seed,
    online=None if adapted else start,
    reference=start if 'reference' in algorithm.plays and not adapted else None,
    base=start if adapted else None,
    with_ema=experiment.ema_decay is not None,
  )


def _trained_model(experiment: Experiment) -> Model:
  if experiment.adapters is None:
    return experiment.model
  return lora.adapt(experiment.model, experiment.adapters)


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


def summary(experiment: Experiment, runs: pathlib.Path) -> dict[str, Any]:
  """What a dry run reports: parameters, batch and memory, by shape, without running a step.

  Args:
    experiment: whose run it would be.
    runs: the directory that holds the runs; a judge that is not there yet is left out of the memory.
  """
  try:
    needs = [] if experiment.feedback is None else [experiment.feedback(runs)]
    lacking = None
  except FileNotFoundError as error:
    needs, lacking = [lambda prompts, y, *_: jnp.zeros(y.shape[0])], str(error)
  algorithm = experiment.algorithm(_trained_model(experiment), *needs)
  _check_sets(experiment, algorithm)
  model = jax.eval_shape(experiment.model.init, jax.random.PRNGKey(0))
  state = jax.eval_shape(functools.partial(_first_state, experiment, algorithm), model)
  batch = next(experiment.batches(start=0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  needed = loop.memory(
    algorithm,
    experiment.optimizer,
    state,
    batch,
    num_microbatches=experiment.num_microbatches,
    ema_decay=experiment.ema_decay,
  )
  return {
    'parameters': sum(x.size for x in jax.tree.leaves(model)),
    'parameter_bytes': size(model),
    'trained_parameters': sum(x.size for x in jax.tree.leaves(state.params.online)),
    'optimizer_bytes': size(state.opt_state),
    'batch': jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', batch._asdict()),
    'memory_bytes': needed | ({} if lacking is None else {'without_judge': lacking}),
    'devices': [str(device) for device in jax.devices()],
  }
