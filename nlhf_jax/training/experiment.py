"""What a gin file describes, and how it runs: train one model, hand it on.

A run is a directory: config.gin, checkpoints/, metrics.jsonl and TensorBoard events. Runs name each other by directory,
relative to their common parent: a policy starts from 'sft' and is judged by 'preference'.
"""

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from nlhf_jax.models import lora
from nlhf_jax.models import preference_model
from nlhf_jax.models import reward_model
from nlhf_jax.evaluation import judge_accuracy
from nlhf_jax.networks import t5
from nlhf_jax.runtime import checkpoints
from nlhf_jax.runtime import fingerprints
from nlhf_jax.formats import hf
from nlhf_jax.runtime import metrics
from nlhf_jax.runtime import partitioning
from nlhf_jax.runtime import processes
from nlhf_jax.runtime import progress
from nlhf_jax.runtime import run_directory
from nlhf_jax.formats import t5x
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
# Parameters to start from: takes their shapes (and shardings), and the directory that holds the runs.
Start = Callable[[Params, pathlib.Path], Params]


class Judge(NamedTuple):
  """Where a method's feedback comes from."""

  of: Callable[[Params], Feedback]  # The feedback that a model's parameters give.
  model: Model | None = None  # None: it has no parameters.
  run: str | Start | None = None  # Whose parameters they are.
  dtype: str | None = None  # To keep them in; None: as they were trained.


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
  shapes: Callable[[type], Any] | None = None  # kind of batch -> its shapes; None: a batch is read.
  feedback: Judge | None = None
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
  devices: partitioning.Devices = partitioning.Devices()  # The mesh.
  keep: checkpoints.Keep = checkpoints.Keep()
  # The reference is frozen, so it may be kept in less precision, and in the host's memory when nobody plays it.
  reference_dtype: str | None = None
  reference_on_host: bool = False


def pretrained(weights: Callable[[Params], Params]) -> Start:
  """Start: weights of another kind of file, such as `hf.weights(…)` or `t5x.weights(…)`."""
  return lambda like, runs: weights(like)


def from_run(
  name: str,
  adapters: lora.Lora | None = None,
  start_from: str | Start | None = None,
  parameters: str = 'online',
) -> Start:
  """Start: what another run trained.

  Args:
    name: of the run.
    adapters: those that it trained, if it did so, to be merged into what it started from.
    start_from: what that was.
    parameters: which set: 'online', or 'ema' for averaged weights.
  """

  def load(like: Params, runs: pathlib.Path) -> Params:
    directory = runs / name / 'checkpoints'
    if adapters is None:
      return checkpoints.restore_params(directory, like, parameters)
    shapes = jax.eval_shape(lambda: lora.init(adapters, like, jax.random.PRNGKey(0)))
    trained = checkpoints.restore_params(directory, shapes, parameters)
    return lora.merge(adapters, Adapted(_start(start_from)(like, runs), trained))

  return load


def trained_preference(
  model: preference_model.PreferenceModel, run: str | Start, dtype: str | None = None
) -> Judge:
  """Feedback: the preference model that another run trained."""
  return Judge(functools.partial(preference_model.preference_fn, model), model, run, dtype)


def trained_reward(
  model: reward_model.RewardModel, run: str | Start, dtype: str | None = None
) -> Judge:
  """Feedback: the reward model that another run trained."""
  return Judge(functools.partial(reward_model.reward_fn, model), model, run, dtype)


def exact_preference(judge: PreferenceFn) -> Judge:
  """Feedback: a judge that needs no training, such as an electorate."""
  return Judge(lambda params: judge)


def load_params(
  model: Model,
  start: str | Start,
  runs: pathlib.Path,
  layout: partitioning.Layout | None = None,
  dtype: str | None = None,
) -> Params:
  """Parameters to start from, or to judge by, checked against the model's shapes; cut over a mesh, if there is one."""
  like = shapes_of(model, layout)
  params = _start(start)(like, runs)
  if layout is not None:
    params = partitioning.put(params, jax.tree.map(lambda x: x.sharding, like))
  return params if dtype is None else _cast(params, dtype)


def _cast(params: Params, dtype: str) -> Params:
  return jax.tree.map(lambda x: x.astype(dtype), params)


