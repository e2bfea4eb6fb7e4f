"""The four phases: learn, test, learn after tastes have changed, test; and what is measured of them.

SR is the share of right actions in a test phase, without feedback. FF_pre and FF_post are the shares of tasks of a learning phase in
which a question was asked, and in which the agent was corrected. PE_t is the error of pass t of a learning phase over its tasks, and
ACPE_t the mean of PE_1 … PE_t. People are independent of each other, and intervals are over people.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

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

  # Whose life each is; a person may have several.
  users: tuple[str, ...]
  # Phase -> one of each life; without tasks where it has none in that phase.
  phases: dict[int, list[Phase]]
  # Notes of each life at the end, doubtful ones too.
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


def success_rates(outcome: Outcome, phase: int) -> Float[np.ndarray, 'people']:
  """Share of right actions of each person who has tasks in a phase; of a learning phase, in its last pass."""
  return _of_people(outcome, phase, lambda x: 1 - x.error[-1].mean())


def feedback_shares(outcome: Outcome, phase: int) -> dict[str, Float[np.ndarray, 'people']]:
  """FF of each person in a phase: 'pre' (questions), 'post' (corrections), 'any'."""
  kinds = {
    'pre': lambda x: x.asked.mean(),
    'post': lambda x: x.corrected.mean(),
    'any': lambda x: (x.asked | x.corrected).mean(),
  }
  return {name: _of_people(outcome, phase, measure) for name, measure in kinds.items()}


def pass_errors(outcome: Outcome, phase: int) -> Float[np.ndarray, 'people passes']:
  """PE_t of each person in a learning phase."""
  return _of_people(outcome, phase, lambda x: x.error.mean(axis=1))


def average_cumulative_errors(outcome: Outcome, phase: int) -> Float[np.ndarray, 'people passes']:
  """ACPE_t of each person: the mean of PE_1 … PE_t."""
  errors = pass_errors(outcome, phase)
  return np.cumsum(errors, axis=1) / np.arange(1, errors.shape[1] + 1)


def cumulative_errors(outcome: Outcome, phase: int) -> Float[np.ndarray, 'people rounds']:
  """Errors up to each round of a learning phase, over all passes; of people with more tasks, as many as the others have."""
  size = min(x.error.size for x in outcome.phases[phase] if x.error.size)
  return _of_people(outcome, phase, lambda x: np.cumsum(x.error.ravel()[:size]))


def _of_people(
  outcome: Outcome, phase: int, measure: Callable[[Phase], Any]
) -> Float[np.ndarray, 'people *measured']:
  """A measure of each person who has tasks, the mean of her lives: lives of one person are not independent of each other."""
  lives: dict[str, list[Any]] = {}
  for user, found in zip(outcome.users, outcome.phases[phase], strict=True):
    if found.error.size:
      lives.setdefault(user, []).append(measure(found))
  return np.array([np.mean(rows, axis=0) for rows in lives.values()], float)
