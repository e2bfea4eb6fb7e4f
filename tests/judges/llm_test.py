"""LLM judges against a stub of a server; it counts what it is asked, and how many calls at a time."""

import ast
import asyncio
import math
import pathlib
import time

import numpy as np
import pytest

from nlhf_jax.judges import llm, llm_answers, llm_cache, llm_client, llm_prompts, llm_settings
from nlhf_jax.types import PreferenceFn, Prompts
from tests.judges import llm_stub
from tests.judges.llm_stub import KEY, Reply, Stub

ALWAYS_FIRST = lambda number, body: Reply('A')


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv('OPENAI_API_KEY', KEY)
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')


async def no_sleep(seconds: float) -> None:
  await asyncio.sleep(0)


def make_panel(stub, *, models=('m',), sleep=no_sleep, cache_dir=None, template='chat', **settings):
  parts = {}
  for part in (llm_settings.Server, llm_settings.Budget, llm.FailureLimit):
    own = {name: settings.pop(name) for name in part._fields if name in settings}
    parts[part] = own
  assert not settings
  return llm.Panel(
    models,
    template,
    server=llm_settings.Server(stub.url, **parts[llm_settings.Server]),
    budget=llm_settings.Budget(**parts[llm_settings.Budget]),
    failures=llm.FailureLimit(**parts[llm.FailureLimit]),
    cache_dir=cache_dir,
    sleep=sleep,
  )


def pairs(count):
  return [llm.TextPair(f'prompt {i}', 'x' * (i % 3 + 1), 'y' * 2) for i in range(count)]


def preferences(judgements):
  return [x.preference for x in judgements]


@pytest.mark.parametrize('name', ['model', 'messages', 'stream', 'n'])
def test_parameters_that_ask_something_else_are_refused(name):
  """Votes would be recorded as another model's, or of another question, than was asked."""
  with pytest.raises(ValueError, match=f"parameters must not have '{name}'"):
    llm.Panel(['A'], parameters={name: 'B', 'temperature': 0})


# Answers.


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('A', 1.0),
    (' B.\n', 0.0),
    ('**(C)**', 0.5),
    ('[[A]]', 1.0),
    ('The better response is B.', 0.0),
    ('Answer: C', 0.5),
    ('Response A is longer, B is right.\n\nVerdict: **B**', 0.0),
    ('<think>A, surely A.</think>\nB', 0.0),
    ('', None),
    ('D', None),
    ('a', None),
    ('AB', None),
    ('A or B', None),
    ('A good question', None),
    ('A is better than B', None),
    ('The answer is not A', None),
    ('<think>A', None),
    ('Both have merits.\nA', None),
    ('I cannot compare these.', None),
  ],
)
def test_answers_are_read_strictly(text, expected):
  answer = llm_answers.Answer(text, (), 1, 0.0)
  found = llm_prompts.read_answer(answer, ('A', 'B', 'C'))
  assert (None if found is None else found.preference) == expected


def test_log_probs_of_the_letters_give_the_preference():
  """P = (p(A) + p(C)/2) / (p(A) + p(B) + p(C)), over all spellings of a letter; other tokens count for nothing."""
  shares = {'A': 0.3, ' A': 0.1, 'B': 0.2, 'C': 0.2, 'The': 0.1, 'a': 0.1, 'AB': 0.0001}
  position = llm_answers.Position('A', tuple((t, math.log(p)) for t, p in shares.items()))
  answer = llm_answers.Answer('Answer: A', (llm_answers.Position('Answer', ()), position), 1, 0.0)
  found = llm_prompts.read_answer(answer, ('A', 'B', 'C'))
  assert found.from_log_probs
  assert found.preference == pytest.approx((0.4 + 0.1) / 0.8)


def test_log_probs_do_not_save_a_malformed_answer():
  position = llm_answers.Position('A', (('A', -0.1),))
  answer = llm_answers.Answer('A good question', (position,), 1, 0.0)
  assert llm_prompts.read_answer(answer, ('A', 'B')) is None


# Templates.


def test_texts_are_inserted_as_they_are():
  template = llm_prompts.parse('t', 'answers: 1 2\n{prompt}|{first}|{second}|{x} {{}}')
  filled = template.fill('{first} {0} %s \\1', '{second}', '{prompt}')
  assert filled == '{first} {0} %s \\1|{second}|{prompt}|{x} {{}}'
  assert template.answers == ('1', '2')


