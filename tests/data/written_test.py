"""Free-text summaries: the electorate scores a text as it scores the extract that the text is."""

import pathlib

import numpy as np
import pytest

from nlhf_jax.data import pipeline, vocabularies, written
from nlhf_jax.judges import extracts
from nlhf_jax.types import Prompts


@pytest.fixture(scope='module')
def abstracts(test_data: pathlib.Path):
  vocabulary = vocabularies.sentencepiece(
    str(test_data / 'vocab/scitldr_unigram_4k/sentencepiece.model')
  )
  return written.scitldr(str(test_data / 'scitldr'), vocabulary)


def test_text_is_scored_like_its_extract(abstracts):
  for post in abstracts.posts[:20]:
    expected = extracts.annotator_scores(post)
    for number, selection in enumerate(extracts.selections()):
      if max(selection) < len(post.sentences):
        text = ' '.join(post.sentences[i] for i in selection)
        np.testing.assert_allclose(written.scores(post, text), expected[:, number], atol=1e-4)


def test_judge_reads_tokens(abstracts):
  """Two responses to each of two prompts; an empty one loses to any other."""
  rows = [1, 4]
  texts = [text for n in rows for text in (abstracts.summaries[n], abstracts.posts[n].sentences[0])]
  tokens = np.zeros((4, 200), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    ids = [*abstracts.vocabulary.encode(text), 1]
    row[: len(ids)] = ids
  prompts = Prompts(np.ones((2, 3), np.int32), np.array(rows, np.int32))
  judge = written.judge(abstracts)
  p = judge(prompts, tokens, tokens[::-1].reshape(2, 2, -1)[::-1].reshape(4, -1))
  expected = [written.preference(abstracts.posts[n], a, b) for n, a, b in [
    (1, texts[0], texts[1]), (1, texts[1], texts[0]), (4, texts[2], texts[3]), (4, texts[3], texts[2])
  ]]  # fmt: skip
  np.testing.assert_allclose(p, expected)
  np.testing.assert_allclose(p[::2] + p[1::2], 1)
  empty = np.zeros_like(tokens)
  empty[:, 0] = 1
  assert (judge(prompts, empty, tokens) == 0).all()


def test_views_share_their_prompts(abstracts):
  views = [
    written.demonstrations(abstracts),
    written.comparisons(abstracts, 2),
    written.prompts(abstracts),
  ]
  read = lambda task: pipeline.load_split(
    task, split='test', prompt_length=512, response_length=96, limit=20
  )
  demonstrations, comparisons, prompts = map(read, views)
  np.testing.assert_array_equal(demonstrations.prompts.tokens, prompts.tokens)
  np.testing.assert_array_equal(comparisons.prompts.tokens[::2], prompts.tokens[:10])
  assert prompts.index[0] == abstracts.splits['test'][0]
  assert set(np.unique(np.round(comparisons.preference * 6))) <= set(range(7))
  assert (comparisons.response.tokens != comparisons.alternative.tokens).any(axis=1).all()


def test_splits_share_no_abstract_and_validation_is_of_the_training_file(abstracts):
  splits = abstracts.splits
  numbers = [number for split in splits.values() for number in split]
  assert sorted(numbers) == list(range(len(abstracts.posts)))
  assert max(*splits['train'], *splits['validation']) < min(splits['test'])
  assert 0.05 < len(splits['validation']) / len(splits['train']) < 0.15


def test_prompt_is_a_title_and_how_the_abstract_begins(test_data, abstracts):
  short = written.scitldr(str(test_data / 'scitldr'), abstracts.vocabulary, num_sentences=2)
  for post, prompt in zip(short.posts, short.prompts, strict=True):
    title, _, rest = prompt.partition('\n\nAbstract: ')
    assert title.startswith('Title: ')
    assert rest == ' '.join(post.sentences[:2])
  assert len(abstracts.prompts[0]) > len(short.prompts[0])


def test_long_summaries_are_not_imitated(abstracts):
  """They would end without EOS."""
  task = written.demonstrations(abstracts, max_tokens=40)
  rows = pipeline.load_split(task, split='train', prompt_length=8, response_length=40)
  assert 0 < len(rows.prompts.index) < len(abstracts.splits['train'])
  assert (rows.response.tokens == 1).any(axis=1).all()
  assert (rows.response.tokens[:, -1] > 0).any()
