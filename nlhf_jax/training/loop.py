"""The one training loop: sample, score, update; log, save.

SFT, the preference model, the reward model and every policy method run through it. All that differs is the `Algorithm`.
On a mesh it is the same loop: every process runs it, on arrays of which each holds a part.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.runtime import partitioning
from nlhf_jax.training import parameter_sets, steps
from nlhf_jax.types import (
  Algorithm,
  Batch,
  Params,
  PolicyParams,
  TrainState,
)


class NonFiniteError(FloatingPointError):
  """The loss or the gradient is NaN or infinite; `batch` is what it came from."""

  def __init__(self, step: int, batch: Batch):
    super().__init__(f'Loss or gradient is not finite at step {step}.')
    self.step, self.batch = step, batch


class Hooks(NamedTuple):
  """What the loop calls on its way."""

  # (step, means since the last call)
  log: Callable[[int, dict[str, float]], None] = lambda step, means: None
  # (state, sums since the last log line): what `train` takes to go on from there.
  save: Callable[[TrainState, dict[str, Any]], None] = lambda state, sums: None
  # A progress bar.
  advance: Callable[[int], None] = lambda steps: None
  # (step done) -> whether to save and return now. On many processes all must decide alike.
  stop: Callable[[int], bool] = lambda step: False
  # (parameters, steps done) -> metrics to log beside the means.
  measure: Callable[[PolicyParams, int], dict[str, float]] = lambda params, step: {}
  # (step done, the rollout that it was trained on); on many processes each holds a part of its rows.
  trace: Callable[[int, Batch], None] = lambda step, rollout: None


def init_state(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  seed: int,
  *,
  online: Params | None = None,
  given: Mapping[str, Params] | None = None,
  base: Params | None = None,
  shardings: TrainState | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    algorithm: gives random parameters where `online` is None, and names its parameter sets.
    optimizer: gives the optimizer's state.
    seed: of initialisation and sampling.
    online: θ to start from.
    given: sets that are not made of θ, by name: {'reference': μ}.
    base: frozen weights beneath adapters; then θ is adapters, and a frozen μ is the base.
    shardings: of its arrays; None: JAX's own.
  """
  shardings = shardings or TrainState(None, PolicyParams(None), None, None)
  rng = jax.random.PRNGKey(seed)
  if online is None:
    make = jax.jit(algorithm.init, out_shardings=shardings.params.online)
    online = make(jax.random.fold_in(rng, 0))
  online = jax.tree.map(jnp.copy, online)  # The update donates it: nobody else may hold it.
  sets = parameter_sets.start(algorithm.sets, online, given or {})
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(online)
  state = TrainState(jnp.zeros((), jnp.int32), PolicyParams(online, sets, base), opt_state, rng)
  if shardings.step is None:
    return state
  step, rng = partitioning.put((state.step, state.rng), (shardings.step, shardings.rng))
  return state._replace(step=step, rng=rng)


