"""A ranking's sentences, table, JSON and page."""

import json

import numpy as np
import pytest

from nlhf_jax.evaluation import ranking_report
from nlhf_jax.games import sources
from nlhf_jax.votes import ranking, table


def of_wins(wins, labels='abcdefgh', **kwargs):
  votes = table.from_wins(np.array(wins, float), labels[: len(wins)])
  return ranking.of_votes(votes, num_resamples=20, num_simulations=0, **kwargs)


def words(found):
  return ' '.join(ranking_report.sentences(found))


def test_first():
  found = of_wins([[0, 90, 95], [10, 0, 60], [5, 40, 0]])
  assert 'a is first.' in words(found)
  assert 'a beats all others; 0 cyclic triples' in words(found)


def test_tied_for_first_and_what_would_tell():
  found = of_wins([[0, 52, 90], [48, 0, 85], [10, 15, 0]])
  assert 'Tied for first: a, b; the votes do not tell who is.' in words(found)
  assert 'To tell a from b would take about' in words(found)


def test_not_enough_votes():
  found = of_wins([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
  assert 'Not enough votes' in words(found)
  assert '1 cyclic triple of majorities' in words(found)


def test_what_is_not_identified():
  found = of_wins([[0, 90, 0, 0], [10, 0, 0, 0], [0, 0, 0, 60], [0, 0, 0, 0]])
  assert '2 groups never met, and nothing is known between them: {a, b}; {c, d}' in words(found)
  assert 'Pairs are missing: of the maximal lottery, Borda and Copeland only bounds' in words(found)
  cells = [c for column in ranking_report.table(found).columns for c in column.cells]
  assert any(str(cell).startswith(('≥', '≤')) for cell in cells)


def test_cycle():
  found = of_wins([[0, 140, 60], [60, 0, 140], [140, 60, 0]])
  assert 'A cycle that chance does not explain: a > b > c > a (140:60, 140:60, 140:60' in words(
    found
  )
  assert 'more than chance makes of 3 scores' in words(found)


def test_clones():
  p = np.array([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]])
  found = ranking.of_shares(sources.from_matrix(p, ('base', 'copy', 'weak')))
  assert 'The maximal lottery is not unique' in words(found)


def test_unreliable_voters_are_named_and_escaped(tmp_path):
  """Of 30 voters one tosses a coin; sentences, table, JSON and page have it first."""
  rng = np.random.default_rng(0)
  rows = []
  for number in range(30 * 60):
    who, (a, b) = number % 30, rng.choice(4, 2, replace=False).tolist()
    wins = rng.random() < (0.5 if who == 0 else 0.9 if a < b else 0.1)
    vote = {'a': f'm{a}', 'b': f'm{b}', 'verdict': 'a' if wins else 'b', 'voter': f'<{who}>'}
    rows.append(table.checked(vote))
  found = ranking.of_votes(table.columns(rows), num_resamples=5, num_simulations=0)
  said = 'Of 30 voters with 10 or more decisive votes 1 votes like a coin (<0>)'
  assert said in words(found)
  columns = ranking_report.voters_columns(found)
  assert columns['voter'][0] == '<0>' and columns['votes like'][0] == 'a coin'
  assert ranking_report.voters_table(found).row_count == 10
  content = json.loads(json.dumps(ranking_report.to_json(found, 'f'), allow_nan=False))['voters']
  assert (content['num_voters'], content['num_flagged']) == (30, 1)
  assert content['least_reliable'][0]['name'] == '<0>' and len(content['least_reliable']) == 10
  ranking_report.write_page(found, 'f', tmp_path / 'ranking.html')
  page = (tmp_path / 'ranking.html').read_text()
  assert '<th>&lt;0&gt;</th>' in page and '<0>' not in page
  assert page.count('<th>votes like</th>') == 1


def test_votes_without_voters_say_nothing_of_them():
  found = of_wins([[0, 30], [10, 0]])
  assert ranking_report.voters_table(found) is None and 'voters' not in words(found)


@pytest.mark.parametrize(
  'wins', [[[0, 3, 1], [1, 0, 2], [2, 1, 0]], [[0, 3, 0], [0, 0, 2], [0, 1, 0]]]
)
def test_json_and_page(tmp_path, wins):
  """Labels are text, whatever they hold; null in place of what is infinite."""
  votes = table.from_wins(np.array(wins, float), ('<script>', '$x$', '[bold]'))
  found = ranking.of_votes(votes, num_resamples=5, num_simulations=3)
  content = json.loads(json.dumps(ranking_report.to_json(found, 'f'), allow_nan=False))
  assert content['labels'] == ['<script>', '$x$', '[bold]']
  assert len(content['scores']['elo']) == 3
  ranking_report.write_page(found, 'f', tmp_path / 'ranking.html')
  page = (tmp_path / 'ranking.html').read_text()
  assert '<script>' not in page and '&lt;script&gt;' in page
  assert page.count('<tr>') == 1 + 3 + 1 + 3
  assert 'data:image/png;base64,' in page
