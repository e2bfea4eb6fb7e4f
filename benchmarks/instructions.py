"""Where the time of a token, or of an update, goes: instruction by instruction, beside the bytes that each must read or write.

  python benchmarks/instructions.py --size smollm2_135m --lanes 1 8 32 --output out.json
  python benchmarks/instructions.py --size test --parts update --output out.json

Times are those of JAX's profiler on the thread that ran an instruction; a CPU runs several side by side, and one on several
threads, so that they add up to more or less than the token takes. Needs JAX, Flax, optax and rich.
"""

# isort: off
import setting as settings
# isort: on

import collections
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import training_speed
from rich import console, table

from nlhf_jax.planning import hlo

# What an instruction belongs to, by where in the program it was written; the first that fits.
KINDS = {
  'feed-forward': r'/mlp/',
  'projections': r'/(query|key|value|out)/',
  'attention': r'attention/',
  'logits': r'logits|attend/',
  'optimiser': r'^(add|mul|sub|div|sqrt|integer_pow|pow|neg)$',
  'drawing': r'gumbel|log_softmax|^(while/body/)?(reduce|add|jit\(_where\)|eq|argmax|gather|scatter)',
}
RESPONSE = 33


class Instruction(NamedTuple):
  """Of a compiled program."""

  # Where it was written: the path of modules and functions.
  source: str
  # Of its result.
  shape: str
  # Of its operands and its result.
  bytes: float


class Spent(NamedTuple):
  """By instructions of one kind, source and shape."""

  kind: str
  source: str
  shape: str
  calls: float
  milliseconds: float
  bytes: float


def instructions(text: str) -> dict[str, Instruction]:
  """Those of a compiled program's text, by name."""
  found = [x for body in hlo.parse(text).computations.values() for x in body]
  shapes = {x.name: x.shape for x in found}
  result = {}
  for x in found:
    source = re.search(r'op_name="([^"]*)"', x.rest)
    operands = re.findall(r'%([\w.-]+)', x.rest.split('), ')[0])
    arrays = [x.shape, *(shapes[name] for name in operands if name in shapes)]
    moved = sum(map(hlo.num_bytes, arrays))
    result[x.name] = Instruction(source[1] if source else '', x.shape, moved)
  return result


def profiled(program: Any, args: tuple, least: int, *, but: str) -> tuple[float, list[Spent]]:
  """Seconds of a compiled program, and what its instructions spent that ran `least` times or more; one kind it has not."""
  known = instructions(program.as_text())
  seconds = settings.seconds(lambda: program(*args))
  with tempfile.TemporaryDirectory() as scratch:
    with jax.profiler.trace(scratch):
      jax.block_until_ready(program(*args))
    (file,) = pathlib.Path(scratch).rglob('*.xplane.pb')
    events = _events(file, known)
  spent: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0])
  for name, times in events.items():
    if len(times) < least or name.startswith('while'):
      continue
    source = _source(known[name].source)
    row = spent[_kind(source, but), source, known[name].shape]
    # One that writes into an array in place moves what it writes; the arrays' sizes say nothing.
    moved = 0.0 if 'dynamic_update_slice' in source else known[name].bytes
    for n, x in enumerate((len(times), sum(times), len(times) * moved)):
      row[n] += x
  rows = [Spent(*key, *(x / least for x in value)) for key, value in spent.items()]
  return seconds, sorted(rows, key=lambda row: -row.milliseconds)


def _events(file: pathlib.Path, known: dict[str, Instruction]) -> dict[str, list[float]]:
  """Milliseconds of each time that an instruction ran."""
  found = collections.defaultdict(list)
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        if event.name in known:
          found[event.name].append(event.duration_ns / 1e6)
  return found


def _source(path: str) -> str:
  """Without what is the same everywhere, and with one name for all layers."""
  path = re.sub(r'^jit\([^/]*\)/(while/body/)?(closed_call/)?', '', path)
  path = re.sub(r'layers_\d+', 'layers', path)
  return re.sub(r'Transformer\.\w+/(Transformer\.\w+/)?', '', path)