def test_summary_template_is_the_papers():
  """The words of the preference model's template (Munos et al., 2024)."""
  source = (
    pathlib.Path(llm.__file__).parents[1] / 'data' / 'prompts.py'
  )  # Importing it takes TensorFlow.
  (words,) = (
    ast.literal_eval(node.value)
    for node in ast.parse(source.read_text()).body
    if isinstance(node, ast.Assign) and node.targets[0].id == 'PREFERENCE'
  )
  template = llm_prompts.load('summary')
  assert template.pieces[::2] == words
  assert template.pieces[1::2] == ('prompt', 'first', 'second')
  assert template.answers == ('1', '2')


@pytest.mark.parametrize('name', llm_prompts.names())
def test_templates_of_the_package_load(name):
  assert len(llm_prompts.load(name).answers) in (2, 3)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{prompt} {first}', r'own.txt: the template has no \{second\}'),
    ('answers: A\n{prompt}{first}{second}', "two or three different answers, got 'A'"),
    ('answers: A A\n{prompt}{first}{second}', 'two or three different'),
    ('answers: A better\n{prompt}{first}{second}', "'better' is no answer"),
  ],
)
def test_malformed_template_is_refused(text, message, tmp_path):
  file = tmp_path / 'own.txt'
  file.write_text(text)
  with pytest.raises(ValueError, match=message):
    llm_prompts.load(str(file))


def test_missing_template_names_those_there_are():
  with pytest.raises(FileNotFoundError, match=r"No template 'chta': .* chat, summary"):
    llm_prompts.load('chta')


# Judging.


def test_judge_that_follows_the_texts():
  """Longer wins whichever is shown first; equal lengths tie."""
  with Stub(llm_stub.longer) as stub:
    panel = make_panel(stub)
    found = panel.judge_pairs(pairs(3))
  assert [preferences(x) for x in found] == [[0, 0], [0.5, 0.5], [1, 1]]
  assert all(x.time > 1e9 for judgements in found for x in judgements)
  assert stub.authorizations == {f'Bearer {KEY}'}


def test_judge_of_the_first_answer_is_a_half_in_the_mean():
  with Stub(ALWAYS_FIRST) as stub:
    found = make_panel(stub).judge_pairs(pairs(4))
  for judgements in found:
    assert preferences(judgements) == [1, 0]
    assert llm.mean_preference(judgements) == 0.5


def test_log_probs_of_a_server():
  """Position bias 3/4 for the first shown: the mean over the orders is 1/2, each order is not."""
  reply = Reply('A', log_probs={'A': math.log(0.6), 'B': math.log(0.2), 'Hm': math.log(0.2)})
  with Stub(lambda number, body: reply) as stub:
    ((one, other),) = make_panel(stub).judge_pairs(pairs(1))
  assert one.from_log_probs
  assert preferences([one, other]) == pytest.approx([0.75, 0.25])


def test_panel_of_several_models():
  behave = lambda number, body: Reply(body['model'])
  with Stub(behave) as stub:
    (found,) = make_panel(stub, models=('A', 'B')).judge_pairs(pairs(1))
  assert [(x.question.model, x.question.order, x.preference) for x in found] == [
    ('A', 'ab', 1),
    ('A', 'ba', 0),
    ('B', 'ab', 0),
    ('B', 'ba', 1),
  ]


def test_calls_are_made_at_a_time():
  with Stub(lambda number, body: Reply(delay=0.05)) as stub:
    make_panel(stub, concurrency=16).judge_pairs(pairs(32))
  assert stub.calls == 64
  assert 8 < stub.max_at_once <= 16


def test_equal_questions_are_asked_once():
  with Stub(lambda number, body: Reply(delay=0.02)) as stub:
    panel = make_panel(stub)
    panel.judge_pairs(pairs(1) * 5)
    panel.judge_pairs(pairs(1))
  assert stub.calls == 2
  assert panel.spending.num_cached == 10


# Failures.


def test_malformed_answers_give_no_vote():
  """One of ten; the others stand. 10 % may fail."""
  behave = lambda number, body: Reply(
    'Hard to tell.' if 'prompt 7\n' in llm_stub.question(body) else 'A'
  )
  with Stub(behave) as stub:
    found = make_panel(stub, concurrency=1, min_judgements=20).judge_pairs(pairs(10))
  failed = [x for judgements in found for x in judgements if x.failure]
  assert [(x.question.pair.prompt, x.failure, x.preference) for x in failed] == [
    ('prompt 7', 'malformed answer', None)
  ] * 2
  assert "'Hard to tell.' is none of A, B, C" in failed[0].message


