"""From judges of text to judges of tokens; a judge that fails gives no vote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import algorithms
from nlhf_jax.judges import text
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, PreferenceFn, Prompts

PROMPTS = Prompts(np.array([[2, 3, 0], [4, 0, 0]], np.int32), np.arange(2))
FIRST = np.array([[2, 1, 0], [3, 3, 1], [1, 0, 0], [2, 3, 4]], np.int32)
SECOND = np.array([[4, 1, 0], [2, 1, 0], [5, 1, 0], [2, 2, 1]], np.int32)


def _decode(ids):
  return ''.join(chr(ord('a') + i) for i in ids)


def test_pairs_are_judged_as_texts_in_their_order():
  """Two pairs to each prompt; padding and EOS are no text."""
  seen = []

  def record(prompt, first, second):
    seen.append((prompt, first, second))
    return len(seen) / 10

  judge = text.from_text(record, lambda ids: _decode(ids).upper(), _decode)
  assert isinstance(judge, PreferenceFn)
  found = judge(PROMPTS, FIRST, SECOND)
  assert seen == [('CD', 'c', 'e'), ('CD', 'dd', 'c'), ('E', '', 'f'), ('E', 'cde', 'cc')]
  np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
  assert found.dtype == np.float32


def test_tokens_may_be_on_a_device():
  judge = text.from_text(lambda prompt, a, b: float(a < b), _decode, _decode)
  on_device = [jnp.asarray(x) for x in (FIRST, SECOND)]
  found = judge(jax.tree.map(jnp.asarray, PROMPTS), *on_device)
  np.testing.assert_array_equal(found, judge(PROMPTS, FIRST, SECOND))


@pytest.mark.parametrize('answer', [float('nan'), -0.01, 1.5, float('inf')])
def test_answers_outside_0_and_1_are_no_votes(answer):
  def judge_text(prompt, first, second):
    return answer if first == 'dd' else 0.5

  judge = text.from_text(judge_text, _decode, _decode)
  message = rf"answered {answer} on pair 1 .* no vote: .* in \[0, 1\], .* prompt 'cd', first 'dd'"
  with pytest.raises(ValueError, match=message):
    judge(PROMPTS, FIRST, SECOND)


@pytest.mark.parametrize('answer', [None, 'the first', [0.5, 0.5]])
def test_answers_that_are_no_numbers_are_no_votes(answer):
  judge = text.from_text(lambda prompt, a, b: answer, _decode, _decode)
  with pytest.raises(ValueError, match='failed on pair 0 of the batch, so there is no vote'):
    judge(PROMPTS, FIRST, SECOND)


def test_failures_are_no_votes():
  def judge_text(prompt, first, second):
    if second == 'cc':
      raise ConnectionError('the line is dead')
    return 0.5

  judge = text.from_text(judge_text, _decode, _decode)
  with pytest.raises(ValueError, match=r"pair 3 .*ConnectionError\('the line is dead'\)") as raised:
    judge(PROMPTS, FIRST, SECOND)
  assert isinstance(raised.value.__cause__, ConnectionError)


def test_long_texts_are_abridged_in_messages():
  judge = text.from_text(lambda *texts: 2, lambda ids: 'x' * 1000, _decode)
  with pytest.raises(ValueError, match='x …') as raised:
    judge(PROMPTS, FIRST, SECOND)
  assert len(str(raised.value)) < 400


def test_methods_are_trained_on_votes_of_texts(tiny_policy, tiny_prompts):
  """The `score` of a method fills in what the function says of its own responses."""
  longer = lambda prompt, a, b: 0.5 + 0.5 * np.sign(len(a) - len(b))
  judge = text.from_text(longer, _decode, _decode)
  method = algorithms.self_play(tiny_policy, judge, tau=0.1)
  y, other = (as_rollout(jnp.array(x)) for x in ([[2, 3, 1], [2, 1, 0]], [[4, 1, 0], [3, 2, 4]]))
  zeros = jnp.zeros((2, 3))
  scored = method.score(Comparison(tiny_prompts, y, other, None, zeros))
  np.testing.assert_array_equal(scored.preference, [1.0, 0.0])
