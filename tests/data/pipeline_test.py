"""Batches of fixed shape that a resumed run finds again."""

import collections
import itertools

import jax
import numpy as np
import pytest

from nlhf_jax.data import corpora, encoded, pipeline, tasks, vocabularies
from nlhf_jax.types import Comparison, Demonstration, Prompts

LENGTHS = {'prompt_length': 64, 'response_length': 4}


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batch_n_is_the_same_wherever_a_run_resumes(corpus):
  task = corpora.comparisons(corpus, per_post=4)
  options = {'split': 'train', 'batch_size': 8, 'responses_per_prompt': 4, **LENGTHS}
  batches = list(itertools.islice(pipeline.batches(task, **options), 30))  # Over four epochs.
  assert isinstance(batches[0], Comparison)
  assert batches[0].prompts.tokens.shape == (8, 64)
  assert batches[0].response.tokens.shape == (32, 4)
  for start in (0, 7, 23):
    assert_same(next(pipeline.batches(task, start=start, **options)), batches[start])


def test_epochs_hold_different_prompts_in_another_order(corpus):
  task = corpora.prompts(corpus)
  stream = pipeline.batches(task, split='train', batch_size=8, **LENGTHS)
  first, second = (np.concatenate([next(stream).index for _ in range(60 // 8)]) for _ in range(2))
  assert len(set(first)) == len(set(second)) == 56
  assert list(first) != list(second)


def test_rows_of_a_batch_are_those_of_the_task(corpus):
  """Each prompt stands over its own k responses, and each preference beside its own pair."""
  task = corpora.comparisons(corpus, per_post=4)
  rows = pipeline.load_split(task, split='train', **LENGTHS)
  options = {'split': 'train', 'batch_size': 8, 'responses_per_prompt': 4, **LENGTHS}
  batch = next(pipeline.batches(task, **options))
  for place, index in enumerate(batch.prompts.index):
    expected = np.flatnonzero(rows.prompts.index == index)
    found = slice(4 * place, 4 * place + 4)
    np.testing.assert_array_equal(batch.prompts.tokens[place], rows.prompts.tokens[expected[0]])
    np.testing.assert_array_equal(batch.response.tokens[found], rows.response.tokens[expected])
    np.testing.assert_array_equal(
      batch.alternative.tokens[found], rows.alternative.tokens[expected]
    )
    np.testing.assert_array_equal(batch.preference[found], rows.preference[expected])


@pytest.mark.parametrize(
  ('view', 'k'),
  [(corpora.prompts, 1), (corpora.demonstrations, 8), (corpora.comparisons, 4)],
)
def test_shapes_are_those_of_batches(corpus, view, k):
  sizes = {'batch_size': 5, 'responses_per_prompt': k, **LENGTHS}
  batch = next(pipeline.batches(view(corpus), split='train', **sizes))
  expected = pipeline.shapes(type(batch), **sizes)
  found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  assert found == expected


def _task(vocabulary):
  """Three prompts of a, bb and ccc…c, two responses each."""
  rows = [
    {'index': n, 'prompt': prompt, 'response': text}
    for n, prompt in enumerate(['a', 'bb', 'c' * 9])
    for text in ('xy', 'z' * 6)
  ]
  return tasks.from_rows('three', {'train': lambda: iter(rows)}, vocabulary)


def test_long_prompts_and_responses_lose_their_end(caplog):
  vocabulary = vocabularies.byte()
  lengths = {'prompt_length': 4, 'response_length': 5}
  batch = pipeline.load_split(_task(vocabulary), split='train', **lengths)
  assert isinstance(batch, Demonstration)
  decode = lambda row: vocabulary.decode([int(t) for t in row if t > 1])
  assert [decode(row) for row in batch.prompts.tokens] == ['a', 'a', 'bb', 'bb', 'cccc', 'cccc']
  assert [decode(row) for row in batch.response.tokens[:2]] == ['xy', 'zzzzz']
  np.testing.assert_array_equal(batch.response.mask[:2], [[True] * 3 + [False] * 2, [True] * 5])
  assert '2 of 6 prompts are longer than 4 tokens' in caplog.text


def test_limit_keeps_the_first_rows():
  lengths = {'prompt_length': 4, 'response_length': 5}
  all_rows = pipeline.load_split(_task(vocabularies.byte()), split='train', **lengths)
  some = pipeline.load_split(_task(vocabularies.byte()), split='train', limit=3, **lengths)
  assert_same(some, jax.tree.map(lambda x: x[:3], all_rows))


def test_unknown_split_is_refused(corpus):
  with pytest.raises(ValueError, match="no split 'valid', but 'train', 'validation', 'test'"):
    pipeline.load_split(corpora.prompts(corpus), split='valid', **LENGTHS)


def test_batch_larger_than_its_split_is_refused(corpus):
  task = corpora.prompts(corpus)
  with pytest.raises(ValueError, match='has 20 prompts: batch_size must not exceed them, got 21'):
    next(pipeline.batches(task, split='test', batch_size=21, **LENGTHS))


def test_rows_that_share_no_prompt_are_refused():
  options = {'split': 'train', 'batch_size': 1, 'prompt_length': 4, 'response_length': 4}
  with pytest.raises(ValueError, match='do not come 3 to a prompt: lower responses_per_prompt'):
    next(pipeline.batches(_task(vocabularies.byte()), responses_per_prompt=3, **options))


def test_no_length_at_all_is_refused(corpus):
  options = {'split': 'train', 'batch_size': 1, **LENGTHS}
  with pytest.raises(ValueError, match='must be at least 1, got 0 and 1'):
    next(pipeline.batches(corpora.prompts(corpus), num_prompt_lengths=0, **options))


@pytest.mark.parametrize(('num_kept', 'padding'), [(2**16, 0.15), (100, 0.3)])
def test_bucketed_batches_of_real_prompts(test_data, sentencepiece, monkeypatch, num_kept, padding):
  """Five lengths of prompts and three of responses leave less than 15 % padding on SciTLDR's abstracts.

  Less than 30 % where lengths are estimated; with one length it is 64 %. Every epoch still holds every row but the last few, and resumes anywhere.
  """
  monkeypatch.setattr(encoded, '_KEPT', num_kept)
  task = tasks.tldr_demonstrations(str(test_data / 'scitldr'), sentencepiece)
  lengths = {'prompt_length': 512, 'response_length': 128}
  options = {'split': 'train', 'batch_size': 16, **lengths}
  options |= {'num_prompt_lengths': 5, 'num_response_lengths': 3}
  rows = pipeline.load_split(task, split='train', **lengths)
  per_epoch = len(rows.prompts.index) // 16
  available = collections.Counter(rows.prompts.index.tolist())  # An abstract may be there twice.
  batches = list(itertools.islice(pipeline.batches(task, seed=3, **options), 2 * per_epoch))
  for epoch in (batches[:per_epoch], batches[per_epoch:]):
    numbers = np.concatenate([b.prompts.index for b in epoch])
    assert numbers.size == 16 * per_epoch
    assert not collections.Counter(numbers.tolist()) - available
  tokens = lambda b: (b.prompts.tokens, b.response.tokens)
  assert 1 < len({tuple(x.shape for x in tokens(b)) for b in batches}) <= 15
  filled = sum(np.count_nonzero(x) for b in batches for x in tokens(b))
  assert filled > (1 - padding) * sum(x.size for b in batches for x in tokens(b))
  texts = lambda b: {(tuple(p[p > 0]), tuple(r[r > 0])) for p, r in zip(*tokens(b), strict=True)}
  known = texts(rows)
  assert all(texts(batch) <= known for batch in batches)
  start = per_epoch + 5
  assert_same(next(pipeline.batches(task, seed=3, start=start, **options)), batches[start])


def test_streams_have_one_length():
  corpus = corpora.generated_extracts(num_test=4)
  options = {'split': 'train', 'batch_size': 2, **LENGTHS}
  with pytest.raises(ValueError, match='num_response_lengths must be 1, got 3 and 1'):
    next(pipeline.batches(corpora.prompts(corpus), num_prompt_lengths=3, **options))


def test_no_rows_of_a_stream_are_refused():
  stream = corpora.prompts(corpora.generated_extracts(num_test=0))
  with pytest.raises(ValueError, match=r"Split 'test' of .* has no rows: give it some"):
    pipeline.load_split(stream, split='test', **LENGTHS)


def test_a_batch_with_long_prompts_warns_once(caplog):
  options = {'split': 'train', 'batch_size': 3, 'prompt_length': 4, 'response_length': 5}
  batches = pipeline.batches(_task(vocabularies.byte()), responses_per_prompt=2, **options)
  next(batches), next(batches)
  assert caplog.text.count('some prompts are longer than 4 tokens') == 1


def test_prompts_are_prompts(corpus):
  batch = pipeline.load_split(corpora.prompts(corpus), split='test', **LENGTHS)
  assert isinstance(batch, Prompts)
  assert batch.index.tolist() == list(range(20))
