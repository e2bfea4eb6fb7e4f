"""The four phases on a small benchmark, and measures on outcomes by hand."""

import numpy as np
import pytest

from nlhf_jax.personalisation import agents, protocol, shopping
from nlhf_jax.personalisation.protocol import Outcome, Phase
from nlhf_jax.votes import intervals
from tests.personalisation import tiny_shopping

AGENTS = agents.AGENTS


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
  directory = tmp_path_factory.mktemp('shopping')
  users = [f'user {i}' for i in range(6)]
  return shopping.read(tiny_shopping.write(directory, users, num_tasks=6))


@pytest.fixture(scope='module')
def outcomes(benchmark):
  names = ('questions', 'corrections', 'both', 'doubt', 'curious', 'ours', 'history')
  found = {name: protocol.run(benchmark, AGENTS[name]) for name in names}
  return found | {'constant': protocol.run(benchmark, agents.CONSTANT)}


def success(outcomes, name, phase):
  return protocol.success_rates(outcomes[name], phase).mean()


def test_constant_is_the_share_of_d_and_the_oracle_is_right(benchmark, outcomes):
  for phase in (2, 4):
    share = np.mean([task.label == 'D' for task in benchmark.tasks[phase]])
    assert success(outcomes, 'constant', phase) == pytest.approx(share)
  oracle = protocol.run(benchmark, AGENTS['oracle'])
  assert all(not x.error.any() for phases in oracle.phases.values() for x in phases)


def test_no_feedback_in_tests_and_no_channel_but_the_agents_own(outcomes):
  for name, outcome in outcomes.items():
    for phase in (2, 4):
      assert {x.error.shape for x in outcome.phases[phase]} == {(1, 12)}
      assert not any((x.asked | x.corrected).any() for x in outcome.phases[phase])
    asked, corrected = (
      any(getattr(x, field).any() for p in (1, 3) for x in outcome.phases[p])
      for field in ('asked', 'corrected')
    )
    agent = AGENTS.get(name, agents.CONSTANT)
    assert (asked, corrected) == (agent.asks, agent.is_corrected)


def test_agents_learn_before_and_after_tastes_change(outcomes):
  for name in ('corrections', 'both', 'doubt', 'ours'):
    assert success(outcomes, name, 2) > success(outcomes, 'constant', 2) + 0.2
    errors = protocol.pass_errors(outcomes[name], 1).mean(axis=0)
    assert errors[-1] < 0.05 < errors[0]
    assert success(outcomes, name, 4) > success(outcomes, 'questions', 4) + 0.2


def test_doubt_saves_errors_after_tastes_change(outcomes):
  errors = {
    name: protocol.cumulative_errors(outcomes[name], 3)[:, -1] for name in ('both', 'doubt')
  }
  assert intervals.of_mean(errors['both'] - errors['doubt']).mean > 0
  asked = {
    n: protocol.feedback_shares(outcomes[n], 3)['pre'].mean() for n in ('both', 'doubt', 'curious')
  }
  assert asked['both'] < asked['doubt'] < asked['curious']


def test_full_history_recovers_late(outcomes):
  late = protocol.pass_errors(outcomes['history'], 3).mean(axis=0)
  assert late.sum() > protocol.pass_errors(outcomes['both'], 3).mean(axis=0).sum()


def test_user_whom_a_test_meets_first_is_served_from_an_empty_memory(benchmark):
  """Phase 1 without one user: it is served by what all tastes have in common, and others as before."""
  left = [task for task in benchmark.tasks[1] if task.user != 'user 0']
  without = benchmark._replace(tasks=benchmark.tasks | {1: left})
  found = protocol.run(without, AGENTS['both'])
  place = found.users.index('user 0')
  assert found.phases[1][place].error.size == 0
  (phase,) = found.phases[2][place].error
  labels = [task.label for task in benchmark.tasks[2] if task.user == 'user 0']
  assert phase.mean() > 0.2
  # Nothing known: not to buy is the likeliest of the four.
  assert [not x for x in phase] == [label == 'D' for label in labels]
  assert len(protocol.pass_errors(found, 1)) == len(found.users) - 1


def test_measures_by_hand():
  error = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
  asked = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)
  phase = Phase(error, asked, error)
  outcome = Outcome(('Ann',), {1: [phase], 2: [phase], 3: [phase], 4: [phase]}, [0])
  assert protocol.pass_errors(outcome, 1).tolist() == [[0.5, 0.25]]
  assert protocol.average_cumulative_errors(outcome, 1).tolist() == [[0.5, 0.375]]
  assert protocol.cumulative_errors(outcome, 3).tolist() == [[1, 2, 2, 2, 3, 3, 3, 3]]
  shares = {kind: x.item() for kind, x in protocol.feedback_shares(outcome, 1).items()}
  assert shares == {'pre': 0.25, 'post': 0.375, 'any': 0.5}


def test_no_pass_is_refused(benchmark):
  with pytest.raises(ValueError, match='num_passes must be at least 1, got 0'):
    protocol.run(benchmark, AGENTS['both'], num_passes=0)
