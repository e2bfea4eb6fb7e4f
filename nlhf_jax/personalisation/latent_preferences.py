"""The exact twin of learning one person's taste: slots whose values switch, questions and corrections, nothing to read or to train.

A person has S slots (contexts that return), slot s with a value θ_s of N. In round t slot s_t comes up, the agent acts, and errs if
a ≠ θ_{s_t}. It may ask k questions before (each answer is one of m, and true), and hear θ_{s_t} after an error (with probability p
anything). At K times one slot, or all, take another value. A share γ of rounds is about something that comes up once only.

Runs are computed side by side; all agents meet the same runs.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nlhf_jax.personalisation.agents import Agent

# An agent asks where it would err with at least this probability (ε₀).
AMBIGUITY = 0.05


class World(NamedTuple):
  """What a person's taste is like, and how much of it feedback tells."""

  # S
  num_slots: int = 6
  # N
  num_values: int = 6
  # T
  num_rounds: int = 2000
  # K
  num_switches: int = 0
  switch: Literal['one', 'all'] = 'one'
  # m
  num_answers: int = 6
  # k, the most in a round.
  num_questions: int = 1
  # p
  noise: float = 0.0
  # γ
  fresh_share: float = 0.0
  # Shares of the N values among people; empty: equal.
  population: tuple[float, ...] = ()


class Rounds(NamedTuple):
  """What happens to R people in T rounds, whatever the agent does."""

  # s_t; S: something that comes up once only.
  slot: Int[np.ndarray, 'R T']
  # θ_{s_t}
  value: Int[np.ndarray, 'R T']
  # What a correction would say.
  correction: Int[np.ndarray, 'R T']
  # Switches of single slots: one event that switches all is S of them.
  num_slot_switches: Int[np.ndarray, 'R']


class Outcome(NamedTuple):
  """What an agent did in R runs of T rounds."""

  error: Bool[np.ndarray, 'R T']
  # Answers that it asked for.
  questions: Int[np.ndarray, 'R T']
  corrected: Bool[np.ndarray, 'R T']


class _Beliefs(NamedTuple):
  """What an agent holds of R people; changed in place."""

  # P(θ_s = v); row S is for what comes up once only.
  weights: Float[np.ndarray, 'R S+1 N']
  # How often each value was stated; the last statement counts half a time more.
  stated: Float[np.ndarray, 'R S+1 N']
  last: Int[np.ndarray, 'R S+1']


def check(world: World) -> None:
  """Raises ValueError where a world cannot be; the one line names what to change."""
  for name, least in {
    'num_slots': 1, 'num_values': 2, 'num_rounds': 1, 'num_switches': 0, 'num_answers': 2, 'num_questions': 0,
  }.items():  # fmt: skip
    if getattr(world, name) < least:
      raise ValueError(f'{name} must be at least {least}, got {getattr(world, name)}.')
  for name in ('noise', 'fresh_share'):
    if not 0 <= getattr(world, name) <= 1:
      raise ValueError(f'{name} must be in [0, 1], got {getattr(world, name)}.')
  if world.num_switches > world.num_rounds:
    raise ValueError(
      f'num_switches = {world.num_switches} is more than num_rounds = {world.num_rounds}: a round has at most one switch.'
    )
  if world.switch not in ('one', 'all'):
    raise ValueError(f"switch must be 'one' or 'all', got {world.switch!r}.")
  if world.population:
    shares = np.asarray(world.population, float)
    if len(shares) != world.num_values or not np.all(shares > 0) or abs(shares.sum() - 1) > 1e-6:
      raise ValueError(
        f'population must be {world.num_values} shares above 0 that add up to 1, got {len(shares)} with sum {shares.sum():g}.'
      )


