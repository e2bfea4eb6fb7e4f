"""Every page with labels, prompts, responses and names that attack it, in a real browser: nothing runs, and all of it is text."""

import json

import numpy as np
import pytest

from nlhf_jax.evaluation import personalisation_report, ranking_report, report, win_rates
from nlhf_jax.games import sources
from nlhf_jax.votes import ranking, responses
from tests.evaluation import rollouts_test

# Each sets window.owned where it is anything but text.
ATTACKS = (
  '</title></script><script>window.owned = 1</script>',
  '"><img src=x onerror="window.owned = 1">',
  "'><svg/onload='window.owned = 1'>",
  '<!--><iframe srcdoc="<script>parent.owned = 1</script>"></iframe>-->',
  '</textarea><a href="javascript:window.owned = 1" autofocus onfocus="window.owned = 1">x</a>',
  '</style><style>* { display: none }</style>{{ 7 * 7 }}{% raw %}&#x3c;script&#x3e;',
)
ALL = ' '.join(ATTACKS)
INTERVAL = {'mean': 0.5, 'low': 0.4, 'high': 0.6}


def reports(directory):
  """Rates, an exact table, exploiters, samples, warnings and rollouts."""
  hostile = {'drawn_by': [ALL, ALL]}
  rows = [rollouts_test.row(1, a=ALL, b=ALL, **hostile) | {'prompt': ALL}]
  directory.mkdir()
  rollouts_test.write(directory / '<svg onload=window.owned=1>', rows, warnings=[ALL])
  rates = win_rates.summarise(np.full((4, 3, 3), 0.5), (ATTACKS[0], ATTACKS[1], ALL), ALL)
  win_rates.write(directory, rates)
  sample = {'prompt': ALL, 'responses': {ALL: {'text': ALL, 'preference': 0.5}}}
  (directory / 'samples.jsonl').write_text(json.dumps(sample) + '\n')
  values = {'mean': [0.5], 'low': [0.4], 'high': [0.6]}
  subset = {'num_prompts': 1, 'duality_gap': values, 'kl': values}
  exact = {'labels': [ALL], 'baseline': ALL, 'tau': ALL, 'all': subset}
  (directory / 'exact.json').write_text(json.dumps(exact))
  return report.from_run_dir(directory)


def rankings(directory):
  game = np.array([[0.5, 0.6, 0.3], [0.4, 0.5, 0.7], [0.7, 0.3, 0.5]])
  found = ranking.of_shares(sources.from_matrix(game, (ATTACKS[0], ATTACKS[1], ALL)))
  ranking_report.write_page(found, ALL, directory.with_suffix('.html'))
  return directory.with_suffix('.html')


def personalisations(directory):
  agent = {'title': ALL, 'success': {}, 'feedback': {}, 'num_notes': 1.0}
  agent |= {'average_cumulative_errors': {}, 'pass_errors': {'1': [INTERVAL]}}
  results = {'kind': 'shopping', 'num_users': 1, 'num_passes': 1, 'differences': []}
  results['agents'] = {ALL: agent | {'cumulative_errors_after': []}}
  personalisation_report.write_page(results, ALL, directory.with_suffix('.html'))
  return directory.with_suffix('.html')


def annotations(directory):
  """Without the header that forbids scripts: the page alone must hold."""
  client_module = pytest.importorskip('starlette.testclient', reason='needs the extra annotate')
  from nlhf_jax.cli import annotate
  from nlhf_jax.votes import annotation

  texts = {'a': f'{ALL} a', 'b': f'{ALL} b'}
  pairs = responses.pairs({x: [responses.Response(ALL, text)] for x, text in texts.items()})
  found = annotation.Annotations(directory.with_suffix('.jsonl'), pairs)
  app = annotate.make_app(found, annotate.allowed_hosts('127.0.0.1'))
  client = client_module.TestClient(app, base_url='http://localhost:8000')
  page = client.get('/task', params={'voter': ATTACKS[2]})
  found.close()
  assert page.status_code == 200
  directory.with_suffix('.html').write_text(page.text)
  return directory.with_suffix('.html')


# Page -> scripts of our own on it.
PAGES = {reports: 2, rankings: 0, personalisations: 0, annotations: 1}
ELEMENTS = 'iframe, svg, a[href^=javascript], [onerror], [onload], [onfocus], img:not([src^=data])'


@pytest.mark.filterwarnings('ignore:Glyph')
def test_nothing_runs_and_all_is_text(tmp_path):
  """As the page is, and with its policy put out of force: escaping and policy each hold alone."""
  pytest.importorskip('websocket', reason='needs websocket-client')
  browsers = pytest.importorskip('tests.cli.annotate_test')
  if browsers.BROWSER is None:
    pytest.skip('needs chromium')
  paths = {make: make(tmp_path / make.__name__) for make in PAGES}
  with browsers.browsing(tmp_path) as browser:
    count = lambda query: browser.evaluate(f'document.querySelectorAll({json.dumps(query)}).length')
    for without_policy in (False, True):
      browser.call('Page.setBypassCSP', enabled=without_policy)
      for make, num_scripts in PAGES.items():
        browser.call('Page.navigate', url=paths[make].as_uri())
        browser.wait(f'location.href === {json.dumps(paths[make].as_uri())}')
        browser.wait(f'document.body.innerText.includes({json.dumps(ATTACKS[0])})')
        shown = browser.evaluate('document.body.textContent')
        assert all(attack in shown for attack in ATTACKS), make
        assert browser.evaluate('window.owned === undefined'), make
        assert count('script') == num_scripts and count(ELEMENTS) == 0, make
        assert count('style') == 1, make


def test_the_browser_would_run_them(tmp_path):
  """The first four at least are attacks: on a page that does not escape them, they run."""
  pytest.importorskip('websocket', reason='needs websocket-client')
  browsers = pytest.importorskip('tests.cli.annotate_test')
  if browsers.BROWSER is None:
    pytest.skip('needs chromium')
  with browsers.browsing(tmp_path) as browser:
    for number, attack in enumerate(ATTACKS[:4]):
      path = tmp_path / f'{number}.html'
      path.write_text(f'<!doctype html><body>{attack}')
      browser.call('Page.navigate', url=path.as_uri())
      browser.wait(f'location.href === {json.dumps(path.as_uri())} && window.owned === 1')
