"""Headlines: which one or two of the day's six stories lead, and three readers who cannot agree.

  prompt:    flood election concert strike storm opera        response:  election storm

Stories are of three kinds, disaster, politics and culture, and some are bigger than others. Each reader has an order of
the kinds, and the orders go round in a circle, as in Condorcet's paradox:

| reader | likes best | then     | least    |
|--------|------------|----------|----------|
| Ada    | disaster   | politics | culture  |
| Bo     | politics   | culture  | disaster |
| Cy     | culture    | disaster | politics |

A story is worth 20, 10 or 0 points to a reader, by its kind, and 0 to 7 more, by its size; each costs 7, for headlines
should be short.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from nlhf_jax.judges import electorate

READERS = ('Ada', 'Bo', 'Cy')
# From small to big.
STORIES = {
  'disaster': ('leak', 'outage', 'derailment', 'storm', 'landslide', 'fire', 'flood', 'earthquake'),
  'politics': ('petition', 'bylaw', 'hearing', 'strike', 'reshuffle', 'budget', 'scandal', 'election'),
  'culture': ('recital', 'exhibition', 'reading', 'opera', 'premiere', 'concert', 'festival', 'jubilee'),
}  # fmt: skip
NUM_STORIES = 6
MAX_SELECTED = 2
_COST = 7


def word_list() -> list[str]:
  """Every story."""
  return [story for stories in STORIES.values() for story in stories]


def prompt(number: int, seed: int = 0) -> tuple[str, ...]:
  """The stories of day `number`, in random order: a function of both arguments alone."""
  rng = np.random.default_rng([seed, number])
  words = word_list()
  return tuple(words[i] for i in rng.permutation(len(words))[:NUM_STORIES])


@functools.cache
def worth() -> Mapping[str, Float[np.ndarray, 'K']]:
  """What each story adds to a headline, for each reader."""
  result = {}
  for kind, stories in enumerate(STORIES.values()):
    for size, story in enumerate(stories):
      liking = [2 - (kind - reader) % len(READERS) for reader in range(len(READERS))]
      result[story] = 10.0 * np.array(liking) + size - _COST
  return result


def ballot(stories: Sequence[str], token_ids: Mapping[str, int]) -> electorate.Ballot:
  """Every headline of these stories, 6 + 6·5 = 36 of six, and every reader's score of it.

  Args:
    stories: of one day.
    token_ids: of each story.
  """
  responses = electorate.as_responses([token_ids[story] for story in stories], MAX_SELECTED)
  chosen = electorate.incidence(len(stories), MAX_SELECTED)
  each = np.stack([worth()[story] for story in stories])
  return electorate.Ballot(responses, (chosen @ each).T.astype(np.float32))
