"""`nlhf voters`, as a user calls it."""

import json

import numpy as np
import pytest

from nlhf_jax.cli import main


def write(path, *, voters=True, x=True, num_voters=8, num_votes=24):
  rng = np.random.default_rng(0)
  with path.open('w') as file:
    for voter in range(num_voters):
      for _ in range(num_votes):
        long = float(rng.normal())
        wins = rng.random() < 1 / (1 + np.exp(-3 * long * (-1) ** voter))
        row = {'a': 'm', 'b': 'n', 'verdict': 'a' if wins else 'b'}
        row |= {'voter': f'[u{voter}]'} if voters else {}
        file.write(json.dumps(row | ({'x': {'long': 100 * long}} if x else {})) + '\n')
  return path


def test_who_differs_by_what(tmp_path, capsys):
  out = tmp_path / 'out.json'
  assert main.main(['voters', f'--votes={write(tmp_path / "v.jsonl")}', f'--output={out}']) == 0
  shown = capsys.readouterr().out
  assert 'Taste 1, 100% of how voters differ: long (+1.00).' in shown
  assert 'unseen, 16 votes' in shown
  found = json.loads(out.read_text())
  assert found['num_voters'] == 8 and found['features'] == ['long']
  assert found['unseen']['16']['accuracy']['gain']['low'] > 0.1


def test_a_vote_of_weight_two_is_two_lines(tmp_path):
  path, twice, out = write(tmp_path / 'v.jsonl', num_votes=9), tmp_path / 'w.jsonl', []
  lines = path.read_text().splitlines(keepends=True)
  twice.write_text(''.join(x for line in lines for x in (line, line)))
  path.write_text(''.join(line.replace('{', '{"weight": 2, ', 1) for line in lines))
  for votes in (path, twice):
    out.append(votes.with_suffix('.json'))
    assert main.main(['voters', f'--votes={votes}', f'--output={out[-1]}']) == 0
  weighted, repeated = (json.loads(x.read_text()) | {'source': None} for x in out)
  assert weighted == repeated and weighted['num_votes'] == 144


def test_a_weight_that_is_no_number_of_votes_is_one_line(tmp_path, capsys):
  path = write(tmp_path / 'v.jsonl')
  path.write_text(path.read_text().replace('{', '{"weight": 0.5, ', 1))
  assert main.main(['voters', '--votes', str(path)]) == 2
  error = capsys.readouterr().err
  assert 'number 1 has weight 0.5: weights must be whole numbers' in error
  assert error.count('\n') == 1


@pytest.mark.parametrize(
  ('kind', 'flags', 'message'),
  [
    ({'voters': False}, [], 'No vote says who voted'),
    ({'num_voters': 2}, [], '5 folds of voters need as many voters'),
    ({}, ['--features', 'odd'], "The votes have no feature 'odd', only: long."),
    ({'x': False}, ['--features', 'long'], '--features long: the votes have none (field x)'),
    ({}, ['--features', 'long', '--alternatives'], '--features long: --alternatives asks for none'),
  ],
)
def test_mistakes_are_one_line(kind, flags, message, tmp_path, capsys):
  path = write(tmp_path / 'v.jsonl', **kind)
  assert main.main(['voters', '--votes', str(path), *flags]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
