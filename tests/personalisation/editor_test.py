"""Agents that go by a policy and notes, on the exact policy in place of a trained one."""

import numpy as np
import pytest

from nlhf_jax.judges import headlines
from nlhf_jax.judges import noted_headlines as people
from nlhf_jax.personalisation import agents, editor, protocol

IDS = {word: number + 3 for number, word in enumerate(headlines.word_list())}
NUM_DAYS = 60


@pytest.fixture(scope='module')
def tables():
  """μ exp(P(y ≻ π)/τ) of the people of whom the notes are true, uniform μ, by damped iteration."""
  everyone = people.people()
  days = [people.ballot(headlines.prompt(day), IDS, everyone).scores for day in range(NUM_DAYS)]
  scores = np.stack(days)
  beats = 0.5 + 0.5 * np.sign(scores[..., :, None] - scores[..., None, :])
  log_probs = np.full((NUM_DAYS, len(editor.STATES), scores.shape[-1]), -np.log(scores.shape[-1]))
  for number, state in enumerate(editor.STATES):
    noted = {t: v for t, v in zip(people.TOPICS, state, strict=True) if v}
    who = [i for i, person in enumerate(everyone) if people.is_true(noted, person)]
    if who:
      log_probs[:, number] = _nash(beats[:, who].mean(axis=1))
  return editor.Tables(log_probs, scores)


def _nash(p):
  log_policy = np.zeros(p.shape[:2])
  for _ in range(150):
    policy = np.exp(log_policy)
    policy /= policy.sum(axis=1, keepdims=True)
    log_policy = 0.9 * np.log(policy) + 0.1 * np.einsum('dij,dj->di', p, policy) / 0.1
  return log_policy - np.logaddexp.reduce(log_policy, axis=1, keepdims=True)


def success(tables, name, change):
  lives = editor.draw_lives(people.unseen(6), change, NUM_DAYS, num_lives=2)
  outcome = editor.serve(tables, agents.AGENTS[name], lives)
  return {phase: protocol.success_rates(outcome, phase).mean() for phase in (1, 2, 3, 4)}, outcome


def test_oracle_is_right_and_an_empty_memory_is_the_populations(tables):
  assert set(success(tables, 'oracle', 'all')[0].values()) == {1.0}
  found, outcome = success(tables, 'none', 'all')
  assert max(found.values()) < 0.4
  assert not any(x.asked.any() or x.corrected.any() for p in outcome.phases.values() for x in p)


def test_each_channel_learns_and_only_corrections_follow_a_change(tables):
  questions, outcome = success(tables, 'questions', 'all')
  assert questions[2] > 0.95 and questions[4] < 0.05
  assert not any(x.corrected.any() for x in outcome.phases[3])
  corrections, _ = success(tables, 'corrections', 'all')
  assert corrections[2] > 0.95 and corrections[4] > 0.95
  assert corrections[1] < questions[1]


def test_doubt_recovers_sooner_when_all_has_changed(tables):
  both, doubt, ours = (success(tables, x, 'all')[0] for x in ('both', 'doubt', 'ours'))
  assert both[3] < doubt[3] - 0.05 and both[3] < ours[3] - 0.05
  assert ours[4] > 0.95
  # A history whose notes all count alike never gets over it.
  assert success(tables, 'history', 'all')[0][4] < 0.5


def test_an_answer_is_noted_and_overwritten(tables):
  one = editor.Editor(agents.AGENTS['both'])
  one.hear_answer('best', 'culture', 0)
  assert one.noted() == {'best': 'culture'}
  # Whoever likes culture best likes it least no more.
  for time in range(1, 4):
    one.hear_answer('least', 'culture', time)
  assert one.noted() == {'least': 'culture'}


def test_asks_only_where_it_matters(tables):
  one = editor.Editor(agents.AGENTS['both'])
  flat = np.zeros(tables.log_probs.shape[1:])
  assert one.question(flat) is None
  assert one.question(tables.log_probs[0]) in people.TOPICS
  assert editor.Editor(agents.AGENTS['corrections']).question(tables.log_probs[0]) is None


def test_wrong_lives_are_refused():
  with pytest.raises(ValueError, match="change must be 'one' or 'all'"):
    editor.draw_lives(people.unseen(1), 'none', 60)
  with pytest.raises(ValueError, match='60 rounds need as many days, got num_days = 59'):
    editor.draw_lives(people.unseen(1), 'one', 59)
  with pytest.raises(ValueError, match='0 people of num_lives = 20 have no life'):
    editor.draw_lives((), 'one', 60)
  with pytest.raises(ValueError, match='1 people of num_lives = 0 have no life'):
    editor.draw_lives(people.unseen(1), 'one', 60, num_lives=0)


def test_people_stay_unseen_when_all_their_tastes_change():
  unseen = people.unseen(6)
  lives = editor.draw_lives(unseen, 'all', 60, num_lives=20)
  assert {x.after for x in lives} <= set(unseen)


def test_lives_of_one_person_count_as_one(tables):
  """They are not independent: intervals are over people."""
  lives = editor.draw_lives(people.unseen(2), 'all', NUM_DAYS, num_lives=3)
  outcome = editor.serve(tables, agents.AGENTS['both'], lives)
  rates = protocol.success_rates(outcome, 4)
  each = [1 - x.error.mean() for x in outcome.phases[4]]
  np.testing.assert_allclose(rates, np.reshape(each, (2, 3)).mean(axis=1))
  assert protocol.cumulative_errors(outcome, 3).shape == (2, 20)
  assert protocol.feedback_shares(outcome, 1)['any'].shape == (2,)


def test_lives_change_as_much_as_asked():
  for change, wanted in (('one', 1), ('all', 4)):
    for life in editor.draw_lives(people.unseen(6), change, 60, num_lives=3):
      assert sum(a != b for a, b in zip(life.before, life.after, strict=True)) == wanted
      assert not set(life.days[1]) & set(life.days[2])
