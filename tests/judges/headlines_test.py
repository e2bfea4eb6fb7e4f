"""Headlines: scores by hand, majorities that cycle, and days that follow number and seed."""

import numpy as np

from nlhf_jax.judges import electorate, headlines
from nlhf_jax.types import Prompts

IDS = {story: number for number, story in enumerate(headlines.word_list(), start=2)}
DAY = ('earthquake', 'election', 'jubilee', 'leak', 'petition', 'recital')


def test_scores_are_those_of_the_table():
  """The biggest of each kind are worth 20, 10 or 0 to a reader, and 7 more; the smallest none; each word costs 7."""
  scores = headlines.ballot(DAY, IDS).scores
  number = {selection: n for n, selection in enumerate(electorate.selections(6, 2))}
  assert scores[:, number[0,]].tolist() == [20, 0, 10]  # Disaster: Ada, Bo, Cy.
  assert scores[:, number[1,]].tolist() == [10, 20, 0]  # Politics.
  assert scores[:, number[2,]].tolist() == [0, 10, 20]  # Culture.
  assert scores[:, number[3,]].tolist() == [13, -7, 3]
  np.testing.assert_array_equal(scores[:, number[0, 1]], [30, 20, 10])
  np.testing.assert_array_equal(scores[:, number[1, 0]], scores[:, number[0, 1]])


def test_majorities_cycle():
  """Two of three prefer the disaster to the politics, that to the culture, and that to the disaster."""
  ballot = headlines.ballot(DAY, IDS)
  judge = electorate.preference_fn(electorate.enumeration(lambda number: ballot))
  prompts = Prompts(np.zeros((1, 6), np.int32), np.zeros(1, np.int32))
  three = ballot.responses[:3]
  # Ada and Cy prefer 0 to 1; Ada and Bo 1 to 2; Bo and Cy 2 to 0.
  np.testing.assert_allclose(judge(prompts, three, np.roll(three, -1, axis=0)), [2 / 3] * 3)


def test_responses_are_all_headlines_of_one_or_two_stories():
  responses = headlines.ballot(DAY, IDS).responses
  assert len({tuple(row) for row in responses.tolist()}) == 6 + 6 * 5
  used = set(responses.ravel().tolist())
  assert used == {0, 1, *(IDS[story] for story in DAY)}


def test_days_follow_number_and_seed():
  assert headlines.prompt(5, seed=1) == headlines.prompt(5, seed=1)
  assert headlines.prompt(5, seed=1) != headlines.prompt(5, seed=2)
  assert headlines.prompt(5, seed=1) != headlines.prompt(6, seed=1)
  assert all(len(set(headlines.prompt(n))) == headlines.NUM_STORIES for n in range(50))
  assert len(set(headlines.word_list())) == 24
