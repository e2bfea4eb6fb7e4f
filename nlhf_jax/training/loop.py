"""The one training loop: sample, judge, update; log, save.

SFT, the preference model, the reward model and every policy method run through it. All that differs is the `Algorithm`.
On a mesh it is the same loop: every process runs it, on arrays of which each holds a part.
"""

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.runtime import partitioning
from nlhf_jax.types import (
  Adapted,
  Algorithm,
  Params,
  PolicyParams,
  PRNGKey,
  Rollout,
  TrainState,
)


class NonFiniteError(FloatingPointError):
  """The loss or the gradient is NaN or infinite; `batch` is what it came from."""

  def __init__(self, step: int, batch: Any):
    super().__init__(f'Loss or gradient is not finite at step {step}.')
    self.step, self.batch = step, batch


class Hooks(NamedTuple):
  """What the loop calls on its way."""

  log: Callable[[int, dict[str, float]], None]  # (step, means since the last call)
  # (state, sums since the last log line): what `train` takes to go on from there.
  save: Callable[[TrainState, dict[str, Any]], None]
  advance: Callable[[int], None] = lambda steps: None  # A progress bar.
  # (step done) -> whether to save and return now. On many processes all must say the same.
  stop: Callable[[int], bool] = lambda step: False


def init_state(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  seed: int,
  *,
  online: Params | None = None,
  reference: Params | None = None,
  base: Params | None = None,
  with_ema: bool = False,
  shardings: TrainState | None = None,
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
    shardings: where its arrays are to lie; None: where JAX puts them.
  """
  shardings = shardings or TrainState(None, PolicyParams(None, None, None), None, None)
  rng = jax.random.PRNGKey(seed)
  if online is None:
    make = jax.jit(algorithm.init, out_shardings=shardings.params.online)
    online = make(jax.random.fold_in(rng, 0))
  copy_if = lambda wanted: _copy(online) if wanted else None  # The update donates: no sharing.
  params = PolicyParams(
    _copy(online), copy_if(with_ema), reference, copy_if('past' in algorithm.plays), base=base
  )
  opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params.online)
  state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, rng)
  if shardings.step is None:
    return state
  alike = partitioning.put((state.step, state.rng), (shardings.step, shardings.rng))
  return state._replace(step=alike[0], rng=alike[1])


def _copy(tree: Any) -> Any:
  return jax.tree.map(jnp.copy, tree)


def step_key(rng: PRNGKey, step: int) -> PRNGKey:
  """The sampling key of one step, split over its lanes: no two steps share one."""
  return jax.random.fold_in(rng, step)


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
  layout: partitioning.Layout | None = None,
  sums: dict[str, Any] | None = None,
) -> TrainState:
  """Runs from `state.step` to `num_steps`, or until it is told to stop.

  Args:
    batches: starts at batch number `state.step`; every process reads the same ones.
    num_microbatches: parts of a batch whose gradients are added up; the result is that of the whole batch.
    ema_decay: κ in θ̄ ← κ θ̄ + (1 − κ) θ; None: no average is kept.
    log_every: steps between log lines, which hold the means over them.
    save_every: steps between checkpoints; None: at the end alone. The last step is always saved.
    layout: mesh that the state lies on; batches are then cut over it.
    sums: what `Hooks.save` was given with this state.

  Raises:
    NonFiniteError: the loss or the gradient is NaN or infinite; parameters before that step were kept.
  """
  _check(num_microbatches, ema_decay)
  steps = _Steps(algorithm, optimizer, num_microbatches, ema_decay, layout, state)
  place = jax.device_put if layout is None else layout.shard_rows
  window = _Window(sums)
  for step, batch in _read_ahead(batches, range(int(state.step), num_steps), place):
    clock = _Clock()
    state, rollout, metrics = steps(state, batch, clock)
    metrics = {name: float(value) for name, value in metrics.items()}
    if not (np.isfinite(metrics['loss']) and np.isfinite(metrics['gradient_norm'])):
      raise NonFiniteError(step, rollout)
    window.add(metrics, rollout.response.tokens.shape[0], clock.seconds)
    hooks.advance(1)
    done = step + 1
    last = hooks.stop(done) or done == num_steps
    if done % log_every == 0 or done == num_steps:
      hooks.log(done, window.close())
    if last or (save_every and done % save_every == 0):
      hooks.save(state, window.sums())
    if last:
      break
  return state


class Programs(NamedTuple):
  """What a step runs, compiled but not run; and the bytes that lie on a device all the time."""

  phases: dict[str, Any]  # {sample, judge, update}: a compiled program; None: it runs on the host.
  lasting: dict[str, int]
  brought: int  # Bytes that are on a device while it samples, and else in the host's memory.
  rollout: Any  # Shapes of what is trained on.


def programs(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batch: Any,
  *,
  judge: tuple[Callable[[Params, Any], Any], Params] | None = None,
  num_microbatches: int = 1,
  ema_decay: float | None = None,
  layout: partitioning.Layout | None = None,
) -> Programs:
  """The programs of a step.

  Args:
    algorithm, optimizer, num_microbatches, ema_decay, layout: as of `train`.
    state, batch: arrays, or their shapes; on a mesh, with shardings.
    judge: the method's, as a function of its weights too, and their shapes; None: its weights are arrays that it holds.
  """
  rng, jits = state.rng, _Jits(layout, state)
  params = _over_base(jits.bring(state.params))
  if algorithm.half_step is not None:
    params = params._replace(half=params.online)
  sample = jits.sample(algorithm.sample).lower(params, batch, rng).compile()
  rollout = jax.eval_shape(algorithm.sample, params, batch, rng)
  if layout is not None:
    rollout = partitioning.with_shardings(rollout, jax.tree.map(lambda _: layout.rows, rollout))
  function, weights = judge or _as_function(algorithm.judge, rollout)
  if function is None:
    judging, judged = (
      None,
      jax.tree.map(jnp.zeros_like, algorithm.judge(jax.tree.map(_ones, rollout))),
    )
  else:
    judging = jax.jit(function).lower(weights, rollout).compile()
    judged = jax.eval_shape(function, weights, rollout)
  if layout is not None:
    judged = partitioning.with_shardings(judged, jax.tree.map(lambda _: layout.rows, judged))
  trained = state.params.online, state.params.ema, state.opt_state
  update = jits.update(_update(algorithm, optimizer, num_microbatches, ema_decay))
  updating = update.lower(trained, state.params.base, judged).compile()
  half = _size(trained) if algorithm.half_step is not None else 0
  return Programs(
    {'sample': sample, 'judge': judging, 'update': updating},
    {'state': _size(state) + half, 'judge_weights': _size(weights), 'batch': _size(judged)},
    _size(jits.bring(state.params)) - _size(state.params),
    judged,
  )


def memory(of: Programs) -> dict[str, int]:
  """Bytes that a step needs on a device, by what its compiled programs say.

  Returns:
    What lies there all the time ('state': all parameter sets and the optimizer's state; 'judge_weights', where it runs on
    the device; 'batch'), what each phase needs besides, and the peak.
  """
  phases = {name: 0 if x is None else _needed(x) for name, x in of.phases.items()}
  phases['sample'] += of.brought
  return of.lasting | phases | {'peak': sum(of.lasting.values()) + max(phases.values())}


def _as_function(judge, rollout) -> tuple[Callable[[Any, Any], Any] | None, Any]:
  """A judge as a function of the arrays that it holds, and these; None: it looks at numbers, so it runs on the host."""
  try:
    traced, judged = jax.make_jaxpr(judge, return_shape=True)(rollout)
  except jax.errors.JAXTypeError:
    return None, ()
  shape = jax.tree.structure(judged)

  def function(arrays, rollout):
    leaves = jax.core.eval_jaxpr(traced.jaxpr, arrays, *jax.tree.leaves(rollout))
    return jax.tree.unflatten(shape, leaves)

  return function, list(traced.consts)


def _ones(shape: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.ones(shape.shape, shape.dtype)


def _needed(program: Any) -> int:
  """Temporary memory of a program, and that of its results which do not take the place of arguments."""
  found = program.memory_analysis()
  return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def _size(tree: Any) -> int:
  """Bytes on one device."""

  def of(x):
    if partitioning.on_host(x):
      return 0
    sharding = getattr(x, 'sharding', None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return int(np.prod(shape, dtype=np.int64)) * x.dtype.itemsize

  return sum(map(of, jax.tree.leaves(tree)))


def _read_ahead(
  batches: Iterator[Any], steps: range, place: Callable[[Any], Any]
) -> Iterator[tuple[int, Any]]:
  """Steps and their batches; the next one is read and moved to the devices while this one is worked on."""
  read = lambda: place(next(batches))
  with futures.ThreadPoolExecutor(max_workers=1) as reader:
    ahead = None
    for step in steps:
      batch = (ahead or reader.submit(read)).result()
      ahead = reader.submit(read) if step + 1 in steps else None
      yield step, batch


class _Steps:
  """One iteration of a method: sample, judge, update; twice where it has a half-step."""

  def __init__(self, algorithm, optimizer, num_microbatches, ema_decay, layout=None, state=None):
    self._algorithm = algorithm
    jits = _Jits(layout, state)
    update = _update(algorithm, optimizer, num_microbatches, ema_decay)
    self._update, self._sample = jits.update(update), jits.sample(algorithm.sample)
    self._bring = jits.bring
    if algorithm.half_step is not None:
      self._half_sample = jits.sample(algorithm.half_step)
      self._half_update = jits.update(update, donate=False)

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
      params = params._replace(past=_copy(online))
    return TrainState(state.step + 1, params, opt_state, state.rng), rollout, metrics

  def _run(self, sample, update, params: PolicyParams, opt_state, batch, rng, clock):
    rollout = sample(_over_base(self._bring(params)), batch, rng)
    clock.lap('sample', rollout)
    rollout = self._algorithm.judge(rollout)
    clock.lap('judge', rollout)
    trained, metrics = update((params.online, params.ema, opt_state), params.base, rollout)
    clock.lap('update', metrics)
    return trained, rollout, metrics


class _Jits:
  """How a step's programs are compiled: results lie where their inputs lay."""

  def __init__(self, layout: partitioning.Layout | None, state: TrainState | None):
    self._layout = layout
    if layout is not None:
      where = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
      trained = where((state.params.online, state.params.ema, state.opt_state))
      self._updated = trained, layout.replicated

  def sample(self, function):
    return jax.jit(
      function, **({} if self._layout is None else {'out_shardings': self._layout.rows})
    )

  def update(self, function, *, donate: bool = True):
    where = {} if self._layout is None else {'out_shardings': self._updated}
    return jax.jit(function, donate_argnums=0 if donate else (), **where)

  def bring(self, params: PolicyParams) -> PolicyParams:
    """The sets with the reference on the device, if it is kept in the host's memory."""
    if self._layout is None or params.reference is None:
      return params
    return params._replace(reference=partitioning.to_device(params.reference))


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
    seen = metrics | _of_responses(rollout.response)
    return (online, ema, opt_state), seen | {'gradient_norm': optax.global_norm(gradient)}

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

  num_prompts = rollout.prompts.tokens.shape[0]
  if num_prompts % num_microbatches:
    raise ValueError(
      f'A batch of {num_prompts} prompts does not divide into {num_microbatches} parts: '
      'make BATCH_SIZE a multiple of NUM_MICROBATCHES.'
    )

  def cut(x):
    """Every so-manieth prompt with its rows, so that each device has some of every part."""
    x = x.reshape(num_prompts // num_microbatches, num_microbatches, -1, *x.shape[1:])
    return x.swapaxes(0, 1).reshape(num_microbatches, -1, *x.shape[3:])

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


def _of_responses(response: Rollout, eos_id: int = 1) -> dict[str, jax.Array]:
  """Mean length, and the share that ended by themselves: whose last counted token is EOS."""
  lengths = jnp.sum(response.mask, axis=-1)
  last = jnp.take_along_axis(response.tokens, jnp.maximum(lengths - 1, 0)[:, None], axis=-1)
  return {'response_length': jnp.mean(lengths), 'eos_rate': jnp.mean(last == eos_id)}


def _check(num_microbatches: int, ema_decay: float | None) -> None:
  if num_microbatches < 1:
    raise ValueError(f'num_microbatches must be at least 1, got {num_microbatches}.')
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f'ema_decay must be in [0, 1), got {ema_decay}.')
