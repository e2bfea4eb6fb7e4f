"""A sweep runs what is not done, names what failed, and gathers means with intervals; `nlhf` is a stand-in here."""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

SCRIPT = pathlib.Path(__file__).parent.parent.parent / 'launch' / 'sweep.py'
_spec = importlib.util.spec_from_file_location('sweep', SCRIPT)
sweep = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sweep)

# Trains at once: writes down that it was called, and a checkpoint of its last step; fails where β is 0.5.
NLHF = """#!/usr/bin/env bash
for flag in "$@"; do case $flag in
  --run_dir=*) run=${flag#--run_dir=};;
  --gin.BETA=0.5) echo "nlhf train: BETA is odd" ; exit 2;;
esac; done
echo "$@" >> "$(dirname "$run")/calls"
mkdir -p "$run/checkpoints/7"; echo '{"fields": {"experiment.Experiment.num_steps": 7}}' > "$run/run.json"
"""


# Trains for ever: writes its number down, and, as it is asked to end, that it has saved.
ENDLESS = """#!/usr/bin/env bash
for flag in "$@"; do case $flag in --run_dir=*) run=${flag#--run_dir=};; esac; done
trap 'echo saved > "$run.saved"; exit 0' TERM
echo $$ > "$run.pid.new"; mv "$run.pid.new" "$run.pid"
while true; do sleep 0.1; done
"""


def programs(directory, **texts):
  """An environment in which these are found first."""
  directory.mkdir(exist_ok=True)
  for name, text in texts.items():
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)
  return os.environ | {'PATH': f'{directory}:{os.environ["PATH"]}'}


@pytest.fixture
def start(tmp_path):
  environment = programs(
    tmp_path / 'bin', nlhf=NLHF, sbatch='#!/usr/bin/env bash\ncat "${@: -1}"\n'
  )

  def run(*argv):
    command = [sys.executable, str(SCRIPT), '--gin_file=a.gin', f'--output_dir={tmp_path / "runs"}']
    return subprocess.run(
      [*command, *argv], env=environment, capture_output=True, text=True, check=False
    )

  run.calls = lambda: (tmp_path / 'runs' / 'calls').read_text().splitlines()
  run.dir = tmp_path / 'runs'
  return run


def test_grid_is_run_once(start):
  grid = ('--grid', 'BETA=0.25,0.5', '--grid', 'SEED=0,1', '--jobs=2')
  first = start(*grid, '--', '--gin.X=1')
  assert first.returncode == 1
  assert 'BETA=0.5,SEED=1 failed: exit status 2, nlhf train: BETA is odd' in first.stderr
  assert sorted(start.calls()) == [
    f'train --gin_file=a.gin --run_dir={start.dir}/BETA=0.25,SEED={n} --gin.BETA=0.25 --gin.SEED={n} --gin.X=1'
    for n in (0, 1)
  ]
  start(*grid, '--', '--gin.X=1')
  assert len(start.calls()) == 2  # What is done is not run again.
  other = start(*grid)
  assert (other.returncode, 'holds another sweep' in other.stderr) == (2, True)


def test_error_of_runs_without_a_name(tmp_path, capsys):
  assert sweep.main([f'--output_dir={tmp_path / "new"}', '--grid', 'A=1']) == 2
  assert 'Name the runs with --experiment EXPERIMENT/RUN' in capsys.readouterr().err
  assert not (tmp_path / 'new').exists()


def test_command_of_an_experiment(monkeypatch, tmp_path):
  """Without one on PATH it is this Python's package."""
  args = argparse.Namespace(experiment='a/b', gin_file=['c.gin'], output_dir='o', flags=['--x'])
  flags = '--experiment=a/b', '--gin_file=c.gin', '--run_dir=o/A=1', '--gin.A=1', '--x'
  monkeypatch.setenv('PATH', programs(tmp_path / 'bin', nlhf=NLHF)['PATH'])
  assert sweep.command(args, {'A': '1'}) == ['nlhf', 'train', *flags]
  monkeypatch.setenv('PATH', str(tmp_path))
  package = [sys.executable, '-m', 'nlhf_jax']
  assert sweep.command(args, {'A': '1'}) == [*package, 'train', *flags]


