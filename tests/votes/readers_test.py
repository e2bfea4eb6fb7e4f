"""Files are checked strictly; rows of one post are in one split."""

import json

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
    (comparison(choice=2), "field 'choice' must be 0 or 1, got 2"),
    (comparison(choice=True), "field 'choice' must be 0 or 1, got True"),
    (comparison(summaries=[]), "field 'summaries' must be a list of two"),
    (comparison(summaries=[{'text': 'a'}, {'text': ' '}]), "field 'summaries.text' is empty"),
    (comparison(info={'id': 'p', 'title': 't', 'subreddit': 's'}), "field 'info.post' is missing"),
    (comparison(info={'id': 3}), "field 'info.id' must be a string, got int"),
  ],
)
def test_malformed_line_is_named(tmp_path, caplog, row, message):
  path = write(tmp_path / 'data.jsonl', comparison(), row, comparison())
  with pytest.raises(ValueError, match=message):
    list(readers.read_jsonl(path, readers.openai_comparison))
  assert len(list(readers.read_jsonl(path, readers.openai_comparison, skip_malformed=True))) == 2
  assert 'skipped 1 malformed' in caplog.text


def test_missing_file_names_the_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='give the directory of the data as data_dir'):
    list(readers.read_jsonl(tmp_path / 'none.jsonl', readers.tldr))


def test_openai_comparisons_keep_order_and_choice(tmp_path):
  row = readers.openai_comparison(comparison())
  assert (row['response'], row['alternative'], row['preference']) == ('a', 'b', 0.0)
  assert str(row['prompt']) == 'SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: A post.\n\nTL;DR:'
  article = comparison(info={'id': 'c', 'title': 'T', 'article': 'News.', 'site': 'cnn'})
  assert str(readers.openai_comparison(article)['prompt']) == 'TITLE: T\n\nPOST: News.\n\nTL;DR:'


def test_votes_on_a_pair_are_merged_in_either_order():
  first = {'id': 'p', 'prompt': 'x', 'response': 'a', 'alternative': 'b', 'preference': 1.0}
  second = first | {'response': 'b', 'alternative': 'a', 'preference': 1.0}
  merged = readers.merge_votes([first, first, second])
  assert len(merged) == 1
  assert merged[0]['preference'] == pytest.approx(2 / 3)


def test_side_of_the_chosen_tells_nothing():
  rows = [
    readers.chosen_rejected({'prompt': 'p', 'chosen': f'c{n}', 'rejected': f'r{n}'})
    for n in range(400)
  ]
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
