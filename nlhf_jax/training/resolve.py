"""What an experiment names, found: weights, judges, method, mesh. Reads what other runs left, writes nothing."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.evaluation import distance, judge_accuracy, voter_accuracy
from nlhf_jax.models import lora, preference_model, reward_model
from nlhf_jax.runtime import checkpoints, fingerprints, metrics, partitioning, processes
from nlhf_jax.training import loop, parameter_sets, rollouts, steps, traces, warning_signs, weights
from nlhf_jax.training.experiment import (
  Experiment,
  Feedback,
  FeedbackSource,
  Model,
  Origin,
  run_of,
  trained_model,
)
from nlhf_jax.types import (
  Adapted,
  Algorithm,
  AllPairsJudge,
  Batch,
  Comparison,
  FixedPoint,
  Params,
  Policy,
  PolicyParams,
  PreferenceFn,
  Prompts,
  TrainState,
)

# Held-out prompts on which a judge is asked about all pairs of responses.
_NUM_ENUMERATED = 40
# Comparisons that the linear model beside a judge learns from.
_NUM_FITTED = 8000


# Parameters, and the steps done → metrics, where it is time for them.
Measure = Callable[[PolicyParams, int], dict[str, float]]


class Run(NamedTuple):
  """An experiment whose weights, method and mesh have been found: what training takes."""

  algorithm: Algorithm
  # Of what is trained: 'Policy', 'PreferenceModel' or 'RewardModel'.
  kind: str
  optimizer: optax.GradientTransformation
  # Before the first step.
  state: TrainState
  # start -> batches from that number on.
  batches: Callable[..., Iterator[Batch]]
  num_steps: int
  num_microbatches: int
  num_updates: int
  num_rollout_parts: int
  # Whether the update is compiled beside the first sampling: the judge can be called with shapes.
  compiles_ahead: bool
  # Steps.
  log_every: int
  save_every: int | None
  # The sets besides θ that checkpoints hold.
  saved: tuple[str, ...]
  keep: checkpoints.Keep
  # Which reference the run is held to: where it came from, its fingerprint, and what it is made of. None: it has none.
  reference: dict[str, Any] | None
  # Which weights judge it: where they came from, and their fingerprint. None: no others than its configuration names.
  judged_by: dict[str, str] | None
  # Votes that a judge is tested on; None: it is none, or is not tested.
  held_out: Callable[[], Comparison] | None
  # How well it predicts them.
  test_judge: Callable[[PolicyParams, Comparison], dict[str, Any]]
  # Reads the prompts that the policy is measured on; None: it is not.
  make_measure: Callable[[], Measure] | None
  layout: partitioning.Layout | None
  # Rollouts that are kept; None: none are.
  traced: traces.Traces | None
  # To whom metrics are reported, besides the run's files.
  writers: tuple[metrics.MakeWriter, ...]
  # What warnings depend on.
  method: warning_signs.Method


def resolve(
  experiment: Experiment, runs: pathlib.Path, layout: partitioning.Layout | None = None
) -> Run:
  """Finds all that an experiment names; reads what other runs left, writes nothing.

  Args:
    experiment: what to run.
    runs: the directory of the runs that it names.
    layout: the mesh; None: one device.

  Raises:
    FileNotFoundError: a run or a file that it names is not there.
    ValueError: the method needs a reference and the run starts from nothing; shapes differ; rollouts in parts, of a method or
      with a judge that gains nothing by them.
  """
  feedback, judged_by = [], None
  if experiment.feedback is not None:
    bound, judged_by = bind_and_identify(experiment.feedback, runs, layout)
    feedback = [bound]
  algorithm = build_algorithm(experiment, *feedback)
  rollouts.check_method(algorithm, experiment.num_rollout_parts)
  metrics.check_installed(experiment.writers)
  if experiment.traced is not None:
    traces.check(experiment.traced)
  if experiment.num_rollout_parts > 1 and isinstance(experiment.feedback, FeedbackSource):
    raise ValueError(
      'num_rollout_parts must be 1 where another run trained the judge: it runs on the devices that sample, and the two '
      'would not overlap.'
    )
  start: Params | None = None
  origin: Origin = {}
  if experiment.adapters is not None or experiment.start_from is not None:
    start, origin = weights.load_told(experiment.model, experiment.start_from, runs, layout)
  shardings = None if layout is None else state_shardings(experiment, algorithm, layout)
  state = _first_state(experiment, algorithm, start, shardings)
  return Run(
    algorithm,
    weights.kind_of(experiment.model),
    experiment.optimizer,
    state,
    experiment.batches,
    experiment.num_steps,
    experiment.num_microbatches,
    experiment.num_updates,
    experiment.num_rollout_parts,
    bool(algorithm.mixtures) and isinstance(experiment.feedback, FeedbackSource),
    experiment.log_every,
    experiment.save_every,
    tuple(parameter_sets.saved(algorithm.sets)),
    experiment.keep,
    _reference_of(experiment, algorithm, state, origin),
    judged_by,
    experiment.held_out,
    functools.partial(_test_judge, experiment),
    _measure_maker(experiment, algorithm, state.params),
    layout,
    experiment.traced,
    tuple(experiment.writers),
    warning_signs.method_of(algorithm, experiment.model),
  )


def build_algorithm(experiment: Experiment, *feedback: Feedback) -> Algorithm:
  """The method with its feedback, and with the experiment's own parameter sets.

  Raises:
    ValueError: it needs what the experiment does not give.
  """
  algorithm = experiment.algorithm(trained_model(experiment), *feedback)
  algorithm = parameter_sets.extend(algorithm, experiment.sets)
  reference = algorithm.sets.get('reference')
  if reference is None:
    return algorithm
  if experiment.start_from is None:
    raise ValueError('This method needs a reference: set start_from to the run to start from.')
  if reference.move is not None and (experiment.reference_dtype or experiment.reference_on_host):
    raise ValueError(
      'A reference that is reset is kept as θ is: leave reference_dtype and reference_on_host at their defaults.'
    )
  return algorithm


def fixed_point(experiment: Experiment) -> FixedPoint | None:
  """Where the experiment's method stops, under whatever feedback."""
  feedback = [] if experiment.feedback is None else [lambda *args: None]
  return build_algorithm(experiment, *feedback).fixed_point