def test_too_many_failures_stop_the_run():
  behave = lambda number, body: Reply('A' if number % 2 else 'Perhaps.')
  with Stub(behave) as stub:
    panel = make_panel(stub, concurrency=2)
    message = r"\d+ of 2\d judgements failed, more than 10%; most often \(\d+\) by malformed answer: 'Perhaps\.'"
    with pytest.raises(ValueError, match=message) as raised:
      panel.judge_pairs(pairs(100))
  assert stub.calls < 30
  assert '\n' not in str(raised.value)


def test_rate_limit_is_waited_for():
  """Retry-After counts for all calls; what is asked again succeeds."""
  slept = []

  async def sleep(seconds):
    slept.append(seconds)
    await asyncio.sleep(0)

  behave = lambda number, body: (
    Reply(status=429, headers={'Retry-After': '7'}, body='slow down') if number == 1 else Reply()
  )
  with Stub(behave) as stub:
    found = make_panel(stub, concurrency=1, sleep=sleep).judge_pairs(pairs(1))
  assert preferences(found[0]) == [1, 0]
  assert 6.9 < slept[0] < 7.8


def test_rate_limit_without_end_is_a_failure():
  behave = lambda number, body: Reply(status=429, headers={'Retry-After': '1'}, body='{}')
  with Stub(behave) as stub:
    ((one, _),) = make_panel(stub, num_retries=2).judge_pairs(pairs(1))
  assert (one.failure, stub.calls) == ('rate limit', 6)


def test_dying_server_is_asked_again():
  """Closed connections and 500s, twice each before an answer; waits are doubled, less up to a half."""
  seen, slept = {}, []

  def behave(number, body):
    text = llm_stub.question(body)
    seen[text] = seen.get(text, 0) + 1
    replies = Reply(close=True), Reply(status=500, body='oops'), Reply(body='<html>'), Reply()
    return replies[min(seen[text], 4) - 1]

  async def sleep(seconds):
    slept.append(seconds)
    await asyncio.sleep(0)

  with Stub(behave) as stub:
    found = make_panel(stub, concurrency=1, sleep=sleep).judge_pairs(pairs(2))
  assert all(x.failure is None for judgements in found for x in judgements)
  assert stub.calls == 16
  for i, seconds in enumerate(slept):
    longest = 2.0 ** (i % 3)
    assert longest / 2 <= seconds <= longest


@pytest.mark.parametrize(
  ('reply', 'kind', 'calls'),
  [
    (Reply(delay=0.3), 'timeout', 2),
    (Reply(close=True), 'connection', 2),
    (Reply(status=503, body='busy'), 'server error (503)', 2),
    (Reply(body='{"choices": []}'), 'no completion', 2),
    (Reply(body='[' * 100_000), 'no completion', 2),
    (Reply(status=307, headers={'Location': 'http://elsewhere'}), 'refused (307)', 1),
    (Reply(status=400, body='{"error": {"message": "too long"}}'), 'refused (400)', 1),
  ],
)
def test_failures_have_kinds(reply, kind, calls):
  with Stub(lambda number, body: reply) as stub:
    panel = make_panel(stub, num_retries=1, timeout=0.1)
    (found,) = panel.judge(panel.questions(pairs(1), orders=['ab']))
  assert (found.failure, stub.calls) == (kind, calls)
  assert found.message


@pytest.mark.parametrize(
  ('status', 'message'), [(401, 'Set OPENAI_API_KEY'), (404, 'Check the base URL')]
)
def test_refused_key_or_model_stops_at_once(status, message):
  body = f'{{"error": {{"message": "no {KEY} here"}}}}'
  behave = lambda number, _: Reply(status=status, body=body)
  with Stub(behave) as stub, pytest.raises(ValueError, match=message) as raised:
    make_panel(stub, concurrency=2).judge_pairs(pairs(50))
  assert stub.calls <= 3
  assert KEY not in str(raised.value)
  assert 'no [key] here' in str(raised.value)


def test_stop_does_not_wait_for_rests():
  """A worker that the server has told to rest for minutes ends when another stops the run."""

  def behave(number, body):
    if number == 1:
      return Reply(status=429, headers={'Retry-After': '250'}, body='{}')
    return Reply(status=401, body='{}', delay=0.1)

  start = time.monotonic()
  with Stub(behave) as stub, pytest.raises(ValueError, match='answers 401'):
    make_panel(stub, concurrency=2, sleep=asyncio.sleep, timeout=5.0).judge_pairs(pairs(5))
  assert time.monotonic() - start < 30


