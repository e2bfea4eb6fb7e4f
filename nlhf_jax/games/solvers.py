"""Solvers of preference games: who the opponent is, one short function each, all on one mirror step.

| solver            | a step's opponent                                       | target                     | last iterate          |
|-------------------|---------------------------------------------------------|----------------------------|-----------------------|
| nash_md           | mixture π_t^{1−ητ} μ^{ητ}                               | π*_τ                       | 1/T, Theorem 1        |
| self_play         | π_t (regularised online mirror descent)                 | π*_τ                       | linear, slow: τ²      |
| magnetic          | π_t, proximal to the magnet μ                           | π*_τ                       | linear, slow: τ²      |
| mixed             | mixture π_t^{1−β} μ^β with a fixed β                    | π_β: its mixture is        | linear where η is     |
|                   |                                                         | π*_{τ/(1−β)}               | small                 |
| best_response     | μ                                                       | softmax(log μ + Pμ/τ)      | one step              |
| nash_ema          | moving average of past policies                         | π*_τ, where it settles     | –                     |
| egpo              | π_t, then the half-step's policy, from π_t again        | π*_τ                       | linear, (1 − ητ)^T    |
| nash_mp           | the same, with its paper's step size                    | π*_τ                       | linear, (1 + η)^{−T}  |
| omwu              | the last half-step's policy, then this one's            | π*_τ                       | linear, (1 − ητ/2)^T  |
| fictitious_play   | average of the best responses so far                    | π*_τ, or a maximal lottery | 1/T                   |
| reset_magnet      | egpo, whose magnet moves to the policy now and then     | a maximal lottery          | stage by stage        |
| mnpo              | geometric mean of the last policies                     | π*_τ                       | linear where η is     |
|                   |                                                         |                            | small                 |
| onpo              | π_t, twice: for the centre, then from it                | a maximal lottery          | to it where η is      |
|                   |                                                         |                            | small                 |
| rspo              | π_t, under τ KL(μ‖π) in place of τ KL(π‖μ)              | μ/(1 − (P(y ≻ π) − ½)/τ)   | linear where η is     |
|                   |                                                         |                            | small                 |
| stackelberg       | a follower that sees y                                  | μ exp(V/τ), `solve`        | linear                |

The step: log π_{t+1} = (1 − ητ) log π_t + ητ log μ + η P(y ≻ opponent) + c. Step sizes η are numbers, or functions
(game, t) → η; each solver's default is what theory allows, payoffs P − 1/2 having norm 1/2 from ℓ1 to ℓ∞.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.games import game as games
from nlhf_jax.games.game import PreferenceGame, Scalar

PRNGKey = jax.Array
# log π in nats.
LogPolicy = Float[Array, 'Y']
StepSize = Scalar | Callable[[PreferenceGame, Int[Array, '']], Scalar]

# P(y ≻ π') of every response, exact or estimated: (game, π', rng) -> [Y].
PayoffFn = Callable[[PreferenceGame, Float[Array, 'Y'], PRNGKey], Float[Array, 'Y']]


class State(NamedTuple):
  """What a solver carries from step to step."""

  # Its answer: the last iterate, or the average where that is what converges.
  log_policy: LogPolicy
  # All else.
  memory: Any = ()


class Solver(NamedTuple):
  """A method on a table: pure functions, for `jax.jit`, `jax.lax.scan` and `jax.vmap`."""

  init: Callable[[PreferenceGame], State]
  step: Callable[[PreferenceGame, State, Int[Array, ''], PayoffFn, PRNGKey], State]
  # η at step t; None: it has none.
  eta: Callable[[PreferenceGame, Int[Array, '']], Scalar] | None


def exact(game: PreferenceGame, opponent: Float[Array, 'Y'], rng: PRNGKey) -> Float[Array, 'Y']:
  """P(y ≻ π')."""
  del rng
  return games.payoffs(game, opponent)


def sampled(num_samples: int, votes: bool = False) -> PayoffFn:
  """P(y ≻ π') from a few alternatives y' ~ π', as a deep run has it.

  Args:
    num_samples: alternatives, shared by all responses.
    votes: each comparison is one vote, 0 or 1, drawn from P(y ≻ y'), and not P itself.
  """

  def estimate(game: PreferenceGame, opponent, rng: PRNGKey):
    drawn, voted = jax.random.split(rng)
    logits = jnp.log(opponent)
    alternatives = jax.random.categorical(drawn, logits, shape=(num_samples,))
    p = jnp.asarray(game.preference)[:, alternatives]
    if votes:
      p = jax.random.bernoulli(voted, p).astype(p.dtype)
    return jnp.mean(p, axis=1)

  return estimate


def mirror_step(
  game: PreferenceGame, log_policy: LogPolicy, payoff: Float[Array, 'Y'], eta: Scalar
) -> LogPolicy:
  """(1 − ητ) log π + ητ log μ + η q + c: towards the best response to the opponent that earns the payoff q."""
  pull = eta * game.tau
  logits = (1 - pull) * log_policy + pull * jnp.log(game.reference) + eta * payoff
  return jax.nn.log_softmax(logits)


def nash_md(eta: StepSize | None = None) -> Solver:
  """Nash-MD: the opponent is the mixture of policy and reference by ητ.

  Args:
    eta: η with 0 < ητ ≤ 1; None: Theorem 1's 2/(τ(t + 2)).

  Source: Munos et al. (2024), arXiv:2312.00886, eq. 3 to 5 and Theorem 1.
  """
  size = _step_size(eta, lambda game, t: 2 / (game.tau * (t + 2)))
  return _against(
    lambda game, log_policy, t: _mix(game, log_policy, size(game, t) * game.tau), size
  )


def self_play(eta: StepSize | None = None) -> Solver:
  """Regularised online mirror descent: the policy against itself. Source: Munos et al. (2024), eq. 8."""
  size = _step_size(eta, lambda game, t: _proximal(game, 4 * game.tau))
  return _against(lambda game, log_policy, t: jnp.exp(log_policy), size)


def magnetic(eta: StepSize | None = None) -> Solver:
  """Magnetic mirror descent, the magnet at μ: log π_{t+1} = [log π_t + ητ log μ + η q]/(1 + ητ) + c.

  Self-play with η/(1 + ητ). Source: Sokota et al. (2023), arXiv:2206.05825; η ≤ τ/L² with L = 1/2.
  """
  size = _step_size(eta, lambda game, t: 4 * game.tau)
  return self_play(lambda game, t: _proximal(game, size(game, t)))


def mixed(beta: Scalar, eta: StepSize | None = None) -> Solver:
  """Against π_t^{1−β} μ^β with a fixed β, as Nash-MD-PG plays it. It stops at π_β, whose mixture is π*_{τ/(1−β)}.

  Raises:
    ValueError: β is outside [0, 1].
  """
  if isinstance(beta, float) and not 0 <= beta <= 1:
    raise ValueError(f'beta must be in [0, 1] (0: self-play, 1: best response), got {beta}.')
  size = _step_size(eta, lambda game, t: _proximal(game, 4 * game.tau))
  return _against(lambda game, log_policy, t: _mix(game, log_policy, beta), size)


def best_response(eta: StepSize | None = None) -> Solver:
  """Against the reference; the default step is the closed form softmax(log μ + Pμ/τ)."""
  size = _step_size(eta, lambda game, t: 1 / game.tau)
  return _against(lambda game, log_policy, t: jnp.asarray(game.reference), size)


def nash_ema(eta: StepSize | None = None, decay: Scalar = 0.9) -> Solver:
  """Against the exponential moving average π̄ ← κ π̄ + (1 − κ) π_t of its own past. No theorem is known.

  Source: Munos et al. (2024), arXiv:2312.00886, section 7.
  """
  size = _step_size(eta, lambda game, t: _proximal(game, 4 * game.tau))

  def init(game):
    return State(jnp.log(game.reference), jnp.asarray(game.reference))

  def step(game, state, t, payoff, rng):
    q = payoff(game, state.memory, rng)
    log_policy = mirror_step(game, state.log_policy, q, size(game, t))
    return State(log_policy, decay * state.memory + (1 - decay) * jnp.exp(log_policy))

  return Solver(init, step, size)


def egpo(eta: StepSize | None = None) -> Solver:
  """Extragradient: a half-step against π_t, then the step, from π_t again, against the half-step's policy.

  Source: Zhou, Fazel, Du (2025), arXiv:2503.08942.
  """
  size = _step_size(eta, lambda game, t: _proximal(game, _mirror_prox_size(game)))

  def step(game, state, t, payoff, rng):
    first, second = jax.random.split(rng)
    half = mirror_step(
      game, state.log_policy, payoff(game, jnp.exp(state.log_policy), first), size(game, t)
    )
    q = payoff(game, jnp.exp(half), second)
    return State(mirror_step(game, state.log_policy, q, size(game, t)))

  return Solver(_at_reference, step, size)


def nash_mp(eta: StepSize | None = None) -> Solver:
  """Nash Mirror Prox: log π_{k+½} = [log π_k + η log μ + (η/τ) P(y ≻ π_k)]/(1 + η) + c, and again from π_k.

  It is `egpo` with step size η/(τ(1 + η)).

  Args:
    eta: η ≤ 2τ; None: min(2τ, 1).

  Source: Tiapkin et al. (2025), arXiv:2505.19731.
  """
  size = _step_size(eta, lambda game, t: jnp.minimum(2 * game.tau, 1.0))
  return egpo(lambda game, t: _proximal(game, size(game, t) / game.tau))


def omwu(eta: StepSize | None = None) -> Solver:
  """Optimistic multiplicative weights: extragradient whose half-step reuses the last payoff, so one query a step.

  Source: Cen, Wei, Chi (2021), arXiv:2105.15186; η ≤ min(1/(2τ + 1), 1/2).
  """
  size = _step_size(eta, lambda game, t: jnp.minimum(1 / (2 * game.tau + 1), 0.5))

  def init(game):
    return State(jnp.log(game.reference), games.payoffs(game, game.reference))

  def step(game, state, t, payoff, rng):
    half = mirror_step(game, state.log_policy, state.memory, size(game, t))
    q = payoff(game, jnp.exp(half), rng)
    return State(mirror_step(game, state.log_policy, q, size(game, t)), q)

  return Solver(init, step, size)


def fictitious_play() -> Solver:
  """The average of best responses to the average so far; smooth best responses where τ > 0."""

  def step(game, state, t, payoff, rng):
    average = jnp.exp(state.log_policy)
    reply = games.reply(game, payoff(game, average, rng))
    return State(jnp.log(average + (reply - average) / (t + 2)))

  return Solver(_at_reference, step, None)


def reset_magnet(magnet_tau: Scalar = 0.1, every: int = 200) -> Solver:
  """Towards the game without regularisation: solve it around a magnet, move the magnet to the solution, repeat.

  Args:
    magnet_tau: strength of each stage's regularisation, towards the magnet.
    every: steps of `egpo` in a stage.

  Source: Liu et al. (2024), COMAL, arXiv:2410.23223; Wang et al. (2024), MPO, arXiv:2410.16714.
  """
  inner = egpo()

  def init(game):
    log_reference = jnp.log(game.reference)
    return State(log_reference, log_reference)

  def step(game, state, t, payoff, rng):
    magnet = jnp.where(t % every == 0, state.log_policy, state.memory)
    stage = PreferenceGame(game.preference, jnp.exp(magnet), jnp.asarray(magnet_tau, magnet.dtype))
    return State(inner.step(stage, State(state.log_policy), t, payoff, rng).log_policy, magnet)

  return Solver(init, step, None)


def mnpo(eta: StepSize | None = None, size: int = 3) -> Solver:
  """A step from the geometric mean m of the last policies, against m: (1 − ητ) log m + ητ log μ + η P(y ≻ m).

  Time-dependent MNPO with equal weights λ_j on the ring and λ_μ = ητ on μ, which add up to 1. With τ = 0 nothing pulls
  towards μ, and it spirals outward.

  Args:
    eta: η; None: as self-play.
    size: policies in the ring; 1: self-play.

  Source: Wu et al. (2025), arXiv:2509.23102. There each player of the ring is an opponent by itself.
  """
  step_size = _step_size(eta, lambda game, t: _proximal(game, 4 * game.tau))

  def init(game):
    log_reference = jnp.log(game.reference)
    return State(log_reference, jnp.broadcast_to(log_reference, (size, log_reference.size)))

  def step(game, state, t, payoff, rng):
    mean = jax.nn.log_softmax(jnp.mean(state.memory, axis=0))
    q = payoff(game, jnp.exp(mean), rng)
    log_policy = mirror_step(game, mean, q, step_size(game, t))
    return State(log_policy, jnp.concatenate([log_policy[None], state.memory[:-1]]))

  return Solver(init, step, step_size)


def onpo(eta: StepSize | None = None) -> Solver:
  """Optimistic steps without μ: w_{t+1} ∝ w_t exp(η q_t), π_{t+1} ∝ w_{t+1} exp(η q_t), with q_t = P(y ≻ π_t).

  The game's τ is not read: the last iterate goes to an equilibrium without regularisation where η is small.

  Args:
    eta: η in nats per unit of payoff; None: 1/8, the theorem's.

  Source: arXiv:2502.16852 (ONPO); arXiv:2512.24818 (OMWU's last iterate).
  """
  size = _step_size(eta, lambda game, t: 0.125)

  def init(game):
    log_reference = jnp.log(game.reference)
    return State(log_reference, log_reference)

  def step(game, state, t, payoff, rng):
    gain = size(game, t) * payoff(game, jnp.exp(state.log_policy), rng)
    centre = jax.nn.log_softmax(state.memory + gain)
    return State(jax.nn.log_softmax(centre + gain), centre)

  return Solver(init, step, size)


def rspo(eta: StepSize | None = None) -> Solver:
  """Self-play under the forward KL: log π_{t+1} = log π_t + η [P(y ≻ π_t) − ½ + τ (μ/π_t − 1)] + c.

  It stops at the equilibrium of P(π ≻ π') − τ KL(μ‖π) + τ KL(μ‖π'), μ/(1 − (P(y ≻ π) − ½)/τ). A step is that of RSPO's loss
  on exact probabilities, to first order.

  Args:
    eta: η; None: 1/10. It overshoots where a response is much rarer than μ has it.

  Source: Tang et al. (2025), arXiv:2503.00030, its forward-KL variant.
  """
  size = _step_size(eta, lambda game, t: 0.1)

  def step(game, state, t, payoff, rng):
    policy = jnp.exp(state.log_policy)
    gain = payoff(game, policy, rng) + game.tau * game.reference / policy
    return State(jax.nn.log_softmax(state.log_policy + size(game, t) * gain))

  return Solver(_at_reference, step, size)


def stackelberg(tau_follower: Scalar | None = None, eta: StepSize | None = None) -> Solver:
  """Mirror steps of a leader π, and of a follower ω(·|y) who sees the leader's response; ω_ref is μ whatever y is.

  The leader earns P(y ≻ ω(·|y)) + τ_F KL(ω(·|y)‖ω_ref), the follower P(y' ≻ y) − τ_F KL. `solve.stackelberg` has the
  solution in closed form.

  Args:
    tau_follower: τ_F > 0; None: the game's τ, which is the leader's.
    eta: η of the leader; None: 1. The follower takes a step of size 1/(1 + τ_F).

  Source: arXiv:2512.16626.
  """
  size = _step_size(eta, lambda game, t: _proximal(game, 1.0))

  def init(game):
    log_reference = jnp.log(game.reference)
    return State(log_reference, jnp.broadcast_to(log_reference, (log_reference.size,) * 2))

  def step(game, state, t, payoff, rng):
    follower = game._replace(tau=game.tau if tau_follower is None else tau_follower)
    keys = jax.random.split(rng, 2 * state.log_policy.size).reshape(2, -1)
    of_rows = jax.vmap(functools.partial(payoff, game))
    reply = of_rows(jnp.eye(state.log_policy.size, dtype=state.log_policy.dtype), keys[0])
    move = jax.vmap(functools.partial(mirror_step, follower), (0, 0, None))
    log_follower = move(state.memory, reply, _proximal(follower, 1.0))
    won = jnp.diagonal(of_rows(jnp.exp(log_follower), keys[1]))
    cost = jax.vmap(games.kl_divergence, (0, None))(jnp.exp(log_follower), game.reference)
    log_policy = mirror_step(game, state.log_policy, won + follower.tau * cost, size(game, t))
    return State(log_policy, log_follower)

  return Solver(init, step, size)


NAMED: dict[str, Callable[..., Solver]] = {
  make.__name__: make
  for make in (
    nash_md,
    self_play,
    magnetic,
    mixed,
    best_response,
    nash_ema,
    egpo,
    nash_mp,
    omwu,
    fictitious_play,
    reset_magnet,
    mnpo,
    onpo,
    rspo,
    stackelberg,
  )
}


def named(name: str, **values: Scalar | None) -> Solver:
  """A solver by name, with those of its settings whose value is not None.

  Raises:
    ValueError: there is no such solver, or it does not take a setting.
  """
  if name not in NAMED:
    close = difflib.get_close_matches(name, NAMED, n=1)
    hint = f' Did you mean {close[0]}?' if close else ''
    raise ValueError(f'No algorithm {name}: known are {", ".join(NAMED)}.{hint}')
  takes = settings(name)
  given = {key: value for key, value in values.items() if value is not None}
  for key in given:
    if key not in takes:
      raise ValueError(f'{name} takes no {key}: it has {", ".join(takes) or "no settings"}.')
  if missing := [
    k for k, v in takes.items() if v.default is inspect.Parameter.empty and k not in given
  ]:
    raise ValueError(f'{name} needs {missing[0]}.')
  return NAMED[name](**given)


def settings(name: str) -> Mapping[str, inspect.Parameter]:
  """The settings that a solver takes, by name."""
  return inspect.signature(NAMED[name]).parameters


def _against(opponent: Callable[[PreferenceGame, LogPolicy, Any], Any], size) -> Solver:
  def step(game, state, t, payoff, rng):
    q = payoff(game, opponent(game, state.log_policy, t), rng)
    return State(mirror_step(game, state.log_policy, q, size(game, t)))

  return Solver(_at_reference, step, size)


def _at_reference(game: PreferenceGame) -> State:
  return State(jnp.log(game.reference))


def _mix(game: PreferenceGame, log_policy: LogPolicy, beta: Scalar) -> Float[Array, 'Y']:
  """π^{1−β} μ^β, normalised."""
  return jax.nn.softmax((1 - beta) * log_policy + beta * jnp.log(game.reference))


def _mirror_prox_size(game: PreferenceGame) -> Scalar:
  """Nash-MP's η/τ where η = min(2τ, 1); 2 where there is no regularisation."""
  return jnp.minimum(2.0, 1 / jnp.where(game.tau > 0, game.tau, 0.5))


def _proximal(game: PreferenceGame, eta: Scalar) -> Scalar:
  """The step size of the explicit form whose proximal form has η: [log π + ητ log μ + ηq]/(1 + ητ)."""
  return eta / (1 + eta * game.tau)


def _step_size(eta: StepSize | None, default: Callable) -> Callable:
  if eta is None:
    return default
  return eta if callable(eta) else lambda game, t: eta
