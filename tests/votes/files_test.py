"""The same votes from every kind of file."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from nlhf_jax.votes import readers

ROWS = [
  {'prompt': f'p{n % 3}', 'a': 'm', 'b': 'n', 'verdict': verdict, 'weight': 2.0}
  for n, verdict in enumerate(['a', 'b', 'tie', 'both_bad', 'a'])
]


def jsonl(path):
  path.write_text('\n'.join(map(json.dumps, ROWS)) + '\n\n')


def array(path):
  path.write_text(json.dumps(ROWS, indent=1))


def comma_separated(path, delimiter=','):
  with path.open('w', newline='', encoding='utf-8-sig') as file:
    writer = csv.DictWriter(file, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)


def parquet(path):
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)


def directory(path):
  path.mkdir()
  for shard, rows in enumerate([ROWS[:2], ROWS[2:]]):
    content = pyarrow.Table.from_pylist(rows)
    file = pyarrow.OSFile(str(path / f'data-{shard}.arrow'), 'wb')
    with file, pyarrow.ipc.new_stream(file, content.schema) as stream:
      stream.write_table(content)


@pytest.mark.parametrize(
  ('name', 'write'),
  [
    ('votes.jsonl', jsonl),
    ('votes.json', jsonl),
    ('votes.json', array),
    ('votes.csv', comma_separated),
    ('votes.csv', lambda path: comma_separated(path, ';')),
    ('votes.parquet', parquet),
    ('saved', directory),
  ],
)
def test_every_kind_holds_the_same(tmp_path, name, write):
  write(tmp_path / name)
  votes = list(readers.votes(tmp_path / name))
  assert [{field: vote[field] for field in ROWS[0]} for vote in votes] == ROWS


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('votes.parquet', b'PAR2', r'votes\.parquet: no Parquet file'),
    ('votes.arrow', b'none', r'votes\.arrow: no stream of Arrow'),
    ('votes.json', b'[{"a": 1},\n', r'votes\.json:2: not JSON'),
    ('votes.json', b'[\xff]', r'votes\.json:1: not UTF-8'),
    ('votes.csv', b'a,b,verdict\nm,n\n', r'votes\.csv:2: has not 3 fields'),
    ('votes.csv', b'a,b,verdict\nm\xff,n,a\n', r'votes\.csv:2: not UTF-8'),
  ],
)
def test_malformed_file_is_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    list(readers.votes(tmp_path / name))


def test_what_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No file .*none'):
    list(readers.votes(tmp_path / 'none'))
  with pytest.raises(FileNotFoundError, match=r'No \*\.arrow in'):
    list(readers.votes(tmp_path))
