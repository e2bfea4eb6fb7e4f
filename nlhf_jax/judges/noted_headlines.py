"""Headlines for one person, whose tastes stand in the prompt as notes, as far as they are known.

  prompt:    best:culture least:politics flood election concert strike storm opera      response:  concert storm

A person likes one kind of story best and one least, prefers big stories or small ones, and headlines of two stories or of one: 24
people. A note names one of the four; what no note names is not known, and the electorate of such a prompt are all people of whom its
notes are true. Without any note that is everybody.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nlhf_jax.judges import electorate, headlines

KINDS = tuple(headlines.STORIES)
# What a note may be about, and say.
TOPICS: Mapping[str, tuple[str, ...]] = {
  'best': KINDS,
  'least': KINDS,
  'stories': ('two', 'one'),
  'size': ('big', 'small'),
}
# Of a story, in points of its size; whoever wants one story alone pays more than any is worth.
_COSTS = {'two': 7, 'one': 40}

# Topic -> what is noted of it; topics without a note are not in it.
Noted = Mapping[str, str]


class Person(NamedTuple):
  """One reader's tastes: a value of each of TOPICS."""

  best: str
  least: str
  stories: str
  size: str


# Of the 24 people, those whom no training prompt is about unless a run says otherwise.
NUM_UNSEEN = 6


def people() -> tuple[Person, ...]:
  """All 24."""
  found = (Person(*values) for values in itertools.product(*TOPICS.values()))
  return tuple(person for person in found if person.best != person.least)


def unseen(number: int = NUM_UNSEEN) -> tuple[Person, ...]:
  """People whom no training prompt is about: each single taste of theirs others have, too.

  Raises:
    ValueError: there are fewer people, or nobody would be left.
  """
  everyone = people()
  if not 0 <= number < len(everyone):
    raise ValueError(f'number must be in [0, {len(everyone)}), got {number}.')
  # Steps of 5 through 24 meet everybody, and spread over all tastes.
  return tuple(everyone[5 * i % len(everyone)] for i in range(number))


def is_true(noted: Noted, person: Person) -> bool:
  """Whether notes hold of a person."""
  return all(getattr(person, topic) == value for topic, value in noted.items())


def words(noted: Noted) -> tuple[str, ...]:
  """Notes as words, in the order of TOPICS.

  Raises:
    ValueError: a topic or a value is none.
  """
  for topic, value in noted.items():
    if value not in TOPICS.get(topic, ()):
      raise ValueError(f'No note {topic}:{value}: topics and values are {dict(TOPICS)}.')
  return tuple(f'{topic}:{noted[topic]}' for topic in TOPICS if topic in noted)


def word_list() -> list[str]:
  """Every note."""
  return [f'{topic}:{value}' for topic, values in TOPICS.items() for value in values]


@functools.cache
def worth(person: Person) -> Mapping[str, float]:
  """What each story adds to a headline for a person."""
  result = {}
  for kind, stories in headlines.STORIES.items():
    liking = 20 * (kind == person.best) + 10 * (kind not in (person.best, person.least))
    for size, story in enumerate(stories):
      wanted = size if person.size == 'big' else len(stories) - 1 - size
      result[story] = float(liking + wanted - _COSTS[person.stories])
  return result


def ballot(
  stories: Sequence[str], token_ids: Mapping[str, int], voters: Sequence[Person]
) -> electorate.Ballot:
  """Every headline of these stories, and every voter's score of it.

  Args:
    stories: of one day.
    token_ids: of each story.
    voters: who votes, as often as they stand here.
  """
  responses = electorate.as_responses(
    [token_ids[story] for story in stories], headlines.MAX_SELECTED
  )
  chosen = electorate.incidence(len(stories), headlines.MAX_SELECTED)
  each = np.array([[worth(voter)[story] for voter in voters] for story in stories])
  return electorate.Ballot(responses, (chosen @ each).T.astype(np.float32))


def electors(noted: Noted, among: Sequence[Person], size: int) -> list[Person]:
  """`size` votes, dealt as evenly as can be to those of whom the notes are true.

  Raises:
    ValueError: they are true of nobody.
  """
  found = [person for person in among if is_true(noted, person)]
  if not found:
    raise ValueError(f'Nobody is like {" ".join(words(noted))}: take a note away.')
  return [found[i % len(found)] for i in range(size)]


def draw_notes(rng: np.random.Generator, person: Person, known_share: float) -> dict[str, str]:
  """What is noted of a person: each topic with a probability, independently."""
  is_known = rng.random(len(TOPICS)) < known_share
  return {t: getattr(person, t) for t, known in zip(TOPICS, is_known, strict=True) if known}


def favourites(scores: Float[np.ndarray, 'Y']) -> np.ndarray:
  """Which headlines a person likes best; the order of two stories is nothing to anybody."""
  return scores >= scores.max() - 1e-6
