"""Templates in tokens."""

import pytest

from nlhf_jax.data import corpora, prompts, vocabularies
from nlhf_jax.models import preference_model, rater, reward_model
from tests.tiny import t5_network


def test_templates_decode_to_the_papers_texts():
  vocabulary = vocabularies.byte()
  decode = lambda template: [vocabulary.decode(piece) for piece in template]
  text, *rest = decode(prompts.preference_template(vocabulary))
  assert text.startswith('You are an expert summary rater. Given a piece of text and two of its')
  assert text.endswith('indicate which summary is better. Text - ')
  assert rest == [', Summary 1 - ', ', Summary 2 - ', '. Preferred Summary -']
  assert decode(prompts.reward_template(vocabulary)) == ['Context - ', ', Summary - ', '']


def test_short_templates_are_words_of_the_builtin_vocabulary():
  vocabulary = corpora.vocabulary()
  pieces = (
    *prompts.preference_template(vocabulary, prompts.SHORT_PREFERENCE),
    *prompts.reward_template(vocabulary, prompts.SHORT_REWARD),
  )
  assert all(len(piece) == 1 for piece in pieces)
  assert vocabulary.unk_id not in {piece[0] for piece in pieces}


def test_templates_fit_their_models():
  network, vocabulary = t5_network(vocab_size=260), vocabularies.byte()
  template = prompts.preference_template(vocabulary)
  preference_model.from_rater(rater.in_encoder(network, template))
  reward_model.from_rater(rater.in_decoder(network, prompts.reward_template(vocabulary)))


def test_wrong_number_of_pieces_is_refused():
  with pytest.raises(ValueError, match='has 4 pieces of text, got 3'):
    prompts.preference_template(vocabularies.byte(), pieces=prompts.REWARD)
  with pytest.raises(ValueError, match='has 3 pieces of text, got 4'):
    prompts.reward_template(vocabularies.byte(), pieces=prompts.PREFERENCE)
