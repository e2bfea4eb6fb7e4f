"""Public formats of votes: rows as their publishers write them, what they become, and rows that went wrong."""

import copy
import gzip
import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from nlhf_jax.votes import readers, schemas, table

MESSAGES = [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}]
STYLE = {
  'sum_assistant_a_tokens': 90,
  'sum_assistant_b_tokens': 50,
  'header_count_a': {'h1': 1, 'h2': 2},
  'header_count_b': {'h1': 0},
  'list_count_a': {'ordered': 0, 'unordered': 3},
  'list_count_b': {'ordered': 1},
  'bold_count_a': {'**': 1, '__': 0},
  'bold_count_b': {'**': 4},
}
HUB = {'id': 't', 'post': 'P', 'title': 'T', 'subreddit': 's', 'site': None, 'article': None}

# Name, a row, and of each vote: a, b, verdict or probability, and what else is to be said of it.
FORMATS = [
  (
    'arena',
    {'model_a': 'm', 'model_b': 'n', 'winner': 'both_bad', 'evaluation_session_id': 's9', 'conv_metadata': STYLE},
    [('m', 'n', 'both_bad', {'voter': 's9', 'x': {'tokens': 40, 'headers': 3, 'lists': 2, 'bold': -3}})],
  ),
  (
    'arena',
    {'question_id': 'q1', 'model_a': 'm', 'model_b': 'n', 'winner': 'tie (bothbad)', 'judge': 'u7', 'tstamp': 1.7e9},
    [('m', 'n', 'both_bad', {'voter': 'u7', 'prompt': 'q1', 'time': 1.7e9})],
  ),
  (
    'arena_55k',
    {'id': 1, 'model_a': 'm', 'model_b': 'n', 'prompt': '["Q"]', 'response_a': '["A"]', 'response_b': '["B"]'}
    | {'winner_model_a': 0, 'winner_model_b': 0, 'winner_tie': 1},
    [('m', 'n', 'tie', {'prompt': '["Q"]'})],
  ),
  (
    'alpaca_eval',
    {'instruction': 'Q', 'output_1': 'A', 'generator_1': 'base', 'output_2': 'B', 'generator_2': 'm'}
    | {'annotator': 'g', 'preference': 1.8},
    [('base', 'm', pytest.approx(0.2), {'judge': 'g', 'response_b': 'B'})],
  ),
  (
    'arena_hard',
    {'question_id': 'q1', 'model': 'm', 'judge': 'g', 'games': [{'score': 'B>A'}, {'score': 'A>>B'}]},
    [('m', 'baseline', 'a', {'order': 'ba'}), ('m', 'baseline', 'a', {'order': 'ab', 'judge': 'g'})],
  ),
  (
    'arena_hard',
    {'uid': 'q1', 'model': 'm', 'judge': 'g', 'games': [{'score': 'A<<B'}, {'score': 'A=B'}, {'score': None}]},
    [('m', 'baseline', 'a', {'prompt': 'q1'}), ('m', 'baseline', 'tie', {})],
  ),
  (
    'mt_bench',
    {'question_id': 81, 'model_1': 'm', 'model_2': 'n', 'g1_winner': 'model_2', 'g2_winner': 'tie'}
    | {'judge': ['g', 'pair-v2'], 'turn': 1},
    [('m', 'n', 'b', {'order': 'ab', 'judge': 'g/pair-v2'}), ('m', 'n', 'tie', {'order': 'ba', 'prompt': '81 turn 1'})],
  ),
  (
    'chosen_rejected',
    {'prompt': 'Q', 'chosen': MESSAGES, 'rejected': [MESSAGES[0], {'role': 'assistant', 'content': 'B'}]}
    | {'score_chosen': 8.0, 'score_rejected': 8.0},
    [(None, None, 'tie', {'response_a': 'A', 'response_b': 'B', 'prompt': 'Q'})],
  ),
  (
    'hh_rlhf',
    {'chosen': '\n\nHuman: Q\n\nAssistant: A', 'rejected': '\n\nHuman: Q\n\nAssistant: B'},
    [(None, None, 'a', {'prompt': 'Human: Q\n\nAssistant:', 'response_a': 'A', 'response_b': 'B'})],
  ),
  (
    'shp',
    {'post_id': 'x', 'history': 'Q', 'human_ref_A': 'A', 'human_ref_B': 'B', 'labels': 0, 'score_A': 3},
    [(None, None, 'b', {'prompt': 'Q', 'response_a': 'A'})],
  ),
  (
    'pku_saferlhf',
    {'prompt': 'Q', 'response_0': 'A', 'response_1': 'B', 'response_0_source': 'm', 'response_1_source': 'n'}
    | {'better_response_id': 1, 'safer_response_id': 0},
    [('m', 'n', 'b', {'judge': 'better'}), ('m', 'n', 'a', {'judge': 'safer'})],
  ),
  (
    'helpsteer2',
    {'prompt': 'Q', 'response_1': 'A', 'response_2': 'B', 'preference_strength': -2, 'split': 'train'},
    [(None, None, 'a', {'split': 'train'})],
  ),
  (
    'helpsteer3',
    {'context': MESSAGES[:1], 'response1': 'A', 'response2': 'B', 'overall_preference': -2}
    | {'individual_preference': [{'score': 1}, {'score': 0}]},
    [(None, None, 'b', {'prompt': 'Q'}), (None, None, 'tie', {})],
  ),
  (
    'nectar',
    {'prompt': 'Q', 'answers': [{'answer': t, 'model': f'm{t}', 'rank': r} for t, r in (('A', 2.0), ('B', 1.0), ('C', 2.0))]},
    [('mA', 'mB', 'b', {}), ('mA', 'mC', 'tie', {}), ('mB', 'mC', 'a', {'response_a': 'B'})],
  ),
  (
    'openai',
    {'info': HUB, 'summaries': [{'text': ' A', 'policy': 'm', 'note': None}, {'text': 'B', 'policy': 'n', 'note': None}]}
    | {'choice': 1, 'worker': 'w', 'extra': {'confidence': None}},
    [('m', 'n', 'b', {'voter': 'w', 'response_a': 'A', 'prompt': 'SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: P\n\nTL;DR:'})],
  ),
  ('votes', {'a': 'm', 'b': 'n', 'verdict': 'tie'}, [('m', 'n', 'tie', {})]),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'row', 'expected'), FORMATS)
