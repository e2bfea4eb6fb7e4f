"""seqio tasks: rows in, tokens out. One general constructor, and one function for each file format.

A task keeps its rows in columns (`data.columns`), which the pipeline tokenises when it needs them.

Features: `inputs` prompt, `targets` response with EOS, `alternative` likewise, `preference` share of votes for the
response, `index` number of the prompt in its task, `voter` number of who voted (−1: not known). A task has those that its rows
give it.
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from nlhf_jax.data import columns, vocabularies
from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.types import NO_VOTERS, VoterNames
from nlhf_jax.votes import readers, repeats

Rows = Callable[[], Iterable[readers.Row]]

TLDR_MAX_TOKENS = 512
DEFAULT_FRACTIONS = {'train': 0.9, 'validation': 0.05, 'test': 0.05}

_TEXTS = {'prompt': 'inputs'} | columns.RESPONSES
_OF_VOTES = {'preference': tf.float32, 'voter': tf.int32}


class ColumnSource(seqio.FunctionDataSource):
  """A seqio source whose rows can be read in any order, besides."""

  def __init__(
    self,
    columns_by_split: Mapping[str, Callable[[], columns.Columns]],
    fields,
    voters: VoterNames = NO_VOTERS,
  ):
    """Reads nothing yet.

    Args:
      columns_by_split: split → what gives its rows, when they are first asked for.
      fields: what rows have, and of which type.
      voters: names of the voters, by number.
    """
    self.voters = voters
    self._read = {split: functools.cache(read) for split, read in columns_by_split.items()}
    signature = {field: tf.TensorSpec((), dtype) for field, dtype in fields.items()}

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
      del shuffle_files, seed  # The pipeline shuffles.
      found = self.columns(split)
      rows = lambda: (
        {key: row[key] for key in signature} for row in map(found.row, range(len(found.index)))
      )
      return tf.data.Dataset.from_generator(rows, output_signature=signature)

    super().__init__(dataset, splits=tuple(columns_by_split))

  def columns(self, split: str) -> columns.Columns:
    """The rows of a split."""
    return self._read[split]()


def from_rows(
  name: str,
  rows_by_split: Mapping[str, Rows],
  vocabulary: Vocabulary,
  voters: VoterNames = NO_VOTERS,
) -> seqio.Task:
  """A task of rows that Python yields.

  Args:
    name: of the task.
    rows_by_split: split → a function that yields rows {index, prompt, response?, alternative?, preference?, voter?}, voter a number.
    vocabulary: of prompt and responses alike; where it has `for_prompts`, that is the prompts'.
    voters: names of the voters, by number.

  Raises:
    ValueError: the first split has no rows, or the vocabulary has other ids for padding and EOS than 0 and 1.
  """
  example = next(iter(next(iter(rows_by_split.values()))()), None)
  if example is None:
    raise ValueError(f'Task {name} has no rows in its first split.')
  read = lambda rows: columns.gather(rows()).columns
  by_split = {split: functools.partial(read, rows) for split, rows in rows_by_split.items()}
  return _from_columns(name, by_split, tuple(example), vocabulary, voters)


def _from_columns(
  name: str,
  columns_by_split: Mapping[str, Callable[[], columns.Columns]],
  fields: Sequence[str],
  vocabulary: Vocabulary,
  voters: VoterNames = NO_VOTERS,
) -> seqio.Task:
  """A task whose rows have these fields."""
  vocabularies.check(vocabulary)
  texts = {field: feature for field, feature in _TEXTS.items() if field in fields}
  numbers = {'index': tf.int32}
  numbers |= {field: dtype for field, dtype in _OF_VOTES.items() if field in fields}
  key_map = {feature: field for field, feature in texts.items()} | {n: n for n in numbers}
  return seqio.Task(
    name,
    source=ColumnSource(columns_by_split, dict.fromkeys(texts, tf.string) | numbers, voters),
    output_features=_features(texts.values(), numbers, vocabulary),
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map=key_map),
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
      seqio.preprocessors.append_eos,
    ],
  )


def _features(
  texts: Iterable[str], numbers: Mapping[str, tf.DType], vocabulary: Vocabulary
) -> dict[str, seqio.Feature]:
  """Responses end with EOS, prompts do not."""
  features = {feature: seqio.Feature(vocabulary, add_eos=True) for feature in texts}
  features['inputs'] = seqio.Feature(vocabularies.for_prompts(vocabulary), add_eos=False)
  none = seqio.PassThroughVocabulary(size=0)
  return features | {
    name: seqio.Feature(none, add_eos=False, dtype=dtype, rank=0) for name, dtype in numbers.items()
  }


def tldr_demonstrations(
  data_dir: str, vocabulary: Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """`tldr_3_filtered`: train.jsonl, valid.jsonl and test.jsonl of a directory."""
  read = functools.partial(
    readers.demonstrations, parse=readers.tldr, skip_malformed=skip_malformed
  )
  return _from_files('tldr', _of_splits(_files(data_dir, '*.jsonl'), read), vocabulary)


def comparisons(
  path: str,
  vocabulary: Vocabulary,
  *,
  schema: str | None = None,
  skip_malformed: bool = False,
  soft_labels: bool = True,
) -> seqio.Task:
  """Votes of any public format (`votes.readers`).

  Args:
    path: a file, split as its rows say or by prompt; or a directory with a file for each split.
    vocabulary: of prompts and responses.
    schema: the format's name; None: told from the first row.
    skip_malformed: leave malformed rows out instead of stopping.
    soft_labels: merge the votes on a pair into one row, with their share as its label; False: each is a row, and keeps its voter.
  """
  read = functools.partial(readers.comparisons, schema=schema, skip_malformed=skip_malformed)
  is_directory = _is_directory_of_splits(path)
  rows = _of_splits(_files(path, '*.*'), read) if is_directory else read(path)
  return _from_files('comparisons', rows, vocabulary, soft_labels=soft_labels)


def collected(runs: str, run: str, vocabulary: Vocabulary) -> seqio.Task:
  """The votes that `nlhf collect` wrote.

  Args:
    runs: the directory of the runs.
    run: the name of the one that collected.
    vocabulary: of prompts and responses.

  Raises:
    FileNotFoundError: nothing was collected there.
  """
  path = pathlib.Path(runs, run)
  if not path.is_dir():
    raise FileNotFoundError(f'No votes in {path}: run that stage first, with nlhf collect.')
  read = functools.partial(readers.comparisons, schema='votes')
  rows = _of_splits(_files(str(path), '*.jsonl'), read)
  # A vote is a row, so that every prompt keeps as many as were collected.
  return _from_files('comparisons', rows, vocabulary)


def openai_comparisons(
  data_dir: str,
  vocabulary: Vocabulary,
  *,
  skip_malformed: bool = False,
  soft_labels: bool = True,
) -> seqio.Task:
  """OpenAI's `comparisons`: every *.json and *.jsonl of a directory, split as the rows say."""
  read = functools.partial(readers.comparisons, schema='openai', skip_malformed=skip_malformed)
  found = _files(data_dir, '*.json*')
  repeats.check_files(found)
  rows = repeats.warned((file, read(file)) for file in found)
  return _from_files('comparisons', rows, vocabulary, soft_labels=soft_labels)


