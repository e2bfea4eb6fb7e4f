"""Corpora of extractive summaries: three views of the same posts, and their judge."""

import numpy as np
import pytest

from nlhf_jax.data import pipeline, summaries
from nlhf_jax.types import Prompts

LENGTHS = {'prompt_length': 64, 'response_length': 4}


@pytest.mark.parametrize('view', [corpora.demonstrations, corpora.comparisons])
def test_no_post_of_the_test_split_is_trained_on(corpus, view):
  train, test = (
    set(pipeline.load_split(view(corpus), split=split, **LENGTHS).prompts.index.tolist())
    for split in ('train', 'test')
  )
  assert (len(train), len(test)) == (60, 20)
  assert not train & test


def test_prompts_read_as_their_posts(corpus):
  batch = pipeline.load_split(corpora.prompts(corpus), split='test', **LENGTHS)
  for tokens, index in zip(batch.tokens, batch.index.tolist(), strict=True):
    text = corpus.vocabulary.decode([int(t) for t in tokens if t > 0])
    assert text == corpus.prompt(index)
    for number, sentence in enumerate(corpus.posts[index].sentences, start=1):
      assert f'<s{number}> {sentence}' in text


def test_comparisons_have_the_judges_preference(corpus):
  """The share of votes that the data say is what the exact judge answers."""
  batch = pipeline.load_split(corpora.comparisons(corpus), split='test', **LENGTHS)
  judge = corpora.judge(corpus)
  found = judge(batch.prompts, batch.response.tokens, batch.alternative.tokens)
  np.testing.assert_allclose(found, batch.preference, atol=1e-6)
  assert len(set(np.round(batch.preference * 6))) > 2


def test_single_votes_are_hard_labels(corpus):
  task = corpora.comparisons(corpus, num_votes=1)
  labels = pipeline.load_split(task, split='train', **LENGTHS).preference
  assert set(labels) <= {0.0, 0.5, 1.0}
  shares = pipeline.load_split(corpora.comparisons(corpus), split='train', **LENGTHS).preference
  assert np.mean(labels) == pytest.approx(np.mean(shares), abs=0.06)


def test_demonstrations_are_better_than_chance(corpus):
  """Against random responses a demonstration gets more than half of the votes; the standard error is 0.014."""
  batch = pipeline.load_split(corpora.demonstrations(corpus), split='train', **LENGTHS)
  judge, rng = corpora.judge(corpus), np.random.default_rng(0)
  enumeration = corpora.enumeration(corpus)(batch.prompts)
  valid = [np.flatnonzero(np.isfinite(scores[0])) for scores in enumeration.scores]
  drafts = enumeration.responses[[rng.choice(numbers) for numbers in valid]]
  assert np.mean(judge(batch.prompts, batch.response.tokens, drafts)) > 0.54


def test_enumeration_has_the_scores_of_each_prompt(corpus):
  prompts = Prompts(np.zeros((2, 4), np.int32), np.array([5, 3], np.int32))
  found = corpora.enumeration(corpus)(prompts)
  np.testing.assert_array_equal(found.scores, corpus.electorate.scores[[5, 3]])


def test_majorities_cycle_on_many_builtin_posts(corpus):
  """No response to such a post is unbeaten."""
  beaten = 0
  for scores in corpus.electorate.scores:
    valid = scores[:, np.isfinite(scores[0])]
    share = (0.5 + 0.5 * np.sign(valid[:, :, None] - valid[:, None])).mean(0)
    beaten += not (share >= 0.5 - 1e-9).all(1).any()
  assert 0.4 < beaten / len(corpus.posts) < 0.8


def test_scitldr(test_data):
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  corpus = corpora.scitldr(str(test_data / 'scitldr'), str(vocabulary))
  assert 1900 < len(corpus.splits['train']) <= 1992
  assert 580 < len(corpus.splits['test']) <= 619
  batch = pipeline.load_split(
    corpora.demonstrations(corpus, 1), split='test', prompt_length=400, response_length=4
  )
  ids = np.asarray(batch.response.tokens)
  assert set(ids[ids > 1]) <= set(corpus.electorate.marker_ids)
  assert (np.asarray(batch.response.mask).sum(1) >= 2).all()
