"""P_u(y ≻ y'|x): antisymmetric, each voter's own, the population's mean; and voters that are learnt from votes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize, special

from nlhf_jax import algorithms, losses
from nlhf_jax.judges import annotators
from nlhf_jax.models import lora, preference_model, rater, voter_preference
from nlhf_jax.models.rater import Rater, as_written
from nlhf_jax.training import loop
from nlhf_jax.types import Adapted, Comparison, PolicyParams, Prompts, Rollout
from tests.tiny import t5_network

TEMPLATE = ((7, 8), (9,), (10,))
PROMPTS = Prompts(jnp.array([[2, 3, 4, 5], [6, 2, 0, 0]]), jnp.arange(2))
RESPONSES = jnp.array([[2, 1, 0], [3, 4, 1], [5, 1, 0], [6, 1, 0], [2, 2, 1], [3, 1, 0]])


@pytest.fixture(scope='module')
def model():
  head = rater.linear(3, scale=2.0)
  one = rater.in_decoder(t5_network(vocab_size=12), TEMPLATE, head=head)
  return voter_preference.from_rater(one, num_voters=4, num_features=2, scale=2.0)


@pytest.fixture(scope='module')
def params(model):
  return jax.jit(model.init)(jax.random.PRNGKey(0))


def comparison(voter, preference=None):
  y = Rollout(RESPONSES, RESPONSES != 0)
  shifted = jnp.roll(RESPONSES.reshape(2, 3, 3), -1, axis=1).reshape(6, 3)
  voter = None if voter is None else jnp.asarray(voter)
  share = jnp.full(6, 1.0) if preference is None else jnp.asarray(preference)
  return Comparison(PROMPTS, y, Rollout(shifted, shifted != 0), share, voter=voter)


def test_voters_are_told_apart_and_the_population_is_their_mean(model, params):
  judge = voter_preference.population_fn(model, params)
  table = np.asarray(judge.annotators(PROMPTS, RESPONSES))
  assert table.shape == (2, 3, 3, 4)
  assert table.std(axis=-1).max() > 0.02
  np.testing.assert_array_equal(table + table.swapaxes(1, 2), 1)
  np.testing.assert_allclose(judge.table(PROMPTS, RESPONSES), table.mean(axis=-1), atol=1e-6)
  batch = comparison(None)
  pair = batch.response.tokens, batch.alternative.tokens
  found = np.asarray(judge(PROMPTS, *pair))
  expected = [table[b, i, (i + 1) % 3].mean() for b in range(2) for i in range(3)]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found + np.asarray(judge(PROMPTS, *pair[::-1])), 1)
  third = preference_model.preference_fn(voter_preference.one_voter(model, 2), params)
  np.testing.assert_allclose(third.table(PROMPTS, RESPONSES), table[..., 2], atol=1e-6)
  own = np.asarray(third(PROMPTS, *pair))
  np.testing.assert_allclose(
    own, [table[b, i, (i + 1) % 3, 2] for b in range(2) for i in range(3)], atol=1e-6
  )
  np.testing.assert_array_equal(own + np.asarray(third(PROMPTS, *pair[::-1])), 1)


def test_voters_are_annotators_of_the_judge(model, params):
  """P_u of pairs asked one by one; of one voter, of all, and of whoever likes the response least."""
  judge = preference_model.preference_fn(model, params)
  others = RESPONSES.reshape(2, 3, 3)[:, :2].reshape(4, 3)
  first = RESPONSES.reshape(2, 3, 1, 3).repeat(2, axis=2).reshape(12, 3)
  second = others.reshape(2, 1, 2, 3).repeat(3, axis=1).reshape(12, 3)
  expected = special.expit(np.asarray(model.voters(params, PROMPTS, first, second)))
  expected = expected.reshape(2, 3, 2, 4)
  close = functools.partial(np.testing.assert_allclose, atol=1e-6)
  close(annotators.apart(judge, PROMPTS, np.asarray(RESPONSES), np.asarray(others)), expected)
  ask = lambda judge: judge.table(PROMPTS, RESPONSES, others)
  close(ask(annotators.one(judge, 2)), expected[..., 2])
  close(ask(annotators.worst_of_pair(judge)), expected.min(axis=-1))
  close(ask(annotators.mean(judge)), ask(judge))
  alone = preference_model.preference_fn(voter_preference.one_voter(model, 2), params)
  with pytest.raises(ValueError, match='does not tell its annotators apart'):
    annotators.apart(alone, PROMPTS, RESPONSES)


def test_step_of_maximin_over_learnt_voters(tiny_policy, tiny_params, tiny_prompts):
  """The hardest of the model's own voters: payoffs are theirs, and θ moves."""
  head = rater.linear(3, scale=2.0)
  one = rater.in_decoder(t5_network(vocab_size=12), TEMPLATE, head=head)
  voters = voter_preference.from_rater(one, num_voters=4, num_features=2, scale=2.0)
  weights = jax.jit(voters.init)(jax.random.PRNGKey(0))
  judge = preference_model.preference_fn(voters, weights)
  method = algorithms.blackwell_pg(
    tiny_policy, judge, tau=0.1, tau_opponent=0.2, num_samples=3, beta=1.0
  )
  optimizer = optax.sgd(0.1)
  given = {'reference': tiny_params[1]}
  state = loop.init_state(method, optimizer, 0, online=tiny_params[0], given=given)
  played = PolicyParams(tiny_params[0], given)
  found = method.score(jax.jit(method.sample)(played, tiny_prompts, jax.random.PRNGKey(3)))
  pair = found.response.tokens, found.alternative.tokens
  table = special.expit(np.asarray(voters.voter_table(weights, tiny_prompts, *pair)))
  np.testing.assert_allclose(found.pair_preference, table.mean(axis=-1).reshape(-1, 3), atol=1e-5)
  payoff, _ = losses.hardest_preference(jnp.asarray(table), jnp.zeros((2, 3, 4)), tau=0.2)
  np.testing.assert_allclose(found.preference, payoff.reshape(-1), atol=1e-5)
  state = loop.train(method, optimizer, state, iter([tiny_prompts]), num_steps=1)
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params.online, tiny_params[0]
  )
  assert 0 < max(jax.tree.leaves(moved)) < 1


