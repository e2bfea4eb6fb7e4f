"""What a compiled program does, by its text: its operations, and the bytes that its devices send to each other.

XLA's own cost analysis counts the body of a loop once and omits collectives; here both are counted as often as
they run. The text is that of one device, so sizes are a device's.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Of other types the name has the number.
_BITS = {'pred': 8, 'bf16': 16, 'f16': 16, 's4': 4, 'u4': 4}
_SHAPE = re.compile(r'\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_CALLED = re.compile(
  r'(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.-]+)'
)
_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


class Collective(NamedTuple):
  """One exchange between devices."""

  # all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
  kind: str
  # Of the mesh, along which devices exchange.
  axes: tuple[str, ...]
  # Of what a device then has.
  shapes: tuple[tuple[int, ...], ...]
  # By one device, each time.
  bytes_sent: float
  # How often it runs in a run of the program.
  times: float


class Work(NamedTuple):
  """What one device does in a run of a program."""

  # Of products of matrices; a multiplication and an addition are two.
  operations: float
  # Bytes that loops that may end early read in each of their iterations: weights and caches.
  carried: float
  # Those that send anything.
  collectives: list[Collective]


def work(text: str, mesh: Mapping[str, int], loop_length: int) -> Work:
  """Reads a compiled program.

  Args:
    text: of the program (`Compiled.as_text`).
    mesh: devices along each of its axes, in order.
    loop_length: iterations of loops that may end early, all together: tokens of the longest response.
  """
  parsed = parse(text)
  times = _times(parsed, loop_length)
  operations, carried, collectives = 0.0, 0.0, []
  for name, instructions in parsed.computations.items():
    if not times[name]:
      continue
    shapes = {i.name: i.shape for i in instructions}
    for instruction in instructions:
      operations += times[name] * _operations(instruction, shapes)
      if instruction.kind == 'while' and not _trips(instruction):
        carried += times[_called(instruction, 'body')] * num_bytes(instruction.shape)
      kind = instruction.kind.removesuffix('-start')
      if kind in _KINDS:
        collectives.append(_collective(kind, instruction, mesh, times[name]))
  return Work(operations, carried, [x for x in collectives if x.bytes_sent])


def by_kind_and_axes(collectives: Iterable[Collective]) -> dict[tuple[str, str], float]:
  """Bytes that a device sends, by kind and axes."""
  total: dict[tuple[str, str], float] = collections.defaultdict(float)
  for x in collectives:
    total[x.kind, ' x '.join(x.axes)] += x.bytes_sent * x.times
  return dict(total)


class Instruction(NamedTuple):
  """A line of a compiled program."""

  name: str
  # Of its result.
  shape: str
  kind: str
  # Operands and attributes.
  rest: str


class Program(NamedTuple):
  """A compiled program."""

  # The computation that it begins with.
  entry: str
  computations: dict[str, list[Instruction]]


def parse(text: str) -> Program:
  """The computations of a program's text (`Compiled.as_text`)."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append(Instruction(*found.groups()))
  return Program(entry, computations)


def _times(program: Program, loop_length: int) -> dict[str, float]:
  """How often each computation runs."""
  early = [
    i for body in program.computations.values() for i in body if i.kind == 'while' and not _trips(i)
  ]
  times: dict[str, float] = collections.defaultdict(float)

  def run(name: str, number: float):
    times[name] += number
    for instruction in program.computations[name]:
      inner = number
      if instruction.kind == 'while':
        inner *= _trips(instruction) or loop_length / len(early)
      called = _CALLED.findall(instruction.rest)
      if branches := re.search(r'branch_computations=\{([^}]*)\}', instruction.rest):
        called += [name.strip().lstrip('%') for name in branches[1].split(',')]
      for other in called:
        run(other, inner)

  run(program.entry, 1.0)
  return times


def _called(instruction: Instruction, how: str) -> str:
  return re.search(rf'\b{how}=%?([\w.-]+)', instruction.rest)[1]


def _trips(instruction: Instruction) -> int | None:
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
  return int(found[1]) if found else None


def _dims(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(',') if n)


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
  return [(kind, _dims(dims)) for kind, dims in _SHAPE.findall(shape)]


