"""`nlhf judge`, as a user calls it, against a stub of a server."""

import collections
import errno
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nlhf_jax.cli import judge, main
from nlhf_jax.runtime import run_lock
from nlhf_jax.votes import files, table, vote_file
from tests.judges import llm_stub
from tests.judges.llm_stub import KEY, Reply, Stub

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_PROMPTS = 10
ALWAYS_FIRST = lambda number, body: Reply('A')


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture
def answered(tmp_path):
  """Flags of responses by three labels, of which lengths say who is better: long, short, and as short but other."""
  texts = {'sft': 'word', 'nash': 'word word word', 'rlhf': 'drow'}
  result = []
  for label, text in texts.items():
    rows = [{'prompt': f'prompt {i}', 'response': f'{text} {i}'} for i in range(NUM_PROMPTS)]
    result.append(f'{label}={write(tmp_path / f"{label}.jsonl", rows)}')
  return result


def arguments(stub, tmp_path, responses, *flags):
  output = f'--output={tmp_path / "out" / "votes.jsonl"}'
  return ['judge', '--responses', *responses, f'--base_url={stub.url}', output, *flags]


def run(capsys, stub, tmp_path, responses, *flags):
  """Status, what was shown, and the votes."""
  model = () if any(flag.startswith('--model') for flag in flags) else ('--model=m',)
  status = main.main(arguments(stub, tmp_path, responses, *model, *flags))
  path = tmp_path / 'out' / 'votes.jsonl'
  votes = list(files.read(path, table.checked)) if path.exists() else []
  shown = capsys.readouterr()
  everything = ''.join(x.read_text() for x in (tmp_path / 'out').rglob('*') if x.is_file())
  assert KEY not in shown.out + shown.err + everything
  return status, shown, votes


def test_second_writer_to_the_same_votes_is_refused(capsys, tmp_path, answered):
  """By `nlhf annotate` as by `nlhf judge`, before anything is asked or written."""
  output = tmp_path / 'out' / 'votes.jsonl'
  with Stub(ALWAYS_FIRST) as stub, run_lock.file_held(output):
    assert main.main(arguments(stub, tmp_path, answered, '--model=m')) == 2
    assert main.main(['annotate', '--responses', *answered, f'--output={output}', '--port=0']) == 2
    assert not stub.calls
    assert not output.exists()
  lines = capsys.readouterr().err.splitlines()
  assert len([x for x in lines if f'{output} is in use: process {os.getpid()}' in x]) == 2


@pytest.mark.parametrize('name', ['votes.csv', 'votes.json', 'votes'])
def test_output_that_is_no_jsonl_is_refused_before_anything_is_asked(
  answered, capsys, name, tmp_path
):
  with Stub(ALWAYS_FIRST) as stub:
    argv = arguments(stub, tmp_path, answered, '--model=m')
    assert main.main([*argv, f'--output={tmp_path / "out" / name}']) == 2
  assert 'name a file that ends in .jsonl' in capsys.readouterr().err
  assert not stub.calls and not (tmp_path / 'out').exists()


def test_file_of_another_kind_is_refused_and_left(answered, capsys, tmp_path):
  """Votes as a JSON array, of which a vote a line: none is lost."""
  (tmp_path / 'out').mkdir()
  output = tmp_path / 'out' / 'votes.jsonl'
  content = '[{"a": "x", "b": "y", "verdict": "a"},\n{"a": "x", "b": "y", "verdict": "b"}]'
  output.write_text(content)
  with Stub(ALWAYS_FIRST) as stub:
    assert main.main(arguments(stub, tmp_path, answered, '--model=m')) == 2
  assert 'votes.jsonl:1: not JSON' in capsys.readouterr().err
  assert not stub.calls and output.read_text() == content
  assert [x.name for x in (tmp_path / 'out').iterdir() if x.is_file()] == ['votes.jsonl']


