"""Rows in columns: what was gathered comes back, votes merge, and many texts lie in a file."""

import errno
import pathlib
import re
import tempfile

import pytest

from nlhf_jax.data import columns

ROWS = [
  {'prompt': f'p{n % 3}', 'response': f'r{n}', 'alternative': 'ä', 'preference': n / 8}
  for n in range(8)
]


@pytest.mark.parametrize('in_memory', [0, 2**28])
def test_rows_come_back(monkeypatch, in_memory):
  """From memory, and from a file of many chunks."""
  monkeypatch.setattr(columns, '_IN_MEMORY', in_memory)
  monkeypatch.setattr(columns, '_ROWS_PER_CHUNK', 3)
  found = columns.gather(iter(ROWS)).columns
  assert [found.row(n) for n in range(8)] == [row | {'index': n % 3} for n, row in enumerate(ROWS)]
  assert found.prompts['prompt'].to_pylist() == ['p0', 'p1', 'p2']


def test_full_disk_of_temporary_files_is_named(monkeypatch):
  """They have no name of their own: their directory's, which TMPDIR may move."""
  full = pathlib.Path('/dev/full')
  monkeypatch.setattr(columns, '_IN_MEMORY', 0)
  monkeypatch.setattr(tempfile, 'TemporaryFile', lambda: full.open('wb', buffering=0))
  with pytest.raises(OSError, match=re.escape(tempfile.gettempdir())) as raised:
    columns.gather(iter(ROWS))
  assert raised.value.errno == errno.ENOSPC


def test_numbers_of_prompts_are_kept_where_rows_have_them():
  rows = [{'prompt': 'a', 'index': 7}, {'prompt': 'b', 'index': 5}, {'prompt': 'a', 'index': 7}]
  found = columns.gather(rows).columns
  assert found.index.tolist() == [7, 5, 7]
  assert [found.prompts_once().row(n) for n in range(2)] == rows[:2]


def test_prompts_once_have_no_responses():
  once = columns.gather(ROWS).columns.prompts_once()
  assert [once.row(n) for n in range(3)] == [{'index': n, 'prompt': f'p{n}'} for n in range(3)]
  assert once.num_bytes()[1].tolist() == [0, 0, 0]


def test_conversations_keep_their_messages():
  messages = [{'role': 'user', 'content': 'Hi.'}]
  rows = [{'prompt': 'Hi.', 'messages': messages}, {'prompt': 'Hi.'}]
  found = columns.gather(rows).columns
  assert found.row(0) == {'index': 0, 'prompt': 'Hi.', 'messages': messages}
  assert found.row(1) == {'index': 1, 'prompt': 'Hi.'}


def test_votes_on_a_pair_become_their_mean_by_weight():
  pair = {'prompt': 'p', 'response': 'a', 'alternative': 'b'}
  rows = [
    pair | {'preference': 1.0, 'weight': 3.0},
    pair | {'response': 'c', 'preference': 0.5},
    pair | {'preference': 0.0, 'weight': 1.0},
    pair | {'alternative': 'd', 'preference': 1.0, 'weight': 0.0},
    pair | {'preference': 0.0, 'split': 'test'},
  ]
  merged = columns.merge_votes(columns.gather(rows)).columns
  assert [(r['response'], r['alternative']) for r in map(merged.row, range(4))] == [
    ('a', 'b'), ('c', 'b'), ('a', 'd'), ('a', 'b'),
  ]  # fmt: skip
  assert merged.preference.tolist() == [0.75, 0.5, 0.5, 0.0]


def test_training_rows_whose_post_is_held_out_are_left_out():
  """Prompts may differ where posts are the same."""
  rows = [
    {'prompt': 'a', 'id': '1', 'split': 'test'},
    {'prompt': 'b', 'id': '1', 'split': 'train'},
    {'prompt': 'c', 'id': '2', 'split': 'train'},
    {'prompt': 'd', 'id': '1', 'split': 'test'},
  ]
  found, num_left_out = columns.by_split(columns.gather(rows))
  prompts = {split: [x.row(n)['prompt'] for n in range(len(x.index))] for split, x in found.items()}
  assert prompts == {'train': ['c'], 'test': ['a', 'd']}
  assert list(found) == ['train', 'test']
  assert num_left_out == 1


def test_voters_of_training_rows_that_are_left_out_are_none_of_training():
  """Who voted on held-out posts alone is numbered after those of training, whatever split those votes were meant for."""
  rows = [
    {'prompt': 'b', 'id': '1', 'split': 'train', 'voter': 'gone'},
    {'prompt': 'b', 'id': '1', 'split': 'train', 'voter': 'tested'},
    {'prompt': 'a', 'id': '1', 'split': 'test', 'voter': 'tested'},
    {'prompt': 'c', 'id': '2', 'split': 'train', 'voter': 'ann'},
  ]
  numbered = columns.training_voters_first(columns.gather(rows))
  assert numbered.voters == ('ann', 'tested') and numbered.num_training_voters == 1
  found, num_left_out = columns.by_split(numbered)
  assert {split: x.voter.tolist() for split, x in found.items()} == {'train': [0], 'test': [1]}
  assert num_left_out == 2


def test_num_bytes_are_those_of_utf8():
  prompts, responses = columns.gather(ROWS).columns.num_bytes()
  assert prompts.tolist() == [2] * 8
  assert responses.tolist() == [2] * 8  # Of 'ä', and of 'r0' … 'r7'.


def test_no_rows_at_all():
  found = columns.gather([])
  assert not len(found.columns.index)
  assert columns.by_split(found) == ({}, 0)


def test_voters_of_names_and_of_numbers():
  """Names are numbered as they appear, numbers are kept, and who is not known is −1; where none is known there is no column."""
  named = columns.gather([ROWS[0] | {'voter': name} for name in ('b', None, 'a', 'b')])
  assert named.voters == ('b', 'a')
  assert named.columns.voter.tolist() == [0, -1, 1, 0]
  assert named.columns.row(2)['voter'] == 1
  assert columns.gather([ROWS[0] | {'voter': n} for n in (7, 3)]).columns.voter.tolist() == [7, 3]
  assert columns.gather(ROWS).columns.voter is None
  assert columns.gather([ROWS[0] | {'voter': None}]).columns.voter is None
