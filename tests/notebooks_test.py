"""Notebooks run from top to bottom."""

import json
import pathlib

import matplotlib
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / 'launch' / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, capsys):
  matplotlib.use('Agg')
  cells = json.loads(path.read_text())['cells']
  scope = {}
  for number, cell in enumerate(cells):
    if cell['cell_type'] == 'code':
      exec(compile(''.join(cell['source']), f'{path.name}[{number}]', 'exec'), scope)
  _CHECKS[path.stem](capsys.readouterr().out)


def _check_games(printed):
  assert 'lottery [0.383 0.383 0.233]' in printed
  mixture = float(printed.split('mixture against pi* at tau/(1-b):')[1].split()[0])
  assert mixture < 1e-9


def _check_votes(printed):
  assert 'new: never lost' in printed
  worth = float(printed.split('worth of 100 tokens:')[1].split()[0])
  assert 0.4 < worth < 0.8  # Below the .8 of each voter: tastes differ.
  voted, held = (
    float(printed.split(f'rock over paper, {how}:')[1].split()[0])
    for how in ('as voted', 'at the same length')
  )
  assert voted > held + 60
  assert 'beats all others: None' in printed


_CHECKS = {'games': _check_games, 'votes': _check_votes}
