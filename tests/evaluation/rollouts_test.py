"""Rollouts on the report's page: what is shown, in a real browser too, and that what they hold cannot run."""

import html.parser
import json
import re

import pytest

from nlhf_jax.evaluation import report, rollouts

ATTACK = '</script><script>document.title="owned"</script><img src=x onerror="document.title=1"> \u2028 & <!--'


def row(step, p=0.25, a='first words', b='second words', **known):
  learnt = {'step': step, 'drawn_by': ['online', 'reference'], 'preference': 0.5, 'opponents': 4}
  learnt |= {'log_ratio': [1.5, None], 'tokens': [2, 3], 'ended': [True, True]} | known
  pair = {'response_a': a} if b is None else {'response_a': a, 'response_b': b}
  return {'prompt': f'Why {step}?', **pair, 'probability': p, 'rollout': learnt}


def write(run_dir, rows, warnings=()):
  run_dir.mkdir()
  (run_dir / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0}\n')
  (run_dir / 'votes.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in rows))
  if warnings:
    lines = [json.dumps({'step': 3, 'name': 'x', 'text': text}) + '\n' for text in warnings]
    (run_dir / 'warnings.jsonl').write_text(''.join(lines))


class Scripts(html.parser.HTMLParser):
  """What a browser takes for scripts, and where its parser meets other elements and handlers."""

  def __init__(self, page):
    super().__init__()
    self.found, self.tags, self.handlers, self._open = [], [], [], None
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.handlers += [name for name, _ in attrs if name.startswith('on')]
    self._open = dict(attrs) if tag == 'script' else None

  def handle_endtag(self, tag):
    self._open = None

  def handle_data(self, data):
    if self._open is not None:
      self.found.append((self._open.get('type'), data))


def data_of(page):
  (content,) = [text for kind, text in Scripts(page).found if kind == 'application/json']
  return json.loads(content)


def test_hostile_texts_are_data(tmp_path):
  """In prompt, responses, players, names of runs and warnings; two scripts in all, of which ours alone may run."""
  hostile = row(1, a=ATTACK, b=ATTACK, drawn_by=[ATTACK, 'x']) | {'prompt': ATTACK}
  write(tmp_path / 'a<script>b', [hostile], warnings=[ATTACK])
  page = report.from_run_dir(tmp_path).read_text()
  scripts = Scripts(page)
  assert [kind for kind, _ in scripts.found] == ['application/json', None]
  assert scripts.tags.count('script') == 2 and 'img' not in scripts.tags
  assert not scripts.handlers
  (run,) = data_of(page)
  assert run['name'] == 'a<script>b'
  shown = run['rows'][0]
  assert [shown['prompt'], *shown['responses'], shown['drawn_by'][0]] == [ATTACK] * 4
  assert page.count('<script') == 2 and page.count('</script') == 2
  assert '\u2028' not in page.partition('id="rollouts-data"')[2]
  policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
  policy = policy.replace('&#39;', "'")
  assert "default-src 'none'" in policy
  ours = next(text for kind, text in scripts.found if kind is None)
  assert rollouts.content_policy([ours]) == policy
  assert 'http' not in page.replace('http-equiv', '')


def test_newest_are_shown_and_the_rest_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(rollouts, 'NUM_SHOWN', 3)
  monkeypatch.setattr(rollouts, 'MAX_TEXT', 10)
  theirs = {'a': 'x', 'b': 'y', 'verdict': 'a'}
  write(tmp_path / 'md', [row(50, a='123456789 12'), theirs, row(1), row(20), row(10), row(40)])
  write(tmp_path / 'sft', [theirs])
  write(tmp_path / 'one', [row(1, None, b=None, reward=[1.5], tokens=[2], ended=[False])])
  found = {run['name']: run for run in data_of(report.from_run_dir(tmp_path).read_text())}
  assert list(found) == ['md', 'one']
  assert [x['step'] for x in found['md']['rows']] == [20, 40, 50]
  assert found['md']['left_out'] == 2
  assert found['md']['rows'][-1]['responses'][0] == '123456789 '
  assert found['md']['rows'][-1]['hidden'] == [0, 2, 2]
  assert found['one']['rows'][0]['responses'] == ['first word']
  assert found['one']['rows'][0]['reward'] == [1.5]


def test_long_texts_leave_room_for_fewer(tmp_path, monkeypatch):
  """Each run has its share of the page; what is left out are the oldest."""
  monkeypatch.setattr(rollouts, 'MAX_PAGE', 200)
  write(tmp_path / 'long', [row(step, a='x' * 40, b='') for step in (1, 2, 3)])
  write(tmp_path / 'short', [row(step) for step in (1, 2, 3)])
  found = {run['name']: run for run in data_of(report.from_run_dir(tmp_path).read_text())}
  assert [x['step'] for x in found['long']['rows']] == [2, 3] and found['long']['left_out'] == 1
  assert len(found['short']['rows']) == 3 and found['short']['left_out'] == 0


def test_warnings_are_on_the_page(tmp_path):
  write(tmp_path / 'md', [row(1)], warnings=['step 3: <b>34 %</b> are cut'])
  page = report.from_run_dir(tmp_path).read_text()
  assert '<b>md</b> · step 3: &lt;b&gt;34 %&lt;/b&gt; are cut' in page


def test_report_of_a_single_run(tmp_path):
  """The directory may be a run itself."""
  write(tmp_path / 'md', [row(1)], warnings=['long'])
  page = report.from_run_dir(tmp_path / 'md').read_text()
  assert data_of(page)[0]['name'] == 'md'
  assert '<b>md</b> · long' in page


def test_page_without_rollouts_has_no_script(tmp_path):
  page = report.from_run_dir(tmp_path).read_text()
  assert '<script' not in page
  assert 'No rollouts in votes.jsonl of a run' in page


SHOWN = '[...document.querySelectorAll(".rollout .step")].map((x) => x.textContent.slice(5)).join()'


def test_browser(tmp_path):
  """Filters, search, sorting and keys; nothing of a response runs."""
  pytest.importorskip('websocket', reason='needs websocket-client')
  browsers = pytest.importorskip('tests.cli.annotate_test')
  if browsers.BROWSER is None:
    pytest.skip('needs chromium')
  rows = [row(1, 0.9), row(2, 0.2, ended=[True, False]), row(3, None), row(4, 0.52, a=ATTACK)]
  write(tmp_path / 'md', rows)
  write(tmp_path / 'rl', [row(9, None, reward=[x, 0.0]) for x in (1.0, 2.0)])
  page = report.from_run_dir(tmp_path)
  with browsers.browsing(tmp_path) as browser:
    browser.call('Page.navigate', url=page.as_uri())
    is_shown = lambda steps: browser.wait(f'{SHOWN} === "{steps}"')

    def choose(name, value):
      browser.evaluate(
        f'document.getElementById("rollouts-{name}").value = {json.dumps(value)};'
        f'document.getElementById("rollouts-{name}").dispatchEvent(new Event('
        f'"{"change" if name == "run" else "input"}"))'
      )

    is_shown('4,3,2,1')
    assert browser.evaluate('document.title').endswith('nlhf_jax')
    assert browser.evaluate('document.querySelectorAll(".rollout img").length') == 0
    text = browser.evaluate('document.querySelector(".response.a .text").textContent')
    assert text == ATTACK
    for vote, steps in (('first', '4,1'), ('second', '2'), ('close', '4'), ('none', '3')):
      choose('vote', vote)
      is_shown(steps)
    choose('vote', 'all')
    choose('sort', 'low')
    is_shown('2,4,1,3')
    choose('sort', 'high')
    is_shown('1,4,2,3')
    choose('step', '2')
    is_shown('2')
    choose('step', '')
    browser.evaluate('document.getElementById("rollouts-cut").click()')
    is_shown('2')
    browser.evaluate('document.getElementById("rollouts-cut").click()')
    browser.press('/')
    browser.wait('document.activeElement.id === "rollouts-search"')
    browser.call('Input.insertText', text='owned')
    is_shown('4')
    assert browser.evaluate('document.querySelector("mark").textContent') == 'owned'
    browser.press('Escape')
    is_shown('1,4,2,3')
    browser.evaluate('document.activeElement.blur()')
    for key, at in (('j', 0), ('j', 1), ('ArrowDown', 2), ('k', 1)):
      browser.press(key)
      browser.wait(
        f'[...document.querySelectorAll(".rollout")].indexOf(document.activeElement) === {at}'
      )
    choose('run', '1')
    is_shown('9,9')
    choose('sort', 'high')
    browser.wait('document.querySelector(".rollout").innerText.includes("reward +2.000")')
