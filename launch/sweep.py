#!/usr/bin/env python3
"""Runs `nlhf train` once for each setting of a grid or a list of gin bindings, on one of several engines, and compares.

  python launch/sweep.py --experiment=builtin/nash_md_pg --output_dir=runs/beta --reference=sft \\
    --grid algorithms.nash_md_pg.beta=0,0.125,0.5,1 --grid SEED=0,1,2 \\
    --evaluation=configs/experiments/builtin/evaluation.gin

Several runs of an experiment are a grid too: --experiment=builtin --grid RUN=self_play,rlhf --grid SEED=0,1,2. A run's
directory is in OUTPUT_DIR under the name of its bindings, beside those that it starts from and is judged by. What
is done is not run again, what was interrupted goes on, what fails is named while the rest goes on. Engines: `local`
processes, a `slurm` job array, `ray`. With --evaluation all runs then play each other; rows are means over seeds.

A sweep that is asked to end (SIGTERM, Ctrl-C) asks its runs to, which save, and waits for them; one that is killed leaves that to the
kernel (on Linux). While it runs, no other one writes to its directory.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import console, table
from scipy import stats

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero, NonNegative
from nlhf_jax.cli import ranges
from nlhf_jax.runtime import atomic, run_lock

# gin bindings, and under RUN a run of the experiment.
Setting = dict[str, str]
RUN = 'RUN'
# Of a GPU's memory: what a run is told of it, and what else a user may have said.
_MEMORY = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
_OF_MEMORY = _MEMORY, 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_PREALLOCATE'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the sweep; its exit status."""
  args = _parse(argv)
  try:
    ranges.check(args)
    with _RUNNING.listening():
      status = _sweep(args)
    if not _RUNNING.ended_by:
      return status
    name = signal.Signals(_RUNNING.ended_by).name
    print(f'sweep: {name} has ended it; the same command goes on.', file=sys.stderr)
    return 128 + _RUNNING.ended_by
  except (ValueError, OSError) as error:
    print(f'sweep: {" ".join(str(error).split())}', file=sys.stderr)
    return 2


def _sweep(args: argparse.Namespace) -> int:
  """As `main`."""
  if not args.experiment and not args.gin_file:
    raise ValueError('Name the runs with --experiment EXPERIMENT/RUN, or with --gin_file FILE.')
  settings = parse_settings(args.grid, args.list)
  output_dir = pathlib.Path(args.output_dir)
  if args.only is not None:  # A task of a job array, beside others of the same sweep.
    _claim(output_dir, args)
    if args.only >= len(settings):
      raise ValueError(f'--only={args.only}: there are {len(settings)} settings, from 0.')
    return run(args, settings[args.only])
  with run_lock.held(output_dir):
    _claim(output_dir, args)
    failed = {} if args.gather else ENGINES[args.engine](args, settings)
    for name, reason in failed.items():
      print(f'sweep: {name} failed: {reason}', file=sys.stderr)
    if args.evaluation and not _RUNNING.ended_by and (args.gather or args.engine != 'slurm'):
      gather(args, [s for s in settings if is_done(output_dir / run_name(s))])
  return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--experiment', help='EXPERIMENT/RUN: a run of its stages.txt; or EXPERIMENT, with --grid RUN=…'
  )
  parser.add_argument(
    '--gin_file', action='append', default=[], help='of the runs (repeatable; the later wins)'
  )
  parser.add_argument('--output_dir', required=True, help='the parent of all runs')
  parser.add_argument(
    '--grid',
    action='append',
    default=[],
    metavar='NAME=VALUE,VALUE',
    help='repeatable: all combinations',
  )
  parser.add_argument(
    '--list', help='a file with a JSON object of bindings a line, in place of --grid'
  )
  parser.add_argument('--engine', choices=sorted(ENGINES), default='local')
  ranges.add(parser, '--jobs', Count, default=1, help='concurrent runs (local)')
  parser.add_argument(
    '--sbatch', default='', help='more flags of sbatch, such as "--gpus=1 --time=8:00:00"'
  )
  ranges.add(parser, '--gpus', NonNegative, default=0, help='of a run (ray)')
  parser.add_argument('--evaluation', help='gin file that compares the runs')
  parser.add_argument('--reference', help='run that the policies start from; it plays too, as SFT')
  parser.add_argument(
    '--baseline', help='a setting without its seed: worst cases are compared with its, seed by seed'
  )
  parser.add_argument('--gather', action='store_true', help='compare what is done, run nothing')
  ranges.add(parser, '--only', CountOrZero, help='run only the setting of this number')
  parser.add_argument('flags', nargs='*', help='after --: flags of every `nlhf train`')
  return parser.parse_args(argv)


