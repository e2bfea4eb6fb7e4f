"""Bytes that a device sends in a step, as devices and prompts grow together: `nlhf plan`, mesh by mesh.

  python benchmarks/weak_scaling.py --output out.json -- --gin_file=… [flags of `nlhf plan`]

Nothing is run: each row is a program compiled for a number of simulated devices. A table in Markdown, and JSON.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

SIZES = (8, 16, 32, 64, 128, 256)
# Devices along each axis, of all of them.
FAMILIES = {
  'data': lambda n: {'data': n},
  'fsdp': lambda n: {'fsdp': n},
  'data x fsdp 8': lambda n: {'data': n // 8, 'fsdp': 8},
  'data x tensor 4': lambda n: {'data': n // 4, 'tensor': 4},
}


def plan(flags, mesh, batch_size) -> dict:
  """What `nlhf plan` writes."""
  with tempfile.TemporaryDirectory() as directory:
    output = pathlib.Path(directory) / 'plan.json'
    argv = [sys.executable, '-m', 'nlhf_jax', 'plan', *flags, f'--output={output}']
    argv += ['--mesh=' + ','.join(f'{k}={v}' for k, v in mesh.items())]
    argv += [f'--gin.BATCH_SIZE={batch_size}']
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
      raise SystemExit(done.stderr[-2000:])
    return json.loads(output.read_text())


def main() -> None:
  """Compiles, prints a row at a time, and writes all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--prompts', type=int, default=4, help='of each device')
  parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
  parser.add_argument('--families', nargs='+', choices=sorted(FAMILIES), default=list(FAMILIES))
  parser.add_argument('--output', required=True)
  parser.add_argument('flags', nargs='+', help='after --: flags of `nlhf plan`')
  args = parser.parse_args()
  found = {}
  print(
    '| mesh | devices | state, MB | sample, MB sent | score | update | of which |\n|---|---|---|---|---|---|---|'
  )
  for family in args.families:
    for size in args.sizes:
      mesh = FAMILIES[family](size)
      one = found[f'{family}, {size}'] = plan(args.flags, mesh, args.prompts * size)
      sent = {name: phase['bytes_sent'] for name, phase in one['phases'].items()}
      total = {}
      for phase in sent.values():
        for kind, number in phase.items():
          total[kind] = total.get(kind, 0) + number
      parts = ', '.join(f'{k}: {v / 1e6:.3g}' for k, v in sorted(total.items()) if v > 1e5)
      columns = ' | '.join(f'{sum(phase.values()) / 1e6:.3g}' for phase in sent.values())
      state = one['memory']['state'] / 1e6
      print(f'| {family} | {size} | {state:.3g} | {columns} | {parts} |', flush=True)
      pathlib.Path(args.output).write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
