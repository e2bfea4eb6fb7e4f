"""Result files are replaced or left: what fails on the way leaves the old one, and nothing beside it."""

import json
import os
import pathlib
import stat

import numpy as np
import pytest

from nlhf_jax.evaluation import exact, ranking_report, win_rates
from nlhf_jax.runtime import atomic
from nlhf_jax.votes import ranking, table


def test_file_is_replaced_and_keeps_its_mode(tmp_path):
  path = tmp_path / 'new' / 'result.json'
  atomic.write_json(path, {'a': 1})
  path.chmod(0o640)
  atomic.write_json(path, {'a': 'é'}, ensure_ascii=False)
  assert json.loads(path.read_bytes()) == {'a': 'é'}
  assert stat.S_IMODE(path.stat().st_mode) == 0o640
  assert os.listdir(path.parent) == ['result.json']


def test_link_stays_one(tmp_path):
  path, link = tmp_path / 'result', tmp_path / 'link'
  link.symlink_to(path)
  atomic.write_text(link, 'new')
  assert link.is_symlink() and path.read_text() == 'new'


LINKS_OUT = {
  'to a file': '{out}/theirs',
  'by a relative path': '../out/theirs',
  'to what is not there': '{out}/new',
  'to a directory': '{out}',
  'to a pipe': '{out}/pipe',
  'through another': 'other',
  'through a linked directory': 'elsewhere/theirs',
  'in a circle': 'circle',
}


@pytest.mark.parametrize('kind', LINKS_OUT)
def test_link_out_of_the_directory_is_refused(tmp_path, kind):
  """Unless the user has named the very file: then what it leads to is replaced."""
  run, out = tmp_path / 'run', tmp_path / 'out'
  run.mkdir()
  out.mkdir()
  (out / 'theirs').write_text('theirs')
  os.mkfifo(out / 'pipe')
  for name, target in (('other', out / 'theirs'), ('elsewhere', out), ('circle', 'result.json')):
    (run / name).symlink_to(target)
  link = run / 'result.json'
  link.symlink_to(LINKS_OUT[kind].format(out=out))
  with pytest.raises(
    OSError, match=rf'^{link} is a link to .*, outside of .* Delete the link'
  ) as caught:
    atomic.write_json(link, {'a': 1})
  assert '\n' not in str(caught.value) and link.is_symlink()
  assert (out / 'theirs').read_text() == 'theirs'
  assert sorted(os.listdir(out)) == ['pipe', 'theirs']
  if kind in ('to a file', 'to what is not there', 'through another'):
    atomic.write_json(link, {'a': 1}, follow=True)
    assert json.loads(link.resolve().read_text()) == {'a': 1} and link.is_symlink()


def test_directory_may_be_a_link_itself(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'link').symlink_to('run')
  (tmp_path / 'run' / 'latest').symlink_to(tmp_path / 'run' / 'one')
  atomic.write_text(tmp_path / 'link' / 'latest', 'new')
  assert (tmp_path / 'run' / 'one').read_text() == 'new'


def test_what_is_no_file_is_written_as_it_is():
  atomic.write_text(pathlib.Path('/dev/null'), 'nothing')
  assert stat.S_ISCHR(os.stat('/dev/null').st_mode)


def test_failing_write_leaves_the_old_file(tmp_path):
  path = tmp_path / 'result.json'
  path.write_text('old')
  with pytest.raises(TypeError):
    atomic.write_json(path, {'a': object()})
  with pytest.raises(OSError, match='disk'), atomic.replaced(path) as file:
    file.write('half')
    assert path.read_text() == 'old'
    raise OSError('disk is full')
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['result.json']


def _write_page(directory):
  found = ranking.of_votes(
    table.from_wins(np.array([[0, 3.0], [1, 0]]), 'ab'), num_resamples=2, num_simulations=0
  )
  ranking_report.write_page(found, 'f', directory / 'ranking.html')


def _write_rates(directory):
  half = np.full((2, 2), 0.5)
  win_rates.write(directory, win_rates.WinRates(('a', 'b'), half, half, half, 1, 'judge'))


@pytest.mark.parametrize(
  ('write', 'name'),
  [
    (_write_page, 'ranking.html'),
    (_write_rates, 'win_rates.csv'),
    (lambda directory: exact.write(directory, {'all': 1}), 'exact.json'),
  ],
)
def test_results_survive_a_full_disk(tmp_path, monkeypatch, write, name):
  (tmp_path / name).write_text('old')

  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match=f'No space left on device.*{name}'):
    write(tmp_path)
  assert (tmp_path / name).read_text() == 'old'
  assert os.listdir(tmp_path) == [name]