def test_format(name, row, expected):
  assert schemas.detect(row) == name
  votes = schemas.votes_of(schemas.SCHEMAS[name], row)
  assert len(votes) == len(expected)
  for vote, (a, b, verdict, others) in zip(votes, expected, strict=True):
    assert (vote['a'], vote['b'], vote['verdict'] or vote['probability']) == (a, b, verdict)
    assert {field: vote[field] for field in others} == others
    assert set(vote) == set(table.FIELDS)


@pytest.mark.parametrize('preference', [-1, None, float('nan')])
def test_a_failed_judgement_is_no_vote(preference):
  row = FORMATS[3][1] | {'preference': preference}
  assert schemas.votes_of(schemas.SCHEMAS['alpaca_eval'], row) == []


def test_a_ranking_has_one_voter():
  row = next(row for name, row, _ in FORMATS if name == 'nectar')
  voters = {vote['voter'] for vote in schemas.votes_of(schemas.SCHEMAS['nectar'], row)}
  other = schemas.votes_of(schemas.SCHEMAS['nectar'], row | {'prompt': 'R'})
  assert len(voters) == 1 and voters.isdisjoint({other[0]['voter']})


# Every field that a format needs, taken away and made of a wrong kind; and lines that are no rows.
NEEDED = [(name, row, field) for name, row, _ in FORMATS for field in schemas.SCHEMAS[name].fields]
WRONG = [(kind, *needed) for kind in ('missing', 'wrong') for needed in NEEDED]


def _spoilt(kind, name, row, field):
  row = copy.deepcopy(row)
  if kind == 'missing' and field not in ('preference',):
    del row[field]
  else:
    row[field] = {'unexpected': [1]}
  return json.dumps(row).encode()


BAD_LINES = [
  (f'{kind} {name} {field}', name, row, _spoilt(kind, name, row, field))
  for kind, name, row, field in WRONG
] + [
  (what, 'votes', FORMATS[-1][1], line)
  for what, line in {
    'cut': b'{"a": "m", "b',
    'list': b'[1, 2]',
    'number': b'7',
    'bytes': b'{"a": "m\xff", "b": "n", "verdict": "a"}',
    'half of a character': b'{"a": "m\\ud83d", "b": "n", "verdict": "a"}',
    'nested': b'[' * 100_000,
    'both': b'{"a": "m", "b": "m", "verdict": "a"}',
    'no verdict': b'{"a": "m", "b": "n", "verdict": "A"}',
    'probability': b'{"a": "m", "b": "n", "probability": NaN}',
    'unknown field': b'{"a": "m", "b": "n", "verdict": "a", "winner": "m"}',
  }.items()
]


def test_there_are_enough_of_them():
  assert len(BAD_LINES) >= 60


