"""Token files give the batches of the task that they were written of."""

import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from nlhf_jax.data import encoded, pipeline, tasks, token_files, vocabularies
from nlhf_jax.types import Comparison

LENGTHS = {'prompt_length': 20, 'response_length': 12}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def _rows(fields):
  rng = np.random.default_rng(0)
  text = lambda longest: ''.join(rng.choice(list('abc'), rng.integers(1, longest)))
  for number in range(40):
    prompt = text(24)
    for _ in range(2):
      row = {'response': text(14), 'alternative': text(14), 'preference': float(rng.random())}
      row['voter'] = number % 3 - 1
      yield {'index': number, 'prompt': prompt} | {key: row[key] for key in fields}


def _task(*fields):
  """Forty prompts of all lengths, some of them too long, two rows each."""
  splits = {'train': lambda: iter(_rows(fields))}
  return tasks.from_rows('forty', splits, vocabularies.byte())


def _write(path, task, **options):
  rows = encoded.open_split(task, 'train', LENGTHS['prompt_length'])
  labels = {'name': task.name, 'split': 'train', 'prompt_length': LENGTHS['prompt_length']}
  token_files.write(path, rows, **labels, **options)


@pytest.mark.parametrize('num_kept', [2**16, 16])
@pytest.mark.parametrize(
  'fields',
  [
    (),
    ('response',),
    ('response', 'alternative', 'preference'),
    ('response', 'alternative', 'preference', 'voter'),
  ],
  ids=len,
)
def test_batches_of_three_epochs(fields, num_kept, tmp_path, monkeypatch):
  """To the bit and in the order of `pipeline`, in buckets, k rows to a prompt; also where lengths are estimated."""
  monkeypatch.setattr(encoded, '_KEPT', num_kept)
  task = _task(*fields)
  _write(tmp_path / 'train.npz', task)
  options = {'batch_size': 4, 'responses_per_prompt': 2, 'seed': 5, **LENGTHS}
  options |= {'num_prompt_lengths': 3, 'num_response_lengths': 2}
  ours = token_files.batches('train.npz', directory=str(tmp_path), **options)
  theirs = pipeline.batches(task, split='train', **options)
  pairs = list(itertools.islice(zip(ours, theirs, strict=True), 30))
  for batch, expected in pairs:
    assert_same(batch, expected)
  assert len({jax.tree.leaves(batch)[0].shape for batch, _ in pairs}) > 1
  resumed = token_files.batches('train.npz', directory=str(tmp_path), start=17, **options)
  assert_same(next(resumed), pairs[17][1])


@pytest.mark.parametrize('limit', [None, 30])
def test_rows_in_order(limit, tmp_path, caplog):
  task = _task('response', 'alternative', 'preference')
  _write(tmp_path / 'some.npz', task, limit=limit)
  found = token_files.load_split('some.npz', directory=str(tmp_path), **LENGTHS)
  assert f'of {limit or 80} prompts are longer than 20 tokens' in caplog.text
  assert isinstance(found, Comparison)
  assert_same(found, pipeline.load_split(task, split='train', limit=limit, **LENGTHS))
  fewer = token_files.load_split('some.npz', directory=str(tmp_path), limit=3, **LENGTHS)
  assert_same(fewer, jax.tree.map(lambda x: x[:3], found))


def test_another_prompt_length_is_refused(tmp_path):
  _write(tmp_path / 'a.npz', _task())
  lengths = LENGTHS | {'prompt_length': 16}
  with pytest.raises(ValueError, match='prompts of 20 tokens: prompt_length must be that, got 16'):
    token_files.load_split('a.npz', directory=str(tmp_path), **lengths)


@pytest.mark.parametrize('damage', ['truncated', 'other arrays', 'text', 'pickled', 'empty'])
def test_damaged_files_are_refused(damage, tmp_path):
  path = tmp_path / 'a.npz'
  _write(path, _task())
  if damage == 'truncated':
    path.write_bytes(path.read_bytes()[:-100])
  elif damage == 'other arrays':
    np.savez(path, index=np.arange(3))
  elif damage == 'pickled':
    np.savez(path, index=np.array([{}], object))
  else:
    path.write_text('' if damage == 'empty' else 'no arrays')
  with pytest.raises(ValueError, match=r'a\.npz is no token file'):
    token_files.load_split(str(path), **LENGTHS)


WRONG = {
  'sizes that lie': ({'inputs_sizes': lambda x: x + 1}, 'inputs_sizes do not add up to'),
  'sizes below zero': ({'targets_sizes': lambda x: -x}, 'targets_sizes do not add up to'),
  'fewer sizes': ({'inputs_sizes': lambda x: x[1:]}, 'its inputs_sizes is int32'),
  'tokens below zero': ({'inputs': lambda x: -x}, 'its inputs are no tokens'),
  'floats for tokens': ({'targets': np.float32}, 'its targets are no tokens'),
  'floats for numbers': ({'index': np.float32}, 'its index is float32'),
  'words for truths': ({'is_long': lambda x: np.full(x.shape, 'no')}, 'its is_long is <U2'),
  'NaN': ({'preference': lambda x: x * np.nan}, r'a preference is not within \[0, 1\]'),
  'beyond': ({'preference': lambda x: x + 1}, r'a preference is not within \[0, 1\]'),
  'integers for shares': ({'preference': lambda x: x.astype(str)}, 'its preference is <U'),
  'no name': ({'name': lambda x: np.array(3)}, 'its name is int64'),
  'two lengths': ({'prompt_length': lambda x: np.array([20, 20])}, 'its prompt_length is int64'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_arrays_that_do_not_fit_are_refused(kind, tmp_path):
  """None is believed, for batches of them would be of other rows than the task's."""
  changes, message = WRONG[kind]
  path = tmp_path / 'a.npz'
  _write(path, _task('response', 'alternative', 'preference'))
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changes.items()})
  with pytest.raises(ValueError, match=rf'a\.npz is damaged, .*{message}.*: write it anew'):
    token_files.load_split(str(path), **LENGTHS)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='write it with nlhf tokenize'):
    next(token_files.batches('b.npz', directory=str(tmp_path), batch_size=1, **LENGTHS))


def test_files_are_read_where_seqio_is_not_installed(tmp_path):
  _write(tmp_path / 'a.npz', _task())
  code = (
    "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'seqio', 'gin']))\n"
    'from nlhf_jax.data import token_files\n'
    f'print(token_files.load_split({str(tmp_path / "a.npz")!r}, prompt_length=20, response_length=12).index.sum())'
  )
  done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert int(done.stdout) == pipeline.load_split(_task(), split='train', **LENGTHS).index.sum()
