"""Preference models of one vector a response: antisymmetric, cyclic, and a table that is its pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.models import general_preference, preference_model, rater
from nlhf_jax.types import AllPairsJudge, Prompts
from tests.tiny import t5_network

TEMPLATE = ((7, 8), (9,), (10,))
PAIR_FNS = [general_preference.cyclic_blocks, general_preference.mixed_tastes]


def _make(pair_fn, num_features=5, layout=rater.in_decoder):
  network = t5_network(vocab_size=12)
  head = rater.linear(num_features, scale=2.0)
  return general_preference.from_rater(layout(network, TEMPLATE, head=head), pair_fn)


@pytest.fixture(scope='module')
def prompts():
  return Prompts(jnp.array([[2, 3, 4, 5], [6, 2, 0, 0]]), jnp.arange(2))


@pytest.fixture(scope='module')
def responses():
  """Three to each of two prompts."""
  return jnp.array([[2, 1, 0], [3, 4, 1], [5, 1, 0], [6, 1, 0], [2, 2, 1], [3, 1, 0]])


@pytest.mark.parametrize('pair_fn', PAIR_FNS)
def test_table_holds_the_pairs_and_is_antisymmetric(pair_fn, prompts, responses):
  model = _make(pair_fn)
  judge = preference_model.preference_fn(model, jax.jit(model.init)(jax.random.PRNGKey(0)))
  assert isinstance(judge, AllPairsJudge)
  table = np.asarray(judge.table(prompts, responses, responses))
  assert table.shape == (2, 3, 3)
  assert table.std() > 0.02
  np.testing.assert_allclose(table + table.swapaxes(1, 2), 1, atol=1e-6)
  for shift in range(3):
    other = jnp.roll(responses.reshape(2, 3, 3), -shift, axis=1).reshape(6, 3)
    found = np.asarray(judge(prompts, responses, other)).reshape(2, 3)
    expected = [[table[b, i, (i + shift) % 3] for i in range(3)] for b in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(
      found + np.asarray(judge(prompts, other, responses)).reshape(2, 3), 1
    )


def test_alternatives_may_be_of_another_number(prompts, responses):
  model = _make(general_preference.mixed_tastes)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  full = model.table(params, prompts, responses, responses)
  two = responses.reshape(2, 3, 3)[:, :2].reshape(4, 3)
  np.testing.assert_allclose(
    model.table(params, prompts, responses, two), full[:, :, :2], atol=1e-6
  )


def test_mixed_tastes_are_the_mean_of_bradley_terry():
  vector, other = np.random.default_rng(0).normal(size=(2, 7, 4)) * 3
  found = special.expit(general_preference.mixed_tastes(jnp.asarray(vector), jnp.asarray(other)))
  np.testing.assert_allclose(found, special.expit(vector - other).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize('pair_fn', PAIR_FNS)
def test_cycle(pair_fn):
  """Three responses of which each beats the next."""
  turns = 2 * np.pi * np.arange(3) / 3
  if pair_fn is general_preference.cyclic_blocks:
    vectors = np.stack([0 * turns, np.cos(turns), np.sin(turns)], axis=-1)
  else:
    vectors = 9.0 * np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
  p = special.expit(pair_fn(jnp.asarray(vectors), jnp.asarray(np.roll(vectors, -1, axis=0))))
  np.testing.assert_allclose(p, p[0], rtol=1e-5)
  assert p[0] > 0.65


def test_blocks_hold_every_preference_of_four_responses():
  """Skew log-odds of four responses have rank four: two blocks, by the eigenvectors of the skew matrix."""
  noise = np.random.default_rng(0).normal(size=(4, 4))
  skew = noise - noise.T
  values, vectors = np.linalg.eig(skew)
  blocks = []
  for place in np.flatnonzero(values.imag > 1e-9):
    v, size = vectors[:, place], values[place].imag
    blocks.append((np.sqrt(2 * size) * v.real, np.sqrt(2 * size) * v.imag))
  a, b = (np.stack(x, axis=-1) for x in zip(*blocks, strict=True))
  rows = jnp.asarray(np.concatenate([np.zeros((4, 1)), a, b], axis=-1))
  found = np.asarray(general_preference.cyclic_blocks(rows[:, None], rows[None]))
  np.testing.assert_allclose(np.abs(found), np.abs(skew), atol=1e-5)
  assert np.allclose(found, skew, atol=1e-5) or np.allclose(found, -skew, atol=1e-5)


def test_refusals():
  with pytest.raises(ValueError, match='make num_features odd'):
    general_preference.cyclic_blocks(jnp.ones(4), jnp.ones(4))
  two = rater.in_decoder(t5_network(vocab_size=12), ((7,), (8,), (9,), (10,)), head=rater.linear(3))
  with pytest.raises(ValueError, match='takes 2: give the rater one of three pieces'):
    general_preference.from_rater(two)
