"""The file that votes are appended to: what is in it after a crash, a full disk, and another's hands."""

import os

import pytest

from nlhf_jax.votes import vote_file


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'new' / 'votes.jsonl'


def test_lines_are_appended_and_the_last_chosen_is_removed(path):
  file = vote_file.VoteFile(path)
  for line in ('{"n": 1}', '{"n": 2}', '{"n": 1}'):
    file.append(line)
  file.remove_last(lambda line: b'1' in line)
  file.append('{"n": 3}')
  file.close()
  assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'
  assert os.listdir(path.parent) == ['votes.jsonl']


@pytest.mark.parametrize(
  ('before', 'after'),
  [
    ('{"n": 1}', '{"n": 1}\n'),
    ('{"n": 1}\n{"n": ', '{"n": 1}\n'),
    ('{"n": 1}\n', '{"n": 1}\n'),
    ('Dear reader,\nno table', 'Dear reader,\nno table'),
  ],
)
def test_last_line_is_ended_or_dropped(path, before, after):
  path.parent.mkdir()
  path.write_text(before)
  vote_file.VoteFile(path).close()
  assert path.read_text() == after


def test_full_disk_leaves_the_file(path, monkeypatch):
  file = vote_file.VoteFile(path)
  file.append('{"n": 1}')

  def full(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    file.append('{"n": 2}')
  with pytest.raises(OSError, match='No space'):
    file.remove_last(lambda line: True)
  assert path.read_text() == '{"n": 1}\n' and os.listdir(path.parent) == ['votes.jsonl']


def test_replaced_file_gets_no_line(path):
  file = vote_file.VoteFile(path)
  path.rename(path.with_suffix('.old'))
  path.write_text('')
  with pytest.raises(OSError, match='start again'):
    file.append('{"n": 1}')
