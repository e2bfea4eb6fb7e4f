"""The one training loop: sample, judge, update; log, save.

SFT, the preference model, the reward model and every policy method run through it. All that differs is the `Algorithm`.
"""

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.types import Adapted, Algorithm, Params, PolicyParams, PRNGKey, TrainState


class NonFiniteError(FloatingPointError):
  """The loss or the gradient is NaN or infinite; `batch` is what it came from."""

  def __init__(self, step: int, batch: Any):
    super().__init__(f'Loss or gradient is not finite at step {step}.')
    self.step, self.batch = step, batch


class Hooks(NamedTuple):
  """What the loop calls on its way."""

  log: Callable[[int, dict[str, float]], None]  # (step, means since the last call)
  save: Callable[[TrainState], None]
  advance: Callable[[int], None] = lambda steps: None  # A progress bar.


def init_state(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  seed: int,
  *,
  online: Params | None = None,
  reference: Params | None = None,
  base: Params | None = None,
  with_ema: bool = False,
) -> TrainState:
  """The state before the first step.

  Args:
    algorithm: gives random parameters where `online` is None.
    optimizer: gives the optimizer's state.
    seed: of initialisation and sampling.
    online: θ to start from.
    reference: μ; None where the method has none.
    base: frozen weights beneath adapters; then θ is adapters, and μ the base.
    with_ema: keep θ̄, which starts at θ.
  """
  rng = jax.random.PRNGKey(seed)
  if online is None:
    online = jax.jit(algorithm.init)(jax.random.fold_in(rng, 0))
  copy = lambda tree: jax.tree.map(jnp.array, tree)  # The update donates its buffers: no sharing.
  copy_if = lambda wanted: copy(online) if wanted else None
  params = PolicyParams(
    copy(online), copy_if(with_ema), reference, copy_if('past' in algorithm.plays), base=base
  )
  opt_state = jax.jit(optimizer.init)(params.online)
  return TrainState(jnp.zeros((), jnp.int32), params, opt_state, rng)


def step_key(rng: PRNGKey, step: int) -> PRNGKey:
  """The sampling key of one step on this host: no two steps and no two hosts share one."""
  return jax.random.fold_in(jax.random.fold_in(rng, step), jax.process_index())


def train(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batches: Iterator[Any],
  hooks: Hooks,
  *,
  num_steps: int,
  num_microbatches: int = 1,
  ema_decay: float | None = None,
  log_every: int = 10,
  save_every: int | None = None,
) -> TrainState:
  """Runs from `state.step` to `num_steps`.

  Args:
    batches: starts at batch number `state.step`.
    num_microbatches: parts of a batch whose gradients are added up; the result is that of the whole batch.
    ema_decay: κ in θ̄ ← κ θ̄ + (1 − κ) θ; None: no average is kept.
    log_every: steps between log lines, which hold the means over them.
    save_every: steps between checkpoints; None: at the end alone. The last step is always saved.

  Raises:
    NonFiniteError: the loss or the gradient is NaN or infinite; parameters before that step were kept.
  """
  _check(num_microbatches, ema_decay)
  steps = _Steps(algorithm, optimizer, num_microbatches, ema_decay)
  window = _Window()
  for step, batch in _read_ahead(batches, range(int(state.step), num_steps)):
    clock = _Clock()
    state, rollout, metrics = steps(state, batch, clock)
    metrics = {name: float(value) for name, value in metrics.items()}
    if not (np.isfinite(metrics['loss']) and np.isfinite(metrics['gradient_norm'])):
      raise NonFiniteError(step, rollout)
    window.add(metrics, rollout, clock.seconds)
    hooks.advance(1)
    if (step + 1) % log_every == 0 or step + 1 == num_steps:
      hooks.log(step + 1, window.close())
    if step + 1 == num_steps or (save_every and (step + 1) % save_every == 0):
      hooks.save(state)
  return state


