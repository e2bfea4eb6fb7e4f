"""Chat templates: what they put around a user's words, and what they may not do."""

import json
import shutil

import pytest
import tokenizers

from nlhf_jax.data import chat_templates, vocabularies


@pytest.fixture
def model(chat_model, tmp_path):
  """A copy that a test may change."""
  vocabularies.hugging_face.cache_clear()
  return shutil.copytree(chat_model, tmp_path / 'model')


def test_prompts_get_the_chat_template(model):
  plain = vocabularies.hugging_face(str(model))
  vocabulary = vocabularies.hugging_face(str(model), chat=True, system='Be brief.')
  theirs = tokenizers.Tokenizer.from_file(str(model / 'tokenizer.json'))
  text = '<|start|>system\nBe brief.<|end|><|start|>user\nWhy?<|end|><|start|>assistant\n'
  swap = {1: 2, 2: 1}
  expected = [swap.get(i, i) for i in theirs.encode(text).ids]
  assert vocabulary.for_prompts.encode('Why?') == expected
  assert vocabulary.for_prompts.decode(expected) == 'Why?'
  assert vocabulary.encode('Why?') == plain.encode('Why?') == plain.for_prompts.encode('Why?')
  assert vocabulary == plain
  assert vocabulary.for_prompts != plain.for_prompts


def test_frame_has_the_system_turn_that_is_asked_for(model):
  """The template of `chat_model` writes each turn as <|start|>ROLE, its words, <|end|>."""
  user = '<|start|>user\n', '<|end|><|start|>assistant\n'
  assert chat_templates.load(model).frame() == user
  system = '<|start|>system\nBe brief.<|end|>'
  assert chat_templates.load(model, 'Be brief.').frame() == (system + user[0], user[1])


def test_template_in_a_file_of_its_own_comes_first(model):
  (model / 'chat_template.jinja').write_text("A{{ messages[0]['content'] }}B{{ bos_token }}")
  settings = {'chat_template': 'unused', 'bos_token': {'content': '<s>'}}
  (model / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert chat_templates.load(model).frame() == ('A', 'B<s>')


def test_missing_template_is_refused(model):
  (model / 'tokenizer_config.json').write_text('{}')
  with pytest.raises(ValueError, match='no chat template: set chat = False'):
    chat_templates.load(model).frame()


def test_unsafe_template_is_refused(model):
  (model / 'chat_template.jinja').write_text("{{ ''.__class__.__mro__ }}")
  with pytest.raises(Exception, match='unsafe'):
    chat_templates.load(model).frame()


def test_template_that_refuses_or_drops_the_user_is_named(model):
  (model / 'chat_template.jinja').write_text("{{ raise_exception('no users') }}")
  with pytest.raises(ValueError, match='refuses: no users'):
    chat_templates.load(model).frame()
  (model / 'chat_template.jinja').write_text('Hello.')
  with pytest.raises(ValueError, match="leaves out the user's words"):
    chat_templates.load(model).frame()
