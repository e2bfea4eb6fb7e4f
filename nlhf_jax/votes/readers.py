"""What training reads: demonstrations from their files, and comparisons from votes of every public format.

Plain Python, without TensorFlow. A row is a dictionary: {id, prompt, response} for a demonstration,
{id, prompt, response, alternative, preference} for a comparison, with `split` and `voter` where the file says them, and `messages`
where the prompt is a conversation.
"""

import bisect
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from nlhf_jax.votes import files, preflib, repeats, schemas
from nlhf_jax.votes.table import FieldError, Row, stable_hash

# Endings of files of rows, but for .gz after them: a backup has another.
_SUFFIXES = ('.jsonl', '.json', '.ndjson', '.txt', '.csv', '.parquet', '.arrow', *preflib.SUFFIXES)


def is_of_rows(path: pathlib.Path) -> bool:
  """Whether a file of a directory is meant to be read, by its name alone: no hidden one, and none like train.jsonl.bak."""
  return not path.name.startswith('.') and path.name.removesuffix('.gz').endswith(_SUFFIXES)


def votes(
  path: str | pathlib.Path, schema: str | None = None, *, skip_malformed: bool = False
) -> Iterator[Row]:
  """Yields the votes of a file, as rows of the table (`votes.table`).

  Args:
    path: JSONL, JSON, CSV, any of them gzipped, Parquet, a directory of Arrow files, or PrefLib's .soc, .soi, .toc and .toi.
    schema: a name of `schemas.SCHEMAS`; None: told from the first row, and logged.
    skip_malformed: leave malformed rows out and log their number, where the default stops at the first.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a row is malformed, or of no format that is known; names file, line and field.
  """
  path = pathlib.Path(path)
  if path.suffix in preflib.SUFFIXES:
    yield from preflib.votes(path)
    return
  if schema is not None and schema not in schemas.SCHEMAS:
    raise ValueError(f'No format {schema!r} of votes: use one of {", ".join(schemas.SCHEMAS)}.')
  parse = _Parse(path, schema)
  each = files.read(path, parse, skip_malformed=skip_malformed)
  yield from itertools.chain.from_iterable(each)


def votes_of_files(
  paths: Sequence[str | pathlib.Path], schema: str | None = None, *, skip_malformed: bool = False
) -> Iterator[Row]:
  """Yields the votes of several files; a line in the log where many of them stand in two.

  Args:
    paths: of the files.
    schema, skip_malformed: as of `votes`.

  Raises:
    FileNotFoundError, ValueError: as of `votes`; two files are the same, or none has a vote.
  """
  found = [pathlib.Path(path) for path in paths]
  repeats.check_files(found)
  number = 0
  read = ((path, votes(path, schema, skip_malformed=skip_malformed)) for path in found)
  for number, row in enumerate(repeats.warned(read), start=1):  # noqa: B007
    yield row
  if not number:
    raise ValueError(f'No votes in {", ".join(map(str, paths))}: name files that have some.')


class _Parse:
  """Votes of rows, all of the format that the first is of."""

  def __init__(self, path: pathlib.Path, schema: str | None):
    self._path, self._schema = path, schema

  def __call__(self, row: Row) -> list[Row]:
    if self._schema is None:
      self._schema = schemas.detect(row)
      logging.info('%s: read as %s.', self._path, self._schema)
    return schemas.votes_of(schemas.SCHEMAS[self._schema], row)


def comparison(vote: Row) -> Row:
  """What preference and reward models are trained on.

  Hashes of the responses say which comes first, so that position tells nothing of the verdict. A tie is a preference of
  1/2, and so are two bad responses.

  Raises:
    FieldError: the vote has no prompt, or not both responses.
  """
  prompt, *responses = (_needed(vote, name) for name in ('prompt', 'response_a', 'response_b'))
  preference = vote['probability']
  if preference is None:
    preference = {'a': 1.0, 'b': 0.0}.get(vote['verdict'], 0.5)
  if stable_hash(responses[0]) > stable_hash(responses[1]):
    responses, preference = responses[::-1], 1 - preference
  response, alternative = responses
  pair = {'response': response, 'alternative': alternative, 'preference': preference}
  weight = 1.0 if vote['weight'] is None else vote['weight']
  row = {'id': prompt, 'prompt': prompt, 'split': vote['split'], 'weight': weight} | pair
  return row | {name: vote[name] for name in ('messages', 'voter') if vote[name] is not None}


