"""Annotators apart, and what they say together: by hand, in pairs and in tables, with missing votes."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges import annotators, tables
from nlhf_jax.types import Prompts

PROMPTS = Prompts(np.zeros((2, 4), np.int32), np.arange(2, dtype=np.int32))
# Two to a prompt, and two others.
FIRST = jnp.array([[2, 1], [3, 1], [4, 1], [2, 1]], jnp.int32)
SECOND = jnp.array([[4, 1], [2, 1], [3, 1], [5, 1]], jnp.int32)
# P_u of the responses 2 to 5 over each other; the second annotator never saw 5.
LIKING = np.array([[1.0, 0.2, 0.5, 0.0], [0.0, 2.0, 1.0, np.nan], [0.5, 0.5, 3.0, 0.1]])


def likes(number):
  def judge(prompts, response, alternative):
    r = (
      LIKING[number][np.asarray(response)[:, 0] - 2],
      LIKING[number][np.asarray(alternative)[:, 0] - 2],
    )
    return jnp.asarray(1 / (1 + np.exp(r[1] - r[0])), jnp.float32)

  return judge  # fmt: skip


JUDGE = annotators.from_judges([likes(u) for u in range(3)])


def by_hand(prompt, i, j):
  """P_u of the i-th of FIRST against the j-th of SECOND."""
  rows = 2 * prompt + i, 2 * prompt + j
  return [float(likes(u)(None, FIRST[rows[0] :][:1], SECOND[rows[1] :][:1])[0]) for u in range(3)]


COMBINED = {
  'apart': (JUDGE, np.nanmean),
  'mean': (annotators.mean(JUDGE), np.nanmean),
  'weighted': (
    annotators.mean(JUDGE, [3.0, 2.0, 1.0]),
    lambda p: np.nansum(np.array([3, 2, 1]) * p) / (6 - 2 * np.isnan(p[1])),
  ),
  'one': (annotators.one(JUDGE, 2), lambda p: p[2]),
  'worst_of_pair': (annotators.worst_of_pair(JUDGE), np.nanmin),
}


@pytest.mark.parametrize('name', COMBINED)
def test_what_annotators_say_together(name):
  judge, combine = COMBINED[name]
  table = tables.preference_table(judge, PROMPTS, FIRST, SECOND)
  each = annotators.apart(judge, PROMPTS, FIRST, SECOND)
  assert each.shape == (2, 2, 2, 3)
  assert np.isnan(each).any()
  for place in np.ndindex(2, 2, 2):
    np.testing.assert_allclose(each[place], by_hand(*place), rtol=1e-6)
    np.testing.assert_allclose(table[place], combine(np.array(by_hand(*place))), rtol=1e-6)
  np.testing.assert_array_equal(
    judge(PROMPTS, FIRST, SECOND), np.asarray(table)[:, [0, 1], [0, 1]].reshape(-1)
  )


def test_no_vote_of_anyone_is_none():
  silent = annotators.from_judges([lambda x, y, y2: jnp.full(len(y), jnp.nan)] * 2)
  for judge in (silent, annotators.mean(silent, [1.0, 2.0]), annotators.worst_of_pair(silent)):
    assert np.isnan(judge(PROMPTS, FIRST, SECOND)).all()


def test_worst_of_a_pair_is_not_antisymmetric():
  """And so neither of two responses may be worth a half."""
  judge = annotators.worst_of_pair(JUDGE)
  both = np.asarray(judge(PROMPTS, FIRST, SECOND) + judge(PROMPTS, SECOND, FIRST))
  assert np.all(both <= 1 + 1e-6)
  assert both.min() < 0.9


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: annotators.from_judges([]), 'at least one annotator'),
    (lambda: annotators.one(JUDGE, 3)(PROMPTS, FIRST, SECOND), 'one of 3 annotators.*got 3'),
    (lambda: annotators.mean(JUDGE, [1.0, 0.0, 1.0]), 'annotator 1 must be positive, got 0.0'),
    (
      lambda: annotators.mean(JUDGE, [1.0, 1.0])(PROMPTS, FIRST, SECOND),
      '2 weights for 3 annotators',
    ),
    (
      lambda: annotators.mean(likes(0))(PROMPTS, FIRST, SECOND),
      'does not tell its annotators apart',
    ),
  ],
)
def test_mistake_is_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
