"""Tastes against quadrature in one and two dimensions, against planted tastes, and where little is known."""

import logging

import numpy as np
import pytest
from scipy import integrate, optimize, special

from nlhf_jax.votes import table, tastes

GRID = np.linspace(-12, 12, 2401)


def planted(rng, mean, factor, num_voters, num_votes):
  """Tastes w = m + L z, votes on x ~ N(0, 1)."""
  weights = mean + rng.normal(size=(num_voters, factor.shape[1])) @ factor.T
  x = rng.normal(size=(num_voters, num_votes, len(mean)))
  p = special.expit(np.einsum('und,ud->un', x, weights))
  share = (rng.random(p.shape) < p).astype(float)
  voter = np.repeat(np.arange(num_voters), num_votes)
  return weights, tastes.votes_on(x.reshape(-1, len(mean)), share.ravel(), voter)


def log_likelihood(votes, weights):
  """Of each w in [G, D]."""
  logit = weights @ votes.x.T + votes.offset
  return np.sum(votes.weight * (votes.share * logit - np.logaddexp(0, logit)), axis=-1)


@pytest.mark.parametrize('deviation', [0.0, 0.3, 2.0, 10.0])
def test_preference_is_the_integral_over_the_log_odds(deviation):
  taste = tastes.Taste(np.array([0.7]), np.array([[deviation**2]]))
  for offset in (-3.0, 0.0, 1.0):
    normal = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    exact = integrate.quad(
      lambda z, o=offset: special.expit(o + 0.7 + deviation * z) * normal(z), -9, 9, limit=500
    )[0]
    found = tastes.preference(taste, np.array([[1.0], [-1.0]]), np.array([offset, -offset]))
    assert found[0] == pytest.approx(exact, abs=1e-5)
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_posterior_of_one_feature_is_that_of_a_grid():
  rng = np.random.default_rng(0)
  prior = tastes.Taste(np.array([0.5]), np.array([[2.0]]))
  for size, within in ((1, 0.08), (4, 0.05), (40, 0.02)):
    x = rng.normal(size=(size, 1))
    votes = tastes.votes_on(x, (rng.random(size) < special.expit(1.5 * x[:, 0])).astype(float))
    log_density = log_likelihood(votes, GRID[:, None]) - (GRID - 0.5) ** 2 / 4
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    found = tastes.posterior(prior, votes)
    # The mode is Newton's, to the grid; what is foretold is the approximation.
    assert found.mean[0] == pytest.approx(GRID[log_density.argmax()], abs=0.006)
    exact = [density @ special.expit(GRID * side) for side in (0.5, 2.0)]
    np.testing.assert_allclose(
      tastes.preference(found, np.array([[0.5], [2.0]])), exact, atol=within
    )


def test_posterior_of_two_features_is_that_of_a_grid():
  """With a covariance, an offset and weights."""
  rng = np.random.default_rng(1)
  prior = tastes.Taste(np.array([0.3, -0.2]), np.array([[1.0, 0.6], [0.6, 2.0]]))
  x = rng.normal(size=(30, 2))
  share = rng.choice([0, 0.5, 1], size=30)
  votes = tastes.TasteVotes(
    np.zeros(30, int), x, share, rng.normal(size=30), rng.integers(1, 3, 30).astype(float)
  )
  axis = np.linspace(-5, 5, 201)
  grid = np.stack(np.meshgrid(axis, axis, indexing='ij'), axis=-1).reshape(-1, 2)
  away = grid - prior.mean
  inverse = np.linalg.inv(prior.covariance)
  log_density = log_likelihood(votes, grid) - 0.5 * np.einsum('gd,de,ge->g', away, inverse, away)
  density = np.exp(log_density - log_density.max())
  density /= density.sum()
  found = tastes.posterior(prior, votes)
  np.testing.assert_allclose(found.mean, grid[log_density.argmax()], atol=0.03)
  mean = density @ grid
  covariance = (grid - mean).T @ (density[:, None] * (grid - mean))
  np.testing.assert_allclose(found.covariance, covariance, atol=0.02)
  asked = np.array([[1.0, 0.0], [0.5, -1.0]])
  exact = density @ special.expit(grid @ asked.T)
  np.testing.assert_allclose(tastes.preference(found, asked), exact, atol=0.01)