def _needed(vote: Row, name: str) -> str:
  if vote[name] is None:
    raise FieldError(f'field {name!r} is missing: training reads prompts and responses')
  return vote[name]


def comparisons(
  path: str | pathlib.Path, schema: str | None = None, *, skip_malformed: bool = False
) -> Iterator[Row]:
  """Yields `comparison` of each vote of a file; see `votes`."""
  for number, vote in enumerate(votes(path, schema, skip_malformed=skip_malformed), start=1):
    try:
      yield comparison(vote)
    except FieldError as error:
      raise ValueError(f'{path}: vote {number}: {error}.') from None


def demonstrations(
  path: str | pathlib.Path, parse: Callable[[Row], Row], *, skip_malformed: bool = False
) -> Iterator[Row]:
  """Yields the demonstrations of a file: `tldr` or `prompt_response` of each row."""
  return files.read(path, parse, skip_malformed=skip_malformed)


def tldr(row: Row) -> Row:
  """`tldr_3_filtered`: id, subreddit, title, post, summary."""
  keys = ('id', 'subreddit', 'title', 'post', 'summary')
  fields = {key: schemas.text(row, key) for key in keys}
  prompt = schemas.tldr_prompt(fields['subreddit'], fields['title'], fields['post'])
  return fields | {'prompt': prompt, 'response': fields['summary'].strip()}


def prompt_response(row: Row) -> Row:
  """{prompt, response}."""
  prompt = schemas.text(row, 'prompt')
  return {'id': prompt, 'prompt': prompt, 'response': schemas.text(row, 'response')}


def fit_prompt(prompt: str, count_tokens: Callable[[str], int], max_tokens: int) -> str:
  """A TL;DR prompt of at most `max_tokens`: while too long, its post loses what follows the last newline.

  A post without newlines loses its last tenth instead. Other prompts stay as they are, whatever their length.
  """
  parts = schemas.tldr_parts(prompt)
  if parts is None:
    return prompt
  before, post, after = parts
  is_long = lambda size: count_tokens(before + post[:size] + after) > max_tokens
  if not is_long(len(post)):
    return prompt
  # Where it may end, the longest first. Tokens of few of them are counted, for each count reads all of the text.
  ends = [place for place in range(len(post) - 1, -1, -1) if post[place] == '\n']
  size = ends[-1] if ends else len(post)
  while size:
    size = size * 9 // 10
    ends.append(size)
  first = bisect.bisect(ends, 0, key=lambda size: not is_long(size))
  return before + post[: ends[min(first, len(ends) - 1)]] + after


def hash_split(post_id: str, fractions: dict[str, float]) -> str:
  """The split of a post, by the hash of its id alone, so that all rows of one post go to one split.

  Args:
    post_id: identifies the post.
    fractions: split → share; the shares add up to 1.
  """
  place = stable_hash(post_id) / 2**64
  for split, share in fractions.items():
    place -= share
    if place < 0:
      return split
  return split


def merge(rows: Iterable[Row]) -> list[Row]:
  """One row for all votes on a pair: `preference` becomes their mean, by weight."""
  merged: dict[tuple, list[Row]] = {}
  for row in rows:
    key = row['id'], row['response'], row['alternative'], row['split']
    merged.setdefault(key, []).append(row)
  return [_merged(group) for group in merged.values()]


def _merged(group: list[Row]) -> Row:
  weight = sum(row['weight'] for row in group)
  share = sum(row['weight'] * row['preference'] for row in group) / weight if weight else 0.5
  nobodys = {name: value for name, value in group[0].items() if name != 'voter'}
  return nobodys | {'preference': share, 'weight': weight}