def parse_settings(grid: Sequence[str], file: str | None) -> list[Setting]:
  """All combinations of a grid, or the lines of a file.

  Args:
    grid: NAME=VALUE,VALUE each; commas within brackets or quotes belong to a value.
    file: of JSON objects.

  Raises:
    ValueError: there are none, or two that are the same.
  """
  if bool(grid) == bool(file):
    raise ValueError('Name the settings with --grid NAME=VALUE,VALUE, or with --list FILE.')
  if file:
    settings = _listed(pathlib.Path(file))
  else:
    axes = [_axis(text) for text in grid]
    settings = [
      dict(zip([n for n, _ in axes], c, strict=True))
      for c in itertools.product(*(v for _, v in axes))
    ]
  names = [run_name(s) for s in settings]
  twice = [name for name, count in collections.Counter(names).items() if count > 1]
  if twice or not settings:
    raise ValueError(
      f'Two settings are the same: {twice[0]}.' if twice else 'There are no settings.'
    )
  return settings


def _listed(path: pathlib.Path) -> list[Setting]:
  settings = []
  for number, line in enumerate(untrusted.read_text(path).split('\n'), start=1):
    if line.strip():
      try:
        found = untrusted.parse_json(line.encode())
      except ValueError as error:
        raise ValueError(f'{path}:{number}: {error}.') from None
      if not isinstance(found, dict):
        raise ValueError(
          f'{path}:{number}: write a JSON object of bindings, got {untrusted.quoted(found)}.'
        )
      settings.append({name: _as_gin(value) for name, value in found.items()})
  return settings


def _axis(text: str) -> tuple[str, list[str]]:
  name, equals, values = text.partition('=')
  found = re.findall(r"""(?:[^,'"\[(]|'[^']*'|"[^"]*"|\[[^\]]*\]|\([^)]*\))+""", values)
  if not equals or not re.fullmatch(r'[\w./]+', name) or not found:
    raise ValueError(f'--grid {text}: write NAME=VALUE,VALUE.')
  return name, [value.strip() for value in found]


def _as_gin(value: Any) -> str:
  return repr(value)


def run_name(setting: Setting) -> str:
  """The name of a run's directory."""
  return re.sub(r'[^\w.=,+-]', '_', ','.join(f'{k}={v}' for k, v in setting.items()))


def _claim(output_dir: pathlib.Path, args: argparse.Namespace) -> None:
  """Refuses a directory of another sweep; its settings may be others."""
  mine = {'experiment': args.experiment, 'gin_file': args.gin_file, 'flags': args.flags}
  path = output_dir / 'sweep.json'
  if path.is_file() and (before := untrusted.read_json(path)) != mine:
    raise ValueError(
      f'{output_dir} holds another sweep ({untrusted.quoted(before)}): name another --output_dir.'
    )
  atomic.write_text(path, json.dumps(mine) + '\n')


