"""Rows of a task in columns, so that a million of them are no million Python objects: texts in Arrow, numbers in NumPy.

Texts of more than some dozen megabytes are kept in a temporary file, of which the system holds in memory what it can.
Prompts are kept once, however many rows they have.
"""

import array
import json
import mmap
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from jaxtyping import Bool, Float, Int

from nlhf_jax.runtime import atomic
from nlhf_jax.votes.readers import Row
from nlhf_jax.votes.table import UNKNOWN

_ROWS_PER_CHUNK = 2**14
# Bytes.
_IN_MEMORY = 2**26
# Of what is known of a prompt: its text, and its messages as JSON where it is a conversation.
_PROMPT = ('prompt', 'messages')
# Field of a row → feature of the task.
RESPONSES = {'response': 'targets', 'alternative': 'alternative'}
_NUMBERS = ('index', 'prompt', 'split', 'post', 'pair', 'voter')


class Columns(NamedTuple):
  """N rows: prompts, and what they have of response, alternative and preference."""

  # Number of each row's prompt, as batches give it.
  index: Int[np.ndarray, 'N']  # type: ignore[assignment]
  # Row of each row's prompt in `prompts`, which has the columns prompt and messages.
  prompt: Int[np.ndarray, 'N']
  prompts: pyarrow.Table
  # Row of each row's responses in `texts`, which has the columns response and alternative, if any.
  number: Int[np.ndarray, 'N']
  texts: pyarrow.Table
  preference: Float[np.ndarray, 'N'] | None = None
  # Whose vote each row is; −1: not known. None: of no row.
  voter: Int[np.ndarray, 'N'] | None = None
  # Shortens a prompt when it is read.
  fit: Callable[[str], str] = str

  def row(self, place: int) -> Row:
    """Row `place` as a dictionary {index, prompt, messages?, response?, alternative?, preference?, voter?}."""
    text = self.prompt_text(int(self.prompt[place]))
    return text | self.responses_of(place) | self.numbers_of(place)

  def numbers_of(self, place: int) -> Row:
    """What a row has of {index, preference, voter}."""
    row: Row = {'index': int(self.index[place])}
    if self.preference is not None:
      row['preference'] = float(self.preference[place])
    return row if self.voter is None else row | {'voter': int(self.voter[place])}

  def prompt_text(self, number: int) -> Row:
    """Row `number` of `prompts` as {prompt, messages?}."""
    text, messages = (self.prompts[name][number].as_py() for name in _PROMPT)
    row = {'prompt': self.fit(text)}
    return row if messages is None else row | {'messages': json.loads(messages)}

  def responses_of(self, place: int) -> Row:
    """What a row has of {response, alternative}."""
    number = int(self.number[place])
    return {name: self.texts[name][number].as_py() for name in self.texts.column_names}

  def num_bytes(self) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
    """Bytes of each row's prompt, and of the longer of its responses, 0 where it has none."""
    size = lambda table, name: pyarrow.compute.binary_length(table[name]).to_numpy()
    responses = [size(self.texts, name)[self.number] for name in self.texts.column_names]
    longer = np.max(responses, axis=0) if responses else np.zeros(len(self.number), int)
    return size(self.prompts, 'prompt')[self.prompt], longer

  def select(self, chosen: np.ndarray) -> 'Columns':
    """Some of the rows, by number or mask."""
    optional = ('preference', 'voter')
    names = ['index', 'prompt', 'number']
    names += [name for name in optional if getattr(self, name) is not None]
    return self._replace(**{name: getattr(self, name)[chosen] for name in names})

  def prompts_once(self) -> 'Columns':
    """The first row of each prompt, without its responses."""
    _, first = np.unique(self.index, return_index=True)
    none = self.texts.select([])
    return self.select(np.sort(first))._replace(texts=none, preference=None, voter=None)


