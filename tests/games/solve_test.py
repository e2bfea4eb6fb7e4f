"""Solvers against the oracle, the theorem's bound at every step, the rates that papers promise; oracles against theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from nlhf_jax.games import game, solve, solvers, sources

FILES = ('glasgow2007_ward9', 'f1_1970', 'soccer10', 'blotto_5_3', 'debian2005_leader')


@pytest.mark.parametrize(('size', 'tau'), [(2, 0.01), (5, 0.05), (40, 0.02), (120, 0.3), (9, 1.0)])
def test_regularised_nash(size, tau, random_game):
  g = random_game(size, tau, size)
  policy = solve.regularised_nash(g)
  target = special.softmax(np.log(g.reference) + g.preference @ policy / tau)
  assert np.abs(policy - target).max() <= 1e-12
  with jax.enable_x64(True):
    assert abs(game.duality_gap(g, policy)) < 1e-12
    assert game.duality_gap(g, g.reference) > 1e-4


def test_logistic_solution_of_two_responses():
  g = game.make([[0.5, 0.8], [0.2, 0.5]], [0.3, 0.7], 0.25)
  policy = solve.regularised_nash(g)
  assert special.logit(policy[0]) == pytest.approx(special.logit(0.3) + 0.3 / 0.25, abs=1e-9)


def test_error_of_a_fixed_point_without_regularisation():
  with pytest.raises(ValueError, match='tau must be positive'):
    solve.regularised_nash(game.make(sources.section_3_2().preference))


# By how much a step shrinks the distance, at the default step sizes.
RATES = {
  'egpo': lambda tau: 2 * tau / (1 + 2 * tau),
  'nash_mp': lambda tau: 2 * tau / (1 + 2 * tau),
  'omwu': lambda tau: tau / 4,
  'self_play': lambda tau: 4 * tau**2 / (1 + 4 * tau**2),
  'magnetic': lambda tau: 4 * tau**2 / (1 + 4 * tau**2),
}


@pytest.mark.parametrize('name', RATES)
@pytest.mark.parametrize('tau', [0.05, 0.5])
def test_convergence_of_last_iterates(name, tau, random_game):
  g = random_game(12, tau)
  nash = solve.regularised_nash(g)
  num_steps = int(30 / RATES[name](tau))
  policy, curve = solve.run(solvers.named(name), g, num_steps, nash=nash)
  assert curve.duality_gap[-1] < 1e-8
  np.testing.assert_allclose(policy, nash, atol=1e-6)
  assert curve.step[0] == 0
  assert np.all(curve.duality_gap > -1e-14)


@pytest.mark.parametrize('tau', [0.05, 0.3, 1.0])
@pytest.mark.parametrize('eta', [None, 0.02, 0.3])
def test_theorem_1(tau, eta, random_game):
  """KL(π*, π_{t+1}) ≤ (1 − ητ) KL(π*, π_t) + 2η²; with η_t = 2/(τ(t + 2)) KL(π*, π_T) ≤ 8/(τ²(T + 1))."""
  for seed in range(3):
    g = random_game(10, tau, seed)
    _, curve = solve.run(
      solvers.nash_md(eta), g, 400, num_records=400, nash=solve.regularised_nash(g)
    )
    kl, t = curve.kl_to_nash, curve.step
    if eta is None:
      assert np.all(kl[1:] <= 8 / (tau**2 * (t[1:] + 1)))
    size = 2 / (tau * (t[:-1] + 2)) if eta is None else eta
    assert np.all(kl[1:] <= (1 - size * tau) * kl[:-1] + 2 * size**2 + 1e-12)


def test_equivalence_of_nash_mp_and_egpo(random_game):
  """Under η_EG = η_MP/(τ(1 + η_MP)), step for step."""
  g = random_game(8, 0.2)
  eta = 0.3
  a, _ = solve.run(solvers.nash_mp(eta), g, 7, num_records=7)
  b, _ = solve.run(solvers.egpo(eta / (0.2 * (1 + eta))), g, 7, num_records=7)
  np.testing.assert_allclose(a, b, rtol=1e-12)


def test_formula_of_nash_mp(random_game):
  g, eta, tau = random_game(8, 0.2), 0.3, 0.2
  found, _ = solve.run(solvers.nash_mp(eta), g, 1)
  log_reference, policy = np.log(g.reference), g.reference
  for _ in range(2):
    logits = np.log(g.reference) + eta * log_reference + eta / tau * g.preference @ policy
    policy = special.softmax(logits / (1 + eta))
  np.testing.assert_allclose(found, policy, rtol=1e-12)


@pytest.mark.parametrize('tau', [0.02, 0.1, 0.4])
def test_rate_of_extragradient(tau, random_game):
  """KL(π*, π_k) ≤ (1 + η)^{-k} KL(π*, π_0) with η = 2τ, Nash-MP's theorem."""
  g = random_game(20, tau)
  nash = solve.regularised_nash(g)
  _, curve = solve.run(solvers.nash_mp(), g, 200, num_records=200, nash=nash)
  bound = curve.kl_to_nash[0] * (1 + 2 * tau) ** -curve.step.astype(float)
  assert np.all(curve.kl_to_nash <= bound + 1e-14)


