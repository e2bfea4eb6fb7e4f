"""Every method as a model of T5X: `MODEL = @model.Model()` in a gin file of `t5x/train.py`, which is not changed.

T5X's trainer knows a model with parameters θ and a loss. Here the loss samples, has the samples judged, and is the
method's own; the other parameter sets (μ, θ̄, π_t) and the judge's weights are `flax_mutables` of the train state, so
that T5X shards them, saves them and resumes with them.

Needs T5X (requirements-t5x.txt); nothing outside of this folder imports this file.
"""

from collections.abc import Callable, Mapping
from typing import Any

import clu.metrics
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning as flax_partitioning
from t5x import metrics as t5x_metrics
from t5x import models, utils

from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.models import policy
from nlhf_jax.t5x_bridge import checks, feature_converter
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  Demonstration,
  Losses,
  ParameterSet,
  Params,
  PolicyParams,
  PRNGKey,
  Prompts,
)

_JUDGE, _CLOCK = 'judge', 'clock'
Batch = Mapping[str, jax.Array]


class Model(models.EncoderDecoderModel):
  """A policy, a preference model or a reward model, trained by one of our methods under T5X.

  Decoding and scoring are `EncoderDecoderModel`'s, so that T5X's inference and evaluation work on it.
  """

  FEATURE_CONVERTER_CLS = feature_converter.FeatureConverter

  def __init__(
    self,
    module: nn.Module,
    input_vocabulary: Vocabulary,
    output_vocabulary: Vocabulary,
    optimizer_def: Any,
    *,
    model: Any,
    algorithm: Callable[..., Algorithm],
    feedback: Callable[..., Any] | None = None,
    judge_module: nn.Module | None = None,
    sets: Mapping[str, ParameterSet] | None = None,
    loss_normalizing_factor: float | None = None,
    decode_fn: Callable[..., Any] = models.decoding.beam_search,
  ):
    """Makes the model.

    Args:
      module: the trained network, ours or T5X's (`t5x_bridge.network`).
      input_vocabulary: of prompts.
      output_vocabulary: of responses.
      optimizer_def: of T5X.
      model: what is trained: a `Policy`, `PreferenceModel` or `RewardModel` on `module`.
      algorithm: of `algorithms`, its constants bound; takes the model, and the feedback if any.
      feedback: `preference_model.preference_fn` or `reward_model.reward_fn`, its model bound; takes the judge's `params`.
      judge_module: the judge's network; None: there is no judge, or it has no weights.
      sets: parameter sets besides the method's own, or in their place.
      loss_normalizing_factor: divides the sum over the batch; None: the sum of its weights, which makes a mean. T5X
        adds gradients of microbatches up, so name a factor where there are several and the scale matters.
      decode_fn: of T5X's inference.

    Raises:
      ValueError: the method takes two updates a step, or annotators apart; or the model or its judge has weights besides its network's.
    """
    super().__init__(
      module,
      input_vocabulary,
      output_vocabulary,
      optimizer_def,
      decode_fn=decode_fn,
      loss_normalizing_factor=loss_normalizing_factor,
    )
    self._model, self._method, self._feedback = model, algorithm, feedback
    self._judge_module, self._more_sets = judge_module, sets
    self._rows = None
    checks.check_model(model, module)
    if feedback is not None and judge_module is not None:
      checks.check_feedback(algorithm, feedback, judge_module)
    method = self._algorithm(None)
    checks.check_annotators(method, feedback and feedback(params=None))
    self.sets = method.sets
    if parameter_sets.half_step_name(self.sets) is not None:
      raise ValueError('T5X takes one update a step, this method two: run it with `nlhf train`.')

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    """θ, and the collections that become `flax_mutables`: other sets start at θ, the judge at random weights."""
    self._rows = input_shapes['encoder_input_tokens'][0]
    input_types = dict.fromkeys(input_shapes, jnp.int32) | dict(input_types or {})
    variables = dict(super().get_initial_variables(rng, input_shapes, input_types))
    params, axes = variables['params'], variables['params_axes']
    starts = parameter_sets.start(self.sets, params, dict.fromkeys(self.sets, params))
    for name, start in sorted(starts.items()):
      in_ring = isinstance(start, tuple)
      variables |= {
        name: _numbered(start) if in_ring else start,
        f'{name}_axes': _numbered((axes,) * len(start)) if in_ring else axes,
      }
    if self._judge_module is not None:
      dummy = jnp.ones((1, 2), jnp.int32)
      judge = self._judge_module.init(rng, dummy, dummy, dummy, enable_dropout=False)
      variables |= {_JUDGE: judge['params'], f'{_JUDGE}_axes': judge['params_axes']}
    if parameter_sets.moving(self.sets):
      names = flax_partitioning.AxisMetadata(names=())
      variables |= {_CLOCK: {'updates': jnp.int32(0)}, f'{_CLOCK}_axes': {'updates_axes': names}}
    return flax.core.freeze(variables)

  def loss_fn(self, params: Params, batch: Batch, dropout_rng: PRNGKey, flax_mutables=None):
    """Samples with `dropout_rng`, judges, and takes the method's loss.

    Returns:
      As T5X wants it: loss and metrics; where there are other sets, loss and (metrics, the sets after this step).
    """
    mutables = flax.core.unfreeze(flax_mutables or {})
    mutables = self._moved(flax.core.unfreeze(params), mutables, batch)
    loss, metrics = self._loss(params, mutables, batch, dropout_rng)
    if flax_mutables is None:
      return loss, metrics
    return loss, (metrics, flax.core.freeze(mutables))

  def eval_fn(self, params: Params, batch: Batch, flax_mutables=None):
    """The loss on held-out examples, always with the same draws."""
    mutables = flax.core.unfreeze(flax_mutables or {})
    return self._loss(params, mutables, batch, jax.random.PRNGKey(0))

  def _algorithm(self, judge_params: Params | None) -> Algorithm:
    feedback = [] if self._feedback is None else [self._feedback(params=judge_params)]
    return parameter_sets.extend(self._method(self._model, *feedback), self._more_sets)

  def _loss(self, params, mutables, batch, rng):
    algorithm = self._algorithm(mutables.get(_JUDGE))
    params = flax.core.unfreeze(params)
    played = jax.lax.stop_gradient(PolicyParams(params, self._played(mutables)))
    rollout = algorithm.score(algorithm.sample(played, as_batch(batch), rng))
    losses = algorithm.loss(params, jax.lax.stop_gradient(rollout))
    factor = self._loss_normalizing_factor or jnp.sum(losses.weight)
    loss = jnp.sum(losses.value) / factor
    return loss, _metrics(loss, losses, rollout.response.mask)

  def _played(self, mutables: Mapping[str, Any]) -> dict[str, Params]:
    """The sets as methods know them; a ring is a tuple there, and numbered in `flax_mutables`."""
    plain = {name: mutables[name] for name in self.sets}
    return {
      name: tuple(x[str(n)] for n in range(len(x))) if '0' in x else x for name, x in plain.items()
    }

  def _moved(self, params, mutables, batch):
    """The sets that move, now that T5X has updated θ; to the bit what `nlhf train` makes of them."""
    names = parameter_sets.moving(self.sets)
    if not names:
      return mutables
    if batch['encoder_input_tokens'].shape[0] != self._rows:
      raise ValueError(
        f'The sets {names} move once a step: num_microbatches must be None for this method.'
      )
    updates = mutables[_CLOCK]['updates']
    params = jax.lax.stop_gradient(params)
    moved = parameter_sets.move(self.sets, self._played(mutables), params, updates)
    # Before the first update nothing has changed, and a reference may have been given.
    keep_first = lambda new, old: jnp.where(updates == 0, old, new)
    for name, x in moved.items():
      x = _numbered(x) if isinstance(x, tuple) else x
      mutables = {**mutables, name: jax.tree.map(keep_first, x, mutables[name])}
    return mutables | {_CLOCK: {'updates': updates + 1}}


