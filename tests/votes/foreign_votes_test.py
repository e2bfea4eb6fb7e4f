"""Files of votes, games, ballots and responses as strangers may write them: each is refused in one line that says where and what."""

import gzip
import json
import logging

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nlhf_jax.games import sources, voters
from nlhf_jax.judges import llm_cache
from nlhf_jax.judges.llm_answers import Answer
from nlhf_jax.votes import readers, responses

VOTE = {'a': 'm', 'b': 'n', 'verdict': 'a'}
LINE = json.dumps(VOTE) + '\n'
CSV = 'a,b,verdict\nm,n,a\n'
ESCAPE = '\x1b[2J'
CANDIDATES = '# ALTERNATIVE NAME 1: x\n# ALTERNATIVE NAME 2: y\n'


def line(**changes) -> str:
  return json.dumps(VOTE | changes) + '\n'


def line_of_its_own(number: int) -> str:
  return line(seed=(number * 7919) % 100_003)


def raw(field: str, text: str) -> str:
  """A vote with a field that Python's json would not write."""
  return LINE.replace('}', f', "{field}": {text}}}')


def parquet(table: pyarrow.Table, damage=lambda data: data) -> bytes:
  sink = pyarrow.BufferOutputStream()
  pyarrow.parquet.write_table(table, sink)
  return damage(sink.getvalue().to_pybytes())


def arrow(damage) -> bytes:
  table = pyarrow.table({name: [value] * 100 for name, value in VOTE.items()})
  sink = pyarrow.BufferOutputStream()
  with pyarrow.ipc.new_stream(sink, table.schema) as stream:
    stream.write_table(table)
  return damage(sink.getvalue().to_pybytes())


def named_twice() -> pyarrow.Table:
  columns = [pyarrow.array([x]) for x in ('m', 'z', 'n', 'a')]
  return pyarrow.Table.from_arrays(columns, names=['a', 'a', 'b', 'verdict'])


def not_text() -> pyarrow.Table:
  """A text of Parquet that is no UTF-8."""
  buffers = [None, pyarrow.py_buffer(np.array([0, 1], np.int32)), pyarrow.py_buffer(b'\xff')]
  bad = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
  return pyarrow.table({'a': bad, 'b': ['n'], 'verdict': ['a']})


