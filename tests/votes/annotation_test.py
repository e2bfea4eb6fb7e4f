"""Tasks and storage of the annotation page: what is asked, and what is in the file when."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from nlhf_jax.votes import annotation, readers, table
from nlhf_jax.votes import responses as votes_responses
from nlhf_jax.votes.responses import Response

RESPONSES = {
  'nash': {'p1': ['n1'], 'p2': ['n2'], 'p3': ['n3'], 'p4': ['n4']},
  'sft': {'p1': ['s1'], 'p2': ['s2'], 'p3': ['s3'], 'p4': ['s4']},
  'rlhf': {'p1': ['r1'], 'p2': ['r2'], 'p3': ['n3']},
}
# 3 pairs on p1 and p2, 2 on p3 (nash and rlhf agree), 1 on p4.
NUM_TASKS = 9


def make_tasks(by_label):
  """Of responses by label and prompt."""
  found = {
    label: [Response(prompt, text) for prompt, texts in answered.items() for text in texts]
    for label, answered in by_label.items()
  }
  return votes_responses.pairs(found)


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'votes.jsonl'


@pytest.fixture
def start(path):
  """Starts anew on the same file, as a restart does."""
  started = []

  def make(seed=0, responses=RESPONSES):
    for earlier in started:
      earlier.close()
    started.append(annotation.Annotations(path, make_tasks(responses), seed))
    return started[-1]

  yield make
  for earlier in started:
    earlier.close()


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def vote(votes, voter, verdict):
  task = votes.question(voter).task
  assert votes.vote(voter, task, verdict)
  return task


def answer_all(votes, voter):
  """Prefers the response that comes first in the alphabet, wherever it stands."""
  asked = []
  while question := votes.question(voter):
    first, second = question.texts()
    asked.append(question)
    votes.vote(voter, question.task, 'first' if first < second else 'second')
  return asked


def test_vote_is_on_disk_and_says_what_was_preferred(path, start):
  votes = start(seed=3)
  for number, question in enumerate(answer_all(votes, 'Ada'), start=1):
    row = rows(path)[number - 1]
    best = min(question.texts())
    assert row[f'response_{row["verdict"]}'] == best
    assert row[f'response_{row["order"][0]}'] == question.texts()[0]
    assert (row['voter'], row['judge'], row['seed']) == ('Ada', 'human', 3)
    assert {name for name in table.FIELDS if name in row} == set(row)
  assert number == NUM_TASKS


def test_orders_are_seeded_balanced_and_each_annotators_own():
  prompts = {f'p{n}': ['x'] for n in range(400)}
  tasks = make_tasks({'m': prompts, 'n': {p: ['y'] for p in prompts}})
  asked = {}
  for key in (('Ada', 0), ('Bo', 0), ('Ada', 1), ('Ada', 0, 'again')):
    votes = annotation.Annotations.__new__(annotation.Annotations)
    votes._seed, votes._order = key[1], {}
    votes._hashes = {task: table.stable_hash(json.dumps(task)) for task in tasks}
    asked[key] = [(task, votes._shown(key[0], task)) for task in votes._tasks(key[0])]
  assert asked['Ada', 0] == asked['Ada', 0, 'again']
  for one, other in ((('Ada', 0), ('Bo', 0)), (('Ada', 0), ('Ada', 1))):
    assert [t for t, _ in asked[one]] != [t for t, _ in asked[other]]
    same = sum(dict(asked[one])[task] == order for task, order in asked[other])
    assert 150 < same < 250
  for orders in asked.values():
    assert sorted(t for t, _ in orders) == sorted(tasks)
    assert 150 < sum(order == 'ab' for _, order in orders) < 250


def test_every_annotator_gets_every_task_once_and_agreement_is_measured(path, start):
  votes = start()
  for voter in ('Ada', 'Bo'):
    asked = answer_all(votes, voter)
    assert len({q.task for q in asked}) == NUM_TASKS
    assert votes.progress(voter) == (NUM_TASKS, 0, NUM_TASKS)
    assert not votes.vote(voter, asked[0].task, 'tie')
  assert len(rows(path)) == votes.num_votes() == 2 * NUM_TASKS
  of_ada, of_bo = (
    {(r['prompt'], r['a'], r['b']): r['verdict'] for r in rows(path) if r['voter'] == voter}
    for voter in ('Ada', 'Bo')
  )
  assert of_ada == of_bo


def test_restart_asks_only_what_has_no_vote(path, start):
  votes = start()
  done = [vote(votes, 'Ada', 'first') for _ in range(4)]
  expected = votes.question('Ada')
  # The next vote was being written when the power went.
  with path.open('ab') as file:
    file.write(b'{"prompt": "p1", "a": "na')
  votes = start(responses=dict(reversed(RESPONSES.items())))
  assert len(rows(path)) == 4
  assert votes.question('Ada') == expected
  assert not {q.task for q in answer_all(votes, 'Ada')} & set(done)
  assert len({json.dumps([r[k] for k in ('prompt', 'a', 'b')]) for r in rows(path)}) == NUM_TASKS
  assert len(answer_all(votes, 'Bo')) == NUM_TASKS


def test_vote_with_labels_swapped_is_known(path, start):
  task = vote(start(), 'Ada', 'both_bad')
  (row,) = rows(path)
  row |= {'a': row['b'], 'b': row['a'], 'order': 'ab', 'verdict': 'a'}
  row |= {'response_a': row['response_b'], 'response_b': row['response_a']}
  path.write_text(json.dumps(row) + '\n')
  question, verdict = start().last('Ada')
  assert (question.task, verdict) == (task, 'first')


def test_undo_takes_only_ones_own_last_vote(path, start):
  other = '{"a": "x", "b": "y",  "verdict": "tie"}\n'
  path.write_text(other)
  votes = start()
  first = vote(votes, 'Ada', 'first')
  kept = path.read_bytes()
  second = vote(votes, 'Ada', 'second')
  vote(votes, 'Bo', 'tie')
  votes.undo('Ada')
  assert path.read_bytes().startswith(kept) and path.read_text().startswith(other)
  assert [row.get('voter') for row in rows(path)] == [None, 'Ada', 'Bo']
  assert votes.question('Ada').task == second
  vote(votes, 'Ada', 'both_bad')
  assert rows(path)[-1]['verdict'] == 'both_bad'
  votes = start()
  for expected in (second, first):
    votes.undo('Ada')
    assert votes.question('Ada').task == expected
  votes.undo('Ada')
  assert [row.get('voter') for row in rows(path)] == [None, 'Bo']
  assert sorted(os.listdir(path.parent)) == ['votes.jsonl']


def test_skipped_tasks_come_back_and_leave_no_row(path, start):
  votes = start()
  task = votes.question('Ada').task
  votes.skip('Ada', task)
  assert votes.question('Ada').task != task
  assert votes.last('Ada')[1] == 'skip'
  votes.undo('Ada')
  assert votes.question('Ada').task == task
  votes.skip('Ada', task)
  answer_all(votes, 'Ada')
  assert votes.progress('Ada') == (NUM_TASKS - 1, 1, NUM_TASKS)
  votes.ask_skipped('Ada')
  assert votes.question('Ada').task == task
  votes.vote('Ada', task, 'tie')
  assert [row['verdict'] for row in rows(path)].count('tie') == 1


def test_vote_that_cannot_be_written_leaves_the_file_and_is_asked_again(path, start, monkeypatch):
  votes = start()
  vote(votes, 'Ada', 'first')
  before, question = path.read_bytes(), votes.question('Ada')

  def full(_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
      votes.vote('Ada', question.task, 'first')
    with pytest.raises(OSError, match='No space'):
      votes.undo('Ada')
  assert path.read_bytes() == before and os.listdir(path.parent) == ['votes.jsonl']
  assert votes.question('Ada') == question
  vote(votes, 'Ada', 'first')
  assert len(rows(path)) == 2


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('votes.jsonl', '{"a": "x", "b": "x", "verdict": "a"}\n', r'votes.jsonl:1: .*both'),
    ('votes.jsonl', 'Dear reader,\nthis is no table.', r'votes.jsonl:1: not JSON'),
    ('votes.csv', 'a,b,verdict\n', r'ends in .jsonl'),
  ],
)
def test_file_of_something_else_is_refused_and_kept(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    annotation.Annotations(tmp_path / name, make_tasks(RESPONSES))
  assert (tmp_path / name).read_text() == content


def test_votes_train_alike_from_the_page_jsonl_and_parquet(path, start, tmp_path):
  votes = start(
    responses=RESPONSES | {'café': {'p1': ['line\nline “é” \u2028<b>', ''], 'p4': ['']}}
  )
  for voter, verdicts in (('Ada', ('first', 'tie')), ('Bo', ('second', 'both_bad'))):
    for number in range(votes.progress(voter).total):
      vote(votes, voter, verdicts[number % 2])
  jsonl, parquet = tmp_path / 'copy.jsonl', tmp_path / 'copy.parquet'
  content = [table.checked(json.loads(line)) for line in path.read_bytes().split(b'\n') if line]
  jsonl.write_text('\n'.join(map(json.dumps, content)))
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), parquet)
  expected = list(readers.comparisons(path))
  assert len(expected) == len(content) > 20
  assert {row['preference'] for row in expected} == {0.0, 0.5, 1.0}
  assert list(readers.comparisons(jsonl)) == list(readers.comparisons(parquet)) == expected


def test_names_have_one_spelling():
  assert annotation.annotator_name('  Ada\u0301   L ') == 'Ad\u00e1 L'
  for name in ('', '  ', 'x' * 61, 'a\x00b', 'a\u202eb'):
    with pytest.raises(ValueError, match='A name has'):
      annotation.annotator_name(name)
