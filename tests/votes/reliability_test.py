"""Voters' reliability: against refits, enumeration of coins, and simulated voters of known kinds."""

import itertools
import math

import numpy as np
import pytest
from scipy import special

from nlhf_jax.votes import reliability, table

NUM_MODELS = 8
THETA = np.linspace(1.2, -1.2, NUM_MODELS)


def simulate(seed, slopes, num_votes=60):
  """Votes with P(a ≻ b) = σ(α(θₐ − θ_b)), α of each voter: 1 is honest, 0 a coin, −1 against all."""
  rng = np.random.default_rng(seed)
  voter = np.repeat(np.arange(len(slopes)), num_votes)
  a = rng.integers(NUM_MODELS, size=len(voter))
  b = (a + rng.integers(1, NUM_MODELS, size=len(voter))) % NUM_MODELS
  wins = rng.random(len(voter)) < special.expit(np.asarray(slopes)[voter] * (THETA[a] - THETA[b]))
  verdict = np.eye(4)[np.where(wins, 0, 1)]
  votes = table.from_counts(
    a, b, verdict, np.ones(len(voter)), [f'm{n}' for n in range(NUM_MODELS)]
  )
  return votes._replace(voter=voter.astype(np.int32))


def flagged(found, *kinds):
  return {x.name for x in found if x.flag in kinds}


def names(*numbers):
  return {f'voter {n}' for n in numbers}


@pytest.mark.parametrize('seed', range(3))
def test_coins_among_honest_voters(seed):
  found = reliability.voters(simulate(seed, [0] * 5 + [1] * 50, num_votes=120))
  assert len(found) == 55
  assert {x.name for x in found[:5]} == names(*range(5))
  assert names(*range(5)) <= flagged(found, 'coin', 'against')
  assert len(flagged(found, 'coin', 'against')) <= 6
  coins, others = found[:5], found[5:]
  assert np.mean([x.accuracy for x in coins]) == pytest.approx(0.5, abs=0.07)
  assert np.mean([x.log_loss for x in coins]) > math.log(2) > np.mean([x.log_loss for x in others])
  assert np.mean([x.expected - x.accuracy for x in others]) == pytest.approx(0, abs=0.04)


def test_false_discoveries_are_at_their_level():
  """Of honest voters alone any flag is one, at a rate of at most 5 %; with coins, that share of what is flagged."""
  level, shares, any_flag = reliability.LEVEL, [], []
  for seed in range(50):
    any_flag.append(any(x.flag for x in reliability.voters(simulate(seed, [1] * 50))))
    chosen = flagged(
      reliability.voters(simulate(1000 + seed, [0] * 5 + [1] * 50)), 'coin', 'against'
    )
    shares.append(len(chosen - names(*range(5))) / max(len(chosen), 1))
  # Three standard errors of 50 simulations above it.
  assert np.mean(any_flag) <= level + 3 * np.sqrt(level * (1 - level) / 50)
  assert np.mean(shares) <= level + 3 * np.std(shares) / np.sqrt(50)


def test_honest_votes_have_uniform_p_values():
  """Discrete ones, and with a spread that is estimated: at most the level, and not far below it."""
  p = [x.p_others for seed in range(10) for x in reliability.voters(simulate(seed, [1] * 50))]
  for level in (0.05, 0.2, 0.5):
    assert 0.25 * level < np.mean(np.array(p) <= level) < 1.1 * level + 0.02


def test_voter_against_all_is_told_from_a_coin():
  found = reliability.voters(simulate(0, [-1, 0] + [1] * 40, num_votes=200))
  assert flagged(found, 'against') == names(0)
  assert flagged(found, 'coin') == names(1)


def test_voter_of_weaker_taste_is_no_coin():
  """It agrees less than the others foretell, and surely beats chance."""
  found = {x.name: x for x in reliability.voters(simulate(0, [0.4] + [1] * 40, num_votes=400))}
  assert found['voter 0'].p_others < 0.001 and not found['voter 0'].flag


def test_scores_without_a_voter_are_those_of_a_refit():
  """One step, against Newton's method to its end without the voter."""
  votes = simulate(1, [1] * 30)
  theta, covariance = reliability.fit(table.wins(votes))
  for voter in range(5):
    own, others = (
      table.select(votes, keep) for keep in (votes.voter == voter, votes.voter != voter)
    )
    pair = np.stack([own.a, own.b], axis=1)
    found = reliability._foretold(pair, own.verdict[:, :2], theta, covariance)
    refit, spread = reliability.fit(table.wins(others))
    variance = spread[own.a, own.a] + spread[own.b, own.b] - 2 * spread[own.a, own.b]
    expected = special.expit((refit[own.a] - refit[own.b]) / np.sqrt(1 + np.pi * variance / 8))
    with_own = special.expit(theta[own.a] - theta[own.b])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(with_own - expected).max() > 0.01


