"""`nlhf annotate`: the pages in this process, and the command with a real browser."""

import argparse
import contextlib
import html
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from nlhf_jax.cli import annotate, main
from nlhf_jax.votes import annotation, responses
from nlhf_jax.votes.responses import Response

testclient = pytest.importorskip('starlette.testclient', reason='needs the extra annotate')

ATTACK = '</div><script>document.title = "taken"</script><img src=x onerror=alert(1)>{{ "x" * 9 }}'
RESPONSES = {
  'policy_nash': {'p1': [ATTACK], 'p2': ['n2'], f'p3 {ATTACK}': ['n3']},
  'policy_sft': {'p1': ['s1'], 'p2': ['  two\n  lines'], f'p3 {ATTACK}': ['']},
}
HERE = 'http://localhost:8000'
BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)


@pytest.fixture
def votes(tmp_path):
  rows = {m: [Response(p, r) for p, rs in x.items() for r in rs] for m, x in RESPONSES.items()}
  found = annotation.Annotations(tmp_path / 'votes.jsonl', responses.pairs(rows))
  yield found
  found.close()


@pytest.fixture
def client(votes):
  app = annotate.make_app(votes, annotate.allowed_hosts('127.0.0.1'))
  return testclient.TestClient(app, base_url=HERE, headers={'origin': HERE})


def rows(tmp_path):
  return [json.loads(line) for line in (tmp_path / 'votes.jsonl').read_text().splitlines()]


def field(page, name):
  return re.search(rf'name="{name}" value="([^"]*)"', page)[1]


def show(client, voter='Ada'):
  page = client.get('/task', params={'voter': voter})
  assert page.status_code == 200
  return page.text


def send(client, page, verdict):
  form = {'voter': field(page, 'voter'), 'task': field(page, 'task'), 'verdict': verdict}
  return client.post('/vote', data=form)


def test_vote_is_on_disk_before_the_next_page(client, tmp_path, monkeypatch):
  synced, sync = [], os.fsync
  monkeypatch.setattr(os, 'fsync', lambda file: (sync(file), synced.append(file)))
  page = show(client)
  for number, verdict in enumerate(('first', 'tie', 'both_bad'), start=1):
    first = html.unescape(re.search(r'aria-label="First.*?</section>', page, re.DOTALL)[0])
    answered = send(client, page, verdict)
    assert [x.status_code for x in answered.history] == [303]
    page, row = answered.text, rows(tmp_path)[-1]
    assert len(rows(tmp_path)) == len(synced) == number
    assert (row[f'response_{row["order"][0]}'] or '(empty)') in first
    assert row['verdict'] == (row['order'][0] if verdict == 'first' else verdict)
  assert 'All done' in page


def test_pages_are_blind_escaped_and_locked_down(client):
  pages = [client.get('/')]
  while 'name="verdict"' in (page := client.get('/task', params={'voter': 'Ada'})).text:
    pages.append(page)
    send(client, page.text, 'skip')
  pages.append(page)
  for page in pages:
    assert 'policy_' not in page.text
    assert page.text.count('<script') == 1 and '<img' not in page.text and 'x' * 9 not in page.text
    (nonce,) = set(re.findall(r'<(?:script|style) nonce="([^"]+)"', page.text))
    policy = page.headers['content-security-policy']
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'nonce-{nonce}'" in policy and 'unsafe' not in policy
    assert page.headers['cache-control'] == 'no-store'
  assert len({page.headers['content-security-policy'] for page in pages}) == len(pages)
  assert any(f'>{html.escape(ATTACK, quote=False)[:30]}' in page.text for page in pages)
  assert any('>  two\n  lines</div>' in page.text for page in pages)


def test_undo_and_skip(client, tmp_path):
  page = show(client)
  after = send(client, page, 'first').text
  undone = {'voter': 'Ada', 'task': field(page, 'task')}
  again = client.post('/undo', data=undone).text
  assert rows(tmp_path) == []
  assert field(again, 'task') == field(page, 'task') != field(after, 'task')
  # Sent twice, it takes nothing else back.
  send(client, again, 'tie')
  send(client, show(client), 'second')
  client.post('/undo', data=undone)
  assert len(rows(tmp_path)) == 2
  end = send(client, show(client), 'skip').text
  assert '1 skipped' in end
  assert field(client.post('/skipped', data={'voter': 'Ada'}).text, 'task')


def test_vote_sent_twice_counts_once(client, tmp_path):
  page = show(client)
  send(client, page, 'first')
  assert send(client, page, 'second').status_code == 200
  assert len(rows(tmp_path)) == 1
  send(client, show(client, 'Bo'), 'tie')
  assert [row['voter'] for row in rows(tmp_path)] == ['Ada', 'Bo']


