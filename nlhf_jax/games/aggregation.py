"""One policy for several voters: whose preference counts is a choice, and these are the field's.

P_u[i, j] = P_u(y_i ≻ y_j) of voter u, w_u her weight, P = Σ_u w_u P_u their mean; μ reference, τ strength.

| aggregation  | policy                                                                                                       |
|--------------|--------------------------------------------------------------------------------------------------------------|
| mean         | Nash of P: a maximal lottery, or π*_τ                                                                        |
| maximin      | max_π min_{u,k} P_u(π ≻ k), a Blackwell winner; with τ the saddle point of `saddle_point`                     |
| egalitarian  | max_π min_u P_u(π ≻ μ): the worst-off voter's win rate against μ itself, which maximin is not about            |
| proportional | F^β: π_i ∝ s_i exp(β s_i), s_i = min_{j≠i} P(i ≻ j), which is at least the share of voters whose favourite i is |
| personalised | a policy each: the Nash of P_u                                                                               |
| mixture      | Σ_u w_u π_u of these; random dictatorship where voters rank and τ = 0                                         |

What a voter is sure of under π is min_k P_u(π ≻ k). Of one who ranks it is what π gives against her favourite, half its
probability: without regularisation maximin then divides itself among the voters' favourites.

Source: Munos et al. (2024), arXiv:2312.00886 (mean); Bhatia et al. (2020), arXiv:2105.01850, and arXiv:2602.19041
(Blackwell winners); Chakraborty et al. (2024), arXiv:2402.08925 (egalitarian, of rewards); arXiv:2506.05619
(population-proportional).
"""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jaxtyping import Array, Float

from nlhf_jax.games import game as games
from nlhf_jax.games import solve
from nlhf_jax.games.game import Distribution, PreferenceGame, Scalar


class PopulationGame(NamedTuple):
  """The preference game of several voters."""

  # P_u.
  preference: Float[Array, 'U Y Y'] | Float[np.ndarray, 'U Y Y']
  # w; positive, adds up to 1.
  weights: Float[Array, 'U'] | Float[np.ndarray, 'U']
  # μ; positive.
  reference: Distribution
  # Preference units per nat; 0: no regularisation.
  tau: Scalar


class Maximin(NamedTuple):
  """A Blackwell winner, and the mixture of voters and responses that certifies it."""

  policy: Float[np.ndarray, 'Y']
  # min_{u,k} P_u(π ≻ k), at most 1/2. No policy has more: max_i Σ σ(u, k) P_u(i ≻ k) is as much.
  value: float
  # σ; adds up to 1.
  opponent: Float[np.ndarray, 'U Y']


class SaddlePoint(NamedTuple):
  """Of the regularised game against voters and responses."""

  policy: Float[np.ndarray, 'Y']
  # σ; adds up to 1.
  opponent: Float[np.ndarray, 'U Y']


class Standing(NamedTuple):
  """What a policy, or a policy for each, is to every voter."""

  # min_k P_u(π ≻ k): what she is sure of.
  worst_case: Float[np.ndarray, 'U']
  # P_u(π ≻ μ).
  win_rate: Float[np.ndarray, 'U']
  # The same of their mean: min_k P(π ≻ k), P(π ≻ μ).
  mean_worst_case: float
  mean_win_rate: float


def make(
  preference, weights=None, reference=None, tau: float = 0.0, voters: Sequence[str] | None = None
) -> PopulationGame:
  """A checked game, in double precision on the host.

  Args:
    preference: P_u [U, Y, Y].
    weights: w [U]; normalised. None: all alike.
    reference: μ [Y]; normalised. None: uniform.
    tau: τ ≥ 0.
    voters: names for errors; None: numbers.

  Raises:
    ValueError: some P_u is no preference, a weight or an entry of μ is not positive, or τ is negative; names the voter.
  """
  preference = np.asarray(preference, np.float64)
  if preference.ndim != 3 or not len(preference):
    raise ValueError(
      f'Preferences of several voters must be [voters, responses, responses], got shape {preference.shape}.'
    )
  names = [str(u) for u in range(len(preference))] if voters is None else list(voters)
  for name, one in zip(names, preference, strict=True):
    try:
      games.check(one)
    except ValueError as error:
      raise ValueError(f'Voter {name}: {error}') from None
  size = len(preference)
  weights = np.full(size, 1 / size) if weights is None else np.asarray(weights, np.float64)
  if weights.shape != (size,):
    raise ValueError(f'There must be {size} weights, one a voter: got shape {weights.shape}.')
  for u in np.flatnonzero(~((weights > 0) & np.isfinite(weights))):
    raise ValueError(
      f'The weight of voter {names[u]} must be positive, got {weights[u]}: leave out who is not to count.'
    )
  checked = games.make(preference[0], reference, tau)
  return PopulationGame(preference, weights / weights.sum(), checked.reference, checked.tau)


def mean_game(population: PopulationGame) -> PreferenceGame:
  """The game of the voters' mean preference."""
  weighted = population.weights[:, None, None] * population.preference
  return PreferenceGame(weighted.sum(axis=0), population.reference, population.tau)