def num_bytes(shape: str) -> float:
  """Of the arrays of a shape, as a program's text has it."""

  def bits(kind):
    return _BITS.get(kind) or int(re.search(r'\d+', kind)[0])

  return sum(math.prod(dims) * bits(kind) / 8 for kind, dims in _arrays(shape))


def _operations(instruction: Instruction, shapes: dict[str, str]) -> float:
  """2 · entries of the result · length of what is summed over, of a product."""
  if instruction.kind != 'dot':
    return 0.0
  # Operands may have their shapes before their names.
  operands = re.sub(r'^\w+\[[^\]]*\](?:\{[^}]*\})? ', '', instruction.rest)
  ((_, left),) = _arrays(shapes[re.match(r'%?([\w.-]+)', operands)[1]])
  summed = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.rest)
  length = math.prod(left[n] for n in _dims(summed[1])) if summed else 1
  ((_, result),) = _arrays(instruction.shape)
  return 2.0 * math.prod(result) * length


def _collective(
  kind: str, instruction: Instruction, mesh: Mapping[str, int], times: float
) -> Collective:
  size, arrays = num_bytes(instruction.shape), _arrays(instruction.shape)
  if instruction.kind.endswith('-start') and kind != 'all-reduce':
    arrays = arrays[len(arrays) // 2 :]  # Operands, then results.
    size = sum(num_bytes(f'{k}[{",".join(map(str, dims))}]') for k, dims in arrays)
  if kind == 'collective-permute':
    pairs = re.findall(r'\{(\d+),(\d+)\}', instruction.rest.split('source_target_pairs=')[1])
    groups = np.array([pair for pair in np.array(pairs, int) if pair[0] != pair[1]]).reshape(-1, 2)
    bytes_sent = size if len(groups) else 0.0
  else:
    groups = replica_groups(instruction.rest, math.prod(mesh.values()))
    number = groups.shape[1]
    # In a ring all shards but a device's own go round once, or twice to be summed and returned.
    rounds = {'all-reduce': 2.0, 'reduce-scatter': float(number)}.get(kind, 1.0)
    bytes_sent = rounds * (number - 1) / number * size
  return Collective(kind, _axes(groups, mesh), tuple(dims for _, dims in arrays), bytes_sent, times)


def replica_groups(text: str, num_devices: int) -> np.ndarray:
  """The devices that exchange with each other, a row for each group, in any of XLA's notations.

  Raises:
    ValueError: it is none of those known here.
  """
  if found := re.search(r'replica_groups=\{(\{[\d,{}]*\})?\}', text):
    groups = re.findall(r'\{([\d,]+)\}', found[1] or '')
    return np.array([_dims(g) for g in groups]) if groups else np.arange(num_devices)[None]
  if found := re.search(r'replica_groups=(\[[\d,]+\]<=\S+?)(?:, [a-z]|$)', text):
    return _iota(found[1])
  named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{('[^}]*)\}", text)
  if named and '(' not in named[3]:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    order = _iota(named[2]) if named[2] else np.arange(num_devices)
    grid = order.reshape(list(sizes.values()))
    along = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[3])]
    grid = np.moveaxis(grid, along, range(-len(along), 0))
    return grid.reshape(-1, math.prod(grid.shape[-len(along) :]))
  raise ValueError(f'Unknown replica groups: {text[text.find("replica_groups") :][:120]}')


def _iota(text: str) -> np.ndarray:
  """[4,2]<=[2,4]T(1,0): numbers in order, in shape [2, 4], transposed, in shape [4, 2]."""
  result, _, source = text.rpartition('<=')
  sizes, _, order = source.partition('T')
  dims = _dims(sizes.strip('[]'))
  numbers = np.arange(math.prod(dims)).reshape(dims)
  if order:
    numbers = numbers.transpose(_dims(order.strip('()')))
  return numbers.reshape(_dims(result.strip('[]'))) if result else numbers


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Axes of the mesh along which the members of a group differ."""
  places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # [axis, group, member]
  differ = (places != places[:, :, :1]).any(axis=(1, 2))
  return tuple(name for name, does in zip(mesh, differ, strict=True) if does)
