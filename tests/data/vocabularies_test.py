"""Vocabularies by name, judges of their text, and the mistakes that are refused."""

import numpy as np
import pytest

from nlhf_jax.data import corpora, vocabularies
from nlhf_jax.formats import hf
from nlhf_jax.judges import posts, rules
from nlhf_jax.types import PreferenceFn, Prompts


def _pad(vocabulary, texts, length, eos=False):
  tokens = np.zeros((len(texts), length), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    ids = [*vocabulary.encode(text), *([1] if eos else [])]
    row[: len(ids)] = ids
  return tokens


def test_text_judge_reads_the_vocabularys_text():
  """Two pairs to each of two prompts, under a rule that reads prompt and responses."""
  vocabulary = vocabularies.byte()
  judge = vocabularies.text_judge(rules.coverage, vocabulary)
  assert isinstance(judge, PreferenceFn)
  prompts = Prompts(_pad(vocabulary, ['red blue', 'green'], 12), np.arange(2))
  first = _pad(vocabulary, ['red', 'no', 'green', 'red'], 10, eos=True)
  second = _pad(vocabulary, ['no', 'blue', 'green', 'green'], 10, eos=True)
  np.testing.assert_array_equal(judge(prompts, first, second), [1.0, 0.0, 0.5, 0.0])


def test_text_judge_reads_prompts_without_their_frame(chat_model):
  vocabularies.hugging_face.cache_clear()
  vocabulary = vocabularies.hugging_face(str(chat_model), chat=True)
  seen = []

  def judge_text(prompt, first, second):
    seen.append((prompt, first, second))
    return 0.25

  judge = vocabularies.text_judge(judge_text, vocabulary)
  prompts = Prompts(_pad(vocabulary.for_prompts, ['Why?'], 60), np.arange(1))
  responses = [_pad(vocabulary, [text], 12, eos=True) for text in ('a b', 'c')]
  np.testing.assert_array_equal(judge(prompts, *responses), [0.25])
  assert seen == [('Why?', 'a b', 'c')]


def test_text_judge_reads_rendered_responses(corpus):
  """Of two sentences of a post the shorter wins, whatever their markers."""
  render = corpora.renderer(corpus, 30)
  judge = vocabularies.text_judge(rules.shorter, corpus.vocabulary, render)
  sizes = [[len(sentence.split()) for sentence in posts.generate(n).sentences] for n in range(5)]
  prompts = Prompts(_pad(corpus.vocabulary, [corpus.prompt(n) for n in range(5)], 64), np.arange(5))
  markers = list(corpus.words)
  first, second = (np.tile(np.array([[markers[i], 1, 0, 0]], np.int32), (5, 1)) for i in (0, 1))
  expected = [0.5 + 0.5 * np.sign(size[1] - size[0]) for size in sizes]
  assert len(set(expected)) > 1
  np.testing.assert_array_equal(judge(prompts, first, second), expected)


def test_marker_ids_are_the_last_sentinels(sentencepiece):
  assert vocabularies.marker_ids(sentencepiece, 2) == (4099, 4098)


def test_marker_ids_need_sentinels():
  with pytest.raises(ValueError, match='has 0 sentinels, 8 are needed'):
    vocabularies.marker_ids(vocabularies.byte(), 8)


def test_marker_ids_of_a_word_list():
  vocabulary = corpora.vocabulary()
  ids = vocabularies.marker_ids(vocabulary, 8)
  assert vocabulary.decode(ids) == '<s1> <s2> <s3> <s4> <s5> <s6> <s7> <s8>'
  with pytest.raises(ValueError, match='lacks one of <s1> … <s9>'):
    vocabularies.marker_ids(vocabulary, 9)


def test_missing_vocabulary_is_named(tmp_path, chat_model):
  with pytest.raises(FileNotFoundError, match=r'No vocabulary .*none\.model'):
    vocabularies.sentencepiece(str(tmp_path / 'none.model'))
  (tmp_path / 'bad.model').write_bytes(b'garbage')
  with pytest.raises(ValueError, match=r'bad\.model is no model of SentencePiece .*: download it'):
    vocabularies.sentencepiece(str(tmp_path / 'bad.model'))
  with pytest.raises(FileNotFoundError, match=r'No .*tokenizer\.json'):
    vocabularies.hugging_face(str(tmp_path))


def test_padding_that_text_uses_is_refused(chat_model):
  with pytest.raises(ValueError, match=r"id 5, which is to mean padding, is the word '.*ids\.pad"):
    vocabularies.hugging_face(str(chat_model), hf.Ids(pad=5))
