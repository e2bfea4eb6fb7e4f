"""Aggregations against closed forms, certificates of optimality, other algorithms, and what their papers promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import aggregation, game, solve, sources


def random_population(num_voters=3, size=5, tau=0.0, seed=0, **settings):
  """Voters whose preferences cycle, an uneven reference and uneven weights."""
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=(num_voters, size, size))
  preference = special.expit(2 * (noise - noise.swapaxes(1, 2)))
  given = {'weights': rng.dirichlet(np.ones(num_voters)), 'reference': rng.dirichlet(np.ones(size))}
  return aggregation.make(preference, **(given | settings), tau=tau)


def ranking(*order):
  """P of a voter who ranks: best first, by number."""
  place = np.argsort(order)
  return 0.5 + 0.5 * np.sign(place[None] - place[:, None])


@pytest.mark.parametrize('seed', range(4))
def test_maximin_of_one_voter_is_her_lottery(seed):
  population = random_population(1, 6, seed=seed)
  found = aggregation.maximin(population)
  lottery = solve.maximal_lottery(population.preference[0])
  assert lottery.unique
  np.testing.assert_allclose(found.policy, lottery.policy, atol=1e-8)
  assert found.value == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize(('num_voters', 'size'), [(2, 3), (3, 5), (7, 12), (3, 40)])
def test_maximin_is_certified(num_voters, size):
  """Weak duality leaves no gap: no policy can have more against σ than π is sure of against everyone."""
  for seed in range(3):
    population = random_population(num_voters, size, seed=seed)
    policy, value, opponent = aggregation.maximin(population)
    p = population.preference
    assert np.isclose(policy.sum(), 1) and np.isclose(opponent.sum(), 1) and opponent.min() >= 0
    sure = min(float(policy @ one[:, k]) for one in p for k in range(size))
    most = max(sum(opponent[u] @ p[u][i] for u in range(num_voters)) for i in range(size))
    assert sure == pytest.approx(value, abs=1e-9)
    assert most == pytest.approx(value, abs=1e-8)
    assert value <= 0.5 + 1e-9


def test_maximin_against_another_algorithm():
  """Subgradients of the least margin, from many starts, never exceed it, and come near."""
  population = random_population(3, 4)
  p, value = population.preference, aggregation.maximin(population).value
  least = lambda logits: -np.min(np.einsum('i,uik->uk', special.softmax(logits), p))
  rng = np.random.default_rng(0)
  best = max(
    -optimize.minimize(least, rng.normal(size=4), method='Nelder-Mead', options={'maxiter': 4000}).fun
    for _ in range(8)
  )  # fmt: skip
  assert value - 1e-3 < best <= value + 1e-9


def test_worst_margins_of_random_groups():
  """Three groups: −.08 … −.12 by maximin, −.16 … −.26 by the lottery of the mean; the means over games lie within."""
  margins = []
  for seed in range(40):
    population = random_population(3, 5, seed=seed, weights=None, reference=None)
    policies = [aggregation.aggregate(name, population) for name in ('maximin', 'mean')]
    margins.append([aggregation.standing(population, x).worst_case.min() - 0.5 for x in policies])
  blackwell, lottery = np.mean(margins, axis=0)
  assert np.all(np.array(margins)[:, 0] >= np.array(margins)[:, 1] - 1e-9)
  assert blackwell > lottery + 0.05


def test_maximin_of_voters_who_rank_is_shared_among_their_favourites():
  """min_k P_u(π ≻ k) is half of what her favourite has, so that three favourites have a third each."""
  voters = [ranking(0, 1, 2, 3), ranking(0, 2, 3, 1), ranking(1, 2, 0, 3), ranking(2, 3, 1, 0)]
  population = aggregation.make(voters)
  found = aggregation.maximin(population)
  np.testing.assert_allclose(found.policy, [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-9)
  assert found.value == pytest.approx(1 / 6)
  np.testing.assert_allclose(
    aggregation.standing(population, found.policy).worst_case, found.policy[[0, 0, 1, 2]] / 2
  )
  np.testing.assert_allclose(aggregation.mixture(population), [0.5, 0.25, 0.25, 0])


@pytest.mark.parametrize('tau', [0.0, 0.02])
def test_egalitarian_policy_serves_the_worst_off_against_the_reference(tau):
  """Two voters who rank in opposite orders: the policy that both prefer to μ alike, by as much as can be."""
  population = aggregation.make([ranking(0, 1, 2), ranking(2, 1, 0)], None, [0.2, 0.6, 0.2], tau)
  policy = aggregation.aggregate('egalitarian', population)
  found = aggregation.standing(population, policy)
  np.testing.assert_allclose(found.win_rate, 0.5, atol=1e-6)  # They add up to 1 whatever π is.
  population = random_population(3, 5, tau)
  rates = {}
  for name in ('egalitarian', 'maximin', 'mean', 'proportional', 'mixture'):
    policy = aggregation.aggregate(name, population)
    rates[name] = aggregation.standing(population, policy).win_rate.min()
  assert max(rates, key=rates.get) == 'egalitarian'
  best = optimize.linprog(
    [0] * 5 + [-1],
    A_ub=np.hstack([-population.preference @ population.reference, np.ones((3, 1))]),
    b_ub=np.zeros(3),
    A_eq=[[1] * 5 + [0]],
    b_eq=[1],
    method='highs-ipm',
  )
  assert rates['egalitarian'] == pytest.approx(-best.fun, abs=0.05 if tau else 1e-8)


@pytest.mark.parametrize('tau', [0.05, 0.3])
def test_saddle_point_of_one_voter_is_the_nash_equilibrium(tau):
  population = random_population(1, 7, tau)
  found = aggregation.regularised_maximin(population)
  nash = solve.regularised_nash(aggregation.mean_game(population))
  np.testing.assert_allclose(found.policy, nash, atol=1e-10)
  np.testing.assert_allclose(found.opponent[0], nash, atol=1e-10)


@pytest.mark.parametrize(
  ('tau', 'tau_opponent'), [(0.1, None), (0.1, 0.02), (0.05, 0.5), (1.0, 0.3)]
)
def test_saddle_point_answers_itself(tau, tau_opponent):
  """Both fixed-point equations, in NumPy, to 1e-10; by convexity there is one such pair."""
  population = random_population(3, 9, tau)
  p, weights, reference, _ = population
  policy, opponent = aggregation.regularised_maximin(population, tau_opponent)
  reply = special.softmax(np.log(reference) + sum(p[u] @ opponent[u] for u in range(3)) / tau)
  logits = np.log(weights)[:, None] + np.log(reference)
  logits -= np.stack([policy @ p[u] for u in range(3)]) / (tau_opponent or tau)
  assert np.abs(policy - reply).max() <= 1e-10
  assert np.abs(opponent - special.softmax(logits)).max() <= 1e-10
  assert np.abs(policy - reference).max() > 0.01


def test_saddle_point_maximises_the_soft_minimum():
  """π maximises −τ' log E_{w μ} exp(−P_u(π ≻ k)/τ') − τ KL(π‖μ): found without σ, by BFGS."""
  tau, tau_opponent = 0.1, 0.05
  population = random_population(3, 5, tau, seed=1)
  p, weights, reference, _ = population

  def loss(logits):
    log_policy = logits - special.logsumexp(logits)
    policy = np.exp(log_policy)
    beaten = -np.einsum('i,uik->uk', policy, p) / tau_opponent
    soft = -tau_opponent * special.logsumexp(beaten, b=weights[:, None] * reference)
    return tau * policy @ (log_policy - np.log(reference)) - soft

  found = optimize.minimize(loss, np.log(reference), tol=1e-12)
  policy = aggregation.regularised_maximin(population, tau_opponent).policy
  np.testing.assert_allclose(special.softmax(found.x), policy, atol=1e-4)


def test_saddle_point_nears_the_linear_program():
  """As τ = τ' falls; both in what they are sure of."""
  off = []
  for tau in (0.1, 0.02, 0.004):
    population = random_population(3, 5, tau, seed=2)
    value = aggregation.maximin(population).value
    policy = aggregation.regularised_maximin(population).policy
    off.append(value - aggregation.standing(population, policy).worst_case.min())
  assert off[0] > off[1] > off[2] > 0
  assert off[2] < 0.02


