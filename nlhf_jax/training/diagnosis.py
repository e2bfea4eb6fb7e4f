"""What keeps a policy from its fixed point: judge, estimator, step, data or network, each taken away.

A run is trained again with every obstacle out of the way, with each alone out of the way, and with each alone put back; what an
obstacle costs is the gap that comes back with it. What the network cannot hold shows when it imitates the fixed point.

| obstacle  | out of the way                                                                              |
|-----------|---------------------------------------------------------------------------------------------|
| judge     | the annotators themselves                                                                   |
| estimator | twice the responses to a prompt, at least 16; all their pairs, where the judge has them cheaply |
| step      | a third of every update                                                                     |
| data      | prompts without end, where the run has a finite number                                      |
| network   | samples of the fixed point are imitated: no method could come nearer with these weights and steps |
"""

import functools
import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.table
from jaxtyping import Float

from nlhf_jax import untrusted
from nlhf_jax.evaluation import distance, exact
from nlhf_jax.evaluation.win_rates import mean_with_interval
from nlhf_jax.judges import electorate
from nlhf_jax.runtime import atomic, checkpoints, metrics
from nlhf_jax.training import resolve, run, steps, weights
from nlhf_jax.training.experiment import Experiment, FeedbackSource
from nlhf_jax.types import (
  PAD,
  Algorithm,
  AllPairsJudge,
  Batch,
  Demonstration,
  Params,
  Policy,
  Prompts,
  Rollout,
)

AS_IT_IS, ALL_AWAY, IMITATION = 'as it is', 'all away', 'imitation'
HELD_OUT = 'held_out'
_RESULT = 'diagnosis.json'
# Of the gap as it is: what costs less is no obstacle worth the name.
_SHARE = 0.1
# Responses to a prompt.
_NUM_SAMPLES = 16
# Of the probabilities that imitated responses are drawn with.
_TOLERANCE = 1e-5
_MEASURES = {
  'duality_gap': 'duality gap',
  'worst_case': 'worst case',
  'total_variation': 'total variation',
}


# Learns from demonstrations.
Imitate = Callable[[Policy], Algorithm]


class Trial(NamedTuple):
  """The run with some of its obstacles out of the way."""

  name: str
  experiment: Experiment


def diagnose(
  experiment: Experiment,
  run_dir: pathlib.Path,
  output_dir: pathlib.Path,
  imitate: Imitate,
  fields: Mapping[str, Any] | None = None,
  config: str = '',
) -> dict[str, Any] | None:
  """Trains a run again with obstacles out of its way, and tells what each costs.

  Args:
    experiment: the run's, with `measured`.
    run_dir: the run; the runs that it names lie beside it.
    output_dir: gets a run for each trial, which is not trained again where it is done, and diagnosis.json.
    imitate: the method that imitates the fixed point: `algorithms.sft`.
    fields, config: of the run, as of `run.train`.

  Returns:
    What `summary` gives, and `last_quarter`: how much of the gap the last quarter of the steps took off with everything away.
    None where the process was asked to end before: the trials have saved where they are, and nothing is written of them.

  Raises:
    ValueError: the run trains no policy, measures nothing, its method has no fixed point, or fresh prompts are its own.
    OSError: diagnosis.json is a link that leads out of output_dir.
  """
  untrusted.check_link(output_dir / _RESULT)  # Not only when all has been trained.
  measured = experiment.measured
  if measured is None:
    raise ValueError(
      'This run is measured on nothing: set Experiment.measured, as configs/parts/measured.gin does.'
    )
  policy = experiment.model
  if not isinstance(policy, Policy):
    raise ValueError(
      f'{run_dir} holds no policy but a judge: name a run of a method that trains one.'
    )
  point = measured.fixed_point or resolve.fixed_point(experiment)
  if point is None:
    raise ValueError('The method of this run has no fixed point that could be found.')
  _check_fresh(experiment)
  measured = measured._replace(fixed_point=point)
  # Trials are compared here; nobody reads what they wrote, and they are no runs for a tracker.
  experiment = experiment._replace(measured=measured, traced=None, writers=())
  runs = run_dir.parent
  reference = weights.load_params(experiment.model, experiment.start_from, runs)
  measure = distance.make_measure(experiment.measured, policy, reference, point)
  found = {'SFT': measure(reference)}
  for trial in trials(experiment, reference, imitate):
    directory = _directory(output_dir, trial.name)
    own = dict(fields or {}) | {'trial': trial.name}
    if trial.name == AS_IT_IS and experiment.num_steps == checkpoints.latest_step(
      run_dir / 'checkpoints'
    ):
      found[trial.name] = measure(weights.trained_params(experiment, run_dir))
      continue
    state = run.train(trial.experiment, directory, own, config, runs=runs)
    if int(state.step) < trial.experiment.num_steps:
      return None
    found[trial.name] = measure(resolve.merged_params(experiment.adapters, state.params))
  result = summary(found) | {'last_quarter': _last_quarter(_directory(output_dir, ALL_AWAY))}
  atomic.write_json(output_dir / _RESULT, result)
  return result


