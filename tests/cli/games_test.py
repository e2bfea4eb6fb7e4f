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
    (['--game=cyclic', '--tau=-1'], '--tau must be a number of at least 0, got -1.0.'),
    (
      ['--game=cyclic', '--num_steps=0'],
      '--num_steps must be a whole number of at least 1, got 0.',
    ),
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


RANKINGS = {'ada': 'abc', 'bo': 'bca', 'cy': 'cab'}


def write_rankings(directory):
  """A CSV of each of three voters, whose majorities cycle."""
  paths = []
  for name, order in RANKINGS.items():
    lines = [',a,b,c']
    for i in 'abc':
      cells = ['0.5' if i == j else str(int(order.index(i) < order.index(j))) for j in 'abc']
      lines.append(','.join([i, *cells]))
    paths.append(directory / f'{name}.csv')
    paths[-1].write_text('\n'.join(lines) + '\n')
  return [str(path) for path in paths]


def test_voters_of_several_files(capsys, tmp_path):
  out, weights = tmp_path / 'out.json', tmp_path / 'weights.csv'
  weights.write_text('ada,2\nbo,1\ncy,1\n')
  names = ['mean', 'maximin', 'proportional', 'personalised', 'mixture']
  argv = ['solve', '--game', *write_rankings(tmp_path), '--tau=0', '--aggregation', *names]
  status, shown = run(capsys, *argv, f'--voter_weights={weights}', f'--output={out}')
  assert status == 0, shown.err
  found = json.loads(out.read_text())
  assert found['voters'] == list(RANKINGS)
  assert found['weights'] == [0.5, 0.25, 0.25]
  by_name = found['aggregations']
  np.testing.assert_allclose(by_name['maximin']['policy'], [1 / 3] * 3, atol=1e-9)
  np.testing.assert_allclose(by_name['maximin']['worst_case'], [1 / 6] * 3)
  np.testing.assert_allclose(by_name['mixture']['policy'], [0.5, 0.25, 0.25])
  assert by_name['personalised']['policy'] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  assert 'ada' in shown.out


def test_voters_of_one_file(capsys, tmp_path):
  """As arrays and as JSON; algorithms play the mean."""
  each = np.array([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.2], [0.8, 0.5]]])
  np.savez(tmp_path / 'voters.npz', preference=each, weights=[3.0, 1.0], labels=['x', 'y'])
  content = {'preference': each.tolist(), 'weights': [3, 1], 'labels': ['x', 'y']}
  (tmp_path / 'voters.json').write_text(json.dumps(content))
  policies = []
  for name in ('voters.npz', 'voters.json'):
    out = tmp_path / 'out.json'
    argv = ['solve', f'--game={tmp_path / name}', '--tau=0.5', f'--output={out}']
    assert run(capsys, *argv, '--algorithm=nash_mp', '--num_steps=500')[0] == 0
    policies.append(json.loads(out.read_text())['policy'])
  # logit π*(x) = (P(x ≻ y) − 1/2)/τ, and P = .725.
  np.testing.assert_allclose(policies, [[1 / (1 + np.exp(-0.45)), 1 / (1 + np.exp(0.45))]] * 2, atol=1e-8)  # fmt: skip


def test_voters_of_ballots(capsys, tmp_path):
  """A voter who compared one pair of three gets the others' mean on the rest, and it is said."""
  votes = [('ada', *pair) for pair in ('ab', 'bc', 'ac')] + [
    ('bo', *pair) for pair in ('ba', 'bc', 'ca')
  ]
  votes.append(('cy', *'ca'))
  rows = [{'a': a, 'b': b, 'verdict': 'a', 'voter': voter} for voter, a, b in votes]
  path, out = tmp_path / 'votes.jsonl', tmp_path / 'out.json'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  argv = ['solve', f'--ballots={path}', '--tau=0', '--aggregation=maximin', f'--output={out}']
  status, _ = run(capsys, *argv)
  assert status == 0
  found = json.loads(out.read_text())
  assert found['voters'] == ['ada', 'bo', 'cy']
  worst = found['aggregations']['maximin']['worst_case']
  assert min(worst) == pytest.approx(0.25)  # Half each for a and b.


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'Give one of --game and --ballots'),
    (['--game=cyclic', '--ballots=x'], 'Give one of --game and --ballots'),
    (['--game=cyclic', '--voter_weights=x'], '--voter_weights needs the games of several voters'),
    (['--game=cyclic', '--aggregation=maximim'], 'Did you mean maximin?'),
    (['--game=cyclic', '--aggregation=maximin', '--plot=x'], 'leave out --plot'),
    (['--game=cyclic', '--aggregation=maximin', '--tau_opponent=0'], 'tau_opponent must be'),
    (['--game=nowhere.npz'], 'No file nowhere.npz'),
    (['--game=DIR/bad.json'], "field 'voter' is none of preference, weights, labels, voters"),
    (['--game=DIR/list.json'], 'must hold an object with the fields'),
    (['--game=DIR/short.json'], 'must be [voters, alternatives, alternatives], got shape (1, 2)'),
    (['--game=DIR/gap.json'], 'No voter compared y1 with y2'),
    (['--game', 'DIR/ada.csv', 'DIR/other.csv'], "'c' is not in all files"),
    (['--ballots=DIR/nobody.jsonl'], 'No vote says whose it is'),
    (['--game', 'DIR/ada.csv', 'DIR/bo.csv', '--voter_weights=DIR/w.csv'], "no weight for 'bo'"),
  ],
)
def test_mistake_with_voters_is_one_line(argv, message, capsys, tmp_path):
  write_rankings(tmp_path)
  (tmp_path / 'other.csv').write_text(',a,b,d\na,.5,1,1\nb,0,.5,1\nd,0,0,.5\n')
  (tmp_path / 'bad.json').write_text('{"voter": []}')
  (tmp_path / 'list.json').write_text('[]')
  (tmp_path / 'short.json').write_text('{"preference": [[0.5, 0.5]]}')
  (tmp_path / 'gap.json').write_text('{"preference": [[[0.5, null], [null, 0.5]]]}')
  (tmp_path / 'nobody.jsonl').write_text('{"a": "x", "b": "y", "verdict": "a"}\n')
  (tmp_path / 'w.csv').write_text('ada,1\n')
  status, shown = run(capsys, 'solve', *(x.replace('DIR', str(tmp_path)) for x in argv))
  assert status == 2
  assert message in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1
