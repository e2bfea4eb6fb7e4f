"""A network's letters as a judge, against the log-probs that the policy itself gives, one question at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges import letters, llm_prompts
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.types import PreferenceFn, Prompts
from tests import tiny

TEMPLATE = llm_prompts.parse('t', 'answers: A B C\n{prompt}/{first}/{second}?')
# A vocabulary of characters.
CHARACTERS = '__/?ABCabcd'
PROMPTS = Prompts(np.array([[7, 8, 0], [9, 0, 0]], np.int32), np.arange(2))
FIRST = np.array([[7, 1, 0], [8, 8, 1], [10, 10, 9], [7, 1, 0]], np.int32)
SECOND = np.array([[8, 10, 1], [7, 1, 0], [9, 1, 0], [7, 1, 0]], np.int32)


def encode(text):
  return [CHARACTERS.index(character) for character in text]


def decode(ids):
  return ''.join(CHARACTERS[i] for i in ids)


def make_judge(log_prob, params=None, template=TEMPLATE, **settings):
  coders = {
    'encode': encode,
    'encode_answer': encode,
    'decode_prompt': decode,
    'decode_response': decode,
  }
  return letters.from_log_prob(log_prob, params, template, **coders | settings)


@pytest.fixture(scope='module', params=[tiny.t5_network, tiny.llama_network])
def model(request):
  pi = policy.from_network(request.param(vocab_size=11), decoding.Sampling(max_length=2))
  params = jax.tree.map(lambda x: 2.0 * x, jax.jit(pi.init)(jax.random.PRNGKey(0)))
  return pi, params


def test_letters_of_a_network_are_its_own_log_probs(model):
  """Each question alone, unpadded; p(A) + p(C)/2 over the three, and the mean of both orders."""
  pi, params = model
  log_prob = jax.jit(pi.log_prob)
  found = make_judge(pi.log_prob, params, batch_size=3)(PROMPTS, FIRST, SECOND)

  def first_wins(prompt, first, second):
    question = Prompts(jnp.array([encode(f'{prompt}/{first}/{second}?')]), jnp.array([-1]))
    p = [float(jnp.exp(log_prob(params, question, jnp.array([[i]]))[0, 0])) for i in (4, 5, 6)]
    return (p[0] + p[2] / 2) / sum(p)

  expected = []
  for number, rows in enumerate(zip(FIRST, SECOND, strict=True)):
    prompt = ('ab', 'c')[number // 2]
    first, second = (decode([i for i in row if i > 1]) for row in rows)
    forward, backward = first_wins(prompt, first, second), first_wins(prompt, second, first)
    assert number == 3 or abs(forward - (1 - backward)) > 1e-3  # It has an order bias.
    expected.append((forward + 1 - backward) / 2)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert found[3] == pytest.approx(0.5, abs=1e-6)  # Equal responses.
  assert np.ptp(found) > 1e-3


def test_preferences_of_both_sides_add_up_to_one(model):
  judge = make_judge(*(model[0].log_prob, model[1]))
  assert isinstance(judge, PreferenceFn)
  both = judge(PROMPTS, FIRST, SECOND) + judge(PROMPTS, SECOND, FIRST)
  np.testing.assert_allclose(both, 1, atol=1e-6)


def test_network_that_always_answers_the_first_is_a_half():
  def log_prob(params, prompts, tokens):
    return jnp.where(tokens == encode('A')[0], 0.0, -30.0)

  np.testing.assert_allclose(make_judge(log_prob)(PROMPTS, FIRST, SECOND), 0.5, atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_network_that_reads_the_responses(batch_size):
  """It answers A where the first response has more of 'd' than the second; else B, or C where neither has."""

  def log_prob(params, prompts, tokens):
    is_slash = prompts.tokens == encode('/')[0]
    part = jnp.cumsum(is_slash, axis=-1)
    count = lambda n: jnp.sum((part == n) & (prompts.tokens == encode('d')[0]), axis=-1)
    more = jnp.sign(count(1) - count(2))
    answer = jnp.select([more > 0, more < 0], encode('AB'), encode('C')[0])
    return jnp.where(tokens[:, 0] == jnp.repeat(answer, 3), 0.0, -30.0)[:, None]

  judge = make_judge(log_prob, batch_size=batch_size)
  np.testing.assert_allclose(judge(PROMPTS, FIRST, SECOND), [0, 0.5, 1, 0.5], atol=1e-6)


@pytest.mark.parametrize(
  ('encode_answer', 'message'),
  [
    (lambda text: [5, 6], "The answer 'A' is 2 tokens"),
    (lambda text: [5], r'The answers A, B, C are the tokens \[5, 5, 5\]'),
  ],
)
def test_answers_must_be_one_token_each(encode_answer, message):
  with pytest.raises(ValueError, match=message):
    make_judge(lambda *args: None, encode_answer=encode_answer)


def test_few_programs_are_compiled():
  """Widths are powers of two."""
  widths = [letters._pad([[1] * n], 1).shape[1] for n in (1, 2, 3, 4, 5, 8, 9, 100)]
  assert widths == [1, 2, 4, 4, 8, 8, 16, 128]
  assert all(a <= b for a, b in itertools.pairwise(widths))