def is_done(run_dir: pathlib.Path) -> bool:
  """Whether a checkpoint is that of the last step, by the fields that the run resolved.

  Raises:
    ValueError: its run.json cannot be read, or has no fields; names the file.
  """
  path, saved = run_dir / 'run.json', run_dir / 'checkpoints'
  if not path.is_file() or not saved.is_dir():
    return False
  content = untrusted.read_json(path)
  fields = content.get('fields') if isinstance(content, dict) else None
  if not isinstance(fields, dict):
    raise ValueError(
      f'{path}:1: no "fields" of a run in it: put the file back, or delete {run_dir}.'
    )
  num_steps = [
    value for name, value in fields.items() if re.fullmatch(r'(.*[./])?Experiment\.num_steps', name)
  ]
  steps = [int(path.name) for path in saved.iterdir() if path.name.isdecimal()]
  return bool(num_steps) and num_steps[0] in steps


def command(args: argparse.Namespace, setting: Setting) -> list[str]:
  """The `nlhf train` of a setting."""
  experiment = '/'.join(filter(None, [args.experiment, setting.get(RUN)]))
  runs = [f'--experiment={experiment}'] if experiment else []
  runs += [f'--gin_file={file}' for file in args.gin_file]
  bindings = [f'--gin.{name}={value}' for name, value in setting.items() if name != RUN]
  run_dir = f'--run_dir={pathlib.Path(args.output_dir) / run_name(setting)}'
  return [*_nlhf(), 'train', *runs, run_dir, *bindings, *args.flags]


def _nlhf() -> list[str]:
  """The command; without one on PATH, the package of this Python."""
  return ['nlhf'] if shutil.which('nlhf') else [sys.executable, '-m', 'nlhf_jax']


def run(args: argparse.Namespace, setting: Setting) -> int:
  """Runs one setting, its output in a file beside its directory; its exit status."""
  run_dir = pathlib.Path(args.output_dir) / run_name(setting)
  if is_done(run_dir) or _RUNNING.ended_by:
    return 0
  with (
    run_dir.with_name(f'{run_dir.name}.log').open('a') as log,  # Another may write to it just now.
    _RUNNING.start(
      command(args, setting), stdout=log, stderr=subprocess.STDOUT, env=_environment(args)
    ) as process,
  ):
    return process.wait()


def _environment(args: argparse.Namespace) -> dict[str, str]:
  """A run's: of a GPU's memory each gets its part, where JAX would give the first three quarters, and the next nothing."""
  told = any(name in os.environ for name in _OF_MEMORY)
  if args.jobs == 1 or args.engine != 'local' or args.only is not None or told:
    return dict(os.environ)
  return os.environ | {_MEMORY: f'{0.75 / args.jobs:.3f}'}


class _Running:
  """The processes that this one waits for, which end with it."""

  def __init__(self):
    self._processes: set[subprocess.Popen] = set()
    # The number of a signal; 0: none has come.
    self.ended_by = 0

  @contextlib.contextmanager
  def start(self, command: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen]:
    """Starts a command; settings as of `subprocess.Popen`."""
    # In a session of its own, so that of a terminal's Ctrl-C it gets what `_end` makes of it.
    argv = [sys.executable, '-I', '-c', _ENDS_WITH_PARENT, str(os.getpid()), *command]
    with subprocess.Popen(argv, start_new_session=True, **settings) as process:
      self._processes.add(process)
      if self.ended_by:  # Just now.
        process.terminate()
      try:
        yield process
      finally:
        self._processes.discard(process)

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask all processes to end, as SIGTERM does."""
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, self._end) for number in numbers]
    try:
      yield
    finally:
      for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)

  def _end(self, number: int, frame: Any) -> None:
    del frame
    self.ended_by = number
    for process in list(self._processes):
      process.terminate()


_RUNNING = _Running()
# Becomes a command that the kernel sends SIGTERM once its parent has ended, however that ended.
_ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
if sys.platform == 'linux':
  PR_SET_PDEATHSIG = 1
  ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != int(parent):
    sys.exit('The sweep has ended.')
os.execvp(command[0], command)
"""


def _reason(args: argparse.Namespace, setting: Setting, status: int) -> str | None:
  """Why a run failed: the last line that it wrote; None: it is done."""
  run_dir = pathlib.Path(args.output_dir) / run_name(setting)
  if status == 0 and is_done(run_dir):
    return None
  lines = run_dir.with_name(f'{run_dir.name}.log').read_text().strip().splitlines()
  return f'exit status {status}, {lines[-1] if lines else "no output"}'