def test_full_disk_costs_no_vote_that_was_counted(answered, capsys, monkeypatch, tmp_path):
  """It ends in one line, no half of a vote stays, and the same command goes on."""
  write, count = vote_file._write, itertools.count(1)

  def full(file, content):
    if next(count) > 7:
      file.write(content[:20])
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(file, content)

  monkeypatch.setattr(vote_file, '_write', full)
  with Stub(llm_stub.longer) as stub:
    status, shown, votes = run(capsys, stub, tmp_path, answered)
    assert status == 2 and len(votes) == 7
    (line,) = (x for x in shown.err.splitlines() if 'No space left on device' in x)
    assert 'votes.jsonl' in line
    assert not list(tmp_path.rglob('*.lock'))
    monkeypatch.setattr(vote_file, '_write', write)
    status, _, votes = run(capsys, stub, tmp_path, answered)
  assert (status, len(votes)) == (0, 3 * 2 * NUM_PROMPTS)
  assert stub.calls == 3 * 2 * NUM_PROMPTS  # What was answered is kept.


def test_votes_of_every_pair_in_both_orders(answered, capsys, tmp_path):
  with Stub(llm_stub.longer) as stub:
    status, shown, votes = run(capsys, stub, tmp_path, answered)
  assert (status, len(votes), stub.calls) == (0, 3 * 2 * NUM_PROMPTS, 3 * 2 * NUM_PROMPTS)
  counts = collections.Counter((x['a'], x['b'], x['order'], x['verdict']) for x in votes)
  expected = {('nash', 'sft'): 'a', ('rlhf', 'sft'): 'tie', ('nash', 'rlhf'): 'a'}
  assert counts == {
    (*pair, order, verdict): NUM_PROMPTS
    for (pair, verdict), order in itertools.product(expected.items(), ('ab', 'ba'))
  }
  assert {x['judge'] for x in votes} == {'m'}
  assert all(x['response_a'].startswith('word word') for x in votes if x['a'] == 'nash')
  assert abs(votes[0]['time'] - time.time()) < 60
  assert '60 votes in' in shown.out
  assert 'Failed judgements: none' in shown.out
  assert '0.000 of 20' in shown.out  # No flips.


def test_judge_of_the_first_answer_has_an_order_bias_of_one(answered, capsys, tmp_path):
  """Half the votes for each, and every pair flips."""
  with Stub(ALWAYS_FIRST) as stub:
    _, shown, votes = run(capsys, stub, tmp_path, answered[:2])
  assert collections.Counter(x['verdict'] for x in votes) == {'a': NUM_PROMPTS, 'b': NUM_PROMPTS}
  assert '1.000 [0.832, 1.000]' in shown.out  # 20 of 20: 0.025 ** (1/20) = 0.832.
  assert '1.000 of 10' in shown.out


def test_log_probs_are_probabilities_of_a(answered, capsys, tmp_path):
  reply = Reply('A', log_probs={'A': -0.2, 'B': -2.2})
  with Stub(lambda number, body: reply) as stub:
    _, _, votes = run(capsys, stub, tmp_path, answered[:2])
  by_order = collections.defaultdict(set)
  for x in votes:
    by_order[x['order']].add(round(x['probability'], 4))
  p = round(1 / (1 + 2.718281828**-2), 4)
  assert by_order == {'ab': {p}, 'ba': {round(1 - p, 4)}}


def test_panel_and_its_agreement(answered, capsys, tmp_path):
  """Two judges by length, and one against it."""

  def behave(number, body):
    text = llm_stub.longer(number, body).text
    return Reply({'A': 'B', 'B': 'A'}.get(text, text) if body['model'] == 'contrary' else text)

  models = '--model=one', '--model=two', '--model=contrary'
  with Stub(behave) as stub:
    _, shown, votes = run(capsys, stub, tmp_path, answered[:2], *models)
  assert {x['judge'] for x in votes} == {'one', 'two', 'contrary'}
  assert shown.out.count('0.500 of') == 2  # Each of the two agrees with the other.


