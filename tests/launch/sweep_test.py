"""A sweep runs what is not done, names what failed, and gathers means with intervals; `nlhf` is a stand-in here."""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

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


@pytest.fixture
def start(tmp_path):
  programs = tmp_path / 'bin'
  programs.mkdir()
  for name, text in [('nlhf', NLHF), ('sbatch', '#!/usr/bin/env bash\ncat "${@: -1}"\n')]:
    (programs / name).write_text(text)
    (programs / name).chmod(0o755)
  environment = os.environ | {'PATH': f'{programs}:{os.environ["PATH"]}'}

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


def test_job_array(start):
  (start.dir / 'BETA=0,SEED=1' / 'checkpoints' / '7').mkdir(parents=True)
  fields = {'Experiment.num_steps': 7, 'Other.num_steps': 8}
  (start.dir / 'BETA=0,SEED=1' / 'run.json').write_text(json.dumps({'fields': fields}))
  shown = start('--engine=slurm', '--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--sbatch=--gpus=1')
  assert shown.returncode == 0, shown.stderr
  assert '#SBATCH --array=0,2\n' in shown.stdout
  (command,) = [line for line in shown.stdout.splitlines() if line.startswith('exec')]
  assert '--only="$SLURM_ARRAY_TASK_ID"' in command and 'engine' not in command
  assert start('--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--only=2').returncode == 0
  assert sweep.is_done(start.dir / 'BETA=0,SEED=2')


def test_file_of_settings(tmp_path):
  (tmp_path / 'list').write_text('{"BETA": 0.5, "NAME": "x"}\n\n{"BETA": 1}\n')
  assert sweep.parse_settings([], str(tmp_path / 'list')) == [
    {'BETA': '0.5', 'NAME': "'x'"},
    {'BETA': '1'},
  ]


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