def draw(world: World, num_runs: int, seed: int = 0) -> Rounds:
  """Draws what happens to a number of people.

  Raises:
    ValueError: as `check`, or there is no run.
  """
  check(world)
  if num_runs < 1:
    raise ValueError(f'num_runs must be at least 1, got {num_runs}.')
  rng = np.random.default_rng(seed)
  shape, runs = (num_runs, world.num_rounds), np.arange(num_runs)
  shares = _shares(world)
  slot = rng.integers(world.num_slots, size=shape)
  slot[rng.random(shape) < world.fresh_share] = world.num_slots
  switches = np.argsort(rng.random(shape), axis=1)[:, : world.num_switches]
  is_switch = np.zeros(shape, bool)
  np.put_along_axis(is_switch, switches, True, axis=1)
  theta = _values(rng, shares, (num_runs, world.num_slots + 1))
  value, count = np.empty(shape, np.int64), np.zeros(num_runs, np.int64)
  for t in range(world.num_rounds):
    theta[:, -1] = _values(rng, shares, (num_runs,))
    moved = np.zeros(theta.shape, bool)
    if world.switch == 'all':
      moved[:, :-1] = is_switch[:, t, None]
    else:
      moved[runs, rng.integers(world.num_slots, size=num_runs)] = is_switch[:, t]
    theta = np.where(moved, _other_values(rng, shares, theta), theta) if moved.any() else theta
    count += moved.sum(axis=1)
    value[:, t] = theta[runs, slot[:, t]]
  misheard = rng.random(shape) < world.noise
  correction = np.where(misheard, rng.integers(world.num_values, size=shape), value)
  return Rounds(slot, value, correction, count)


def simulate(agent: Agent, world: World, rounds: Rounds, seed: int = 0) -> Outcome:
  """What an agent does in runs that `draw` made of this world.

  Args:
    agent: a constant action is no agent here, where values have no names.
    world: the agent knows N, m and, if it has a prior, the population's shares; not θ, K or p.
    rounds: of this world.
    seed: of the agent's own draws (which of equally likely values it takes).

  Raises:
    ValueError: the agent is a constant.
  """
  if agent.constant is not None:
    raise ValueError(f'{agent.title}: the twin has no constant answer; its values have no names.')
  rng = np.random.default_rng([seed, 1])
  num_runs, num_rounds = rounds.slot.shape
  prior = _shares(world) if agent.has_prior else np.full(world.num_values, 1 / world.num_values)
  size = (num_runs, world.num_slots + 1)
  beliefs = _Beliefs(
    np.tile(prior, (*size, 1)), np.zeros((*size, world.num_values)), np.zeros(size, np.int64)
  )
  error, corrected = np.zeros((2, num_runs, num_rounds), bool)
  questions = np.zeros((num_runs, num_rounds), np.int64)
  for t in range(num_rounds):
    slot, value = rounds.slot[:, t], rounds.value[:, t]
    if agent.remembers == 'truth':
      continue
    beliefs.weights[slot == world.num_slots, -1] = prior
    if agent.asks:
      posterior, questions[:, t] = _ask(rng, agent, world, beliefs, slot, value)
    else:
      posterior = beliefs.weights[np.arange(num_runs), slot]
    action = _most_likely(rng, posterior)
    error[:, t] = action != value
    if agent.is_corrected:
      corrected[:, t] = error[:, t]
      # Silence says that the action was right.
      heard = np.where(error[:, t], rounds.correction[:, t], action)
      _hear(agent, beliefs, slot, heard, error[:, t], prior)
  return Outcome(error, questions, corrected)


def _shares(world: World) -> Float[np.ndarray, 'N']:
  equal = np.full(world.num_values, 1 / world.num_values)
  return np.asarray(world.population, float) if world.population else equal


# Helpers of a round take arrays without declared shapes: to check them thousands of times would take longer than to run.


def _values(rng, shares, shape):
  """Values drawn by their shares [N]."""
  return np.minimum(np.searchsorted(np.cumsum(shares), rng.random(shape)), len(shares) - 1)


