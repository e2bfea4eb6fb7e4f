"""Kills a run at random moments, resumes it each time, and compares its end with that of a run that nothing disturbed.

  python benchmarks/kill_and_resume.py --kills 20 --processes 1 --output out.json

The run is `nlhf train` of the built-in task's SFT stage, or of another experiment; a checkpoint every two steps. Half of the
kills (SIGKILL, to all processes of the run, or to one of them where there are several) come at a random moment of a
random step, the others while a checkpoint is being written. Prints, and writes, when each came and whether arrays,
metrics and samples are equal to the last bit.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

from nlhf_jax.runtime import checkpoints

SMALL = [
  '--gin.corpora.headlines.num_train=200',
  '--gin.corpora.headlines.num_test=20',
  '--gin.experiment.Experiment.log_every=5',
  '--gin.experiment.Experiment.save_every=2',
  '--gin.BATCH_SIZE=8',
]


class Run:
  """The processes of a run, from one start to their end."""

  def __init__(self, args, run_dir: pathlib.Path):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    self.saved = run_dir / 'checkpoints'
    self.members, count = [], args.processes
    for index in range(count):
      argv = [sys.executable, '-m', 'nlhf_jax', 'train', f'--experiment={args.experiment}']
      argv += [f'--run_dir={run_dir}', f'--gin.NUM_STEPS={args.steps}', *SMALL, *args.flags]
      if count > 1:
        argv += [
          f'--coordinator_address={address}',
          f'--process_count={count}',
          f'--process_index={index}',
        ]
      with run_dir.with_name(f'{run_dir.name}.{index}.log').open('w') as log:
        self.members.append(subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT))

  def alive(self) -> bool:
    """Whether all are running."""
    return all(member.poll() is None for member in self.members)

  def wait_for(self, condition, seconds=300.0) -> bool:
    """Whether the condition came true while all were running."""
    end = time.monotonic() + seconds
    while self.alive() and time.monotonic() < end:
      if condition():
        return True
      time.sleep(0.002)
    return False

  def kill(self) -> None:
    """Kills one of them; the others end by themselves."""
    random.choice(self.members).send_signal(signal.SIGKILL)
    for member in self.members:
      member.wait(90)


def writing(directory: pathlib.Path) -> bool:
  """Whether a checkpoint is being written."""
  return directory.is_dir() and any('tmp' in path.name for path in directory.iterdir())


def kill_repeatedly(args, run_dir: pathlib.Path) -> list[dict]:
  """Kills the run `args.kills` times; what each kill found."""
  found = []
  while len(found) < args.kills:
    run = Run(args, run_dir)
    first = checkpoints.latest_step(run.saved) or 0
    run.wait_for(lambda run=run, first=first: (checkpoints.latest_step(run.saved) or 0) > first)
    while_saving = len(found) % 2 == 1 and run.wait_for(lambda run=run: writing(run.saved), 30)
    if not while_saving:
      time.sleep(random.uniform(0, 2))
    if not run.alive():
      raise SystemExit('The run ended before it could be killed: raise --steps.')
    run.kill()
    unfinished = [path.name for path in run.saved.iterdir() if not path.name.isdecimal()]
    found.append({'after step': checkpoints.latest_step(run.saved), 'unfinished': unfinished})
    print(f'kill {len(found)}: {found[-1]}', flush=True)
  return found


def finish(args, run_dir: pathlib.Path) -> None:
  """Trains to the end."""
  run = Run(args, run_dir)
  statuses = [member.wait() for member in run.members]
  if any(statuses):
    raise SystemExit(run_dir.with_name(f'{run_dir.name}.0.log').read_text()[-2000:])


def outcome(args, run_dir: pathlib.Path) -> dict:
  """What is compared: fingerprints of all arrays, metrics but for times, and samples."""
  rows = map(json.loads, (run_dir / 'metrics.jsonl').read_text().splitlines())
  argv = [sys.executable, '-m', 'nlhf_jax', 'sample', f'--run_dir={run_dir}']
  argv += ['--gin_file=configs/experiments/builtin/evaluation.gin', '--num_samples=4']
  samples = subprocess.run([*argv, SMALL[1]], capture_output=True, text=True, check=True).stdout
  metadata = checkpoints.read_metadata(run_dir / 'checkpoints')
  return {
    'arrays': metadata['fingerprints'],
    'metrics': [{k: v for k, v in row.items() if 'second' not in k} for row in rows],
    'samples': samples.splitlines(),
    'next batch': metadata['next_batch'],
  }


def main() -> None:
  """Trains one run that is killed, and one that is not, and compares them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--experiment', default='builtin/sft')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', required=True)
  parser.add_argument('flags', nargs='*', help='after --: more flags of `nlhf train`')
  args = parser.parse_args()
  random.seed(args.seed)
  # Else `nlhf` starts itself anew.
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  with tempfile.TemporaryDirectory() as root:
    undisturbed, killed = pathlib.Path(root) / 'undisturbed', pathlib.Path(root) / 'killed'
    found = kill_repeatedly(args, killed)
    finish(args, killed)
    finish(args, undisturbed)
    first, second = outcome(args, undisturbed), outcome(args, killed)
  same = {name: first[name] == second[name] for name in first}
  result = {'processes': args.processes, 'kills': found, 'equal to the last bit': same}
  result['while saving'] = sum(bool(m['unfinished']) for m in found)
  result['compared'] = {name: len(first[name]) for name in ('arrays', 'metrics', 'samples')}
  print(json.dumps(result, indent=1))
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')
  if not all(same.values()):
    raise SystemExit('They differ.')


if __name__ == '__main__':
  main()