def _local(args: argparse.Namespace, settings: Sequence[Setting]) -> dict[str, str]:
  """Runs them as processes of this machine; what failed, and why."""
  failed = {}
  with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
    queue = {pool.submit(run, args, setting): setting for setting in settings}
    for number, future in enumerate(concurrent.futures.as_completed(queue), start=1):
      if _RUNNING.ended_by:
        break  # The pool waits for those that run; no other one begins.
      setting = queue[future]
      try:
        reason = _reason(args, setting, future.result())
      except ValueError as error:  # Of a run that is damaged; the others go on.
        reason = str(error)
      if reason:
        failed[run_name(setting)] = reason
      print(f'[{number}/{len(settings)}] {run_name(setting)}: {reason or "done"}', flush=True)
  return failed


def _slurm(args: argparse.Namespace, settings: Sequence[Setting]) -> dict[str, str]:
  """Submits one job array of what is not done; `--gather` compares once it has run."""
  output_dir = pathlib.Path(args.output_dir)
  numbers = [n for n, s in enumerate(settings) if not is_done(output_dir / run_name(s))]
  if not numbers:
    return {}
  command = [sys.executable, str(pathlib.Path(__file__).resolve())]
  script = output_dir / 'sweep.sbatch'
  # The signal is for the shell (B), whose place the sweep takes: there are no steps of srun.
  script.write_text(
    f'#!/bin/bash\n#SBATCH --job-name=sweep\n#SBATCH --array={",".join(map(str, numbers))}\n'
    f'#SBATCH --output={output_dir / "slurm-%A_%a.log"}\n#SBATCH --signal=B:TERM@120\n'
    f'exec {shlex.join(command)} --only="$SLURM_ARRAY_TASK_ID" '
    f'{shlex.join(_without_engine(sys.argv[1:]))}\n'
  )
  _submit(['sbatch', *shlex.split(args.sbatch), str(script)])
  return {}


def _submit(command: Sequence[str]) -> None:
  """Raises ValueError where the cluster refuses the job."""
  done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    told = (done.stderr.strip() or 'no output').splitlines()[-1]
    raise ValueError(
      f'sbatch refused {command[-1]} (exit status {done.returncode}, {told}): correct --sbatch, and start again.'
    )
  print(done.stderr, end='', file=sys.stderr)


def _without_engine(argv: Sequence[str]) -> list[str]:
  """The arguments without --engine=ENGINE, or --engine ENGINE."""
  kept, drop_next = [], False
  for argument in argv:
    if not drop_next and not argument.startswith('--engine'):
      kept.append(argument)
    drop_next = argument == '--engine'
  return kept


def _ray(args: argparse.Namespace, settings: Sequence[Setting]) -> dict[str, str]:
  """Runs them on a Ray cluster whose nodes share the directory; what failed, and why."""
  try:
    import ray
  except ModuleNotFoundError as error:
    raise ValueError('--engine=ray needs Ray: pip install ray.') from error
  ray.init(address='auto', ignore_reinit_error=True)
  remote = ray.remote(num_gpus=args.gpus)(run)
  statuses = ray.get([remote.remote(args, setting) for setting in settings])
  reasons = {
    run_name(s): _reason(args, s, status) for s, status in zip(settings, statuses, strict=True)
  }
  return {name: reason for name, reason in reasons.items() if reason}


ENGINES = {'local': _local, 'slurm': _slurm, 'ray': _ray}


class Group(NamedTuple):
  """Runs that differ only in their seed."""

  name: str
  # Among the contestants.
  members: list[int]
  # The bindings that they share, without the seed.
  setting: Setting


