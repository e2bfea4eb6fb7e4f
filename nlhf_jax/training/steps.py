"""One step of a method as compiled programs: sample, score, update; the sets besides θ then move."""

import contextlib
import contextvars
import functools
import logging
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nlhf_jax.runtime import partitioning
from nlhf_jax.training import parameter_sets, rollouts
from nlhf_jax.types import (
  EOS,
  Adapted,
  Algorithm,
  Batch,
  Losses,
  Params,
  PolicyParams,
  PRNGKey,
  Rollout,
  TrainState,
)


class Clock:
  """Seconds of each phase of a step; waits for the device, so that work counts where it was asked for.

  Where a rollout has several parts, scoring is what is waited for beyond sampling.
  """

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, phase: str, result: Any) -> None:
    """Counts the time since the last lap, until `result` is there, for a phase."""
    jax.block_until_ready(result)
    now = time.perf_counter()
    self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
    self._last = now


def step_key(rng: PRNGKey, step: int) -> PRNGKey:
  """The sampling key of one step, split over its lanes: no two steps share one."""
  return jax.random.fold_in(rng, step)


class Trained(NamedTuple):
  """What an update changes, and may overwrite."""

  online: Params
  # The sets that move.
  sets: dict[str, Params]
  opt_state: Any


class Steps:
  """One iteration of a method: sample, score, update; twice where it has a half-step."""

  def __init__(
    self,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    num_microbatches: int = 1,
    layout: partitioning.Layout | None = None,
    state: TrainState | None = None,
    num_updates: int = 1,
    num_rollout_parts: int = 1,
    compiles_ahead: bool = False,
  ):
    """Compiles nothing yet. On a mesh, results are sharded as their inputs are, which `state` tells.

    With `compiles_ahead` the update is compiled while the first batch is sampled and scored; that calls the method's `score`
    with shapes as well, on a thread.

    Raises:
      ValueError: more than one update from a rollout, of a method that cannot reuse it; rollouts in parts, of a method that
        cannot have them.
    """
    rollouts.check_method(algorithm, num_rollout_parts)
    if num_updates < 1 or (num_updates > 1 and not algorithm.reusable):
      raise ValueError(
        f'num_updates must be 1 where rollouts are not reused, got {num_updates}: set reuse of a policy gradient method to '
        'losses.clipped_ratio or losses.exact_ratio.'
      )
    self._algorithm, self._layout, self._num_updates = algorithm, layout, num_updates
    self._num_rollout_parts = num_rollout_parts
    self.half_step = parameter_sets.half_step_name(algorithm.sets)
    rows: dict[str, Any] = {}
    updated: dict[str, Any] = {}
    if layout is not None:
      trained = jax.tree.map(lambda x: x.sharding, self.trained(state))
      rows = {'out_shardings': layout.rows}
      updated = {'out_shardings': (trained, layout.replicated)}
    update = _make_update(algorithm, optimizer, num_microbatches)
    self.sample = jax.jit(algorithm.sample, **rows)
    self.update = jax.jit(update, donate_argnums=0, **updated)
    self.half_update = jax.jit(update, **updated)
    self._compiles_ahead = compiles_ahead and num_rollout_parts == 1
    # An update → what ends when it has been compiled.
    self._compiling: dict[Any, futures.Future] = {}

  def __call__(
    self, state: TrainState, batch: Batch, clock: Clock
  ) -> tuple[TrainState, Batch, dict[str, jax.Array]]:
    """The next state, the rollout that it was trained on, and its metrics.

    Raises:
      ValueError: the judge gave no vote on any pair; the batch does not divide into the parts of a rollout.
    """
    rng, half = step_key(state.rng, int(state.step)), None
    if self.half_step is not None:
      first, rng = jax.random.split(rng)
      trained, *_ = self._run(self.half_update, state, None, batch, first, clock)
      half = trained.online
    trained, rollout, metrics = self._run(self.update, state, half, batch, rng, clock)
    sets = {**state.params.sets, **trained.sets}
    params = PolicyParams(trained.online, sets, state.params.base)
    return TrainState(state.step + 1, params, trained.opt_state, state.rng), rollout, metrics

  def trained(self, state: TrainState) -> Trained:
    """What an update takes for its first argument."""
    names = parameter_sets.moving(self._algorithm.sets)
    sets = {name: state.params.sets[name] for name in names}
    return Trained(state.params.online, sets, state.opt_state)

  def played(self, params: PolicyParams, half: Params | None = None) -> PolicyParams:
    """The sets as the model takes them: on the device, adapters on their base, with the half-step if there is one."""
    sets = dict(params.sets)
    if self._layout is not None:
      sets = {name: partitioning.to_device(x) for name, x in sets.items()}
    if self.half_step is not None:
      sets[self.half_step] = params.online if half is None else half
    return over_base(params._replace(sets=sets))

  def _run(self, update, state: TrainState, half: Params | None, batch, rng, clock):
    params = self.played(state.params, half)
    if self._compiles_ahead:
      self._compiles_ahead = False
      self._compile_updates(state, params, batch, rng)
    rollout = self._roll_out(params, batch, rng, clock)
    if update in self._compiling and (error := self._compiling.pop(update).exception()):
      logging.debug('The update was not compiled ahead: %s', error)
    trained, first = self.trained(state), state.step * self._num_updates
    for number in range(self._num_updates):
      trained, metrics = update(trained, state.params.base, rollout, first + number)
    clock.lap('update', metrics)
    if float(metrics.get('votes_missing', 0.0)) == 1:
      raise ValueError(
        f'The judge gave no vote on any pair of step {int(state.step)}, so that there is nothing to learn from: make it '
        'answer, and go on from the last checkpoint.'
      )
    return trained, rollout, metrics

  def _compile_updates(self, state: TrainState, params: PolicyParams, batch: Batch, rng: PRNGKey):
    """Starts to compile them on a thread. What fails there is left: the update's own call meets it again, where it is heard."""
    rollout = self.sample.eval_shape(params, batch, rng)
    arguments = self.trained(state), state.params.base
    first = state.step * self._num_updates
    layout = self._layout

    def compile(update):
      with contextlib.nullcontext() if layout is None else layout.active():
        scored = jax.eval_shape(self._algorithm.score, rollout)
        update.lower(*arguments, over_rows(scored, layout), first).compile()

    wanted = [self.update] if self.half_step is None else [self.half_update, self.update]
    with_one_thread = futures.ThreadPoolExecutor(max_workers=1)
    start = lambda update: with_one_thread.submit(contextvars.copy_context().run, compile, update)
    self._compiling = {update: start(update) for update in wanted}
    with_one_thread.shutdown(wait=False)

  def _roll_out(self, params: PolicyParams, batch: Batch, rng: PRNGKey, clock: Clock) -> Batch:
    if self._num_rollout_parts == 1:
      rollout = self.sample(params, batch, rng)
      clock.lap('sample', rollout)
      rollout = self._algorithm.score(rollout)
      clock.lap('score', rollout)
      # One sharding, whatever the judge made: the update is compiled for it.
      return rollout if self._layout is None else self._layout.shard_rows(rollout)
    rollouts.check_prompts(batch, self._num_rollout_parts, self._layout)
    return rollouts.overlapped(
      functools.partial(self.sample, params),
      self._algorithm.score,
      batch,
      rng,
      num_parts=self._num_rollout_parts,
      place=jax.device_put if self._layout is None else self._layout.shard_rows,
      lap=clock.lap,
    )


