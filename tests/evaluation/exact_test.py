"""Exact play against brute force; the fixed points of Nash-MD satisfy their equation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.evaluation import exact
from nlhf_jax.games import fits, sources
from nlhf_jax.types import FixedPoint, Prompts


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.75, 1.0])
def test_fixed_points(beta):
  """π_β ∝ μ exp(P(y ≻ π_β^{1−β} μ^β)/τ), over the responses that there are and "anything else"."""
  rng, tau = np.random.default_rng(0), 0.2
  scores = rng.normal(size=(2, 3, 6))
  scores[:, :, 4] = -np.inf  # No response to either prompt.
  reference = special.log_softmax(rng.normal(size=(2, 6)), axis=-1) + np.log(0.9)
  point = FixedPoint(tau, beta)
  found = exact.fixed_points(exact.make_games(scores, reference, [point]), point)
  for b in range(2):
    valid = np.isfinite(scores[b, 0])
    assert np.isneginf(found[b, ~valid]).all()
    rest = np.full((3, 1), -np.inf)
    preference = sources.from_scores(np.concatenate([scores[b][:, valid], rest], axis=1))
    mu = exact._with_rest(reference[b, valid])
    policy = exact._with_rest(found[b, valid])
    mixture = special.softmax((1 - beta) * np.log(policy) + beta * np.log(mu))
    reply = special.softmax(np.log(mu) + preference @ mixture / tau)
    np.testing.assert_allclose(policy, reply, atol=1e-8)


def test_fixed_point_of_a_reward():
  """μ exp(r/τ), r the best Bradley-Terry fit."""
  rng = np.random.default_rng(0)
  preference = sources.from_scores(rng.normal(size=(3, 5)))
  mu = rng.dirichlet(np.ones(5))
  found = exact.fixed_point(preference, mu, FixedPoint(0.5, None))
  expected = special.softmax(np.log(mu) + fits.bradley_terry(preference) / 0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_distance_to_the_fixed_point():
  """The fixed point itself is at it; another policy as far as its probabilities say; SFT has none."""
  rng = np.random.default_rng(2)
  scores = rng.integers(0, 5, (3, 3, 4)).astype(np.float32)
  reference = np.log(rng.dirichlet(np.ones(4), size=3) * 0.99)
  point = FixedPoint(0.1, 0.0)
  prompt_games = exact.make_games(scores, reference, [point, None])
  ideal = exact.fixed_points(prompt_games, point)
  other = np.log(rng.dirichlet(np.ones(4), size=3) * 0.98)
  log_probs = np.stack([ideal, other, reference])
  found = exact.evaluate(log_probs, prompt_games, 0.1, [point, point, None])
  np.testing.assert_allclose(found.total_variation[:, 0], 0, atol=1e-6)
  np.testing.assert_allclose(found.duality_gap[:, 0], 0, atol=1e-6)
  np.testing.assert_allclose(found.kl_to_fixed_point[:, 0], 0, atol=1e-6)
  p, q = np.exp(other), np.exp(ideal)
  rest = np.abs(p.sum(-1) - q.sum(-1))
  np.testing.assert_allclose(
    found.total_variation[:, 1], 0.5 * (np.abs(p - q).sum(-1) + rest), atol=1e-6
  )
  np.testing.assert_allclose(found.worst_case_of_fixed_point[:, 1], found.worst_case[:, 0])
  assert np.isnan(found.total_variation[:, 2]).all()
  table = exact.table(found, ['fixed', 'other', 'SFT'])
  assert table['all']['total_variation']['mean'][2] is None
  json.dumps(table, allow_nan=False)


def test_brute_force():
  """Worst case, gap and preference of two policies on small games, by enumeration and by a numerical optimiser."""
  rng = np.random.default_rng(1)
  scores = rng.integers(0, 4, (2, 3, 5)).astype(np.float32)
  scores[1, :, 4] = -np.inf
  log_probs = np.log(rng.dirichlet(np.ones(5), size=(2, 2)) * 0.95)
  reference, tau = np.log(np.full((2, 5), 0.19)), 0.1
  result = exact.evaluate(log_probs, exact.make_games(scores, reference), tau)
  for b in range(2):
    size = 5 - b
    table = np.full((size + 1, size + 1), 0.5)
    for i in range(size):
      table[i, size], table[size, i] = 1.0, 0.0
      for j in range(size):
        votes = [(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for s in scores[b]]
        table[i, j] = np.mean(votes)
    p = [np.append(np.exp(x[b, :size]), 1 - np.exp(x[b, :size]).sum()) for x in log_probs]
    mu = np.append(np.exp(reference[b, :size]), 1 - np.exp(reference[b, :size]).sum())
    np.testing.assert_allclose(result.preference[b, 0, 1], p[0] @ table @ p[1], atol=1e-9)
    np.testing.assert_allclose(
      result.worst_case[b, 0], min(p[0] @ table[:, y] for y in range(size + 1))
    )
    kl = lambda q, mu=mu: np.sum(q * np.log(q / mu))

    def loss(logits, p=p, table=table, kl=kl):
      q = np.exp(logits - np.logaddexp.reduce(logits))
      return -(q @ table @ p[1] - tau * kl(q) + tau * kl(p[1]))

    best = -optimize.minimize(loss, np.zeros(size + 1)).fun
    np.testing.assert_allclose(result.duality_gap[b, 1], 2 * best - 1, atol=1e-5)
    np.testing.assert_allclose(result.kl[b, 1], kl(p[1]), atol=1e-9)
    assert result.unbeaten[b] == any(all(table[i] >= 0.5) for i in range(size + 1))


def test_table_of_prompts_without_a_condorcet_winner():
  cycle = np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]], np.float32)  # Three tastes, a cycle.
  winner = np.array([[2, 1, 0]] * 3, np.float32)
  scores = np.stack([cycle, winner])
  uniform = np.log(np.full((2, 3), 1 / 3))
  first = np.log(np.tile([0.998, 0.001, 0.001], (2, 1)))
  result = exact.evaluate(np.stack([uniform, first]), exact.make_games(scores, uniform), 0.1)
  table = exact.table(result, ['uniform', 'first'], baseline='first')
  apart = table['no_condorcet_winner']
  assert (table['all']['num_prompts'], apart['num_prompts']) == (2, 1)
  assert apart['worst_case']['mean'][0] == pytest.approx(0.5)
  assert apart['worst_case']['mean'][1] == pytest.approx(1 / 3, abs=2e-3)
  assert apart['worst_case_difference']['mean'][0] == pytest.approx(1 / 6, abs=2e-3)


def test_exact_log_probabilities_keep_float32_on_accelerators(tiny_policy):
  """Which round what products read, unless they are told not to."""
  seen = []

  def log_prob(params, prompts, tokens):
    seen.append(jax.config.jax_default_matmul_precision)
    return jnp.zeros(tokens.shape)

  prompts = Prompts(np.ones((2, 3), np.int32), np.arange(2))
  found = exact.enumerator(tiny_policy._replace(log_prob=log_prob))((), prompts, np.ones((2, 5, 4)))
  assert found.shape == (2, 5) and seen == ['highest']


def test_fixed_point_against_annotators():
  """π ∝ μ exp(E_σ P_u(y ≻ k)/τ), σ ∝ w μ exp(−P_u(π ≻ k)/τ'), "anything else" among the responses."""
  rng, weights = np.random.default_rng(3), (0.5, 0.3, 0.2)
  scores = rng.normal(size=(2, 3, 5))
  scores[1, :, 2] = -np.inf
  reference = np.log(rng.dirichlet(np.ones(5), size=2) * 0.9)
  point = FixedPoint(0.2, 0.0, 0.1, weights)
  prompt_games = exact.make_games(scores, reference, [point, FixedPoint(0.2, 0.0)])
  for b, one in enumerate(prompt_games):
    own = np.append(scores[b][:, one.valid], np.full((3, 1), -np.inf), axis=1)
    p = np.stack([sources.from_scores(row[None]) for row in own])
    policy, mu = one.fixed_points[point], one.reference
    logits = np.log(weights)[:, None] + np.log(mu) - np.einsum('i,uik->uk', policy, p) / 0.1
    payoff = np.einsum('uik,uk->i', p, special.softmax(logits))
    np.testing.assert_allclose(policy, special.softmax(np.log(mu) + payoff / 0.2), atol=1e-9)
    assert np.abs(policy - one.fixed_points[FixedPoint(0.2, 0.0)]).max() > 0.01


def test_annotators_by_brute_force():
  """What each annotator gets, and the one who comes off worst."""
  rng = np.random.default_rng(4)
  scores = rng.integers(0, 4, (2, 3, 4)).astype(np.float32)
  log_probs = np.log(rng.dirichlet(np.ones(4), size=(2, 2)) * 0.95)
  reference = np.log(np.full((2, 4), 0.24))
  found = exact.evaluate(log_probs, exact.make_games(scores, reference), 0.1)
  for b in range(2):
    policy, mu = (
      np.append(np.exp(x), 1 - np.exp(x).sum()) for x in (log_probs[1, b], reference[b])
    )
    own = np.append(scores[b], np.full((3, 1), -np.inf), axis=1)
    against = [
      [sum(policy[i] * ((s[i] > s[k]) + 0.5 * (s[i] == s[k])) for i in range(5)) for k in range(5)]
      for s in own
    ]
    np.testing.assert_allclose(found.annotator_win_rate[b, 1], against @ mu, rtol=1e-6)
    assert found.worst_off_win_rate[b, 1] == pytest.approx(min(against @ mu))
    assert found.worst_off_case[b, 1] == pytest.approx(np.min(against))
  table = exact.table(found, ['SFT', 'other'], 'SFT')
  assert np.shape(table['all']['annotator_win_rate']['mean']) == (2, 3)
  difference = found.worst_off_win_rate[:, 1] - found.worst_off_win_rate[:, 0]
  assert table['all']['worst_off_win_rate_difference']['mean'][1] == pytest.approx(
    difference.mean()
  )
