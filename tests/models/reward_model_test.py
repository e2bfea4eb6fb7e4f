"""The reward model and the Bradley-Terry preference made of it, which can hold no cycle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.models import rater, reward_model
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, Prompts
from tests.tiny import t5_network

VOCAB = 12
TEMPLATE = ((7,), (8,), (9,))


@pytest.fixture(scope='module', params=[rater.in_encoder, rater.in_decoder])
def model(request):
  return reward_model.from_rater(request.param(t5_network(vocab_size=VOCAB), TEMPLATE))


@pytest.fixture(scope='module')
def params(model):
  return jax.jit(model.init)(jax.random.PRNGKey(0))


@pytest.fixture(scope='module')
def pairs():
  """Two prompts, three pairs each."""
  rng = np.random.default_rng(1)
  prompts = Prompts(jnp.array([[2, 3, 4, 5], [6, 2, 0, 0]]), jnp.arange(2))
  y, other = rng.integers(2, 7, (2, 6, 4)).astype(np.int32)
  y[0, 2:], other[3, 1:], y[:, 3], other[:, 3] = 0, 0, 1, 1
  return prompts, jnp.asarray(y), jnp.asarray(other)


def test_reward_of_a_response_depends_on_its_own_prompt_alone(model, params, pairs):
  prompts, y, _ = pairs
  reward = reward_model.reward_fn(model, params)
  together = reward(prompts, y)
  for row in range(0, 6, 2):
    alone = Prompts(prompts.tokens[row // 3][None], prompts.index[row // 3][None])
    assert reward(alone, y[row : row + 1])[0] == pytest.approx(float(together[row]), abs=1e-5)
  other = Prompts(prompts.tokens[::-1], prompts.index[::-1])
  assert np.abs(reward(other, y) - together).min() > 1e-4


def test_bradley_terry_is_the_sigmoid_of_the_rewards_difference(model, params, pairs):
  prompts, y, other = pairs
  reward = reward_model.reward_fn(model, params)
  judge = reward_model.bradley_terry(reward)
  expected = jax.nn.sigmoid(reward(prompts, y) - reward(prompts, other))
  np.testing.assert_allclose(judge(prompts, y, other), expected, atol=1e-6)


def test_bradley_terry_of_both_orders_adds_up_to_exactly_one(model, params, pairs):
  prompts, y, other = pairs
  judge = reward_model.bradley_terry(reward_model.reward_fn(model, params))
  forward, backward = judge(prompts, y, other), judge(prompts, other, y)
  assert np.all(np.asarray(forward) + np.asarray(backward) == 1.0)
  assert np.asarray(forward).std() > 1e-3
  assert np.all(np.asarray(judge(prompts, y, y)) == 0.5)


def test_bradley_terry_takes_numpy_tokens(pairs):
  """With a reward known in closed form: the number of tokens."""
  prompts, y, other = pairs
  length = lambda prompts, tokens: jnp.sum(tokens > 1, axis=-1).astype(jnp.float32)
  found = reward_model.bradley_terry(length)(prompts, np.asarray(y), np.asarray(other))
  longer = (np.asarray(y) > 1).sum(1) - (np.asarray(other) > 1).sum(1)
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-longer)), atol=1e-6)


def test_loss_is_the_cross_entropy_of_the_difference(model, params, pairs):
  prompts, y, other = pairs
  votes = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
  comparison = Comparison(prompts, as_rollout(y), as_rollout(other), votes)
  reward = reward_model.reward_fn(model, params)
  z = np.asarray(reward(prompts, y) - reward(prompts, other), np.float64)
  expected = np.log1p(np.exp(-z)) * votes + np.log1p(np.exp(z)) * (1 - votes)
  found = jax.jit(functools.partial(reward_model.loss, model))(params, comparison).value
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope='module')
def fit():
  """Loss after training on votes about 2 against 3, 3 against 4 and 4 against 2."""
  model = reward_model.from_rater(rater.in_decoder(t5_network(vocab_size=VOCAB), TEMPLATE))
  prompts = Prompts(jnp.array([[5, 6]]), jnp.zeros(1, jnp.int32))
  y = jnp.array([[2, 1], [3, 1], [4, 1]])
  pair = as_rollout(y), as_rollout(jnp.roll(y, -1, axis=0))
  optimizer = optax.adam(2e-2)

  def objective(params, votes):
    return reward_model.loss(model, params, Comparison(prompts, *pair, votes)).value.mean()

  @jax.jit
  def update(params, state, votes):
    value, gradient = jax.value_and_grad(objective)(params, votes)
    change, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, change), state, value

  def run(votes):
    params = jax.jit(model.init)(jax.random.PRNGKey(0))
    state = jax.jit(optimizer.init)(params)
    for _ in range(200):
      params, state, value = update(params, state, jnp.asarray(votes, jnp.float32))
    return float(value)

  return run


def test_order_is_learnt_but_no_cycle(fit):
  """r = (1, 0, −1) fits votes σ(1), σ(1), σ(−2) exactly; a cycle leaves any line at log 2."""
  line = 1 / (1 + np.exp(-np.array([1.0, 1.0, -2.0])))
  entropy = np.mean(-line * np.log(line) - (1 - line) * np.log(1 - line))
  assert fit(line) == pytest.approx(entropy, abs=0.01)
  assert fit(np.full(3, 0.9)) == pytest.approx(np.log(2), abs=0.01)