def test_features_are_what_tastes_weigh(model, params):
  """s − s' + w_u·(φ − φ') of features and table is the log-odds of each voter: what is handed to votes.tastes."""
  batch = comparison([0, 1, 2, 3, 0, 1])
  x, offset = voter_preference.differences(model, params, batch)
  w = np.asarray(params[voter_preference.VOTERS])
  pair = batch.response.tokens, batch.alternative.tokens
  found = model.voters(params, PROMPTS, *pair)
  np.testing.assert_allclose(found, offset[:, None] + x @ w.T, atol=1e-4)
  own, of_all = voter_preference.log_odds(model, params, batch)
  np.testing.assert_allclose(own, np.asarray(found)[np.arange(6), batch.voter], atol=1e-6)
  np.testing.assert_allclose(special.expit(of_all), special.expit(found).mean(axis=1), atol=1e-6)


def test_unknown_voters_are_the_population(model, params):
  unknown = comparison([-1, 4, 0, -1, 9, 1])
  own, of_all = voter_preference.log_odds(model, params, unknown)
  for rows, same in (([0, 1, 3, 4], True), ([2, 5], False)):
    assert np.array_equal(np.asarray(own)[rows], np.asarray(of_all)[rows]) == same
  nobody, _ = voter_preference.log_odds(model, params, comparison(None))
  np.testing.assert_array_equal(nobody, of_all)


def test_prior_is_once_in_all_votes(model, params):
  """Of N votes the penalties add up to ½λ Σ_u‖w_u‖², whoever cast them."""
  prior = voter_preference.Prior(num_votes=6, strength=0.7)
  value = lambda prior: (
    voter_preference.loss(model, params, comparison([0, 0, 3, 3, -1, -1]), prior).value
  )
  added = np.asarray(value(prior) - value(prior._replace(strength=0.0)))
  w = np.asarray(params[voter_preference.VOTERS])
  assert added.sum() == pytest.approx(0.35 * np.sum(w**2), rel=1e-3)


