"""What an agent has written down about one person: notes by topic, found again, merged or overwritten.

A topic is anything that can be compared: a slot's number, a product and a feature's value, or a text. How alike two topics are is a
function that the user of the notes brings, equality where none is brought; an embedding's cosine makes the same memory one of texts.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple, Protocol


class Note(NamedTuple):
  """One thing that is known of a person."""

  topic: Hashable
  # What is known: a tier, a letter, a sentence.
  content: Any
  # Of the round in which it was written; later ones are newer.
  time: int = 0
  # It may not hold any more: kept to be read, and no evidence.
  is_doubtful: bool = False


# How alike two topics are, in [0, 1]; 1: the same.
Similarity = Callable[[Any, Any], float]
# (older note, newer note about the same) -> the note that stays.
MergeFn = Callable[[Note, Note], Note]


class Memory(Protocol):
  """What agents need of a memory of one person."""

  def retrieve(self, query: Any, number: int | None = None) -> list[Note]:
    """The notes that are about a query, best first; none of an empty memory."""

  def write(self, note: Note) -> Note | None:
    """Keeps a note; returns the one that it took the place of, if it did."""

  def doubt(self, before: int) -> int:
    """Makes doubtful what was written before a round; returns how many notes that are."""


def equal(one: Any, other: Any) -> float:
  """1 for the same topic, else 0."""
  return float(one == other)


def overwrite(older: Note, newer: Note) -> Note:
  """The newer of two notes about the same."""
  del older
  return newer


class Notes:
  """A `Memory` in a list, the newest last."""

  def __init__(
    self,
    similarity: Similarity = equal,
    *,
    threshold: int | float = 1.0,
    merge: MergeFn | None = overwrite,
  ) -> None:
    """An empty memory.

    Args:
      similarity: of a query and a topic, and of two topics.
      threshold: a new note is about the same as an old one if their topics are at least this alike, in (0, 1].
      merge: what becomes of the two; None: both are kept, however alike (a full history).

    Raises:
      ValueError: the threshold is outside (0, 1].
    """
    if not 0 < threshold <= 1:
      raise ValueError(
        f'threshold must be in (0, 1], got {threshold}: at 0 every note would replace another.'
      )
    self._similarity, self._threshold, self._merge = similarity, threshold, merge
    self._notes: list[Note] = []

  def __len__(self) -> int:
    """The number of notes, doubtful ones too."""
    return len(self._notes)

  def retrieve(self, query: Any, number: int | None = None) -> list[Note]:
    """The notes whose topic is at all like the query, the most alike first, of equals the newest.

    Args:
      query: compared with topics.
      number: how many at most; None: all.
    """
    scored = [(self._similarity(query, note.topic), note) for note in reversed(self._notes)]
    found = [note for score, note in sorted(scored, key=lambda x: -x[0]) if score > 0]
    return found if number is None else found[:number]

  def write(self, note: Note) -> Note | None:
    """Adds a note, or merges it with the most alike of those about the same; what is merged counts as new."""
    place = self._about_the_same(note)
    if place is None or self._merge is None:
      self._notes.append(note)
      return None
    older = self._notes.pop(place)
    self._notes.append(self._merge(older, note))
    return older

  def doubt(self, before: int) -> int:
    """Makes doubtful what was written before a round; returns how many notes have become so."""
    is_now = [note.time < before and not note.is_doubtful for note in self._notes]
    self._notes = [
      note._replace(is_doubtful=True) if now else note
      for note, now in zip(self._notes, is_now, strict=True)
    ]
    return sum(is_now)

  def forget(self, notes: Iterable[Note]) -> None:
    """Takes notes out."""
    gone = list(notes)
    self._notes = [note for note in self._notes if note not in gone]

  def _about_the_same(self, note: Note) -> int | None:
    scores = [self._similarity(note.topic, x.topic) for x in self._notes]
    if not scores or max(scores) < self._threshold:
      return None
    return max(range(len(scores)), key=lambda i: (scores[i], i))
