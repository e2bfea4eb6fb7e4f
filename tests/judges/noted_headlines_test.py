"""People with tastes, and prompts that note some of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.judges import electorate, headlines
from nlhf_jax.judges import noted_headlines as people
from nlhf_jax.judges.noted_headlines import Person

IDS = {word: number + 3 for number, word in enumerate(headlines.word_list())}
STORIES = ('leak', 'earthquake', 'petition', 'election', 'recital', 'jubilee')


def favourite(person):
  ballot = people.ballot(STORIES, IDS, [person])
  words = {token: word for word, token in IDS.items()}
  liked = ballot.responses[people.favourites(ballot.scores[0])]
  return {frozenset(words[t] for t in row if t > 1) for row in liked.tolist()}


@pytest.mark.parametrize(
  ('person', 'liked'),
  [
    # recital 20 + 0 − 7, jubilee 20 + 7 − 7, earthquake 10 + 7 − 7.
    (Person('culture', 'politics', 'two', 'big'), {'recital', 'jubilee'}),
    (Person('culture', 'politics', 'one', 'big'), {'jubilee'}),
    # recital 20 + 7 − 7, leak 10 + 7 − 7, jubilee 20 + 0 − 7.
    (Person('culture', 'politics', 'two', 'small'), {'recital', 'jubilee'}),
    (Person('politics', 'culture', 'one', 'small'), {'petition'}),
  ],
)
def test_favourites_by_hand(person, liked):
  assert favourite(person) == {frozenset(liked)}


def test_everybody_is_different():
  """No two of the 24 like the same on every day, so that each taste can be told."""
  everyone = people.people()
  assert len(set(everyone)) == 24
  days = [people.ballot(headlines.prompt(day), IDS, everyone).scores for day in range(40)]
  likes = [people.favourites(scores) for day in days for scores in day]
  by_person = np.array(likes).reshape(40, 24, -1)
  for i in range(24):
    for j in range(i):
      assert (by_person[:, i] != by_person[:, j]).any()


def test_unseen_people_have_tastes_that_others_have():
  unseen = people.unseen(6)
  known = [person for person in people.people() if person not in unseen]
  assert len(set(unseen)) == 6 and len(known) == 18
  for topic, values in people.TOPICS.items():
    assert {getattr(person, topic) for person in known} == set(values)
  with pytest.raises(ValueError, match='number must be in'):
    people.unseen(24)


def test_electors_are_those_of_whom_notes_are_true():
  noted = {'best': 'culture', 'stories': 'one'}
  found = people.electors(noted, people.people(), 24)
  assert {x.best for x in found} == {'culture'} and {x.stories for x in found} == {'one'}
  # Four of them, six votes each: the share of votes is the mean over them.
  assert sorted(map(found.count, set(found))) == [6] * 4
  assert people.electors({}, people.people(), 24) == list(people.people())
  with pytest.raises(ValueError, match='Nobody is like best:culture least:culture'):
    people.electors({'best': 'culture', 'least': 'culture'}, people.people(), 24)
  with pytest.raises(ValueError, match='No note best:sport'):
    people.words({'best': 'sport'})


def test_votes_without_notes_are_everybodys():
  everyone = people.electors({}, people.people(), 24)
  scores = people.ballot(STORIES, IDS, everyone).scores
  share = electorate.share_of_votes(jnp.array(scores[:, 0]), jnp.array(scores[:, 1]))
  each = [people.ballot(STORIES, IDS, [x]).scores[0] for x in people.people()]
  assert float(share) == pytest.approx(np.mean([0.5 + 0.5 * np.sign(x[0] - x[1]) for x in each]))