def train(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batches: Iterator[Batch],
  hooks: Hooks = Hooks(),  # noqa: B008
  *,
  num_steps: int,
  num_microbatches: int = 1,
  num_updates: int = 1,
  num_rollout_parts: int = 1,
  compiles_ahead: bool = False,
  log_every: int = 10,
  save_every: int | None = None,
  layout: partitioning.Layout | None = None,
  sums: dict[str, Any] | None = None,
) -> TrainState:
  """Runs from `state.step` to `num_steps`, or until it is told to stop.

  Args:
    algorithm: the method.
    optimizer: what makes an update of a gradient.
    state: where to start; its arrays are donated.
    batches: starts at batch number `state.step`; every process reads the same ones.
    hooks: called on the way.
    num_steps: updates in all.
    num_microbatches: parts of a batch whose gradients are added up; the result is that of the complete batch.
    num_updates: updates from one rollout.
    num_rollout_parts: parts of a batch, each judged while the next is sampled; each has a key of its own.
    compiles_ahead: whether the update is compiled while the first batch is sampled and scored, for which the judge or reward is
      also called with shapes, on a thread.
    log_every: steps between log lines, which hold the means over them.
    save_every: steps between checkpoints; None: at the end alone. The last step is always saved.
    layout: mesh that the state is sharded over, as batches are then.
    sums: what `Hooks.save` was given with this state.

  Raises:
    NonFiniteError: the loss or the gradient is NaN or infinite; parameters before that step were kept.
    ValueError: a number of parts is below 1 or does not divide a batch; rollouts cannot be reused; a batch has no vote at all.
  """
  if num_microbatches < 1:
    raise ValueError(f'num_microbatches must be at least 1, got {num_microbatches}.')
  parts = num_microbatches, layout, state, num_updates, num_rollout_parts
  step_fn = steps.Steps(algorithm, optimizer, *parts, compiles_ahead=compiles_ahead)
  shard = jax.device_put if layout is None else layout.shard_rows
  window = _Window(sums)
  for step, batch in _read_ahead(batches, range(int(state.step), num_steps), shard):
    clock = steps.Clock()
    state, rollout, arrays = step_fn(state, batch, clock)
    metrics = {name: float(x) for name, x in arrays.items()}
    if not (np.isfinite(metrics['loss']) and np.isfinite(metrics['gradient_norm'])):
      raise NonFiniteError(step, rollout)
    window.add(metrics, rollout.response.tokens.shape[0], clock.seconds)
    hooks.advance(1)
    done = step + 1
    hooks.trace(done, rollout)
    last = hooks.stop(done) or done == num_steps
    if done % log_every == 0 or done == num_steps:
      measured = _measure(hooks, state, window)
      hooks.log(done, window.close() | measured)
    if last or (save_every and done % save_every == 0):
      hooks.save(state, window.sums())
    if last:
      break
  return state


def _measure(hooks: Hooks, state: TrainState, window: '_Window') -> dict[str, float]:
  """What is measured of a state; where that fails, what has been trained is kept."""
  try:
    return hooks.measure(state.params, int(state.step))
  except Exception:
    hooks.save(state, window.sums())
    raise


def _read_ahead(
  batches: Iterator[Batch], numbers: range, shard: Callable[[Batch], Batch]
) -> Iterator[tuple[int, Batch]]:
  """Steps and their batches; the next one is read and moved to the devices while this one is worked on."""
  read = lambda: shard(next(batches))
  with futures.ThreadPoolExecutor(max_workers=1) as reader:
    ahead = None
    for number in numbers:
      batch = (ahead or reader.submit(read)).result()
      ahead = reader.submit(read) if number + 1 in numbers else None
      yield number, batch


class _Window:
  """Means of the metrics, and tokens per second of each phase, since the last log line."""

  def __init__(self, sums: dict[str, Any] | None = None):
    self._clear()
    if sums:
      self._steps, self._tokens = sums['steps'], sums['tokens']
      self._metrics, self._seconds = dict(sums['metrics']), dict(sums['seconds'])

  def _clear(self):
    self._steps, self._metrics, self._seconds, self._tokens = 0, {}, {}, 0.0

  def add(self, metrics: dict[str, float], num_rows: int, seconds: dict[str, float]) -> None:
    self._steps += 1
    for name, value in metrics.items():
      self._metrics[name] = self._metrics.get(name, 0.0) + value
    for phase, value in seconds.items():
      self._seconds[phase] = self._seconds.get(phase, 0.0) + value
    self._tokens += metrics['response_length'] * num_rows

  def sums(self) -> dict[str, Any]:
    """What a window of another process goes on from."""
    sums = {'metrics': self._metrics, 'seconds': self._seconds}
    return {'steps': self._steps, 'tokens': self._tokens} | {k: dict(v) for k, v in sums.items()}

  def close(self) -> dict[str, float]:
    means = {name: total / self._steps for name, total in self._metrics.items()}
    speeds = {
      f'{phase}_tokens_per_second': self._tokens / max(value, 1e-9)
      for phase, value in self._seconds.items()
    }
    seconds = {f'{phase}_seconds': value / self._steps for phase, value in self._seconds.items()}
    self._clear()
    return means | speeds | seconds