def nash(game: PreferenceGame) -> Float[np.ndarray, 'Y']:
  """π*_τ; a maximal lottery where τ = 0."""
  if game.tau > 0:
    return solve.regularised_nash(game)
  return solve.maximal_lottery(game.preference).policy


def maximin(population: PopulationGame) -> Maximin:
  """max t: Σ_i π_i P_u(i ≻ k) ≥ 1/2 + t for every voter u and response k; without regularisation. Weights do not count.

  t ≤ 0, for π does not beat itself; for one voter π is her maximal lottery, and t = 0.

  Raises:
    ValueError: the program has no solution.
  """
  num_voters, size, _ = population.preference.shape
  # [(u, k), i]
  advantage = np.asarray(population.preference, np.float64).swapaxes(1, 2).reshape(-1, size) - 0.5
  policy, opponent = solve.maximise_worst(advantage)
  opponent = (opponent / opponent.sum()).reshape(num_voters, size)
  return Maximin(policy, 0.5 + float(np.min(advantage @ policy)), opponent)


def regularised_maximin(
  population: PopulationGame,
  tau_opponent: float | None = None,
  *,
  tolerance: float = 1e-12,
  max_steps: int = 1_000_000,
) -> SaddlePoint:
  """The saddle point of E_{π,σ} P_u(y ≻ k) − τ KL(π‖μ) + τ' KL(σ‖w μ), in double precision.

  π ∝ μ exp(E_σ P_u(y ≻ k)/τ), σ(u, k) ∝ w_u μ(k) exp(−P_u(π ≻ k)/τ'). For one voter and τ' = τ both are π*_τ. As τ' → 0
  σ is the hardest voter and response alone; as τ' → ∞ it is w μ, and π the best response to μ by the mean.

  Args:
    population: the game; τ > 0.
    tau_opponent: τ' > 0; None: τ.
    tolerance: of the probabilities' distance from what answers the other side.
    max_steps: of mirror prox.

  Raises:
    ValueError: τ or τ' is not positive, or the residual does not reach the tolerance.
  """
  tau_opponent = float(population.tau) if tau_opponent is None else tau_opponent
  for name, value in (('tau', population.tau), ('tau_opponent', tau_opponent)):
    if not value > 0:
      raise ValueError(f'{name} must be positive, got {value}: without it use `maximin`.')
  with jax.enable_x64(True):
    found = saddle_point(population, tau_opponent, tolerance, max_steps)
    policy, opponent, left = jax.tree.map(np.asarray, found)
  if not left < tolerance:
    raise ValueError(
      f'No saddle point within {tolerance} after {max_steps} steps at tau = {population.tau}, tau_opponent = '
      f'{tau_opponent}: residual {left}.'
    )
  return SaddlePoint(policy, opponent)


@functools.partial(jax.jit, static_argnums=(2, 3))
def saddle_point(
  population: PopulationGame, tau_opponent: Scalar, tolerance: float, max_steps: int
):
  """π, σ and their residual, by mirror prox until it is small enough or the steps are spent. Pure; vmaps over games.

  Both sides take a half-step against each other, then the step, from where they were, against the other's half-step.
  """
  anchors = _anchors(population)
  taus = population.tau, tau_opponent
  eta = jnp.minimum(2.0, 1 / jnp.maximum(*taus))

  def move(sides, against):
    """From `sides`, against the payoffs that `against` leaves to each."""
    gains = payoffs(population, *jax.tree.map(jnp.exp, against))
    logits = [
      (log_p + eta * (tau * anchor + gain)) / (1 + eta * tau)
      for log_p, anchor, tau, gain in zip(sides, anchors, taus, gains, strict=True)
    ]
    return tuple(x - special.logsumexp(x) for x in logits)

  def unfinished(carry):
    t, _, left = carry
    return (left >= tolerance) & (t < max_steps)

  def step(carry):
    t, sides, _ = carry
    sides = move(sides, move(sides, sides))
    return t + 1, sides, residual(population, tau_opponent, *jax.tree.map(jnp.exp, sides))

  start = (0, anchors, jnp.asarray(jnp.inf, jnp.result_type(anchors[0])))
  _, sides, left = jax.lax.while_loop(unfinished, step, start)
  return *jax.tree.map(jnp.exp, sides), left


def payoffs(
  population: PopulationGame, policy: Distribution, opponent: Float[Array, 'U Y']
) -> tuple[Float[Array, 'Y'], Float[Array, 'U Y']]:
  """E_σ P_u(y ≻ k) of every response y, and −P_u(π ≻ k) of every voter and response."""
  p = jnp.asarray(population.preference)
  return jnp.einsum('uik,uk->i', p, opponent), -jnp.einsum('uik,i->uk', p, policy)