class Gathered(NamedTuple):
  """Columns, and what their rows say besides."""

  columns: Columns
  # Code of each row's split in `splits`, and of its post.
  split: Int[np.ndarray, 'N']
  splits: tuple[str, ...]
  post: Int[np.ndarray, 'N']
  # Hash of each row's pair of responses.
  pair: Int[np.ndarray, 'N']
  weight: Float[np.ndarray, 'N']
  # Names of `columns.voter`'s numbers, where rows name voters.
  voters: tuple[str, ...] = ()
  # How many of them, the first, voted in training; `training_voters_first` counts them.
  num_training_voters: int = 0


def gather(rows: Iterable[Row]) -> Gathered:
  """Columns of rows {prompt, response?, alternative?, preference?, index?, id?, split?, weight?, messages?, voter?}, taken one at a
  time.

  All have the fields that the first has. Without `index` prompts are numbered as they appear, and so are voters that have names;
  they may have numbers. Equal texts are told by
  hashes of 64 bits: two of a million different ones fall together once in 10⁷ times.
  """
  numbers = {name: array.array('q') for name in _NUMBERS}
  floats = {name: array.array('d') for name in ('preference', 'weight')}
  prompts, texts = _Texts(_PROMPT), None
  places: dict[int, int] = {}
  splits: dict[str | None, int] = {}
  voters: dict[str, int] = {}
  has_voters = False
  for row in rows:
    if texts is None:
      texts = _Texts(tuple(name for name in RESPONSES if name in row))
    prompt, messages, split = row['prompt'], row.get('messages'), row.get('split')
    key = hash(prompt if messages is None else (prompt, str(messages)))
    place = places.setdefault(key, len(places))
    if place == len(prompts):
      prompts.append((prompt, None if messages is None else json.dumps(messages)))
    responses = tuple([row[name] for name in texts.names])
    texts.append(responses)
    numbers['index'].append(row.get('index', place))
    numbers['prompt'].append(place)
    numbers['split'].append(splits.setdefault(split, len(splits)))
    numbers['post'].append(hash(row.get('id', prompt)))
    numbers['pair'].append(hash((key, split, responses)))
    voter = row.get('voter')
    has_voters = has_voters or voter is not None
    numbers['voter'].append(_voter(voter, voters))
    floats['preference'].append(row.get('preference', np.nan))
    floats['weight'].append(row.get('weight', 1.0))
  texts = _Texts(()) if texts is None else texts
  ints = {name: np.frombuffer(values, np.int64) for name, values in numbers.items()}
  preference = np.array(floats['preference'], np.float32)
  columns = Columns(
    ints['index'].astype(np.int32),
    ints['prompt'],
    prompts.table(),
    np.arange(len(preference)),
    texts.table(),
    preference if 'alternative' in texts.names else None,
    ints['voter'].astype(np.int32) if has_voters else None,
  )
  _, post = np.unique(ints['post'], return_inverse=True)
  weight = np.array(floats['weight'])
  return Gathered(columns, ints['split'], tuple(splits), post, ints['pair'], weight, tuple(voters))


def _voter(voter: str | int | None, numbers: dict[str, int]) -> int:
  """A voter's number, which a new name is given."""
  if isinstance(voter, str):
    return numbers.setdefault(voter, len(numbers))
  return UNKNOWN if voter is None else voter


def training_voters_first(rows: Gathered) -> Gathered:
  """Voters numbered anew: those of training as they appear, then the others, so that a model of the former knows which they are.

  Rows that `by_split` leaves out make nobody a voter.
  """
  voter = rows.columns.voter
  if voter is None or not rows.voters:
    return rows
  training, kept = _is_training(rows), _kept(rows)
  own = voter[training & kept]
  order = np.concatenate([own, voter[~training]])
  numbers, first = np.unique(order[order >= 0], return_index=True)
  old = numbers[np.argsort(first)]
  new = np.full(len(rows.voters), UNKNOWN, np.int32)
  new[old] = np.arange(len(old))
  columns = rows.columns._replace(voter=np.where(voter >= 0, new[voter], UNKNOWN))
  names = tuple(rows.voters[n] for n in old.tolist())
  number = len(np.unique(own[own >= 0]))
  return rows._replace(columns=columns, voters=names, num_training_voters=number)


