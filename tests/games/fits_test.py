"""The best reward fit, against its own optimum; the cyclic part, against games that are all line or all cycle."""

import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import fits


def test_bradley_terry_finds_the_rewards_that_made_the_table():
  r = np.random.default_rng(0).normal(size=6)
  found = fits.bradley_terry(special.expit(r[:, None] - r), ridge=1e-9)
  np.testing.assert_allclose(found, r - r.mean(), atol=1e-7)


@pytest.mark.parametrize('weighted', [False, True])
def test_bradley_terry_is_the_least_cross_entropy(weighted):
  rng = np.random.default_rng(1)
  noise = rng.normal(size=(5, 5))
  p = special.expit(2 * (noise - noise.T))
  weights = rng.uniform(size=(5, 5)) if weighted else None
  both = np.ones((5, 5)) if weights is None else weights + weights.T

  def entropy(r):
    return -np.sum(both * p * np.log(special.expit(r[:, None] - r)))

  best = optimize.minimize(entropy, np.zeros(5)).fun
  assert entropy(fits.bradley_terry(p, weights, ridge=1e-9)) == pytest.approx(best, abs=1e-6)


def test_bradley_terry_stays_finite_where_a_response_always_loses():
  p = np.array([[0.5, 0.5, 1], [0.5, 0.5, 1], [0, 0, 0.5]])
  found = fits.bradley_terry(p)
  assert np.isfinite(found).all()
  assert found[0] - found[2] > 5


def test_cyclic_part():
  """Rock, paper, scissors has no other; a difference of scores has none; a sum of both keeps its own."""
  cycle = 0.2 * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
  score = np.array([0.1, 0.05, -0.15])
  line = score[:, None] - score
  np.testing.assert_allclose(fits.cyclic_part(0.5 + cycle), cycle, atol=1e-12)
  np.testing.assert_allclose(fits.cyclic_part(0.5 + line), 0, atol=1e-12)
  np.testing.assert_allclose(fits.cyclic_part(0.5 + cycle + line), cycle, atol=1e-12)