@pytest.mark.parametrize('beta', [0.0, 0.3, 0.8, 1.0])
def test_fixed_point_of_a_fixed_mixture(beta, random_game):
  """π_β ∝ μ exp(P(y ≻ mix_β(π_β))/τ), and the mixture is the equilibrium at τ/(1 − β)."""
  tau = 0.2
  g = random_game(7, tau)
  policy, _ = solve.run(solvers.mixed(beta), g, 4000)
  mixture = special.softmax((1 - beta) * np.log(policy) + beta * np.log(g.reference))
  target = special.softmax(np.log(g.reference) + g.preference @ mixture / tau)
  np.testing.assert_allclose(policy, target, atol=1e-10)
  if beta < 1:
    softer = game.make(g.preference, g.reference, tau / (1 - beta))
    np.testing.assert_allclose(mixture, solve.regularised_nash(softer), atol=1e-10)


def test_closed_form_of_the_best_response(random_game):
  g = random_game(7, 0.2)
  policy, curve = solve.run(solvers.best_response(), g, 1)
  np.testing.assert_allclose(
    policy, special.softmax(np.log(g.reference) + g.preference @ g.reference / 0.2), rtol=1e-12
  )
  assert curve.duality_gap[-1] > 1e-3


def test_convergence_of_averages(random_game):
  g = random_game(7, 0.2)
  _, curve = solve.run(solvers.fictitious_play(), g, 4000)
  assert curve.duality_gap[-1] < 1e-5
  _, curve = solve.run(solvers.nash_ema(), g, 4000)
  assert curve.duality_gap[-1] < 1e-8  # It settles where τ is large enough.


@pytest.mark.parametrize('name', ['fictitious_play', 'reset_magnet'])
def test_without_regularisation(name):
  g = game.make(sources.section_3_2(0.1).preference)
  policy, curve = solve.run(solvers.named(name), g, 20_000)
  assert curve.duality_gap[-1] < (2e-2 if name == 'fictitious_play' else 1e-12)
  np.testing.assert_allclose(policy, [0.38333, 0.38333, 0.23333], atol=2e-2)


@pytest.mark.parametrize('size', [1, 4])
def test_ring_with_a_pull_stops_at_the_equilibrium(size, random_game):
  """And without one circles about the lottery."""
  g = random_game(8, 0.2)
  policy, _ = solve.run(solvers.mnpo(size=size), g, 3000)
  np.testing.assert_allclose(policy, solve.regularised_nash(g), atol=1e-9)
  _, curve = solve.run(solvers.mnpo(0.1, size), g._replace(tau=np.float64(0)), 4000)
  assert curve.duality_gap[-20:].min() > 0.05


def test_ring_of_one_is_self_play(random_game):
  g = random_game(8, 0.2)
  a, _ = solve.run(solvers.mnpo(0.3, 1), g, 20)
  b, _ = solve.run(solvers.self_play(0.3), g, 20)
  np.testing.assert_allclose(a, b, rtol=1e-12)


def test_optimistic_steps_reach_the_lottery(random_game):
  """By the last iterate, without regularisation, where steps against itself go round."""
  g = random_game(8, 0.0)
  policy, curve = solve.run(solvers.onpo(2.0), g, 8000)
  assert curve.duality_gap[-1] < 1e-9
  np.testing.assert_allclose(policy, solve.maximal_lottery(g.preference).policy, atol=1e-6)
  _, plain = solve.run(solvers.self_play(2.0), g, 8000)
  assert plain.duality_gap[-20:].min() > 0.05


