"""Resampled scores against fits of the same resamples, and against the clustered variance."""

import numpy as np
import pytest

from nlhf_jax.votes import bradley_terry, resampling, table
from nlhf_jax.votes.likelihood import Model


def votes(size=600, n=5, voters=30, seed=0):
  rng = np.random.default_rng(seed)
  pairs = np.array([rng.choice(n, 2, replace=False) for _ in range(size)])
  verdict = np.eye(4)[rng.choice(3, size, p=[0.5, 0.3, 0.2])]
  made = table.from_counts(*pairs.T, verdict, np.ones(size), 'abcde'[:n])
  return made._replace(voter=rng.integers(voters, size=size).astype(np.int32))


@pytest.mark.parametrize('model', [Model(), Model('half'), Model('rao_kupper')])
def test_each_resample_is_fitted_to_its_end(model):
  """The same voters drawn, each fitted by itself."""
  made = votes()
  found = resampling.resample(made, model, num_resamples=4, seed=3)
  times = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), 4)
  for scores, weight in zip(found, times, strict=True):
    drawn = made._replace(counts=made.counts * weight[made.voter])
    np.testing.assert_allclose(scores, bradley_terry.fit(drawn, model).scores, atol=1e-6)


def test_spread_is_the_clustered_one():
  made = votes(size=3000, voters=200)
  drawn = resampling.resample(made, num_resamples=600)
  expected = np.sqrt(np.diag(bradley_terry.fit(made).covariance)[:5])
  np.testing.assert_allclose(drawn.std(axis=0), expected, rtol=0.12)


def test_wins_of_resamples():
  made = votes()
  drawn = resampling.resampled_wins(made, 'vote', 50)
  np.testing.assert_allclose(drawn.sum(axis=(1, 2)), 600)
  np.testing.assert_allclose(drawn.mean(axis=0), table.wins(made), rtol=0.25)


def test_what_cannot_be_resampled_is_refused():
  made = votes()
  some = made._replace(voter=np.where(np.arange(600) < 5, table.UNKNOWN, made.voter))
  with pytest.raises(ValueError, match='Some votes have no voter or prompt'):
    resampling.resample(some)
  assert resampling.widest_cluster(some) == 'vote'
  one_sided = table.from_wins(np.array([[0.0, 3.0], [0.0, 0.0]]), ('a', 'b'))
  with pytest.raises(ValueError, match='differences are infinite'):
    resampling.resample(one_sided, cluster='vote')
