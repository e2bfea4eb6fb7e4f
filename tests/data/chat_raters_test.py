"""Raters of chat models: what they read is one conversation, and untrained they answer as the policy would."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data import chat_raters, vocabularies
from nlhf_jax.judges import llm_prompts
from nlhf_jax.models import policy, preference_model, rater, reward_model
from nlhf_jax.networks import decoding
from nlhf_jax.networks.network import hidden_and_head
from nlhf_jax.types import Prompts
from tests import tiny

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden' / 'chat'
KINDS = ('byte_level', 'llama_3', 'llama_2', 'metaspace_first', 'metaspace_never', 'gemma')
SYSTEM = 'Be brief.'
QUESTION = 'answers: 1 2\nText:\n{prompt}\nOne:\n{first}\n\nTwo:\n{second}\nWhich?'
PROMPT_TEXTS = ('Name a tree', 'Why not')
FIRST, SECOND = ('an oak', 'no', 'yes', 'a b'), ('a fir', 'so', 'yes', 'c')


@pytest.fixture(scope='module')
def question_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('templates') / 'mine.txt'
  path.write_text(QUESTION)
  return path


def _vocabulary(kind, **settings):
  return vocabularies.hugging_face(str(GOLDEN / kind), chat=True, **settings)


def _pad(rows, length):
  tokens = np.zeros((len(rows), length), np.int32)
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return jnp.asarray(tokens)


def _encode(vocabulary):
  """Prompts in their frame, and responses with EOS."""
  prompts = [vocabulary.for_prompts.encode(text) for text in PROMPT_TEXTS]
  length = max(map(len, prompts)) + 3
  responses = [_pad([[*vocabulary.encode(x), 1] for x in texts], 20) for texts in (FIRST, SECOND)]
  return Prompts(_pad(prompts, length), jnp.arange(2)), responses


@pytest.mark.parametrize('kind', KINDS)
def test_pieces_with_their_texts_are_the_tokens_of_one_conversation(kind, question_file):
  """Where lines divide them, and each text is encoded as within: alone, words have a blank before them in some kinds."""
  vocabulary = _vocabulary(kind)
  words, asked = vocabulary.for_prompts, llm_prompts.load(question_file)
  pieces = words.encode_question(lambda texts: asked.fill(*texts), 3, None)
  texts = ('tree', 'an oak', 'fir')
  expected = words.encode(asked.fill(*texts))
  within = [words._to_ours(words._unspellable._encode_within(text)) for text in texts]
  found = [*pieces[0]]
  for text, piece in zip(within, pieces[1:], strict=True):
    found += [*text, *piece]
  assert found == expected


@pytest.mark.parametrize('kind', KINDS)
def test_frame_is_what_stands_around_the_words(kind):
  vocabulary = _vocabulary(kind, system=None if kind == 'gemma' else SYSTEM)
  before, after = vocabulary.for_prompts.frame()
  for text in ('Name a tree', 'x', 'Why not?'):
    ids = vocabulary.for_prompts.encode(text)
    inside = vocabulary.decode(ids[before : len(ids) - after])
    assert inside.strip() == text


@pytest.fixture(scope='module')
def model():
  vocabulary = _vocabulary('llama_3', system=SYSTEM)
  network = tiny.llama_network(vocab_size=vocabulary.vocab_size)
  pi = policy.from_network(network, decoding.Sampling(max_length=2))
  params = jax.tree.map(lambda x: 2.0 * x, jax.jit(pi.init)(jax.random.PRNGKey(0)))
  return vocabulary, network, pi, params


@pytest.mark.parametrize('system', [None, 'You judge.'])
def test_untrained_it_is_the_policy_that_is_asked(model, question_file, system):
  """s(x, y, y') = log π(1|question) − log π(2|question), with a system's turn of its own; P antisymmetric."""
  vocabulary, network, pi, params = model
  asked = llm_prompts.load(question_file)
  judge = chat_raters.question(network, vocabulary, question_file, system=system)
  prompts, responses = _encode(vocabulary)
  found = preference_model.from_rater(judge).scores(params, prompts, *responses)
  ids = [vocabulary.encode(answer)[0] for answer in ('1', '2')]
  plain = _vocabulary('llama_3', system=system)
  log_prob = jax.jit(pi.log_prob)
  expected = np.zeros((2, 4))
  for row in range(4):
    for order, pair in enumerate([(FIRST[row], SECOND[row]), (SECOND[row], FIRST[row])]):
      tokens = plain.for_prompts.encode(asked.fill(PROMPT_TEXTS[row // 2], *pair))
      question = Prompts(jnp.array([tokens]), jnp.array([-1]))
      first, second = (log_prob(params, question, jnp.array([[i]]))[0, 0] for i in ids)
      expected[order, row] = first - second
  np.testing.assert_allclose(np.stack(found), expected, atol=1e-4)
  assert expected.std() > 1e-2
  logit = preference_model.logit(preference_model.from_rater(judge), params, prompts, *responses)
  np.testing.assert_allclose(logit, 0.5 * (expected[0] - expected[1]), atol=1e-4)


def test_other_heads_read_the_same_question(model, question_file):
  vocabulary, network, _, params = model
  prompts, responses = _encode(vocabulary)
  for head in (rater.linear(), rater.vocabulary_row(vocabulary.encode('1')[0])):
    judge = chat_raters.question(network, vocabulary, question_file, head)
    own = params if head.init is None else jax.jit(judge.init)(jax.random.PRNGKey(1))
    scores = judge.score(own, prompts, *responses)
    assert scores.shape == (4,) and np.std(scores) > 1e-3


def test_conversation_is_read_as_the_policy_reads_it(model):
  """The head sees the hidden state after the response's EOS, under the prompt's own frame."""
  vocabulary, network, _, params = model
  prompts, responses = _encode(vocabulary)
  judge = reward_model.from_rater(
    chat_raters.conversation(network, rater.vocabulary_row(vocabulary.encode('1')[0]))
  )
  found = judge.reward(params, prompts, responses[0])
  one_by_one = []
  for row, text in enumerate(FIRST):
    read = [*vocabulary.for_prompts.encode(PROMPT_TEXTS[row // 2]), *vocabulary.encode(text), 1]
    last = _last_logits(network, params, read)
    one_by_one.append(last[vocabulary.encode('1')[0]])
  np.testing.assert_allclose(found, one_by_one, atol=1e-4)
  assert np.std(found) > 1e-3


def _last_logits(network, params, tokens):
  """After all of the tokens, the first of which are read as a prompt."""
  read, written = tokens[:-2], tokens[-2:]
  inputs = jnp.array([[0, *written]])
  hidden, to_logits = hidden_and_head(
    network, params, jnp.array([read]), inputs, jnp.ones_like(inputs)
  )
  return to_logits(hidden)[0, -1]


def test_wrong_templates_are_refused(model, tmp_path):
  vocabulary, network, *_ = model
  path = tmp_path / 'swapped.txt'
  path.write_text('{first} {second} {prompt}')
  with pytest.raises(ValueError, match=r'order \[2, 3, 1\]'):
    chat_raters.question(network, vocabulary, path)
  path.write_text('answers: yes no\n{prompt} {first} {second}')
  with pytest.raises(ValueError, match='one token each'):
    chat_raters.question(network, vocabulary, path)
  with pytest.raises(ValueError, match='order first, second, prompt'):
    path.write_text('{first} {second} {prompt}')
    chat_raters.question(network, vocabularies.byte(), path)
