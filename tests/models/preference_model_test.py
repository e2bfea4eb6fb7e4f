"""The preference model: exactly antisymmetric, blind to padding, and able to hold a cycle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.models import preference_model, rater
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, Prompts
from tests.tiny import t5_network

VOCAB = 12
TEMPLATE = ((7, 8), (9,), (10,), (11,))


@pytest.fixture(scope='module', params=[rater.in_encoder, rater.in_decoder])
def model(request):
  return preference_model.from_rater(request.param(t5_network(vocab_size=VOCAB), TEMPLATE))


@pytest.fixture(scope='module')
def params(model):
  return jax.jit(model.init)(jax.random.PRNGKey(0))


def _logit(model, params, prompts, y, other):
  return jax.jit(functools.partial(preference_model.logit, model))(params, prompts, y, other)


@pytest.fixture(scope='module')
def pairs():
  """Two prompts, three pairs each."""
  rng = np.random.default_rng(0)
  prompts = np.array([[2, 3, 4, 5], [6, 2, 0, 0]], np.int32)
  y, other = rng.integers(2, 7, (2, 6, 4)).astype(np.int32)
  y[0, 2:], other[3, 1:], y[:, 3], other[:, 3] = 0, 0, 1, 1
  return Prompts(jnp.asarray(prompts), jnp.arange(2)), jnp.asarray(y), jnp.asarray(other)


def test_preferences_of_both_orders_add_up_to_exactly_one(model, params, pairs):
  prompts, y, other = pairs
  judge = preference_model.preference_fn(model, params)
  forward, backward = judge(prompts, y, other), judge(prompts, other, y)
  assert np.all(np.asarray(forward) + np.asarray(backward) == 1.0)
  assert np.asarray(forward).std() > 1e-3
  assert np.all(np.asarray(judge(prompts, y, y)) == 0.5)


def test_logit_is_antisymmetric_to_the_bit_wherever_a_pair_stands(model, params, pairs):
  prompts, y, other = pairs
  logit = functools.partial(_logit, model, params, prompts)
  mixed = jnp.where(jnp.arange(6)[:, None] % 2 == 0, y, other)
  opposite = jnp.where(jnp.arange(6)[:, None] % 2 == 0, other, y)
  assert np.array_equal(logit(mixed, opposite), -logit(opposite, mixed))


def test_logit_is_half_the_difference_of_both_orders(model, params, pairs):
  prompts, y, other = pairs
  forward, backward = jax.jit(model.scores)(params, prompts, y, other)
  expected = 0.5 * (forward - backward)
  np.testing.assert_allclose(_logit(model, params, prompts, y, other), expected, atol=1e-6)


def test_pair_is_judged_alike_in_any_batch_and_under_more_padding(model, params, pairs):
  prompts, y, other = pairs
  together = _logit(model, params, prompts, y, other)
  wide = lambda x: jnp.pad(x, [(0, 0), (0, 3)])
  second = Prompts(wide(prompts.tokens[1:]), prompts.index[1:])
  alone = _logit(model, params, second, wide(y[4:5]), wide(other[4:5]))
  np.testing.assert_allclose(together[4:5], alone, atol=1e-5)


def test_render_replaces_what_raters_read(pairs):
  """Read as a constant, all responses are alike; read with two tokens swapped, they are other responses."""
  prompts, y, other = pairs
  make = lambda render: preference_model.from_rater(
    rater.in_decoder(t5_network(vocab_size=VOCAB), TEMPLATE, render=render)
  )
  blind = make(lambda prompts, responses: jnp.full_like(responses, 3))
  params = jax.jit(blind.init)(jax.random.PRNGKey(0))
  np.testing.assert_array_equal(_logit(blind, params, prompts, y, other), jnp.zeros(6))
  swap = lambda x: jnp.where(x == 2, 3, jnp.where(x == 3, 2, x))
  plain, swapped = make(rater.as_written), make(lambda prompts, responses: swap(responses))
  np.testing.assert_array_equal(
    jax.jit(swapped.scores)(params, prompts, y, other),
    jax.jit(plain.scores)(params, prompts, swap(y), swap(other)),
  )


def test_loss_is_the_cross_entropy_of_the_preference(model, params, pairs):
  prompts, y, other = pairs
  votes = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
  comparison = Comparison(prompts, as_rollout(y), as_rollout(other), votes)
  found = jax.jit(functools.partial(preference_model.loss, model))(params, comparison)
  p = np.asarray(preference_model.preference_fn(model, params)(prompts, y, other), np.float64)
  expected = -votes * np.log(p) - (1 - votes) * np.log(1 - p)
  np.testing.assert_allclose(found.value, expected, atol=1e-5)
  assert set(found.metrics) >= {'accuracy', 'log_loss', 'position_bias'}


def test_cycle_is_learnt():
  """2 beats 3 beats 4 beats 2, by 9 votes of 10: the loss falls to the votes' entropy."""
  model = preference_model.from_rater(rater.in_decoder(t5_network(vocab_size=VOCAB), TEMPLATE))
  prompts = Prompts(jnp.array([[5, 6]]), jnp.zeros(1, jnp.int32))
  y = jnp.array([[2, 1], [3, 1], [4, 1]])
  pair = as_rollout(y), as_rollout(jnp.roll(y, -1, axis=0))
  comparison = Comparison(prompts, *pair, jnp.full(3, 0.9))
  optimizer = optax.adam(2e-2)
  objective = lambda params: preference_model.loss(model, params, comparison).value.mean()

  @jax.jit
  def update(params, state):
    value, gradient = jax.value_and_grad(objective)(params)
    change, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, change), state, value

  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  state = jax.jit(optimizer.init)(params)
  for _ in range(200):
    params, state, value = update(params, state)
  entropy = -0.9 * np.log(0.9) - 0.1 * np.log(0.1)
  assert value == pytest.approx(entropy, abs=0.02)


def test_position_bias_is_how_much_the_first_place_is_worth():
  always_first = preference_model.position_bias(jnp.array([50.0]), jnp.array([50.0]))
  fair = preference_model.position_bias(jnp.array([3.0]), jnp.array([-3.0]))
  np.testing.assert_allclose([always_first[0], fair[0]], [0.5, 0.0], atol=1e-6)


def test_exact_sigmoid_is_the_sigmoid_and_adds_up_to_one():
  x = jnp.linspace(-30, 30, 1001)
  p = np.asarray(preference_model.exact_sigmoid(x))
  np.testing.assert_allclose(p, 1 / (1 + np.exp(-np.asarray(x, np.float64))), atol=1e-7)
  assert np.all(p + np.asarray(preference_model.exact_sigmoid(-x)) == 1.0)
