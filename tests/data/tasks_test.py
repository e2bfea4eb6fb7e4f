"""seqio tasks of files: what they say, split by post."""

import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import seqio

from nlhf_jax.data import pipeline, tasks, vocabularies
from nlhf_jax.types import Demonstration, Prompts, VoterNames


@pytest.mark.parametrize(('soft', 'sizes'), [(False, (630, 135)), (True, (210, 45))])
def test_squality(test_data, sentencepiece, soft, sizes):
  """Three workers judge each pair: three hard labels, or one share of votes."""
  task = tasks.openai_comparisons(str(test_data / 'squality'), sentencepiece, soft_labels=soft)
  train, valid = (
    pipeline.load_split(task, split=split, prompt_length=512, response_length=256)
    for split in ('train', 'valid1')
  )
  assert (len(train.preference), len(valid.preference)) == sizes
  assert not set(train.prompts.index) & set(valid.prompts.index)
  values = set(np.round(train.preference * 3).astype(int))
  assert values == ({0, 1, 2, 3} if soft else {0, 3})


def test_jsonl_of_any_prompts(tmp_path):
  rows = [{'prompt': f'p{n}', 'chosen': 'yes', 'rejected': 'no'} for n in range(200)]
  file = tmp_path / 'pairs.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  task = tasks.jsonl_comparisons(str(file), vocabularies.byte())
  sizes = {
    split: len(
      pipeline.load_split(task, split=split, prompt_length=8, response_length=8).preference
    )
    for split in task.splits
  }
  assert sum(sizes.values()) == 200
  assert sizes['train'] > 150
  (tmp_path / 'd').mkdir()
  (tmp_path / 'd' / 'train.jsonl').write_text(json.dumps({'prompt': 'ab', 'response': 'c'}))
  demonstrations = tasks.jsonl_demonstrations(str(tmp_path / 'd'), vocabularies.byte())
  batch = pipeline.load_split(demonstrations, split='train', prompt_length=4, response_length=4)
  assert isinstance(batch, Demonstration)
  np.testing.assert_array_equal(batch.prompts.tokens, [[ord('a') + 3, ord('b') + 3, 0, 0]])
  np.testing.assert_array_equal(batch.response.tokens, [[ord('c') + 3, 1, 0, 0]])


def test_tldr_files_are_demonstrations(test_data, sentencepiece):
  """Each file a split, the prompt as the paper has it, the human summary to imitate."""
  task = tasks.tldr_demonstrations(str(test_data / 'scitldr'), sentencepiece)
  assert set(task.splits) == {'train', 'valid'}
  batch = pipeline.load_split(task, split='valid', prompt_length=512, response_length=128)
  assert len(batch.prompts.tokens) == 619
  first = json.loads((test_data / 'scitldr' / 'valid.jsonl').open().readline())
  row = int(np.argmin(batch.prompts.index))
  prompt = sentencepiece.decode([int(t) for t in batch.prompts.tokens[row] if t > 0])
  assert prompt.startswith(f'SUBREDDIT: r/{first["subreddit"]}')
  assert prompt.endswith('TL;DR:')
  written = sentencepiece.decode([int(t) for t in batch.response.tokens[row] if t > 1])
  assert written == sentencepiece.decode(sentencepiece.encode(first['summary']))[: len(written)]


def test_prompts_of_a_task_come_once(tmp_path):
  rows = [{'prompt': f'p{n % 7}', 'chosen': 'yes', 'rejected': f'{n}'} for n in range(40)]
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  task = tasks.prompts_of(tasks.jsonl_comparisons(str(tmp_path), vocabularies.byte()))
  prompts = pipeline.load_split(task, split='train', prompt_length=4, response_length=4)
  assert isinstance(prompts, Prompts)
  assert sorted(prompts.index) == list(range(7))
  texts = {vocabularies.byte().decode([int(t) for t in p if t > 0]) for p in prompts.tokens}
  assert texts == {f'p{n}' for n in range(7)}