def over_rows(batch: Batch, layout: partitioning.Layout | None) -> Batch:
  """Shapes of a batch, with the shardings of its rows on a mesh."""
  if layout is None:
    return batch
  return partitioning.with_shardings(batch, jax.tree.map(lambda _: layout.rows, batch))


def over_base(params: PolicyParams) -> PolicyParams:
  """Adapters, if that is what the sets are, on their base; a frozen μ is the base without any."""
  if params.base is None:
    return params
  on = lambda adapters: Adapted(params.base, adapters)
  sets = {
    name: tuple(map(on, x)) if isinstance(x, tuple) else on(x) for name, x in params.sets.items()
  }
  return PolicyParams(on(params.online), {'reference': on(None)} | sets)


def _make_update(
  algorithm: Algorithm, optimizer: optax.GradientTransformation, num_microbatches: int
):
  """One step of the optimizer on one batch, after which the sets move."""

  def update(trained: Trained, base: Params | None, rollout: Batch, step: jax.Array):
    over_base = lambda params: params if base is None else Adapted(base, params)
    loss = lambda params, part: algorithm.loss(over_base(params), part)
    gradient, metrics = accumulate(loss, trained.online, rollout, num_microbatches)
    updates, opt_state = optimizer.update(gradient, trained.opt_state, trained.online)
    online = optax.apply_updates(trained.online, updates)
    sets = parameter_sets.move(algorithm.sets, trained.sets, online, step + 1)
    metrics |= response_metrics(rollout.response)
    metrics |= {'gradient_norm': optax.global_norm(gradient)}
    return Trained(online, sets, opt_state), metrics

  return update


