"""Policy gradient against the hardest annotators: the estimator by a slow twin, what it leaves out, and its bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax import algorithms, losses
from nlhf_jax.games import aggregation
from nlhf_jax.types import AllPairsJudge, FixedPoint, PolicyParams
from tests.models.mixture_test import exact_log_probs

TAU = 0.2


def slow_twin(p, log_weight, tau):
  """Payoff and baseline of each response to one prompt, term by term. p [k, m, U]."""
  k, m, num_annotators = p.shape
  payoffs, baselines = np.full(k, np.nan), np.full(k, np.nan)
  for i in range(k):
    terms = []
    for j in range(m):
      for u in range(num_annotators):
        others = [p[n, j, u] for n in range(k) if n != i and not np.isnan(p[n, j, u])]
        if others and not np.isnan(p[i, j, u]):
          weight = np.exp(log_weight[j, u] - np.mean(others) / tau)
          terms.append((weight, p[i, j, u], np.mean(others)))
    if terms:
      weights, own, rest = np.array(terms).T
      payoffs[i], baselines[i] = weights @ own / weights.sum(), weights @ rest / weights.sum()
  return payoffs, baselines


@pytest.mark.parametrize('missing', [0.0, 0.5, 0.85])
def test_estimator_against_a_slow_twin(missing):
  rng = np.random.default_rng(0)
  p = np.where(rng.random((4, 5, 3, 2)) < missing, np.nan, rng.random((4, 5, 3, 2)))
  log_weight = rng.normal(size=(4, 3, 2))
  found = losses.hardest_preference(jnp.asarray(p), jnp.asarray(log_weight), tau=TAU)
  expected = [slow_twin(p[b], log_weight[b], TAU) for b in range(4)]
  for n in range(2):
    np.testing.assert_allclose(found[n], [x[n] for x in expected], rtol=2e-5)
  assert np.isnan(found[0]).any() == (missing > 0.8)


def test_response_moves_neither_its_opponents_nor_its_baseline():
  rng = np.random.default_rng(0)
  p = rng.random((1, 4, 4, 2)).astype(np.float32)
  other = p.copy()
  other[0, 1] = rng.random((4, 2))
  estimate = functools.partial(losses.hardest_preference, log_weight=jnp.zeros((1, 4, 2)), tau=TAU)
  (payoff, baseline), (_, changed) = estimate(jnp.asarray(p)), estimate(jnp.asarray(other))
  assert baseline[0, 1] == changed[0, 1]
  assert baseline[0, 0] != changed[0, 0]
  # The payoff is linear in its own row.
  both = estimate(jnp.asarray((p + other) / 2))[0]
  np.testing.assert_allclose(both[0, 1], (payoff + estimate(jnp.asarray(other))[0])[0, 1] / 2, rtol=1e-6)  # fmt: skip


def test_limits_of_the_opponents_temperature():
  """τ' → ∞: all opponents and annotators alike; τ' → 0: the hardest for the others alone."""
  p = np.random.default_rng(0).random((1, 3, 4, 2)).astype(np.float32)
  estimate = functools.partial(losses.hardest_preference, jnp.asarray(p), jnp.zeros((1, 4, 2)))
  np.testing.assert_allclose(estimate(tau=1e6)[0][0], p[0].mean(axis=(1, 2)), rtol=1e-4)
  for i in range(3):
    others = np.delete(p[0], i, axis=0).mean(axis=0)
    hardest = np.unravel_index(np.argmin(others), others.shape)
    np.testing.assert_allclose(estimate(tau=1e-4)[0][0, i], p[0, i][hardest], rtol=1e-4)


@pytest.mark.parametrize('beta', [0.0, 1.0])
def test_bias_falls_with_samples(beta):
  """At the saddle point, whoever draws the opponents: the advantage of a response in the mean, and the exact one."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(3, 6, 6))
  p = special.expit(2 * (noise - noise.swapaxes(1, 2)))
  game = aggregation.make(p, [0.5, 0.3, 0.2], rng.dirichlet(2 * np.ones(6)), TAU)
  policy, opponent = aggregation.regularised_maximin(game)
  payoff = np.einsum('uik,uk->i', p, opponent)
  drawn_by = game.reference if beta else policy
  log_weight = np.log(game.reference / drawn_by)[:, None] + np.log(game.weights)

  def advantages(key, k):
    first, second = jax.random.split(key)
    i = jax.random.categorical(first, jnp.log(policy), shape=(k - 1,))
    j = jax.random.categorical(second, jnp.log(drawn_by), shape=(k,))
    # Every response in turn is the first, whom the others judge.
    rows = jnp.concatenate([jnp.arange(6)[:, None], jnp.broadcast_to(i, (6, k - 1))], axis=1)
    table = jnp.asarray(p.transpose(1, 2, 0))[rows[:, :, None], j]
    weights = jnp.broadcast_to(jnp.asarray(log_weight)[j], (6, k, 3))
    own, rest = losses.hardest_preference(table, weights, tau=TAU)
    return (own - rest)[:, 0]

  def bias(k):
    keys = jax.random.split(jax.random.key(1), 4000)
    found = np.asarray(jax.jit(jax.vmap(functools.partial(advantages, k=k)))(keys)).mean(axis=0)
    # No gradient has what is the same for all responses.
    off = found - payoff
    return np.sqrt(policy @ (off - policy @ off) ** 2)

  few, many = bias(4), bias(32)
  assert few > 2 * many
  assert many < 0.02