def _kind(source: str, but: str) -> str:
  kinds = (kind for kind, rule in KINDS.items() if kind != but and re.search(rule, source))
  return next(kinds, 'the rest')


def token(setting: settings.Setting, lanes: int) -> tuple[float, list[Spent]]:
  """Seconds of a token of so many lanes, and what its instructions spent."""
  setting = training_speed.lanes(setting, lanes)
  online = training_speed.MIXTURES['policy']
  play, first = (training_speed.player(setting, online, n) for n in (RESPONSE, 1))
  program = play.func.lower(*play.args).compile()
  seconds, spent = profiled(program, play.args, RESPONSE - 1, but='optimiser')
  return (seconds - settings.seconds(first)) / (RESPONSE - 1), spent


def update(setting: settings.Setting) -> tuple[float, list[Spent]]:
  """Seconds of Nash-MD's update, and what its instructions spent."""
  run, method, state = training_speed.nash_md(setting)
  rollout = method.score(run.sample(run.played(state.params), setting.prompts, state.rng))
  args = run.trained(state), None, rollout, state.step
  return profiled(run.half_update.lower(*args).compile(), args, 1, but='drawing')


def by_kind(spent: Iterable[Spent]) -> dict[str, dict[str, float]]:
  """Calls, milliseconds and bytes of each kind, the longest first."""
  total: dict[str, dict[str, float]] = {}
  for row in spent:
    kind = total.setdefault(row.kind, {'calls': 0.0, 'milliseconds': 0.0, 'bytes': 0.0})
    for name in kind:
      kind[name] += getattr(row, name)
  return dict(sorted(total.items(), key=lambda item: -item[1]['milliseconds']))


def show(what: str, seconds: float, spent: list[Spent], bandwidth: float, number: int) -> None:
  """The kinds, and the instructions that take longest."""
  shown = table.Table(title=f'{what}: {1000 * seconds:.2f} ms; {bandwidth / 1e9:.1f} GB/s')
  for column in ('what', 'shape', 'calls', 'ms', 'of the bandwidth'):
    shown.add_column(column)

  def row(name, shape, calls, milliseconds, moved):
    share = f'{moved / bandwidth / milliseconds * 1000:.2f}' if moved else ''
    shown.add_row(name, shape, f'{calls:.0f}', f'{milliseconds:.3f}', share)

  for kind, total in by_kind(spent).items():
    row(kind, '', *total.values())
  shown.add_section()
  for one in spent[:number]:
    row(one.source, one.shape.split('{')[0], one.calls, one.milliseconds, one.bytes)
  console.Console(width=150).print(shown)


def main() -> None:
  """Measures, prints and writes."""
  parser = training_speed.arguments(__doc__)
  add = parser.add_argument
  add('--parts', nargs='+', choices=('token', 'update'), default=['token'])
  add('--lanes', nargs='+', type=int, default=[1, 8, 32])
  add('--shown', type=int, default=16, help='instructions of each table')
  args = parser.parse_args()
  setting = training_speed.make(args)
  result: dict[str, Any] = {'setting': vars(args), 'device': str(jax.devices()[0]), 'parts': {}}
  works = {f'a token of {n} lanes': lambda n=n: token(setting, n) for n in args.lanes}
  works = works if 'token' in args.parts else {}
  if 'update' in args.parts:
    works['an update'] = lambda: update(setting)
  for what, work in works.items():
    bandwidth = settings.bandwidth()
    seconds, spent = work()
    show(f'{args.size}, {what}', seconds, spent, bandwidth, args.shown)
    result['parts'][what] = {
      'seconds': seconds,
      'bytes_per_second': bandwidth,
      'kinds': by_kind(spent),
      'instructions': [row._asdict() for row in spent],
    }
  result['at'] = time.strftime('%Y-%m-%d')
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
