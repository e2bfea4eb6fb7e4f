"""Every method's estimator against the exact gradient, by enumeration of a whole language."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import algorithms, losses
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, Policy, PolicyParams, Prompts, Scored
from tests.models.mixture_test import exact_log_probs

TAU = 0.3


@pytest.fixture(scope='module')
def params(tiny_params, tiny_policy):
  third = jax.jit(tiny_policy.init)(jax.random.PRNGKey(2))
  return PolicyParams(tiny_params[0], {'average': third, 'reference': tiny_params[1]})


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
    name = {'self_play': 'online', 'nash_ema_pg': 'average', 'best_response': 'reference'}[method]
    logp = log_probs(tiny_policy, params.named(name), prompt, language)
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
  own = {'nash_md_pg': {'beta': 0.4}, 'nash_ema_pg': {'decay': 0.9}}
  make = functools.partial(make, **own.get(method, {}))
  algorithm = make(tiny_policy, lambda *_: None, tau=TAU)
  other = alternative_probs(method, tiny_policy, params, prompt, language)
  size = len(language)
  first, second = (x.reshape(-1) for x in np.meshgrid(range(size), range(size), indexing='ij'))
  comparison = Comparison(
    prompt,
    as_rollout(jnp.asarray(language[first])),
    as_rollout(jnp.asarray(language[second])),
    table[first, second],
    tiny_policy.log_prob(params.named('reference'), prompt, jnp.asarray(language[first])),
  )
  policy = jnp.exp(log_probs(tiny_policy, params.online, prompt, language))
  weight = policy[first] * other[second]

  def expected_loss(online):
    return jnp.sum(jax.lax.stop_gradient(weight) * algorithm.loss(online, comparison).value)

  def objective(online):
    logp = log_probs(tiny_policy, online, prompt, language)
    reference = log_probs(tiny_policy, params.named('reference'), prompt, language)
    return -(jnp.exp(logp) @ table @ other - TAU * kl(logp, reference))

  assert_same_gradient(jax.grad(expected_loss)(params.online), jax.grad(objective)(params.online))


def test_expected_rlhf_estimator_is_the_exact_gradient(tiny_policy, params, prompt, language):
  algorithm = algorithms.rlhf(tiny_policy, lambda *_: None, tau=TAU)
  reward = jnp.asarray(np.random.default_rng(1).normal(size=len(language)), jnp.float32)
  tokens = jnp.asarray(language)
  reference_logp = tiny_policy.log_prob(params.named('reference'), prompt, tokens)
  scored = Scored(prompt, as_rollout(tokens), reward, reference_logp, reward - 0.7)
  policy = jnp.exp(log_probs(tiny_policy, params.online, prompt, language))

  def expected_loss(online):
    return jnp.sum(jax.lax.stop_gradient(policy) * algorithm.loss(online, scored).value)

  def objective(online):
    logp = log_probs(tiny_policy, online, prompt, language)
    return -(jnp.exp(logp) @ reward - TAU * kl(logp, reference_logp.sum(-1)))

  assert_same_gradient(jax.grad(expected_loss)(params.online), jax.grad(objective)(params.online))


def test_expected_gradient_of_reused_rollouts(tiny_policy, params, prompt, language, table):
  """Drawn by another policy, and counted by the exact ratio: E_{y ~ π_b}[∇ loss] is the gradient at π_θ."""
  algorithm = algorithms.self_play(
    tiny_policy, lambda *_: None, tau=TAU, reuse=losses.exact_ratio()
  )
  assert algorithm.reusable
  tokens = jnp.asarray(language)
  reference_logp = tiny_policy.log_prob(params.named('reference'), prompt, tokens)
  drawn_by = reference_logp  # π_b is μ.
  opponent = jnp.exp(log_probs(tiny_policy, params.online, prompt, language))
  response = as_rollout(tokens)._replace(token_logp=drawn_by)
  comparison = Comparison(prompt, response, response, table @ opponent, reference_logp)

  def expected_loss(online):
    weight = jnp.exp(drawn_by.sum(-1))
    return jnp.sum(weight * algorithm.loss(online, comparison).value)

  def objective(online):
    logp = log_probs(tiny_policy, online, prompt, language)
    return -(jnp.exp(logp) @ table @ opponent - TAU * kl(logp, reference_logp.sum(-1)))

  assert_same_gradient(jax.grad(expected_loss)(params.online), jax.grad(objective)(params.online))


def test_clipped_ratio_is_a_trust_region():
  """At the policy that drew, the usual gradient; further on, none for a token that gained enough."""
  behaviour = jnp.log(jnp.array([[0.5, 0.4], [0.2, 0.9]]))
  mask, advantage = jnp.ones((2, 2), bool), jnp.array([1.0, -1.0])

  def gradient(token_logp, **settings):
    loss = lambda x: jnp.sum(
      losses.policy_gradient_loss(x, behaviour, advantage, mask, tau=0.0, **settings).value
    )
    return jax.grad(loss)(token_logp)

  reuse = {'behaviour_token_logp': behaviour, 'reuse': losses.clipped_ratio(0.2)}
  np.testing.assert_allclose(gradient(behaviour, **reuse), gradient(behaviour), rtol=1e-6)
  moved = behaviour + jnp.log(jnp.array([[1.3, 0.7], [1.3, 0.7]]))
  # The first gains where it is likelier, the second where it is less likely: there they are held.
  expected = [[0.0, -0.7], [1.3, 0.0]]
  np.testing.assert_allclose(gradient(moved, **reuse), expected, rtol=1e-5)
  with pytest.raises(ValueError, match='epsilon must be positive, got 0'):
    losses.clipped_ratio(0.0)


def test_truncated_rollouts_are_not_reused(tiny_policy):
  truncated = tiny_policy._replace(untruncated=False)
  with pytest.raises(ValueError, match='truncated cannot be reused'):
    algorithms.self_play(truncated, lambda *_: None, tau=0.1, reuse=losses.exact_ratio())


def test_leave_one_out_is_unbiased_and_shrinks_the_variance():
  """Over all samples of three from a distribution: E[∇log π · payoff] stays, with less spread."""
  p = np.array([0.2, 0.5, 0.3])
  payoff = np.array([3.0, 4.0, 6.0])
  score = np.eye(3)[0] - p[0]  # ∂ log π(y) / ∂ logit of the first response.
  draws = np.stack(np.meshgrid(*[range(3)] * 3, indexing='ij'), -1).reshape(-1, 3)
  weight = p[draws].prod(-1)
  plain = (score[draws] * payoff[draws]).mean(-1)
  groups = losses.leave_one_out(jnp.asarray(payoff[draws].reshape(-1), jnp.float32), 3)
  better = (score[draws] * np.asarray(groups).reshape(-1, 3)).mean(-1)
  np.testing.assert_allclose(weight @ better, weight @ plain, rtol=1e-5)
  assert weight @ better**2 < 0.3 * (weight @ plain**2)


# One word out of three, tokens 1 to 3; θ are logits.
WORDS = np.array([[1], [2], [3]], np.int32)
THETA, MU = np.array([0.3, -0.5, 0.1], np.float32), np.array([-0.2, 0.4, 0.0], np.float32)
CYCLE = np.array([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]], np.float32)


def _one_word_policy():
  def log_prob(params, prompts, tokens):
    return jax.nn.log_softmax(params)[tokens - 1]

  return Policy(lambda rng: jnp.asarray(THETA), log_prob, None, None)


def _cycle_judge(prompts, response, alternative):
  return jnp.asarray(CYCLE)[response[:, 0] - 1, alternative[:, 0] - 1]


def _all_groups(method, other, k, all_pairs):
  """The gradient that each group of k responses, and of k alternatives, gives; and how likely the group is."""
  algorithm = method(_one_word_policy(), _cycle_judge, num_samples=k, all_pairs=all_pairs)
  each_other = len(algorithm.mixtures) == 1
  draws = np.stack(np.meshgrid(*[range(3)] * (k if each_other else 2 * k), indexing='ij'), -1)
  draws = draws.reshape(-1, draws.shape[-1])
  pi = jax.nn.softmax(THETA)
  weight = np.prod(pi[draws[:, :k]], axis=-1)
  second = draws[:, :k] if each_other else draws[:, k:]
  if not each_other:
    weight = weight * np.prod(np.asarray(other)[second], axis=-1)
  size = len(draws)
  tokens = [as_rollout(jnp.asarray(WORDS[x.reshape(-1)])) for x in (draws[:, :k], second)]
  prompts = Prompts(jnp.zeros((size, 1), jnp.int32), jnp.zeros(size, jnp.int32))
  reference = jax.nn.log_softmax(MU)[tokens[0].tokens - 1]
  batch = algorithm.score(Comparison(prompts, *tokens, None, reference))

  def of_groups(theta):
    return algorithm.loss(theta, batch).value.reshape(size, k).mean(axis=-1)

  return np.asarray(jax.jacobian(of_groups)(jnp.asarray(THETA))), np.asarray(weight)


METHODS_OF_GROUPS = {
  'self_play': (functools.partial(algorithms.self_play, tau=TAU), THETA),
  'nash_md_pg': (
    functools.partial(algorithms.nash_md_pg, tau=TAU, beta=0.4),
    0.6 * THETA + 0.4 * MU,
  ),
  'best_response': (functools.partial(algorithms.best_response, tau=TAU), MU),
}


@pytest.mark.parametrize('all_pairs', [True, False])
@pytest.mark.parametrize('k', [1, 2, 3])
@pytest.mark.parametrize('method', METHODS_OF_GROUPS)
def test_expected_gradient_of_a_group_is_the_exact_one(method, k, all_pairs):
  """Over every group of k responses and every one of their opponents."""
  make, logits = METHODS_OF_GROUPS[method]
  other = jax.nn.softmax(logits)
  gradients, weight = _all_groups(make, other, k, all_pairs)

  def objective(theta):
    logp, reference = jax.nn.log_softmax(theta), jax.nn.log_softmax(MU)
    return -(jnp.exp(logp) @ CYCLE @ other - TAU * kl(logp, reference))

  np.testing.assert_allclose(weight @ gradients, jax.grad(objective)(THETA), atol=3e-7)


def test_expected_gradient_of_two_divided_by_their_deviation():
  """That of the game of (P − ½)/(|P − ½| + ε), twice as strong: as ε → 0, of majorities at τ/2."""
  epsilon = 0.05
  make = functools.partial(algorithms.self_play, tau=TAU, deviation=epsilon)
  gradients, weight = _all_groups(make, None, 2, all_pairs=True)
  margin = CYCLE - 0.5
  payoff = margin / (np.abs(margin) + epsilon)

  def objective(theta):
    logp, reference = jax.nn.log_softmax(theta), jax.nn.log_softmax(MU)
    own = jax.lax.stop_gradient(jnp.exp(logp))
    return -(jnp.exp(logp) @ payoff @ own - TAU * kl(logp, reference))

  np.testing.assert_allclose(weight @ gradients, jax.grad(objective)(THETA), atol=1e-6)


def test_deviation_of_the_rows_that_count():
  payoff = jnp.array([0.2, 0.9, 0.4, 0.5, 0.6, 0.1])
  counted = jnp.array([True, True, False, True, True, True])
  found = losses.divide_by_deviation(payoff - 0.5, payoff, 3, 0.1, counted)
  spread = [np.std([0.2, 0.9]), np.std([0.5, 0.6, 0.1])]
  expected = (payoff - 0.5) / (np.repeat(spread, 3) + 0.1)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  alike = losses.divide_by_deviation(jnp.zeros(3), jnp.full(3, 0.5), 3, 0.1)
  np.testing.assert_array_equal(alike, 0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'deviation': 0.0, 'num_samples': 2}, 'deviation must be positive, got 0.0'),
    ({'deviation': 0.1}, 'deviation needs groups .* set num_samples to 2 or more'),
    ({'deviation': 0.1, 'num_samples': 2, 'all_pairs': False}, 'and all_pairs to True'),
  ],
)
def test_error_of_a_deviation_without_a_group(settings, message, tiny_policy):
  with pytest.raises(ValueError, match=message):
    algorithms.self_play(tiny_policy, lambda *_: None, tau=0.1, **settings)


def test_error_of_a_pull_that_is_too_strong(tiny_policy):
  with pytest.raises(ValueError, match=r'eta must be at least tau: got eta = 0\.1, tau = 0\.2'):
    algorithms.mnpo(tiny_policy, lambda *_: None, tau=0.2, eta=0.1, size=2, refresh_every=1)


@pytest.mark.parametrize('method', METHODS_OF_GROUPS)
def test_all_pairs_have_less_variance_than_single_ones(method):
  """With three responses to a prompt; the same draws but for self-play, which draws half as many."""
  make, logits = METHODS_OF_GROUPS[method]
  spread = []
  for all_pairs in (True, False):
    gradients, weight = _all_groups(make, jax.nn.softmax(logits), 3, all_pairs)
    mean = weight @ gradients
    spread.append(weight @ np.sum(np.square(gradients - mean), axis=-1))
  assert spread[0] < 0.8 * spread[1]


@pytest.mark.parametrize('num_samples', [1, 3])
def test_sampled_rollouts_carry_the_reference_and_the_judges_verdicts(
  num_samples, tiny_policy, params, tiny_prompts
):
  def judge(prompts, response, alternative):
    return jnp.where(
      response[:, 0] == alternative[:, 0], 0.5, 1.0 * (response[:, 0] > alternative[:, 0])
    )

  algorithm = algorithms.nash_md_pg(tiny_policy, judge, tau=TAU, beta=0.5, num_samples=num_samples)
  comparison = algorithm.score(algorithm.sample(params, tiny_prompts, jax.random.PRNGKey(0)))
  assert comparison.preference.shape == (2 * num_samples,)
  np.testing.assert_allclose(
    comparison.reference_token_logp,
    tiny_policy.log_prob(params.named('reference'), tiny_prompts, comparison.response.tokens),
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


def test_two_response_game_has_a_logistic_solution(tiny_policy):
  """logit π*(y₁) = logit μ(y₁) + (P(y₁ ≻ y₂) − ½)/τ for every method that meets π*_τ, by exact ascent on its own loss.

  The policy has two responses, [2, EOS] and [3, EOS]; between any two of its own, P − ½ is that of the first symbols.
  """
  p, tau, start = 0.8, 0.25, jnp.log(jnp.array([0.3, 0.7]))
  responses = jnp.array([[2, 1, 0], [3, 1, 0]])
  prompt = Prompts(jnp.ones((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  preference = jnp.array([[0.5, p], [1 - p, 0.5]])

  def log_prob(logits, prompts, tokens):
    chosen = jax.nn.log_softmax(logits)[(tokens[:, 0] == 3).astype(int)]
    return jnp.pad(chosen[:, None], [(0, 0), (0, tokens.shape[1] - 1)])

  two = tiny_policy._replace(log_prob=log_prob, init=lambda rng: start)
  for algorithm in (
    algorithms.self_play(two, lambda *_: None, tau=tau),
    algorithms.nash_md_pg(two, lambda *_: None, tau=tau, beta=0.0),
  ):
    reference_logp = log_prob(start, prompt, responses)
    rollout = as_rollout(responses)

    def ascend(logits, _, algorithm=algorithm, logp=reference_logp, rollout=rollout):
      own = jnp.exp(jax.nn.log_softmax(logits))
      batch = Comparison(prompt, rollout, rollout, preference @ own, logp)
      loss = lambda x: jnp.sum(own * algorithm.loss(x, batch).value)
      return logits - 2.0 * jax.grad(loss)(logits), None

    logits, _ = jax.lax.scan(ascend, start, length=400)
    expected = float(start[0] - start[1]) + (p - 0.5) / tau
    assert float(logits[0] - logits[1]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
  ('make', 'mixtures', 'anchor', 'sets'),
  [
    (functools.partial(algorithms.self_play, tau=0.1), ({'online': 1.0},) * 2, ['reference'], []),
    (
      functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.125),
      ({'online': 1.0}, {'online': 0.875, 'reference': 0.125}),
      ['reference'],
      [],
    ),
    (
      functools.partial(algorithms.nash_mp, tau=0.1, eta=1.0, decay=0.9),
      ({'online': 1.0}, {'average': 1.0}),
      ['average', 'reference'],
      ['average'],
    ),
    (
      functools.partial(algorithms.egpo, tau=0.1),
      ({'online': 1.0}, {'online': 1.0}, {'half_step': 1.0}),
      ['reference'],
      ['half_step'],
    ),
    (
      functools.partial(algorithms.inpo, tau=0.1, eta=0.5, refresh_every=3),
      ({'snapshot': 1.0},) * 2,
      ['reference', 'snapshot'],
      ['snapshot'],
    ),
    (
      functools.partial(algorithms.onpo, eta=0.5, refresh_every=3),
      ({'snapshot': 1.0},) * 2,
      ['centre'],
      ['centre', 'snapshot'],
    ),
    (
      functools.partial(algorithms.rspo, tau=0.1, eta=0.5, refresh_every=3),
      ({'snapshot': 1.0}, {'reference': 1.0}, {'snapshot': 1.0}),
      ['snapshot'],
      ['snapshot'],
    ),
  ],
)
def test_mixtures_anchor_and_sets_of_a_method(make, mixtures, anchor, sets, tiny_policy):
  """What a method declares is what its sampler plays: no other set is ever looked up."""
  algorithm = make(tiny_policy, lambda prompts, y, y2: jnp.full(y.shape[0], 0.5))
  assert algorithm.mixtures == mixtures
  assert sorted(algorithm.anchor) == anchor
  assert sorted(algorithm.sets) == sorted([*sets, 'reference'])
  asked = set()

  class Sets(dict):
    def __getitem__(self, name):
      asked.add(name)
      return 'params'

  def play(params, mixtures, prompts, rng, num_samples):
    rollout = as_rollout(jnp.ones((1, 3), jnp.int32))._replace(token_logp=jnp.zeros((1, 3)))
    return tuple(rollout for _ in mixtures)

  watched = tiny_policy._replace(
    play=play, log_prob=lambda params, prompts, tokens: jnp.zeros(tokens.shape), untruncated=False
  )
  method = make(watched, lambda prompts, y, y2: jnp.full(y.shape[0], 0.5))
  prompt = Prompts(jnp.ones((1, 1), jnp.int32), jnp.zeros(1, jnp.int32))
  method.sample(PolicyParams('online', Sets()), prompt, jax.random.PRNGKey(0))
  assert asked <= set(algorithm.sets)
  assert set(anchor) <= asked | {'online'}
