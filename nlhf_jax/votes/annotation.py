"""Comparisons by people: which pairs are asked, in which order, and votes that are on disk before the next is asked.

A task is two responses to one prompt by two labels. Every annotator gets every task, so that agreement can be measured, each
in an order of their own; a hash of seed, annotator and task says which response stands first. The file holds votes alone
(`votes.table`): what was undone is gone from it, what was skipped is not in it.

Plain Python, without a web framework. Not safe for threads: one at a time may call an `Annotations`.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.votes import files, readers, schemas, table
from nlhf_jax.votes.table import FieldError, Row

try:
  import fcntl
except ImportError:  # Windows: two servers on one file are not told apart.
  fcntl = None  # type: ignore[assignment]

JUDGE = 'human'
_MAX_NAME = 60
# Prompt → responses, in the order of the file.
Responses = Mapping[str, Sequence[str]]


class Task(NamedTuple):
  """Two responses to one prompt; the labels are in alphabetical order."""

  prompt: str
  a: str
  b: str
  response_a: str
  response_b: str


class Question(NamedTuple):
  """A task as an annotator is asked it."""

  task: Task
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


def read_responses(path: pathlib.Path) -> dict[str, list[str]]:
  """The responses of one label, by prompt.

  Args:
    path: rows {prompt, response}, in any format that `votes.files` reads; a prompt may have several.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed; names file, line and field.
  """
  _require(path, 'name a file of {"prompt", "response"}, one a line')
  found: dict[str, list[str]] = {}
  for prompt, response in files.read(path, _prompt_and_response):
    found.setdefault(prompt, []).append(response)
  return found


def read_samples(path: pathlib.Path) -> dict[str, dict[str, list[str]]]:
  """The responses of every label of a samples.jsonl, as a tournament writes it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed; names file, line and field.
  """
  _require(path, '`nlhf demo` and `nlhf win-rates` write it')
  found: dict[str, dict[str, list[str]]] = {}
  for prompt, responses in files.read(path, _prompt_and_samples):
    for label, response in responses.items():
      found.setdefault(label, {}).setdefault(prompt, []).append(response)
  return found


def _require(path: pathlib.Path, remedy: str) -> None:
  if not path.exists():
    raise FileNotFoundError(f'No file {path}: {remedy}.')


def _prompt_and_response(row: Row) -> tuple[str, str]:
  return schemas.text(row, 'prompt'), _response(row.get('response'), 'response')


def _prompt_and_samples(row: Row) -> tuple[str, dict[str, str]]:
  responses = row.get('responses')
  if not isinstance(responses, dict) or not all(isinstance(x, dict) for x in responses.values()):
    raise FieldError('field \'responses\' must be {label: {"text": …}}')
  texts = {
    table.encodable(label, 'responses'): _response(x.get('text'), f'responses.{label}.text')
    for label, x in responses.items()
  }
  return schemas.text(row, 'prompt'), texts


def _response(value: object, field: str) -> str:
  """A response may be empty: a policy may have nothing to say."""
  if not isinstance(value, str):
    raise FieldError(f'field {field!r} must be a string, got {type(value).__name__}')
  return table.encodable(value, field)


def make_tasks(responses: Mapping[str, Responses]) -> list[Task]:
  """Every two labels on every prompt that both have answered.

  Where a label has several responses, the n-th is compared with the other label's n-th; the shorter list starts again. Equal responses
  make no task.

  Args:
    responses: by label, then by prompt.

  Raises:
    ValueError: there is nothing to compare.
  """
  if len(responses) < 2:
    raise ValueError(f'A comparison needs two labels, got {len(responses)}: {list(responses)}.')
  # Twice the same is one task.
  found = list(dict.fromkeys(_all_pairs(responses)))
  if not found:
    raise ValueError(
      f'No prompt has different responses of two of the labels {", ".join(responses)}: nothing to compare.'
    )
  return found


def _all_pairs(responses: Mapping[str, Responses]) -> Iterator[Task]:
  labels = sorted(responses)
  for prompt in dict.fromkeys(prompt for label in labels for prompt in responses[label]):
    answered = [label for label in labels if responses[label].get(prompt)]
    for number, a in enumerate(answered):
      for b in answered[number + 1 :]:
        yield from _pairs(prompt, a, b, responses[a][prompt], responses[b][prompt])


def _pairs(prompt: str, a: str, b: str, of_a: Sequence[str], of_b: Sequence[str]) -> Iterator[Task]:
  for n in range(max(len(of_a), len(of_b))):
    task = Task(prompt, a, b, of_a[n % len(of_a)], of_b[n % len(of_b)])
    if task.response_a != task.response_b:
      yield task


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

  A vote is appended, and on disk when `vote` returns. `undo` writes the file anew without the vote and puts it in the old one's
  place in one step, so that readers find either. The file is locked against a second server.
  """

  def __init__(self, path: pathlib.Path, tasks: Iterable[Task], seed: int = 0):
    """Opens the file, made if need be, and takes up where its votes end.

    Args:
      path: JSONL of votes; those on other tasks stay as they are.
      tasks: what is asked.
      seed: of the orders.

    Raises:
      ValueError: the file is no JSONL of votes, or another server writes it.
    """
    if path.suffix != '.jsonl':
      raise ValueError(f'Votes are appended to JSONL, got {path}: name a file that ends in .jsonl.')
    # A link stays one.
    self._path = path.resolve()
    self._seed = seed
    self._hashes = {task: table.stable_hash(json.dumps(task)) for task in tasks}
    self._order: dict[str, list[Task]] = {}
    # Of an annotator: tasks voted on or skipped, the last at the end; the verdict as it was shown, or 'skip'.
    self._done: dict[str, dict[Task, str]] = {}
    self._path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not self._path.exists()
    self._file = _opened(self._path)
    _mend(self._path, self._file)
    self._resume()
    if is_new:
      _sync_directory(self._path.parent)

  def close(self) -> None:
    """Lets go of the file."""
    self._file.close()

  def tasks(self) -> list[Task]:
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

  def vote(self, voter: str, task: Task, verdict: str) -> bool:
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
    self._append(json.dumps(row, ensure_ascii=False) + '\n')
    self._note(voter, task, verdict)
    return True

  def skip(self, voter: str, task: Task) -> None:
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
      self._remove(voter, task)
    del done[task]

  def progress(self, voter: str) -> Progress:
    """Counts of the annotator's tasks."""
    verdicts = list(self._done.get(voter, {}).values())
    skipped = verdicts.count('skip')
    return Progress(len(verdicts) - skipped, skipped, len(self._hashes))

  def _tasks(self, voter: str) -> list[Task]:
    """All tasks, in the annotator's own order."""
    if voter not in self._order:
      key = lambda task: table.stable_hash(f'{self._seed} {self._hashes[task]} place {voter}')
      self._order[voter] = sorted(self._hashes, key=key)
    return self._order[voter]

  def _shown(self, voter: str, task: Task) -> str:
    coin = table.stable_hash(f'{self._seed} {self._hashes[task]} order {voter}') % 2
    return table.ORDERS[coin]

  def _row(self, voter: str, task: Task, verdict: str) -> Row:
    order = self._shown(voter, task)
    verdicts = dict(zip(('first', 'second'), order, strict=True))
    verdicts |= {name: name for name in ('tie', 'both_bad')}
    if verdict not in verdicts:
      raise ValueError(f'No verdict {verdict!r}: one of {", ".join(verdicts)}.')
    row = task._asdict() | {'verdict': verdicts[verdict], 'voter': voter, 'judge': JUDGE}
    row |= {'order': order, 'time': time.time(), 'seed': self._seed}
    return {name: value for name, value in table.checked(row).items() if value is not None}

  def _note(self, voter: str, task: Task, verdict: str) -> None:
    done = self._done.setdefault(voter, {})
    # What was skipped before goes to the end.
    done.pop(task, None)
    done[task] = verdict

  def _resume(self) -> None:
    for row in readers.votes(self._path, 'votes'):
      task = _task(row)
      if task in self._hashes:
        self._note(row['voter'], task, _as_shown(row))

  def _append(self, line: str) -> None:
    self._check_place()
    before = os.fstat(self._file.fileno()).st_size
    try:
      _write(self._file, line.encode())
    except OSError:
      # No half of a line stays before the next vote.
      self._file.truncate(before)
      raise

  def _remove(self, voter: str, task: Task) -> None:
    """Writes the file without the last vote of the annotator on the task; all other lines stay byte for byte."""
    self._check_place()
    lines = self._path.read_bytes().splitlines(keepends=True)
    for number in reversed(range(len(lines))):
      if _is_vote(lines[number], voter, task):
        del lines[number]
        break
    beside = self._path.with_name(f'{self._path.name}.tmp')
    beside.unlink(missing_ok=True)
    new = _opened(beside)
    try:
      shutil.copymode(self._path, beside)
      _write(new, b''.join(lines))
      os.replace(beside, self._path)
    except OSError:
      new.close()
      beside.unlink(missing_ok=True)
      raise
    self._file.close()
    self._file = new
    _sync_directory(self._path.parent)

  def _check_place(self) -> None:
    """Votes must not go to a file that an editor has since replaced."""
    is_there = self._path.exists()
    if not is_there or not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
      raise OSError(f'{self._path} was moved or replaced since the start: start again.')