@pytest.mark.parametrize(
  ('headers', 'base_url'),
  [
    ({'origin': 'http://evil.example'}, HERE),
    ({'origin': 'http://localhost:3000'}, HERE),
    ({'origin': 'null'}, HERE),
    ({'origin': ''}, HERE),
    # A foreign name that points here.
    ({'origin': 'http://evil.example:8000'}, 'http://evil.example:8000'),
  ],
)
def test_post_from_elsewhere_is_refused(client, votes, tmp_path, headers, base_url):
  page = show(client)
  other = testclient.TestClient(client.app, base_url=base_url, headers=headers)
  form = {'voter': 'Ada', 'task': field(page, 'task'), 'verdict': 'first'}
  for path in ('/vote', '/undo', '/skipped'):
    assert other.post(path, data=form).status_code == 403
  assert rows(tmp_path) == []


@pytest.mark.parametrize('host', ['127.0.0.1', '0.0.0.0', '192.168.1.2', '::1', 'localhost'])
def test_foreign_names_are_no_host_of_this_server(host):
  is_own = annotate.allowed_hosts(host)
  assert is_own(host) and is_own('localhost')
  assert not is_own('evil.example') and not is_own('')
  assert is_own('10.0.0.7') == (host in ('0.0.0.0', '192.168.1.2'))


def test_get_by_a_foreign_name_is_refused(client):
  for path in ('/', '/task?voter=Ada'):
    assert client.get(path, headers={'host': 'evil.example'}).status_code == 403


@pytest.mark.parametrize(
  ('content', 'status'),
  [
    ('voter=Ada&verdict=first', 400),
    ('voter=Ada&task={token}', 400),
    ('voter=Ada&task={token}&verdict=a', 400),
    ('voter=Ada&task={token}&verdict=first&verdict=tie', 400),
    ('voter=Ada&task={token}&verdict=first&x=1', 400),
    ('voter=&task={token}&verdict=first', 400),
    ('voter=a%00b&task={token}&verdict=first', 400),
    ('voter=%ff&task={token}&verdict=first', 400),
    ('voter=Ada&task=0&verdict=first', 400),
    ('{{"voter": "Ada"}}', 400),
    ('\udcff', 400),
    ('', 400),
    ('voter=' + 'x' * 5000, 413),
  ],
)
def test_malformed_post_is_refused_and_writes_nothing(client, tmp_path, content, status):
  body = content.format(token=field(show(client), 'task')).encode(errors='surrogateescape')
  kind = {'content-type': 'application/x-www-form-urlencoded'}
  answer = client.post('/vote', content=body, headers=kind)
  assert answer.status_code == status
  assert 'That did not work' in answer.text
  assert rows(tmp_path) == []


def test_unknown_pages_and_methods(client):
  assert client.get('/vote').status_code == 405
  assert client.get('/nowhere').status_code == 404
  assert client.get('/task').status_code == 400