def test_saddle_points_of_a_batch_of_games():
  """vmap gives what each gives by itself."""
  populations = [random_population(3, 6, tau, seed) for seed, tau in enumerate((0.1, 0.4))]
  with jax.enable_x64(True):
    batch = jax.tree.map(lambda *x: jnp.stack(x), *populations)
    solve_all = jax.vmap(functools.partial(aggregation.saddle_point, tolerance=1e-12, max_steps=10**4), (0, None))  # fmt: skip
    found = np.asarray(solve_all(batch, 0.2)[0])
  for policy, one in zip(found, populations, strict=True):
    alone = aggregation.regularised_maximin(one, 0.2).policy
    np.testing.assert_allclose(policy, alone, atol=1e-10)


def test_proportional_of_51_against_49():
  """F gives (.51, .49), where the lottery gives all to the majority; β leans towards it."""
  population = aggregation.make([ranking(0, 1), ranking(1, 0)], [0.51, 0.49])
  np.testing.assert_allclose(aggregation.proportional(population), [0.51, 0.49])
  np.testing.assert_allclose(aggregation.aggregate('mean', population), [1, 0], atol=1e-9)
  expected = np.array([0.51, 0.49]) * np.exp([0.51 * 50, 0.49 * 50])
  np.testing.assert_allclose(
    aggregation.proportional(population, 50.0), expected / expected.sum(), rtol=1e-12
  )


