"""Responses to compare: what is read, which meet, and what is left out aloud."""

import json

import pytest

from nlhf_jax.votes import responses
from nlhf_jax.votes.responses import Pair, Response


def answers(**by_label):
  """m=[('p', 'x'), …], or with an id third."""
  return {label: [Response(*row) for row in rows] for label, rows in by_label.items()}


def texts(pairs):
  return [(pair.response_a, pair.response_b) for pair in pairs]


def test_every_two_labels_on_every_prompt_of_both():
  found = answers(
    nash=[('p1', 'n1'), ('p2', 'n2'), ('p4', 'n4')],
    sft=[('p1', 's1'), ('p2', 's2'), ('p3', 's3'), ('p4', 's4')],
    rlhf=[('p1', 'r1'), ('p2', 'n2'), ('p3', 'r3')],
  )
  pairs = responses.pairs(found)
  labels = lambda prompt: {(x.a, x.b) for x in pairs if x.prompt == prompt}
  all_labels = {('nash', 'rlhf'), ('nash', 'sft'), ('rlhf', 'sft')}
  assert labels('p1') == all_labels
  assert labels('p2') == all_labels - {('nash', 'rlhf')}
  assert labels('p3') == {('rlhf', 'sft')}
  assert labels('p4') == {('nash', 'sft')}
  assert len(pairs) == len(set(pairs)) == 7
  assert responses.pairs(dict(reversed(found.items()))) == pairs


def test_prompts_meet_by_ids_where_all_have_some():
  one = [('p', 'one 1', '1'), ('p', 'one 2', '2'), ('q', 'one 3', '3')]
  two = [('p', 'two 2', '2'), ('p', 'two 1', '1'), ('r', 'two 4', '4')]
  found = responses.pairs(answers(a=one, b=two))
  assert texts(found) == [('one 1', 'two 1'), ('one 2', 'two 2')]
  without = [row[:2] for row in two]
  assert texts(responses.pairs(answers(a=one, b=without))) == [
    ('one 1', 'two 2'),
    ('one 2', 'two 1'),
  ]


@pytest.mark.parametrize(
  ('a', 'b', 'message'),
  [
    ([('p', 'x', '1'), ('q', 'x', '1')], [('p', 'y', '1')], "'1' stands for two prompts under a"),
    ([('p', 'x', '1')], [('q', 'y', '1')], "'1' stands for other prompts under a and b"),
  ],
)
def test_id_of_two_prompts_is_refused(a, b, message):
  with pytest.raises(ValueError, match=message):
    responses.pairs(answers(a=a, b=b))


def test_shorter_list_does_not_start_again(caplog):
  """The n-th meets the n-th; the warning has prompts and numbers."""
  three, two = [('p', str(n)) for n in range(3)], [('p', 'x'), ('p', 'y')]
  found = answers(m=[*three, ('q', '7')], n=[*two, ('q', 'z')])
  assert texts(responses.pairs(found)) == [('0', 'x'), ('1', 'y'), ('7', 'z')]
  assert "m and n differ in the number of responses on 1 prompts, such as 'p' (3 and 2): 1" in (
    caplog.text
  )


def test_equal_responses_are_not_asked_and_counted(caplog):
  rows = [('p', 'same'), ('p', 'same'), ('q', 'x'), ('q', 'x')]
  other = [('p', 'same'), ('p', 'same'), ('q', 'y'), ('q', 'y')]
  assert responses.pairs(answers(m=rows, n=other)) == [Pair('q', 'm', 'n', 'x', 'y')]
  assert '2 pairs of equal responses are not asked' in caplog.text


@pytest.mark.parametrize(
  ('found', 'message'),
  [
    (answers(m=[('p', 'x')]), 'two labels, got m: name another'),
    ({}, 'two labels, got none'),
    (answers(m=[('p', 'x')], n=[('q', 'y')]), r'labels m, n \(0 pairs are equal\)'),
    (answers(m=[('p', 'x')], n=[('p', 'x')]), r'labels m, n \(1 pairs are equal\)'),
  ],
)
def test_nothing_to_compare(found, message):
  with pytest.raises(ValueError, match=message):
    responses.pairs(found)


def write(path, *rows):
  path.write_text('\n'.join(map(json.dumps, rows)))
  return str(path)


def test_files_of_one_label_and_of_several(tmp_path):
  one = write(tmp_path / 'one', {'prompt': 'p', 'response': 'x'}, {'prompt': 'p', 'response': ''})
  more = write(tmp_path / 'more=1', {'prompt': 'q', 'response': 'y', 'id': 7})
  sample = {'m': {'text': 'v', 'preference': 0.5}, 'n': 'w'}
  samples = write(tmp_path / 'samples.jsonl', {'prompt': 'p', 'responses': sample})
  assert responses.read([f'one={one}', f'one={more}', samples]) == answers(
    one=[('p', 'x'), ('p', ''), ('q', 'y', '7')], m=[('p', 'v')], n=[('p', 'w')]
  )


def test_label_of_two_files_is_refused(tmp_path):
  one = write(tmp_path / 'one', {'prompt': 'p', 'response': 'x'})
  samples = write(tmp_path / 'samples.jsonl', {'prompt': 'p', 'responses': {'m': 'v'}})
  for items in ([f'm={one}', samples], [samples, f'm={one}'], [samples, samples], [f'm={one}'] * 2):
    with pytest.raises(ValueError, match=r"label 'm' is in .* and in .*give one another name"):
      responses.read(items)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"prompt": "p"}', "one:1: field 'response' must be a string, got NoneType"),
    ('{"prompt": " ", "response": "x"}', "one:1: field 'prompt' is empty"),
    ('{"prompt": "p", "response": "\\ud800"}', 'half of a character'),
    ('{"prompt": "p", "responses": ["x"]}', "field 'responses' must be"),
    ('{"prompt": "p", "responses": {"m": {}}}', "field 'responses.m.text' must be a string"),
  ],
)
def test_malformed_row_is_named(tmp_path, line, message):
  (tmp_path / 'one').write_text(line)
  label = '' if 'responses' in line else 'm='
  with pytest.raises(ValueError, match=message):
    responses.read([f'{label}{tmp_path / "one"}'])


@pytest.mark.parametrize(
  ('item', 'message'),
  [
    ('m=none', 'No file none: write LABEL=FILE, or a samples.jsonl of'),
    ('runs/samples.jsonl', 'No file runs/samples.jsonl: .*`nlhf demo`'),
  ],
)
def test_missing_file_is_named(item, message):
  with pytest.raises(FileNotFoundError, match=message):
    responses.read([item])