def bind_feedback(
  feedback: Feedback | FeedbackSource,
  runs: pathlib.Path,
  layout: partitioning.Layout | None = None,
) -> Feedback:
  """A judge or a reward, with the weights that its run trained; of any kind, on any number of processes."""
  return bind_and_identify(feedback, runs, layout)[0]


def bind_and_identify(
  feedback: Feedback | FeedbackSource,
  runs: pathlib.Path,
  layout: partitioning.Layout | None = None,
) -> tuple[Feedback, dict[str, str] | None]:
  """The same, and the identity of its weights (`weights.identity`); None: it has none that another run trained."""
  if not isinstance(feedback, FeedbackSource):
    return _on_all_processes(feedback, layout), None
  weights.check_kind(feedback.model, feedback.run, runs)
  params = weights.load_params(feedback.model, feedback.run, runs, layout, feedback.dtype)
  return feedback.feedback(params), weights.identity(feedback.run, params, runs)


def _on_all_processes(feedback: Feedback, layout: partitioning.Layout | None) -> Feedback:
  if processes.is_single_process():
    return feedback
  if isinstance(feedback, AllPairsJudge) and feedback.annotators is not None:
    asked = (_on_all_rows(ask, layout) for ask in feedback)  # type: ignore[arg-type]
    return AllPairsJudge(*asked)  # type: ignore[arg-type]
  return _on_all_rows(feedback, layout)


def _on_all_rows(feedback: Feedback, layout: partitioning.Layout) -> Feedback:
  """Feedback that may run on the host: each of many processes gives it on all rows, and keeps its own."""

  def give(prompts, *responses):
    return layout.shard_rows(np.asarray(feedback(*processes.gather((prompts, *responses)))))

  return give


def state_shardings(
  experiment: Experiment, algorithm: Algorithm, layout: partitioning.Layout
) -> TrainState:
  """How the run's arrays are sharded."""
  logical_axes = lambda model: model.axes and model.axes()
  trained, base = logical_axes(trained_model(experiment)), logical_axes(experiment.model)
  state = layout.state_shardings(state_shapes(experiment, algorithm), trained, base)
  if not experiment.reference_on_host or 'reference' not in state.params.sets:
    return state
  to_host = lambda x: x.with_memory_kind('pinned_host')
  reference = jax.tree.map(to_host, state.params.sets['reference'])
  sets = {**state.params.sets, 'reference': reference}
  return state._replace(params=state.params._replace(sets=sets))


def state_shapes(experiment: Experiment, algorithm: Algorithm) -> TrainState:
  """Shapes of the run's arrays."""
  first = functools.partial(_first_state, experiment, algorithm)
  return jax.eval_shape(first, weights.shapes_of(experiment.model))


def _first_state(
  experiment: Experiment,
  algorithm: Algorithm,
  start: Params | None,
  shardings: TrainState | None = None,
) -> TrainState:
  """The state before the first step, from the parameters that the run starts from."""
  adapted = experiment.adapters is not None
  given = {}
  if 'reference' in algorithm.sets and not adapted:
    given = {'reference': start}
    if experiment.reference_dtype is not None:
      given = {'reference': weights.cast(start, experiment.reference_dtype)}
    if shardings is not None:
      given = partitioning.put(given, {'reference': shardings.params.sets['reference']})
  return loop.init_state(
    algorithm,
    experiment.optimizer,
    experiment.seed,
    online=None if adapted else start,
    given=given,
    base=start if adapted else None,
    shardings=shardings,
  )


def _reference_of(
  experiment: Experiment, algorithm: Algorithm, state: TrainState, origin: Origin
) -> dict[str, Any] | None:
  """Which reference the run is held to."""
  base = state.params.base
  if 'reference' not in algorithm.sets and base is None:
    return None
  # Checkpoints do not hold the base, on which adapters mean something.
  reference = state.params.sets['reference'] if base is None else base
  if origin and base is None and experiment.reference_dtype is not None:
    origin = origin | {'origin': f'{origin["origin"]} as {jnp.dtype(experiment.reference_dtype)}'}
  fingerprint = fingerprints.fingerprint_tree(partitioning.to_device(reference))
  return {'from': run_of(experiment.start_from) or 'a file', 'fingerprint': fingerprint} | origin


