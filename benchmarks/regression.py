"""Whether a commit is slower than another: the same work by both, in turns, in one run of about ten minutes.

  PYTHONPATH=. python benchmarks/regression.py --base COMMIT --output out.json
  PYTHONPATH=. python benchmarks/regression.py --base COMMIT --new COMMIT --parts step decode --output out.json

Without --new, the other one is the working tree as it is. Each round runs every part once by each, in processes of their own, the one that goes
first alternating; what a round slows, it slows for both. A part's ratio is the new time over the base's: the geometric mean over
rounds, with Student's 95 % interval. What is compiled is kept apart, by commit, and made in a round that does not count. The parts are this
file's: a commit that lacks what they call is named.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

HERE = pathlib.Path(__file__).resolve().parent
SHAPE = {'size': 'test', 'dtype': 'float32', 'batch': 8, 'prompt': 64, 'response': 32}
SMALL = ('--gin.NUM_STEPS=1', '--gin.optimizers.warmup_linear.warmup_steps=0')


def _decode(shape) -> float:
  """Nash-MD's pair, policy and mixture."""
  import setting as settings
  import training_speed

  made = settings.Setting(**shape)
  return training_speed._play(made, training_speed.MIXTURES['Nash-MD pair'], made.response)


def _judge(shape) -> float:
  """A pair, read in both orders."""
  import setting as settings

  made = settings.Setting(**shape)
  rows = (shape['batch'], shape['response'])
  responses = made.prompts.tokens[:, : rows[1]], made.prompts.tokens[::-1, : rows[1]]
  return settings.seconds(lambda: made.pair_preference_fn(made.prompts, *responses), 5)


def _step(shape) -> float:
  """A complete Nash-MD step through the training loop."""
  import setting as settings
  import training_speed

  return training_speed.step(settings.Setting(**shape), {'operations_per_second': 1.0})['step']


def _start(shape) -> float:
  """A process from its start to a trained step and its checkpoint; programs are compiled already."""
  del shape
  return _command('train', '--experiment=builtin/sft', '--run_dir={scratch}/run', *SMALL)


def _solve(shape) -> float:
  """An exact game, by the command line."""
  del shape
  return _command('solve', '--game=blotto:5,3', '--algorithm', 'nash_md', 'nash_mp', '--tau=0.05')


# The command line of either commit; older ones have no `nlhf_jax.__main__`.
_START = (
  'import importlib.util, runpy; '
  "new = importlib.util.find_spec('nlhf_jax.__main__'); "
  "runpy.run_module('nlhf_jax' if new else 'nlhf_jax.cli.main', run_name='__main__', alter_sys=True)"
)


def _command(*argv: str) -> float:
  with tempfile.TemporaryDirectory() as scratch:
    command = [sys.executable, '-c', _START, *(x.format(scratch=scratch) for x in argv)]
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=scratch)
    return time.perf_counter() - begun


PARTS: dict[str, Callable[[dict], float]] = {
  'step': _step,
  'decode': _decode,
  'judge': _judge,
  'start': _start,
  'solve': _solve,
}


def _measure(tree: pathlib.Path, cache: pathlib.Path, part: str, shape: dict) -> float:
  """Seconds of a part by the package of a tree."""
  environment = os.environ | {
    'PYTHONPATH': os.pathsep.join([str(tree), str(HERE)]),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  command = [sys.executable, __file__, '--child', part, json.dumps(shape)]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  if done.returncode:
    raise SystemExit(f'{part} failed in {tree}: {done.stderr[-1500:]}')
  return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def _tree(commit: str | None, directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """The files of a commit; None: the working tree."""
  if commit is None:
    yield HERE.parent
    return
  git = ['git', '-C', str(HERE.parent)]
  known = [*git, 'rev-parse', '--verify', '--quiet', f'{commit}^{{commit}}']
  if subprocess.run(known, capture_output=True, check=False).returncode:
    raise SystemExit(f'{HERE.parent} has no commit {commit}: git log names them.')
  subprocess.run([*git, 'worktree', 'add', '--detach', '--quiet', directory, commit], check=True)
  try:
    yield directory
  finally:
    subprocess.run([*git, 'worktree', 'remove', '--force', directory], check=True)


def compare(trees: dict[str, pathlib.Path], scratch, parts, rounds: int, shape: dict) -> dict:
  """Part → seconds of both by rounds, and the ratio with its interval."""
  import numpy as np

  from nlhf_jax.votes import intervals

  found: dict[str, dict[str, list[float]]] = {part: {side: [] for side in trees} for part in parts}
  for number in range(rounds + 1):
    order = list(trees) if number % 2 else list(trees)[::-1]
    for part in parts:
      for side in order:
        seconds = _measure(trees[side], scratch / f'cache_{side}', part, shape)
        if number:  # The first compiles.
          found[part][side].append(seconds)
    print(f'round {number} of {rounds}', file=sys.stderr, flush=True)
  result = {}
  for part, sides in found.items():
    ratio = intervals.of_mean(np.log(sides['new']) - np.log(sides['base']))
    result[part] = dict(zip(('ratio', 'low', 'high'), np.exp(ratio).tolist(), strict=True))
    result[part]['seconds'] = sides
  return result


def main() -> None:
  """Compares, prints a table in Markdown, and writes JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--base', required=True, help='a commit')
  parser.add_argument('--new', help='another (default: the working tree)')
  parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
  parser.add_argument('--rounds', type=int, default=5, help='that count (default: 5)')
  parser.add_argument('--size', default=SHAPE['size'], help='of setting.py (default: test)')
  parser.add_argument('--output', required=True)
  args = parser.parse_args()
  if args.rounds < 2:
    parser.error('--rounds must be at least 2: an interval needs them')
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    scratch = pathlib.Path(name)
    commits = {'base': args.base, 'new': args.new}
    trees = {k: stack.enter_context(_tree(v, scratch / k)) for k, v in commits.items()}
    found = compare(trees, scratch, args.parts, args.rounds, SHAPE | {'size': args.size})
  print('| part | new over base | base, seconds |\n|---|---|---|')
  for part, one in found.items():
    base = sorted(one['seconds']['base'])[len(one['seconds']['base']) // 2]
    print(f'| {part} | {one["ratio"]:.3f} [{one["low"]:.3f}, {one["high"]:.3f}] | {base:.3f} |')
  pathlib.Path(args.output).write_text(json.dumps(commits | {'parts': found}, indent=2) + '\n')


if __name__ == '__main__':
  if sys.argv[1:2] == ['--child']:
    print(json.dumps(PARTS[sys.argv[2]](json.loads(sys.argv[3]))))
  else:
    main()
