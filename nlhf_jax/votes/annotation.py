"""Comparisons by people: which pairs are asked, in which order, and votes that are on disk before the next is asked.

A task is a pair of `votes.responses`. Every annotator gets every task, so that agreement can be measured, each
in an order of their own; a hash of seed, annotator and task says which response stands first. The file holds votes alone
(`votes.table`): what was undone is gone from it, what was skipped is not in it.

Plain Python, without a web framework. Neither threads nor processes are told apart: one at a time may call an `Annotations`
(`run_lock.file_held`).
"""

import functools
import json
import pathlib
import time
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from nlhf_jax.votes import readers, schemas, table, vote_file
from nlhf_jax.votes.responses import Pair
from nlhf_jax.votes.table import Row

JUDGE = 'human'
_MAX_NAME = 60


class Question(NamedTuple):
  """A task as an annotator is asked it."""

  task: Pair
  # 'ab': a's response stands first.
  order: str

  def texts(self) -> tuple[str, str]:
    """The responses, in the order that they are shown in."""
    pair = self.task.response_a, self.task.response_b
    return pair if self.order == 'ab' else pair[::-1]


class Progress(NamedTuple):
  """How far an annotator is."""

  voted: int
  skipped: int
  total: int


def annotator_name(text: str) -> str:
  """The name as votes record it: one spelling, without outer and double spaces.

  Raises:
    ValueError: it is empty, too long, or has characters that do not print.
  """
  name = ' '.join(unicodedata.normalize('NFC', text).split())
  if not name or len(name) > _MAX_NAME or not name.isprintable():
    raise ValueError(f'A name has 1 to {_MAX_NAME} characters that print, got {text[:80]!r}.')
  return name