def test_full_disk_is_shown(client, votes, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(votes, 'vote', full)
  answer = send(client, show(client), 'first')
  assert answer.status_code == 500
  assert 'Not recorded: [Errno 28] No space left on device' in answer.text


def write(path, responses):
  lines = [json.dumps({'prompt': p, 'response': r}) for p, rs in responses.items() for r in rs]
  path.write_text('\n'.join(lines))
  return path


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], 'Nothing to compare: name responses'),
    (['--responses', 'one.jsonl'], "one.jsonl:1: field 'responses' must be"),
    (['--responses', 'm=one.jsonl'], 'needs two labels'),
    (['--responses', 'm=one.jsonl', 'm=one.jsonl'], "label 'm' is in one.jsonl and in one.jsonl"),
    (['--responses', 'm=one.jsonl', 'n=none.jsonl'], 'No file none.jsonl'),
    (['--run_dirs', 'runs'], 'No file runs/samples.jsonl: write'),
    (
      ['--responses', 'm=one.jsonl', 'n=two.jsonl', '--port=-1'],
      '--port must be a whole number from 0',
    ),
    (
      ['--responses', 'm=one.jsonl', 'n=two.jsonl', '--host=192.0.2.1'],
      'Cannot listen on 192.0.2.1',
    ),
  ],
)
def test_mistake_is_one_line(capsys, tmp_path, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / 'one.jsonl', {'p': ['x']})
  write(tmp_path / 'two.jsonl', {'p': ['y']})
  assert main.main(['annotate', '--output=votes.jsonl', *argv]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('nlhf annotate: ') and message in line


@pytest.mark.parametrize(
  ('host', 'warned'), [('127.0.0.1', False), ('localhost', False), ('0.0.0.0', True)]
)
def test_listening_to_others_is_warned_of(capsys, votes, host, warned):
  annotate._announce(argparse.Namespace(host=host, output='votes.jsonl'), 80, votes, 3)
  shown = capsys.readouterr()
  assert f'http://{host}:80/' in shown.out
  assert shown.err.startswith('Warning: whoever reaches 0.0.0.0:80') == warned


def test_missing_extra_is_one_line(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  assert main.main(['annotate', '--output=votes.jsonl', '--responses', 'm=one.jsonl']) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "needs starlette and uvicorn: pip install 'nlhf_jax[annotate]'" in line


class Browser:
  """One page of a headless Chromium, by its debugging port."""

  def __init__(self, port):
    import websocket

    connection = http.client.HTTPConnection('127.0.0.1', port)
    connection.request('GET', '/json')
    pages = json.loads(connection.getresponse().read())
    (url,) = [x['webSocketDebuggerUrl'] for x in pages if x['type'] == 'page']
    self._socket = websocket.create_connection(url, timeout=10, suppress_origin=True)
    self._number = 0

  def call(self, method, **params):
    self._number += 1
    self._socket.send(json.dumps({'id': self._number, 'method': method, 'params': params}))
    while (answer := json.loads(self._socket.recv())).get('id') != self._number:
      pass
    # Without a result: the page is just leaving.
    return answer.get('result', {})

  def evaluate(self, expression):
    return self.call('Runtime.evaluate', expression=expression).get('result', {}).get('value')

  def wait(self, expression):
    """Until it is true of a page that has loaded."""
    end = time.monotonic() + 10
    while not self.evaluate(f'document.readyState == "complete" && Boolean({expression})'):
      assert time.monotonic() < end, (expression, self.evaluate('document.body.innerText'))
      time.sleep(0.02)

  def hold(self, key, *, already=False):
    text = {'text': {'Enter': '\r'}.get(key, key)} if len(key) == 1 or key == 'Enter' else {}
    self.call('Input.dispatchKeyEvent', type='keyDown', key=key, autoRepeat=already, **text)

  def press(self, key):
    self.hold(key)
    self.call('Input.dispatchKeyEvent', type='keyUp', key=key)

  def click(self, selector):
    place = f'JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())'
    box = json.loads(self.evaluate(place))
    at = {'x': box['x'] + box['width'] / 2, 'y': box['y'] + box['height'] / 2}
    for kind in ('mousePressed', 'mouseReleased'):
      self.call('Input.dispatchMouseEvent', type=kind, button='left', clickCount=1, **at)


def wait_for(condition, process, seconds=20):
  end = time.monotonic() + seconds
  while not (found := condition()):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.05)
  return found


@contextlib.contextmanager
def running(argv, **kwargs):
  process = subprocess.Popen(list(map(str, argv)), start_new_session=True, **kwargs)
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def served(tmp_path):
  """The command itself; yields its process and its address."""
  argv = [sys.executable, '-m', 'nlhf_jax', 'annotate', '--port=0', '--responses']
  argv += [f'{label}={tmp_path / label}.jsonl' for label in RESPONSES]
  argv += [f'--output={tmp_path / "votes.jsonl"}']
  with running(argv, stdout=subprocess.PIPE, text=True) as server:
    assert server.stdout.readline().startswith('3 tasks, ')
    yield server, server.stdout.readline().split()[0]


@contextlib.contextmanager
def browsing(tmp_path):
  profile = tmp_path / 'profile'
  flags = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--remote-debugging-port=0',
    '--no-first-run',
  ]
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
  argv = [BROWSER, *flags, f'--user-data-dir={profile}', 'about:blank']
  with running(argv, **quiet) as process:
    ports = profile / 'DevToolsActivePort'
    wait_for(lambda: ports.is_file() and ports.read_text().count('\n'), process)
    yield Browser(int(ports.read_text().split()[0]))


@pytest.mark.skipif(BROWSER is None, reason='needs chromium')
def test_browser(tmp_path):
  """Keys and clicks become votes; what the responses would run does not run; a restart goes on."""
  pytest.importorskip('websocket', reason='needs websocket-client')
  for label, answered in RESPONSES.items():
    write(tmp_path / f'{label}.jsonl', answered)
  with browsing(tmp_path) as browser:
    with served(tmp_path) as (server, url):
      browser.call('Page.navigate', url=url)
      browser.wait('document.activeElement.name == "voter"')
      browser.call('Input.insertText', text='bst 12')
      browser.press('Enter')
      browser.wait('document.querySelector("progress")')
      # Held down until the next page is there, it votes once.
      browser.hold('ArrowLeft')
      browser.wait('document.querySelector("progress").value == 1')
      browser.hold('ArrowLeft', already=True)
      time.sleep(0.3)
      assert len(rows(tmp_path)) == 1
      browser.press('b')
      browser.wait('document.querySelector("progress").value == 2')
      browser.press('u')
      browser.wait('document.querySelector("progress").value == 1')
      browser.click('button[value=second]')
      browser.wait('document.querySelector("progress").value == 2')
      assert browser.evaluate('document.title').startswith('Which is better?')
      server.send_signal(signal.SIGINT)
      assert '2 votes on these tasks' in server.communicate(timeout=10)[0]
      assert server.returncode == 0
    with served(tmp_path) as (_, url):
      browser.call('Page.navigate', url=f'{url}task?voter=bst+12')
      browser.wait('document.querySelector("progress").value == 2')
      browser.press('t')
      browser.wait('document.body.innerText.includes("All done")')
  found = rows(tmp_path)
  assert {row['voter'] for row in found} == {'bst 12'}
  shown = {'a': {'ab': 'first', 'ba': 'second'}, 'b': {'ab': 'second', 'ba': 'first'}, 'tie': {}}
  verdicts = [shown[row['verdict']].get(row['order'], 'tie') for row in found]
  assert verdicts == ['first', 'second', 'tie']
  assert len({row['prompt'] for row in found}) == 3
