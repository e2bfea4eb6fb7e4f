"""A directory belongs to one configuration, and what is refused leaves nothing behind."""

import pytest

from nlhf_jax.runtime import run_directory


def test_a_directory_belongs_to_one_configuration(tmp_path):
  run = tmp_path / 'runs' / 'run'
  run_directory.create(run, 'A = 1\nB = 2\n')
  run_directory.create(run, 'A = 1\nB = 2\n')
  for refuse in (run_directory.check_resumable, run_directory.create):
    with pytest.raises(ValueError, match=r"config.gin:2: 'B = 2', now 'B = 3'.*another --run_dir"):
      refuse(run, 'A = 1\nB = 3\n')
  assert run_directory.read_config(run) == 'A = 1\nB = 2\n'
  assert [path.name for path in run.iterdir()] == ['config.gin']


@pytest.mark.parametrize(
  ('old', 'new'), [('A = 1\n', 'A = 1\nB = 2\n'), ('A = 1\nB = 2\n', 'A = 1\n')]
)
def test_a_line_more_or_less_is_another_configuration(tmp_path, old, new):
  run_directory.create(tmp_path, old)
  with pytest.raises(ValueError, match=r'config.gin:2'):
    run_directory.check_resumable(tmp_path, new)


def test_a_run_may_go_on_on_another_mesh_and_keep_other_checkpoints(tmp_path):
  run_directory.create(tmp_path, 'KEEP_LAST = 2\nMESH_FSDP = 1\nTAU = 0.1\n')
  run_directory.check_resumable(tmp_path, 'KEEP_LAST = 5\nMESH_FSDP = 8\nTAU = 0.1\n')
  with pytest.raises(ValueError, match=r'config.gin:2'):
    run_directory.check_resumable(tmp_path, 'KEEP_LAST = 5\nMESH_DATA = 8\nTAU = 0.1\n')


def test_checking_makes_nothing(tmp_path):
  run_directory.check_resumable(tmp_path / 'run', 'A = 1\n')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('below', ['', 'run'])
def test_a_file_is_no_directory(tmp_path, below):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(FileExistsError, match=r'file is a file.*another --run_dir'):
    run_directory.check_resumable(tmp_path / 'file' / below, 'A = 1\n')


def test_where_there_is_no_run_is_an_error_with_a_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='name the directory of a trained run'):
    run_directory.read_config(tmp_path / 'none')


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):
  with run_directory.atomic_directory(tmp_path / 'out') as directory:
    (directory / 'file').write_text('1')
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'file']
  with (
    pytest.raises(FileExistsError, match='exists: name another directory'),
    run_directory.atomic_directory(tmp_path / 'out'),
  ):
    pass
  with pytest.raises(OSError, match='disk'), run_directory.atomic_directory(tmp_path / 'other') as directory:
    (directory / 'file').write_text('2')
    raise OSError('disk is full')
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'file']