def jsonl_demonstrations(
  path: str, vocabulary: Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """Any JSONL of {prompt, response}; a file is split by prompt, a directory has a file for each split."""
  read = functools.partial(
    readers.demonstrations, parse=readers.prompt_response, skip_malformed=skip_malformed
  )
  is_directory = pathlib.Path(path).is_dir()
  rows = _of_splits(_files(path, '*.jsonl'), read) if is_directory else read(path)
  return _from_files('demonstrations', rows, vocabulary)


def jsonl_comparisons(
  path: str, vocabulary: Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """Any JSONL of {prompt, chosen, rejected}; a file is split by prompt, a directory has a file for each split."""
  return comparisons(path, vocabulary, schema='chosen_rejected', skip_malformed=skip_malformed)


def prompts_of(task: seqio.Task) -> seqio.Task:
  """The prompts of a task of this module, each once.

  Raises:
    ValueError: it is another's, whose prompts cannot be told apart.
  """
  if not isinstance(task.source, ColumnSource):
    raise ValueError(
      f'Task {task.name} is none of data.tasks: make one of its rows with tasks.from_rows.'
    )
  once = lambda split: task.source.columns(split).prompts_once()
  by_split = {split: functools.partial(once, split) for split in task.splits}
  vocabulary = task.output_features['inputs'].vocabulary
  return _from_columns(f'{task.name}_prompts', by_split, ('index', 'prompt'), vocabulary)


def registered(task: seqio.Task) -> seqio.Task:
  """The task, now in seqio's registry too, where T5X's evaluation looks tasks up by name."""
  if task.name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add_provider(task.name, task)
  return seqio.TaskRegistry.get(task.name)


def _is_directory_of_splits(path: str) -> bool:
  """Not one of `datasets.save_to_disk`, whose files are shards."""
  return pathlib.Path(path).is_dir() and not list(pathlib.Path(path).glob('*.arrow'))


def _of_splits(
  files: Iterable[pathlib.Path], read: Callable[[pathlib.Path], Iterable[readers.Row]]
) -> Iterator[readers.Row]:
  """The rows of files that have the names of splits, where rows do not name theirs.

  Raises:
    ValueError: two files of a split are the same.
  """
  of_split: dict[str, list[pathlib.Path]] = {}
  for file in files:
    of_split.setdefault(file.name.split('.')[0], []).append(file)
  for split, found in of_split.items():
    repeats.check_files(found)
    for row in repeats.warned((file, read(file)) for file in found):
      yield row | {'split': row.get('split') or split}


def _from_files(
  name: str,
  rows: Iterable[readers.Row],
  vocabulary: Vocabulary,
  *,
  soft_labels: bool = False,
) -> seqio.Task:
  """A task of rows that are read once, one at a time.

  They are split by post, as they say or else by a hash. Rows of training whose post is held out are left out.
  """
  gathered = columns.gather(map(_with_split, rows))
  if not len(gathered.post):
    raise ValueError(f'Task {name} has no rows: give it a file that has some.')
  if soft_labels:
    gathered = columns.merge_votes(gathered)
  gathered = columns.training_voters_first(gathered)
  found, num_left_out = columns.by_split(gathered)
  if num_left_out:
    logging.warning('Left %d training rows out: their posts are held out.', num_left_out)
  count_tokens = lambda text: len(vocabularies.for_prompts(vocabulary).encode(text))
  fit = functools.partial(readers.fit_prompt, count_tokens=count_tokens, max_tokens=TLDR_MAX_TOKENS)
  fields = ('index', 'prompt', *gathered.columns.texts.column_names)
  fields += ('preference',) if 'alternative' in fields else ()
  fields += () if gathered.columns.voter is None else ('voter',)
  by_split = {split: functools.partial(rows._replace, fit=fit) for split, rows in found.items()}
  voters = VoterNames(gathered.voters, gathered.num_training_voters)
  return _from_columns(name, by_split, fields, vocabulary, voters)


def _with_split(row: readers.Row) -> readers.Row:
  """The row, its split chosen by a hash where it names none."""
  if row.get('split'):
    return row
  return row | {'split': readers.hash_split(row['id'], DEFAULT_FRACTIONS)}


def _files(data_dir: str, pattern: str) -> list[pathlib.Path]:
  directory = pathlib.Path(data_dir)
  if not directory.is_dir():
    raise FileNotFoundError(
      f'No directory {directory}: give the directory of the data as data_dir.'
    )
  found = sorted(directory.glob(pattern))
  files = [file for file in found if readers.is_of_rows(file)]
  for file in sorted(set(found) - set(files)):
    logging.warning('%s is passed over: its name is that of no file of rows.', file)
  if not files:
    raise FileNotFoundError(
      f'No {pattern} in {directory}: give the directory of the data as data_dir.'
    )
  return files