@pytest.mark.parametrize(
  ('given', 'told', 'expected'),
  [
    ({'jobs': 2}, {}, '0.375'),
    ({'jobs': 1}, {}, None),
    ({'jobs': 2, 'engine': 'slurm'}, {}, None),
    ({'jobs': 2, 'only': 1}, {}, None),
    ({'jobs': 2}, {'XLA_CLIENT_MEM_FRACTION': '.2'}, None),
    ({'jobs': 2}, {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}, None),
    ({'jobs': 2}, {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.2'}, '.2'),
  ],
)
def test_part_of_a_gpus_memory(given, told, expected, monkeypatch):
  """Runs that share it have a part each, unless the user has said what."""
  for name in sweep._OF_MEMORY:
    monkeypatch.delenv(name, raising=False)
  for name, value in told.items():
    monkeypatch.setenv(name, value)
  args = argparse.Namespace(**{'engine': 'local', 'only': None} | given)
  assert sweep._environment(args).get('XLA_PYTHON_CLIENT_MEM_FRACTION') == expected


def test_job_array(start):
  (start.dir / 'BETA=0,SEED=1' / 'checkpoints' / '7').mkdir(parents=True)
  fields = {'Experiment.num_steps': 7, 'Other.num_steps': 8}
  (start.dir / 'BETA=0,SEED=1' / 'run.json').write_text(json.dumps({'fields': fields}))
  shown = start('--engine=slurm', '--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--sbatch=--gpus=1')
  assert shown.returncode == 0, shown.stderr
  assert '#SBATCH --array=0,2\n' in shown.stdout and '#SBATCH --signal=B:TERM@' in shown.stdout
  (command,) = [line for line in shown.stdout.splitlines() if line.startswith('exec')]
  assert '--only="$SLURM_ARRAY_TASK_ID"' in command and 'engine' not in command
  assert start('--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--only=2').returncode == 0
  assert sweep.is_done(start.dir / 'BETA=0,SEED=2')


def wait_for(what, seconds=60):
  end = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < end
    time.sleep(0.05)


def is_running(pid):
  """A process that has ended and that nobody has asked after yet is none."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_sweep_that_is_ended_ends_its_runs(tmp_path, number):
  """They save, and no other begins; where it can, it waits for them. Meanwhile another sweep is refused."""
  runs, environment = tmp_path / 'runs', programs(tmp_path / 'bin', nlhf=ENDLESS)
  command = [sys.executable, str(SCRIPT), '--gin_file=a.gin', f'--output_dir={runs}']
  command += ['--grid', 'SEED=0,1,2', '--jobs=2']
  settings = {'env': environment, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  with subprocess.Popen(command, text=True, **settings) as process:
    wait_for(lambda: len(list(runs.glob('*.pid'))) == 2)
    pids = [int(path.read_text()) for path in runs.glob('*.pid')]
    second = subprocess.run(command, text=True, check=False, **settings)
    assert (second.returncode, second.stderr.count('\n')) == (2, 1)
    assert f'sweep: {runs} is in use: process {process.pid} on' in second.stderr
    assert all(map(is_running, pids))
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
  if number == signal.SIGKILL:
    wait_for(lambda: not any(map(is_running, pids)))
  else:
    assert process.returncode == 128 + number
    assert told == f'sweep: {number.name} has ended it; the same command goes on.\n'
  assert not any(map(is_running, pids))
  names = sorted(path.name for path in runs.glob('SEED=*'))
  assert names == [f'SEED={seed}.{kind}' for seed in (0, 1) for kind in ('log', 'pid', 'saved')]


def test_file_of_settings(tmp_path):
  (tmp_path / 'list').write_text('{"BETA": 0.5, "NAME": "x"}\n\n{"BETA": 1}\n')
  assert sweep.parse_settings([], str(tmp_path / 'list')) == [
    {'BETA': '0.5', 'NAME': "'x'"},
    {'BETA': '1'},
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"A": 1}\n\n[1]\n', '3: write a JSON object of bindings, got [1].'),
    ('{"A": 1}\n"A"\n', "2: write a JSON object of bindings, got 'A'."),
    ('{"A": 1}\n{"A": \n', '2: not JSON ('),
    ('{"A": 1, "A": 2}\n', "1: the key 'A' stands twice"),
  ],
)
def test_error_of_a_line_that_is_no_setting(text, message, capsys, tmp_path):
  path = tmp_path / 'list'
  path.write_text(text)
  argv = ['--gin_file=a.gin', f'--output_dir={tmp_path / "runs"}', f'--list={path}']
  assert one_line(capsys, argv).startswith(f'{path}:{message}')
  assert not (tmp_path / 'runs').exists()


def one_line(capsys, argv):
  """What the sweep says of a mistake."""
  assert sweep.main(argv) == 2
  line, nothing = capsys.readouterr().err.split('\n')
  assert line.startswith('sweep: ') and not nothing
  return line.removeprefix('sweep: ')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--only=99'], '--only=99: there are 2 settings, from 0.'),
    (['--only=2'], '--only=2: there are 2 settings, from 0.'),
    (['--only=-1'], '--only must be a whole number of at least 0, got -1.'),
    (['--jobs=0'], '--jobs must be a whole number of at least 1, got 0.'),
  ],
)
def test_error_of_a_number_out_of_range(flags, message, capsys, tmp_path):
  argv = ['--gin_file=a.gin', f'--output_dir={tmp_path / "runs"}', '--grid', 'A=1,2', *flags]
  assert one_line(capsys, argv) == message


@pytest.mark.parametrize('engine', ['local', 'slurm'])
def test_error_of_a_damaged_record_of_the_sweep(capsys, engine, tmp_path):
  (tmp_path / 'sweep.json').write_text('{"experiment": null,\n"gin_')
  argv = ['--gin_file=a.gin', f'--output_dir={tmp_path}', '--grid', 'A=1', f'--engine={engine}']
  assert f'{tmp_path / "sweep.json"}:2: not JSON (' in one_line(capsys, argv)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"fields": {', '1: not JSON ('),
    ('{}', '1: no "fields"'),
    ('[]', '1: no "fields"'),
    ('{"fields": 3}', '1: no "fields"'),
  ],
)
def test_damaged_run_is_named_while_the_others_go_on(message, start, text):
  (start.dir / 'BETA=0' / 'checkpoints' / '7').mkdir(parents=True)
  (start.dir / 'BETA=0' / 'run.json').write_text(text)
  shown = start('--grid', 'BETA=0,1')
  assert (shown.returncode, shown.stderr.count('\n')) == (1, 1), shown.stderr
  assert f'BETA=0 failed: {start.dir / "BETA=0" / "run.json"}:{message}' in shown.stderr
  assert sweep.is_done(start.dir / 'BETA=1')
  shown = start('--grid', 'BETA=0,1', '--engine=slurm')
  assert (shown.returncode, shown.stderr.count('\n')) == (2, 1), shown.stderr


def test_error_of_a_job_that_is_refused(start, tmp_path):
  refusing = (
    '#!/usr/bin/env bash\necho odd >&2; echo "sbatch: error: no such partition" >&2; exit 1\n'
  )
  programs(tmp_path / 'bin', sbatch=refusing)
  shown = start('--engine=slurm', '--grid', 'BETA=0')
  assert shown.returncode == 2 and shown.stderr.count('\n') == 1, shown.stderr
  assert 'sweep.sbatch (exit status 1, sbatch: error: no such partition): correct' in shown.stderr


def test_commas_within_values():
  settings = sweep.parse_settings(["A=(1, 2),'b,c',3"], None)
  assert [s['A'] for s in settings] == ['(1, 2)', "'b,c'", '3']


@pytest.mark.parametrize(
  ('grid', 'message'),
  [
    ([], 'Name the settings'),
    (['BETA'], 'write NAME=VALUE'),
    (['B=1,1'], 'Two settings are the same'),
  ],
)
def test_error_of_bad_settings(grid, message):
  with pytest.raises(ValueError, match=message):
    sweep.parse_settings(grid, None)


def test_means_and_intervals_over_seeds():
  """Two settings of three seeds beside SFT, by hand."""
  settings = sweep.parse_settings(['BETA=0,1', 'SEED=0,1,2'], None)
  groups = sweep.group_by_setting(settings, with_reference=True)
  members = [group[:2] for group in groups]
  assert members == [('SFT', [0]), ('BETA=0', [1, 2, 3]), ('BETA=1', [4, 5, 6])]
  rates = np.full((7, 7), 0.5)
  rates[1:4, 0] = over_sft = [0.6, 0.7, 0.8]
  rates[0, 1:4] = 1 - np.array(over_sft)
  rates[1:4, 4:] = np.array([[0.5, 0.6, 0.7], [0.6, 0.6, 0.6], [0.7, 0.7, 0.4]])
  matrix = sweep.by_setting(rates, groups)
  half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
  assert matrix[1][0] == pytest.approx((0.7, half))
  assert matrix[1][2] == pytest.approx((0.6, 0.0))
  exact = {'labels': ['SFT', *'abcdef', 'exact beta 0'], 'no_condorcet_winner': {}}
  values = {'mean': [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.45]}
  exact['no_condorcet_winner'] = {'worst_case': values, 'kl': values}
  rows = sweep.summary(groups, matrix, exact)
  assert rows[1]['worst_case'] == pytest.approx(0.3)
  assert rows[1]['worst_case_half'] == pytest.approx(half)
  assert (rows[1]['exact_worst_case'], rows[2]['exact_worst_case']) == (0.45, '')
  assert rows[1]['win_rate'] == pytest.approx((0.7 + 0.6) / 2)


def test_groups_of_parameters_by_their_full_names():
  """A seed is one whatever it belongs to; β names the exact fixed point to compare with."""
  settings = [
    {'nash_md_pg.beta': '0.125', 'experiment.Experiment.seed': seed, 'x.seeds': '3'}
    for seed in ('0', '1')
  ]
  (group,) = sweep.group_by_setting(settings, with_reference=False)
  assert group.members == [0, 1]
  assert group.setting == {'nash_md_pg.beta': '0.125', 'x.seeds': '3'}
  assert sweep._fixed_point_label(group) == 'exact beta 0.125'


@pytest.mark.parametrize('argv', [['--engine=slurm'], ['--engine', 'slurm']])
def test_arguments_without_the_engine(argv):
  assert sweep._without_engine(['--grid', 'A=1', *argv, '--', '--x']) == [
    '--grid',
    'A=1',
    '--',
    '--x',
  ]


def test_runs_that_are_not_done(tmp_path):
  """No fields, no checkpoint, or one of an earlier step."""
  assert not sweep.is_done(tmp_path)
  (tmp_path / 'run.json').write_text('{"fields": {"Experiment.num_steps": 7}}')
  assert not sweep.is_done(tmp_path)
  (tmp_path / 'checkpoints' / '6').mkdir(parents=True)
  assert not sweep.is_done(tmp_path)
  (tmp_path / 'checkpoints' / '7').mkdir()
  assert sweep.is_done(tmp_path)


def test_error_of_nothing_done(tmp_path):
  args = argparse.Namespace(output_dir=str(tmp_path))
  with pytest.raises(ValueError, match='nothing to compare'):
    sweep.gather(args, [])