def test_voters_of_one_vote_and_of_a_hundred_are_at_their_modes():
  """All votes are for y, |φ − φ'| = 1, s = 0: voter u of n votes has n σ(−w_u) = λ w_u, whatever the other's number."""
  table = jnp.array([[0.0, 0.0], [0.0, 1.0]])
  one = Rater(lambda rng: {}, lambda p, prompts, y: table[y[:, 0]], dict, as_written, 1)
  model = voter_preference.from_rater(one, num_voters=2, num_features=1)
  counts = np.array([1, 100])
  voter = np.repeat([0, 1], counts)
  side = lambda token: Rollout(jnp.full((101, 1), token), jnp.ones((101, 1), bool))
  prompts = Prompts(jnp.array([[2]]), jnp.arange(1))
  batch = Comparison(prompts, side(1), side(0), jnp.ones(101), voter=jnp.asarray(voter))
  prior = voter_preference.Prior(num_votes=101, strength=1.0)
  params_of = lambda w: {voter_preference.VOTERS: jnp.asarray(w, jnp.float32)[:, None]}
  sum_of = lambda w: voter_preference.loss(model, params_of(w), batch, prior).value.sum()
  value_and_gradient = jax.jit(jax.value_and_grad(sum_of))
  numbers = lambda w: [np.asarray(x, np.float64) for x in value_and_gradient(jnp.asarray(w))]
  found = optimize.minimize(numbers, np.zeros(2), jac=True, tol=1e-6).x
  modes = [optimize.brentq(lambda w, n=n: n * special.expit(-w) - w, 0, 50) for n in counts]
  np.testing.assert_allclose(modes, [0.401, 3.359], atol=1e-3)
  np.testing.assert_allclose(found, modes, atol=2e-3)


def test_learnt_from_votes_of_two_who_disagree():
  """A rater that embeds tokens; of a third voter nothing is known, so it stays near the middle."""
  table_of = lambda params, tokens: params['embedding'][tokens[:, 0]]
  init = lambda rng: {'embedding': 0.1 * jax.random.normal(rng, (12, 3))}
  one = Rater(
    init, lambda p, prompts, y: table_of(p, y), lambda: {'embedding': (None, None)}, as_written, 1
  )
  model = voter_preference.from_rater(one, num_voters=3, num_features=2)
  params = model.init(jax.random.PRNGKey(1))
  votes = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
  batch = comparison([0, 1, 0, 1, 0, 1], votes)
  # All compare the same two responses.
  one_pair = [jnp.tile(jnp.array([[token, 1, 0]]), (6, 1)) for token in (2, 3)]
  batch = batch._replace(**{
    name: Rollout(x, x != 0) for name, x in zip(('response', 'alternative'), one_pair, strict=True)
  })  # fmt: skip
  prior = voter_preference.Prior(num_votes=6, strength=0.1)
  optimizer = optax.adam(0.1)

  @jax.jit
  def step(params, state):
    gradient = jax.grad(lambda p: voter_preference.loss(model, p, batch, prior).value.mean())(
      params
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(60):
    params, state = step(params, state)
  p = special.expit(np.asarray(model.voters(params, PROMPTS, *one_pair))[0])
  assert p[0] > 0.9 and p[1] < 0.1
  judge = voter_preference.population_fn(model, params)
  assert 0.3 < float(judge(PROMPTS, *one_pair)[0]) < 0.7


def test_adapters_train_tastes_in_full(model, params):
  adapted = lora.adapt(model, lora.Lora(rank=1))
  shapes = jax.eval_shape(adapted.init, jax.random.PRNGKey(0))
  assert shapes['voters']['change'].shape == (4, 2)
  fresh = jax.jit(adapted.init)(jax.random.PRNGKey(1))
  prior = voter_preference.Prior(num_votes=6, strength=0.7)
  batch = comparison([0, 1, 2, 3, 0, -1])
  same = voter_preference.loss(adapted, Adapted(params, fresh), batch, prior)
  plain = voter_preference.loss(model, params, batch, prior)
  np.testing.assert_allclose(same.value, plain.value, rtol=1e-4)


def test_refusals(model):
  with pytest.raises(ValueError, match='one of the 4 that the model knows, from 0, got 4'):
    voter_preference.one_voter(model, 4)
  two = rater.in_decoder(t5_network(vocab_size=12), ((7,), (8,), (9,), (10,)), head=rater.linear(3))
  with pytest.raises(ValueError, match='takes 2: give it one of three pieces'):
    voter_preference.from_rater(two, 4, 2)
  with pytest.raises(ValueError, match='must be at least 1, got 0 and 2'):
    voter_preference.from_rater(two, 0, 2)
  with pytest.raises(ValueError, match='does not tell voters apart'):
    voter_preference.one_voter(preference_model.from_rater(two), 0)
  wrong = rater.in_decoder(t5_network(vocab_size=12), TEMPLATE, head=rater.linear(2))
  other = voter_preference.from_rater(wrong, 4, 2)
  with pytest.raises(ValueError, match=r'the head rater.linear\(3\)'):
    jax.eval_shape(
      other.scores, jax.eval_shape(other.init, jax.random.PRNGKey(0)), PROMPTS, RESPONSES, RESPONSES
    )
