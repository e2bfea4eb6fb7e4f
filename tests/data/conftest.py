"""A small generated corpus, and a vocabulary of a real one."""

import pytest

from nlhf_jax.data import corpora, vocabularies


@pytest.fixture(scope='session')
def corpus():
  return corpora.generated_extracts(num_train=60, num_test=20)


@pytest.fixture(scope='session')
def sentencepiece(test_data):
  path = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  return vocabularies.sentencepiece(str(path), extra_ids=100)