def _as_shown(row: Row) -> str:
  first, second = row['order'] or 'ab'
  return {first: 'first', second: 'second'}.get(row['verdict'], row['verdict'])


def _task(row: Row) -> Task | None:
  """The task of a person's vote, whichever label the row has first; None: of another kind."""
  names = ('prompt', 'a', 'b', 'response_a', 'response_b', 'voter', 'verdict')
  if row.get('judge') != JUDGE or not all(isinstance(row.get(name), str) for name in names):
    return None
  task = Task(*(row[name] for name in Task._fields))
  if task.a < task.b:
    return task
  return Task(task.prompt, task.b, task.a, task.response_b, task.response_a)


def _is_vote(line: bytes, voter: str, task: Task) -> bool:
  if not line.strip():
    return False
  row = json.loads(line)
  return _task(row) == task and row['voter'] == voter


def _opened(path: pathlib.Path) -> io.FileIO:
  """The file for appending, unbuffered, and locked."""
  file = path.open('ab', buffering=0)
  if fcntl is None:
    return file
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    file.close()
    raise ValueError(f'Another server writes {path}: end it, or name another --output.') from None
  return file


def _write(file: io.FileIO, content: bytes) -> None:
  """All of it, and on disk when this returns."""
  rest = memoryview(content)
  while rest:
    rest = rest[file.write(rest) :]
  os.fsync(file.fileno())


def _mend(path: pathlib.Path, file: io.FileIO) -> None:
  """Ends the last line. Where a crash left half of one, it goes: its annotator was not told that it counts."""
  content = path.read_bytes()
  last = content[content.rfind(b'\n') + 1 :]
  if not last:
    return
  try:
    json.loads(last)
    file.write(b'\n')
  except ValueError:
    if last.startswith(b'{'):
      file.truncate(len(content) - len(last))


def _sync_directory(path: pathlib.Path) -> None:
  """Names of new files are on disk too; some systems cannot be asked to."""
  with contextlib.suppress(OSError):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
