"""Scores against closed forms, a plain likelihood, and published figures of real votes."""

import json

import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.votes import bradley_terry, table
from nlhf_jax.votes.bradley_terry import ELO
from nlhf_jax.votes.likelihood import Model

A, B, TIE, BAD = np.eye(4)


def of(entries, labels='abcdefgh', **columns):
  """Votes of (a, b, verdict, count)."""
  a, b, verdict, count = zip(*entries, strict=True)
  used = 1 + max(*a, *b)
  votes = table.from_counts(
    np.array(a), np.array(b), np.array(verdict), np.array(count, float), labels[:used]
  )
  return votes._replace(**{name: np.asarray(value) for name, value in columns.items()})


def test_davidson_of_two_is_exact():
  fit = bradley_terry.fit(of([(0, 1, A, 30), (0, 1, B, 12), (1, 0, TIE, 8)]))
  assert fit.scores[0] - fit.scores[1] == pytest.approx(np.log(30 / 12), abs=1e-8)
  assert np.exp(fit.others['log_nu']) == pytest.approx(8 / np.sqrt(30 * 12), abs=1e-8)


def test_rao_kupper_of_two_is_exact():
  fit = bradley_terry.fit(of([(0, 1, A, 30), (0, 1, B, 12), (0, 1, TIE, 8)]), Model('rao_kupper'))
  for_a, for_b = special.logit([30 / 50, 12 / 50])
  assert fit.scores[0] - fit.scores[1] == pytest.approx((for_a - for_b) / 2, abs=1e-7)
  assert np.exp(fit.others['log_nu']) == pytest.approx(-(for_a + for_b) / 2, abs=1e-7)


@pytest.mark.parametrize('ties', ['davidson', 'half', 'drop'])
def test_variance_of_independent_votes(ties):
  votes = of([(0, 1, A, 30), (0, 1, B, 12)])
  v = bradley_terry.fit(votes, Model(ties)).covariance
  assert v[0, 0] + v[1, 1] - 2 * v[0, 1] == pytest.approx(1 / 30 + 1 / 12)


def plain_loss(parameters, rows, n):
  """The likelihood of the module's docstring, written out vote by vote."""
  theta, (beta, gamma, log_nu, log_kappa, delta) = parameters[:n], parameters[n:]
  total = 1e3 * theta.sum() ** 2
  for a, b, verdict, count, x, order in rows:
    d = theta[a] - theta[b] + beta * x + gamma * order / 2
    m = (theta[a] + theta[b]) / 2
    weights = np.array([d / 2, -d / 2, log_nu, log_kappa - delta * m])
    total += count * (special.logsumexp(weights) - weights[verdict])
  return total


def test_all_in_one_likelihood():
  """Ties, both bad, a feature and the order, against a general minimiser on the likelihood as it is printed."""
  rng = np.random.default_rng(0)
  rows = []
  for _ in range(400):
    a, b = rng.choice(4, 2, replace=False)
    x, order = rng.normal(), rng.choice([-1, 1])
    d = 0.5 * (a - b) + 0.8 * x + 0.3 * order
    m = 0.25 * (a + b) - 0.75
    p = special.softmax([d / 2, -d / 2, -0.5, -0.3 - 0.6 * m])
    rows.append((a, b, rng.choice(4, p=p), 1.0, x, order))
  votes = of([(a, b, np.eye(4)[v], c) for a, b, v, c, _, _ in rows])
  votes = votes._replace(
    x=np.array([[row[4]] for row in rows]),
    order=np.array([row[5] for row in rows]),
    x_names=('tokens',),
  )
  fit = bradley_terry.fit(votes)
  found = optimize.minimize(
    plain_loss, np.zeros(9), args=(rows, 4), method='BFGS', options={'gtol': 1e-7}
  )
  names = ['x.tokens', 'first', 'log_nu', 'log_kappa', 'delta']
  np.testing.assert_allclose(fit.scores, found.x[:4] - found.x[:4].mean(), atol=2e-4)
  np.testing.assert_allclose([fit.others[name] for name in names], found.x[4:], atol=2e-4)
  assert fit.loss * len(rows) == pytest.approx(found.fun, abs=1e-6)