def accumulate(
  loss: Callable[[Params, Batch], Losses], params: Params, rollout: Batch, num_microbatches: int
) -> tuple[Params, dict[str, jax.Array]]:
  """Gradient of Σ value / Σ weight over the complete batch, in `num_microbatches` parts of it.

  Numerators and denominators are added up apart, so that parts of unequal weight still make the full batch's mean.
  """

  def total(params, part):
    result = loss(params, part)
    counted = result.counted
    have = {name: jnp.where(counted[name], result.metrics[name], 0) for name in counted}
    sums = {name: jnp.sum(x) for name, x in (result.metrics | have).items()}
    numbers = dict.fromkeys(sums, jnp.float32(result.value.size))
    numbers |= {name: jnp.sum(x, dtype=jnp.float32) for name, x in counted.items()}
    return jnp.sum(result.value), (jnp.sum(result.weight), numbers, sums)

  def differentiate(params, part):
    (value, aux), gradient = jax.value_and_grad(total, has_aux=True)(params, part)
    return gradient, value, aux

  num_prompts = rollout.prompts.tokens.shape[0]
  if num_prompts % num_microbatches:
    raise ValueError(
      f'A batch of {num_prompts} prompts does not divide into {num_microbatches} microbatches: '
      'make the batch size a multiple of num_microbatches.'
    )

  def split(x):
    """Every n-th prompt with its rows, so that each device has some of every part."""
    x = x.reshape(num_prompts // num_microbatches, num_microbatches, -1, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(num_microbatches, -1, *x.shape[3:])

  if num_microbatches == 1:
    found = differentiate(params, rollout)
  else:
    parts = jax.tree.map(split, rollout)
    # Traced once, for the shapes of the sums and for the loop.
    traced = jax.jit(differentiate, inline=True)
    shapes = jax.eval_shape(traced, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, traced(params, part)), None)
    found, _ = jax.lax.scan(add, zeros, parts)
  gradient, value, (weight, numbers, sums) = found
  gradient = jax.tree.map(lambda g: g / weight, gradient)
  means = {name: x / numbers[name] for name, x in sums.items()}
  return gradient, {'loss': value / weight} | means


def response_metrics(response: Rollout) -> dict[str, jax.Array]:
  """Mean length, and the share that ended by themselves: whose last counted token is EOS."""
  lengths = jnp.sum(response.mask, axis=-1)
  last = jnp.take_along_axis(response.tokens, jnp.maximum(lengths - 1, 0)[:, None], axis=-1)
  return {'response_length': jnp.mean(lengths), 'eos_rate': jnp.mean(last == EOS)}