@pytest.mark.parametrize(('num_votes', 'within'), [(40, 0.12), (400, 0.012)])
def test_population_of_one_feature_is_the_most_likely(num_votes, within):
  """Marginal likelihood, each voter integrated over by quadrature, maximised in (m, σ).

  A Laplace step takes the mode of a voter's posterior for its mean: what that leaves falls as one over the number of votes.
  """
  rng = np.random.default_rng(2)
  _, votes = planted(rng, np.array([0.8]), np.array([[1.2]]), 60, num_votes)
  grid = np.linspace(-7, 9, 641)
  by_voter = (tastes.select(votes, votes.voter == u) for u in range(60))
  likelihood = np.stack([log_likelihood(one, grid[:, None]) for one in by_voter])

  def nats(values):
    log_prior = -((grid - values[0]) ** 2) / (2 * np.exp(2 * values[1])) - values[1]
    return -np.sum(special.logsumexp(likelihood + log_prior, axis=1))

  best = optimize.minimize(nats, [0.0, 0.0], method='Nelder-Mead').x
  found = tastes.fit(votes)
  assert found.mean[0] == pytest.approx(best[0], rel=within)
  assert np.sqrt(found.covariance[0, 0]) == pytest.approx(np.exp(best[1]), rel=within)


def test_planted_tastes_of_low_rank():
  """Mean, covariance and each voter's taste; and where votes are flipped, none of it."""
  rng = np.random.default_rng(3)
  mean, factor = np.array([1.0, 0, 0, 0, 0]), np.zeros((5, 2))
  factor[1, 0], factor[2, 1] = 1.5, 1.0
  weights, votes = planted(rng, mean, factor, 80, 60)
  found = tastes.fit(votes)
  np.testing.assert_allclose(found.mean, mean, atol=0.3)
  np.testing.assert_allclose(found.covariance, factor @ factor.T, atol=0.6)
  known = tastes.posteriors(found, votes)
  for column in (1, 2):
    assert np.corrcoef(known.mean[:, column], weights[:, column])[0, 1] > 0.85
  shares, directions = tastes.directions(found, votes)
  assert shares[0] > shares[1] > 0.2 and shares[:2].sum() > 0.9 and shares.sum() == pytest.approx(1)
  largest = np.abs(directions[:, :2]).argmax(axis=0)
  assert largest.tolist() == [1, 2]
  flipped = votes._replace(share=np.where(rng.random(4800) < 0.5, votes.share, 1 - votes.share))
  assert np.trace(tastes.fit(flipped).covariance) < 0.3


def test_disagreement_of_voters_and_of_noise():
  """Against enumeration of two kinds of voters; all noise where all agree on odds; all voters where each is sure."""
  x = np.ones((1, 1))
  of = lambda mean, variance: tastes.disagreement(
    tastes.Taste(np.array([mean]), np.array([[variance]])), tastes.votes_on(x, np.ones(1))
  )
  same = of(0.9, 0.0)
  p = special.expit(0.9)
  np.testing.assert_allclose(same, [4 * (p - 0.5) ** 2, 0, 4 * p * (1 - p)], atol=1e-9)
  assert same.share_of_voters == pytest.approx(0, abs=1e-9)
  rng = np.random.default_rng(4)
  drawn = special.expit(0.5 + 3 * rng.normal(size=200_000))
  found = of(0.5, 9.0)
  expected = [4 * (drawn.mean() - 0.5) ** 2, 4 * drawn.var(), 4 * np.mean(drawn * (1 - drawn))]
  np.testing.assert_allclose(found, expected, atol=0.01)
  assert sum(found) == pytest.approx(1)


def test_who_has_no_vote_is_the_population():
  """Of a covariance of any rank, and as one among others."""
  population = tastes.Taste(np.array([1.0, 0.0]), np.array([[1.0, 1.0], [1.0, 1.0]]))
  nothing = tastes.votes_on(np.zeros((0, 2)), np.zeros(0))
  assert tastes.posterior(population, nothing) is population
  votes = tastes.votes_on(np.eye(2), np.ones(2), np.array([3, 3]))
  known = tastes.posteriors(population, votes)
  assert known.voter.tolist() == [3]
  asked = tastes.votes_on(np.array([[1.0, 0.5]] * 3), np.ones(3), np.array([2, 3, 7]))
  found = tastes.foretold(population, known, asked)
  expected = tastes.preference(population, asked.x)[0]
  assert found[0] == found[2] == pytest.approx(expected)
  assert found[1] == pytest.approx(tastes.preference(known.of_voter(3), asked.x)[1])
  assert found[1] > expected + 0.05
  with pytest.raises(KeyError, match='Voter 4 has no vote'):
    known.of_voter(4)
  # Of rank one, the direction in which all are alike stays as it is.
  moved = known.mean[0] - population.mean
  assert moved[0] == pytest.approx(moved[1])