def test_a_vote_cast_ten_times_is_one():
  """Clusters: copies of a voter's vote tell nothing new; copies by others do."""
  rng = np.random.default_rng(1)
  a, b = (
    np.array(side)
    for side in zip(*(rng.choice(4, 2, replace=False) for _ in range(60)), strict=True)
  )
  single = of([(i, j, np.eye(4)[v], 1.0) for i, j, v in zip(a, b, rng.choice(3, 60), strict=True)])
  own = single._replace(voter=np.arange(60))
  ten = table.select(own, np.repeat(np.arange(60), 10))
  once, copied = bradley_terry.fit(single), bradley_terry.fit(ten)
  np.testing.assert_allclose(copied.covariance, once.covariance * 60 / 59, atol=1e-9)
  assert (copied.degrees, once.degrees) == (59, np.inf)
  apart = bradley_terry.fit(ten._replace(voter=np.arange(600)))
  np.testing.assert_allclose(apart.covariance, once.covariance / 10 * 600 / 599, atol=1e-9)


def test_two_way_clusters_are_their_formula():
  rng = np.random.default_rng(2)
  size, n = 300, 5
  pairs = np.array([rng.choice(n, 2, replace=False) for _ in range(size)])
  verdict = rng.choice(2, size)
  voter, prompt = rng.integers(12, size=size), rng.integers(9, size=size)
  votes = of(
    [(i, j, np.eye(4)[v], 1.0) for (i, j), v in zip(pairs, verdict, strict=True)],
    voter=voter,
    prompt=prompt,
  )
  fit = bradley_terry.fit(votes)
  rows = np.eye(n)[pairs[:, 0]] - np.eye(n)[pairs[:, 1]]
  p = special.expit(rows @ fit.scores)
  scores = (p - (verdict == 0))[:, None] * rows
  hessian = np.linalg.pinv(rows.T @ (rows * (p * (1 - p))[:, None]))

  def middle(cluster):
    sums = np.array([scores[cluster == c].sum(axis=0) for c in np.unique(cluster)])
    return sums.T @ sums * len(sums) / (len(sums) - 1)

  expected = middle(voter) + middle(prompt) - middle(voter * 100 + prompt)
  values, vectors = np.linalg.eigh(expected)
  expected = hessian @ (vectors * np.maximum(values, 0)) @ vectors.T @ hessian
  np.testing.assert_allclose(fit.covariance, expected, atol=1e-9)


def test_groups():
  """A vote is an arrow, a tie one each way; who reaches without being reached is above."""
  votes = of([(0, 1, A, 3), (1, 2, A, 1), (2, 1, TIE, 1), (3, 4, A, 2), (4, 3, A, 1)])
  above, group = bradley_terry.groups(votes)
  assert group[1] == group[2] and group[3] == group[4] and len(set(group)) == 3
  assert above[0, 1] and above[0, 2] and not above[1, 0] and not above[0, 3] and not above[3, 0]
  assert list(bradley_terry.components(votes)) == [0, 0, 0, 1, 1]


def test_a_feature_that_always_decides_is_refused():
  votes = of([(0, 1, A, 5), (1, 0, A, 5)])._replace(x=np.array([[1.0], [2.0]]), x_names=('tokens',))
  with pytest.raises(ValueError, match=r"no most likely 'x\.tokens'.*Leave it out"):
    bradley_terry.fit(votes)
  with pytest.raises(ValueError, match="no feature 'bold', only: tokens"):
    bradley_terry.fit(votes, Model(features=('bold',)))


@pytest.fixture(scope='module')
def arena(test_data):
  content = json.loads((test_data / 'arena' / 'chatbotarena_20240814.json').read_text())
  pairs, counts = np.array(content['X']), np.array(content['Y'], float)
  a, b = (np.repeat(side, 4) for side in pairs.T)
  return table.from_counts(
    a, b, np.tile(np.eye(4), (len(pairs), 1)), counts.ravel(), content['models']
  )


@pytest.mark.parametrize(
  ('model', 'second', 'third'),
  [
    (Model('drop', 'drop'), -32.9, -56.6),
    (Model('half', 'drop'), -22.8, -41.3),
    (Model('davidson', 'drop'), -29.3, -52.9),
  ],
)
def test_arena(arena, model, second, third):
  """1.67 million votes; figures by another program, Davidson's ν = .5476 among them."""
  fit = bradley_terry.fit(arena, model)
  elo = dict(zip(fit.labels, ELO * fit.scores, strict=True))
  best = elo['chatgpt-4o-latest']
  assert best == max(elo.values())
  assert elo['gemini-1.5-pro-exp-0801'] - best == pytest.approx(second, abs=0.05)
  assert elo['gpt-4o-2024-05-13'] - best == pytest.approx(third, abs=0.05)
  if model.ties == 'davidson':
    assert np.exp(fit.others['log_nu']) == pytest.approx(0.5476, abs=5e-5)
