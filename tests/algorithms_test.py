"""Every method's estimator against the exact gradient, by enumeration of a whole language."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import mixture
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, PolicyParams, Prompts, Scored
from tests.models.mixture_test import exact_log_probs

TAU = 0.3


@pytest.fixture(scope='module')
def params(tiny_params, tiny_policy):
  third = jax.jit(tiny_policy.init)(jax.random.PRNGKey(2))
  return PolicyParams(online=tiny_params[0], ema=third, reference=tiny_params[1])


@pytest.fixture(scope='module')
def prompt(tiny_prompts):
  return Prompts(tiny_prompts.tokens[:1], tiny_prompts.index[:1])


@pytest.fixture(scope='module')
def table(language):
  """A preference with cycles: antisymmetric noise."""
  noise = np.random.default_rng(0).normal(size=(len(language),) * 2)
  return jax.nn.sigmoid(2 * (noise - noise.T)).astype(jnp.float32)


def log_probs(tiny_policy, params, prompt, language):
  return tiny_policy.log_prob(params, prompt, jnp.asarray(language)).sum(-1)


def alternative_probs(method, tiny_policy, params, prompt, language):
  if method == 'nash_md_pg':
    logp = exact_log_probs(tiny_policy, params, prompt, language, 0.4)
  else:
    name = {'self_play': 'online', 'nash_ema_pg': 'ema', 'best_response': 'reference'}[method]
    logp = log_probs(tiny_policy, getattr(params, name), prompt, language)
  return jnp.exp(jnp.asarray(logp))


def assert_same_gradient(estimated, exact):
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(exact))
  assert scale > 1e-2  # There is something to compare.
  for a, b in zip(jax.tree.leaves(estimated), jax.tree.leaves(exact), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def kl(logp, reference):
  return jnp.sum(jnp.exp(logp) * (logp - reference))


@pytest.mark.parametrize('method', ['self_play', 'nash_md_pg', 'nash_ema_pg', 'best_response'])
def test_expected_estimator_is_the_exact_gradient(
  method, tiny_policy, params, prompt, language, table
):
  """E_{y ~ π, y' ~ π'}[∇ loss] = −∇[P(π ≻ sg π') − τ KL(π‖μ)], over all 85 × 85 pairs."""
  make = getattr(algorithms, method)
  make = functools.partial(make, beta=0.4) if method == 'nash_md_pg' else make
  algorithm = make(tiny_policy, lambda *_: None, tau=TAU)
  other = alternative_probs(method, tiny_policy, params, prompt, language)
  size = len(language)
  first, second = (x.reshape(-1) for x in np.meshgrid(range(size), range(size), indexing='ij'))
  comparison = Comparison(
    prompt,
    as_rollout(jnp.asarray(language[first])),
    as_rollout(jnp.asarray(language[second])),
    table[first, second],
    tiny_policy.log_prob(params.reference, prompt, jnp.asarray(language[first])),
  )
  policy = jnp.exp(log_probs(tiny_policy, params.online, prompt, language))
  weight = policy[first] * other[second]

  def expected_loss(online):
    return jnp.sum(jax.lax.stop_gradient(weight) * algorithm.loss(online, comparison).value)

  def objective(online):
    logp = log_probs(tiny_policy, online, prompt, language)
    reference = log_probs(tiny_policy, params.reference, prompt, language)
    return -(jnp.exp(logp) @ table @ other - TAU * kl(logp, reference))

  assert_same_gradient(jax.grad(expected_loss)(params.online), jax.grad(objective)(params.online))


def test_expected_rlhf_estimator_is_the_exact_gradient(tiny_policy, params, prompt, language):
  algorithm = algorithms.rlhf(tiny_policy, lambda *_: None, tau=TAU)
  reward = jnp.asarray(np.random.default_rng(1).normal(size=len(language)), jnp.float32)
  tokens = jnp.asarray(language)
  reference_logp = tiny_policy.log_prob(params.reference, prompt, tokens)
  scored = Scored(prompt, as_rollout(tokens), reward, reference_logp, reward - 0.7)
  policy = jnp.exp(log_probs(tiny_policy, params.online, prompt, language))

  def expected_loss(online):
    return jnp.sum(jax.lax.stop_gradient(policy) * algorithm.loss(online, scored).value)

  def objective(online):
    logp = log_probs(tiny_policy, online, prompt, language)
    return -(jnp.exp(logp) @ reward - TAU * kl(logp, reference_logp.sum(-1)))

  assert_same_gradient(jax.grad(expected_loss)(params.online), jax.grad(objective)(params.online))


def test_leave_one_out_is_unbiased_and_shrinks_the_variance():
  """Over all samples of three from a distribution: E[∇log π · payoff] stays, with less spread."""
  p = np.array([0.2, 0.5, 0.3])
  payoff = np.array([3.0, 4.0, 6.0])
  score = np.eye(3)[0] - p[0]  # ∂ log π(y) / ∂ logit of the first response.
  draws = np.stack(np.meshgrid(*[range(3)] * 3, indexing='ij'), -1).reshape(-1, 3)
  weight = p[draws].prod(-1)
  plain = (score[draws] * payoff[draws]).mean(-1)
  groups = algorithms.leave_one_out(jnp.asarray(payoff[draws].reshape(-1), jnp.float32), 3)
  better = (score[draws] * np.asarray(groups).reshape(-1, 3)).mean(-1)
  np.testing.assert_allclose(weight @ better, weight @ plain, rtol=1e-5)
  assert weight @ better**2 < 0.3 * (weight @ plain**2)


@pytest.mark.parametrize('num_samples', [1, 3])
def test_sampled_rollouts_carry_the_reference_and_the_judges_answer(
  num_samples, tiny_policy, params, tiny_prompts
):
  def judge(prompts, response, alternative):
    return jnp.where(
      response[:, 0] == alternative[:, 0], 0.5, 1.0 * (response[:, 0] > alternative[:, 0])
    )

  algorithm = algorithms.nash_md_pg(tiny_policy, judge, tau=TAU, beta=0.5, num_samples=num_samples)
  comparison = algorithm.judge(algorithm.sample(params, tiny_prompts, jax.random.PRNGKey(0)))
  assert comparison.preference.shape == (2 * num_samples,)
  np.testing.assert_allclose(
    comparison.reference_token_logp,
    tiny_policy.log_prob(params.reference, tiny_prompts, comparison.response.tokens),
  )
  np.testing.assert_allclose(
    comparison.response.token_logp,
    tiny_policy.log_prob(params.online, tiny_prompts, comparison.response.tokens),
    atol=1e-5,
  )
  losses = algorithm.loss(params.online, comparison)
  assert set(losses.metrics) == {'kl_to_reference', 'entropy', 'preference'}


def test_negative_tau_is_refused(tiny_policy):
  with pytest.raises(ValueError, match='tau must be at least 0, got -1'):
    algorithms.self_play(tiny_policy, lambda *_: None, tau=-1.0)


def test_two_response_game_has_logistic_solution():
  """logit π*(y₁) = logit μ(y₁) + (P(y₁ ≻ y₂) − 1/2)/τ for self-play, by exact ascent on a table."""
  p, tau, reference = 0.8, 0.25, jnp.log(jnp.array([0.3, 0.7]))
  table = jnp.array([[0.5, p], [1 - p, 0.5]])

  def ascend(logits, _):
    def objective(logits):
      logp = jax.nn.log_softmax(logits)
      other = jax.lax.stop_gradient(jnp.exp(logp))
      return jnp.exp(logp) @ table @ other - tau * kl(logp, reference)

    return logits + 2.0 * jax.grad(objective)(logits), None

  logits, _ = jax.lax.scan(ascend, reference, length=400)
  expected = float(reference[0] - reference[1]) + (p - 0.5) / tau
  assert float(logits[0] - logits[1]) == pytest.approx(expected, abs=1e-4)


def test_players_of_the_table():
  assert mixture.between(0.125) == {'online': 0.875, 'reference': 0.125}