def test_proportional_gives_favourites_their_share():
  """s_i is at least the share of voters whose favourite i is, so π_i ≥ w_i/Σs; β → ∞ is the minimax winner."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    orders = [rng.permutation(5) for _ in range(7)]
    population = aggregation.make([ranking(*x) for x in orders], rng.dirichlet(np.ones(7)))
    favourites = np.bincount([x[0] for x in orders], population.weights, minlength=5)
    mean = sum(w * p for w, p in zip(population.weights, population.preference, strict=True))
    share = np.array([min(mean[i, j] for j in range(5) if j != i) for i in range(5)])
    assert np.all(share >= favourites - 1e-12)
    policy = aggregation.proportional(population)
    np.testing.assert_allclose(policy, share / share.sum())
    assert np.all(policy >= favourites / share.sum() - 1e-12)
    assert aggregation.proportional(population, 1e5)[np.argmax(share)] == pytest.approx(1)


def test_personalised_policies_and_their_mixture():
  """Each voter is sure of a half by her own policy, and of nothing more by any."""
  population = random_population(3, 5, weights=[0.5, 0.3, 0.2])
  own = aggregation.personalised(population)
  np.testing.assert_allclose(aggregation.standing(population, own).worst_case, 0.5, atol=1e-8)
  np.testing.assert_allclose(aggregation.mixture(population), [0.5, 0.3, 0.2] @ own)
  for name in ('mean', 'maximin', 'proportional', 'mixture'):
    policy = aggregation.aggregate(name, population)
    assert policy.sum() == pytest.approx(1)
    assert np.all(aggregation.standing(population, policy).worst_case <= 0.5 + 1e-9)


def test_standing_by_hand():
  population = aggregation.make(
    [ranking(0, 1, 2), ranking(2, 0, 1)], [0.75, 0.25], [0.5, 0.25, 0.25]
  )
  found = aggregation.standing(population, np.array([0.5, 0.5, 0.0]))
  np.testing.assert_allclose(found.worst_case, [0.25, 0.0])
  np.testing.assert_allclose(found.win_rate, [0.5625, 0.3125])
  assert found.mean_worst_case == pytest.approx(0.25)
  assert found.mean_win_rate == pytest.approx(0.75 * 0.5625 + 0.25 * 0.3125)


def test_mean_game_is_that_of_the_pooled_voters():
  scores = np.array([[2, 1, 3], [4, 6, 5], [9, 8, 7]], float)
  voters = [sources.from_scores(row[None]) for row in scores]
  population = aggregation.make(voters, tau=0.1)
  np.testing.assert_allclose(
    aggregation.mean_game(population).preference, sources.from_scores(scores)
  )
  nash = solve.regularised_nash(game.make(sources.from_scores(scores), tau=0.1))
  np.testing.assert_allclose(aggregation.aggregate('mean', population), nash, atol=1e-12)


CYCLE = sources.rock_paper_scissors().preference


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: aggregation.make(CYCLE), r'must be \[voters, responses, responses\], got shape'),
    (lambda: aggregation.make([CYCLE, CYCLE + 0.2]), r'Voter 1: P\[.* must be in \[0, 1\]'),
    (lambda: aggregation.make([CYCLE, CYCLE * np.nan], voters=['a', 'b']), 'Voter b: .* is unknown'),
    (lambda: aggregation.make([CYCLE], [0.5, 0.5]), 'There must be 1 weights'),
    (lambda: aggregation.make([CYCLE] * 2, [1, 0]), 'weight of voter 1 must be positive, got 0.0'),
    (lambda: aggregation.make([CYCLE], tau=-1.0), 'tau must be 0'),
    (lambda: aggregation.proportional(aggregation.make([CYCLE])), 'take maximin or mean'),
    (lambda: aggregation.proportional(aggregation.make([CYCLE]), -1.0), 'beta must be 0'),
    (lambda: aggregation.regularised_maximin(aggregation.make([CYCLE])), 'tau must be positive'),
    (
      lambda: aggregation.regularised_maximin(aggregation.make([CYCLE], tau=0.1), 0.0),
      'tau_opponent must be positive, got 0.0',
    ),
    (
      lambda: aggregation.aggregate('maximins', aggregation.make([CYCLE])),
      'known are mean, maximin, .* Did you mean maximin',
    ),
  ],
)  # fmt: skip
def test_mistake_is_one_line(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