def gather(args: argparse.Namespace, settings: Sequence[Setting]) -> None:
  """Lets the finished runs play each other; writes sweep.csv and win_rates_by_setting.csv, and prints them."""
  output_dir = pathlib.Path(args.output_dir)
  if not settings:
    raise ValueError(f'No run of {output_dir} is done: there is nothing to compare.')
  contestants = [f'SFT={output_dir / args.reference}'] if args.reference else []
  contestants += [f'{run_name(s).replace("=", " ")}={output_dir / run_name(s)}' for s in settings]
  compared = output_dir / 'compared'
  argv = [*_nlhf(), 'win-rates', f'--gin_file={args.evaluation}', f'--output_dir={compared}']
  pipes = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE, 'text': True}
  with _RUNNING.start([*argv, '--run_dirs', *contestants], **pipes) as process:
    _, told = process.communicate()
  if process.returncode:
    raise ValueError(f'Comparing the runs failed: {(told.strip() or "no output").splitlines()[-1]}')
  groups = group_by_setting(settings, bool(args.reference))
  rates = json.loads((compared / 'win_rates.json').read_text())
  exact = compared / 'exact.json'
  exact = json.loads(exact.read_text()) if exact.is_file() else None
  matrix = by_setting(np.array(rates['mean']), groups)
  _write_matrix(output_dir / 'win_rates_by_setting.csv', groups, matrix)
  rows = summary(groups, matrix, exact, args.baseline)
  with (output_dir / 'sweep.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  _print(rows, groups, matrix)


def group_by_setting(settings: Sequence[Setting], with_reference: bool) -> list[Group]:
  """The settings without their seeds, in order, and the members of each."""
  groups = {'SFT': Group('SFT', [0], {})} if with_reference else {}
  for number, setting in enumerate(settings, start=int(with_reference)):
    shared = {name: value for name, value in setting.items() if _field(name) != 'seed'}
    name = run_name(shared) or 'all'
    groups.setdefault(name, Group(name, [], shared)).members.append(number)
  return list(groups.values())


def _field(name: str) -> str:
  """The last part of a binding's name, in lower case: of SEED and of Experiment.seed it is seed."""
  return re.split(r'[./]', name)[-1].lower()


def _fixed_point_label(group: Group) -> str | None:
  """The label of the exact fixed point at the group's β, in the evaluation's tables; None: it sets no β."""
  betas = [value for name, value in group.setting.items() if _field(name) == 'beta']
  return f'exact beta {float(betas[0]):g}' if betas else None


def interval(values: np.ndarray) -> tuple[float, float]:
  """Mean, and half of its 95 % interval by Student's t over seeds; NaN where there is but one."""
  values = np.asarray(values, float)
  if values.size < 2:
    return float(values.mean()), float('nan')
  half = stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
  return float(values.mean()), float(half)


def by_setting(rates: np.ndarray, groups: Sequence[Group]) -> list[list[tuple[float, float]]]:
  """Win rates of settings against each other: over the row's seeds, of the mean over the column's."""
  return [
    [
      interval(rates[np.ix_(row.members, column.members)].mean(axis=1))
      if row is not column
      else (0.5, 0.0)
      for column in groups
    ]
    for row in groups
  ]


def summary(
  groups: Sequence[Group],
  matrix: Sequence[Sequence[tuple[float, float]]],
  exact: dict[str, Any] | None,
  baseline: str | None = None,
) -> list[dict[str, Any]]:
  """A row for each setting: its mean win rate over the other settings, and, where play is exact, how far it came.

  On prompts without an unbeaten response: worst case, KL, duality gap and total variation to the method's fixed point; the
  gap in units of SFT's, and how much of the way from SFT's worst case to the fixed point's was covered. Beside them, those
  of the exact fixed point, where the evaluation names its β (`betas`).

  Args:
    groups: settings, and the contestants of each.
    matrix: win rates of settings.
    exact: the contents of exact.json.
    baseline: name of a setting whose worst cases are taken off, seed by seed.

  Raises:
    ValueError: no setting is the baseline.
  """
  rows = []
  for number, group in enumerate(groups):
    others = [rate for n, (rate, _) in enumerate(matrix[number]) if n != number]
    row = {'setting': group.name, 'seeds': len(group.members), 'win_rate': float(np.mean(others))}
    if groups[0].name == 'SFT' and number:
      row['over_sft'], row['over_sft_half'] = matrix[number][0]
    rows.append(row)
  if exact is not None:
    labels, columns = exact['labels'], _exact_columns(exact, groups[0].name == 'SFT')
    if baseline is not None:
      columns[f'worst_case_less_{baseline}'] = _less_baseline(columns, groups, baseline)
    for row, group in zip(rows, groups, strict=True):
      for column, values in columns.items():
        if np.isfinite(values[group.members]).all():
          row[column], row[f'{column}_half'] = interval(values[group.members])
      for column in ('worst_case', 'kl'):
        if (fixed := _fixed_point_label(group)) in labels:
          row[f'exact_{column}'] = columns[column][labels.index(fixed)]
  keys = list(dict.fromkeys(key for row in rows for key in row))
  return [{key: row.get(key, '') for key in keys} for row in rows]


def _exact_columns(exact: dict[str, Any], with_reference: bool) -> dict[str, np.ndarray]:
  """Means of every contestant, NaN where it has none; the first one is SFT, if it plays."""
  subset = exact['no_condorcet_winner']
  names = ['worst_case', 'worst_case_of_fixed_point', 'duality_gap', 'total_variation', 'kl']
  columns = {name: np.array(subset[name]['mean'], float) for name in names if name in subset}
  if with_reference and 'duality_gap' in columns and 'worst_case_of_fixed_point' in columns:
    worst, end = columns['worst_case'], columns['worst_case_of_fixed_point']
    columns['gap_of_sft'] = columns['duality_gap'] / columns['duality_gap'][0]
    columns['way'] = (worst - worst[0]) / (end - worst[0])
  return columns


def _less_baseline(columns, groups: Sequence[Group], baseline: str) -> np.ndarray:
  """Worst cases less those of the baseline's run of the same place among the seeds."""
  found = {group.name: group.members for group in groups}
  if baseline not in found:
    raise ValueError(f'No setting is {baseline}: name one of {", ".join(found)}.')
  worst, result = columns['worst_case'], np.full_like(columns['worst_case'], np.nan)
  for members in found.values():
    if len(members) == len(found[baseline]):
      result[members] = worst[members] - worst[found[baseline]]
  return result


def _write_matrix(path: pathlib.Path, groups: Sequence[Group], matrix) -> None:
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['', *(group.name for group in groups)])
    for group, row in zip(groups, matrix, strict=True):
      writer.writerow([group.name, *(f'{rate:.4f}' for rate, _ in row)])


