"""Results of agents as plain numbers, for results.json and the report: means with 95 % intervals over people or runs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nlhf_jax.judges import noted_headlines
from nlhf_jax.personalisation import editor, protocol, theory
from nlhf_jax.personalisation import latent_preferences as twin
from nlhf_jax.personalisation.agents import Agent
from nlhf_jax.personalisation.shopping import Benchmark
from nlhf_jax.votes import intervals

# Simulations of `of_twin` for each agent.
NUM_SIMULATIONS = 7
# Points of a curve.
_NUM_POINTS = 200
# Agents that others are compared with, person by person, where they have run.
_REFERENCES = ('constant', 'questions', 'corrections', 'both', 'doubt', 'curious')


def of_shopping(
  benchmark: Benchmark,
  agents: Mapping[str, Agent],
  *,
  num_passes: int = 3,
  seed: int = 0,
  advance: Callable[[int], None] = lambda users: None,
) -> dict[str, Any]:
  """Runs agents on the shopping benchmark; see `protocol.run`.

  Returns:
    'agents': of each its title, success rates of phases 2 and 4 (also of every user), shares of tasks with feedback, errors of passes and
    their average, errors up to each round after tastes have changed; 'differences': success rates less those of other agents, paired
    by user.
  """
  outcomes = {}
  for name, agent in agents.items():
    outcomes[name] = protocol.run(
      benchmark, agent, num_passes=num_passes, seed=seed, advance=advance
    )
  users = next(iter(outcomes.values())).users
  return {
    'kind': 'shopping',
    'num_users': len(users),
    'num_tasks': {str(phase): len(tasks) for phase, tasks in benchmark.tasks.items()},
    'num_passes': num_passes,
    'seed': seed,
    'agents': {name: _of_outcome(agents[name], x) for name, x in outcomes.items()},
    'differences': _differences(agents, outcomes),
  }


def _of_outcome(agent: Agent, outcome: protocol.Outcome) -> dict[str, Any]:
  learning = [phase for phase in protocol.LEARNING if _has_tasks(outcome, phase)]
  tests = [phase for phase in protocol.TESTS if _has_tasks(outcome, phase)]
  after: list[dict[str, float | None]] = []
  if 3 in learning:
    cumulative = intervals.of_means(protocol.cumulative_errors(outcome, 3))
    after = _columns(cumulative)
  return {
    'title': agent.title,
    'success': {str(p): _interval(protocol.success_rates(outcome, p)) for p in tests},
    'success_by_user': {str(p): protocol.success_rates(outcome, p).tolist() for p in tests},
    'feedback': {
      str(p): {kind: _interval(x) for kind, x in protocol.feedback_shares(outcome, p).items()}
      for p in learning
    },
    'pass_errors': {
      str(p): _columns(intervals.of_means(protocol.pass_errors(outcome, p))) for p in learning
    },
    'average_cumulative_errors': {
      str(p): _columns(intervals.of_means(protocol.average_cumulative_errors(outcome, p)))
      for p in learning
    },
    'cumulative_errors_after': after,
    'num_notes': float(np.mean(outcome.num_notes)),
  }


def _has_tasks(outcome: protocol.Outcome, phase: int) -> bool:
  return any(x.error.size for x in outcome.phases[phase])


def _differences(
  agents: Mapping[str, Agent], outcomes: Mapping[str, protocol.Outcome]
) -> list[dict[str, Any]]:
  """Success of each agent that learns less that of each reference before it, person by person; also while they learn."""
  names = list(outcomes)
  return [
    {
      'agent': name,
      'less': other,
      'phase': phase,
      **_interval(_success_difference(outcomes, name, other, phase)),
    }
    for phase in sorted(protocol.LEARNING + protocol.TESTS)
    for place, name in enumerate(names)
    for other in names[:place]
    if other in _REFERENCES
    and agents[name].remembers not in ('nothing', 'truth')
    and _has_tasks(outcomes[name], phase)
  ]


def _success_difference(outcomes, name: str, other: str, phase: int) -> np.ndarray:
  one, less = (protocol.success_rates(outcomes[x], phase) for x in (name, other))
  return one - less


def of_headlines(
  tables: editor.Tables,
  agents: Mapping[str, Agent],
  *,
  num_unseen: int = noted_headlines.NUM_UNSEEN,
  num_lives: int = 20,
  seed: int = 0,
  advance: Callable[[int], None] = lambda simulations: None,
) -> dict[str, Any]:
  """Runs agents that go by a policy with people whom no training prompt was about; see `editor.serve`.

  Returns:
    'changes': after one taste has changed, and after all have, what `of_shopping` returns, people's lives in place of users.
  """
  changes = {}
  for change in ('one', 'all'):
    who = noted_headlines.unseen(num_unseen)
    num_days = len(tables.scores)
    lives = editor.draw_lives(who, change, num_days, num_lives=num_lives, seed=seed)
    outcomes = {}
    for name, agent in agents.items():
      outcomes[name] = editor.serve(tables, agent, lives)
      advance(1)
    changes[change] = {
      'agents': {name: _of_outcome(agents[name], x) for name, x in outcomes.items()},
      'differences': _differences(agents, outcomes),
    }
  return {
    'kind': 'headlines',
    'num_users': num_unseen,
    'num_lives': num_lives * num_unseen,
    'num_days': len(tables.scores),
    'seed': seed,
    'changes': changes,
  }


def of_twin(
  world: twin.World,
  agents: Mapping[str, Agent],
  *,
  num_runs: int = 40,
  seed: int = 0,
  advance: Callable[[int], None] = lambda simulations: None,
) -> dict[str, Any]:
  """Runs agents in a world without a switch, with its K switches of one slot and of all, and for other T.

  Returns:
    'worlds': errors and questions of each agent in each world, beside what the theorem allows; 'curves': errors up to a round with K
    switches of one slot; 'sweep': errors by T.

  Raises:
    ValueError: as `latent_preferences.draw`.
  """
  twin.check(world)
  horizons = [max(1, round(world.num_rounds * x)) for x in (0.25, 0.5, 1, 2)]
  switching = world._replace(switch='one')
  if world.num_switches > horizons[0]:
    raise ValueError(
      f'num_switches = {world.num_switches} is more than {horizons[0]}, a quarter of num_rounds, which is run too: take more rounds.'
    )
  worlds = {
    'no switch': world._replace(num_switches=0),
    'one slot': switching,
    'all slots': world._replace(switch='all'),
  }
  rows, curves = [], {}
  for label, each in worlds.items():
    rounds = twin.draw(each, num_runs, seed)
    found = {}
    for name, agent in agents.items():
      outcome = twin.simulate(agent, each, rounds, seed)
      found[name] = _of_runs(outcome)
      if label == 'one slot':
        curves[name] = _curve(outcome)
      advance(1)
    rows.append(
      {'label': label, 'agents': found, 'bounds': _bounds(each, rounds), 'world': each._asdict()}
    )
  sweep = []
  for num_rounds in horizons:
    each = switching._replace(num_rounds=num_rounds)
    rounds = twin.draw(each, num_runs, seed + 1)
    found = {}
    for name, agent in agents.items():
      found[name] = _of_runs(twin.simulate(agent, each, rounds, seed))
      advance(1)
    sweep.append({'num_rounds': num_rounds, 'agents': found})
  return {
    'kind': 'twin',
    'num_runs': num_runs,
    'seed': seed,
    'titles': {name: agent.title for name, agent in agents.items()},
    'worlds': rows,
    'curves': curves,
    'sweep': sweep,
  }


def _of_runs(outcome: twin.Outcome) -> dict[str, Any]:
  return {
    'errors': _interval(outcome.error.sum(axis=1)),
    'questions': _interval(outcome.questions.sum(axis=1)),
    'corrections': _interval(outcome.corrected.sum(axis=1)),
  }


def _bounds(world: twin.World, rounds: twin.Rounds) -> dict[str, float] | None:
  """What the theorem allows agents with corrections; none where corrections are noisy or values not equally likely."""
  if world.noise or world.population:
    return None
  switches = float(rounds.num_slot_switches.mean())
  slots, share, num_rounds = world.num_slots, world.fresh_share, world.num_rounds
  return {
    'slot_switches': switches,
    'corrections': theory.errors_with_corrections(
      switches, slots, share, num_rounds, world.num_values
    ),
    'both': theory.errors_with_both(
      switches, slots, share, num_rounds, world.num_values, world.num_answers, world.num_questions
    ),
  }


def _curve(outcome: twin.Outcome) -> dict[str, list[int | float]]:
  """Mean errors up to some rounds."""
  total = np.cumsum(outcome.error, axis=1).mean(axis=0)
  at = np.unique(np.linspace(0, len(total) - 1, _NUM_POINTS).astype(int))
  return {'round': (at + 1).tolist(), 'errors': total[at].tolist()}


def _interval(values: np.ndarray) -> dict[str, float | None]:
  return intervals.plain(intervals.of_mean(values))


def _columns(found: list[intervals.Interval]) -> list[dict[str, float | None]]:
  return [intervals.plain(x) for x in found]
