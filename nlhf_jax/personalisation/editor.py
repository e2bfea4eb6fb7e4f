"""An agent that picks headlines for one person: a trained policy π(y|x, notes), and notes that it keeps by asking and by being corrected.

The policy reads the notes; that is all that it is told of the person. What a correction or thanks tell is read off the policy, too: how
likely it would have picked the headline that the person likes, under each set of tastes. From round to round the agent carries how
likely each set is; a taste that it is sure of it notes, a newer note takes the place of an older one, and a note that has become
unlikely is forgotten. Everything here is a table of the policy's log-probs, by day and by what is noted; nothing is trained.

Protocol and measures are those of `personalisation.protocol`: learn, test, learn after tastes have changed, test.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.judges import noted_headlines as people
from nlhf_jax.judges.noted_headlines import TOPICS, Person
from nlhf_jax.personalisation import protocol
from nlhf_jax.personalisation.agents import Agent
from nlhf_jax.personalisation.notes import Note, Notes, overwrite

# An agent asks where what is not noted could change its headline with at least this probability.
AMBIGUITY = 0.05
# How likely a taste becomes any other from one round to the next, to agents that know that tastes change, and how likely all do to
# those that doubt.
HAZARD = 0.01
# What is noted is at least as likely, and forgotten where it is less likely than the rest.
CONFIDENCE = 0.9
# Share of days on which a headline that is liked may have come from anybody: a policy with true notes misses as often, and what is
# read off it must not outweigh what the person has said.
SLIPS = 0.1
_VALUES = tuple(tuple(values) for values in TOPICS.values())
# What can be noted of a person: a value of each topic, or nothing.
STATES = tuple(itertools.product(*((None, *values) for values in _VALUES)))
_SHAPE = tuple(map(len, _VALUES))
# Of complete sets of tastes, in the order of a table of shape _SHAPE.
_COMPLETE = np.array([STATES.index(state) for state in itertools.product(*_VALUES)])
# Nobody likes one kind both best and least.
_PEOPLE = np.array([Person(*x) in people.people() for x in itertools.product(*_VALUES)])
_EVERYBODY = (_PEOPLE / _PEOPLE.sum()).reshape(_SHAPE)


class Tables(NamedTuple):
  """What a policy would pick, and what there is to pick, on some days."""

  # log π(y|x, notes), nats.
  log_probs: Float[np.ndarray, 'days states Y']
  # Of each of `people.people()`.
  scores: Float[np.ndarray, 'days people Y']


class Life(NamedTuple):
  """One person, before and after her tastes have changed, and the days that she sees in each phase."""

  before: Person
  after: Person
  days: dict[int, Int[np.ndarray, 'rounds']]


def about_topics(query: str, topic: str) -> float:
  """1 for the same topic; any topic is a little like ''."""
  return 1.0 if query == topic else 0.5 * (query == '')


class Editor:
  """One agent that serves one person; without notes it serves the population."""

  def __init__(self, agent: Agent) -> None:
    """Nothing is known of the person."""
    self.agent = agent
    self.notes = Notes(about_topics, merge=overwrite)
    self._chances = _EVERYBODY

  def noted(self, *, sure: bool = False) -> dict[str, str]:
    """What it goes by; what is doubtful is still more likely than not, and is left out of what is sure."""
    found = self.notes.retrieve('')
    return {str(note.topic): note.content for note in found if not (sure and note.is_doubtful)}

  def act(self, log_probs: Float[np.ndarray, 'states Y'], person: Person) -> int:
    """The headline that the policy gives the most probability."""
    noted = person._asdict() if self.agent.remembers == 'truth' else self.noted()
    return int(np.argmax(log_probs[number_of(noted)]))

  def question(self, log_probs: Float[np.ndarray, 'states Y']) -> str | None:
    """The topic without a sure note that could change the headline most; None: none could, or it does not ask."""
    if not self.agent.asks:
      return None
    noted = self.noted(sure=True)
    missing = [topic for topic in TOPICS if topic not in noted]
    changes = {topic: self._chance_of_change(log_probs, noted, topic) for topic in missing}
    best = max(missing, key=changes.__getitem__, default=None)
    if best is None or (changes[best] < AMBIGUITY and not self.agent.is_curious):
      return None
    return best

  def hear_answer(self, topic: str, value: str, time: int) -> None:
    """Believes it."""
    column = list(TOPICS).index(topic)
    is_said = np.array([x == value for x in TOPICS[topic]])
    self._learn(_along(column, is_said.astype(float)), time)

  def hear_feedback(self, log_probs: Float[np.ndarray, 'states Y'], liked: int, time: int) -> None:
    """Learns from a headline that the person likes best: it would likely have been picked, had her tastes been noted."""
    if self.agent.is_corrected:
      likelihood = np.exp(log_probs[_COMPLETE, liked]).reshape(_SHAPE)
      self._learn((1 - SLIPS) * likelihood + SLIPS * np.sum(_EVERYBODY * likelihood), time)

  def _learn(self, likelihood: Float[np.ndarray, '...'], time: int) -> None:
    """Bayes' rule, after a round in which one taste may have changed, and, to agents that doubt, all of them at once."""
    before = self._chances
    if self.agent.remembers != 'everything':
      before = _drift(before)
    changed = HAZARD * self.agent.doubt
    before = (1 - changed) * before + changed * _EVERYBODY
    chances = before * np.maximum(likelihood, 1e-6)
    self._chances = chances / chances.sum()
    self._note(time)

  def _note(self, time: int) -> None:
    """Writes down what it is sure of, and forgets what is unlikely by now; an agent that doubts asks again about what is between."""
    for column, (topic, values) in enumerate(TOPICS.items()):
      chances = self._of_topic(column)
      best = int(np.argmax(chances))
      old = next(iter(self.notes.retrieve(topic)), None)
      if chances[best] >= CONFIDENCE:
        if old is None or old.is_doubtful or old.content != values[best]:
          self.notes.write(Note(topic, values[best], time))
      elif old is not None and chances[values.index(old.content)] < 0.5:
        self.notes.forget([old])
      elif old is not None and self.agent.doubt:
        self.notes.write(old._replace(time=time, is_doubtful=True))

  def _of_topic(self, column: int) -> Float[np.ndarray, 'values']:
    """How likely each value of one topic is."""
    return self._chances.sum(axis=tuple(i for i in range(len(_SHAPE)) if i != column))

  def _chance_of_change(self, log_probs, noted: people.Noted, topic: str) -> float:
    """How likely the headline is not the most frequent one over a topic's values."""
    chances = self._of_topic(list(TOPICS).index(topic))
    totals: dict[int, float] = {}
    for value, chance in zip(TOPICS[topic], chances, strict=True):
      pick = int(np.argmax(log_probs[number_of({**noted, topic: value})]))
      totals[pick] = totals.get(pick, 0) + chance
    return 1 - max(totals.values())


