"""The comparison of two commits: its arithmetic on times that are made up, and one part for real."""

import importlib
import pathlib

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / 'benchmarks'
TINY = {'size': 'tiny', 'dtype': 'float32', 'batch': 2, 'prompt': 8, 'response': 4}


@pytest.fixture
def regression(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  return importlib.import_module('regression')


def test_ratio_is_of_times_in_the_same_round(regression, monkeypatch, tmp_path):
  """A machine that becomes ten times as slow on the way changes no ratio; who goes first alternates; the first round compiles."""
  calls = []

  def measure(tree, cache, part, shape):
    calls.append((part, tree.name))
    slower = {'base': 1.0, 'new': 1.1}[tree.name]
    return slower * 10 ** ((len(calls) - 1) // 2)

  monkeypatch.setattr(regression, '_measure', measure)
  trees = {side: tmp_path / side for side in ('base', 'new')}
  found = regression.compare(trees, tmp_path, ['step'], 4, TINY)
  step = found['step']
  assert (step['ratio'], step['low'], step['high']) == pytest.approx((1.1, 1.1, 1.1))
  assert len(step['seconds']['new']) == 4
  assert [side for _, side in calls[::2]] == ['new', 'base', 'new', 'base', 'new']


def test_a_part_in_a_process_of_its_own(regression, tmp_path):
  assert 0 < regression._measure(BENCHMARKS.parent, tmp_path, 'decode', TINY) < 10


def test_a_commit_that_is_not_there(regression, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['x', '--base=none', f'--output={tmp_path / "x.json"}'])
  with pytest.raises(SystemExit, match='no commit none'):
    regression.main()
  assert not list(tmp_path.iterdir())