@pytest.mark.parametrize(
  ('what', 'name', 'row', 'line'), BAD_LINES, ids=[bad[0] for bad in BAD_LINES]
)
def test_malformed_line_is_named_and_can_be_skipped(tmp_path, caplog, what, name, row, line):
  del what
  path = tmp_path / 'votes.jsonl'
  good = json.dumps(row).encode()
  path.write_bytes(b'\n'.join([good, line, good]))
  with pytest.raises(ValueError, match=r'votes\.jsonl:2: ') as error:
    list(readers.votes(path, name))
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 400 + len(str(path))
  votes = len(schemas.votes_of(schemas.SCHEMAS[name], row))
  assert len(list(readers.votes(path, name, skip_malformed=True))) == 2 * votes
  assert 'skipped 1 malformed' in caplog.text


def test_unknown_format(tmp_path):
  path = tmp_path / 'votes.jsonl'
  path.write_text('{"left": 1}')
  with pytest.raises(ValueError, match=r'votes\.jsonl:1: the fields left are of no format'):
    list(readers.votes(path))
  with pytest.raises(ValueError, match=r"No format 'arena2'.*arena_55k"):
    list(readers.votes(path, 'arena2'))


_ARENA = {'model_a': 'm', 'model_b': 'n', 'winner': 'tie'}
_OPENAI = {
  'info': {'title': 'T', 'article': 'P'},
  'summaries': [{'text': 'A', 'policy': 'm'}, {'text': 'B', 'policy': 'n'}],
  'choice': 0,
}


@pytest.mark.parametrize('blank', ['', ' ', math.nan, None])
@pytest.mark.parametrize(
  ('name', 'row', 'field'),
  [('arena', _ARENA, 'judge_hash'), ('arena', _ARENA, 'judge'), ('openai', _OPENAI, 'worker')],
)
def test_a_blank_voter_is_unknown(blank, name, row, field):
  (vote,) = schemas.votes_of(schemas.SCHEMAS[name], row | {field: blank})
  assert vote['voter'] is None


@pytest.mark.parametrize('blank', ['', ' ', math.nan, None])
def test_a_blank_session_leaves_the_judge_to_say_who_voted(blank):
  row = _ARENA | {'evaluation_session_id': blank, 'judge': 'u'}
  assert schemas.votes_of(schemas.SCHEMAS['arena'], row)[0]['voter'] == 'u'


def test_nan_names_no_prompt_policy_or_split():
  """As pandas fills a column that has gaps."""
  nan = math.nan
  summaries = [{'text': x, 'policy': nan} for x in 'AB']
  rows = {
    'arena': _ARENA | {'question_id': nan},
    'openai': _OPENAI | {'summaries': summaries, 'split': nan},
    'mt_bench': {'model_1': 'm', 'model_2': 'n', 'g1_winner': 'tie', 'g2_winner': 'tie'}
    | {'question_id': nan, 'turn': nan, 'judge': nan},
  }
  for name, row in rows.items():
    for vote in schemas.votes_of(schemas.SCHEMAS[name], row):
      assert 'nan' not in vote.values() and 'None' not in vote.values()
  assert vote['prompt'] is None and vote['judge'] is None


@pytest.mark.parametrize('kind', ['jsonl', 'json', 'csv', 'parquet'])
def test_anonymous_votes_of_a_file_are_nobodys(kind, tmp_path):
  """Blanks in files of text, gaps and NaN in columns of Parquet."""
  rows = [{'a': 'm', 'b': 'n', 'verdict': 'a', 'voter': x} for x in ('', 'u', ' ', None)]
  path = tmp_path / f'votes.{kind}'
  if kind == 'jsonl':
    path.write_text(''.join(map(_line, [*rows, rows[0] | {'voter': math.nan}])))
  elif kind == 'json':
    path.write_text(json.dumps([*rows, rows[0] | {'voter': math.nan}]))
  elif kind == 'csv':
    path.write_text('a,b,verdict,voter\n' + ''.join(f'm,n,a,{x["voter"] or ""}\n' for x in rows))
  else:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  voters = [vote['voter'] for vote in readers.votes(path)]
  assert voters == [None, 'u', *[None] * (len(voters) - 2)] and len(voters) >= 4


def test_a_column_of_numbers_of_voters_in_parquet(tmp_path):
  rows = [_ARENA | {'judge_hash': x} for x in (7.0, math.nan, math.nan)]
  path = tmp_path / 'votes.parquet'
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  assert [vote['voter'] for vote in readers.votes(path)] == ['7.0', None, None]


def _line(row) -> str:
  return json.dumps(row) + '\n'


def test_gzip(tmp_path):
  path = tmp_path / 'votes.jsonl.gz'
  path.write_bytes(gzip.compress(b'{"a": "m", "b": "n", "verdict": "a"}\n'))
  assert [vote['a'] for vote in readers.votes(path)] == ['m']
