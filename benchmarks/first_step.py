"""Time to the first step of every stage of an experiment: nothing compiled before, then everything; and where it goes.

  python benchmarks/first_step.py --experiment builtin --output out.json

Seconds count from the first import of a process.

Each stage trains one step in a process of its own; the runs that it needs come from the stages before. Tracing, lowering and
compiling are what JAX reports of itself; the rest of a phase is the step, and waiting for the device.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from rich import console, table

PARTS = {
  'trace': '/jax/core/compile/jaxpr_trace_duration',
  'lower': '/jax/core/compile/jaxpr_to_mlir_module_duration',
  'compile': '/jax/core/compile/backend_compile_duration',
}


def child(arguments: list[str]) -> None:
  """One stage; prints seconds as JSON."""
  start = time.perf_counter()
  import jax

  from nlhf_jax import __main__ as process
  from nlhf_jax.training import steps

  seconds = {'import': time.perf_counter() - start, 'programs': 0} | dict.fromkeys(PARTS, 0.0)

  def listen(event: str, duration: float, **_) -> None:
    for part, name in PARTS.items():
      if event == name:
        seconds[part] += duration
        seconds['programs'] += part == 'compile'

  jax.monitoring.register_event_duration_secs_listener(listen)
  take = steps.Steps.__call__

  def timed(*args, **options):
    result = jax.block_until_ready(take(*args, **options))
    seconds.setdefault('first step', time.perf_counter() - start)
    return result

  steps.Steps.__call__ = timed
  sys.argv[1:] = arguments
  assert process.main() == 0
  seconds['process'] = time.perf_counter() - start
  run_dir = pathlib.Path(next(a.split('=', 1)[1] for a in arguments if a.startswith('--run_dir')))
  row = json.loads((run_dir / 'metrics.jsonl').read_text().splitlines()[0])
  seconds |= {phase: row.get(f'{phase}_seconds', 0.0) for phase in ('sample', 'score', 'update')}
  print('\n' + json.dumps(seconds))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--experiment', default='builtin')
  parser.add_argument('--output', help='a file for the same in JSON')
  parser.add_argument('--flags', nargs='*', default=[], help='more flags of nlhf train')
  args = parser.parse_args()
  from nlhf_jax.cli import experiments

  names = [stage.name for stage in experiments.stages(experiments.locate(args.experiment))]
  rows = {}
  with tempfile.TemporaryDirectory() as directory:
    for name in names:
      # An empty cache for each: nothing that another stage has compiled.
      cache = f'JAX_COMPILATION_CACHE_DIR={directory}/cache_of_{name}'
      for state in ('cold', 'warm'):
        run_dir = pathlib.Path(directory, name)
        shutil.rmtree(run_dir, ignore_errors=True)
        flags = ['train', f'--experiment={args.experiment}/{name}', f'--run_dir={run_dir}']
        flags += ['--gin.NUM_STEPS=1', '--gin.optimizers.warmup_linear.warmup_steps=0', *args.flags]
        # The pages that `nlhf` takes: it would start again to get them.
        command = [
          'env',
          cache,
          'GLIBC_TUNABLES=glibc.malloc.hugetlb=1',
          sys.executable,
          __file__,
          '--child',
          *flags,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
          sys.exit(done.stderr)
        rows[f'{name}, {state}'] = json.loads(done.stdout.splitlines()[-1])
  columns = ['first step', 'process', 'import', 'sample', 'score', 'update', *PARTS, 'programs']
  shown = table.Table(title='seconds from the first import')
  shown.add_column('')
  for column in columns:
    shown.add_column(column, justify='right')
  for name, row in rows.items():
    shown.add_row(name, *(f'{row[c]:.1f}' if c != 'programs' else str(row[c]) for c in columns))
  console.Console(width=120).print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    child(sys.argv[2:])
  else:
    main()