def residual(
  population: PopulationGame,
  tau_opponent: Scalar,
  policy: Distribution,
  opponent: Float[Array, 'U Y'],
) -> Scalar:
  """How far π and σ are from what answers the other: 0 only at the saddle point."""
  gains = payoffs(population, policy, opponent)
  taus, sides = (population.tau, tau_opponent), (policy, opponent)
  off = []
  for side, anchor, tau, gain in zip(sides, _anchors(population), taus, gains, strict=True):
    logits = anchor + gain / tau
    off.append(jnp.max(jnp.abs(side - jnp.exp(logits - special.logsumexp(logits)))))
  return jnp.maximum(*off)


def _anchors(population: PopulationGame) -> tuple[Float[Array, 'Y'], Float[Array, 'U Y']]:
  """log μ, and log w μ."""
  log_reference = jnp.log(jnp.asarray(population.reference))
  return log_reference, jnp.log(jnp.asarray(population.weights))[:, None] + log_reference


def against_reference(population: PopulationGame) -> PopulationGame:
  """The game in which every opponent is μ: its maximin is egalitarian, max_π min_u P_u(π ≻ μ). It is not symmetric."""
  win_rate = np.asarray(population.preference) @ np.asarray(population.reference)
  return population._replace(preference=np.repeat(win_rate[:, :, None], win_rate.shape[1], axis=2))


def proportional(population: PopulationGame, beta: float = 0.0) -> Float[np.ndarray, 'Y']:
  """F^β: π_i ∝ s_i exp(β s_i), s_i = min_{j≠i} P(i ≻ j) of the mean; it knows neither μ nor τ.

  At β = 0 what a share w of the voters have for a favourite gets w/Σs at least; β → ∞ gives all to the greatest s.

  Raises:
    ValueError: β is negative, or every response loses to another for certain, so that all s are 0.
  """
  if not (beta >= 0 and np.isfinite(beta)):
    raise ValueError(
      f'beta must be 0 (proportional) or more (towards the minimax winner), got {beta}.'
    )
  mean = np.asarray(mean_game(population).preference, np.float64)
  share = np.min(np.where(np.eye(len(mean), dtype=bool), 1.0, mean), axis=1)
  if not np.any(share > 0):
    raise ValueError(
      'Every response loses to another for certain, so that no share of the voters can be told: take maximin or mean.'
    )
  unnormalised = share * np.exp(beta * (share - share.max()))
  return unnormalised / unnormalised.sum()


def personalised(population: PopulationGame) -> Float[np.ndarray, 'U Y']:
  """Every voter's own Nash policy: what each would have, could each be told apart."""
  reference, tau = population.reference, population.tau
  return np.stack([nash(PreferenceGame(p, reference, tau)) for p in population.preference])


def mixture(population: PopulationGame) -> Float[np.ndarray, 'Y']:
  """Σ_u w_u π_u of the voters' own Nash policies: one policy that draws a voter, and serves her."""
  return np.asarray(population.weights) @ personalised(population)


def aggregate(
  name: str, population: PopulationGame, *, beta: float = 0.0, tau_opponent: float | None = None
) -> Float[np.ndarray, '*U Y']:
  """The policy of an aggregation by its name, or a policy for each voter.

  Args:
    name: of the table above.
    population: the game; where τ = 0 maximin is the linear program's.
    beta: of F^β.
    tau_opponent: τ' of maximin; None: τ.

  Raises:
    ValueError: there is no such aggregation, or it does not exist for this game.
  """
  if name not in NAMED:
    close = difflib.get_close_matches(name, NAMED, n=1)
    hint = f' Did you mean {close[0]}?' if close else ''
    raise ValueError(f'No aggregation {name}: known are {", ".join(NAMED)}.{hint}')
  return NAMED[name](population, beta, tau_opponent)


def _maximin(population: PopulationGame, beta: float, tau_opponent: float | None):
  del beta
  if population.tau > 0:
    return regularised_maximin(population, tau_opponent).policy
  return maximin(population).policy


NAMED: dict[str, Callable[..., Float[np.ndarray, '*U Y']]] = {
  'mean': lambda population, beta, tau_opponent: nash(mean_game(population)),
  'maximin': _maximin,
  'egalitarian': lambda population, beta, tau_opponent: _maximin(
    against_reference(population), beta, tau_opponent
  ),
  'proportional': lambda population, beta, tau_opponent: proportional(population, beta),
  'personalised': lambda population, beta, tau_opponent: personalised(population),
  'mixture': lambda population, beta, tau_opponent: mixture(population),
}


def standing(population: PopulationGame, policy: Float[np.ndarray, '*U Y']) -> Standing:
  """What a policy is to every voter, exactly.

  Args:
    population: the game.
    policy: of all [Y], or of each [U, Y].
  """
  p, weights = np.asarray(population.preference), np.asarray(population.weights)
  each = np.broadcast_to(policy, p.shape[:2])
  # P_u(π ≻ k) [U, Y].
  against = np.einsum('ui,uik->uk', each, p)
  win_rate = against @ np.asarray(population.reference)
  mean = weights @ against
  return Standing(against.min(axis=1), win_rate, float(mean.min()), float(weights @ win_rate))
