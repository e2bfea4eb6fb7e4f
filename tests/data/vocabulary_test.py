"""A closed list of words."""

import pytest
import tensorflow as tf

from nlhf_jax.data.vocabulary import WordVocabulary


def test_words_have_ids_from_3_on():
  vocabulary = WordVocabulary(['a', 'b'])
  assert vocabulary.encode('b a zebra b') == [4, 3, 2, 4]
  assert vocabulary.decode([4, 3, 2]) == 'b a <unk>'
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.vocab_size) == (0, 1, 5)


def test_tensorflow_agrees():
  vocabulary = WordVocabulary(['a', 'b'])
  assert vocabulary.encode_tf(tf.constant('b a zebra')).numpy().tolist() == [4, 3, 2]
  assert vocabulary.decode_tf(tf.constant([4, 3])).numpy().decode() == 'b a'


def test_lists_of_equal_words_are_equal():
  assert WordVocabulary(['a', 'b']) == WordVocabulary(['a', 'b'])
  assert WordVocabulary(['a', 'b']) != WordVocabulary(['b', 'a'])


def test_word_that_stands_twice_is_refused():
  with pytest.raises(ValueError, match='stands twice'):
    WordVocabulary(['a', 'a'])