def _measure_maker(
  experiment: Experiment, algorithm: Algorithm, start: PolicyParams
) -> Callable[[], Measure] | None:
  """What measures the policy in training against where its method stops, μ being what it starts from."""
  if experiment.measured is None:
    return None
  measured, policy = experiment.measured, trained_model(experiment)
  if not isinstance(policy, Policy):
    raise ValueError('Experiment.measured is for policies: leave it out where a judge is trained.')
  # What is measured is logged, and the loop asks for it where it logs.
  every, log_every = measured.every, experiment.log_every
  if every < 1 or every % log_every:
    raise ValueError(
      f'Measured.every is {every}, which is no multiple of Experiment.log_every ({log_every}): policies are measured where they are '
      f'logged, so set Measured.every to {max(1, round(every / log_every)) * log_every}, say, or log_every to a divisor.'
    )

  def make() -> Measure:
    # The first update overwrites what training starts from, which is measured against later.
    kept = start._replace(online=jax.tree.map(jnp.copy, start.online))
    reference = steps.over_base(kept).online
    find = distance.make_measure(measured, policy, reference, algorithm.fixed_point)

    def measure(params: PolicyParams, step: int) -> dict[str, float]:
      if step % measured.every and step != experiment.num_steps:
        return {}
      return distance.metrics(find(steps.over_base(params).online))

    return measure

  return make


def merged_params(adapters: lora.Lora | None, params: PolicyParams) -> Params:
  """θ as the model takes it: adapters, if there are any, merged into their base."""
  if adapters is None:
    return params.online
  return lora.merge(adapters, Adapted(params.base, params.online))


def judge_of(model: Model, params: Params) -> PreferenceFn:
  """A trained preference or reward model as a judge."""
  if isinstance(model, preference_model.PreferenceModel):
    return preference_model.preference_fn(model, params)
  assert isinstance(model, reward_model.RewardModel)
  return reward_model.bradley_terry(reward_model.reward_fn(model, params))


def _test_judge(
  experiment: Experiment, params: PolicyParams, held_out: Comparison
) -> dict[str, Any]:
  """How well a trained judge predicts held-out votes, beside a linear model of the same data."""
  model = experiment.model
  assert not isinstance(model, Policy)
  merged = merged_params(experiment.adapters, params)
  judge = judge_of(model, merged)
  result = judge_accuracy.measure(judge, held_out)
  result['plain_features'] = judge_accuracy.measure_plain_features(
    _first_comparisons(experiment.batches(start=0)), held_out, model.render
  )
  if experiment.enumeration is not None:
    prompts = _first_prompts(held_out.prompts, _NUM_ENUMERATED)
    enumeration = experiment.enumeration(prompts)
    result['all_pairs'] = judge_accuracy.measure_all_pairs(judge, prompts, enumeration)
  if not isinstance(model, preference_model.PreferenceModel):
    return result
  if _tells_voters(model, held_out):
    training = _first_comparisons(experiment.batches(start=0))
    voters = experiment.voters
    number = voters.num_training if voters.names else None
    result['voters'] = voter_accuracy.measure_model(
      model, merged, training, held_out, num_training=number
    )
  # A model that reads each response by itself has no first place.
  if model.table is None:
    result['position_bias'] = judge_accuracy.position_bias(model, merged, held_out)
  return result


def _tells_voters(model: Model, held_out: Comparison | None) -> bool:
  tells = isinstance(model, preference_model.PreferenceModel) and model.voters is not None
  return tells and held_out is not None and held_out.voter is not None


def check_test(experiment: Experiment, held_out: Comparison | None) -> None:
  """Raises ValueError where a judge can be trained, but not tested: tastes of a population are of two voters or more."""
  if not _tells_voters(experiment.model, held_out):
    return
  known: set[int] = set()
  for batch in _first_comparisons(experiment.batches(start=0)):
    known |= set() if batch.voter is None else {x for x in np.unique(batch.voter) if x >= 0}
    if len(known) > 1:
      return
  raise ValueError(
    f'A model that tells voters apart needs training votes of at least two voters, got those of {len(known)} in the first '
    f'{_NUM_FITTED:,}: give it votes of more, or train a preference model that does not ask who votes.'
  )


def _first_comparisons(batches: Iterator[Batch]) -> Iterator[Comparison]:
  """As many batches as a linear model needs."""
  number = 0
  for batch in batches:
    if number >= _NUM_FITTED:
      return
    assert isinstance(batch, Comparison)
    number += len(batch.preference)
    yield batch


def _first_prompts(prompts: Prompts, number: int) -> Prompts:
  """The first different ones."""
  _, first = np.unique(prompts.index, return_index=True)
  rows = np.sort(first)[:number]
  return Prompts(prompts.tokens[rows], prompts.index[rows])
