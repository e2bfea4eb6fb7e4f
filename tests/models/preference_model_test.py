"""The preference model: exactly antisymmetric, blind to padding, and able to hold a cycle; the reward model is not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import reward_model
from nlhf_jax.models import preference_model as pm
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.training import loop
from nlhf_jax.types import Comparison, Prompts
from tests.conftest import tiny_network

VOCAB = 12
RATER = pm.RaterPrompt((7, 8), (9,), (10,), (11,))
REWARD = reward_model.RewardPrompt((7,), (8,), (9,))


@pytest.fixture(scope='module', params=[pm.in_encoder, pm.in_decoder])
def model(request):
  return request.param(tiny_network(VOCAB), RATER)


@pytest.fixture(scope='module')
def pairs():
  """Two prompts, three pairs each."""
  rng = np.random.default_rng(0)
  prompts = np.array([[2, 3, 4, 5], [6, 2, 0, 0]], np.int32)
  y, other = rng.integers(2, 7, (2, 6, 4)).astype(np.int32)
  y[0, 2:], other[3, 1:], y[:, 3], other[:, 3] = 0, 0, 1, 1
  return Prompts(jnp.asarray(prompts), jnp.arange(2)), jnp.asarray(y), jnp.asarray(other)


def test_preferences_of_both_orders_add_up_to_exactly_one(model, pairs):
  prompts, y, other = pairs
  judge = pm.preference_fn(model, jax.jit(model.init)(jax.random.PRNGKey(0)))
  forward, backward = judge(prompts, y, other), judge(prompts, other, y)
  assert np.all(np.asarray(forward) + np.asarray(backward) == 1.0)
  assert np.asarray(forward).std() > 1e-3
  assert np.all(np.asarray(judge(prompts, y, y)) == 0.5)


def test_a_pair_is_judged_alike_alone_and_in_company_and_under_more_padding(model, pairs):
  prompts, y, other = pairs
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  together = pm.logit(model, params, prompts, y, other)
  wide = lambda x: jnp.pad(x, [(0, 0), (0, 3)])
  padded = pm.logit(
    model, params, Prompts(wide(prompts.tokens), prompts.index), wide(y), wide(other)
  )
  np.testing.assert_allclose(together, padded, atol=1e-5)
  second = Prompts(prompts.tokens[1:], prompts.index[1:])
  np.testing.assert_allclose(
    together[4:5], pm.logit(model, params, second, y[4:5], other[4:5]), atol=1e-5
  )


def test_the_rater_prompt_is_put_together_without_gaps():
  tokens = jnp.array([[7, 0, 3, 0, 0, 5, 1]])
  np.testing.assert_array_equal(pm.move_padding_to_end(tokens), [[7, 3, 5, 1, 0, 0, 0]])


def test_render_replaces_what_raters_read(pairs):
  prompts, y, other = pairs
  network = tiny_network(VOCAB)
  params = jax.jit(pm.in_decoder(network, RATER).init)(jax.random.PRNGKey(0))
  constant = lambda prompts, responses: jnp.full_like(responses, 3)
  blind = pm.in_decoder(network, RATER, render=constant)
  np.testing.assert_array_equal(pm.logit(blind, params, prompts, y, other), jnp.zeros(6))


def _cycle() -> Comparison:
  """One prompt; 2 beats 3 beats 4 beats 2, by 9 votes of 10."""
  prompts = Prompts(jnp.array([[5, 6]]), jnp.zeros(1, jnp.int32))
  y = jnp.array([[2, 1], [3, 1], [4, 1]])
  return Comparison(prompts, as_rollout(y), as_rollout(jnp.roll(y, -1, axis=0)), jnp.full(3, 0.9))


def _fit(algorithm) -> float:
  """Log-loss after training on the cycle."""
  seen = []
  hooks = loop.Hooks(lambda step, metrics: seen.append(metrics['log_loss']), lambda *_: None)
  optimizer = optax.adam(2e-2)
  state = loop.init_state(algorithm, optimizer, seed=0)
  comparison = _cycle()
  loop.train(
    algorithm, optimizer, state, iter(lambda: comparison, None), hooks, num_steps=250, log_every=25
  )
  return seen[-1]


def test_a_cycle_is_learnt_by_the_preference_model_but_not_by_a_reward():
  entropy = -0.9 * np.log(0.9) - 0.1 * np.log(0.1)
  preference = _fit(algorithms.preference(pm.in_decoder(tiny_network(VOCAB), RATER)))
  reward = _fit(algorithms.reward(reward_model.in_decoder(tiny_network(VOCAB), REWARD)))
  assert preference == pytest.approx(entropy, abs=0.02)
  assert reward == pytest.approx(np.log(2), abs=0.01)  # No line holds a cycle: it can only shrug.


@pytest.mark.parametrize('layout', [reward_model.in_encoder, reward_model.in_decoder])
def test_bradley_terry_is_the_sigmoid_of_the_rewards_difference(layout, pairs):
  prompts, y, other = pairs
  model = layout(tiny_network(VOCAB), REWARD)
  reward = reward_model.reward_fn(model, jax.jit(model.init)(jax.random.PRNGKey(0)))
  judge = reward_model.bradley_terry(reward)
  expected = jax.nn.sigmoid(reward(prompts, y) - reward(prompts, other))
  np.testing.assert_allclose(judge(prompts, y, other), expected, atol=1e-6)
  assert np.all(np.asarray(judge(prompts, y, other)) + np.asarray(judge(prompts, other, y)) == 1.0)


def test_position_bias_is_how_much_the_first_place_is_worth():
  always_first = pm.position_bias(jnp.array([50.0]), jnp.array([50.0]))
  fair = pm.position_bias(jnp.array([3.0]), jnp.array([-3.0]))
  np.testing.assert_allclose([always_first[0], fair[0]], [0.5, 0.0], atol=1e-6)