def _check_fresh(experiment: Experiment) -> None:
  """Raises ValueError where the fresh prompts are the run's own: taking them away would be measured as no obstacle."""
  fresh = experiment.measured.fresh_batches
  if fresh is None:
    return
  first, own = (next(batches(start=0)) for batches in (fresh, experiment.batches))
  if np.array_equal(_prompts(first).tokens, _prompts(own).tokens):
    raise ValueError(
      'Measured.fresh_batches gives the prompts of Experiment.batches: bind it to another corpus, every scope of it named, '
      'or to None.'
    )


def _prompts(batch: Batch) -> Prompts:
  return batch if isinstance(batch, Prompts) else batch.prompts


def _directory(output_dir: pathlib.Path, trial: str) -> pathlib.Path:
  return output_dir / trial.replace(' ', '_')


def trials(experiment: Experiment, reference: Params, imitate: Imitate) -> list[Trial]:
  """As it is; everything away; each obstacle alone away, and alone put back; the fixed point imitated."""
  removers = {
    'judge': _exact_feedback,
    'estimator': _more_responses,
    'step': _smaller_step,
  }
  if experiment.measured.fresh_batches is not None:
    removers['data'] = _fresh_prompts
  remove = lambda names: functools.reduce(lambda x, name: removers[name](x), names, experiment)
  result = [Trial(AS_IT_IS, experiment), Trial(ALL_AWAY, remove(removers))]
  for name in removers:
    result.append(Trial(f'{name} away', remove([name])))
    result.append(Trial(f'{name} back', remove([other for other in removers if other != name])))
  imitation = lambda x: _imitation(_smaller_step(x), reference, imitate)
  if 'data' in removers:
    result.append(Trial('imitation own prompts', imitation(experiment)))
    experiment = _fresh_prompts(experiment)
  return [*result, Trial(IMITATION, imitation(experiment))]


def _exact_feedback(experiment: Experiment) -> Experiment:
  enumeration, is_reward = (
    experiment.measured.enumeration,
    experiment.measured.fixed_point.beta is None,
  )
  exact_feedback = exact.reward_fn if is_reward else electorate.preference_fn
  return experiment._replace(feedback=exact_feedback(enumeration))


def _more_responses(experiment: Experiment) -> Experiment:
  settings: dict[str, Any] = {'num_samples': max(_NUM_SAMPLES, 2 * _num_samples(experiment))}
  if 'all_pairs' in inspect.signature(experiment.algorithm).parameters:
    settings['all_pairs'] = _reads_all_pairs(experiment)
  return experiment._replace(algorithm=functools.partial(experiment.algorithm, **settings))


def _num_samples(experiment: Experiment) -> int:
  """Responses to a prompt, as it is."""
  algorithm = resolve.build_algorithm(experiment, lambda *args: None)
  played = steps.Steps(algorithm, experiment.optimizer).played
  sample = lambda params, *rest: algorithm.sample(played(params), *rest)
  params = resolve.state_shapes(experiment, algorithm).params
  prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  rollout = jax.eval_shape(sample, params, prompts, jax.random.PRNGKey(0))
  return rollout.response.tokens.shape[0]


def _reads_all_pairs(experiment: Experiment) -> bool:
  """Whether the judge compares all pairs for little more than a few."""
  if isinstance(experiment.feedback, FeedbackSource):
    return getattr(experiment.feedback.model, 'table', None) is not None
  return isinstance(experiment.feedback, AllPairsJudge)


def _smaller_step(experiment: Experiment) -> Experiment:
  return experiment._replace(optimizer=optax.chain(experiment.optimizer, optax.scale(1 / 3)))


def _fresh_prompts(experiment: Experiment) -> Experiment:
  return experiment._replace(batches=experiment.measured.fresh_batches)


def _imitation(experiment: Experiment, reference: Params, imitate: Imitate) -> Experiment:
  """The fixed point's own responses as demonstrations, as many as a batch of the estimator's."""
  batches = functools.partial(_demonstrations, experiment, reference)
  return experiment._replace(
    algorithm=imitate, batches=batches, shapes=None, feedback=None, sets={}, num_updates=1
  )


