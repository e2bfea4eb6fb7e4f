"""Tokens of conversations: those of `transformers`, for every kind of tokenizer that chat models have."""

import json
import os
import pathlib

import pytest

from nlhf_jax.data import vocabularies
from nlhf_jax.formats import hf

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'chat'
KINDS = sorted(path.name for path in GOLDEN.iterdir())
CASES = pathlib.Path(os.environ.get('NLHF_TEST_DATA', '../shared/data')).parent / 'cases' / 'hf'
# What the user says in the recorded cases.
WORDS = ('Hello', ' Hello \n', 'Name a tree.\n', 'user says "hi"')
RECORDED = ('blank_inst', 'eos_list_qwen_order', 't_generation', 't_list', 't_trim')
SPECIAL = ('<|im_start|>', '<|im_end|>', '</s>', '<s>', '[INST]', '<|eot_id|>', '<end_of_turn>')


@pytest.fixture
def cases():
  if not CASES.is_dir():
    pytest.skip(f'needs the recorded cases in {CASES}: set NLHF_TEST_DATA')
  return CASES


def _encode(directory, messages):
  vocabulary = vocabularies.hugging_face(str(directory), chat=True).for_prompts
  tokens, _ = vocabulary.encode_prompt(messages[-1]['content'], messages)
  return vocabulary.model_ids(tokens)


@pytest.mark.parametrize('kind', KINDS)
def test_conversations_are_those_of_transformers(kind):
  """Recorded by tests/golden/make_chat_tokens.py."""
  for messages, ids in json.loads((GOLDEN / kind / 'expected.json').read_text()):
    assert _encode(GOLDEN / kind, messages) == ids, messages


@pytest.mark.parametrize('kind', KINDS)
def test_conversations_are_those_of_transformers_live(kind):
  transformers = pytest.importorskip('transformers', reason='compares with transformers itself')
  theirs = transformers.AutoTokenizer.from_pretrained(GOLDEN / kind)
  for text in ('Why not?', 'a\tb', ' ', 'x' * 50):
    messages = [{'role': 'user', 'content': text}]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert _encode(GOLDEN / kind, messages) == list(expected)


@pytest.mark.parametrize('kind', KINDS)
def test_no_text_can_spell_a_special_token(kind):
  """As many as with a harmless text; and the words come back."""
  vocabulary = vocabularies.hugging_face(str(GOLDEN / kind), chat=True).for_prompts
  special = {
    token['id']
    for token in json.loads((GOLDEN / kind / 'tokenizer.json').read_text())['added_tokens']
    if token['special'] and token['content'] != '<unk>'
  }
  count = lambda text: sum(i in special for i in vocabulary.model_ids(vocabulary.encode(text)))
  attack = ' and '.join(SPECIAL)
  assert count(attack) == count('harmless')
  if kind in ('byte_level', 'llama_3', 'gemma', 'llama_2', 'stripping'):
    assert vocabulary.decode(vocabulary.encode(attack)) == attack


@pytest.mark.parametrize('kind', RECORDED)
def test_recorded_cases(cases, kind):
  expected = json.loads((cases / 'expected_tokens.json').read_text())[kind]
  for text, (_, ids) in zip(WORDS, expected['rows'], strict=True):
    assert _encode(cases / kind, [{'role': 'user', 'content': text}]) == ids
  config = hf.read_config(cases / kind)
  assert config.eos_id == expected['eos']
  assert config.other_ends == ((3,) if kind == 'eos_list_qwen_order' else ())


@pytest.mark.parametrize(
  ('kind', 'error'),
  [
    ('eos_zero', r'ends responses with id 0 .*: give one .* as ids\.pad'),
    ('words_beyond', "'</think>' has id 321, but .* embeddings of 0 to 319"),
    ('adapter', 'holds a PEFT adapter of '),
  ],
)
def test_cases_that_are_refused(cases, kind, error):
  with pytest.raises((ValueError, FileNotFoundError), match=error):
    vocabularies.hugging_face(str(cases / kind), chat=True)


def test_padding_below_0_is_not_said(cases):
  config = hf.read_config(cases / 'pad_minus_one')
  assert (config.pad_id, config.eos_id) == (0, 2)
