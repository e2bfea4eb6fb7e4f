"""Files that are nearly right: bytes of small good ones are changed at random. Each is read, or refused in a line that names it.

What a change of a weight or a letter makes is another good file, so that being read is no fault; a traceback or a hang is.
"""

import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_jax.data import vocabularies
from nlhf_jax.games import sources, voters
from nlhf_jax.votes import readers, responses
from tests.formats import golden_models

VOTES = [{'prompt': 'p', 'a': 'm', 'b': x, 'verdict': 'a', 'seed': n} for n, x in enumerate('nop')]
LINES = ''.join(json.dumps(vote) + '\n' for vote in VOTES).encode()
# A prefix of these, or a piece in place of another.
PIECES = (b'"', b'{', b'}', b'[', b']', b',', b':', b'\n', b'\x00', b'\xff', b'\\u', b'1e400', b'-', b'NaN', b'null', b'\xef\xbb\xbf')  # fmt: skip


def settled(num_examples: int):
  return settings(
    max_examples=num_examples,
    deadline=10_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
  )


@st.composite
def damages(draw):
  """Up to three changes of bytes: where, as shares of the length, and what."""
  one = st.tuples(
    st.sampled_from(['cut', 'flip', 'insert', 'delete', 'repeat']),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
    st.sampled_from(PIECES),
  )
  return draw(st.lists(one, min_size=1, max_size=3))


def damaged(data: bytes, changes) -> bytes:
  for kind, place, number, piece in changes:
    at = int(place * len(data))
    if kind == 'cut':
      data = data[:at]
    elif kind == 'flip' and data:
      data = data[:at] + bytes([data[at] ^ number]) + data[at + 1 :]
    elif kind == 'insert':
      data = data[:at] + piece + data[at:]
    elif kind == 'delete':
      data = data[:at] + data[at + number :]
    elif kind == 'repeat':
      data = data[:at] + data[at : at + number] * 3 + data[at + number :]
  return data


def check(read, name: str) -> None:
  try:
    read()
  except (ValueError, OSError) as error:
    assert '\n' not in str(error) and len(str(error)) < 4000
    assert name in str(error)


def _parquet() -> bytes:
  sink = pyarrow.BufferOutputStream()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(VOTES), sink)
  return sink.getvalue().to_pybytes()


GAME = b'i_beats_j,x,y,z\nx,0.5,0.7,0.2\ny,0.3,0.5,0.6\nz,0.8,0.4,0.5\n'
GOOD = {
  'votes.jsonl': (LINES, lambda path: list(readers.votes(path))),
  'votes.csv': (b'a,b,verdict\nm,n,a\nn,m,"b"\n', lambda path: list(readers.votes(path))),
  'votes.json': (json.dumps(VOTES).encode(), lambda path: list(readers.votes(path))),
  'votes.parquet': (_parquet(), lambda path: list(readers.votes(path))),
  'game.csv': (GAME, sources.read_table),
  'voters.json': (
    json.dumps({'preference': [[[0.5, 0.7], [0.3, 0.5]]] * 2, 'labels': ['x', 'y']}).encode(),
    lambda path: voters.read([str(path)]),
  ),
  'responses.jsonl': (
    b'{"prompt": "p", "response": "r"}\n{"prompt": "q", "response": "s"}\n',
    lambda path: responses.read([f'L={path}']),
  ),
}


@pytest.mark.parametrize('name', GOOD)
def test_good_file_is_read(name, tmp_path):
  content, read = GOOD[name]
  (tmp_path / name).write_bytes(content)
  assert read(tmp_path / name) is not None


@pytest.mark.parametrize('name', GOOD)
@settled(60)
@given(changes=damages())
def test_damaged_rows(changes, name, tmp_path):
  content, read = GOOD[name]
  path = tmp_path / name
  path.write_bytes(damaged(content, changes))
  check(lambda: read(path), name)


@settled(60)
@given(changes=damages())
def test_damaged_arrays_of_voters(changes, tmp_path):
  path = tmp_path / 'voters.npz'
  np.savez(path, preference=np.full((2, 2, 2), 0.5), labels=np.array(['x', 'y']))
  path.write_bytes(damaged(path.read_bytes(), changes))
  check(lambda: voters.read([str(path)]), 'voters.npz')


@pytest.fixture(scope='module')
def model(chat_model, tmp_path_factory):
  return shutil.copytree(chat_model, tmp_path_factory.mktemp('damaged') / 'model')


@pytest.mark.parametrize(
  'file', ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors']
)
@settled(30)
@given(changes=damages())
def test_damaged_model(changes, file, model, chat_model):
  path = model / file
  good = (chat_model / file).read_bytes()
  path.write_bytes(damaged(good, changes))

  def read():
    vocabularies.hugging_face(str(model), chat=True)
    golden_models.load(model)

  try:
    check(read, str(model))
  finally:
    path.write_bytes(good)