def _cell(mean: Any, half: Any = '') -> str:
  if mean == '':
    return ''
  text = f'{mean:.3f}'
  return text if half == '' or np.isnan(half) else f'{text} ±{half:.3f}'


def _print(rows, groups, matrix) -> None:
  # Where there is no terminal, wide enough for all columns.
  out = console.Console(width=None if console.Console().is_terminal else 200)
  shown = table.Table(
    title='settings: mean over seeds ± half the 95 % interval', title_justify='left'
  )
  columns = [c for c in rows[0] if not c.endswith('_half')]
  for column in columns:
    shown.add_column(column.replace('_', ' ').replace(f'{RUN}=', ''))
  for row in rows:
    cells = [_cell(row[c], row.get(f'{c}_half', '')) for c in columns[2:]]
    shown.add_row(row['setting'].removeprefix(f'{RUN}='), str(row['seeds']), *cells)
  out.print(shown)
  rates = table.Table(
    title='rate at which the row is preferred to the column', title_justify='left'
  )
  for name in ('', *(group.name for group in groups)):
    rates.add_column(name.removeprefix(f'{RUN}='))
  for group, row in zip(groups, matrix, strict=True):
    rates.add_row(
      group.name.removeprefix(f'{RUN}='),
      *(_cell(*cell) if cell != (0.5, 0.0) else '·' for cell in row),
    )
  out.print(rates)


if __name__ == '__main__':
  sys.exit(main())
