"""seqio tasks: real files, the generated corpus, and batches that a resumed run finds again."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest

from nlhf_jax.data import pipeline, summaries, tasks, vocabularies
from nlhf_jax.judges import electorate, extracts, posts
from nlhf_jax.types import Comparison, Demonstration, Prompts

LENGTHS = {'prompt_length': 64, 'response_length': 4}


@pytest.fixture(scope='module')
def corpus():
  return summaries.builtin(num_train=60, num_test=20)


@pytest.fixture(scope='module')
def sentencepiece(test_data):
  path = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  return vocabularies.sentencepiece(str(path), extra_ids=100)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batches_follow_the_task_and_resume_where_they_stopped(corpus):
  task = summaries.comparisons(corpus, per_post=4)
  options = {'split': 'train', 'batch_size': 8, 'responses_per_prompt': 4, **LENGTHS}
  stream = pipeline.batches(task, **options)
  whole = [next(stream) for _ in range(30)]  # Over four epochs.
  assert isinstance(whole[0], Comparison)
  assert whole[0].prompts.tokens.shape == (8, 64)
  assert whole[0].response.tokens.shape == (32, 4)
  for start in (0, 7, 23):
    assert_same(next(pipeline.batches(task, start=start, **options)), whole[start])
  first, second = (
    np.concatenate([b.prompts.index for b in part]) for part in (whole[:7], whole[7:14])
  )
  assert len(set(first)) == first.size == 56
  assert list(first) != list(second)


def test_no_post_of_the_test_split_is_trained_on(corpus):
  for view in (summaries.demonstrations, summaries.comparisons):
    train, test = (
      set(pipeline.load_split(view(corpus), split=split, **LENGTHS).prompts.index.tolist())
      for split in ('train', 'test')
    )
    assert (len(train), len(test)) == (60, 20)
    assert not train & test


def test_an_unknown_split_and_too_large_a_batch_are_refused(corpus):
  task = summaries.prompts(corpus)
  with pytest.raises(ValueError, match="no split 'valid', but 'train', 'test'"):
    pipeline.load_split(task, split='valid', **LENGTHS)
  with pytest.raises(ValueError, match='batch_size must not exceed'):
    next(pipeline.batches(task, split='test', batch_size=21, **LENGTHS))


def test_the_electorate_counts_votes_as_documented():
  """Recall, brevity and breadth by hand on one post."""
  sets = lambda *items: tuple(frozenset(item) for item in items)
  post = posts.Post('p', ('a', 'b'), sets('xy', 'y'), sets(['t'], ['u']), (4.0, 1.0))
  scores = electorate.annotator_scores(post)
  numbers = {selection: n for n, selection in enumerate(electorate.selections())}
  long, short, both = (scores[:, numbers[s]] for s in [(0,), (1,), (0, 1)])
  np.testing.assert_allclose(long, [2 - 0.4, 2 - 4, 1 - 0.4], rtol=1e-6)
  np.testing.assert_allclose(short, [1 - 0.1, 1 - 1, 1 - 0.1], rtol=1e-6)
  np.testing.assert_allclose(both, [2 - 0.5, 2 - 5, 2 - 0.5], rtol=1e-6)
  assert float(
    electorate.share_of_votes(jax.numpy.asarray(long), jax.numpy.asarray(short))
  ) == pytest.approx(1 / 3)
  assert np.isneginf(scores[:, numbers[(2,)]]).all()
  assert len(electorate.selections()) == 8 + 8 * 7 + 8 * 7 * 6


def test_the_exact_judge_agrees_with_the_scores(corpus):
  judge, table = summaries.judge(corpus), corpus.electorate
  prompts = Prompts(np.zeros((2, 4), np.int32), np.array([3, 5], np.int32))
  y, other = table.responses[[0, 20, 1, 300]], table.responses[[9, 2, 1, 0]]
  got = np.asarray(judge(prompts, y, other))
  for row, (a, b) in enumerate([(0, 9), (20, 2), (1, 1), (300, 0)]):
    scores = table.scores[[3, 5][row // 2]]
    expected = np.mean(
      0.5 + 0.5 * (scores[:, a] > scores[:, b]) - 0.5 * (scores[:, a] < scores[:, b])
    )
    assert got[row] == pytest.approx(expected, abs=1e-6)


def test_what_is_no_response_loses_to_every_response(corpus):
  judge, table = summaries.judge(corpus), corpus.electorate
  prompts = Prompts(np.zeros((1, 4), np.int32), np.zeros(1, np.int32))
  first, second = table.marker_ids[:2]
  bad = np.array(
    [[first, first, 1, 0], [1, 0, 0, 0], [first, second, 0, 0], [2, 1, 0, 0]], np.int32
  )
  good = np.tile(np.array([[first, 1, 0, 0]], np.int32), (4, 1))
  np.testing.assert_array_equal(judge(prompts, bad, good), 0.0)
  np.testing.assert_array_equal(judge(prompts, bad, bad[::-1]), 0.5)


def test_every_response_finds_its_number(corpus):
  numbers = electorate.response_numbers(
    corpus.electorate, jax.numpy.asarray(corpus.electorate.responses)
  )
  np.testing.assert_array_equal(numbers, np.arange(400))


def test_raters_read_the_sentences_behind_the_markers(corpus):
  batch = pipeline.load_split(summaries.demonstrations(corpus, per_post=1), split='test', **LENGTHS)
  prompts = jax.tree.map(jax.numpy.asarray, batch.prompts)
  rendered = extracts.render(
    prompts, jax.numpy.asarray(batch.response.tokens), corpus.electorate.marker_ids, 30
  )
  for row, number in enumerate(batch.prompts.index):
    markers = [t for t in batch.response.tokens[row].tolist() if t > 1]
    chosen = [corpus.electorate.marker_ids.index(t) for t in markers]
    expected = ' '.join(corpus.posts[number].sentences[i] for i in chosen)
    assert corpus.vocabulary.decode([int(t) for t in rendered[row] if t]) == expected


def test_majorities_cycle_on_many_built_in_posts(corpus):
  beaten = 0
  for scores in corpus.electorate.scores:
    valid = scores[:, np.isfinite(scores[0])]
    share = (0.5 + 0.5 * np.sign(valid[:, :, None] - valid[:, None])).mean(0)
    beaten += not (share >= 0.5 - 1e-9).all(1).any()
  assert 0.4 < beaten / len(corpus.posts) < 0.8


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


def test_scitldr(test_data):
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  corpus = summaries.scitldr(str(test_data / 'scitldr'), str(vocabulary))
  assert 1900 < len(corpus.splits['train']) <= 1992
  assert 580 < len(corpus.splits['test']) <= 619
  batch = pipeline.load_split(
    summaries.demonstrations(corpus, 1), split='test', prompt_length=400, response_length=4
  )
  ids = np.asarray(batch.response.tokens)
  assert set(ids[ids > 1]) <= set(corpus.electorate.marker_ids)
  assert (np.asarray(batch.response.mask).sum(1) >= 2).all()


def test_any_jsonl(tmp_path):
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


def test_a_missing_directory_or_vocabulary_names_the_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='--data_dir'):
    tasks.openai_comparisons(str(tmp_path / 'none'), vocabularies.byte())
  with pytest.raises(FileNotFoundError, match=r'No vocabulary .*none\.model'):
    vocabularies.sentencepiece(str(tmp_path / 'none.model'))


def test_marker_ids_need_sentinels(sentencepiece):
  assert vocabularies.marker_ids(sentencepiece, 2) == (4099, 4098)
  with pytest.raises(ValueError, match='has 0 sentinels, 8 are needed'):
    vocabularies.marker_ids(vocabularies.byte(), 8)


@pytest.mark.parametrize('number', [1, 2, 3, 9])
def test_best_lengths_leave_the_least_padding(number):
  """Against all choices there are."""
  lengths = np.random.default_rng(number).integers(1, 61, 40)
  edges = range(8, 65, 8)
  total = lambda chosen: sum(min(e for e in chosen if e >= n) for n in lengths)
  choices = itertools.chain.from_iterable(
    itertools.combinations(edges, k) for k in range(1, min(number, 8) + 1)
  )
  best = min(total(chosen) for chosen in choices if chosen[-1] >= lengths.max())
  found = pipeline.best_lengths(lengths, number, 64)
  assert len(found) <= number and found == sorted(found)
  assert total(found) == best


def test_prompts_of_like_length_come_together(test_data, sentencepiece):
  """Five lengths of prompts and three of responses leave less than 15 % padding on SciTLDR; every epoch still holds everything, and resumes anywhere."""
  task = tasks.tldr_demonstrations(str(test_data / 'scitldr'), sentencepiece)
  lengths = {'prompt_length': 512, 'response_length': 128}
  options = {'split': 'train', 'batch_size': 16, **lengths}
  options |= {'num_prompt_lengths': 5, 'num_response_lengths': 3}
  rows = pipeline.load_split(task, split='train', **lengths)
  per_epoch = len(rows.prompts.index) // 16
  held = collections.Counter(rows.prompts.index.tolist())  # An abstract may be there twice.
  stream = pipeline.batches(task, seed=3, **options)
  batches = [next(stream) for _ in range(2 * per_epoch)]
  for epoch in (batches[:per_epoch], batches[per_epoch:]):
    numbers = np.concatenate([b.prompts.index for b in epoch])
    assert numbers.size == 16 * per_epoch
    assert not collections.Counter(numbers.tolist()) - held
  sizes = lambda b: (b.prompts.tokens, b.response.tokens)
  assert len({tuple(x.shape for x in sizes(b)) for b in batches}) <= 15
  filled = sum(np.count_nonzero(x) for b in batches for x in sizes(b))
  assert filled > 0.85 * sum(x.size for b in batches for x in sizes(b))
  whole = {(tuple(p[p > 0]), tuple(r[r > 0])) for p, r in zip(*sizes(rows), strict=True)}
  for batch in batches:
    assert {(tuple(p[p > 0]), tuple(r[r > 0])) for p, r in zip(*sizes(batch), strict=True)} <= whole
  start = per_epoch + 5
  assert_same(next(pipeline.batches(task, seed=3, start=start, **options)), batches[start])
