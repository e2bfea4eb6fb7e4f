"""Notes: found by likeness, overwritten, merged, doubted."""

import pytest

from nlhf_jax.personalisation import notes
from nlhf_jax.personalisation.notes import Note, Notes


def words(one: str, other: str) -> float:
  """Shared words of all words."""
  a, b = set(one.split()), set(other.split())
  return len(a & b) / len(a | b)


def test_newer_note_on_the_same_takes_the_place_of_the_older():
  memory = Notes()
  assert memory.write(Note('tea', 'green', 0)) is None
  memory.write(Note('cup', 'large', 1))
  assert memory.write(Note('tea', 'black', 2)).content == 'green'
  assert [x.content for x in memory.retrieve('tea')] == ['black']
  assert len(memory) == 2


def test_empty_memory_retrieves_nothing():
  assert Notes().retrieve('tea') == []
  assert Notes(words).retrieve('green tea', 3) == []


def test_texts_are_found_by_likeness_and_merged_above_the_threshold():
  both = lambda older, newer: newer._replace(content=f'{older.content}; {newer.content}')
  memory = Notes(words, threshold=0.5, merge=both)
  memory.write(Note('likes green tea', 'a', 0))
  memory.write(Note('hates loud rooms', 'b', 1))
  # Two of four words.
  memory.write(Note('likes black tea', 'c', 2))
  assert [x.content for x in memory.retrieve('tea in rooms')] == ['a; c', 'b']
  assert [x.content for x in memory.retrieve('tea in rooms', 1)] == ['a; c']
  assert memory.retrieve('music') == []
  # Below the threshold it is a note of its own.
  memory.write(Note('likes quiet rooms', 'd', 3))
  assert len(memory) == 3


def test_full_history_keeps_both():
  memory = Notes(merge=None)
  memory.write(Note('tea', 'green', 0))
  assert memory.write(Note('tea', 'black', 1)) is None
  assert [x.content for x in memory.retrieve('tea')] == ['black', 'green']


def test_doubt_is_of_what_was_written_before():
  memory = Notes()
  for time, topic in enumerate('abc'):
    memory.write(Note(topic, time, time))
  assert memory.doubt(before=2) == 2
  assert memory.doubt(before=2) == 0
  assert [x.is_doubtful for x in memory.retrieve('a') + memory.retrieve('c')] == [True, False]
  # What is heard again is sure again.
  memory.write(Note('a', 5, 5))
  assert not memory.retrieve('a')[0].is_doubtful
  memory.forget(memory.retrieve('b'))
  assert len(memory) == 2


def test_threshold_of_zero_is_refused():
  with pytest.raises(ValueError, match=r'threshold must be in \(0, 1\], got 0'):
    Notes(notes.equal, threshold=0)
