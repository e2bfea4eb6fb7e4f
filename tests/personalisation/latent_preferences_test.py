"""The twin: against closed forms, enumeration and the bounds of `theory`."""

import numpy as np
import pytest

from nlhf_jax.personalisation import agents, theory
from nlhf_jax.personalisation import latent_preferences as twin
from nlhf_jax.votes import intervals

AGENTS = agents.AGENTS


def errors(name, world, num_runs=40, seed=0):
  rounds = twin.draw(world, num_runs, seed)
  return twin.simulate(AGENTS[name], world, rounds).error.sum(axis=1)


def holds(value, interval, slack=0.0):
  return interval.low - slack <= value <= interval.high + slack


def test_two_values_and_one_switch_are_proposition_1():
  """What was once learnt goes stale: T/4 errors and a little, where the switch may come before any round."""
  world = twin.World(num_slots=1, num_values=2, num_rounds=40, num_switches=1, num_answers=2)
  asked = errors('questions', world, 400)
  # Asked in round 1, after the switch that may be there; wrong from the switch on: (T − 1)/2 of the rounds on average.
  assert holds((world.num_rounds - 1) / 2, intervals.of_mean(asked))
  assert intervals.of_mean(asked).low > theory.uncorrected_errors(world.num_rounds)
  corrected = errors('corrections', world, 400)
  assert corrected.max() <= 2
  # The first visit by chance; a switch before round 1 is not seen.
  expected = 0.5 + (world.num_rounds - 1) / world.num_rounds
  assert holds(expected, intervals.of_mean(corrected))


@pytest.fixture(scope='module')
def switching():
  """S = N = m = 6, k = 1, ten switches of one slot each in 2000 rounds; agents' outcomes of the same 40 runs."""
  world = twin.World(num_switches=10)
  rounds = twin.draw(world, 40)
  names = ('questions', 'corrections', 'both', 'doubt')
  return {name: twin.simulate(AGENTS[name], world, rounds) for name in names}


def test_errors_grow_with_rounds_without_corrections_and_not_with_them(switching):
  stale = switching['questions'].error
  assert intervals.of_mean(stale.sum(axis=1)).low > 0.3 * 2000
  # Every switch leaves more that is stale.
  parts = stale.reshape(40, 4, 500).sum(axis=2)
  assert intervals.of_mean(parts[:, 3] - parts[:, 0]).low > 0
  assert switching['both'].error.sum(axis=1).max() <= 10
  shorter = errors('both', twin.World(num_rounds=500, num_switches=10), 20)
  assert 10 >= shorter.max() >= 9


@pytest.mark.parametrize('switch', ['one', 'all'])
@pytest.mark.parametrize('num_rounds', [500, 1000])
def test_errors_without_corrections_are_linear_in_rounds(num_rounds, switch):
  world = twin.World(num_rounds=num_rounds, num_switches=10, switch=switch)
  expected = theory.stale_errors(num_rounds, 10, 6, 6, all_slots=switch == 'all')
  # A slot is first seen in round 6 on average.
  assert holds(expected, intervals.of_mean(errors('questions', world, 80)), slack=6)


def test_a_table_of_published_notes(switching):
  """Means of 40 other runs: their intervals are as wide as ours."""
  for name, value in {'corrections': 15.0, 'both': 9.9, 'doubt': 9.6}.items():
    found = intervals.of_mean(switching[name].error.sum(axis=1))
    assert abs(found.mean - value) <= np.sqrt(2) * (found.high - found.mean) + 0.1, name
  assert switching['both'].questions.sum(axis=1).mean() == pytest.approx(6)
  assert switching['doubt'].questions.sum(axis=1).mean() == pytest.approx(53, abs=3)


def test_doubt_costs_questions_and_saves_the_errors_of_neighbours():
  world = twin.World(num_rounds=400, num_switches=3, switch='all')
  rounds = twin.draw(world, 10)
  both, doubt = (twin.simulate(AGENTS[name], world, rounds) for name in ('both', 'doubt'))
  assert doubt.error.sum(axis=1).max() <= 3
  assert both.error.sum(axis=1).min() > 3 * 3
  assert (doubt.questions.sum(axis=1) > both.questions.sum(axis=1)).all()


def test_k_counts_switches_of_slots():
  """One event that switches all slots may cost an error for each, and no more."""
  world = twin.World(num_rounds=200, num_switches=4, switch='all')
  rounds = twin.draw(world, 20)
  error = twin.simulate(AGENTS['both'], world, rounds).error.sum(axis=1)
  assert (rounds.num_slot_switches == 24).all()
  assert (error <= rounds.num_slot_switches).all()
  # The published K would be 4.
  assert error.min() > 4


@pytest.mark.parametrize(
  ('num_values', 'num_answers', 'num_questions'), [(64, 2, 1), (7, 2, 2), (6, 6, 1), (9, 3, 1)]
)
def test_what_answers_leave(num_values, num_answers, num_questions):
  """Rounds that never return: proposition 2 with 1 − m^k/N, not with assumption A1."""
  world = twin.World(
    num_values=num_values, num_answers=num_answers, num_questions=num_questions, num_rounds=150,
    fresh_share=0.5,
    num_slots=1,
  )  # fmt: skip
  rounds = twin.draw(world, 60)
  once = rounds.slot == 1
  asked = twin.simulate(AGENTS['both'], world, rounds).error
  rate = intervals.of_mean((asked & once).sum(axis=1) / once.sum(axis=1))
  exact = theory.error_after_answers(num_values, num_answers, num_questions)
  assert holds(exact, rate)
  assert rate.mean <= theory.odds_bound(num_values, num_answers, num_questions) + 1e-9
  if 1 < num_answers**num_questions < num_values:
    claimed = theory.claimed_error_after_answers(num_values, num_answers, num_questions)
    assert claimed < rate.low
  unasked = twin.simulate(AGENTS['corrections'], world, rounds).error
  least = theory.unasked_errors(1 - 1 / num_values, 1.0, 1)
  assert holds(least, intervals.of_mean((unasked & once).sum(axis=1) / once.sum(axis=1)))


