"""Solves games: any solver with its curve, and the exact oracles that solvers and deep methods are tested against.

`iterate` is pure: a `lax.scan`, for `jax.jit` and for `jax.vmap` over games, step sizes, β and seeds. `run` is for one
game from the host, in double precision. `regularised_nash` is π*_τ as a fixed point, `maximal_lottery` the equilibrium
without regularisation as a linear program, `stackelberg` the closed form where one side sees the other's response.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # Its `optimize` is imported at first use, so that training need not wait for it.
from jaxtyping import Array, Float, Int
from scipy import special

from nlhf_jax.games import game as games
from nlhf_jax.games import solvers
from nlhf_jax.games.game import Distribution, PreferenceGame
from nlhf_jax.games.solvers import PayoffFn, Solver, State


class Curve(NamedTuple):
  """How a solver gets there: a row for every recorded step."""

  step: Int[Array, 'records']
  # Of the last iterate.
  duality_gap: Float[Array, 'records']
  # KL(π*‖π_t), nats; NaN where π* is not given.
  kl_to_nash: Float[Array, 'records']


class Lottery(NamedTuple):
  """A maximal lottery: π with P(π ≻ y) ≥ 1/2 for every y (Kreweras 1965, Fishburn 1984)."""

  policy: Float[np.ndarray, 'Y']
  # min_y P(π ≻ y): 1/2, up to rounding.
  value: float
  unique: bool


def iterate(
  solver: Solver,
  game: PreferenceGame,
  state: State,
  start: Int[Array, ''] | int,
  num_steps: int,
  rng: jax.Array,
  payoff: PayoffFn = solvers.exact,
) -> State:
  """`num_steps` steps of a solver, from step number `start` on."""

  def step(state, t):
    return solver.step(game, state, t, payoff, jax.random.fold_in(rng, t)), None

  return jax.lax.scan(step, state, start + jnp.arange(num_steps))[0]


def trace(
  solver: Solver,
  game: PreferenceGame,
  state: State,
  start: Int[Array, ''] | int,
  num_records: int,
  every: int,
  rng: jax.Array,
  payoff: PayoffFn = solvers.exact,
  nash: Distribution | None = None,
) -> tuple[State, Curve]:
  """`num_records` times `every` steps, each followed by a record. Pure."""

  def record(state, number):
    first = start + number * every
    state = iterate(solver, game, state, first, every, rng, payoff)
    policy = jnp.exp(state.log_policy)
    gap = games.duality_gap(game, policy)
    kl = jnp.full_like(gap, jnp.nan) if nash is None else kl_to(nash, state.log_policy)
    return state, Curve(first + every, gap, kl)

  return jax.lax.scan(record, state, jnp.arange(num_records))


def run(
  solver: Solver,
  game: PreferenceGame,
  num_steps: int,
  *,
  num_records: int = 100,
  payoff: PayoffFn = solvers.exact,
  seed: int = 0,
  nash: Distribution | None = None,
  advance: Callable[[int], None] = lambda steps: None,
) -> tuple[Float[np.ndarray, 'Y'], Curve]:
  """Runs a solver on one game in double precision.

  Args:
    solver: of `solvers`.
    game: of `game.make`.
    num_steps: rounded up to a multiple of the steps between two records.
    num_records: rows of the curve.
    payoff: exact, or an estimate.
    seed: of the estimate.
    nash: π*, for the curve's KL.
    advance: called with the steps done, for a progress bar.

  Returns:
    The policy, and the curve, whose first row is the start.

  Raises:
    ValueError: the step size η does not fit the game: 0 < ητ ≤ 1 is needed, or η > 0 where τ = 0.
  """
  if num_steps < 1:
    raise ValueError(f'num_steps must be at least 1, got {num_steps}.')
  with jax.enable_x64(True):
    check_step_size(solver, game)
    every = -(-num_steps // num_records)
    rng = jax.random.key(seed)
    part = jax.jit(functools.partial(trace, solver, payoff=payoff), static_argnums=(3, 4))
    state = solver.init(game)
    curves = [_start(game, state, nash)]
    total, chunk = -(-num_steps // every), -(-num_records // 20)
    for done in range(0, total, chunk):
      size = min(chunk, total - done)
      state, curve = part(game, state, done * every, size, every, rng, nash=nash)
      curves.append(curve)
      jax.block_until_ready(curve)
      advance(size * every)
    curve = jax.tree.map(lambda *rows: np.concatenate(rows), *curves)
    return np.exp(np.asarray(state.log_policy)), curve


def check_step_size(solver: Solver, game: PreferenceGame) -> None:
  """Raises ValueError unless 0 < ητ ≤ 1 at the first step, or η > 0 where τ = 0."""
  if solver.eta is None:
    return
  with np.errstate(all='ignore'):
    eta = float(solver.eta(game, 0))
  tau = float(game.tau)
  if not np.isfinite(eta) or (eta == 0 and tau == 0):
    raise ValueError(
      'This solver takes its step size from tau, which is 0: give eta, or tau > 0, or take '
      'fictitious_play or reset_magnet.'
    )
  if not (eta > 0 and eta * tau <= 1 + 1e-9):
    raise ValueError(f'eta * tau must be in (0, 1], got {eta:g} * {tau:g} = {eta * tau:g}.')


def regularised_nash(
  game: PreferenceGame, *, tolerance: float = 1e-12, max_steps: int = 1_000_000
) -> Float[np.ndarray, 'Y']:
  """π*_τ: Nash-MP until max_y |π − softmax(log μ + Pπ/τ)| < tolerance, in double precision.

  Raises:
    ValueError: τ is not positive, or the residual does not reach the tolerance.
  """
  if not game.tau > 0:
    raise ValueError(f'tau must be positive, got {game.tau}: without it use `maximal_lottery`.')
  with jax.enable_x64(True):
    policy, residual = jax.tree.map(np.asarray, fixed_point(game, tolerance, max_steps))
  if not residual < tolerance:
    raise ValueError(
      f'No fixed point within {tolerance} after {max_steps} steps at tau = {game.tau}: residual {residual}.'
    )
  return policy


@functools.partial(jax.jit, static_argnums=(1, 2))
def fixed_point(game: PreferenceGame, tolerance: float, max_steps: int):
  """Nash-MP until the residual is small enough, or the steps are spent. Pure; vmaps over games."""
  solver = solvers.nash_mp()

  def unfinished(carry):
    t, _, residual = carry
    return (residual >= tolerance) & (t < max_steps)

  def step(carry):
    t, state, _ = carry
    state = solver.step(game, state, t, solvers.exact, jax.random.key(0))
    return t + 1, state, games.residual(game, jnp.exp(state.log_policy))

  start = (0, solver.init(game), jnp.asarray(jnp.inf, jnp.result_type(game.reference)))
  _, state, residual = jax.lax.while_loop(unfinished, step, start)
  return jnp.exp(state.log_policy), residual


def stackelberg(
  game: PreferenceGame,
  tau_follower: float,
  follower_reference: Float[np.ndarray, 'Y Y'] | None = None,
) -> tuple[Float[np.ndarray, 'Y'], Float[np.ndarray, 'Y Y']]:
  """A leader, and a follower who sees the leader's response before answering it.

  max_π min_ω E[P(y ≻ y') + τ_F KL(ω(·|y)‖ω_ref(·|y))] − τ KL(π‖μ), in closed form: ω(y'|y) ∝ ω_ref(y'|y) exp(P(y' ≻ y)/τ_F), a
  response is worth V(y) = −τ_F log E_{y' ~ ω_ref}[exp(−P(y ≻ y')/τ_F)], and π ∝ μ exp(V/τ). As τ_F → 0 the leader is sure of the
  most against the worst answer, as τ_F → ∞ it is the best response to ω_ref.

  Args:
    game: with the leader's τ > 0.
    tau_follower: τ_F > 0.
    follower_reference: ω_ref, a row for each of the leader's responses; None: μ in each.

  Returns:
    π, and ω, a row for each of the leader's responses.

  Raises:
    ValueError: a strength is not positive.

  Source: arXiv:2512.16626.
  """
  if not (game.tau > 0 and tau_follower > 0):
    raise ValueError(
      f'tau and tau_follower must be positive, got {game.tau:g} and {tau_follower:g}.'
    )
  shape = game.preference.shape
  given = game.reference if follower_reference is None else follower_reference
  log_weights = np.log(np.broadcast_to(given, shape)) - game.preference / tau_follower
  log_sum = special.logsumexp(log_weights, axis=1)
  follower = np.exp(log_weights - log_sum[:, None])
  return special.softmax(np.log(game.reference) - tau_follower * log_sum / game.tau), follower


def maximal_lottery(preference: Float[np.ndarray, 'Y Y']) -> Lottery:
  """The equilibrium without regularisation, by linear program: maximise v with π(P − 1/2) ≥ v on the simplex.

  Whether it is the only one is decided, not searched: an equilibrium of a symmetric zero-sum game is unique if and only
  if every response outside its support loses to it, and the support's own game has no second one (the kernel of its
  payoffs is a line).

  Raises:
    ValueError: the program has no solution: P is no preference.
  """
  advantage = np.asarray(preference, np.float64) - 0.5
  policy, _ = maximise_worst(advantage.T)
  return Lottery(policy, 0.5 + float(np.min(policy @ advantage)), _is_unique(advantage, policy))


def maximise_worst(
  payoffs: Float[np.ndarray, 'cases Y'],
) -> tuple[Float[np.ndarray, 'Y'], Float[np.ndarray, 'cases']]:
  """The policy that maximises its least payoff over some cases, by linear program.

  Args:
    payoffs: of each response in each case.

  Returns:
    The policy, and the multipliers of the cases: the mixture of them in which no response is worth more than that.

  Raises:
    ValueError: the program has no solution.
  """
  num_cases, size = payoffs.shape
  result = scipy.optimize.linprog(
    c=np.append(np.zeros(size), -1.0),
    A_ub=np.hstack([-payoffs, np.ones((num_cases, 1))]),
    b_ub=np.zeros(num_cases),
    A_eq=np.append(np.ones(size), 0.0)[None],
    b_eq=np.ones(1),
    bounds=[(0, None)] * size + [(None, None)],
    method='highs-ds',
    options={'primal_feasibility_tolerance': 1e-10, 'dual_feasibility_tolerance': 1e-10},
  )
  if not result.success:
    raise ValueError(
      f'The linear program of {size} responses in {num_cases} cases has no solution: {result.message}'
    )
  policy = np.where(result.x[:size] > 1e-9, result.x[:size], 0)
  return policy / policy.sum(), np.maximum(-result.ineqlin.marginals, 0)


def _is_unique(advantage: Float[np.ndarray, 'Y Y'], policy: Float[np.ndarray, 'Y']) -> bool:
  support = policy > 0
  if np.any((policy @ advantage)[~support] < 1e-9):
    return False
  singular = np.linalg.svd(advantage[np.ix_(support, support)], compute_uv=False)
  return int(np.sum(singular < 1e-9)) == 1


def lottery_bounds(
  margins: Float[np.ndarray, 'Y Y'],
) -> tuple[Float[np.ndarray, 'Y'], Float[np.ndarray, 'Y']]:
  """Between what each weight of a maximal lottery lies, where margins P − 1/2 are only known to be at most these.

  Every maximal lottery of every such P satisfies Σ_j π_j u_jk ≥ 0 for all k; least and greatest π_i under that, which is
  sound and may be wider than need be.

  Args:
    margins: u, upper bounds of P − 1/2; those of the mirrored entries are the lower ones.
  """
  size = len(margins)
  ends = np.empty((2, size))
  for i in range(size):
    for row, sign in enumerate((1.0, -1.0)):
      cost = np.zeros(size)
      cost[i] = sign
      found = scipy.optimize.linprog(
        cost,
        A_ub=-margins.T,
        b_ub=np.full(size, 1e-12),
        A_eq=np.ones((1, size)),
        b_eq=np.ones(1),
        bounds=(0, 1),
        method='highs',
      )
      ends[row, i] = sign * found.fun
  return np.clip(ends[0], 0, 1), np.clip(ends[1], 0, 1)


def kl_to(nash: Distribution, log_policy: Float[Array, 'Y']) -> Float[Array, '']:
  """KL(π*‖π) from log π, so that a probability too small for a float costs no infinity."""
  nash = jnp.asarray(nash)
  log_nash = jnp.log(jnp.where(nash > 0, nash, 1))
  return jnp.sum(jnp.where(nash > 0, nash * (log_nash - log_policy), 0))


def _start(game: PreferenceGame, state: State, nash: Distribution | None) -> Curve:
  gap = games.duality_gap(game, jnp.exp(state.log_policy))
  kl = jnp.nan if nash is None else kl_to(nash, state.log_policy)
  return Curve(np.array([0]), np.array([gap]), np.array([kl]))
