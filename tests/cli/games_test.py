"""`nlhf solve`, as a user calls it."""

import json

import numpy as np
import pytest

from nlhf_jax.cli import main


def run(capsys, *argv):
  status = main.main(list(argv))
  return status, capsys.readouterr()


def test_solve_prints_writes_and_plots(capsys, tmp_path, test_data):
  out, plot = tmp_path / 'deep' / 'out.json', tmp_path / 'out.png'
  status, shown = run(
    capsys, 'solve', f'--game={test_data / "games/f1_1970.csv"}', '--algorithm', 'nash_mp', 'nash_md',
    '--tau', '0.05', '--num-steps', '2000', '--output', str(out), '--plot', str(plot),
  )  # fmt: skip
  assert status == 0
  found = json.loads(out.read_text())
  assert found['labels'][0] == 'oliver'
  assert found['algorithm'] == 'nash_mp'
  assert found['duality_gap'] < 1e-10
  assert 0.4 < found['value'] <= 0.5
  assert sum(found['policy']) == pytest.approx(1)
  np.testing.assert_allclose(found['policy'], found['best_response'], atol=1e-9)
  assert found['algorithms']['nash_md']['kl_to_nash'] > found['kl_to_nash']
  assert found['curve']['step'][-1] == 2000
  assert len(found['curve']['duality_gap']) == 501
  assert plot.read_bytes().startswith(b'\x89PNG')
  assert 'nash_mp' in shown.out
  assert 'stewart' in shown.out


def test_mu_from_a_file(capsys, tmp_path):
  mu = tmp_path / 'mu.csv'
  mu.write_text('y1,0.8\ny2,0.1\ny3,0.1\n')
  out = tmp_path / 'out.json'
  argv = ['solve', '--game=section_3_2:0.1', f'--output={out}', '--tau=5', f'--reference={mu}']
  assert run(capsys, *argv)[0] == 0
  assert json.loads(out.read_text())['policy'][0] == pytest.approx(0.8, abs=0.02)
  mu.write_text('y1,0.8\ny2,0.1\n')
  assert "no probability for 'y3'" in run(capsys, *argv)[1].err


def test_without_regularisation_several_equilibria_are_said(capsys):
  status, shown = run(
    capsys,
    'solve',
    '--game=blotto:5,3',
    '--tau=0',
    '--algorithm=fictitious_play',
    '--num_steps=100',
  )
  assert status == 0
  assert 'several equilibria' in shown.out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--game=nowhere.csv'], 'No file nowhere.csv'),
    (['--game=cyclic', '--algorithm', 'nash_mdd'], 'Did you mean nash_md?'),
    (['--game=cyclic', '--eta=20'], 'eta * tau must be in (0, 1]'),
    (['--game=cyclic', '--tau=-1'], 'tau must be 0'),
    (['--game=cyclic', '--num_steps=0'], 'num_steps must be at least 1'),
    (['--game=cyclic', '--votes'], '--votes needs --num_samples'),
    (['--game=cyclic', '--algorithm=mixed', '--beta=2'], 'beta must be in [0, 1]'),
  ],
)
def test_mistake_is_one_line(argv, message, capsys, tmp_path):
  out = tmp_path / 'out.json'
  status, shown = run(capsys, 'solve', *argv, f'--output={out}')
  assert status == 2
  assert message in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1
  assert not out.exists()
