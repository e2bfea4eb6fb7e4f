"""One part of `accelerator.py`, in a process of its own: what is measured is written as soon as it is there."""

# isort: off
import setting as settings
# isort: on

import argparse
import collections
import faulthandler
import json
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import accelerator_report
import jax
import jax.numpy as jnp
import numpy as np
import probes
import timing

from nlhf_jax.models import preference_model, reward_model
from nlhf_jax.planning import chips
from nlhf_jax.training import loop, optimizers, steps

_REPEATS = 10
# Seconds for the runs of one program.
_ENOUGH = 8.0
# What JAX tells of itself.
_TRACE, _LOWER, _COMPILE = (
  f'/jax/core/compile/{name}_duration'
  for name in ('jaxpr_trace', 'jaxpr_to_mlir_module', 'backend_compile')
)
Row = dict[str, Any]


def compiled(function, *args, **options) -> tuple[Any, Row]:
  """A program, the seconds that making it took, and the bytes of its temporary arrays."""
  start = time.perf_counter()
  lowered = jax.jit(function, **options).lower(*args)
  between = time.perf_counter()
  program = lowered.compile()
  seconds = {'lower_seconds': between - start, 'compile_seconds': time.perf_counter() - between}
  return program, seconds | {'temporary_bytes': program.memory_analysis().temp_size_in_bytes}


def count_compiling() -> collections.Counter:
  """Seconds by the name of JAX's event, from now on."""
  spent: collections.Counter = collections.Counter()

  def listen(event: str, duration: float, **_) -> None:
    spent[event] += duration

  jax.monitoring.register_event_duration_secs_listener(listen)
  return spent


def compile_seconds(spent: collections.Counter) -> Row:
  """Of tracing and lowering, and of XLA."""
  return {'lower_seconds': spent[_TRACE] + spent[_LOWER], 'compile_seconds': spent[_COMPILE]}


def spread(work) -> Row:
  """Seconds of several runs."""
  found = timing.repeated(work, _REPEATS, wait=jax.block_until_ready, enough=_ENOUGH)
  return {'seconds': timing.spread(found)}


def of_rate(probe: Row, seconds: float, operations: float) -> Row:
  """Operations beside the rate of matrix products."""
  share = operations / seconds / probe['operations_per_second']
  return {'operations': operations, 'share': share, 'of': 'operations_per_second'}


def device(setting, probe, args) -> Iterator[Row]:
  """The probes alone, which every part has."""
  yield from ()


def decode(setting: settings.Setting, probe: Row, args) -> Iterator[Row]:
  """Prompts read and one token, all tokens, and one token more: its weights and cache over the bandwidth.

  A token is what the shortest runs of the first two differ by, since a difference of two adds up their noise.
  """
  shortest = {}
  for name, length in {'prefill': 1, 'response': setting.response}.items():
    model = setting.policy_of_length(length)
    inputs = setting.params, setting.prompts, jax.random.PRNGKey(0)
    program, made = compiled(model.sample, *inputs)
    row = spread(lambda program=program: program(*inputs))
    shortest[name] = row['seconds']['low']
    if name == 'prefill':
      row |= of_rate(probe, row['seconds']['median'], settings.operations(setting, length=1))
    yield {'name': name} | made | row
  seconds = (shortest['response'] - shortest['prefill']) / (setting.response - 1)
  num_bytes = settings.bytes_per_token(setting)
  share = num_bytes / seconds / probe['bytes_per_second']
  beside = {'bytes': num_bytes, 'share': share, 'of': 'bytes_per_second'}
  yield {'name': 'token', 'seconds': {'median': seconds}} | beside


def _responses(setting: settings.Setting) -> tuple[jax.Array, jax.Array]:
  """Two to each prompt, of random tokens."""
  shape = 2, len(setting.prompts.tokens), setting.response
  tokens = np.random.default_rng(1).integers(2, setting.config.vocab_size, shape)
  first, second = jnp.asarray(tokens, jnp.int32)
  return first, second


def _judging_operations(setting: settings.Setting, num_responses: int, template) -> float:
  """Of two rows to a prompt, each of which reads some responses and ends in one score."""
  length = num_responses * setting.response + sum(map(len, template[1:])) + 1
  return settings.operations(setting, rows=2, length=length, logits=1)


def judge(setting: settings.Setting, probe: Row, args) -> Iterator[Row]:
  """The judge that scores single responses: one pair to each prompt."""

  def prefer(params, *pair):
    return reward_model.bradley_terry(reward_model.reward_fn(setting.judge, params))(*pair)

  operations = _judging_operations(setting, 1, settings.TEMPLATE)
  yield from _judging('singles', prefer, operations, setting, probe)


def pair(setting: settings.Setting, probe: Row, args) -> Iterator[Row]:
  """The judge that reads pairs, in both orders: one pair to each prompt."""

  def prefer(params, *pair):
    return preference_model.preference_fn(setting.pair_judge, params)(*pair)

  operations = _judging_operations(setting, 2, settings.PAIR_TEMPLATE)
  yield from _judging('pairs', prefer, operations, setting, probe)


def _judging(name: str, fn, operations: float, setting, probe) -> Iterator[Row]:
  inputs = setting.judge_params, setting.prompts, *_responses(setting)
  program, made = compiled(fn, *inputs)
  row = spread(lambda: program(*inputs))
  yield {'name': name} | made | row | of_rate(probe, row['seconds']['median'], operations)


def _start(setting: settings.Setting, preference_fn):
  """A Nash-MD run before its first step: the method, the optimizer, the state."""
  method, optimizer = setting.method(preference_fn), optimizers.adafactor()
  given = {'reference': setting.reference}
  state = loop.init_state(method, optimizer, 0, online=setting.params, given=given)
  setting.params = None  # The state has a copy of its own.
  return method, optimizer, state