def test_voters_of_different_numbers_of_votes_are_fitted_as_one_by_one():
  rng = np.random.default_rng(5)
  _, votes = planted(rng, np.zeros(3), np.eye(3), 9, 30)
  kept = rng.permutation(270)[:97]
  votes = tastes.select(votes, kept)
  population = tastes.Taste(np.array([0.2, 0, 0]), np.diag([1.0, 2.0, 0.5]))
  known = tastes.posteriors(population, votes)
  for number in known.voter.tolist():
    one = tastes.posterior(population, tastes.select(votes, votes.voter == number))
    np.testing.assert_allclose(known.of_voter(number).mean, one.mean, atol=1e-7)
    np.testing.assert_allclose(known.of_voter(number).covariance, one.covariance, atol=1e-7)


def test_sure_votes_stay_finite(caplog):
  """Voters who never contradict themselves have no finite most likely taste; a prior has."""
  rng = np.random.default_rng(6)
  x = rng.normal(size=(200, 2))
  voter = np.repeat(np.arange(4), 50)
  sure = tastes.votes_on(x, (x[:, 0] * np.where(voter % 2, 1, -1) > 0) * 1.0, voter)
  with caplog.at_level(logging.WARNING):
    found = tastes.fit(sure, max_steps=20)
  assert 'have not settled' in caplog.text
  assert np.isfinite(found.covariance).all()
  foretold = tastes.foretold(found, tastes.posteriors(found, sure), sure)
  assert np.mean((foretold > 0.5) == sure.share) > 0.97


def test_features_are_scaled_by_all_equal_votes():
  votes = tastes.votes_on(np.array([[3.0, 0], [1, 0]]), np.ones(2))._replace(
    weight=np.array([1.0, 7])
  )
  rows, which = tastes.repeated(votes)
  assert which.tolist() == [0, *[1] * 7] and rows.weight.tolist() == [1] * 8
  np.testing.assert_allclose(tastes.scaled(votes).x, np.array([[3, 0], [1, 0]]) / [2**0.5, 1])
  np.testing.assert_allclose(tastes.scaled(votes).x[which], tastes.scaled(rows).x)


def test_refusals_and_unknown_voters():
  row = {'a': 'm', 'b': 'n', 'verdict': 'a', 'x': {'long': 1.0}}
  rows = lambda *more: table.columns(table.checked(row | each) for each in more)
  with pytest.raises(ValueError, match='No vote says who voted: the field voter'):
    tastes.from_table(rows({}, {}))
  with pytest.raises(ValueError, match='at least two voters, got those of 1'):
    tastes.fit(tastes.from_table(rows({'voter': 'u'}, {})))
  votes = rows(
    {'voter': 'u'}, {}, {'voter': 'v', 'verdict': 'tie'}, {'voter': 'v', 'verdict': 'both_bad'}
  )
  found = tastes.from_table(votes)
  assert found.share.tolist() == [1, 0.5] and found.voter.tolist() == [0, 1]
  assert tastes.from_table(votes, max_voters=1).voter.tolist() == [1]
  heavy = votes._replace(counts=np.array([9.0, 1, 1, 1]))
  assert tastes.from_table(heavy, max_voters=1).voter.tolist() == [0]
  named = tastes.from_table(votes._replace(x=votes.x[:, :0]))
  assert named.x.tolist() == [[1, -1], [1, -1]]
  # A voter seen once is no obstacle.
  rng = np.random.default_rng(7)
  _, many = planted(rng, np.ones(1), np.ones((1, 1)), 20, 30)
  seen_once = many.voter < 19
  first = np.flatnonzero(~seen_once)[:1]
  few = tastes.select(many, np.concatenate([np.flatnonzero(seen_once), first]))
  assert np.isfinite(tastes.fit(few).covariance).all()
