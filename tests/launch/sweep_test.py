"""A sweep runs what is left, names what failed, and gathers means with intervals; `nlhf` is a stand-in here."""

import argparse
import importlib.util
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
mkdir -p "$run/checkpoints/7"; echo "NUM_STEPS = 7" > "$run/config.gin"
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


def test_a_grid_is_run_once_and_what_fails_is_named(start):
  grid = ('--grid', 'BETA=0.25,0.5', '--grid', 'SEED=0,1', '--jobs=2')
  first = start(*grid, '--', '--gin.X=1')
  assert first.returncode == 1
  assert 'BETA=0.5,SEED=1 failed: exit status 2, nlhf train: BETA is odd' in first.stderr
  assert sorted(start.calls()) == [
    f'train --gin_file=a.gin --run_dir={start.dir}/BETA=0.25,SEED={n} --gin.BETA=0.25 --gin.SEED={n} --gin.X=1'
    for n in (0, 1)
  ]
  start(*grid, '--', '--gin.X=1')
  assert len(start.calls()) == 2  # What is done is left alone.
  other = start(*grid)
  assert (other.returncode, 'holds another sweep' in other.stderr) == (2, True)


def test_a_job_array_holds_what_is_left(start):
  (start.dir / 'BETA=0,SEED=1' / 'checkpoints' / '7').mkdir(parents=True)
  (start.dir / 'BETA=0,SEED=1' / 'config.gin').write_text('NUM_STEPS = 7\n')
  shown = start('--engine=slurm', '--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--sbatch=--gpus=1')
  assert shown.returncode == 0, shown.stderr
  assert '#SBATCH --array=0,2\n' in shown.stdout
  (command,) = [line for line in shown.stdout.splitlines() if line.startswith('exec')]
  assert '--only="$SLURM_ARRAY_TASK_ID"' in command and 'engine' not in command
  assert start('--grid', 'BETA=0', '--grid', 'SEED=0,1,2', '--only=2').returncode == 0
  assert sweep.is_done(start.dir / 'BETA=0,SEED=2')


def test_a_file_lists_settings(tmp_path):
  (tmp_path / 'list').write_text('{"BETA": 0.5, "NAME": "x"}\n\n{"BETA": 1}\n')
  assert sweep.settings_of([], str(tmp_path / 'list')) == [
    {'BETA': '0.5', 'NAME': "'x'"},
    {'BETA': '1'},
  ]


def test_values_keep_their_commas():
  settings = sweep.settings_of(["A=(1, 2),'b,c',3"], None)
  assert [s['A'] for s in settings] == ['(1, 2)', "'b,c'", '3']


@pytest.mark.parametrize(
  ('grid', 'message'),
  [
    ([], 'Name the settings'),
    (['BETA'], 'write NAME=VALUE'),
    (['B=1,1'], 'Two settings are the same'),
  ],
)
def test_bad_settings_are_refused(grid, message):
  with pytest.raises(ValueError, match=message):
    sweep.settings_of(grid, None)


def test_means_and_intervals_over_seeds():
  """Two settings of three seeds beside SFT, by hand."""
  settings = sweep.settings_of(['BETA=0,1', 'SEED=0,1,2'], None)
  groups = sweep.groups_of(settings, with_reference=True)
  assert groups == [('SFT', [0]), ('BETA=0', [1, 2, 3]), ('BETA=1', [4, 5, 6])]
  rates = np.full((7, 7), 0.5)
  rates[1:4, 0] = over_sft = [0.6, 0.7, 0.8]
  rates[0, 1:4] = 1 - np.array(over_sft)
  rates[1:4, 4:] = np.array([[0.5, 0.6, 0.7], [0.6, 0.6, 0.6], [0.7, 0.7, 0.4]])
  matrix = sweep.by_setting(rates, groups)
  half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
  assert matrix[1][0] == pytest.approx((0.7, half))
  assert matrix[1][2] == pytest.approx((0.6, 0.0))
  exact = {'labels': ['SFT', *'abcdef', 'exact BETA 0'], 'no_condorcet_winner': {}}
  values = {'mean': [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.45]}
  exact['no_condorcet_winner'] = {'worst_case': values, 'kl': values}
  rows = sweep.summary(groups, matrix, exact)
  assert rows[1]['worst_case'] == pytest.approx(0.3)
  assert rows[1]['worst_case_half'] == pytest.approx(half)
  assert (rows[1]['exact_worst_case'], rows[2]['exact_worst_case']) == (0.45, '')
  assert rows[1]['win_rate'] == pytest.approx((0.7 + 0.6) / 2)


def test_nothing_done_is_an_error(tmp_path):
  args = argparse.Namespace(output_dir=str(tmp_path))
  with pytest.raises(ValueError, match='nothing to compare'):
    sweep.gather(args, [])