def _other_values(rng, shares, theta):
  """Drawn by the population's shares [N] from all values but those that were."""
  others = np.tile(shares, (*theta.shape, 1))
  np.put_along_axis(others, theta[..., None], 0, axis=-1)
  cumulative = np.cumsum(others, axis=-1)
  drawn = rng.random((*theta.shape, 1)) * cumulative[..., -1:]
  return np.sum(drawn >= cumulative, axis=-1)


def _most_likely(rng, weights):
  """[R] of [R, N]: the most probable value, one of them at random."""
  best = weights >= weights.max(axis=1, keepdims=True) - 1e-12
  return np.argmax(best * (1 + rng.random(weights.shape)), axis=1)


def _is_ambiguous(weights):
  """[R] of [R, N]: whether the best action would err with probability ε₀ or more."""
  return 1 - weights.max(axis=1) >= AMBIGUITY


def ask(
  rng: np.random.Generator,
  weights: Float[np.ndarray, 'R N'],
  value: Int[np.ndarray, 'R'],
  num_answers: int,
) -> Float[np.ndarray, 'R N']:
  """The posterior after one answer of m: which part of the values the true one is in.

  Parts are as equally probable as can be: values are dealt out from the most probable on, each to the lightest part. The m most
  probable are then in parts of their own, so that no question leaves a smaller error if one acts next.
  """
  rows = np.arange(len(weights))
  order = np.lexsort((rng.random(weights.shape), -weights), axis=1)
  part = np.empty(weights.shape, np.int64)
  mass, size = np.zeros((2, len(weights), num_answers))
  for place in order.T:
    # Of equally light parts the one with fewest values.
    lightest = np.lexsort((size, np.round(mass, 12)), axis=1)[:, 0]
    part[rows, place] = lightest
    mass[rows, lightest] += weights[rows, place]
    size[rows, lightest] += 1
  left = weights * (part == part[rows, value][:, None])
  return left / left.sum(axis=1, keepdims=True)


def _ask(rng, agent: Agent, world: World, beliefs: _Beliefs, slot, value):
  """[R, N] posteriors after at most k answers, and [R] how many; single values are stored."""
  runs = np.arange(len(slot))
  posterior = beliefs.weights[runs, slot]
  count = np.zeros(len(slot), np.int64)
  for _ in range(world.num_questions):
    unsure = np.flatnonzero(_is_ambiguous(posterior))
    if not len(unsure):
      break
    posterior[unsure] = ask(rng, posterior[unsure], value[unsure], world.num_answers)
    count[unsure] += 1
  asked = count > 0
  single = asked & ~_is_ambiguous(posterior)
  kept = asked if agent.keeps_partial else single
  beliefs.weights[runs[kept], slot[kept]] = posterior[kept]
  _state(beliefs, runs[single], slot[single], posterior[single].argmax(axis=1))
  return posterior, count


def _hear(agent: Agent, beliefs: _Beliefs, slot, heard, error, prior) -> None:
  """Stores what was right, and what that makes of other beliefs."""
  runs = np.arange(len(slot))
  num_slots = beliefs.weights.shape[1] - 1
  before = beliefs.weights[runs, slot]
  contradicted = error & ~_is_ambiguous(before) & (slot < num_slots)
  if agent.remembers == 'everything':
    _state(beliefs, runs[error], slot[error], heard[error])
    counts = beliefs.stated[runs, slot]
    counts[runs, beliefs.last[runs, slot]] += 0.5
    stored = np.where(counts.max(axis=1) > 0.5, counts.argmax(axis=1), heard)
  else:
    stored = heard
  if agent.doubt and contradicted.any():
    others = beliefs.weights[contradicted]
    beliefs.weights[contradicted] = (1 - agent.doubt) * others + agent.doubt * prior
  beliefs.weights[runs, slot] = np.eye(len(prior))[stored]


def _state(beliefs: _Beliefs, runs, slot, value) -> None:
  beliefs.stated[runs, slot, value] += 1
  beliefs.last[runs, slot] = value
