"""`nlhf rank`, as a user calls it, on inputs of the kinds that went wrong elsewhere."""

import json

import pytest

from nlhf_jax.cli import main


def run(capsys, *argv):
  status = main.main(list(argv))
  return status, capsys.readouterr()


def rank(capsys, tmp_path, content, name='votes.csv', *flags):
  file, out = tmp_path / name, tmp_path / 'out.json'
  file.write_text(content)
  argv = f'--votes={file}', '--num_resamples=20', '--num_simulations=3', f'--output={out}', *flags
  status, shown = run(capsys, 'rank', *argv)
  assert status == 0, shown.err
  return json.loads(out.read_text()), shown


def test_counts(capsys, tmp_path):
  found, shown = rank(capsys, tmp_path, ',a,[b],c\na,0,60,30\n[b],40,0,70\nc,70,30,0\n')
  assert '[b]' in shown.out
  assert (found['condorcet_winner'], found['num_cyclic_triples']) == (None, 1)
  assert found['smith_set'] == ['a', '[b]', 'c']
  lottery = found['orders']['maximal_lottery']
  assert sum(lottery['value']) == pytest.approx(1)
  assert lottery['low'][0] < lottery['value'][0] < lottery['high'][0]
  assert found['scores']['low'][0] < found['scores']['elo'][0] < found['scores']['high'][0]


def test_battles_and_a_page(capsys, tmp_path):
  """A CSV of votes; both kinds of ties are verdicts of their own."""
  content = 'model_a,model_b,winner\nm1,m2,model_a\nm1,m2,tie (bothbad)\nm2,m3,model_b\nm3,m1,tie\nm1,m3,model_a\n'
  page = tmp_path / 'ranking.html'
  found, _ = rank(capsys, tmp_path, content, 'battles.csv', f'--report={page}')
  assert found['labels'] == ['m1', 'm2', 'm3']
  assert {'log_nu', 'log_kappa'} <= set(found['likelihood'])
  assert 'Ranking of' in page.read_text()


def test_a_table_of_votes(capsys, tmp_path):
  rows = [
    {'a': 'm', 'b': 'n', 'verdict': v, 'judge': 'gpt', 'order': 'ab'}
    for v in ('a', 'a', 'b', 'tie')
  ]
  content = '\n'.join(map(json.dumps, [*rows, {'a': 'm', 'b': 'n', 'verdict': '?'}]))
  found, shown = rank(capsys, tmp_path, content, 'votes.jsonl', '--skip_malformed', '--ties=half')
  assert found['judges'][0]['first_wins'] == pytest.approx(2 / 3)
  assert 'first shown wins' in shown.out
  assert list(found['likelihood']) == ['first', 'nats_per_vote']


@pytest.mark.parametrize(
  ('content', 'identified'),
  [
    (',m1,m2,m3\nm1,nan,3,\nm2,1,nan,2\nm3,,2,nan\n', 'with 1 pair that never met'),
    ('wins;p;q\np;0;6\nq;4;0\n', 'p beats all others'),
    ('wins,x,y,z\nx,0,1,0\ny,0,0,1\nz,1,0,0\n', '1 cyclic triple'),
    ('P,a,b\na,.5,.486826\nb,.513173,.5\n', 'b beats all others'),
    ('P,base,copy,weak\nbase,.5,.5,.9\ncopy,.5,.5,.9\nweak,.1,.1,.5\n', 'lottery is not unique'),
    ('wins,c,m,l\nc,0,50,50\nm,0,0,30\nl,0,20,0\n', 'c: never lost: at least'),
  ],
)
def test_matrices(capsys, tmp_path, content, identified):
  found, _ = rank(capsys, tmp_path, content, 'matrix.csv')
  assert identified in ' '.join(found['sentences'])


def test_a_game_by_name(capsys, tmp_path):
  status, shown = run(capsys, 'rank', '--game=rock_paper_scissors:3')
  assert status == 0
  assert 'paper' in shown.out


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--votes=nowhere.jsonl'], 'No file nowhere.jsonl'),
    (['--votes=nowhere.csv'], 'No file nowhere.csv'),
    (['--votes=nowhere.soc'], 'No file nowhere.soc'),
  ],
)
def test_mistake_is_one_line(argv, message, capsys):
  status, shown = run(capsys, 'rank', *argv)
  assert status == 2
  assert message in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1


def test_a_judge_of_one_side(capsys, tmp_path):
  """Who is shown first always wins: that has no finite worth, and without it no one is better."""
  rows = [
    {'a': 'm', 'b': 'n', 'verdict': verdict, 'order': order}
    for verdict, order in (('a', 'ab'), ('b', 'ba')) * 10
  ]
  content = '\n'.join(map(json.dumps, rows))
  (tmp_path / 'biased.jsonl').write_text(content)
  status, shown = run(capsys, 'rank', f'--votes={tmp_path / "biased.jsonl"}')
  assert status == 2
  assert "no most likely 'first'" in shown.err
  assert 'Leave it out of features, or order.' in shown.err
  found, _ = rank(capsys, tmp_path, content, 'biased.jsonl', '--ignore_order')
  assert found['judges'][0]['first_wins'] == 1
  assert found['scores']['elo'] == pytest.approx([1500, 1500])