@pytest.mark.parametrize('num_questions', [0, 1, 2])
def test_theorem_with_switches_and_things_that_do_not_return(num_questions):
  world = twin.World(
    num_slots=4, num_values=8, num_answers=3, num_questions=num_questions, num_rounds=200, num_switches=6, fresh_share=0.2,
  )  # fmt: skip
  rounds = twin.draw(world, 60)
  error = twin.simulate(AGENTS['both'], world, rounds).error.sum(axis=1)
  most = theory.errors_with_both(6, 4, 0.2, 200, 8, 3, num_questions)
  found = intervals.of_mean(error)
  assert found.low <= most
  # And the bound is no idle one.
  assert found.high >= most - 6 - 4
  if num_questions == 2:
    assert error.max() <= 6


def test_questions_split_beliefs_evenly():
  rng = np.random.default_rng(0)
  weights = np.tile(np.full(7, 1 / 7), (7, 1))
  left = twin.ask(rng, weights, np.arange(7), 3)
  assert sorted((left > 0).sum(axis=1)) == [2, 2, 2, 2, 3, 3, 3]
  np.testing.assert_allclose(left[np.arange(7), np.arange(7)], 1 / (left > 0).sum(axis=1))
  # One value as probable as all others together is asked for by itself.
  skew = np.tile(np.r_[0.5, np.full(10, 0.05)], (2, 1))
  yes, no = twin.ask(rng, skew, np.array([0, 3]), 2)
  assert yes[0] == 1
  assert no[0] == 0


def test_a_prior_saves_errors_where_an_answer_does_not_settle_a_value():
  """64 values of which few are common, four answers."""
  shares = 1 / np.arange(1, 65) ** 1.5
  world = twin.World(
    num_values=64, num_answers=4, num_rounds=150, num_switches=4, population=tuple(shares / shares.sum())
  )  # fmt: skip
  rounds = twin.draw(world, 20)
  doubt, ours = (twin.simulate(AGENTS[name], world, rounds) for name in ('doubt', 'ours'))
  assert intervals.of_mean(doubt.error.sum(axis=1) - ours.error.sum(axis=1)).low > 0
  assert ours.questions.sum(axis=1).mean() <= doubt.questions.sum(axis=1).mean()


def test_half_a_doubt_asks_for_what_was_known_first():
  """64 values, four answers, one slot switches: an emptied memory is not found again by one question, a doubted one is."""
  world = twin.World(num_values=64, num_answers=4, num_rounds=400, num_switches=5)
  rounds = twin.draw(world, 20)
  doubt, ours, both = (
    twin.simulate(AGENTS[name], world, rounds).error.sum(axis=1)
    for name in ('doubt', 'ours', 'both')
  )
  assert intervals.of_mean(doubt - ours).low > 5
  assert abs(intervals.of_mean(ours - both).mean) < 2


def test_partial_answers_that_are_kept_settle_a_value():
  """N = 27 and m = 3: three visits of a slot ask, and none after them; if nothing is kept, all visits do."""
  world = twin.World(num_slots=1, num_values=27, num_answers=3, num_rounds=12)
  rounds = twin.draw(world, 5)
  kept = twin.simulate(AGENTS['questions']._replace(keeps_partial=True), world, rounds)
  assert (kept.questions == np.r_[1, 1, 1, np.zeros(9)]).all()
  assert not kept.error[:, 2:].any()
  assert (twin.simulate(AGENTS['questions'], world, rounds).questions == 1).all()


def test_noise_in_corrections_costs_a_little(switching):
  noisy = errors('both', twin.World(num_switches=10, noise=0.1))
  assert holds(11.3, intervals.of_mean(noisy), slack=0.5)
  assert noisy.mean() > switching['both'].error.sum(axis=1).mean()


def test_full_history_recovers_later_than_the_newest_note():
  world = twin.World(num_rounds=300, num_switches=6, switch='all')
  assert errors('history', world, 10).mean() > errors('both', world, 10).mean() + 1


def test_oracle_never_errs_and_no_memory_errs_by_chance():
  world = twin.World(num_rounds=100, num_switches=5)
  assert errors('oracle', world, 10).max() == 0
  assert holds(100 * 5 / 6, intervals.of_mean(errors('none', world, 40)))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_switches': 2001}, 'num_switches = 2001 is more than num_rounds = 2000'),
    ({'num_answers': 1}, 'num_answers must be at least 2, got 1'),
    ({'noise': 1.5}, r'noise must be in \[0, 1\], got 1.5'),
    ({'fresh_share': -0.1}, r'fresh_share must be in \[0, 1\]'),
    ({'num_values': 1}, 'num_values must be at least 2'),
    ({'population': (0.5, 0.5)}, 'population must be 6 shares'),
  ],
)
def test_a_world_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    twin.draw(twin.World()._replace(**change), 2)


def test_a_constant_answer_is_refused():
  world = twin.World(num_rounds=3)
  with pytest.raises(ValueError, match='no constant answer'):
    twin.simulate(agents.CONSTANT, world, twin.draw(world, 1))
  with pytest.raises(ValueError, match='num_runs must be at least 1'):
    twin.draw(world, 0)