def _updating(setting: settings.Setting, probe: Row, seconds: float, remat: str) -> Row:
  """Forwards and twice as much back; what is computed again is no work of the model's."""
  row = of_rate(probe, seconds, 3 * settings.operations(setting))
  return row | {'computed again': remat}


def update(setting: settings.Setting, probe: Row, args) -> Iterator[Row]:
  """The gradient and the optimizer's step of Nash-MD-PG."""
  method, optimizer, state = _start(setting, lambda *pairs: None)
  run = steps.Steps(method, optimizer)
  shapes = jax.eval_shape(method.sample, state.params, setting.prompts, state.rng)
  scored = _rollout(shapes, setting)
  trained = run.trained(state)
  program, made = compiled(
    lambda trained, *rest: run.update(trained, None, *rest),
    trained,
    scored,
    state.step,
    donate_argnums=0,
  )
  del state

  def work():
    nonlocal trained
    trained, metrics = program(trained, scored, jnp.zeros((), jnp.int32))
    return metrics

  row = spread(work)
  finite = all(bool(jnp.isfinite(work()[name])) for name in ('loss', 'gradient_norm'))
  seconds = row['seconds']['median']
  yield {'name': 'update'} | made | row | _updating(setting, probe, seconds, args.remat)
  if not finite:
    raise FloatingPointError('The loss or its gradient is not finite.')


def _rollout(shapes, setting: settings.Setting):
  """Numbers that a rollout could hold, judged."""
  rng = np.random.default_rng(0)

  def fill(x):
    if x.dtype == jnp.int32:
      return jnp.asarray(rng.integers(2, setting.config.vocab_size, x.shape), x.dtype)
    if x.dtype == bool:
      return jnp.ones(x.shape, bool)
    return jnp.full(x.shape, -np.log(setting.config.vocab_size), x.dtype)

  scored = jax.tree.map(fill, shapes)
  preference = jnp.asarray(rng.random(len(scored.response.tokens)), jnp.float32)
  return scored._replace(prompts=setting.prompts, preference=preference)


def step(setting: settings.Setting, probe: Row, args) -> Iterator[Row]:
  """A complete Nash-MD step under the judge of pairs: sampling of both players, judging, update."""
  method, optimizer, state = _start(setting, setting.pair_preference_fn)
  run = steps.Steps(method, optimizer)
  laps: list[dict[str, float]] = []

  def work():
    nonlocal state
    clock = steps.Clock()
    state, _, metrics = run(state, setting.prompts, clock)
    laps.append(clock.seconds)
    return metrics

  spent = count_compiling()
  begun = time.perf_counter()
  jax.block_until_ready(work())
  first = time.perf_counter() - begun
  made = {'first_seconds': first} | compile_seconds(spent)
  row = spread(work)
  # The first compiled, and the second warmed up.
  for name in laps[0]:
    seconds = timing.spread([lap[name] for lap in laps[2:]])
    beside, median = {}, seconds['median']
    if name == 'update':
      beside = _updating(setting, probe, median, args.remat)
    elif name == 'score':
      beside = of_rate(probe, median, _judging_operations(setting, 2, settings.PAIR_TEMPLATE))
    yield {'name': name, 'seconds': seconds} | beside
  yield {'name': 'step'} | made | row


PARTS = {
  'device': device,
  'step': step,
  'decode': decode,
  'update': update,
  'pair': pair,
  'judge': judge,
}


def describe() -> Row:
  """The device, and its vendor's peaks where they are known."""
  found = jax.devices()[0]
  peak = None
  for name, chip in chips.CHIPS.items():
    if name in found.device_kind.lower():
      peak = {'bytes_per_second': chip.bandwidth, 'operations_per_second': chip.operations}
  limit = (found.memory_stats() or {}).get('bytes_limit')
  of_device = {'kind': found.device_kind, 'platform': found.platform, 'number': jax.device_count()}
  return of_device | {'memory_bytes': limit, 'jax': jax.__version__, 'vendor_peak': peak}


def peak_bytes() -> int | None:
  """Of the device's allocator; None: it does not tell."""
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def run(part: str, size: str, path: pathlib.Path, flags: dict[str, Any]) -> None:
  """Measures a part and writes it."""
  # A part that is ended because its time is up says in its log where it was.
  faulthandler.register(signal.SIGTERM, chain=True)
  args = argparse.Namespace(**flags)
  told = accelerator_report.Report(path, part, size, flags)
  try:
    told.write(device=describe())
    on_cpu = jax.default_backend() == 'cpu'
    bandwidth = probes.bandwidth(2**26 if on_cpu else 2**30)
    rate = probes.matrix_rate(512 if on_cpu else 8192, args.dtype)
    probe = {'bytes_per_second': bandwidth, 'operations_per_second': rate, 'dtype': args.dtype}
    after = peak_bytes()
    told.write(probe=probe, memory={'peak_bytes': after, 'after_probe_bytes': after})
    sizes = args.dtype, args.batch, args.prompt, args.response
    execution = {'remat': args.remat, 'scan': args.scan}
    frozen = {'frozen_dtype': args.frozen_dtype, 'model': args.model}
    setting = settings.Setting(size, *sizes, **frozen, **execution) if part != 'device' else None
    for row in PARTS[part](setting, probe, args):
      told.add(row, memory={'peak_bytes': peak_bytes(), 'after_probe_bytes': after})
    told.write(status=accelerator_report.COMPLETE)
  except Exception as error:
    told.fail(error)
    raise


if __name__ == '__main__':
  part, size, path, flags = sys.argv[1:]
  run(part, size, pathlib.Path(path), json.loads(flags))