def memory(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batch: Any,
  *,
  num_microbatches: int = 1,
  ema_decay: float | None = None,
) -> dict[str, int]:
  """Bytes that a step needs on the device, by what its compiled programs say; nothing is run.

  Args:
    algorithm, optimizer, num_microbatches, ema_decay: as of `train`.
    state, batch: arrays, or their shapes.

  Returns:
    What lies there all the time ('state': all parameter sets and the optimizer's state; 'judge': its weights, where it
    runs on the device), what each phase needs besides, and the peak.
  """
  rng = state.rng
  params = _over_base(state.params)
  if algorithm.half_step is not None:
    params = params._replace(half=params.online)
  rollout = jax.eval_shape(algorithm.sample, params, batch, rng)
  judge_weights, judge, judged = _memory_of_judge(algorithm.judge, rollout)
  trained = state.params.online, state.params.ema, state.opt_state
  update = jax.jit(_update(algorithm, optimizer, num_microbatches, ema_decay), donate_argnums=0)
  phases = {
    'sample': _needed(jax.jit(algorithm.sample), params, batch, rng),
    'judge': judge,
    'update': _needed(update, trained, state.params.base, judged),
  }
  half = _size(trained) if algorithm.half_step is not None else 0
  lasting = {'state': _size(state) + half, 'judge_weights': judge_weights, 'batch': _size(judged)}
  return lasting | phases | {'peak': sum(lasting.values()) + max(phases.values())}


def _memory_of_judge(judge, rollout) -> tuple[int, int, Any]:
  """Its weights, what it needs besides, and the shape of a judged rollout; 0 where it runs on the host."""
  try:
    traced, judged = jax.make_jaxpr(judge, return_shape=True)(rollout)
  except jax.errors.JAXTypeError:  # It looks at numbers.
    return 0, 0, jax.tree.map(jnp.zeros_like, judge(jax.tree.map(_ones, rollout)))
  return sum(x.nbytes for x in traced.consts), _needed(jax.jit(judge), rollout), judged


