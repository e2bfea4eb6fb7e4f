"""Agents that buy for one person: notes about values and tasks, and the tastes that agree with them.

An agent knows which values a feature has, how many of them are liked, and the rule of labels; not the person's tiers. A question asks
for the tier of one value. A newer note takes the place of an older one on the same; if no taste agrees with all notes, tastes have
changed: what contradicts the newest notes is forgotten (`both`), or everything older is put aside (`doubt`), of other products too, so
that it is asked again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from nlhf_jax.personalisation import tastes
from nlhf_jax.personalisation.agents import Agent
from nlhf_jax.personalisation.notes import Note, Notes, overwrite
from nlhf_jax.personalisation.shopping import (
  LETTERS,
  MOST,
  NOTHING,
  Features,
  Feedback,
  Task,
  Taste,
)
from nlhf_jax.personalisation.tastes import Statement, Tastes

# An agent asks where it would err with at least this probability (ε₀).
AMBIGUITY = 0.05
_ANSWERS = (*LETTERS, NOTHING)


class Topic(NamedTuple):
  """What a note is about: a value of a product, or a task's options."""

  product: str
  about: str | tuple[tuple[str, ...], ...]


def similarity(query: str | Topic, topic: Topic) -> float:
  """1: the same topic; ½: the same product; a product's name is a query for all notes on it."""
  if query == topic:
    return 1.0
  product = query.product if isinstance(query, Topic) else query
  return 0.5 * (product == topic.product)


def population_shares(
  others: Sequence[Taste], features: Features, product: str
) -> list[Float[np.ndarray, '_ 3']]:
  """Of each feature, how many of some people have each value in each tier; one half is added to each, so that nothing is ruled out."""
  result = []
  for feature in features:
    counts = np.full((len(feature.values), MOST + 1), 0.5)
    for taste in others:
      for column, value in enumerate(feature.values):
        if product in taste:
          counts[column, taste[product][value]] += 1
    result.append(counts / counts.sum(axis=1, keepdims=True))
  return result


class Shopper:
  """One agent that serves one person; an empty memory is every taste, as likely as the prior has it."""

  def __init__(
    self,
    agent: Agent,
    products: Mapping[str, Features],
    rng: np.random.Generator,
    others: Sequence[Taste] = (),
  ) -> None:
    """Nothing is known of the person.

    Args:
      agent: which feedback it hears and what it keeps.
      products: their features and values.
      rng: of draws where the agent knows nothing.
      others: tastes of the population, if the agent has a prior.
    """
    keeps_all = agent.remembers == 'everything'
    self.agent, self.notes = agent, Notes(similarity, merge=None if keeps_all else overwrite)
    self._products, self._rng, self._others = products, rng, others
    self._beliefs: dict[str, Tastes] = {}
    # By product: all tastes, and how many notes contradict each, where all notes are evidence.
    self._all: dict[str, Tastes] = {}
    self._contradicted: dict[str, np.ndarray] = {}
    # The right answer by every taste left, to the task at hand.
    self._letters: tuple[Tastes, tuple, np.ndarray] | None = None

  def question(self, task: Task) -> str | None:
    """The value whose tier it asks for; None where it is sure enough, or does not ask."""
    if not self.agent.asks:
      return None
    left = self.beliefs(task.product)
    letter = self._letters_of(left, task.options)
    if 1 - tastes.shares_of_letters(left, letter).max() >= AMBIGUITY:
      return tastes.best_question(left, task.options, letter)
    return tastes.most_open_value(left, task.options) if self.agent.is_curious else None

  def hear_answer(self, task: Task, value: str, tier: int, time: int) -> None:
    """Notes what a question brought."""
    self._write(Topic(task.product, value), Statement(value, tier), time)

  def act(self, task: Task) -> str:
    """The letter that is most likely right; of equals, not buying, then the first."""
    if self.agent.remembers == 'truth':
      return task.label
    if self.agent.constant is not None:
      return self.agent.constant
    if self.agent.remembers == 'nothing':
      return str(self._rng.choice(_ANSWERS))
    left = self.beliefs(task.product)
    shares = tastes.shares_of_letters(left, self._letters_of(left, task.options))
    # Reversed, so that D comes first.
    return _ANSWERS[len(shares) - 1 - int(np.argmax(np.round(shares[::-1], 6)))]

  def hear_feedback(self, task: Task, action: str, said: Feedback, time: int) -> None:
    """Notes what feedback says: a value's tier, and which letter was right, be it by thanks."""
    if not self.agent.is_corrected:
      return
    if said.value is not None:
      self._write(Topic(task.product, said.value), Statement(said.value, said.tier), time)
    letter = action if said.is_right else said.letter
    # A history is of what was told, and thanks tell nothing new.
    if letter is not None and not (said.is_right and self.agent.remembers == 'everything'):
      statement = Statement(options=task.options, letter=letter)
      self._write(Topic(task.product, task.options), statement, time)

  def beliefs(self, product: str) -> Tastes:
    """The tastes that agree with the notes on a product."""
    if product not in self._beliefs:
      self._beliefs[product] = self._from_notes(product)
    return self._beliefs[product]

  def _letters_of(self, left: Tastes, options: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """`tastes.letters`, once for a task and what is known in it."""
    if self._letters is None or self._letters[0] is not left or self._letters[1] != options:
      self._letters = left, options, tastes.letters(left, options)
    return self._letters[2]

  def _write(self, topic: Topic, statement: Statement, time: int) -> None:
    note = Note(topic, statement, time)
    if self.agent.remembers == 'everything':
      self.notes.write(note)
      self._beliefs[topic.product] = self._most_agreed(topic.product, statement)
      return
    before = self.beliefs(topic.product)
    self.notes.write(note)
    if statement.letter is None:
      agrees = tastes.consistent(before, statement)
    else:
      agrees = self._letters_of(before, statement.options) == _ANSWERS.index(statement.letter)
    left = tastes.condition(before, agrees)
    if left is not None:
      self._beliefs[topic.product] = left
      return
    if self.agent.doubt:
      self.notes.doubt(before=time)
      self._beliefs.clear()
    self._beliefs.pop(topic.product, None)

  def _every_taste(self, product: str) -> Tastes:
    if product not in self._all:
      features, shares = self._products[product], None
      if self.agent.has_prior and self._others:
        shares = population_shares(self._others, features, product)
      self._all[product] = tastes.all_tastes(features, shares)
    return self._all[product]

  def _from_notes(self, product: str) -> Tastes:
    """What agrees with the newest notes; older ones that contradict them are forgotten."""
    left, wrong = self._every_taste(product), []
    for note in self.notes.retrieve(product):
      if note.is_doubtful:
        continue
      fewer = tastes.condition(left, tastes.consistent(left, note.content))
      if fewer is None:
        wrong.append(note)
      else:
        left = fewer
    self.notes.forget(wrong)
    return left

  def _most_agreed(self, product: str, statement: Statement) -> Tastes:
    """The tastes that the fewest notes contradict, of whatever age, after one more."""
    every = self._every_taste(product)
    counts = self._contradicted.setdefault(product, np.zeros(every.weights.shape, np.int16))
    counts += ~tastes.consistent(every, statement)
    return tastes.condition(every, counts == counts.min())
