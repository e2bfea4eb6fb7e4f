"""Corpora of extractive summaries: three views of the same posts, and their judge."""

import itertools

import jax
import numpy as np
import pytest

from nlhf_jax.data import corpora, pipeline
from nlhf_jax.judges import posts
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
    for number, sentence in enumerate(posts.generate(index).sentences, start=1):
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
  found = corpora.enumeration(corpus)(batch.prompts)
  valid = [np.flatnonzero(np.isfinite(scores[0])) for scores in found.scores]
  drafts = np.stack([x[rng.choice(n)] for x, n in zip(found.responses, valid, strict=True)])
  assert np.mean(judge(batch.prompts, batch.response.tokens, drafts)) > 0.54


def test_enumeration_has_the_scores_of_each_prompt(corpus):
  prompts = Prompts(np.zeros((2, 4), np.int32), np.array([5, 3], np.int32))
  found = corpora.enumeration(corpus)(prompts)
  np.testing.assert_array_equal(found.scores, [corpus.ballot(n).scores for n in (5, 3)])


@pytest.mark.parametrize('make', [corpora.headlines, corpora.generated_extracts])
def test_majorities_cycle_on_many_prompts(make):
  """No response to such a prompt is unbeaten."""
  beaten, generated = 0, make(num_test=80)
  for number in generated.splits['test']:
    scores = generated.ballot(number).scores
    valid = scores[:, np.isfinite(scores[0])]
    share = (0.5 + 0.5 * np.sign(valid[:, :, None] - valid[:, None])).mean(0)
    beaten += not (share >= 0.5 - 1e-9).all(1).any()
  assert 0.4 < beaten / 80 < 0.95


@pytest.mark.parametrize('view', [corpora.demonstrations, corpora.comparisons, corpora.prompts])
def test_endless_corpus_reads_each_prompt_once(view):
  """Batch n is the same wherever a run resumes, and like the rows of the finite corpus."""
  stream = view(corpora.headlines(num_test=10))
  options = {'split': 'train', 'batch_size': 4, 'prompt_length': 6, 'response_length': 3}
  batches = list(itertools.islice(pipeline.batches(stream, **options), 5))
  index = [getattr(batch, 'prompts', batch).index for batch in batches]
  np.testing.assert_array_equal(np.concatenate(index), np.arange(10, 30))
  again = next(pipeline.batches(stream, start=3, **options))
  jax.tree.map(np.testing.assert_array_equal, again, batches[3])
  finite = pipeline.load_split(
    view(corpora.headlines(num_train=20, num_test=10)),
    split='train',
    prompt_length=6,
    response_length=3,
  )
  rows = getattr(finite, 'prompts', finite)
  first = getattr(batches[0], 'prompts', batches[0])
  np.testing.assert_array_equal(first.tokens[0], rows.tokens[0])
  if view is corpora.comparisons:
    np.testing.assert_array_equal(batches[0].response.tokens[0], finite.response.tokens[0])
    assert batches[0].preference[0] == finite.preference[0]


def test_slips_lose(corpus):
  """Where one response has a wrong word and the other is one, all votes go to the other."""
  task = corpora.comparisons(corpora.headlines(num_test=60), slips=0.5)
  batch = pipeline.load_split(task, split='test', prompt_length=6, response_length=3)
  assert {0.0, 1.0} <= set(batch.preference.tolist())
  judge = corpora.judge(corpora.headlines(num_test=60))
  np.testing.assert_allclose(
    judge(batch.prompts, batch.response.tokens, batch.alternative.tokens),
    batch.preference,
    atol=1e-6,
  )
  known = batch.prompts.tokens[:, :, None] == batch.response.tokens[:, None]
  assert 0.2 < np.mean(((batch.response.tokens > 1) & ~known.any(axis=1)).any(axis=1)) < 0.6


def test_scitldr(test_data):
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  corpus = corpora.scitldr(str(test_data / 'scitldr'), str(vocabulary))
  assert 1900 < len(corpus.splits['train']) + len(corpus.splits['validation']) <= 1992
  assert len(corpus.splits['validation']) > 100
  assert not {*corpus.splits['train']} & {*corpus.splits['validation'], *corpus.splits['test']}
  assert 580 < len(corpus.splits['test']) <= 619
  batch = pipeline.load_split(
    corpora.demonstrations(corpus, 1), split='test', prompt_length=400, response_length=4
  )
  ids = np.asarray(batch.response.tokens)
  assert set(ids[ids > 1]) <= set(corpus.words)
  assert (np.asarray(batch.response.mask).sum(1) >= 2).all()


def test_voters_vote_by_their_own_mixture():
  """Sure voters, of whom the first three are the readers; those after the known ones vote on held-out days alone."""
  corpus = corpora.headlines(num_test=60)
  task = corpora.voter_comparisons(corpus, num_known=5, num_unseen=4, noise=0.0)
  voters = pipeline.voters(task)
  assert len(voters.names) == 9 and voters.num_training == 5
  sizes = {'prompt_length': 6, 'response_length': 3}
  test = pipeline.load_split(task, split='test', **sizes)
  assert set(test.voter.tolist()) == set(range(9))
  batch = next(
    pipeline.batches(task, split='train', batch_size=30, responses_per_prompt=8, **sizes)
  )
  assert set(batch.voter.tolist()) == set(range(5))
  scores = corpora.enumeration(corpus)(test.prompts)
  of = lambda tokens: np.stack([
    scores.scores[n][:, (scores.responses[n] == row).all(axis=-1).argmax()] for n, row in enumerate(tokens)
  ])  # fmt: skip
  first, second = of(test.response.tokens), of(test.alternative.tokens)
  for reader in range(3):
    own = test.voter == reader
    np.testing.assert_array_equal(
      test.preference[own], 0.5 + 0.5 * np.sign(first - second)[own, reader]
    )
  mixed = test.voter >= 3
  agreed = np.sign(first - second)[mixed] == np.sign(test.preference[mixed] - 0.5)[:, None]
  # A mixture takes nobody's side always, but never all readers' other side.
  assert agreed.any(axis=1).mean() > 0.95 and (agreed.mean(axis=0) < 0.95).all()