def number_of(noted: people.Noted) -> int:
  """The place in STATES of what is noted."""
  return STATES.index(tuple(noted.get(topic) for topic in TOPICS))


def draw_lives(
  who: Sequence[Person],
  change: str,
  num_days: int,
  *,
  num_lives: int = 20,
  num_rounds: tuple[int, int] = (20, 40),
  seed: int = 0,
) -> list[Life]:
  """Lives of each of some people.

  Args:
    who: before the change; after it they are another of these who differs as much, or, where none does, anybody.
    change: 'one': of one taste; 'all': of every one.
    num_days: that there are.
    num_lives: of each person.
    num_rounds: of a learning phase and of a test.
    seed: of changes and days.

  Raises:
    ValueError: change is neither, there are fewer days than rounds, or no life.
  """
  if change not in ('one', 'all'):
    raise ValueError(f"change must be 'one' or 'all', got {change!r}.")
  if sum(num_rounds) > num_days:
    raise ValueError(f'{sum(num_rounds)} rounds need as many days, got num_days = {num_days}.')
  if not who or num_lives < 1:
    raise ValueError(
      f'{len(who)} people of num_lives = {num_lives} have no life: at least one of each is needed.'
    )
  rng = np.random.default_rng(seed)
  wanted = 1 if change == 'one' else len(TOPICS)
  result = []
  for person in [person for person in who for _ in range(num_lives)]:
    others = _who_differ(who, person, wanted) or _who_differ(people.people(), person, wanted)
    after = others[rng.integers(len(others))]
    days: dict[int, Int[np.ndarray, 'rounds']] = {}
    for learning, test in zip(protocol.LEARNING, protocol.TESTS, strict=True):
      drawn = rng.permutation(num_days)
      days[learning] = drawn[: num_rounds[0]]
      days[test] = drawn[num_rounds[0] : sum(num_rounds)]
    result.append(Life(person, after, days))
  return result


def _who_differ(among: Sequence[Person], person: Person, number: int) -> list[Person]:
  """Those who differ from a person in that many tastes."""
  return [x for x in among if sum(a != b for a, b in zip(x, person, strict=True)) == number]


def serve(tables: Tables, agent: Agent, lives: Sequence[Life]) -> protocol.Outcome:
  """Takes an agent through the four phases of every life; a learning phase has one pass."""
  phases: dict[int, list[protocol.Phase]] = {phase: [] for phase in lives[0].days}
  num_notes = []
  everyone = people.people()
  for life in lives:
    editor, time = Editor(agent), 0
    for phase, days in life.days.items():
      person = life.before if phase <= protocol.TESTS[0] else life.after
      found = [np.zeros((1, len(days)), bool) for _ in range(3)]
      for column, day in enumerate(days):
        scores = tables.scores[day, everyone.index(person)]
        learns = phase in protocol.LEARNING
        said = _round(editor, tables.log_probs[day], person, scores, time if learns else None)
        for row, value in zip(found, said, strict=True):
          row[0, column] = value
        time += 1
      phases[phase].append(protocol.Phase(*found))
    num_notes.append(len(editor.notes))
  names = tuple(' '.join(life.before) for life in lives)
  return protocol.Outcome(names, phases, num_notes)


def _round(editor: Editor, log_probs, person: Person, scores, time: int | None):
  """(error, asked, corrected); time None: a test, without feedback."""
  asked = None
  if time is not None and (asked := editor.question(log_probs)) is not None:
    editor.hear_answer(asked, getattr(person, asked), time)
  action = editor.act(log_probs, person)
  likes = people.favourites(scores)
  error = not likes[action]
  corrected = error and time is not None and editor.agent.is_corrected
  if time is not None:
    # She says thanks, or names the first of the headlines that she likes best.
    editor.hear_feedback(log_probs, int(np.argmax(likes)) if error else action, time)
  return error, asked is not None, corrected


def _drift(chances: Float[np.ndarray, '...']) -> Float[np.ndarray, '...']:
  """After a round in which each taste has become any other with probability HAZARD."""
  for axis in range(chances.ndim):
    chances = (1 - HAZARD) * chances + HAZARD * chances.mean(axis=axis, keepdims=True)
  chances = chances * (_EVERYBODY > 0)
  return chances / chances.sum()


def _along(column: int, values: Float[np.ndarray, 'values']) -> Float[np.ndarray, '...']:
  """Values of one topic as a factor of a table of all."""
  return values.reshape([-1 if i == column else 1 for i in range(len(_SHAPE))])
