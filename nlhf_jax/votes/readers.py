"""JSONL files of demonstrations and comparisons, checked strictly: an error names file, line and field.

Plain Python, without TensorFlow. A row is a dictionary: {id, prompt, response} for a demonstration,
{id, prompt, response, alternative, preference} for a comparison, with `split` where the file says it.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Row = dict[str, Any]
Schema = Callable[[Row], Row]


class FieldError(ValueError):
  """A field is missing or malformed."""


def read_jsonl(
  path: str | pathlib.Path, schema: Schema, *, skip_malformed: bool = False
) -> Iterator[Row]:
  """Yields the rows of a JSONL file, checked and normalised by `schema`.

  Args:
    path: one JSON object a line; blank lines are passed over.
    schema: checks a row and returns what is kept of it.
    skip_malformed: leave malformed lines out and log their number at the end, where the default stops at the first.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is malformed; names file, line and field.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}: give the directory of the data as data_dir.')
  skipped = 0
  with path.open(encoding='utf-8') as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        yield schema(_parse(line))
      except FieldError as error:
        if not skip_malformed:
          raise ValueError(f'{path}:{number}: {error}') from None
        skipped += 1
  if skipped:
    logging.warning('%s: skipped %d malformed lines.', path, skipped)


def _parse(line: str) -> Row:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise FieldError(f'not JSON ({error.msg} at column {error.colno})') from None
  if not isinstance(row, dict):
    raise FieldError(f'expected a JSON object, got {type(row).__name__}')
  return row


def text(row: Row, *path: str) -> str:
  """A non-empty string at a path of keys, such as ('info', 'post')."""
  value: Any = row
  for key in path:
    value = value.get(key) if isinstance(value, dict) else None
  name = '.'.join(path)
  if value is None:
    raise FieldError(f'field {name!r} is missing')
  if not isinstance(value, str):
    raise FieldError(f'field {name!r} must be a string, got {type(value).__name__}')
  if not value.strip():
    raise FieldError(f'field {name!r} is empty')
  return value


def tldr(row: Row) -> Row:
  """`tldr_3_filtered`: id, subreddit, title, post, summary."""
  keys = ('id', 'subreddit', 'title', 'post', 'summary')
  fields = {key: text(row, key) for key in keys}
  return fields | {'prompt': _Tldr(fields), 'response': fields['summary'].strip()}


def prompt_response(row: Row) -> Row:
  """{prompt, response}."""
  prompt = text(row, 'prompt')
  return {'id': prompt, 'prompt': prompt, 'response': text(row, 'response')}


def chosen_rejected(row: Row) -> Row:
  """{prompt, chosen, rejected}. Hashes of the two say which comes first, so that position tells nothing of the label."""
  prompt, chosen, rejected = (text(row, key) for key in ('prompt', 'chosen', 'rejected'))
  first, second = sorted([chosen, rejected], key=stable_hash)
  preference = float(first == chosen)
  pair = {'response': first, 'alternative': second, 'preference': preference}
  return {'id': prompt, 'prompt': prompt} | pair


def openai_comparison(row: Row) -> Row:
  """OpenAI's `comparisons`: info, two summaries, choice, split. CNN/DM rows have `article` in place of `post`."""
  summaries = row.get('summaries')
  if not isinstance(summaries, list) or len(summaries) != 2:
    raise FieldError("field 'summaries' must be a list of two")
  first, second = (text({'summaries': s}, 'summaries', 'text').strip() for s in summaries)
  choice = row.get('choice')
  if isinstance(choice, bool) or choice not in (0, 1):
    raise FieldError(f"field 'choice' must be 0 or 1, got {choice!r}")
  split = row.get('split')
  if split is not None and not isinstance(split, str):
    raise FieldError(f"field 'split' must be a string, got {type(split).__name__}")
  result = {'id': text(row, 'info', 'id'), 'prompt': _openai_prompt(row), 'split': split}
  return result | {'response': first, 'alternative': second, 'preference': float(choice == 0)}


def _openai_prompt(row: Row) -> 'str | _Tldr':
  info = row['info']
  if 'article' in info:
    title = text(row, 'info', 'title')
    return _Tldr({'title': title, 'post': text(row, 'info', 'article')})
  return _Tldr({key: text(row, 'info', key) for key in ('subreddit', 'title', 'post')})


class _Tldr(dict):
  """The TL;DR prompt, still in parts: only its post may be shortened."""

  def __str__(self) -> str:
    subreddit = f'SUBREDDIT: r/{self["subreddit"]}\n\n' if 'subreddit' in self else ''
    return f'{subreddit}TITLE: {self["title"]}\n\nPOST: {self["post"]}\n\nTL;DR:'


def fit_prompt(prompt: 'str | _Tldr', count_tokens: Callable[[str], int], max_tokens: int) -> str:
  """The text of a TL;DR prompt of at most `max_tokens`: while too long, its post loses what follows the last newline.

  A post without newlines loses its last tenth instead. Other prompts stay as they are, whatever their length.
  """
  if not isinstance(prompt, _Tldr):
    return prompt
  prompt = _Tldr(prompt)
  while count_tokens(str(prompt)) > max_tokens and prompt['post']:
    newline = prompt['post'].rfind('\n')
    end = newline if newline >= 0 else len(prompt['post']) * 9 // 10
    prompt['post'] = prompt['post'][:end]
  return str(prompt)


def stable_hash(value: str) -> int:
  """The same number in every process, unlike `hash`."""
  return int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], 'big')


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


def merge_votes(rows: Iterable[Row]) -> list[Row]:
  """One row for all votes on a pair, in either order: `preference` becomes the share of votes for `response`."""
  merged: dict[tuple, list] = {}
  for row in rows:
    pair = tuple(sorted([row['response'], row['alternative']]))
    merged.setdefault((row['id'], pair, row.get('split')), []).append(row)
  return [_merge(group) for group in merged.values()]


def _merge(group: list[Row]) -> Row:
  first = group[0]
  votes = [
    row['preference'] if row['response'] == first['response'] else 1 - row['preference']
    for row in group
  ]
  return first | {'preference': sum(votes) / len(votes)}
