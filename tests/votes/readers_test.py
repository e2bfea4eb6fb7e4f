"""Files are checked strictly; rows of one post are in one split."""

import json
import re

import pytest

from nlhf_jax.votes import readers


def write(path, *rows):
  path.write_text(
    '\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows) + '\n'
  )
  return path


def comparison(**changes):
  row = {
    'info': {'id': 'p1', 'post': 'A post.', 'title': 'T', 'subreddit': 's'},
    'summaries': [
      {'text': ' a', 'policy': 'x', 'note': None},
      {'text': ' b', 'policy': 'y', 'note': None},
    ],
    'choice': 1,
    'split': 'train',
  }
  return row | changes


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('{"info": ', r'data\.jsonl:2: not JSON'),
    ('[1]', r'data\.jsonl:2: expected a JSON object, got list'),
    (comparison(choice=2), "field 'choice' must be one of 0, 1, got 2"),
    (comparison(summaries=[]), "field 'summaries' must be a list of two"),
    (comparison(summaries=[{'text': 'a'}, {'text': ' '}]), "field 'text' is empty"),
    (comparison(info={'id': 'p', 'title': 't', 'subreddit': 's'}), "field 'post' is missing"),
    (comparison(info={'id': 3}), "field 'subreddit' is missing"),
  ],
)
def test_malformed_line_is_named(tmp_path, caplog, row, message):
  path = write(tmp_path / 'data.jsonl', comparison(), row, comparison())
  with pytest.raises(ValueError, match=message):
    list(readers.comparisons(path, 'openai'))
  assert len(list(readers.comparisons(path, 'openai', skip_malformed=True))) == 2
  assert 'skipped 1 malformed' in caplog.text


def test_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No file .*none\.jsonl'):
    list(readers.demonstrations(tmp_path / 'none.jsonl', readers.tldr))


@pytest.mark.parametrize(
  'info',
  [
    {'id': 'c', 'title': 'T', 'article': 'News.', 'site': 'cnn'},
    {'id': 'c', 'title': 'T', 'article': 'News.', 'site': 'cnn', 'post': None, 'subreddit': None},
  ],
)
def test_news_as_published_and_as_the_hub_has_it(tmp_path, info):
  path = write(tmp_path / 'data.jsonl', comparison(info=info))
  (row,) = readers.comparisons(path)
  assert row['prompt'] == 'TITLE: T\n\nPOST: News.\n\nTL;DR:'


def test_votes_on_a_pair_are_merged_in_either_order(tmp_path):
  votes = [{'chosen': 'a', 'rejected': 'b'}] * 2 + [{'chosen': 'b', 'rejected': 'a'}]
  path = write(tmp_path / 'data.jsonl', *({'prompt': 'x'} | vote for vote in votes))
  (row,) = readers.merge(readers.comparisons(path))
  assert row['preference'] == pytest.approx(2 / 3 if row['response'] == 'a' else 1 / 3)


def test_equal_responses_are_a_tie(tmp_path):
  path = write(tmp_path / 'data.jsonl', {'prompt': 'x', 'chosen': 'a', 'rejected': 'a'})
  assert [row['preference'] for row in readers.comparisons(path)] == [0.5]


def test_soft_labels_stay(tmp_path):
  row = {'prompt': 'x', 'chosen': 'a', 'rejected': 'b', 'preference': 0.8}
  (row,) = readers.comparisons(write(tmp_path / 'data.jsonl', row))
  assert row['preference'] == pytest.approx(0.8 if row['response'] == 'a' else 0.2)


def test_messages_with_and_without_a_prompt(tmp_path):
  said = lambda text: [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': text}]
  pair = {'chosen': said('A'), 'rejected': said('B')}
  path = write(tmp_path / 'data.jsonl', pair, pair | {'prompt': 'Q'})
  rows = list(readers.comparisons(path))
  assert rows[0]['prompt'] == rows[1]['prompt'] == 'Q'
  assert rows[0]['preference'] == (rows[0]['response'] == 'A')


def test_conversations_keep_their_turns(tmp_path):
  """As messages, and as a transcript for who has no chat template."""
  before = [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'Q'}]
  said = lambda text: [*before, {'role': 'assistant', 'content': text}]
  path = write(tmp_path / 'data.jsonl', {'chosen': said('A'), 'rejected': said('B')})
  (row,) = readers.comparisons(path)
  assert row['messages'] == before
  assert row['prompt'] == 'System: S\n\nUser: Q'


def test_turns_of_a_transcript(tmp_path):
  """HH-RLHF's; who speaks twice speaks once, for templates take turns."""
  asked = '\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Name\n\nHuman: a tree.\n\nAssistant:'
  path = write(tmp_path / 'data.jsonl', {'chosen': f'{asked} Oak.', 'rejected': f'{asked} Car.'})
  (row,) = readers.comparisons(path)
  assert row['messages'] == [
    {'role': 'user', 'content': 'Hi'},
    {'role': 'assistant', 'content': 'Yes?'},
    {'role': 'user', 'content': 'Name\n\na tree.'},
  ]
  assert row['prompt'] == asked.strip()
  assert {row['response'], row['alternative']} == {'Oak.', 'Car.'}


@pytest.mark.parametrize(
  ('messages', 'error'),
  [
    ([{'role': 'user'}], "field prompt.0 must have a text as its 'content'"),
    ([{'content': 'x'}, 3], "field prompt.0 must have a text as its 'role'"),
    (['x'], "field 'prompt' must be a list of messages, got 'x' in it"),
    (7, "field 'prompt' must be a list of messages, got int"),
  ],
)
def test_malformed_messages_are_named(tmp_path, messages, error):
  path = write(tmp_path / 'data.jsonl', {'prompt': messages, 'chosen': 'a', 'rejected': 'b'})
  with pytest.raises(ValueError, match=f'data.jsonl:1: {re.escape(error)}'):
    list(readers.comparisons(path))


def test_side_of_the_chosen_tells_nothing(tmp_path):
  pairs = [{'prompt': 'p', 'chosen': f'c{n}', 'rejected': f'r{n}'} for n in range(400)]
  rows = list(readers.comparisons(write(tmp_path / 'data.jsonl', *pairs)))
  assert all((row['response'][0] == 'c') == (row['preference'] == 1.0) for row in rows)
  assert 150 < sum(row['preference'] for row in rows) < 250


def test_long_post_ends_at_a_newline():
  fields = {'id': '1', 'subreddit': 's', 'title': 't', 'summary': 'sum'}
  row = readers.tldr(fields | {'post': 'one two\nthree four\nfive'})
  count = lambda text: len(text.split())
  full = count(str(row['prompt']))
  assert 'five' not in readers.fit_prompt(row['prompt'], count, full - 1)
  assert 'three four' in readers.fit_prompt(row['prompt'], count, full - 1)
  shortened = readers.fit_prompt(row['prompt'], count, full - 2)
  assert 'three' not in shortened
  assert shortened.endswith('POST: one two\n\nTL;DR:')


def test_splits_are_a_function_of_the_post_alone():
  fractions = {'train': 0.8, 'test': 0.2}
  splits = [readers.hash_split(f'post {n}', fractions) for n in range(2000)]
  assert splits == [readers.hash_split(f'post {n}', fractions) for n in range(2000)]
  assert splits.count('test') == pytest.approx(400, abs=70)
