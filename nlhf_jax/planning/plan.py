"""What a run would take on a mesh that is not here: its programs, compiled for so many simulated devices, are read.

Sizes and exchanges are those of the programs that XLA makes for CPUs. An accelerator's compiler fuses more, so its
temporary arrays are smaller; keeps bfloat16, which a CPU computes in float32; and gives each device its part of a gradient
by one reduce-scatter, where a CPU's takes an all-reduce of twice the bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich import table

from nlhf_jax.training import experiment
from nlhf_jax.planning import hlo
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import loop
from nlhf_jax.types import Params, Prompts, TrainState


class Chip(NamedTuple):
  """What its maker says of it, for one chip."""

  memory: float  # Bytes.
  operations: float  # A second, dense products of bfloat16.
  bandwidth: float  # Of its memory, bytes a second.
  links: float  # To the others of a slice or node, bytes a second that it can send.
  node: int  # Chips that are linked so.
  network: float  # Beyond these.


# Sources: cloud.google.com/tpu/docs/{v5e,v5p}; NVIDIA's data sheets of H100 SXM and H200 SXM, 400 Gb/s a chip beyond a node.
CHIPS = {
  'v5e': Chip(16e9, 197e12, 0.82e12, 200e9, 256, 3e9),
  'v5p': Chip(95e9, 459e12, 2.77e12, 600e9, 8960, 3e9),
  'h100': Chip(80e9, 989e12, 3.35e12, 450e9, 8, 50e9),
  'h200': Chip(141e9, 989e12, 4.8e12, 450e9, 8, 50e9),
}


class Described(NamedTuple):
  """A step of an experiment, compiled but not run."""

  programs: loop.Programs
  state: TrainState  # Shapes and shardings, as the rest.
  judge: Params
  batch: Any


def describe(experiment: experiment.Experiment, layout: partitioning.Layout) -> Described:
  """Compiles a step of an experiment for a mesh.

  Args:
    experiment: whose run it would be; what it depends on need not be there.
    layout: the mesh.

  Raises:
    ValueError: a batch does not divide over it.
  """
  model = experiment.trained_model(experiment)
  build = lambda *feedback: experiment.algorithm(model, *feedback)
  judge = experiment.feedback
  with layout.active():
    algorithm = build() if judge is None else build(_feedback(judge))
    experiment.check_sets(experiment, algorithm)
    shapes = experiment.state_shapes(experiment, algorithm)
    shardings = experiment.shardings_of(experiment, algorithm, layout)
    state = partitioning.with_shardings(shapes, shardings)
    batch = _batch(experiment, algorithm, layout)
    weights, judging = (), None
    if judge is not None and judge.model is not None:
      weights = experiment.shapes_of(judge.model, layout, judge.dtype)
      judging = (lambda weights, rollout: build(judge.of(weights)).judge(rollout)), weights
    programs = loop.programs(
      algorithm,
      experiment.optimizer,
      state,
      batch,
      judge=judging,
      num_microbatches=experiment.num_microbatches,
      ema_decay=experiment.ema_decay,
      layout=layout,
    )
  return Described(programs, state, weights, batch)


def _feedback(judge: experiment.Judge) -> experiment.Feedback:
  """A judge's; where its weights are not there, nobody's."""

  def nobody(prompts, y, *_):
    raise NotImplementedError

  return nobody if judge.model is not None else judge.of(())


def _batch(experiment, algorithm, layout: partitioning.Layout) -> Any:
  """Shapes of one, as it lies on the mesh."""
  if experiment.shapes is None:
    batch = next(experiment.batches(start=0))
  else:
    batch = experiment.shapes(algorithm.reads)
  prompts = batch if isinstance(batch, Prompts) else batch.prompts
  layout.check_batch(prompts.tokens.shape[0])
  return partitioning.with_shardings(batch, jax.tree.map(lambda _: layout.rows, batch))


def summary(experiment: experiment.Experiment) -> dict[str, Any]:
  """What a dry run reports: parameters, batch and memory of a device, by shape, on the devices that there are."""
  layout = partitioning.Layout(partitioning.make_mesh(experiment.devices))
  of = describe(experiment, layout)
  model = experiment.shapes_of(experiment.model)
  return {
    'parameters': _count(model),
    'parameter_bytes': _bytes(model),
    'trained_parameters': _count(of.state.params.online),
    'optimizer_bytes': _bytes(of.state.opt_state),
    'batch': jax.tree.map(lambda x: f'{x.dtype}{list(x.shape)}', of.batch._asdict()),
    'mesh': dict(layout.mesh.shape),
    'memory_bytes': loop.memory(of.programs),
  }


def _count(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Phase(NamedTuple):
  """One program of a step, on one device."""

  operations: float
  moved: float  # Bytes of memory that are read or written at least.
  sent: dict[tuple[str, str], float]  # Bytes, by kind and axes of the mesh.


class Plan(NamedTuple):
  """What a step takes on each device."""

  mesh: dict[str, int]
  parameters: dict[str, int]  # How many, of the model and of the judge.
  memory: dict[str, int]  # Bytes, as `loop.memory`.
  phases: dict[str, Phase]
  num_tokens: int  # Of all responses at most.


def make(experiment: experiment.Experiment, mesh) -> Plan:
  """Compiles a step for a mesh and reads its programs.

  Args:
    experiment: whose run it would be; what it depends on need not be there.
    mesh: of devices of any kind.
  """
  of = describe(experiment, partitioning.Layout(mesh))
  num_rows, length = of.programs.rollout.response.tokens.shape
  phases = {
    name: _phase(program, mesh, length)
    for name, program in of.programs.phases.items()
    if program is not None
  }
  parameters = {'model': _count(experiment.shapes_of(experiment.model)), 'judge': _count(of.judge)}
  return Plan(dict(mesh.shape), parameters, loop.memory(of.programs), phases, num_rows * length)


def _phase(program: Any, mesh, length: int) -> Phase:
  work, memory = hlo.work(program.as_text(), mesh.shape, length), program.memory_analysis()
  once = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
  return Phase(work.operations, once + work.carried, hlo.by_kind_and_axes(work.collectives))


def seconds(phase: Phase, chip: Chip, mesh: Mapping[str, int]) -> dict[str, float]:
  """Least time of a phase on a chip, were it only for its operations, its memory, or its links.

  Neighbours along the mesh's last axis are neighbours in a node. What goes along an axis whose groups reach beyond one
  goes through the network.

  Args:
    phase: of a plan.
    chip: what its maker says.
    mesh: devices along each axis, in order.
  """
  links = 0.0
  for (_, along), sent in phase.sent.items():
    first = min(list(mesh).index(name) for name in along.split(' x '))
    reach = math.prod(list(mesh.values())[first:])
    links += sent / (chip.links if reach <= chip.node else chip.network)
  return {
    'operations': phase.operations / chip.operations,
    'memory': phase.moved / chip.bandwidth,
    'links': links,
  }


def report(plan: Plan, names: Sequence[str]) -> Iterator[table.Table]:
  """Tables of a plan: what lies where, what each phase does, and what that would take on some chips."""
  mesh = ' x '.join(f'{name} {size}' for name, size in plan.mesh.items())
  title = f'{mesh}: memory of a device'
  memory = table.Table(title=title, title_justify='left', min_width=len(title))
  memory.add_column('what')
  memory.add_column('GB', justify='right')
  for name, value in plan.memory.items():
    memory.add_row(name.replace('_', ' '), f'{value / 1e9:.2f}')
  yield memory

  phases = table.Table(title='what a device does in a step', title_justify='left')
  phases.add_column('phase')
  for name in ('TFLOP', 'GB moved', 'GB sent', 'of which'):
    phases.add_column(name, justify='right')
  for name, phase in plan.phases.items():
    parts = [f'{kind} {axes}: {x / 1e9:.3g}' for (kind, axes), x in sorted(phase.sent.items())]
    sent = sum(phase.sent.values())
    phases.add_row(
      name,
      f'{phase.operations / 1e12:.3g}',
      f'{phase.moved / 1e9:.3g}',
      f'{sent / 1e9:.3g}',
      '\n'.join(parts),
    )
  yield phases

  times = table.Table(title='seconds that a step takes at least', title_justify='left')
  times.add_column('chip')
  times.add_column('fits')
  for name in plan.phases:
    times.add_column(name, justify='right')
  times.add_column('step', justify='right')
  times.add_column('tokens/s', justify='right')
  for name in names:
    chip = CHIPS[name]
    least = [seconds(phase, chip, plan.mesh) for phase in plan.phases.values()]
    slowest = [max(x, key=x.get) for x in least]
    total = sum(x[w] for x, w in zip(least, slowest, strict=True))
    used = plan.memory['peak'] / chip.memory
    times.add_row(
      name,
      f'{"yes" if used <= 1 else "no"}, {used:.0%}',
      *(f'{x[w]:.3g} ({w})' for x, w in zip(least, slowest, strict=True)),
      f'{total:.3g}',
      f'{plan.num_tokens / total:,.0f}',
    )
  yield times


def as_json(plan: Plan) -> dict[str, Any]:
  """The same for programs to read."""
  phases = {
    name: phase._asdict() | {'sent': {f'{k}, {axes}': x for (k, axes), x in phase.sent.items()}}
    for name, phase in plan.phases.items()
  }
  return plan._asdict() | {'phases': phases}