def apart(missing, prompts, y, y2):
  """P_u of three annotators, who do not vote on the share `missing`."""
  rows = [np.asarray(x, np.int64).reshape(len(prompts.tokens), -1, 3) for x in (y, y2)]
  taste = np.array([[1.0, 0.5, 0.25], [-1.0, 0.3, 0.1], [0.2, -0.6, 0.4]])
  liking = [x @ taste.T for x in rows]
  p = special.expit(0.4 * (liking[0][:, :, None] - liking[1][:, None]))
  code = [x @ np.array([7919, 104729, 1299709]) for x in rows]
  number = (code[0][:, :, None, None] + 31 * code[1][:, None, :, None] + 57 * np.arange(3)) % 97
  return jnp.asarray(np.where(number < 97 * missing, np.nan, p), jnp.float32)


def judge(missing=0.0):
  return AllPairsJudge(None, None, functools.partial(apart, missing))


WEIGHTS = (0.6, 0.3, 0.1)


@pytest.mark.parametrize(('beta', 'missing'), [(0.0, 0.0), (0.4, 0.4), (1.0, 0.0)])
def test_rollout_is_weighed_as_the_reference_would_draw_it(
  beta, missing, tiny_policy, tiny_params, tiny_prompts, language
):
  """Responses and opponents of the method itself; who drew the opponents, by enumeration."""
  k = 4
  method = algorithms.blackwell_pg(
    tiny_policy, judge(missing), tau=0.1, tau_opponent=TAU, beta=beta, annotator_weights=WEIGHTS,
    num_samples=k,
  )  # fmt: skip
  params = PolicyParams(tiny_params[0], {'reference': tiny_params[1]})
  found = method.score(jax.jit(method.sample)(params, tiny_prompts, jax.random.PRNGKey(3)))
  y, y2 = found.response.tokens, found.alternative.tokens
  table = np.asarray(apart(missing, tiny_prompts, y, y2))
  for b in range(2):
    prompt = jax.tree.map(lambda x, b=b: x[b : b + 1], tiny_prompts)
    drawn = exact_log_probs(tiny_policy, params, prompt, language, beta)
    reference = exact_log_probs(tiny_policy, params, prompt, language, 1.0)
    rows = [language.tolist().index(row.tolist()) for row in np.asarray(y2)[b * k : (b + 1) * k]]
    log_weight = (reference - drawn)[rows][:, None] + np.log(WEIGHTS)
    payoff, baseline = slow_twin(table[b], log_weight, TAU)
    own = slice(b * k, (b + 1) * k)
    np.testing.assert_allclose(found.preference[own], payoff, rtol=1e-4)
    np.testing.assert_allclose(found.advantage[own], np.nan_to_num(payoff - baseline), atol=1e-5)
    np.testing.assert_allclose(found.pair_preference[own], np.nanmean(table[b], axis=-1), rtol=1e-5)
  assert (found.votes_missing is None) == (missing == 0)
  result = method.loss(params.online, found)
  assert np.isfinite(result.value).all()
  np.testing.assert_array_equal(result.weight, ~np.isnan(np.asarray(found.preference)))
  assert method.fixed_point == FixedPoint(0.1, 0.0, TAU, WEIGHTS)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_samples': 1}, 'num_samples must be at least 2'),
    ({'tau_opponent': 0.0}, 'tau_opponent must be positive, got 0.0'),
    ({'beta': 1.5}, r'beta must be in \[0, 1\]'),
    ({'annotator_weights': (1.0, -1.0)}, 'weight of annotator 1 must be positive, got -1.0'),
  ],
)
def test_mistake_is_one_line(settings, message, tiny_policy):
  with pytest.raises(ValueError, match=message):
    algorithms.blackwell_pg(tiny_policy, judge(), **({'tau': 0.1, 'num_samples': 4} | settings))