def test_samples_of_a_tournament(capsys, tmp_path):
  rows = [
    {
      'prompt': f'p{i}',
      'responses': {'SFT': {'text': 'a', 'preference': 0.4}, 'Nash-MD': {'text': 'bb'}},
    }
    for i in range(3)
  ]
  samples = str(write(tmp_path / 'samples.jsonl', rows))
  with Stub(llm_stub.longer) as stub:
    _, _, votes = run(capsys, stub, tmp_path, [samples])
  assert [(x['a'], x['b'], x['verdict']) for x in votes] == [('Nash-MD', 'SFT', 'a')] * 6


def test_uneven_and_equal_responses_are_left_out(capsys, tmp_path):
  """As on the page of `nlhf annotate`: the n-th meets the n-th, and equal ones are not asked."""
  rows = lambda *texts: [{'prompt': 'p', 'response': text} for text in texts]
  one, two = write(tmp_path / '1', rows('x', 'same', 'z')), write(tmp_path / '2', rows('y', 'same'))
  with Stub(ALWAYS_FIRST) as stub:
    _, _, votes = run(capsys, stub, tmp_path, [f'a={one}', f'b={two}'])
  assert stub.calls == 2
  assert {(x['response_a'], x['response_b']) for x in votes} == {('x', 'y')}


def test_labels_named_in_another_order_are_not_asked_again(answered, capsys, tmp_path):
  """And votes of a file that has the labels the other way round count as done."""
  path = tmp_path / 'out' / 'votes.jsonl'
  exchange = {'a': 'b', 'b': 'a', 'response_a': 'response_b', 'response_b': 'response_a'}
  with Stub(ALWAYS_FIRST) as stub:
    _, _, votes = run(capsys, stub, tmp_path, answered[:2])
    swapped = [
      {exchange.get(name, name): value for name, value in row.items()}
      | {'order': row['order'][::-1], 'verdict': exchange[row['verdict']]}
      for row in votes
    ]
    write(path, swapped)
    _, _, votes = run(capsys, stub, tmp_path, answered[1::-1])
  assert (len(votes), stub.calls) == (20, 20)


def test_failures_are_no_votes_and_are_counted(answered, capsys, tmp_path):
  """One prompt of ten; asking again asks for those alone, and the cache has their answers."""
  behave = lambda number, body: Reply('Hm.' if 'prompt 3\n' in llm_stub.question(body) else 'A')
  with Stub(behave) as stub:
    flags = '--max_failed_share=0.3'
    status, shown, votes = run(capsys, stub, tmp_path, answered[:2], flags)
    assert (status, len(votes), stub.calls) == (0, 18, 20)
    assert 'Failed judgements: malformed answer 2' in shown.out
    assert not any(x['prompt'] == 'prompt 3' for x in votes)
    _, shown, votes = run(capsys, stub, tmp_path, answered[:2], flags)
    assert (len(votes), stub.calls) == (18, 20)
    assert '0 calls, 0 tokens; 2 answers from the cache' in shown.out


def test_failures_of_a_second_run_are_a_share_of_all_votes(capsys, tmp_path):
  """12 of 120 prompts fail, and their 24 judgements are all that the second run asks for."""
  rows = lambda text: [{'prompt': f'prompt {i}', 'response': f'{text} {i}'} for i in range(120)]
  one, two = (write(tmp_path / name, rows(name)) for name in ('one', 'two'))
  behave = lambda number, body: Reply('Hm.' if '9\n\n\n' in body_text(body) else 'A')
  body_text = lambda body: llm_stub.question(body).replace('</prompt>', '')
  with Stub(behave) as stub:
    for _ in range(2):
      flags = '--max_failed_share=0.2', '--concurrency=2'
      status, shown, votes = run(capsys, stub, tmp_path, [f'a={one}', f'b={two}'], *flags)
      assert (status, len(votes), stub.calls) == (0, 216, 240), shown.err
      assert 'malformed answer 24' in shown.out


