"""What a step runs, compiled but not run: its programs, and the bytes that are on a device all the time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.networks.cpu import native
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import steps
from nlhf_jax.types import Algorithm, Batch, Params, TrainState

# A method's scoring as a function of the judge's weights too.
ScoreFn = Callable[[Params, Batch], Batch]


class Programs(NamedTuple):
  """The programs of a step, and the bytes that are on a device all the time."""

  # {sample, score, update}: a compiled program; None: it runs on the host.
  phases: dict[str, Any]
  # Bytes of the state, the judge's weights and the batch.
  lasting: dict[str, int]
  # Bytes that are on a device while it samples, and else in the host's memory.
  brought: int
  # Shapes of what is trained on.
  rollout: Batch


@native.unused()  # A plan is for other machines than the one that makes it.
def compile_step(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batch: Batch,
  *,
  score: tuple[ScoreFn, Params] | None = None,
  num_microbatches: int = 1,
  layout: partitioning.Layout | None = None,
) -> Programs:
  """Compiles the programs of a step.

  Args:
    algorithm, optimizer, num_microbatches, layout: as of `loop.train`.
    state, batch: arrays, or their shapes; on a mesh, with shardings.
    score: the method's scoring as a function of its judge's weights too, and their shapes; None: its weights are arrays
      that it holds.
  """
  # A function of its own: what JAX has traced of the method itself may call what is unused here, and the other way round.
  draw = algorithm.sample
  algorithm = algorithm._replace(sample=lambda *args: draw(*args))
  step = steps.Steps(algorithm, optimizer, num_microbatches, layout, state)
  params = step.played(state.params)
  sample = step.sample.lower(params, batch, state.rng).compile()
  rollout = steps.over_rows(jax.eval_shape(algorithm.sample, params, batch, state.rng), layout)
  function, weights = score or _as_function(algorithm.score, rollout)
  if function is None:
    program, scored = None, algorithm.score(jax.tree.map(_ones, rollout))
    scored = jax.tree.map(jnp.zeros_like, scored)
  else:
    program = jax.jit(function).lower(weights, rollout).compile()
    scored = jax.eval_shape(function, weights, rollout)
  scored = steps.over_rows(scored, layout)
  trained = step.trained(state)
  update = step.update.lower(trained, state.params.base, scored, state.step).compile()
  half = num_bytes(trained) if step.half_step is not None else 0
  on_device = partitioning.to_device(state.params)
  return Programs(
    {'sample': sample, 'score': program, 'update': update},
    {
      'state': num_bytes(state) + half,
      'judge_weights': num_bytes(weights),
      'batch': num_bytes(scored),
    },
    num_bytes(on_device) - num_bytes(state.params),
    scored,
  )


def memory(programs: Programs) -> dict[str, int]:
  """Bytes that a step needs on a device, by what its compiled programs tell.

  Returns:
    What is there all the time ('state': all parameter sets and the optimizer's state; 'judge_weights', where the judge runs
    on the device; 'batch'), what each phase needs besides, and the peak.
  """
  phases = {name: 0 if x is None else _temporary(x) for name, x in programs.phases.items()}
  phases['sample'] += programs.brought
  peak = sum(programs.lasting.values()) + max(phases.values())
  return programs.lasting | phases | {'peak': peak}


def num_bytes(tree: Any) -> int:
  """Bytes on one device; arrays in the host's memory do not count."""

  def count(x):
    if partitioning.on_host(x):
      return 0
    sharding = getattr(x, 'sharding', None)
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return int(np.prod(shape, dtype=np.int64)) * x.dtype.itemsize

  return sum(map(count, jax.tree.leaves(tree)))


def _as_function(score: Callable[[Batch], Batch], rollout: Batch) -> tuple[ScoreFn | None, Any]:
  """Scoring as a function of the arrays that it holds, and these; None: it looks at numbers, so it runs on the host."""
  try:
    traced, scored = jax.make_jaxpr(score, return_shape=True)(rollout)
  except jax.errors.JAXTypeError:
    return None, ()
  structure = jax.tree.structure(scored)

  def function(arrays, rollout):
    leaves = jax.core.eval_jaxpr(traced.jaxpr, arrays, *jax.tree.leaves(rollout))
    return jax.tree.unflatten(structure, leaves)

  return function, list(traced.consts)


def _ones(shape: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.ones(shape.shape, shape.dtype)


def _temporary(program: Any) -> int:
  """Temporary memory of a program, and that of its results which do not take the place of arguments."""
  found = program.memory_analysis()
  return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