def _ones(shape: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.ones(shape.shape, shape.dtype)


def _needed(compiled, *args) -> int:
  """Temporary memory of a program, and that of its results which do not take the place of arguments."""
  found = compiled.lower(*args).compile().memory_analysis()
  return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def _size(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _read_ahead(batches: Iterator[Any], steps: range) -> Iterator[tuple[int, Any]]:
  """Steps and their batches; the next one is read and moved to the device while this one is worked on."""
  read = lambda: jax.device_put(next(batches))
  with futures.ThreadPoolExecutor(max_workers=1) as reader:
    ahead = None
    for step in steps:
      batch = (ahead or reader.submit(read)).result()
      ahead = reader.submit(read) if step + 1 in steps else None
      yield step, batch


class _Steps:
  """One iteration of a method: sample, judge, update; twice where it has a half-step."""

  def __init__(self, algorithm, optimizer, num_microbatches, ema_decay):
    self._algorithm = algorithm
    update = _update(algorithm, optimizer, num_microbatches, ema_decay)
    self._update = jax.jit(update, donate_argnums=0)
    self._sample = jax.jit(algorithm.sample)
    if algorithm.half_step is not None:
      self._half_sample, self._half_update = jax.jit(algorithm.half_step), jax.jit(update)

  def __call__(self, state: TrainState, batch: Any, clock: '_Clock'):
    """The next state, the rollout that it was trained on, and its metrics."""
    rng = step_key(state.rng, int(state.step))
    params = state.params
    if self._algorithm.half_step is not None:
      first, rng = jax.random.split(rng)
      half = params, state.opt_state
      (online, _, _), _, _ = self._run(
        self._half_sample, self._half_update, *half, batch, first, clock
      )
      params = params._replace(half=online)
    (online, ema, opt_state), rollout, metrics = self._run(
      self._sample, self._update, params, state.opt_state, batch, rng, clock
    )
    params = params._replace(online=online, ema=ema, half=None)
    step = int(state.step) + 1
    if self._algorithm.refresh_every and step % self._algorithm.refresh_every == 0:
      params = params._replace(past=jax.tree.map(jnp.array, online))
    return TrainState(jnp.int32(step), params, opt_state, state.rng), rollout, metrics

  def _run(self, sample, update, params: PolicyParams, opt_state, batch, rng, clock):
    rollout = sample(_over_base(params), batch, rng)
    clock.lap('sample', rollout)
    rollout = self._algorithm.judge(rollout)
    clock.lap('judge', rollout)
    trained, metrics = update((params.online, params.ema, opt_state), params.base, rollout)
    clock.lap('update', metrics)
    return trained, rollout, metrics


def _over_base(params: PolicyParams) -> PolicyParams:
  """The sets as the model takes them: adapters, if that is what they are, on their base."""
  if params.base is None:
    return params
  sets = {
    name: None if x is None else Adapted(params.base, x) for name, x in params._asdict().items()
  }
  return PolicyParams(**sets | {'reference': Adapted(params.base, None), 'base': None})


def _update(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  num_microbatches: int,
  ema_decay: float | None,
):
  """One step of the optimizer on one batch."""

  def update(trained, base, rollout):
    online, ema, opt_state = trained
    over_base = lambda params: params if base is None else Adapted(base, params)
    loss = lambda params, part: algorithm.loss(over_base(params), part)
    gradient, metrics = accumulate(loss, online, rollout, num_microbatches)
    updates, opt_state = optimizer.update(gradient, opt_state, online)
    online = optax.apply_updates(online, updates)
    if ema_decay is not None:
      ema = optax.incremental_update(online, ema, 1 - ema_decay)
    return (online, ema, opt_state), metrics | {'gradient_norm': optax.global_norm(gradient)}

  return update


def accumulate(
  loss: Callable[[Params, Any], Any], params: Params, rollout: Any, num_microbatches: int
) -> tuple[Params, dict[str, jax.Array]]:
  """Gradient of Σ value / Σ weight over the whole batch, in `num_microbatches` parts of it.

  Numerators and denominators are added up apart, so that parts of unequal weight still make the full batch's mean.
  """

  def total(params, part):
    result = loss(params, part)
    sums = {name: jnp.sum(x) for name, x in result.metrics.items()}
    return jnp.sum(result.value), (jnp.sum(result.weight), jnp.float32(result.value.size), sums)

  def add(carry, part):
    (value, aux), gradient = jax.value_and_grad(total, has_aux=True)(params, part)
    return jax.tree.map(jnp.add, carry, (gradient, value, aux)), None

  def cut(x):
    return x.reshape(num_microbatches, -1, *x.shape[1:])

  parts = jax.tree.map(cut, rollout)
  first = jax.tree.map(lambda x: x[0], parts)
  (value, aux), gradient = jax.value_and_grad(total, has_aux=True)(params, first)
  rest = jax.tree.map(lambda x: x[1:], parts)
  (gradient, value, (weight, rows, sums)), _ = jax.lax.scan(add, (gradient, value, aux), rest)
  gradient = jax.tree.map(lambda g: g / weight, gradient)
  return gradient, {'loss': value / weight} | {name: x / rows for name, x in sums.items()}


class _Clock:
  """Seconds of each phase of a step; waits for the device, so that work is booked where it was asked for."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, phase: str, result: Any) -> None:
    jax.block_until_ready(result)
    now = time.perf_counter()
    self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
    self._last = now


class _Window:
  """Means of the metrics, and tokens per second of each phase, since the last log line."""

  def __init__(self):
    self._clear()

  def _clear(self):
    self._steps, self._sums, self._seconds, self._tokens = 0, {}, {}, 0

  def add(self, metrics: dict[str, float], rollout: Any, seconds: dict[str, float]) -> None:
    self._steps += 1
    mask = np.asarray(rollout.response.mask)
    lengths = mask.sum(axis=-1)
    tokens = np.asarray(rollout.response.tokens)
    # A response ended by itself if its last counted token is followed by padding or is EOS.
    extra = {'response_length': float(lengths.mean()), 'eos_rate': _eos_rate(tokens, lengths)}
    for name, value in (metrics | extra).items():
      self._sums[name] = self._sums.get(name, 0.0) + value
    for phase, value in seconds.items():
      self._seconds[phase] = self._seconds.get(phase, 0.0) + value
    self._tokens += int(lengths.sum())

  def close(self) -> dict[str, float]:
    means = {name: total / self._steps for name, total in self._sums.items()}
    speeds = {
      f'{phase}_tokens_per_second': self._tokens / max(value, 1e-9)
      for phase, value in self._seconds.items()
    }
    seconds = {f'{phase}_seconds': value / self._steps for phase, value in self._seconds.items()}
    self._clear()
    return means | speeds | seconds


def _eos_rate(tokens: np.ndarray, lengths: np.ndarray, eos_id: int = 1) -> float:
  last = np.take_along_axis(tokens, np.maximum(lengths - 1, 0)[:, None], axis=-1)[:, 0]
  return float(np.mean(last == eos_id))


def _check(num_microbatches: int, ema_decay: float | None) -> None:
  if num_microbatches < 1:
    raise ValueError(f'num_microbatches must be at least 1, got {num_microbatches}.')
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f'ema_decay must be in [0, 1), got {ema_decay}.')
