"""Measures an accelerator: decoding, judging, update, complete step, compiling and memory, beside what the device itself can do.

  python benchmarks/accelerator.py --output_dir=OUT
  python benchmarks/accelerator.py --output_dir=OUT --parts device step --size llama_1_5b --budget 540
  python benchmarks/accelerator.py --output_dir=OUT --parts decode step --compile_first
  python benchmarks/accelerator.py --output_dir=OUT --parts --tokens=TOKENS --model=MODEL
  python benchmarks/accelerator.py --output_dir=OUT --summarise

Each part runs in a process of its own, so that one that fails ends no other, and writes OUT/SIZE.PART.json as it goes
(`accelerator_report` has the fields). What is there already is passed over: a command that was killed is given again, and
--again also repeats what failed or ran out of time. A part that exceeds --limit ends with what it has.

  device    bandwidth of reading and writing, rate of matrix products; every part measures both, too
  step      a Nash-MD-PG step under a judge that reads pairs: sampling of both players, judging, update
  decode    prompts read; all tokens; one token, its weights and cache over the bandwidth
  update    gradient and optimizer, operations over the matrix rate
  pair      a judge that reads pairs, in both orders
  judge     a judge that scores single responses
  stages    with --tokens: the runs that `nlhf tokenize` wrote there, such as those of smollm2, trained as far as time allows

Weights are random, or of --model where the size is smollm2_135m; trained ones are float32, those of reference and judge of
--frozen_dtype. Needs JAX, Flax, Optax, beartype, jaxtyping, rich and safetensors; for stages orbax-checkpoint, tensorboardX, scipy
and gin-config too. Neither seqio nor TensorFlow, and no network.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import accelerator_report as report

_HERE = pathlib.Path(__file__).parent
PARTS = ('device', 'step', 'decode', 'update', 'pair', 'judge')
SIZES = ('smollm2_135m', 'llama_1_5b', 't5_xl')
STAGES = ('sft', 'preference', 'nash_md_pg')
# Seconds that a process which is asked to end has for it: a stage saves.
_GRACE = {'stage': 45.0, 'part': 5.0}
# With less than this no part begins.
_LEAST = 60.0
# Allocate nearly all of the memory at once, and compile anew: compiling is measured.
_ENVIRONMENT = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  'JAX_ENABLE_COMPILATION_CACHE': 'false',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92',
}


def run_part(
  command: list[str], path: pathlib.Path, name: tuple[str, str], limit: float, grace: float
) -> dict[str, Any]:
  """Runs a part's process, and says in its file how it ended where it could not do so itself.

  Args:
    command: writes the file.
    path: of the file; what the process prints goes beside it.
    name: of part and size.
    limit: seconds, after which the process is ended.
    grace: seconds of these, in which it is asked to end first.
  """
  log = path.with_suffix('.log')
  with log.open('w') as output:
    environment = _ENVIRONMENT | os.environ
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    late = not _wait(process, limit - grace, signal.SIGTERM)
    if late:
      _wait(process, grace, signal.SIGKILL)
      process.wait()
  found = report.read(path)
  if found is not None and found['status'] != report.RUNNING:
    return found
  named = dict(zip(('part', 'size'), name, strict=True))
  if late:
    return report.end(path, report.LIMIT, f'ended after {limit:.0f} s', **named)
  if process.returncode < 0:
    text = f'killed by {signal.Signals(-process.returncode).name}'
    return report.end(
      path, report.FAILED, f'{text}: of the host, memory may not have sufficed', **named
    )
  last = (log.read_text(errors='replace').strip().splitlines() or ['it printed nothing'])[-1]
  return report.end(path, report.FAILED, f'status {process.returncode}: {last[:400]}', **named)


def _wait(process: subprocess.Popen, seconds: float, then: signal.Signals) -> bool:
  """Whether a process ended in time; otherwise it gets a signal."""
  try:
    process.wait(max(seconds, 0))
    return True
  except subprocess.TimeoutExpired:
    process.send_signal(then)
    return False


def plan(args: argparse.Namespace) -> list[tuple[str, str, str, dict[str, Any]]]:
  """(script, part, size, flags) of all that was asked for, the most telling first."""
  shared = ('dtype', 'batch', 'prompt', 'response', 'frozen_dtype', 'scan')
  flags = {name: getattr(args, name) for name in shared}
  wanted = []
  for part in PARTS:
    for size in ('any',) if part == 'device' else args.size:
      if part in args.parts:
        own = {'model': args.model if size == 'smollm2_135m' else None, 'remat': args.remat}
        wanted.append(('accelerator_parts.py', part, size, flags | own))
  for stage in args.stages if args.tokens else ():
    own = {'tokens': str(pathlib.Path(args.tokens).resolve()), 'train_flags': args.train_flag}
    model = args.model and str(pathlib.Path(args.model).resolve())
    wanted.append(('accelerator_stage.py', stage, 'stage', own | {'model': model}))
  return wanted


def command_of(
  script: str, part: str, size: str, path: pathlib.Path, flags: dict[str, Any]
) -> list[str]:
  """A part's process, which writes this file."""
  return [sys.executable, str(_HERE / script), part, size, str(path), json.dumps(flags)]