def merge_votes(rows: Gathered) -> Gathered:
  """One row for all votes on a pair, the first: its preference becomes their mean, by weight, which is nobody's vote."""
  _, first, inverse = np.unique(rows.pair, return_index=True, return_inverse=True)
  preference = rows.columns.preference.astype(np.float64)
  weight = np.bincount(inverse, weights=rows.weight)
  share = np.bincount(inverse, weights=rows.weight * preference)
  with np.errstate(invalid='ignore'):
    share = np.where(weight > 0, share / weight, 0.5).astype(np.float32)
  order = np.argsort(first)
  kept = select(rows, first[order])
  columns = kept.columns._replace(preference=share[order], voter=None)
  return kept._replace(columns=columns, weight=weight[order], voters=())


def select(rows: Gathered, chosen: np.ndarray) -> Gathered:
  """Some of the rows, by number or mask."""
  parts = {name: getattr(rows, name)[chosen] for name in ('split', 'post', 'pair', 'weight')}
  return rows._replace(columns=rows.columns.select(chosen), **parts)


def by_split(rows: Gathered) -> tuple[dict[str, Columns], int]:
  """The rows of each split, training first; those of training whose post is held out are left out, and counted."""
  kept = _kept(rows)
  result = {}
  for code, name in sorted(enumerate(rows.splits), key=lambda item: item[1] != 'train'):
    chosen = kept & (rows.split == code)
    if chosen.any():
      result[name] = rows.columns.select(chosen)
  return result, int(np.sum(~kept))


def _is_training(rows: Gathered) -> Bool[np.ndarray, 'N']:
  return np.isin(rows.split, [code for code, name in enumerate(rows.splits) if name == 'train'])


def _kept(rows: Gathered) -> Bool[np.ndarray, 'N']:
  """All rows but those of training whose post is held out."""
  training = _is_training(rows)
  held_out = np.zeros(rows.post.max(initial=-1) + 1, bool)
  held_out[rows.post[~training]] = True
  return ~(training & held_out[rows.post])


class _Texts:
  """Rows of texts, written to a table; to a file where there are many."""

  def __init__(self, names: tuple[str, ...]):
    self.names = names
    self._schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    self._waiting: list[tuple[str | None, ...]] = []
    self._chunks: list[pyarrow.RecordBatch] = []
    self._file: _File | None = None
    self._size = self._length = 0

  def __len__(self) -> int:
    return self._length

  def append(self, texts: tuple[str | None, ...]) -> None:
    self._waiting.append(texts)
    self._length += 1
    if len(self._waiting) == _ROWS_PER_CHUNK:
      self._close_chunk()

  def table(self) -> pyarrow.Table:
    self._close_chunk()
    if self._file is not None:
      return self._file.table()
    return pyarrow.Table.from_batches(self._chunks, self._schema)

  def _close_chunk(self) -> None:
    if not self._waiting or not self.names:
      return
    columns = [
      pyarrow.array(column, pyarrow.string()) for column in zip(*self._waiting, strict=True)
    ]
    chunk = pyarrow.record_batch(columns, schema=self._schema)
    self._waiting = []
    self._size += chunk.nbytes
    self._chunks.append(chunk)
    if self._file is None and self._size > _IN_MEMORY:
      self._file = _File(self._schema)
    if self._file is not None:
      self._file.write(self._chunks)
      self._chunks = []


class _File:
  """A temporary file of Arrow, without a name: nothing is left of it however the process ends."""

  def __init__(self, schema: pyarrow.Schema):
    self._file = tempfile.TemporaryFile()  # noqa: SIM115
    self._writer = pyarrow.ipc.new_file(self._file, schema)

  def write(self, chunks: Iterable[pyarrow.RecordBatch]) -> None:
    with atomic.naming(pathlib.Path(tempfile.gettempdir())):
      for chunk in chunks:
        self._writer.write_batch(chunk)
    # Arrow keeps what it has had otherwise.
    pyarrow.default_memory_pool().release_unused()

  def table(self) -> pyarrow.Table:
    with atomic.naming(pathlib.Path(tempfile.gettempdir())):
      self._writer.close()
      self._file.flush()
    mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
    return pyarrow.ipc.open_file(pyarrow.py_buffer(mapped)).read_all()