MANY = gzip.compress(''.join(map(line_of_its_own, range(1000))).encode())
TABLE = pyarrow.table({name: [value] * 100 for name, value in VOTE.items()})
# What it is -> (file, content, what is said after the file's name).
VOTES = {
  # JSON.
  'key twice': ('v.jsonl', raw('verdict', '"b"'), r":1: the key 'verdict' stands twice"),
  'key twice in an array': ('v.json', f'[{raw("a", "1")}]', r":1: the key 'a' stands twice"),
  'latin-1': ('v.jsonl', LINE.encode() + b'{"a": "\xe9"}\n', r':2: not UTF-8 \(byte 0xe9 at col'),
  'latin-1 in an array': ('v.json', b'[\n{"a": "\xe9"}]', r':2: not UTF-8 \(byte 0xe9 at column 8'),
  'UTF-16': ('v.jsonl', LINE.encode('utf-16'), r':1: not UTF-8 \(byte 0xff at column 1\)'),
  'NULs': ('v.jsonl', b'\0' * 99, ':1: not JSON'),
  'brackets without end': ('v.jsonl', '[' * 100_000, ':1: not JSON that can be read: nested'),
  'an array without end': ('v.json', '[' * 100_000, ':1: not JSON that can be read: nested'),
  'half a character': ('v.jsonl', raw('voter', r'"\ud800"'), ":1: field 'voter' holds"),
  'half a character in a name': ('v.jsonl', raw('x', r'{"\ud800": 1}'), ":1: field 'x' holds"),
  'NaN': ('v.jsonl', raw('weight', 'NaN'), ":1: field 'weight' must be a finite number, got nan"),
  'beyond floats': ('v.jsonl', raw('weight', '1e999'), "'weight' must be a finite number, got inf"),
  'integer beyond floats': ('v.jsonl', raw('weight', '9' * 400), "'weight' must be a finite"),
  'integer without end': ('v.jsonl', raw('weight', '9' * 5000), ':1: .* more than 4,300 digits'),
  'integer without end in an array': ('v.json', f'[{raw("time", "9" * 5000)}]', ':1: .* digits'),
  'preference beyond floats': (
    'v.jsonl',
    f'{{"prompt": "p", "chosen": "c", "rejected": "r", "preference": {"9" * 400}}}',
    ":1: field 'preference' must be a number, got 999",
  ),
  'no label': ('v.jsonl', line(a=' '), ":1: field 'a' is empty"),
  'a long value': ('v.jsonl', line(verdict='z' * 10**5), r":1: field 'verdict' .*, got 'z+'…$"),
  'a long field': ('v.jsonl', line(**{'z' * 10**5: 1}), r":1: field 'z+'… is none of a vote"),
  'fields that steer': ('v.jsonl', f'{{"{ESCAPE}\\u001b": 1}}'.replace(ESCAPE, ''), r'\\x1b'),
  'messages that steer': ('v.jsonl', line(messages=[ESCAPE]), r"list of messages, got '\\x1b\[2J'"),
  # gzip.
  'zip without end': ('v.jsonl.gz', MANY[:-20], ': no intact gzip file'),
  'zip of a CSV without end': ('v.csv.gz', gzip.compress(CSV.encode() + b'm,n,a\n' * 99)[:-9], ': no intact gzip'),
  'no zip': ('v.jsonl.gz', LINE, ': no intact gzip file'),
  'damaged zip': ('v.jsonl.gz', MANY[:20] + b'\xff' * 8 + MANY[28:], ': no intact gzip file'),
  # CSV.
  'column twice': ('v.csv', 'a,b,verdict,verdict\nm,n,a,b\n', ":1: the column 'verdict' stands twice"),
  'CSV in latin-1': ('v.csv', CSV.encode() + b'm\xe9,n,a\n', r':3: not UTF-8 \(byte 0xe9 at column 2'),
  'a quote without end': ('v.csv', f'{CSV}"m,n,a\n' + CSV * 9000, ':.*: is a quote before it never'),
  'CSV with NULs': ('v.csv', 'a,b,verdict\nm\0,n,a\n', ':2: holds a NUL'),
  'grouped digits': ('v.csv', 'a,b,probability\nm,n,0_1\n', ":2: field 'probability' must be a num"),
  # Parquet and Arrow.
  'Parquet without end': ('v.parquet', parquet(TABLE, lambda x: x[:-8]), ': no Parquet file'),
  'Parquet, a page': (
    'v.parquet',
    parquet(TABLE, lambda x: x[:10] + b'\xff' * 60 + x[70:]),
    ': no Parquet file',
  ),
  'Parquet, a footer that lies': (
    'v.parquet',
    parquet(TABLE, lambda x: x[:-8] + b'\xff\xff\xff\x7f' + x[-4:]),
    ': no Parquet file',
  ),
  'Parquet, a column twice': ('v.parquet', parquet(named_twice()), ": .* column 'a' stands twice"),
  'Parquet, no text': ('v.parquet', parquet(not_text()), ': no Parquet file'),
  'Arrow without end': ('v.arrow', arrow(lambda x: x[: len(x) // 2]), ': no stream of Arrow'),
  'Arrow, a size that lies': (
    'v.arrow',
    arrow(lambda x: x[:4] + b'\xff\xff\xff\x7f' + x[8:]),
    ': no stream of Arrow',
  ),
  # PrefLib.
  'ballots in latin-1': ('v.soc', b'# ALTERNATIVE NAME 1: \xe9\n', ':1: not UTF-8'),
  'ballots of very many': ('v.soc', f'{CANDIDATES}{"9" * 20}: 1,2\n', ':3: .*: at most 10,000,000'),
  'ballots of a long number': ('v.soc', f'{CANDIDATES}{"9" * 5000}: 1,2\n', ':3: 9+…'),
  'a candidate twice': ('v.soc', f'{CANDIDATES}# ALTERNATIVE NAME 1: z\n', ':3: .* candidate again'),
  'a name twice': ('v.soc', f'{CANDIDATES}# ALTERNATIVE NAME 3: x\n', ':3: .* candidate again'),
}  # fmt: skip


def write(path, content: str | bytes):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def refused(read, path, message):
  """In one short line without anything that a terminal obeys, which begins with the file."""
  with pytest.raises(ValueError, match=message) as caught:
    read(path)
  text = str(caught.value)
  assert text.startswith(f'{path}') and text.isprintable() and len(text) < 1000 + len(str(path))


@pytest.mark.parametrize('kind', VOTES)
def test_votes(kind, tmp_path):
  name, content, message = VOTES[kind]
  path = write(tmp_path / name, content)
  refused(lambda path: list(readers.votes(path)), path, f'{name}.*{message}')


def test_byte_order_marks_are_no_letters(tmp_path):
  for name, content in (('v.jsonl', LINE), ('v.json', f'[{LINE}]'), ('v.csv', CSV)):
    path = write(tmp_path / name, b'\xef\xbb\xbf' + content.encode())
    assert [vote['a'] for vote in readers.votes(path)] == ['m']


def test_files_without_votes_are_named(tmp_path):
  for name in ('v.jsonl', 'v.csv', 'v.soc'):
    path = write(tmp_path / name, '')
    with pytest.raises(ValueError, match=f'No votes in {path}: name files that have some'):
      list(readers.votes_of_files([path]))


MATRICES = {
  'latin-1': (b',x,\xe9\nx,,1\n\xe9,1,\n', ':1: not UTF-8'),
  'infinite': (',x,y\nx,,inf\ny,1,\n', ":2: column 'y' holds 'inf', not a number"),
  'grouped digits': (',x,y\nx,,1_0\ny,1,\n', ":2: column 'y' holds '1_0', not a number"),
  'a quote without end': (',x,y\nx,,"1\n' + 'y,1,\n' * 40_000, ': no CSV .*: is a quote'),
  'words that steer': (f',x,y\nx,,{ESCAPE}\ny,1,\n', r"holds '\\x1b\[2J', not a number"),
}


@pytest.mark.parametrize('kind', MATRICES)
def test_matrices(kind, tmp_path):
  content, message = MATRICES[kind]
  refused(sources.read_table, write(tmp_path / 'game.csv', content), message)


GAMES = {
  'a key twice': ('{"preference": [], "preference": []}', "the key 'preference' stands twice"),
  'brackets without end': ('[' * 100_000, 'nested too deep'),
  'latin-1': (b'\n"\xe9"', 'line 2: not UTF-8'),
  'texts': ('{"preference": [[["a"]]]}', 'could not convert'),
  'beyond floats': (f'{{"preference": [[[{"9" * 400}]]]}}', 'too large'),
}


@pytest.mark.parametrize('kind', GAMES)
def test_games_of_voters(kind, tmp_path):
  content, message = GAMES[kind]
  path = write(tmp_path / 'game.json', content)
  refused(lambda path: voters.read([str(path)]), path, message)


def test_damaged_arrays_of_voters(tmp_path):
  path = tmp_path / 'game.npz'
  np.savez(path, preference=np.full((1, 2, 2), 0.5))
  whole = path.read_bytes()
  # 10¹² numbers, where there are four: refused before memory is taken for them.
  lying = whole.replace(b'(1, 2, 2), }' + b' ' * 14, b'(1000000, 1000, 1000), }  ')
  assert len(lying) == len(whole) and lying != whole
  for content in (whole[:-30], b'{', b''):
    refused(lambda path: voters.read([str(path)]), write(path, content), 'no intact .npz')
  np.savez(path, preference=np.array([{}]))
  refused(lambda path: voters.read([str(path)]), path, 'a pickle, which could run any code')


def test_answers_that_are_none_are_passed_over(tmp_path):
  """A damaged line of a cache is asked again; the others are not."""
  good = json.dumps({'key': 'k', **Answer('A', (), 1, 2.0)._asdict()})
  bad = [
    '[' * 100_000,
    good.replace('"num_tokens": 1', '"num_tokens": 1e999'),
    good.replace('"num_tokens": 1', f'"num_tokens": {"9" * 5000}'),
    good.replace('"key": "k"', '"key": ["k"]'),
    good.replace('"text": "A"', '"text": 5'),
    good.replace('[]', '[["A", [["A", NaN]]]]'),
    '\x00',
  ]
  write(tmp_path / 'answers.jsonl', '\n'.join([*bad, good]) + '\n')
  cache = llm_cache.AnswerCache(tmp_path)
  assert len(cache) == 1 and cache.get('k') == Answer('A', (), 1, 2.0)


def test_ids_of_responses_are_texts_or_numbers(tmp_path):
  path = write(tmp_path / 'r.jsonl', '{"prompt": "p", "response": "r", "id": [1]}\n')
  with pytest.raises(
    ValueError, match=r"r\.jsonl:1: field 'id' must be a text or a number, got li"
  ):
    responses.read([f'L={path}'])


def vote(number: int) -> str:
  return json.dumps(VOTE | {'prompt': str(number), 'voter': f'v{number}'}) + '\n'


def test_a_file_and_its_copy_are_refused(tmp_path):
  """By the same name, by a link, and byte for byte."""
  path = write(tmp_path / 'v.jsonl', LINE)
  copy = write(tmp_path / 'v_old.jsonl', LINE)
  link = tmp_path / 'link.jsonl'
  link.symlink_to(path)
  for other in (path, copy, link):
    with pytest.raises(ValueError, match=rf'{other.name} is the same as .*v\.jsonl, and would be'):
      list(readers.votes_of_files([path, other]))


def test_an_old_copy_is_named_in_the_log(tmp_path, caplog):
  """Half of the smaller file's rows are in the other; fewer may be chance."""
  path = write(tmp_path / 'v.jsonl', ''.join(map(vote, range(10))))
  old = write(tmp_path / 'old.jsonl', ''.join(map(vote, range(4))))
  with caplog.at_level(logging.WARNING):
    assert len(list(readers.votes_of_files([path, old]))) == 14
  assert '4 different rows of' in caplog.text and 'counted twice' in caplog.text
  caplog.clear()
  other = write(tmp_path / 'other.jsonl', ''.join(map(vote, range(9, 14))))
  assert len(list(readers.votes_of_files([path, other]))) == 15
  assert not caplog.text


def test_what_datasets_kept_beside_its_rows_is_no_row(tmp_path):
  """A directory that `datasets` has read and mapped holds the same rows again."""
  write(tmp_path / 'data-0.arrow', arrow(lambda data: data))
  write(tmp_path / 'cache-1a2b.arrow', arrow(lambda data: data))
  assert len(list(readers.votes(tmp_path))) == 100
