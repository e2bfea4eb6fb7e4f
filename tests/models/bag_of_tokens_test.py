"""A response as a set: each token counts once, with what the prompt says of it, whatever its place in the response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import bag_of_tokens, general_preference, reward_model
from nlhf_jax.types import Prompts

MARKERS = (20, 21)
# Two sentences each: 5 stands in both of the first prompt's, twice in one of the second's.
TEXT = jnp.array([[20, 5, 6, 7, 21, 5, 8, 0], [20, 5, 5, 6, 21, 9, 0, 0]], jnp.int32)
PROMPTS = Prompts(TEXT, jnp.arange(2, dtype=jnp.int32))
FREQUENCIES = np.where(np.arange(22)[:, None] < 8, 0.9, 0.1)


@pytest.fixture(scope='module')
def rater():
  return bag_of_tokens.rater(FREQUENCIES, 3, separators=MARKERS)


@pytest.fixture(scope='module')
def params(rater):
  return jax.jit(rater.init)(jax.random.PRNGKey(0))


def score(rater, params, rows):
  """The vector of each row; the first half answers the first prompt."""
  return np.asarray(jax.jit(rater.score)(params, PROMPTS, jnp.array(rows, jnp.int32)))


def test_response_is_a_set(rater, params):
  """Order and padding do not matter; a repetition changes lengths alone."""
  found = score(rater, params, [[5, 6, 1, 0], [6, 5, 0, 0], [9, 5, 1, 0], [5, 9, 0, 0]])
  np.testing.assert_allclose(found[0], found[1], atol=1e-6)
  np.testing.assert_allclose(found[2], found[3], atol=1e-6)
  no_lengths = params | {'lengths': 0 * params['lengths']}
  once = score(rater, no_lengths, [[5, 6, 0], [5, 7, 0]])
  again = score(rater, no_lengths, [[5, 6, 5], [7, 5, 7]])
  np.testing.assert_allclose(once, again, atol=1e-6)


def test_sum_over_tokens(rater, params):
  """Without lengths, what two tokens are worth is what each is worth."""
  no_lengths = params | {'lengths': 0 * params['lengths']}
  found = score(rater, no_lengths, [[5, 0], [8, 0], [5, 8], [5, 0], [9, 0], [9, 5]])
  np.testing.assert_allclose(found[0] + found[1], found[2], atol=1e-5)
  np.testing.assert_allclose(found[3] + found[4], found[5], atol=1e-5)


def test_prompt_counts(rater, params):
  """One token is worth something else to each prompt; rare ones differ by their place alone."""
  found = score(rater, params, [[5, 0], [8, 0], [5, 0], [8, 0]])
  assert np.abs(found[0] - found[2]).max() > 1e-3
  unknown = score(rater, params, [[10, 0], [11, 0], [12, 0], [13, 0]])
  np.testing.assert_allclose(unknown, np.broadcast_to(unknown[:1], unknown.shape), atol=1e-6)


def test_places_of_tokens():
  found = {k: np.asarray(x) for k, x in bag_of_tokens._places(TEXT, MARKERS).items()}
  np.testing.assert_array_equal(found['word'][0], [0, 1, 1, 1, 0, 1, 1, 0])
  np.testing.assert_array_equal(found['segment'][0], [1, 1, 1, 1, 2, 2, 2, 2])
  np.testing.assert_array_equal(found['count'][:, 1:3], [[2, 1], [2, 2]])
  np.testing.assert_array_equal(found['num_segments'][:, 1:3], [[2, 1], [1, 1]])
  np.testing.assert_allclose(found['first'][0, 5], 1 / 8)


def test_judges_of_it(rater, params):
  """A preference model of vectors, and a reward of one number; their axes have their parameters' shapes."""
  model = general_preference.from_rater(rater, general_preference.mixed_tastes)
  y, other = jnp.array([[5, 1], [9, 1]], jnp.int32), jnp.array([[6, 1], [5, 1]], jnp.int32)
  first, second = model.scores(params, PROMPTS, y, other)
  np.testing.assert_allclose(first, -second)
  assert np.abs(first).min() > 1e-4
  single = bag_of_tokens.rater(FREQUENCIES, None, separators=MARKERS)
  weights = jax.jit(single.init)(jax.random.PRNGKey(0))
  assert reward_model.from_rater(single).reward(weights, PROMPTS, y).shape == (2,)
  axes = single.axes()
  jax.tree.map(lambda x, names: np.testing.assert_equal(x.ndim, len(names)), weights, axes)
