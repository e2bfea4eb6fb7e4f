"""seqio tasks: rows in, tokens out. One general constructor, and one function for each file format.

Features: `inputs` prompt, `targets` response with EOS, `alternative` likewise, `preference` share of votes for the
response, `index` number of the prompt in its task. A task has those that its rows give it.
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterable, Mapping

import seqio
import tensorflow as tf

from nlhf_jax.data import vocabularies
from nlhf_jax.votes import readers

Rows = Callable[[], Iterable[readers.Row]]

TLDR_MAX_TOKENS = 512
DEFAULT_FRACTIONS = {'train': 0.9, 'validation': 0.05, 'test': 0.05}

# Field of a row → feature of the task.
_TEXTS = {'prompt': 'inputs', 'response': 'targets', 'alternative': 'alternative'}


def from_rows(
  name: str, rows_by_split: Mapping[str, Rows], vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """A task of rows that Python yields.

  Args:
    name: of the task.
    rows_by_split: split → a function that yields rows {index, prompt, response?, alternative?, preference?}.
    vocabulary: of prompt and responses alike; where it has `for_prompts`, that is the prompts'.

  Raises:
    ValueError: the first split has no rows, or the vocabulary has other ids for padding and EOS than 0 and 1.
  """
  vocabularies.check(vocabulary)
  example = next(iter(next(iter(rows_by_split.values()))()), None)
  if example is None:
    raise ValueError(f'Task {name} has no rows in its first split.')
  texts = {field: feature for field, feature in _TEXTS.items() if field in example}
  numbers = {'index': tf.int32} | ({'preference': tf.float32} if 'preference' in example else {})
  source = _source(rows_by_split, dict.fromkeys(texts, tf.string) | numbers)
  key_map = {feature: field for field, feature in texts.items()} | {n: n for n in numbers}
  return seqio.Task(
    name,
    source=source,
    output_features=_features(texts.values(), numbers, vocabulary),
    preprocessors=[
      functools.partial(seqio.preprocessors.rekey, key_map=key_map),
      functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
      seqio.preprocessors.append_eos,
    ],
  )


def _source(
  rows_by_split: Mapping[str, Rows], fields: Mapping[str, tf.DType]
) -> seqio.FunctionDataSource:
  """The rows of each split, of which these fields are kept."""
  signature = {field: tf.TensorSpec((), dtype) for field, dtype in fields.items()}

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed  # The pipeline shuffles.
    keep = lambda: ({key: row[key] for key in signature} for row in rows_by_split[split]())
    return tf.data.Dataset.from_generator(keep, output_signature=signature)

  return seqio.FunctionDataSource(dataset, splits=tuple(rows_by_split))


def _features(
  texts: Iterable[str], numbers: Mapping[str, tf.DType], vocabulary: seqio.Vocabulary
) -> dict[str, seqio.Feature]:
  """Responses end with EOS, prompts do not."""
  features = {feature: seqio.Feature(vocabulary, add_eos=True) for feature in texts}
  features['inputs'] = seqio.Feature(vocabularies.for_prompts(vocabulary), add_eos=False)
  none = seqio.PassThroughVocabulary(size=0)
  return features | {
    name: seqio.Feature(none, add_eos=False, dtype=dtype, rank=0) for name, dtype in numbers.items()
  }


def tldr_demonstrations(
  data_dir: str, vocabulary: seqio.Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """`tldr_3_filtered`: train.jsonl, valid.jsonl and test.jsonl of a directory."""
  rows = {
    path.stem: list(readers.demonstrations(path, readers.tldr, skip_malformed=skip_malformed))
    for path in _files(data_dir, '*.jsonl')
  }
  return _from_checked_rows('tldr', rows, vocabulary)


def comparisons(
  path: str,
  vocabulary: seqio.Vocabulary,
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
    soft_labels: merge the votes on a pair into one row, with their share as its label.
  """
  read = functools.partial(readers.comparisons, schema=schema, skip_malformed=skip_malformed)
  merged = readers.merge if soft_labels else list
  if _is_directory_of_splits(path):
    rows = [
      row | {'split': row['split'] or file.name.split('.')[0]}
      for file in _files(path, '*.*')
      for row in read(file)
    ]
  else:
    rows = list(read(path))
  return _from_checked_rows('comparisons', _by_split(merged(rows)), vocabulary)