class Annotations:
  """The tasks, and the file of votes on them.

  A vote is appended, and on disk when `vote` returns; `undo` takes it out of the file again (`vote_file`).
  """

  def __init__(self, path: pathlib.Path, tasks: Iterable[Pair], seed: int = 0):
    """Opens the file, made if need be, and takes up where its votes end.

    Args:
      path: JSONL of votes; those on other tasks stay as they are.
      tasks: what is asked.
      seed: of the orders.

    Raises:
      ValueError: the file is no JSONL of votes.
    """
    self._seed = seed
    self._hashes = {task: table.stable_hash(json.dumps(task)) for task in tasks}
    self._order: dict[str, list[Pair]] = {}
    # Of an annotator: tasks voted on or skipped, the last at the end; the verdict as it was shown, or 'skip'.
    self._done: dict[str, dict[Pair, str]] = {}
    own = schemas.SCHEMAS['votes']
    self._file = vote_file.VoteFile(path, functools.partial(schemas.votes_of, own))
    self._resume()

  def close(self) -> None:
    """Lets go of the file."""
    self._file.close()

  def tasks(self) -> list[Pair]:
    """All of them, in the order given."""
    return list(self._hashes)

  def num_votes(self) -> int:
    """Votes on these tasks, by all annotators."""
    return sum(self.progress(name).voted for name in self._done)

  def question(self, voter: str) -> Question | None:
    """What the annotator is to compare next; None: nothing is left."""
    done = self._done.get(voter, {})
    task = next((task for task in self._tasks(voter) if task not in done), None)
    return None if task is None else Question(task, self._shown(voter, task))

  def vote(self, voter: str, task: Pair, verdict: str) -> bool:
    """Records a vote; it is on disk when this returns.

    Args:
      voter: as `annotator_name` gives it.
      task: one of these tasks.
      verdict: 'first' or 'second', as shown, 'tie' or 'both_bad'.

    Returns:
      False where the annotator had voted on it before: the first vote stands.

    Raises:
      ValueError: there is no such verdict or task.
      OSError: the vote could not be written; the file is as before.
    """
    if task not in self._hashes:
      raise ValueError(f'No task on {task.prompt[:60]!r} here.')
    if self._done.get(voter, {}).get(task, 'skip') != 'skip':
      return False
    row = self._row(voter, task, verdict)
    self._file.append(json.dumps(row, ensure_ascii=False))
    self._note(voter, task, verdict)
    return True

  def skip(self, voter: str, task: Pair) -> None:
    """Passes a task over until `ask_skipped` or the next start; nothing is written."""
    if task in self._hashes and task not in self._done.get(voter, {}):
      self._note(voter, task, 'skip')

  def ask_skipped(self, voter: str) -> None:
    """Puts what was skipped back among the tasks to come."""
    done = self._done.get(voter, {})
    self._done[voter] = {task: verdict for task, verdict in done.items() if verdict != 'skip'}

  def last(self, voter: str) -> tuple[Question, str] | None:
    """What the annotator did last, and 'first', 'second', 'tie', 'both_bad' or 'skip'."""
    done = self._done.get(voter)
    if not done:
      return None
    task = next(reversed(done))
    return Question(task, self._shown(voter, task)), done[task]

  def undo(self, voter: str) -> None:
    """Takes the annotator's last vote, or skip, back.

    Raises:
      OSError: the file could not be written; it is as before.
    """
    done = self._done.get(voter)
    if not done:
      return
    task = next(reversed(done))
    if done[task] != 'skip':
      self._file.remove_last(functools.partial(_is_vote, voter=voter, task=task))
    del done[task]

  def progress(self, voter: str) -> Progress:
    """Counts of the annotator's tasks."""
    verdicts = list(self._done.get(voter, {}).values())
    skipped = verdicts.count('skip')
    return Progress(len(verdicts) - skipped, skipped, len(self._hashes))

  def _tasks(self, voter: str) -> list[Pair]:
    """All tasks, in the annotator's own order."""
    if voter not in self._order:
      key = lambda task: table.stable_hash(f'{self._seed} {self._hashes[task]} place {voter}')
      self._order[voter] = sorted(self._hashes, key=key)
    return self._order[voter]

  def _shown(self, voter: str, task: Pair) -> str:
    coin = table.stable_hash(f'{self._seed} {self._hashes[task]} order {voter}') % 2
    return table.ORDERS[coin]

  def _row(self, voter: str, task: Pair, verdict: str) -> Row:
    order = self._shown(voter, task)
    verdicts = dict(zip(('first', 'second'), order, strict=True))
    verdicts |= {name: name for name in ('tie', 'both_bad')}
    if verdict not in verdicts:
      raise ValueError(f'No verdict {verdict!r}: one of {", ".join(verdicts)}.')
    row = task._asdict() | {'verdict': verdicts[verdict], 'voter': voter, 'judge': JUDGE}
    row |= {'order': order, 'time': time.time(), 'seed': self._seed}
    return {name: value for name, value in table.checked(row).items() if value is not None}

  def _note(self, voter: str, task: Pair, verdict: str) -> None:
    done = self._done.setdefault(voter, {})
    # What was skipped before goes to the end.
    done.pop(task, None)
    done[task] = verdict

  def _resume(self) -> None:
    for row in readers.votes(self._file.path, 'votes'):
      task = _task(row)
      if task in self._hashes:
        self._note(row['voter'], task, _as_shown(row))


def _as_shown(row: Row) -> str:
  first, second = row['order'] or 'ab'
  return {first: 'first', second: 'second'}.get(row['verdict'], row['verdict'])


def _task(row: Row) -> Pair | None:
  """The task of a person's vote, whichever label the row has first; None: of another kind."""
  names = ('prompt', 'a', 'b', 'response_a', 'response_b', 'voter', 'verdict')
  if row.get('judge') != JUDGE or not all(isinstance(row.get(name), str) for name in names):
    return None
  task = Pair(*(row[name] for name in Pair._fields))
  if task.a < task.b:
    return task
  return Pair(task.prompt, task.b, task.a, task.response_b, task.response_a)


def _is_vote(line: bytes, voter: str, task: Pair) -> bool:
  if not line.strip():
    return False
  row = json.loads(line)
  return _task(row) == task and row['voter'] == voter
