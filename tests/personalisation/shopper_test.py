"""Agents that buy: what they keep, ask and forget."""

import numpy as np
import pytest

from nlhf_jax.personalisation import agents, shopping
from nlhf_jax.personalisation.shopper import Shopper, Topic, population_shares, similarity
from nlhf_jax.personalisation.shopping import Feature, Task

PRODUCTS = {
  'lamp': (
    Feature('bulb', ('b0', 'b1', 'b2'), (1, 1, 1)),
    Feature('shade', ('s0', 's1', 's2'), (1, 1, 1)),
  ),
  'desk': (Feature('legs', ('l0', 'l1', 'l2'), (1, 1, 1)),),
}
LAMP = Task('Ann', 'lamp', (('b0', 's0'), ('b1', 's1'), ('b2', 's2')), 'A')
DESK = Task('Ann', 'desk', (('l0',), ('l1',), ('l2',)), 'C')


def shopper(name):
  return Shopper(agents.AGENTS[name], PRODUCTS, np.random.default_rng(0))


def told(agent, tiers, time=0):
  for value, tier in tiers.items():
    agent.hear_answer(DESK if value.startswith('l') else LAMP, value, tier, time)


def sizes(agent):
  return {name: np.count_nonzero(agent.beliefs(name).weights) for name in PRODUCTS}


def test_empty_memory_is_every_taste():
  agent = shopper('both')
  assert sizes(agent) == {'lamp': 36, 'desk': 6}
  assert agent.question(DESK) is not None
  assert shopper('corrections').question(DESK) is None


def test_answers_are_kept_and_nothing_is_asked_again():
  agent = shopper('both')
  told(agent, {'l2': 2, 'l0': 0})
  assert sizes(agent)['desk'] == 1
  assert agent.question(DESK) is None
  assert agent.act(DESK) == 'C'


def test_curiosity_asks_on_where_the_action_is_sure():
  """Nothing can beat an option of which everything is liked most, whatever the rest is."""
  for name, asks in (('doubt', False), ('curious', True)):
    agent = shopper(name)
    told(agent, {'b0': 2, 's0': 2})
    assert agent.act(LAMP) == 'A'
    assert (agent.question(LAMP) in {'b1', 'b2', 's1', 's2'}) == asks


def test_corrections_are_kept_as_tiers_and_letters():
  agent = shopper('corrections')
  tiers = {'l0': 0, 'l1': 1, 'l2': 2}
  agent.hear_feedback(DESK, 'A', shopping.feedback(DESK, 'A', tiers), 0)
  assert sizes(agent)['desk'] == 2
  agent.hear_feedback(DESK, 'B', shopping.feedback(DESK, 'B', tiers), 1)
  assert sizes(agent)['desk'] == 1
  assert agent.act(DESK) == 'C'
  # Thanks are a letter too.
  other = shopper('corrections')
  other.hear_feedback(DESK, 'C', shopping.feedback(DESK, 'C', tiers), 0)
  assert sizes(other)['desk'] == 2
  deaf = shopper('questions')
  deaf.hear_feedback(DESK, 'A', shopping.feedback(DESK, 'A', tiers), 0)
  assert sizes(deaf)['desk'] == 6


def test_contradiction_without_doubt_forgets_what_contradicts_and_no_more():
  agent = shopper('both')
  told(agent, {'b0': 2, 'b1': 1, 's0': 2, 'l0': 2})
  told(agent, {'b2': 2}, time=1)
  assert sizes(agent) == {'lamp': 1 * 2, 'desk': 2}
  assert {x.topic.about for x in agent.notes.retrieve('lamp')} == {'b1', 's0', 'b2'}


def test_contradiction_with_doubt_empties_other_products_too():
  agent = shopper('doubt')
  told(agent, {'b0': 2, 'b1': 1, 's0': 2, 'l0': 2})
  told(agent, {'b2': 2}, time=1)
  assert sizes(agent) == {'lamp': 2 * 6, 'desk': 6}
  # They are still there to be read.
  assert len(agent.notes) == 5
  assert sum(x.is_doubtful for x in agent.notes.retrieve('desk')) == 1


def test_full_history_goes_by_the_majority_of_notes():
  agent = shopper('history')
  told(agent, {'l0': 2})
  told(agent, {'l0': 2}, time=1)
  told(agent, {'l1': 2}, time=2)
  assert agent.act(DESK) == 'A'
  told(agent, {'l1': 2}, time=3)
  told(agent, {'l1': 2}, time=4)
  assert agent.act(DESK) == 'B'
  assert len(agent.notes) == 5


def test_prior_is_of_the_population_and_a_new_person_is_served_by_it():
  tastes = [{'desk': {'l0': 0, 'l1': 2, 'l2': 1}}] * 9 + [{}]
  (shares,) = population_shares(tastes, PRODUCTS['desk'], 'desk')
  assert shares[1, 2] == pytest.approx(9.5 / 10.5)
  ours = Shopper(agents.AGENTS['ours'], PRODUCTS, np.random.default_rng(0), tastes)
  assert ours.act(DESK) == 'B'
  # What a person says counts for more than what all others like.
  told(ours, {'l0': 2})
  assert ours.act(DESK) == 'A'


def test_constant_oracle_and_chance():
  assert Shopper(agents.CONSTANT, PRODUCTS, np.random.default_rng(0)).act(LAMP) == 'D'
  assert shopper('oracle').act(LAMP) == 'A'
  by_chance = shopper('none')
  assert {by_chance.act(LAMP) for _ in range(60)} == set('ABCD')


def test_similarity_of_topics():
  one, other = Topic('lamp', 'b0'), Topic('lamp', 'b1')
  assert (similarity(one, one), similarity(one, other), similarity('lamp', one)) == (1, 0.5, 0.5)
  assert similarity('desk', one) == 0