def test_scores_maximise_the_likelihood():
  """The gradient of Σ log σ − θ²/2·(1/20) is 0, and H⁻¹ its curvature's inverse."""
  wins = table.wins(simulate(0, [1] * 4))
  theta, covariance = reliability.fit(wins)
  gradient = lambda x: (wins - (wins + wins.T) * special.expit(x[:, None] - x)).sum(axis=1) - x / 20
  np.testing.assert_allclose(gradient(theta), 0, atol=1e-6)
  step = 1e-5 * np.eye(len(theta))
  hessian = -np.array([(gradient(theta + x) - gradient(theta - x)) / 2e-5 for x in step])
  np.testing.assert_allclose(covariance @ hessian, np.eye(len(theta)), atol=1e-4)


def test_only_voter_of_a_pair_is_foretold_nothing():
  """Its own votes say who is better, and the others' do not."""
  votes = simulate(0, [1] * 3, num_votes=30)
  mine = votes._replace(a=np.where(votes.voter == 0, 8, votes.a), labels=(*votes.labels, 'new'))
  found = {
    x.name: x for x in reliability.voters(mine._replace(verdict=np.eye(4)[np.zeros(90, int)]))
  }
  assert found['voter 0'].expected < 0.7 and not found['voter 0'].flag


@pytest.mark.parametrize('count', [0, 2, 5])
def test_sum_of_coins(count):
  """All 2⁵ outcomes."""
  p = np.array([0.5, 0.6, 0.7, 0.9, 0.99])
  outcomes = itertools.product((0, 1), repeat=5)
  exact = sum(np.prod(np.where(x, p, 1 - p)) for x in outcomes if sum(x) <= count)
  assert reliability._at_most(count, p) == pytest.approx(exact, abs=1e-12)


def test_normal_sum_meets_the_exact_one(monkeypatch):
  p = np.random.default_rng(0).uniform(0.5, 1, 900)
  counts = [int(p.sum()) + shift for shift in (-40, -15, 0, 15)]
  exact = [reliability._at_most(count, p) for count in counts]
  monkeypatch.setattr(reliability, '_EXACT', 10)
  np.testing.assert_allclose(
    [reliability._at_most(x, p) for x in counts], exact, rtol=0.1, atol=1e-4
  )


@pytest.mark.parametrize('noise', [0.5, 6.0])
def test_sum_of_coins_and_noise(noise):
  """Against draws of both."""
  rng = np.random.default_rng(0)
  p = rng.uniform(0.5, 1, 30)
  total = (rng.random((200_000, 30)) < p).sum(axis=1) + noise * rng.normal(size=200_000)
  for count in (15, 20, 24):
    expected = np.mean(total <= count + 0.5)
    assert reliability._at_most(count, p, noise) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize('tau', [0.0, 0.05, 0.1])
def test_spread_of_honest_voters_is_found_beside_coins(tau):
  """Shares that vary by τ, and a tenth of coins."""
  rng = np.random.default_rng(0)
  better = rng.uniform(0.5, 0.9, (400, 100))
  p = np.clip(better + tau * rng.normal(size=(400, 1)), 0, 1)
  p[:40] = 0.5
  agreed = (rng.random(p.shape) < p).sum(axis=1)
  rows = [
    reliability.Record(str(n), better[n], count, 0.0) for n, count in enumerate(agreed.tolist())
  ]
  assert reliability.spread(rows) == pytest.approx(tau, abs=0.025)


def test_tastes_of_their_own_are_no_unreliability():
  """Of voters whose slopes differ much none is a coin, and coins are less reliable than all of them."""
  slopes = np.random.default_rng(0).uniform(0.6, 2.5, 60)
  found = reliability.voters(simulate(0, [0] * 4 + slopes.tolist(), num_votes=300))
  assert {x.name for x in found[:4]} == names(*range(4))
  assert flagged(found, 'coin', 'against') <= names(*range(4))


def test_discoveries():
  """Benjamini and Hochberg's step-up by hand: the largest k with p₍ₖ₎ ≤ k·5 %/4 is 3."""
  p = np.array([0.9, 0.01, 0.02, 0.037])
  assert reliability.discoveries(p, 0.05).tolist() == [False, True, True, True]


def test_who_is_left_out():
  """Ties do not count, few votes are not enough, and votes of unknown voters are others' votes."""
  few = reliability.MIN_VOTES - 1
  votes = simulate(0, [1, 1, 1, 1], num_votes=20)
  rows = np.arange(80)
  verdict = np.where(
    ((votes.voter == 1) & (rows % 20 >= few))[:, None], np.eye(4)[2], votes.verdict
  )
  voter = np.where(votes.voter == 0, table.UNKNOWN, votes.voter).astype(np.int32)
  found = reliability.voters(votes._replace(verdict=verdict, voter=voter))
  assert {x.name for x in found} == names(2, 3)
  assert reliability.voters(votes._replace(voter=np.full(80, -1, np.int32))) == ()


def test_equal_votes_count_and_have_names():
  rows = [
    {'a': 'm', 'b': 'n', 'verdict': 'a', 'voter': who, 'weight': 6.0}
    for who in ('Ada', 'Bo', 'Ada', 'Bo')
  ]
  found = reliability.voters(table.columns(map(table.checked, rows)))
  assert {(x.name, x.num_votes, x.accuracy) for x in found} == {('Ada', 12, 1.0), ('Bo', 12, 1.0)}
