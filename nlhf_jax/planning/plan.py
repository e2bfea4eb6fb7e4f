"""What a run would take on a mesh that is not here: its programs, compiled for simulated devices, are read.

Sizes and collectives are those of the programs that XLA makes for CPUs. An accelerator's compiler fuses more, so its
temporary arrays are smaller; keeps bfloat16, which a CPU computes in float32; and gives each device its part of a gradient
by one reduce-scatter, where a CPU's takes an all-reduce of twice the bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich import table

from nlhf_jax.planning import chips, hlo
from nlhf_jax.planning import programs as step_programs
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import resolve, weights
from nlhf_jax.training.experiment import Experiment, Feedback, FeedbackSource
from nlhf_jax.types import Algorithm, Batch, Params, Prompts, TrainState


class Described(NamedTuple):
  """A step of an experiment, compiled but not run."""

  programs: step_programs.Programs
  # Shapes and shardings, as the rest.
  state: TrainState
  judge: Params
  batch: Batch


def describe(experiment: Experiment, layout: partitioning.Layout) -> Described:
  """Compiles a step of an experiment for a mesh.

  Args:
    experiment: whose run it would be; what it depends on need not be there.
    layout: the mesh.

  Raises:
    ValueError: a batch does not divide over it.
  """
  feedback = experiment.feedback
  build = lambda *bound: resolve.build_algorithm(experiment, *bound)
  with layout.active():
    algorithm = build() if feedback is None else build(_without_weights(feedback))
    shapes = resolve.state_shapes(experiment, algorithm)
    shardings = resolve.state_shardings(experiment, algorithm, layout)
    state = partitioning.with_shardings(shapes, shardings)
    batch = _batch_shapes(experiment, algorithm, layout)
    judge, score = (), None
    if isinstance(feedback, FeedbackSource):
      judge = weights.shapes_of(feedback.model, layout, feedback.dtype)
      score = (lambda judge, rollout: build(feedback.feedback(judge)).score(rollout)), judge
    programs = step_programs.compile_step(
      algorithm,
      experiment.optimizer,
      state,
      batch,
      score=score,
      num_microbatches=experiment.num_microbatches,
      layout=layout,
    )
  return Described(programs, state, judge, batch)


def _without_weights(feedback: Feedback | FeedbackSource) -> Feedback:
  """Feedback to build a method with; where its weights are not there, it cannot be called."""

  def absent(prompts, response, *alternative):
    raise NotImplementedError('The weights of this judge have not been read.')

  return absent if isinstance(feedback, FeedbackSource) else feedback


def _batch_shapes(
  experiment: Experiment, algorithm: Algorithm, layout: partitioning.Layout
) -> Batch:
  """Shapes of a batch, sharded over the mesh."""
  if experiment.shapes is None:
    batch = next(experiment.batches(start=0))
  else:
    batch = experiment.shapes(algorithm.reads)
  prompts = batch if isinstance(batch, Prompts) else batch.prompts
  layout.check_batch(prompts.tokens.shape[0])
  return partitioning.with_shardings(batch, jax.tree.map(lambda _: layout.rows, batch))


def summary(experiment: Experiment) -> dict[str, Any]:
  """What a dry run reports: parameters, batch and memory of a device, by shape, on the devices that there are."""
  layout = partitioning.Layout(partitioning.make_mesh(experiment.devices))
  described = describe(experiment, layout)
  model = weights.shapes_of(experiment.model)
  return {
    'parameters': _num_parameters(model),
    'parameter_bytes': _num_bytes(model),
    'trained_parameters': _num_parameters(described.state.params.online),
    'optimizer_bytes': _num_bytes(described.state.opt_state),
    'batch': jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', described.batch._asdict()),
    'mesh': dict(layout.mesh.shape),
    'memory_bytes': step_programs.memory(described.programs),
  }


def _num_parameters(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _num_bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Phase(NamedTuple):
  """One program of a step, on one device."""

  operations: float
  # Bytes of memory that are read or written at least.
  bytes_moved: float
  # By kind and axes of the mesh.
  bytes_sent: dict[tuple[str, str], float]


class Plan(NamedTuple):
  """What a step takes on each device."""

  # Devices along each axis, in order.
  mesh: dict[str, int]
  # How many, of the model and of the judge.
  parameters: dict[str, int]
  # Bytes, as of `programs.memory`.
  memory: dict[str, int]
  phases: dict[str, Phase]
  # Of all responses at most.
  num_tokens: int


def make(experiment: Experiment, mesh: jax.sharding.Mesh) -> Plan:
  """Compiles a step for a mesh and reads its programs.

  Args:
    experiment: whose run it would be; what it depends on need not be there.
    mesh: of devices of any kind.
  """
  described = describe(experiment, partitioning.Layout(mesh))
  programs = described.programs
  num_rows, length = programs.rollout.response.tokens.shape
  phases = {
    name: _phase(program, mesh, length)
    for name, program in programs.phases.items()
    if program is not None
  }
  model = weights.shapes_of(experiment.model)
  parameters = {'model': _num_parameters(model), 'judge': _num_parameters(described.judge)}
  memory = step_programs.memory(programs)
  return Plan(dict(mesh.shape), parameters, memory, phases, num_rows * length)


def _phase(program: Any, mesh: jax.sharding.Mesh, length: int) -> Phase:
  work, memory = hlo.work(program.as_text(), mesh.shape, length), program.memory_analysis()
  once = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
  return Phase(work.operations, once + work.carried, hlo.by_kind_and_axes(work.collectives))


def seconds(phase: Phase, chip: chips.Chip, mesh: Mapping[str, int]) -> dict[str, float]:
  """Least time of a phase on a chip, were it only for its operations, its memory, or its interconnect.

  Neighbours along the mesh's last axis are neighbours in a node. What goes along an axis whose groups reach beyond one
  goes through the network.

  Args:
    phase: of a plan.
    chip: its vendor peaks.
    mesh: devices along each axis, in order.
  """
  interconnect = 0.0
  for (_, along), sent in phase.bytes_sent.items():
    first = min(list(mesh).index(name) for name in along.split(' x '))
    reach = math.prod(list(mesh.values())[first:])
    interconnect += sent / (chip.interconnect if reach <= chip.node else chip.network)
  return {
    'operations': phase.operations / chip.operations,
    'memory': phase.bytes_moved / chip.bandwidth,
    'interconnect': interconnect,
  }


def report(plan: Plan, names: Sequence[str]) -> Iterator[table.Table]:
  """Tables of a plan: memory, what each phase does, and what that would take on some chips."""
  yield _memory_table(plan)
  yield _phases_table(plan)
  yield _times_table(plan, names)


def _memory_table(plan: Plan) -> table.Table:
  mesh = ' x '.join(f'{name} {size}' for name, size in plan.mesh.items())
  title = f'{mesh}: memory of a device'
  result = table.Table(title=title, title_justify='left', min_width=len(title))
  result.add_column('what')
  result.add_column('GB', justify='right')
  for name, value in plan.memory.items():
    result.add_row(name.replace('_', ' '), f'{value / 1e9:.2f}')
  return result


def _phases_table(plan: Plan) -> table.Table:
  result = table.Table(title='what a device does in a step', title_justify='left')
  result.add_column('phase')
  for name in ('TFLOP', 'GB moved', 'GB sent', 'of which'):
    result.add_column(name, justify='right')
  for name, phase in plan.phases.items():
    parts = [
      f'{kind} {axes}: {x / 1e9:.3g}' for (kind, axes), x in sorted(phase.bytes_sent.items())
    ]
    result.add_row(
      name,
      f'{phase.operations / 1e12:.3g}',
      f'{phase.bytes_moved / 1e9:.3g}',
      f'{sum(phase.bytes_sent.values()) / 1e9:.3g}',
      '\n'.join(parts),
    )
  return result


def _times_table(plan: Plan, names: Sequence[str]) -> table.Table:
  result = table.Table(title='seconds that a step takes at least', title_justify='left')
  result.add_column('chip')
  result.add_column('fits')
  for name in (*plan.phases, 'step', 'tokens/s'):
    result.add_column(name, justify='right')
  for name in names:
    chip = chips.CHIPS[name]
    least = [seconds(phase, chip, plan.mesh) for phase in plan.phases.values()]
    slowest = [max(x, key=x.get) for x in least]
    total = sum(x[w] for x, w in zip(least, slowest, strict=True))
    used = plan.memory['peak'] / chip.memory
    result.add_row(
      name,
      f'{"yes" if used <= 1 else "no"}, {used:.0%}',
      *(f'{x[w]:.3g} ({w})' for x, w in zip(least, slowest, strict=True)),
      f'{total:.3g}',
      f'{plan.num_tokens / total:,.0f}',
    )
  return result


def as_json(plan: Plan) -> dict[str, Any]:
  """The same for programs to read."""
  phases = {
    name: phase._asdict()
    | {'bytes_sent': {f'{k}, {axes}': x for (k, axes), x in phase.bytes_sent.items()}}
    for name, phase in plan.phases.items()
  }
  return plan._asdict() | {'phases': phases}