def compile_together(args: argparse.Namespace) -> None:
  """Runs all parts of a size side by side, for their programs, which are kept; one that fails is met again where it is measured."""
  directory = pathlib.Path(args.output_dir).resolve() / 'compiled'
  directory.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(directory / 'programs'))
  os.environ |= {'JAX_ENABLE_COMPILATION_CACHE': 'true'}
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
  shared = _ENVIRONMENT | os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  for wanted in args.size:
    begun, end = [], time.perf_counter() + args.limit
    for script, part, size, flags in plan(args):
      path = directory / f'{size}.{part}.json'
      if size != wanted or is_done(path, again=False):
        continue
      command = command_of(script, part, size, path, flags)
      with path.with_suffix('.log').open('w') as output:
        begun.append(subprocess.Popen(command, env=shared, stdout=output, stderr=output))
    for process in begun:
      _wait(process, end - time.perf_counter(), signal.SIGKILL)
      process.wait()
    print(f'{wanted}: {len(begun)} parts compiled side by side', flush=True)


def is_done(path: pathlib.Path, again: bool) -> bool:
  """Whether a part is there already; a stage that ran out of time goes on, and what was killed is measured anew."""
  found = report.read(path)
  if found is None or found['status'] == report.RUNNING:
    return False
  goes_on = found['status'] == report.LIMIT and found['part'].startswith('stage ')
  return found['status'] == report.COMPLETE or not (again or goes_on)


def measure(args: argparse.Namespace) -> None:
  """All parts that are not there, one after another, as long as the budget lasts."""
  directory, begun = pathlib.Path(args.output_dir), time.perf_counter()
  directory.mkdir(parents=True, exist_ok=True)
  for script, part, size, flags in plan(args):
    path = directory / f'{size}.{part}.json'
    label = f'{size} {part}'
    if is_done(path, args.again):
      print(f'{label}: there already', flush=True)
      continue
    left = args.budget - (time.perf_counter() - begun)
    if left < min(_LEAST, args.limit):
      print(f'{label}: not begun, {left:.0f} s are left', flush=True)
      continue
    command = command_of(script, part, size, path, flags)
    grace = _GRACE['stage' if size == 'stage' else 'part']
    path.unlink(missing_ok=True)
    limit = min(args.limit, left)
    found = run_part(command, path, (part, size), limit, min(grace, limit / 2))
    error = f': {found["error"]}' if found['error'] else ''
    print(f'{label}: {found["status"]}{error} ({time.perf_counter() - begun:.0f} s)', flush=True)


def summarise(directory: pathlib.Path) -> str:
  """The tables of what is in a directory."""
  found = [report.read(path) for path in sorted(directory.glob('*.json'))]
  order = {name: number for number, name in enumerate(PARTS)}
  results = [x for x in found if x and 'measured' in x]
  return report.table(sorted(results, key=lambda x: order.get(x['part'], len(order))))


def main() -> None:
  """Measures, unless --summarise; prints the tables."""
  description = argparse.RawTextHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=description)
  add = parser.add_argument
  add('--output_dir', required=True)
  add('--parts', nargs='*', choices=PARTS, default=PARTS)
  add('--size', nargs='+', default=SIZES, help='of benchmarks/setting.py')
  add('--dtype', default='bfloat16', help='of activations')
  add('--frozen_dtype', default='bfloat16', help='of the weights of reference and judge')
  add('--batch', type=int, default=32)
  add('--prompt', type=int, default=512)
  add('--response', type=int, default=128)
  add('--scan', action='store_true', help='one compiled layer for all in training')
  add('--remat', default='layers', help='what the update computes again: none, layers or dots')
  add('--tokens', help='a directory that nlhf tokenize wrote: train its stages')
  add('--stages', nargs='+', default=STAGES, help='names of its gin files')
  add(
    '--train_flag',
    action='append',
    default=[],
    help='of nlhf train, repeatable: --train_flag=--gin.TAU=.1',
  )
  add('--model', help='a Hugging Face directory of SmolLM2-135M')
  add('--limit', type=float, default=540, help='seconds of a part')
  add('--budget', type=float, default=float('inf'), help='seconds of all parts together')
  add(
    '--compile_first',
    action='store_true',
    help='all parts of a size side by side, whose times are in OUT/compiled; the tables then say how long loading takes',
  )
  add('--again', action='store_true', help='repeat what did not complete')
  add('--summarise', action='store_true', help='measure nothing')
  args = parser.parse_args()
  if args.compile_first:
    compile_together(args)
  if not args.summarise:
    measure(args)
  tables = summarise(pathlib.Path(args.output_dir))
  print(tables)
  (pathlib.Path(args.output_dir) / 'summary.md').write_text(tables + '\n')


if __name__ == '__main__':
  main()