def _numbered(members: tuple[Any, ...]) -> dict[str, Any]:
  return {str(number): x for number, x in enumerate(members)}


class StartFrom(utils.TrainStateInitializer):
  """A fresh run starts from weights on disk: `train_script.train.train_state_initializer_cls = @model.StartFrom`.

  θ and every set that the method plays get the same weights; a run that resumes finds all of them in its checkpoint.
  """

  def __init__(
    self,
    *args,
    weights: Callable[[Params], Params] | None = None,
    judge_weights: Callable[[Params], Params] | None = None,
    **kwargs,
  ):
    """Takes T5X's own arguments, and two more.

    Args:
      weights: reads θ, such as `t5x.weights(…)` or `hf.weights(…)`; None: random ones.
      judge_weights: reads the judge's weights.
    """
    super().__init__(*args, **kwargs)
    self._weights, self._judge_weights = weights, judge_weights

  def from_scratch(self, init_rng: PRNGKey):
    """The first state.

    Raises:
      ValueError: the method has a judge, and `judge_weights` is missing.
    """
    state = super().from_scratch(init_rng)
    mutables = flax.core.unfreeze(state.flax_mutables)
    if (_JUDGE in mutables) != (self._judge_weights is not None):
      raise ValueError(
        'StartFrom.judge_weights and a judge in the model (Model.judge_module) need each other.'
      )
    if self._judge_weights is not None:
      mutables[_JUDGE] = self._judge_weights(mutables[_JUDGE])
    params = flax.core.unfreeze(state.params)
    if self._weights is not None:
      params = self._weights(params)
      for name in mutables.keys() - {_JUDGE, _CLOCK}:
        # T5X donates the state's buffers: no two sets may share one.
        members = [params] * len(mutables[name]) if '0' in mutables[name] else None
        start = params if members is None else _numbered(tuple(members))
        mutables[name] = jax.tree.map(jnp.array, start)
    state = state.replace_params(flax.core.freeze(params))
    return state.replace_flax_mutables(flax.core.freeze(mutables))


def as_batch(batch: Batch) -> Prompts | Demonstration | Comparison:
  """What `feature_converter` made of a task's rows, as our methods take it."""
  tokens = batch['encoder_input_tokens']
  index = batch.get('index', jnp.full(tokens.shape[0], -1, jnp.int32))
  prompts = Prompts(tokens, index)
  if 'decoder_target_tokens' not in batch:
    return prompts
  response = policy.as_rollout(batch['decoder_target_tokens'])
  if 'alternative_tokens' not in batch:
    return Demonstration(prompts, response)
  alternative = policy.as_rollout(batch['alternative_tokens'])
  return Comparison(prompts, response, alternative, batch['preference'])


def _metrics(loss: jax.Array, losses: Losses, mask: jax.Array) -> dict[str, Any]:
  """The method's own metrics, and T5X's of speed."""
  tokens = jnp.sum(mask)
  average = lambda x: clu.metrics.Average.from_model_output(x)
  return {
    'loss': t5x_metrics.AveragePerStep(total=loss),
    **{name: average(x) for name, x in losses.metrics.items()},
    'response_length': average(jnp.sum(mask, axis=-1)),
    'timing/steps_per_second': t5x_metrics.StepsPerTime.from_model_output(),
    'timing/seconds': t5x_metrics.Time(),
    'timing/response_tokens_per_second': t5x_metrics.TimeRate.from_model_output(numerator=tokens),
  }