def openai_comparisons(
  data_dir: str,
  vocabulary: seqio.Vocabulary,
  *,
  skip_malformed: bool = False,
  soft_labels: bool = True,
) -> seqio.Task:
  """OpenAI's `comparisons`: every *.json and *.jsonl of a directory, split as the rows say."""
  rows = [
    row
    for path in _files(data_dir, '*.json*')
    for row in readers.comparisons(path, 'openai', skip_malformed=skip_malformed)
  ]
  rows = readers.merge(rows) if soft_labels else rows
  return _from_checked_rows('comparisons', _by_split(rows), vocabulary)


def jsonl_demonstrations(
  path: str, vocabulary: seqio.Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """Any JSONL of {prompt, response}; a file is split by prompt, a directory has a file for each split."""
  read = functools.partial(
    readers.demonstrations, parse=readers.prompt_response, skip_malformed=skip_malformed
  )
  if pathlib.Path(path).is_dir():
    rows = [row | {'split': file.stem} for file in _files(path, '*.jsonl') for row in read(file)]
  else:
    rows = list(read(path))
  return _from_checked_rows('demonstrations', _by_split(rows), vocabulary)


def jsonl_comparisons(
  path: str, vocabulary: seqio.Vocabulary, *, skip_malformed: bool = False
) -> seqio.Task:
  """Any JSONL of {prompt, chosen, rejected}; a file is split by prompt, a directory has a file for each split."""
  return comparisons(path, vocabulary, schema='chosen_rejected', skip_malformed=skip_malformed)


def prompts_of(task: seqio.Task) -> seqio.Task:
  """The prompts of a task, each once."""
  vocabulary = task.output_features['inputs'].vocabulary

  def rows(split):
    seen = set()
    dataset = task.get_dataset(split=split, sequence_length=None, shuffle=False)
    for example in dataset.as_numpy_iterator():
      if int(example['index']) not in seen:
        seen.add(int(example['index']))
        prompt = vocabulary.decode(example['inputs'].tolist())
        yield {'index': int(example['index']), 'prompt': prompt}

  by_split = {split: functools.partial(rows, split) for split in task.splits}
  return from_rows(f'{task.name}_prompts', by_split, vocabulary)


def registered(task: seqio.Task) -> seqio.Task:
  """The task, now in seqio's registry too, where T5X's evaluation looks tasks up by name."""
  if task.name not in seqio.TaskRegistry.names():
    seqio.TaskRegistry.add_provider(task.name, task)
  return seqio.TaskRegistry.get(task.name)


def _is_directory_of_splits(path: str) -> bool:
  """Not one of `datasets.save_to_disk`, whose files are shards."""
  return pathlib.Path(path).is_dir() and not list(pathlib.Path(path).glob('*.arrow'))


def _by_split(rows: list[readers.Row]) -> dict[str, list[readers.Row]]:
  """Splits by post: as the rows say, or else by a hash. Rows of training whose post is held out are left out."""
  result: dict[str, list[readers.Row]] = {}
  for row in rows:
    split = row.get('split') or readers.hash_split(row['id'], DEFAULT_FRACTIONS)
    result.setdefault(split, []).append(row)
  held_out = {row['id'] for split, rows in result.items() if split != 'train' for row in rows}
  if 'train' in result:
    kept = [row for row in result['train'] if row['id'] not in held_out]
    if dropped := len(result['train']) - len(kept):
      logging.warning('Left %d training rows out: their posts are held out.', dropped)
    result['train'] = kept
  return result


def _from_checked_rows(name: str, by_split, vocabulary: seqio.Vocabulary) -> seqio.Task:
  """Numbers the prompts, fits them into TL;DR's limit, and makes the task."""
  numbers: dict[str, int] = {}
  count_tokens = lambda text: len(vocabularies.for_prompts(vocabulary).encode(text))
  for rows in by_split.values():
    for row in rows:
      row['prompt'] = readers.fit_prompt(row['prompt'], count_tokens, TLDR_MAX_TOKENS)
      row['index'] = numbers.setdefault(row['prompt'], len(numbers))
  order = sorted(by_split, key=lambda split: split != 'train')
  return from_rows(
    name, {split: functools.partial(iter, by_split[split]) for split in order}, vocabulary
  )


def _files(data_dir: str, pattern: str) -> list[pathlib.Path]:
  directory = pathlib.Path(data_dir)
  if not directory.is_dir():
    raise FileNotFoundError(
      f'No directory {directory}: give the directory of the data as data_dir.'
    )
  files = sorted(directory.glob(pattern))
  if not files:
    raise FileNotFoundError(
      f'No {pattern} in {directory}: give the directory of the data as data_dir.'
    )
  return files