def test_too_many_failures_stop_with_the_reason(answered, capsys, tmp_path):
  behave = lambda number, body: Reply('Hm.' if number % 3 == 0 else 'A')
  with Stub(behave) as stub:
    status, shown, votes = run(capsys, stub, tmp_path, answered)
  assert status == 2
  assert len(shown.err.strip().splitlines()[-1:]) == 1
  last = shown.err.strip().splitlines()[-1]
  assert 'judgements failed, more than 10%; most often (' in last
  assert "by malformed answer: 'Hm.' is none of A, B, C." in last
  assert 0 < len(votes) < 30
  assert stub.calls < 40


def test_no_vote_at_all_is_an_error(answered, capsys, tmp_path):
  with Stub(lambda number, body: Reply('Hm.')) as stub:
    flags = '--max_failed_share=1'
    status, shown, _ = run(capsys, stub, tmp_path, answered[:2], flags)
  assert status == 2
  assert 'No judgement succeeded: malformed answer 20' in shown.err


def test_budget_stops_and_a_second_run_goes_on(answered, capsys, tmp_path):
  with Stub(ALWAYS_FIRST) as stub:
    status, shown, votes = run(capsys, stub, tmp_path, answered[:2], '--max_calls=7')
    assert (status, len(votes), stub.calls) == (2, 7, 7)
    assert 'The budget of 7 calls is spent: raise max_calls to go on. 7 votes are in' in shown.err
    status, _, votes = run(capsys, stub, tmp_path, answered[:2])
    assert (status, len(votes), stub.calls) == (0, 20, 20)
  assert max(stub.answered.values()) == 1


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT])
def test_run_that_was_ended_repeats_no_call(answered, capsys, tmp_path, number):
  """While four calls are under way; whatever was answered is asked no more, and the votes are all there once."""

  def hanging(number, body):
    if number > 8:
      stub.wait(30)
      return Reply(close=True)
    return Reply('A')

  cache = tmp_path / 'out' / 'judge_cache' / 'answers.jsonl'
  with Stub(hanging) as stub:
    argv = arguments(stub, tmp_path, answered[:2], '--model=m', '--concurrency=4')
    environment = {
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
    }
    log = tmp_path / 'log'
    process = subprocess.Popen(
      [sys.executable, '-m', 'nlhf_jax', *argv],
      env=environment,
      stderr=log.open('w'),
    )
    deadline = time.monotonic() + 60
    while stub.calls < 12 or not cache.exists() or cache.read_bytes().count(b'\n') < 8:
      assert time.monotonic() < deadline
      assert process.poll() is None
      time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
    assert 'Traceback' not in log.read_text()
    output = tmp_path / 'out' / 'votes.jsonl'
    # As if it had died within a line, and within an answer.
    output.write_bytes(output.read_bytes()[:-9])
    cache.write_bytes(cache.read_bytes() + b'{"key": "')
    stub.stopped.set()
    stub.behave = ALWAYS_FIRST
    status, _, votes = run(capsys, stub, tmp_path, answered[:2])
  assert (status, len(votes)) == (0, 20)
  assert len({(x['order'], x['prompt']) for x in votes}) == 20
  assert len(stub.answered) == 20
  assert max(stub.answered.values()) == 1


def test_last_vote_without_the_end_of_its_line_counts(answered, capsys, tmp_path):
  """An editor has taken it off; nothing is asked again, nothing lost."""
  with Stub(ALWAYS_FIRST) as stub:
    run(capsys, stub, tmp_path, answered[:2])
    output = tmp_path / 'out' / 'votes.jsonl'
    before = output.read_bytes()
    output.write_bytes(before[:-1])
    calls = stub.calls
    run(capsys, stub, tmp_path, answered[:2])
    assert stub.calls == calls
  assert output.read_bytes() == before


def test_votes_by_other_settings_are_not_mixed(answered, capsys, tmp_path):
  with Stub(ALWAYS_FIRST) as stub:
    run(capsys, stub, tmp_path, answered[:2])
    flags = '--template=summary'
    status, shown, _ = run(capsys, stub, tmp_path, answered[:2], flags)
  assert status == 2
  assert 'holds votes by other settings: its template is not the one given' in shown.err
  assert stub.calls == 20


