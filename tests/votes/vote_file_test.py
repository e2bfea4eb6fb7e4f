"""The file that votes are appended to: what is in it after a crash, a full disk, and another's hands."""

import json
import os

import pytest

from nlhf_jax.votes import table, vote_file


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'new' / 'votes.jsonl'


def test_lines_are_appended_and_the_last_chosen_is_removed(path):
  file = vote_file.VoteFile(path, dict)
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
  ],
)
def test_last_line_is_ended_or_dropped(path, before, after):
  path.parent.mkdir()
  path.write_text(before)
  vote_file.VoteFile(path, dict).close()
  assert path.read_text() == after


LINE = json.dumps(
  {'a "\\': 'é\u2028', 'n': [-1.5e-7, {'x': None}, True, False, {}], 'm': 'e\n'}, ensure_ascii=False
)


@pytest.mark.parametrize('line', [LINE, json.dumps(json.loads(LINE))], ids=['utf8', 'ascii'])
def test_every_half_of_a_line_goes(line, path):
  """Wherever a crash cut it, within a character, an escape, a number or a word too."""
  path.parent.mkdir()
  for size in range(1, len(line.encode())):
    path.write_bytes(b'{"n": 1}\n' + line.encode()[:size])
    vote_file.VoteFile(path, dict).close()
    assert path.read_bytes() == b'{"n": 1}\n', line[:size]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('[{"a": 1},\n{"a": 2}]', r'votes.jsonl:1: not JSON'),
    ('{"a": 1}\n{"a": 2}]', r'votes.jsonl:2: not JSON'),
    ('{"a": 1}\n{"a": 2} {"a"', r'votes.jsonl:2: not JSON'),
    ('{"a": 1}\n{a', r'votes.jsonl:2: not JSON'),
    ('{"a": 1}\n{"a": 1x', r'votes.jsonl:2: not JSON'),
    ('{"a": 1}\nDear reader', r'votes.jsonl:2: not JSON'),
    ('{"a": "x", "b": "x", "verdict": "a"}\n{"a": ', r'votes.jsonl:1: .*both'),
    ('[1]\n{"a": ', r'votes.jsonl:1: expected a JSON object, got list'),
  ],
)
def test_other_content_is_refused_and_left(content, message, path):
  path.parent.mkdir()
  path.write_text(content)
  parse = table.checked if 'verdict' in content else dict
  with pytest.raises(ValueError, match=message):
    vote_file.VoteFile(path, parse)
  assert path.read_text() == content


def test_other_names_are_refused(path):
  for name in ('votes.csv', 'votes.json', 'votes', 'votes.jsonl.gz'):
    with pytest.raises(ValueError, match=r'name a file that ends in \.jsonl'):
      vote_file.VoteFile(path.with_name(name), dict)
  assert not path.parent.exists()


def test_full_disk_leaves_the_file(path, monkeypatch):
  file = vote_file.VoteFile(path, dict)
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
  file = vote_file.VoteFile(path, dict)
  path.rename(path.with_suffix('.old'))
  path.write_text('')
  with pytest.raises(OSError, match='start again'):
    file.append('{"n": 1}')
