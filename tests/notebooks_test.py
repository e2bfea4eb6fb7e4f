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
  printed = capsys.readouterr().out
  assert 'lottery [0.383 0.383 0.233]' in printed
  mixture = float(printed.split('mixture against pi* at tau/(1-b):')[1].split()[0])
  assert mixture < 1e-9