def test_own_template_and_parameters(answered, capsys, tmp_path):
  template = tmp_path / 'own.txt'
  template.write_text('answers: yes no\n{prompt} // {first} // {second}\nIs the first better?\n')
  parameters = '--parameters={"max_tokens": 1, "top_logprobs": null}'
  with Stub(lambda number, body: Reply('no')) as stub:
    flags = f'--template={template}', parameters
    _, _, votes = run(capsys, stub, tmp_path, answered[:2], *flags)
  # Calls arrive in any order.
  body = min(stub.bodies, key=llm_stub.question)
  assert llm_stub.question(body) == 'prompt 0 // word 0 // word word word 0\nIs the first better?'
  assert {k: v for k, v in body.items() if k != 'messages'} == {
    'model': 'm',
    'temperature': 0,
    'max_tokens': 1,
    'logprobs': True,
  }
  assert {(x['order'], x['verdict']) for x in votes} == {('ab', 'b'), ('ba', 'a')}


def test_flips_are_of_pairs_with_two_winners():
  row = lambda order, verdict=None, p=None, judge='m': {
    'judge': judge,
    'order': order,
    'verdict': verdict,
    'probability': p,
    **dict.fromkeys(('prompt', 'a', 'b', 'response_a', 'response_b'), 'x'),
  }
  assert judge.flips([row('ab', 'a'), row('ba', 'b')]) == {'m': (1, 1)}
  assert judge.flips([row('ab', p=0.8), row('ba', p=0.6)]) == {'m': (0, 1)}
  assert judge.flips([row('ab', 'a'), row('ba', 'tie')]) == {}
  assert judge.flips([row('ab', 'a'), row('ba', 'b', judge='n')]) == {}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: [*x[:1]], 'A comparison needs two labels, got sft'),
    (lambda x: [x[0], 'b=nowhere.jsonl'], 'No file nowhere.jsonl'),
    (lambda x: [x[0], 'nowhere'], 'No file nowhere: write LABEL=FILE'),
    (lambda x: [x[0].partition('=')[2]], "sft.jsonl:1: field 'responses' must be"),
  ],
)
def test_mistake_is_one_line(change, message, answered, capsys, tmp_path):
  with Stub(ALWAYS_FIRST) as stub:
    (tmp_path / 'out').mkdir()
    status, shown, _ = run(capsys, stub, tmp_path, change(answered))
  assert (status, stub.calls) == (2, 0)
  assert message in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--parameters=[1]'], '--parameters must be a JSON object'),
    (['--parameters=[]'], '--parameters must be a JSON object'),
    (['--parameters=[["model", "B"]]'], '--parameters must be a JSON object'),
    (['--parameters=null'], '--parameters must be a JSON object'),
    (['--parameters={"model": "B"}'], "parameters must not have 'model', got 'B'"),
    (['--parameters={"messages": []}'], "parameters must not have 'messages'"),
    (['--parameters={"stream": true}'], "parameters must not have 'stream'"),
    (['--parameters={"n": 2}'], "parameters must not have 'n'"),
    (['--parameters={"n": null}'], "parameters must not have 'n'"),
    (['--parameters={'], '--parameters must be a JSON object'),
    (['--template=nothing'], "No template 'nothing'"),
    (['--concurrency=0'], '--concurrency must be a whole number of at least 1, got 0.'),
    (['--model=m', '--model=m'], 'models must be one or several different names'),
    (['--max_failed_share=2'], '--max_failed_share must be a number from 0 to 1, got 2.0.'),
  ],
)
def test_wrong_flag_is_one_line(flags, message, answered, capsys, tmp_path):
  with Stub(ALWAYS_FIRST) as stub:
    status, shown, _ = run(capsys, stub, tmp_path, answered, *flags)
  assert (status, stub.calls) == (2, 0)
  assert message in shown.err