@pytest.mark.parametrize('tau', [0.1, 1.0])
def test_equilibrium_under_the_forward_kl(tau, random_game):
  """No other policy gains in P(π ≻ π') − τ KL(μ‖π), by a general optimiser."""
  g = random_game(6, tau)
  policy, _ = solve.run(solvers.rspo(), g, 20_000)
  q = g.preference @ policy
  np.testing.assert_allclose(policy, g.reference / (1 - (q - 0.5) / tau), rtol=1e-9)

  def loss(logits):
    p = special.softmax(logits)
    return -(p @ q + tau * g.reference @ np.log(p))

  best = optimize.minimize(loss, np.log(g.reference), tol=1e-12)
  np.testing.assert_allclose(special.softmax(best.x), policy, atol=1e-4)


@pytest.mark.parametrize(('tau', 'tau_follower'), [(0.3, 0.05), (0.05, 1.0)])
def test_leader_and_follower(tau, tau_follower, random_game):
  """Mirror steps reach the closed form, whose limits are the worst case of each response, and the response to μ."""
  g = random_game(7, tau)
  leader, follower = solve.stackelberg(g, tau_follower)
  found, _ = solve.run(solvers.stackelberg(tau_follower), g, 2000)
  np.testing.assert_allclose(found, leader, atol=1e-9)
  # The follower's own regularised problem, by a general optimiser.
  p = g.preference[2]

  def loss(logits):
    omega = special.softmax(logits)
    return omega @ p + tau_follower * special.rel_entr(omega, g.reference).sum()

  best = optimize.minimize(loss, np.zeros(7), tol=1e-12)
  np.testing.assert_allclose(special.softmax(best.x), follower[2], atol=1e-4)
  softmax = lambda value: special.softmax(np.log(g.reference) + value / tau)
  worst, _ = solve.stackelberg(g, 1e-5)
  np.testing.assert_allclose(worst, softmax(g.preference.min(axis=1)), atol=1e-3)
  given, _ = solve.stackelberg(g, 1e5)
  np.testing.assert_allclose(given, softmax(g.preference @ g.reference), atol=1e-4)
  noisy, _ = solve.run(solvers.stackelberg(tau_follower, 0.05), g, 2000, payoff=solvers.sampled(20))
  np.testing.assert_allclose(noisy, leader, atol=0.05)


def test_error_of_a_follower_without_regularisation(random_game):
  with pytest.raises(ValueError, match=r'must be positive, got 0\.1 and 0'):
    solve.stackelberg(random_game(3, 0.1), 0.0)


@pytest.mark.parametrize('name', FILES)
def test_magnet_reset_on_real_games(name, test_data):
  """A gap of 1e-6 without regularisation, by exact stages, where π*_τ stops at a floor.

  Glasgow's first three are so close that stages of τ = .01 take 402: the weaker the pull, the fewer.
  """
  p = sources.read_table(test_data / 'games' / f'{name}.csv').preference
  gap = lambda policy: 2 * np.max(p @ policy) - 1
  assert gap(solve.regularised_nash(game.make(p, tau=0.1))) > 0.05
  policy = np.full(len(p), 1 / len(p))
  for _ in range(60):
    magnet = np.maximum(policy, 1e-300)  # A reference is positive.
    tau = 0.003 if name == 'glasgow2007_ward9' else 0.01
    policy = solve.regularised_nash(game.make(p, magnet, tau))
    if gap(policy) <= 1e-6:
      return
  pytest.fail(f'The gap is {gap(policy)} after 60 stages.')


def test_estimated_payoffs(random_game):
  """Estimated payoffs are unbiased, and a noisy run hovers about the equilibrium."""
  g = random_game(5, 0.3)
  policy = np.random.default_rng(0).dirichlet(np.ones(5))
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(jax.vmap(lambda k: solvers.sampled(4, votes=True)(g, policy, k))(keys))
  np.testing.assert_allclose(draws.mean(axis=0), g.preference @ policy, atol=4 * 0.25 / 4000**0.5)
  noisy, _ = solve.run(solvers.nash_md(), g, 4000, payoff=solvers.sampled(4))
  np.testing.assert_allclose(noisy, solve.regularised_nash(g), atol=0.03)