def test_held_out_posts_leave_training(tmp_path, caplog):
  """A post that one row puts into the test split is in no other."""
  row = {
    'info': {'id': 'p1', 'post': 'A post.', 'title': 'T', 'subreddit': 's'},
    'summaries': [{'text': 'a'}, {'text': 'b'}],
    'choice': 0,
    'split': 'train',
  }
  other = row | {'info': row['info'] | {'id': 'p2', 'post': 'Another.'}}
  held_out = row | {'summaries': [{'text': 'c'}, {'text': 'd'}], 'split': 'test'}
  (tmp_path / 'batch.json').write_text('\n'.join(map(json.dumps, [row, other, held_out])))
  task = tasks.openai_comparisons(str(tmp_path), vocabularies.byte())
  sizes = {'prompt_length': 64, 'response_length': 4}
  train, test = (pipeline.load_split(task, split=x, **sizes) for x in ('train', 'test'))
  assert (len(train.preference), len(test.preference)) == (1, 1)
  assert not set(train.prompts.index) & set(test.prompts.index)
  assert 'Left 1 training rows out' in caplog.text


def _comparison(number: int) -> str:
  row = {'prompt': f'p{number}', 'chosen': f'good {number}', 'rejected': 'bad'}
  return json.dumps(row) + '\n'


def test_backups_are_not_counted_in_silence(tmp_path, caplog):
  """One of another ending is passed over, a copy is refused, and an older one is named, each by its file."""
  load = lambda: tasks.jsonl_comparisons(str(tmp_path), vocabularies.byte())
  rows = [_comparison(number) for number in range(6)]
  (tmp_path / 'train.jsonl').write_text(''.join(rows))
  for name in ('train.jsonl.bak', 'train.jsonl~', '.train.jsonl.swp', 'README.md'):
    (tmp_path / name).write_text(''.join(rows))
  assert load().source.columns('train').index.tolist() == list(range(6))
  assert 'train.jsonl.bak is passed over' in caplog.text and 'README.md is passed' in caplog.text
  (tmp_path / 'train.old.jsonl').write_text(''.join(rows))
  with pytest.raises(ValueError, match=r'train\.old\.jsonl is the same as .*train\.jsonl'):
    load()
  (tmp_path / 'train.old.jsonl').write_text(''.join(rows[:4]))
  load()
  assert '4 different rows of' in caplog.text and 'counted twice' in caplog.text


def test_missing_directory_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No directory .*none: .* as data_dir'):
    tasks.openai_comparisons(str(tmp_path / 'none'), vocabularies.byte())
  with pytest.raises(FileNotFoundError, match=r'No \*\.jsonl in .*: .* as data_dir'):
    tasks.tldr_demonstrations(str(tmp_path), vocabularies.byte())


def test_empty_split_is_refused():
  with pytest.raises(ValueError, match='Task none has no rows in its first split'):
    tasks.from_rows('none', {'train': lambda: iter([])}, vocabularies.byte())


@pytest.mark.parametrize('content', ['', '{"prompt": 3}'])
def test_files_without_rows_are_refused(tmp_path, content):
  """Empty, or with nothing left once malformed rows are passed over."""
  (tmp_path / 'votes.jsonl').write_text(content)
  with pytest.raises(
    ValueError, match='Task comparisons has no rows: give it a file that has some'
  ):
    tasks.jsonl_comparisons(str(tmp_path / 'votes.jsonl'), vocabularies.byte(), skip_malformed=True)


def test_vocabulary_with_other_special_ids_is_refused():
  """Policies end with 1 and pad with 0, so that a vocabulary must do so too."""

  class OtherEnd(seqio.ByteVocabulary):
    @property
    def eos_id(self):
      return 2

  rows = {'train': lambda: iter([{'index': 0, 'prompt': 'a', 'response': 'b'}])}
  with pytest.raises(ValueError, match='pads with 0 and ends with 2, where 0 and 1 are needed'):
    tasks.from_rows('other', rows, OtherEnd())


def test_registered_tasks_are_found_by_name():
  rows = {'train': lambda: iter([{'index': 0, 'prompt': 'a'}])}
  task = tasks.registered(tasks.from_rows('registered_once', rows, vocabularies.byte()))
  assert seqio.TaskRegistry.get('registered_once') is task
  assert tasks.registered(task) is task