def shapes_of(
  model: Model, layout: partitioning.Layout | None = None, dtype: str | None = None
) -> Params:
  """Shapes of a model's parameters, and where they lie on a mesh.

  Args:
    model: whose they are.
    layout: the mesh; None: nowhere yet.
    dtype: that they are kept in; None: the network's own.
  """
  like = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  if dtype is not None:
    like = jax.eval_shape(functools.partial(_cast, dtype=dtype), like)
  if layout is None:
    return like
  return partitioning.with_shardings(like, layout.param_shardings(like, model.axes and model.axes()))


def trained_params(
  experiment: Experiment, run_dir: pathlib.Path, parameters: str = 'online'
) -> Params:
  """What an experiment has trained, adapters merged: this set of its checkpoints."""
  start = from_run(run_dir.name, experiment.adapters, experiment.start_from, parameters)
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
  state, _ = checkpoints.restore(run_dir / 'checkpoints', state)
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
  """Trains to the end, from the newest whole checkpoint if there is one; or until the process is asked to end.

  On many processes each calls this. The first of them alone writes what is not an array.

  Args:
    experiment: what to run.
    run_dir: made if need be, once everything it depends on has been found.
    config: text of the configuration, which is kept with the run.

  Returns:
    The state; its step is below `num_steps` if the process was asked to end.

  Raises:
    ValueError: the directory holds a run of another configuration, or of another reference.
    OSError: a checkpoint could not be written.
  """
  run_directory.check_resumable(run_dir, config)
  layout = partitioning.Layout(partitioning.make_mesh(experiment.devices))
  with layout.active(), processes.termination() as stop:
    algorithm, state = prepare(experiment, run_dir.parent, layout)
    if processes.is_primary():
      run_directory.create(run_dir, config)
    processes.barrier('the run directory is open')
    return _train(experiment, run_dir, config, layout, algorithm, state, stop)


def _train(experiment, run_dir, config, layout, algorithm, state, stop) -> TrainState:
  facts = {'config': config, 'reference': _reference_of(experiment, state)}
  state, sums = _resume(run_dir, state, facts)
  start = int(state.step)
  untested = experiment.held_out is not None and not (run_dir / _JUDGE).exists()
  if start >= experiment.num_steps and not untested:
    return state
  latest = {}
  with (
    _reports(run_dir, start, experiment.num_steps) as (log, advance),
    checkpoints.Writer(run_dir / 'checkpoints', experiment.keep) as writer,
  ):

    def keep(step, means):
      latest.update(means)
      log(step, means)

    def proceed(steps):
      writer.check()
      advance(steps)

    def save(state, sums):
      writer.save(state, facts | {'next_batch': int(state.step), 'sums': sums}, latest or None)

    try:
      state = loop.train(
        algorithm,
        experiment.optimizer,
        state,
        experiment.batches(start=start),
        loop.Hooks(keep, save, proceed, stop),
        num_steps=experiment.num_steps,
        num_microbatches=experiment.num_microbatches,
        ema_decay=experiment.ema_decay,
        log_every=experiment.log_every,
        save_every=experiment.save_every,
        layout=layout,
        sums=sums,
      )
    except loop.NonFiniteError as error:
      raise FloatingPointError(f'{error} Its batch: {_keep_batch(run_dir, error)}.') from error
  if experiment.held_out is not None and int(state.step) == experiment.num_steps:
    params = state.params.online
    if experiment.adapters is not None:
      params = lora.merge(experiment.adapters, Adapted(state.params.base, params))
    _test_judge(experiment, params, run_dir)
  return state


@contextlib.contextmanager
def _reports(run_dir: pathlib.Path, start: int, num_steps: int):
  """What logs metrics and what advances the bar; on all processes but the first they do nothing."""
  if not processes.is_primary():
    yield lambda step, means: None, lambda steps: None
    return
  with (
    metrics.Writer(run_dir, resume_step=start) as writer,
    progress.bar(run_dir.name, num_steps, done=start) as advance,
  ):
    yield writer.scalars, advance


def _resume(run_dir: pathlib.Path, state: TrainState, facts: dict[str, Any]):
  """The newest whole checkpoint's state and sums of metrics; if there is none, the first state."""
  directory = run_dir / 'checkpoints'
  if checkpoints.latest_step(directory) is None:
    return state, None
  state, found = checkpoints.restore(directory, state, quarantine=True)
  if found['reference'] != facts['reference']:
    raise ValueError(
      f'{run_dir} was trained against another reference ({found["reference"]}) than it would be now '
      f'({facts["reference"]}): restore the run that it starts from, or name another --run_dir.'
    )
  return state, found['sums']


