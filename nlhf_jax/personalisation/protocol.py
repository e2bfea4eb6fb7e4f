"""The four phases: learn, test, learn after tastes have changed, test; and what is measured of them.

SR is the share of right actions in a test phase, without feedback. FF_pre and FF_post are the shares of tasks of a learning phase in
which a question was asked, and in which the agent was corrected. PE_t is the error of pass t of a learning phase over its tasks, and
ACPE_t the mean of PE_1 … PE_t. People are independent of each other, and intervals are over people.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nlhf_jax.personalisation import shopping
from nlhf_jax.personalisation.agents import Agent
from nlhf_jax.personalisation.shopper import Shopper
from nlhf_jax.personalisation.shopping import AFTER, PHASES, Benchmark

LEARNING = (1, 3)
TESTS = (2, 4)


class Phase(NamedTuple):
  """What happened with one person in one phase."""

  error: Bool[np.ndarray, 'passes tasks']
  asked: Bool[np.ndarray, 'passes tasks']
  corrected: Bool[np.ndarray, 'passes tasks']


class Outcome(NamedTuple):
  """What an agent did with all people."""

  users: tuple[str, ...]
  # Phase -> one of each user; without tasks where a user has none in that phase.
  phases: dict[int, list[Phase]]
  # Notes per user at the end, doubtful ones too.
  num_notes: list[int]


def run(
  benchmark: Benchmark,
  agent: Agent,
  *,
  num_passes: int = 3,
  seed: int = 0,
  advance: Callable[[int], None] = lambda users: None,
) -> Outcome:
  """Takes an agent through the four phases with every user.

  A user whom a test phase meets first has no notes: the agent acts by its prior. A prior is of all other users' tastes in phase 1.

  Args:
    benchmark: as `shopping.read` has it.
    agent: which one.
    num_passes: over the tasks of a learning phase.
    seed: of an agent that draws.
    advance: called with 1 after each user.

  Raises:
    ValueError: there is no pass.
  """
  if num_passes < 1:
    raise ValueError(f'num_passes must be at least 1, got {num_passes}.')
  seen = [task.user for phase in PHASES for task in benchmark.tasks[phase]]
  users = tuple(dict.fromkeys(seen))
  phases: dict[int, list[Phase]] = {phase: [] for phase in PHASES}
  num_notes = []
  for number, user in enumerate(users):
    others = [taste for name, taste in benchmark.before.items() if name != user]
    rng = np.random.default_rng([seed, number])
    shopper = Shopper(agent, benchmark.products, rng, others if agent.has_prior else ())
    time = 0
    for phase in PHASES:
      found, time = _run_phase(benchmark, shopper, user, phase, num_passes, time)
      phases[phase].append(found)
    num_notes.append(len(shopper.notes))
    advance(1)
  return Outcome(users, phases, num_notes)


def _run_phase(
  benchmark: Benchmark, shopper: Shopper, user: str, phase: int, num_passes: int, time: int
) -> tuple[Phase, int]:
  tasks = [task for task in benchmark.tasks[phase] if task.user == user]
  learns = phase in LEARNING
  shape = (num_passes if learns else 1, len(tasks))
  error, asked, corrected = (np.zeros(shape, bool) for _ in range(3))
  for i in range(shape[0]):
    for j, task in enumerate(tasks):
      tiers = benchmark.taste(user, phase)[task.product]
      if learns and (value := shopper.question(task)) is not None:
        asked[i, j] = True
        shopper.hear_answer(task, value, tiers[value], time)
      action = shopper.act(task)
      error[i, j] = action != task.label
      if learns and shopper.agent.is_corrected:
        old = benchmark.before[user][task.product] if phase in AFTER else None
        said = shopping.feedback(task, action, tiers, old)
        corrected[i, j] = not said.is_right
        shopper.hear_feedback(task, action, said, time)
      time += 1
  return Phase(error, asked, corrected), time


def success_rates(outcome: Outcome, phase: int) -> Float[np.ndarray, 'users']:
  """Share of right actions of each user who has tasks in a phase; of a learning phase, in its last pass."""
  return np.array([1 - x.error[-1].mean() for x in outcome.phases[phase] if x.error.size])


def feedback_shares(outcome: Outcome, phase: int) -> dict[str, Float[np.ndarray, 'users']]:
  """FF of each user in a phase: 'pre' (questions), 'post' (corrections), 'any'."""
  found = [x for x in outcome.phases[phase] if x.error.size]
  return {
    'pre': np.array([x.asked.mean() for x in found]),
    'post': np.array([x.corrected.mean() for x in found]),
    'any': np.array([(x.asked | x.corrected).mean() for x in found]),
  }


def pass_errors(outcome: Outcome, phase: int) -> Float[np.ndarray, 'users passes']:
  """PE_t of each user in a learning phase."""
  return np.array([x.error.mean(axis=1) for x in outcome.phases[phase] if x.error.size])


def average_cumulative_errors(outcome: Outcome, phase: int) -> Float[np.ndarray, 'users passes']:
  """ACPE_t of each user: the mean of PE_1 … PE_t."""
  errors = pass_errors(outcome, phase)
  return np.cumsum(errors, axis=1) / np.arange(1, errors.shape[1] + 1)


def cumulative_errors(outcome: Outcome, phase: int) -> Int[np.ndarray, 'users rounds']:
  """Errors up to each round of a learning phase, over all passes; of users with more tasks, as many as the others have."""
  rows = [x.error.ravel() for x in outcome.phases[phase] if x.error.size]
  size = min(map(len, rows))
  return np.cumsum([row[:size] for row in rows], axis=1)
