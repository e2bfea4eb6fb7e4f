"""What policies are worth, against definitions, a numerical optimiser and closed forms."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import game, sources


@pytest.fixture(autouse=True)
def in_double_precision():
  with jax.enable_x64(True):
    yield


def kl(p, q):
  return float(np.sum(p * np.log(p / q)))


def test_preference_and_regularised_preference(random_game):
  g = random_game(5, 0.3)
  p, q = np.random.default_rng(1).dirichlet(np.ones(5), 2)
  won = sum(p[i] * q[j] * g.preference[i, j] for i in range(5) for j in range(5))
  assert game.preference(g, p, q) == pytest.approx(won)
  regularised = won - 0.3 * kl(p, g.reference) + 0.3 * kl(q, g.reference)
  assert game.regularised_preference(g, p, q) == pytest.approx(regularised)
  assert regularised + game.regularised_preference(g, q, p) == pytest.approx(1)


@pytest.mark.parametrize('tau', [0.05, 0.7])
def test_best_response_duality_gap_and_exploitability(tau, random_game):
  g = random_game(6, tau)
  policy = np.random.default_rng(2).dirichlet(np.ones(6))

  def loss(logits):
    return -float(game.regularised_preference(g, special.softmax(logits), policy))

  found = optimize.minimize(loss, np.zeros(6), tol=1e-12)
  np.testing.assert_allclose(game.best_response(g, policy), special.softmax(found.x), atol=1e-4)
  assert game.best_value(g, policy) == pytest.approx(-found.fun, abs=1e-7)
  # The other end of the gap: the worst that can happen to the policy.
  against = lambda x: float(game.regularised_preference(g, policy, special.softmax(x)))
  worst = optimize.minimize(against, np.zeros(6), tol=1e-12)
  assert game.duality_gap(g, policy) == pytest.approx(-found.fun - worst.fun, abs=1e-6)
  assert game.exploitability(g, policy) == pytest.approx(game.duality_gap(g, policy) / 2)


def test_best_response_without_regularisation(random_game):
  g = random_game(6, 0.0)
  policy = np.random.default_rng(2).dirichlet(np.ones(6))
  values = g.preference @ policy
  assert np.argmax(game.best_response(g, policy)) == np.argmax(values)
  assert game.duality_gap(g, policy) == pytest.approx(2 * values.max() - 1)
  assert game.worst_case(g, policy) == pytest.approx(1 - values.max())


def test_contextual_game(random_game):
  games = [random_game(4, tau, seed) for seed, tau in enumerate([0.1, 0.5, 2.0])]
  batch = jax.tree.map(lambda *x: np.stack(x), *games)
  policies = np.random.default_rng(0).dirichlet(np.ones(4), 3)
  gaps = jax.vmap(game.duality_gap)(batch, policies)
  np.testing.assert_allclose(
    gaps, [game.duality_gap(g, p) for g, p in zip(games, policies, strict=True)], atol=1e-12
  )


@pytest.mark.parametrize(
  ('i', 'j', 'value', 'message'),
  [
    (0, 1, 1.2, r'P\[0, 1\] = 1.2 must be in \[0, 1\]; P\[1, 0\] = 0.6'),
    (1, 2, 0.9, r'P\[1, 2\] = 0.9 and its mirror must add up to 1'),
    (2, 1, np.nan, r'P\[2, 1\] = nan is unknown: compare the two'),
  ],
)
def test_error_of_a_wrong_entry(i, j, value, message):
  table = np.array(sources.section_3_2(0.1).preference)
  table[i, j] = value
  with pytest.raises(ValueError, match=message):
    game.make(table)


@pytest.mark.parametrize(
  ('reference', 'tau', 'message'),
  [
    ([0.5, 0.5], 0.1, 'must have 3 entries'),
    ([0.5, 0.5, 0.0], 0.1, 'positive everywhere: entry 2 is 0.0'),
    (None, -0.1, 'tau must be 0'),
    (None, float('nan'), 'tau must be 0'),
  ],
)
def test_error_of_a_wrong_reference_or_tau(reference, tau, message):
  with pytest.raises(ValueError, match=message):
    game.make(sources.appendix_a().preference, reference, tau)