def test_vmap_over_games_step_sizes_and_seeds(random_game):
  """vmap over games, τ, η, β and seeds gives what each gives by itself."""
  games = [random_game(6, tau, seed) for seed, tau in enumerate([0.1, 0.4])]
  etas, betas, seeds = np.array([0.3, 0.5]), np.array([0.2, 0.7]), np.array([3, 4])
  estimate = solvers.sampled(3)

  def final(g, eta, beta, seed):
    solver = solvers.mixed(beta, eta)
    rng = jax.random.key(seed)
    return solve.iterate(solver, g, solver.init(g), 0, 30, rng, estimate).log_policy

  with jax.enable_x64(True):
    batch = jax.tree.map(lambda *x: jnp.stack(x), *games)
    batched = jax.jit(jax.vmap(final))(batch, etas, betas, seeds)
    for i in range(2):
      single = final(games[i], etas[i], betas[i], seeds[i])
      np.testing.assert_allclose(batched[i], single, rtol=1e-9)


@pytest.mark.parametrize('name', FILES)
def test_real_games(name, test_data):
  table = sources.read_table(test_data / 'games' / f'{name}.csv')
  lottery = solve.maximal_lottery(table.preference)
  assert lottery.value == pytest.approx(0.5, abs=1e-9)
  assert lottery.unique == (name != 'blotto_5_3')
  g = game.make(table.preference, tau=0.05)
  nash = solve.regularised_nash(g)
  _, curve = solve.run(solvers.egpo(), g, 2000, nash=nash)
  assert curve.duality_gap[-1] < 1e-8
  known = {'f1_1970': [0.714, 0.143, 0.143], 'soccer10': [0.522, 0.331, 0.147]}
  if name in known:
    np.testing.assert_allclose(np.sort(lottery.policy)[::-1][:3], known[name], atol=1e-3)


@pytest.mark.parametrize('size', [2, 3, 10, 60])
def test_maximal_lottery_against_an_interior_point_method(size, random_game):
  p = random_game(size, 0.0, size).preference
  lottery = solve.maximal_lottery(p)
  # The column player's program, by another algorithm.
  c = np.append(np.zeros(size), 1.0)
  a_ub = np.hstack([p, -np.ones((size, 1))])
  a_eq = np.append(np.ones(size), 0.0)[None]
  bounds = [(0, None)] * size + [(None, None)]
  other = optimize.linprog(c, a_ub, np.zeros(size), a_eq, [1.0], bounds, method='highs-ipm')
  assert lottery.value == pytest.approx(other.fun, abs=1e-9)
  assert lottery.unique
  np.testing.assert_allclose(lottery.policy, other.x[:size], atol=1e-6)


@pytest.mark.parametrize(
  ('table', 'unique'),
  [
    # All are ties.
    (np.full((2, 2), 0.5), False),
    (sources.rock_paper_scissors().preference, True),
    # Two cycles.
    (np.kron(np.eye(2), sources.rock_paper_scissors().preference - 0.5) + 0.5, False),
    # A clone of the winner, and one that is no clone: it loses to the third.
    (np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]]), False),
    (np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.1], [0.1, 0.9, 0.5]]), False),
    (np.array([[0.5, 0.6, 0.9], [0.4, 0.5, 0.1], [0.1, 0.9, 0.5]]), True),
  ],
)
def test_uniqueness_of_equilibria(table, unique):
  assert solve.maximal_lottery(table).unique == unique


@pytest.mark.parametrize(
  ('make', 'tau', 'message'),
  [
    (
      functools.partial(solvers.nash_md, 11.0),
      0.1,
      r'eta \* tau must be in \(0, 1\], got 11 \* 0.1 = 1.1',
    ),
    (functools.partial(solvers.nash_md, -1.0), 0.1, r'eta \* tau must be in'),
    (solvers.nash_md, 0.0, 'takes its step size from tau, which is 0'),
    (solvers.self_play, 0.0, 'takes its step size from tau, which is 0'),
    (functools.partial(solvers.mixed, 1.5), 0.1, r'beta must be in \[0, 1\]'),
    (
      functools.partial(solvers.named, 'nash_mb'),
      0.1,
      'No algorithm nash_mb.* Did you mean nash_md?',
    ),
    (functools.partial(solvers.named, 'egpo', decay=0.9), 0.1, 'egpo takes no decay: it has eta'),
    (functools.partial(solvers.named, 'mixed'), 0.1, 'mixed needs beta'),
  ],
)
def test_error_of_a_wrong_setting(make, tau, message):
  with pytest.raises(ValueError, match=message):
    solve.run(make(), game.make(sources.section_3_2().preference, tau=tau), 10)