# Budget, cache and key.


def test_budget_of_calls_stops():
  with Stub(ALWAYS_FIRST) as stub:
    panel = make_panel(stub, max_calls=5)
    found = []
    with pytest.raises(ValueError, match='budget of 5 calls is spent: raise max_calls'):
      panel.judge(panel.questions(pairs(10)), found.append)
  assert stub.calls == len(found) == 5


def test_budget_of_tokens_is_not_passed():
  """100 tokens a call; the estimate is larger, and calls under way are waited for."""
  with Stub(lambda number, body: Reply(delay=0.01)) as stub:
    panel = make_panel(stub, max_tokens_total=1000, concurrency=8)
    with pytest.raises(ValueError, match='budget of 1000 tokens is spent but for'):
      panel.judge_pairs(pairs(20))
  text = panel.template.fill('prompt 1', 'x', 'yy')
  assert 1000 - len(text) / 3 - 20 < panel.spending.num_tokens <= 1000
  assert panel.spending.num_tokens == 100 * stub.calls


def test_cache_outlives_the_panel(tmp_path):
  with Stub(llm_stub.longer) as stub:
    first = make_panel(stub, cache_dir=tmp_path).judge_pairs(pairs(3))
    again = make_panel(stub, cache_dir=tmp_path).judge_pairs(pairs(4))
    other = make_panel(stub, cache_dir=tmp_path, models=('n',))
    other.judge_pairs(pairs(1))
  assert again[:3] == first
  assert stub.calls == 8 + 2


def test_a_panel_that_is_not_asked_writes_nothing(tmp_path):
  """A configuration that is only read makes one; once it is asked, what cannot be written costs no call."""
  with Stub(lambda number, body: Reply('A')) as stub:
    panel = make_panel(stub, cache_dir=tmp_path / 'cache')
    assert stub.calls == 0 and not (tmp_path / 'cache').exists()
    (tmp_path / 'cache').write_text('')
    with pytest.raises(FileExistsError):
      panel.judge_pairs(pairs(1))
    assert stub.calls == 0


def test_link_out_of_the_cache_is_refused(tmp_path):
  """Before a call is paid."""
  theirs, cache = tmp_path / 'theirs', tmp_path / 'cache'
  theirs.write_text('theirs')
  cache.mkdir()
  (cache / 'answers.jsonl').symlink_to(theirs)
  with Stub(lambda number, body: Reply('A')) as stub:
    panel = make_panel(stub, cache_dir=cache)
    with pytest.raises(OSError, match=r'answers\.jsonl is a link to .*theirs, outside'):
      panel.judge_pairs(pairs(1))
    assert stub.calls == 0
  assert theirs.read_text() == 'theirs'


def test_torn_line_of_a_cache_is_passed_over(tmp_path):
  """The next answer does not end up on the same line."""
  cache = llm_cache.AnswerCache(tmp_path)
  answer = llm_answers.Answer('A', (llm_answers.Position('A', (('A', -0.5),)),), 9, 1.0)
  cache.put('one', answer)
  file = tmp_path / 'answers.jsonl'
  file.write_bytes(file.read_bytes() + b'{"key": "two", "te')
  cache = llm_cache.AnswerCache(tmp_path)
  cache.put('three', answer)
  for found in (cache, llm_cache.AnswerCache(tmp_path)):
    assert [found.get(key) for key in ('one', 'two', 'three')] == [answer, None, answer]


def test_key_is_nowhere(tmp_path, caplog, capsys):
  """A server that echoes it in answers and errors; neither cache nor messages have it."""

  def behave(number, body):
    if number % 2:
      return Reply(f'A {KEY}', log_probs={f'A {KEY}': -0.1})
    return Reply(status=400, body=f'bad header: Bearer {KEY}')

  with Stub(behave) as stub:
    panel = make_panel(stub, cache_dir=tmp_path, max_share=1.0)
    found = panel.judge_pairs(pairs(3))
  kinds = {x.failure for judgements in found for x in judgements}
  assert kinds == {'malformed answer', 'refused (400)'}
  files = ''.join(path.read_text() for path in tmp_path.rglob('*') if path.is_file())
  shown = repr(found) + files + caplog.text + ''.join(capsys.readouterr())
  assert '[key]' in files
  assert KEY not in shown


def test_key_that_no_header_can_hold_is_not_shown(monkeypatch):
  monkeypatch.setenv('MY_KEY', 'sk-sécret\nsk')
  with Stub(ALWAYS_FIRST) as stub, pytest.raises(ValueError, match='key in MY_KEY') as raised:
    make_panel(stub, key_variable='MY_KEY').judge_pairs(pairs(1))
  assert 'cret' not in str(raised.value)