def _demonstrations(
  experiment: Experiment, reference: Params, start: int
) -> Iterator[Demonstration]:
  """Batches from a number on; a batch's responses are a function of its number."""
  assert isinstance(experiment.model, Policy)
  point, score = experiment.measured.fixed_point, exact.enumerator(experiment.model)
  for number, prompts in enumerate(experiment.batches(start=start), start=start):
    responses, scores = experiment.measured.enumeration(prompts)
    log_probs = score(reference, prompts, responses)
    prompt_games = exact.make_games(scores, log_probs, [point], tolerance=_TOLERANCE)
    rng = np.random.default_rng([experiment.seed, number])
    rows = []
    for one, of_prompt in zip(prompt_games, responses, strict=True):
      p = one.fixed_points[point][:-1]
      rows.append(of_prompt[one.valid][rng.choice(p.size, _NUM_SAMPLES, p=p / p.sum())])
    tokens = jnp.asarray(np.concatenate(rows))
    yield Demonstration(prompts, Rollout(tokens, tokens != PAD))


def summary(found: Mapping[str, distance.Distances]) -> dict[str, Any]:
  """Means with intervals of each trial, and what each obstacle costs.

  Args:
    found: of each trial, on the same prompts; the costs are those on the split 'held_out', if there is one.

  Returns:
    `split`; `trials` → split → measure → {mean, low, high}; `costs` → obstacle → {alone, last}: how much smaller the gap is
    with it alone away, and how much larger with it alone put back, paired by prompt.
  """
  split = HELD_OUT if HELD_OUT in found[AS_IT_IS] else next(iter(found[AS_IT_IS]))
  trials_table = {
    trial: {
      name: {measure: _interval(getattr(x, measure)) for measure in _MEASURES}
      for name, x in distances.items()
    }
    for trial, distances in found.items()
  }
  gap = {trial: distances[split].duality_gap for trial, distances in found.items()}
  obstacles = [trial.removesuffix(' back') for trial in found if trial.endswith(' back')]
  costs = {
    name: {
      'alone': _interval(gap[AS_IT_IS] - gap[f'{name} away']),
      'last': _interval(gap[f'{name} back'] - gap[ALL_AWAY]),
    }
    for name in obstacles
  }
  return {'split': split, 'trials': trials_table, 'costs': costs}


def _interval(values: Float[np.ndarray, 'B 1']) -> dict[str, float | None]:
  """None where the contestant has no such value."""
  found = zip(('mean', 'low', 'high'), mean_with_interval(values[:, 0]), strict=True)
  return {name: None if np.isnan(x) else float(x) for name, x in found}


def _last_quarter(run_dir: pathlib.Path) -> float | None:
  """How much of the gap the last quarter of a run took off, by its own curve."""
  key = 'held_out_duality_gap'
  points = [
    (row['step'], row[key]) for row in metrics.read_rows(run_dir / 'metrics.jsonl') if row.get(key)
  ]
  before = [gap for step, gap in points if step <= 0.75 * points[-1][0]]
  return before[-1] - points[-1][1] if before else None


def report(result: dict[str, Any]) -> tuple[rich.table.Table, list[str]]:
  """A table for the terminal, and what it says, largest cost first."""
  splits = sorted(next(iter(result['trials'].values())))
  table = rich.table.Table(title='Obstacles; ± half the 95 % interval over prompts')
  table.add_column('')
  for split in splits:
    for heading in _MEASURES.values():
      table.add_column(f'{heading}\n{split}', justify='right')
  for trial, row in result['trials'].items():
    table.add_row(trial, *(_cell(row[split][name]) for split in splits for name in _MEASURES))
  return table, _sentences(result)


def _sentences(result: dict[str, Any]) -> list[str]:
  at = lambda trial, name='duality_gap': _cell(result['trials'][trial][result['split']][name])
  lines = [
    f'Duality gap on {result["split"]}: {at(AS_IT_IS)} as it is, {at("SFT")} of SFT, {at(ALL_AWAY)} with everything away.'
  ]
  costs = result['costs'].items()
  for name, cost in sorted(costs, key=lambda item: -item[1]['last']['mean']):
    alone, last = cost['alone'], cost['last']
    least = _SHARE * result['trials'][AS_IT_IS][result['split']]['duality_gap']['mean']
    holds = any(x['low'] > 0 and x['mean'] > least for x in (alone, last))
    lines.append(
      f'{name}: {"holds it back" if holds else "hardly an obstacle"}; '
      f'put back alone it costs {_cell(last)}, taken away alone it gains {_cell(alone)}.'
    )
  lines.append(
    f'network: imitating the fixed point itself, it ends {at(IMITATION, "total_variation")} from it in total variation, '
    f'with a gap of {at(IMITATION)}; with everything away the method ends {at(ALL_AWAY, "total_variation")} from it.'
  )
  if (late := result.get('last_quarter')) is not None:
    lines.append(
      f'time: the last quarter of the steps with everything away took {late:.3f} off the gap.'
    )
  return lines


def _cell(value: dict[str, float | None]) -> str:
  if value['mean'] is None:
    return '·'
  return f'{value["mean"]:.3f} ±{(value["high"] - value["low"]) / 2:.3f}'