def _reference_of(experiment: Experiment, state: TrainState) -> dict[str, str] | None:
  """Which reference a run is held to: its name, where it has one, and its fingerprint."""
  reference = state.params.base if state.params.reference is None else state.params.reference
  if reference is None:
    return None
  name = experiment.start_from if isinstance(experiment.start_from, str) else 'a file'
  return {
    'from': name,
    'fingerprint': fingerprints.fingerprint_tree(partitioning.to_device(reference)),
  }


def prepare(
  experiment: Experiment, runs: pathlib.Path, layout: partitioning.Layout | None = None
) -> tuple[Algorithm, TrainState]:
  """The method and its first state; reads what other runs left, writes nothing."""
  needs = [] if experiment.feedback is None else [_feedback(experiment.feedback, runs, layout)]
  algorithm = experiment.algorithm(trained_model(experiment), *needs)
  check_sets(experiment, algorithm)
  start = None
  if experiment.adapters is not None or experiment.start_from is not None:
    start = load_params(experiment.model, experiment.start_from, runs, layout)
  shardings = None if layout is None else shardings_of(experiment, algorithm, layout)
  return algorithm, _first_state(experiment, algorithm, start, shardings)


def _feedback(judge: Judge, runs: pathlib.Path, layout: partitioning.Layout | None) -> Feedback:
  if judge.model is not None:
    return judge.of(load_params(judge.model, judge.run, runs, layout, judge.dtype))
  return judge.of(()) if processes.is_single_process() else _of_all_rows(judge.of(()), layout)


def _of_all_rows(feedback: Feedback, layout: partitioning.Layout) -> Feedback:
  """Feedback that may run on the host: each of many processes gives it on all rows, and keeps its own."""

  def give(prompts, *responses):
    return layout.shard_rows(np.asarray(feedback(*processes.gather((prompts, *responses)))))

  return give


def shardings_of(
  experiment: Experiment, algorithm: Algorithm, layout: partitioning.Layout
) -> TrainState:
  """Where the run's arrays lie."""
  names = lambda model: model.axes and model.axes()
  trained, model = names(trained_model(experiment)), names(experiment.model)
  state = layout.state_shardings(state_shapes(experiment, algorithm), trained, model)
  if not experiment.reference_on_host or state.params.reference is None:
    return state
  on_host = jax.tree.map(lambda x: x.with_memory_kind('pinned_host'), state.params.reference)
  return state._replace(params=state.params._replace(reference=on_host))


def state_shapes(experiment: Experiment, algorithm: Algorithm) -> TrainState:
  first = functools.partial(_first_state, experiment, algorithm)
  return jax.eval_shape(first, shapes_of(experiment.model))


def _first_state(
  experiment: Experiment,
  algorithm: Algorithm,
  start: Params | None,
  shardings: TrainState | None = None,
) -> TrainState:
  """The state before the first step, from the parameters that the run starts from."""
  adapted = experiment.adapters is not None
  reference = start if 'reference' in algorithm.plays and not adapted else None
  if reference is not None and experiment.reference_dtype is not None:
    reference = _cast(reference, experiment.reference_dtype)
  if reference is not None and shardings is not None:
    reference = partitioning.put(reference, shardings.params.reference)
  return loop.init_state(
    algorithm,
    experiment.optimizer,
    experiment.seed,
    online=None if adapted else start,
    reference=reference,
    base=start if adapted else None,
    with_ema=experiment.ema_decay is not None,
    shardings=shardings,
  )


def trained_model(experiment: Experiment) -> Model:
  if experiment.adapters is None:
    return experiment.model
  return lora.adapt(experiment.model, experiment.adapters)


def check_sets(experiment: Experiment, algorithm: Algorithm) -> None:
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
  result = judge_accuracy.measure(judge_of(experiment.model, params), comparisons)
  if isinstance(experiment.model, preference_model.PreferenceModel):
    result['position_bias'] = judge_accuracy.position_bias(experiment.model, params, comparisons)
  if processes.is_primary():
    (run_dir / _JUDGE).write_text(json.dumps(result, indent=2) + '\n')


def _keep_batch(run_dir: pathlib.Path, error: loop.NonFiniteError) -> pathlib.Path:
  path = run_dir / f'not_finite_at_step_{error.step}.npz'
  leaves, _ = jax.tree_util.tree_flatten_with_path(processes.gather(error.batch))
  if processes.is_primary():
    np.savez(path, **{jax.tree_util.keystr(key): leaf for key, leaf in leaves})
  return path