def test_no_key_is_sent_where_none_is_set(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY')
  with Stub(ALWAYS_FIRST) as stub:
    make_panel(stub).judge_pairs(pairs(1))
  assert stub.authorizations == {None}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'base_url': 'localhost:8000'}, "base_url must be .* got 'localhost:8000'"),
    ({'base_url': 'http://me:secret@host/v1'}, '^(?!.*secret).*without a password'),
    ({'base_url': 'http://host/v1?key=secret'}, '^(?!.*secret).*or a query'),
    ({'base_url': 'http://host:port/v1'}, "base_url must be .* got 'http://host:port/v1'"),
    ({'key_variable': 'sk-secret'}, '^(?!.*secret)key_variable must be the name'),
    ({'concurrency': 0}, 'concurrency must be at least 1'),
    ({'timeout': 0.0}, 'timeout must be a positive'),
    ({'num_retries': -1}, 'num_retries must be 0 or more'),
  ],
)
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(ValueError, match=message):
    llm.Panel(['m'], server=llm_settings.Server(**settings))


@pytest.mark.parametrize(
  ('header', 'expected'),
  [
    ('3', 3.0),
    ('Thu, 01 Jan 1970 00:01:10 GMT', 10.0),
    ('Thu, 01 Jan 1970 00:00:10 GMT', 0.0),
    ('soon', 0.0),
    ('nan', 0.0),
    (None, 0.0),
  ],
)
def test_retry_after(header, expected):
  assert llm_client.retry_after(header, now=60.0) == expected


# Tokens.

PROMPTS = Prompts(np.array([[2, 3, 0], [4, 0, 0]], np.int32), np.arange(2))
FIRST = np.array([[2, 1, 0], [3, 3, 1], [1, 0, 0], [2, 3, 4]], np.int32)
SECOND = np.array([[2, 3, 1], [2, 1, 0], [5, 1, 0], [2, 3, 4]], np.int32)


def decode(ids):
  return ''.join(chr(ord('a') + i) for i in ids)


def test_panel_judges_tokens():
  """Lengths 1:2, 2:1, 0:1, and equal texts, which are not asked about."""
  with Stub(llm_stub.longer) as stub:
    judge = llm.from_panel(make_panel(stub), lambda ids: decode(ids).upper(), decode)
    found = judge(PROMPTS, FIRST, SECOND)
  assert isinstance(judge, PreferenceFn)
  np.testing.assert_array_equal(found, np.array([0, 1, 0, 0.5], np.float32))
  assert stub.calls == 6
  asked = {llm_stub.question(body).split('<prompt>\n')[1].split('\n')[0] for body in stub.bodies}
  assert asked == {'CD', 'E'}


def test_biased_panel_judges_tokens_a_half():
  with Stub(ALWAYS_FIRST) as stub:
    judge = llm.from_panel(make_panel(stub), decode, decode)
    np.testing.assert_array_equal(judge(PROMPTS, FIRST, SECOND), np.full(4, 0.5, np.float32))


def test_failed_pair_is_no_vote():
  """Of pair 1 one order fails: the other by itself would say that whoever is shown first wins."""
  behave = lambda number, body: Reply('?' if llm_stub.shown(body)[0] == 'dd' else 'A')
  with Stub(behave) as stub:
    panel = make_panel(stub)
    found = llm.from_panel(panel, decode, decode)(PROMPTS, FIRST, SECOND)
  np.testing.assert_array_equal(found, np.array([0.5, np.nan, 0.5, 0.5], np.float32))
  assert panel.num_failed == {'malformed answer': 1}


def test_failures_are_counted_over_all_calls():
  """One pair a call, so that no call has many judgements; and of the last ones alone."""
  behave = lambda number, body: Reply('A' if number <= 60 else '?')
  with Stub(behave) as stub:
    panel = make_panel(stub, window=40, concurrency=1)
    with pytest.raises(
      ValueError, match=r'5 of 40 judgements failed, more than 10%; .* by malformed'
    ):
      for pair in pairs(100):
        panel.judge_pairs([pair])
  assert stub.calls == 65


def test_within_a_running_event_loop():
  async def in_notebook(stub):
    return make_panel(stub).judge_pairs(pairs(1))

  with Stub(ALWAYS_FIRST) as stub:
    ((one, _),) = asyncio.run(in_notebook(stub))
  assert one.preference == 1
