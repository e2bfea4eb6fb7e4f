"""Exact play: the fixed points of Nash-MD satisfy their equation."""

import numpy as np
import pytest
from scipy import special

from nlhf_jax.evaluation import exact
from nlhf_jax.games import sources


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.75, 1.0])
def test_fixed_points_are_fixed(beta):
  """π_β ∝ μ exp(P(y ≻ π_β^{1−β} μ^β)/τ), over the responses that there are and "anything else"."""
  rng, tau = np.random.default_rng(0), 0.2
  scores = rng.normal(size=(2, 3, 6))
  scores[:, :, 4] = -np.inf  # No response to either prompt.
  reference = special.log_softmax(rng.normal(size=(2, 6)), axis=-1) + np.log(0.9)
  found = exact.fixed_points(scores, reference, tau, beta)
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