def test_comparisons_of_every_kind_of_file_are_equal(tmp_path):
  """JSONL and Parquet of the same votes give the same batches."""
  rows = [
    {'prompt': f'p{n % 40}', 'response_a': 'yes', 'response_b': f'no {n % 3}', 'verdict': verdict}
    for n, verdict in enumerate(['a', 'b', 'tie'] * 60)
  ]
  (tmp_path / 'votes.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'votes.parquet')
  made = [
    tasks.comparisons(str(tmp_path / name), vocabularies.byte())
    for name in ('votes.jsonl', 'votes.parquet')
  ]
  assert list(made[0].splits) == list(made[1].splits)
  for split in made[0].splits:
    load = lambda task, split=split: pipeline.load_split(
      task, split=split, prompt_length=8, response_length=8
    )
    jax.tree.map(np.testing.assert_array_equal, load(made[0]), load(made[1]))


def test_prompts_that_are_held_out_leave_training_in_directories(tmp_path, caplog):
  rows = [
    {'prompt': f'Name a {thing}.', 'chosen': 'Oak.', 'rejected': 'Car.'}
    for thing in ('tree', 'fish')
  ]
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'validation.jsonl').write_text(json.dumps(rows[0]))
  task = tasks.comparisons(str(tmp_path), vocabularies.byte())
  kept = pipeline.load_split(task, split='train', prompt_length=16, response_length=8)
  assert vocabularies.byte().decode(kept.prompts.tokens[0].tolist()).startswith('Name a fish.')
  assert len(kept.preference) == 1
  assert 'Left 1 training rows out' in caplog.text


@pytest.mark.parametrize('content', ['', '\n'])
def test_a_split_without_rows_is_refused(tmp_path, content):
  rows = [{'prompt': 'p', 'chosen': 'yes', 'rejected': 'no'}]
  (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'validation.jsonl').write_text(content)
  task = tasks.comparisons(str(tmp_path), vocabularies.byte())
  with pytest.raises(ValueError, match="has no split 'validation', but 'train'"):
    pipeline.load_split(task, split='validation', prompt_length=8, response_length=8)


def _votes(path, rows):
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_voters_stay_with_their_votes(tmp_path):
  """Of a public format: numbered by a table of names, those of training first, whatever is read first."""
  row = {'prompt': 'p', 'response_a': 'yes', 'response_b': 'no'}
  train = [row | {'verdict': 'a', 'voter': 'ann'}, row | {'verdict': 'b', 'voter': 'bo'}]
  train += [row | {'verdict': 'b'}, row | {'verdict': 'a', 'voter': 'ann'}]
  # Sorted before train, and of a voter of whom training knows nothing.
  held_out = [row | {'prompt': 'q', 'verdict': 'a', 'voter': v} for v in ('new', 'bo')]
  _votes(tmp_path / 'a_test.jsonl', held_out)
  _votes(tmp_path / 'train.jsonl', train)
  task = tasks.comparisons(str(tmp_path), vocabularies.byte(), soft_labels=False)
  assert pipeline.voters(task) == VoterNames(('ann', 'bo', 'new'), num_training=2)
  load = lambda split: pipeline.load_split(task, split=split, prompt_length=8, response_length=8)
  found = load('train')
  assert found.voter.tolist() == [0, 1, -1, 0]
  assert found.voter.dtype == np.int32
  # Who is first of the two is told by a hash: ann and bo disagree all the same.
  assert found.preference[0] == found.preference[2 + 1] == 1 - found.preference[1]
  assert load('a_test').voter.tolist() == [2, 1]
  prompts = pipeline.load_split(
    tasks.prompts_of(task), split='train', prompt_length=8, response_length=8
  )
  # q was read before p.
  assert prompts.index.tolist() == [1]


def test_shares_are_nobodys_vote(tmp_path):
  row = {'prompt': 'p', 'response_a': 'yes', 'response_b': 'no', 'verdict': 'a', 'voter': 'ann'}
  path = _votes(tmp_path / 'votes.jsonl', [row, row | {'verdict': 'b', 'voter': 'bo'}])
  merged = tasks.comparisons(path, vocabularies.byte())
  (split,) = merged.splits
  batch = pipeline.load_split(merged, split=split, prompt_length=8, response_length=8)
  assert batch.voter is None and batch.preference.tolist() == [0.5]
  with pytest.raises(ValueError, match='does not say who voted: it needs votes that have a voter'):
    pipeline.voters(merged)
