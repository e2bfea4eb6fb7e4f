"""Rows as tokens: what seqio makes of them, whenever they are asked for."""

import numpy as np
import pytest
import seqio

from nlhf_jax.data import encoded, tasks, vocabularies


@pytest.fixture
def task(test_data, sentencepiece):
  return tasks.openai_comparisons(str(test_data / 'squality'), sentencepiece)


def test_features_are_those_that_seqio_makes(task):
  """The slow twin: seqio's own preprocessing, row by row."""
  rows = encoded.open_split(task, 'valid1', 10**6)
  dataset = task.get_dataset(sequence_length=None, split='valid1', shuffle=False)
  expected = list(dataset.as_numpy_iterator())
  assert len(rows.index) == len(expected) == 45
  for place, theirs in enumerate(expected):
    ours = rows.example(place)
    assert not ours.pop('is_long')
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
      np.testing.assert_array_equal(ours[name], value)


def test_tasks_of_others_are_read_by_seqio(task):
  """Any seqio task that has these features."""
  ours = encoded.open_split(task, 'valid1', 100)
  dataset = lambda split, shuffle_files, seed=None: task.source.get_dataset(split, shuffle=False)
  other = seqio.Task(
    'other',
    seqio.FunctionDataSource(dataset, splits=task.splits),
    task.output_features,
    task.preprocessors,
  )
  theirs = encoded.open_split(other, 'valid1', 100)
  np.testing.assert_array_equal(theirs.index, ours.index)
  np.testing.assert_array_equal(theirs.example(3)['targets'], ours.example(3)['targets'])
  assert theirs.example(3)['is_long']
  assert ours.example(3)['is_long']
  np.testing.assert_array_equal(theirs.count_tokens()[1], ours.count_tokens()[1])


def test_token_counts_of_many_rows_are_about_right(test_data, sentencepiece, monkeypatch):
  """By bytes, the sum within a twentieth of what encoding finds, though a few prompts are shortened."""
  task = tasks.tldr_demonstrations(str(test_data / 'scitldr'), sentencepiece)
  exact = encoded.open_split(task, 'valid', 10**6).count_tokens()
  monkeypatch.setattr(encoded, '_KEPT', 100)
  monkeypatch.setattr(encoded, '_SAMPLE', 50)
  about = encoded.open_split(task, 'valid', 10**6).count_tokens()
  for one, other in zip(exact, about, strict=True):
    assert one.shape == other.shape
    assert not np.array_equal(one, other)
    assert abs(other.sum() / one.sum() - 1) < 0.05
    assert np.corrcoef(one, other)[0, 1] > 0.85


def test_no_rows_or_no_split_are_refused():
  rows = {
    'train': lambda: iter([{'index': 0, 'prompt': 'a'}]),
    'test': lambda: iter([]),
  }
  task = tasks.from_rows('short', rows, vocabularies.byte())
  with pytest.raises(ValueError, match="'test' of short has no rows"):
    encoded.open_split(task, 'test', 4)
  with pytest.raises(ValueError, match="short has no split 'valid', but 'train', 'test'"):
    encoded.open_split(task, 'valid', 4)
