"""What commands print of labels, prompts and files that would steer a terminal."""

import csv
import json
import logging
import subprocess
import sys
import unicodedata

import pytest

from nlhf_jax.cli import main
from nlhf_jax.evaluation import report, win_rates
from nlhf_jax.games import sources

LABELS = ('\x1b]0;owned\x07red', '[bold]b[/]:bomb:\\', 'c\u202edlrow\x9b2J')
SHOWN = (r'\x1b]0;owned\x07red', '[bold]b[/]:bomb:\\', r'c\u202edlrow\x9b2J')
SHARES = ((0.5, 0.7, 0.4), (0.3, 0.5, 0.8), (0.6, 0.2, 0.5))


def assert_harmless(text: str) -> None:
  """No control character but the ends of lines, and none that is not seen."""
  lines = text.split('\n')
  assert not {c for x in lines for c in x if unicodedata.category(c) in ('Cc', 'Cf', 'Zl', 'Zp')}


@pytest.fixture
def game(tmp_path):
  path = tmp_path / 'game.csv'
  with path.open('w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(['', *LABELS])
    writer.writerows([[label, *row] for label, row in zip(LABELS, SHARES, strict=True)])
  return path


def test_warnings_are_words_too():
  """In a process of its own: here, messages go where pytest has them."""
  code = """
import logging
from nlhf_jax.cli import main
main._COMMANDS['report'] = lambda args: logging.warning('%s is odd', '\\x1b]0;owned\\x07')
main.main(['report', '--run_dir=x'])
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stderr == 'nlhf report: WARNING: \\x1b]0;owned\\x07 is odd\n'


@pytest.mark.parametrize(
  'argv',
  [
    ['rank', '--votes'],
    ['solve', '--tau=0', '--num_steps=5', '--algorithm', 'omwu', '--game'],
    ['solve', '--aggregation', 'mean', '--game'],
  ],
  ids=lambda argv: ' '.join(argv[:2]),
)
def test_labels_are_words_on_the_terminal(argv, game, capsys, monkeypatch):
  monkeypatch.setenv('COLUMNS', '200')
  assert main.main([*argv, str(game)]) == 0
  output = capsys.readouterr()
  assert_harmless(output.out + output.err)
  assert all(label in output.out for label in SHOWN)


def test_labels_of_a_tournament(tmp_path, capsys):
  """In the tables that demo and win-rates print, in their CSV, and read back from it."""
  labels = (*LABELS[:2], '=1+1')
  table = sources.from_matrix(SHARES, labels)
  rates = win_rates.summarise(table.preference[None].repeat(4, axis=0), labels, LABELS[0])
  win_rates.write(tmp_path, rates)
  report.print_tables(tmp_path)
  shown = capsys.readouterr().out
  assert_harmless(shown)
  assert SHOWN[0] in shown and SHOWN[1] in shown
  assert sources.read_table(tmp_path / 'win_rates.csv').labels == (*labels[:2], "'=1+1")


def test_errors_and_warnings_are_lines_without_escapes(tmp_path, capsys, caplog):
  """What a file holds comes back in messages; so does what its name is."""
  path = tmp_path / 'votes\x1b[2J.jsonl'
  path.write_text(json.dumps({'a': LABELS[0], 'b': LABELS[0], 'verdict': 'a'}) + '\n')
  assert main.main(['rank', '--votes', str(path)]) == 2
  output = capsys.readouterr().err
  assert_harmless(output)
  assert output.count('\n') == 1 and r'votes\x1b[2J.jsonl:1: fields' in output
  record = logging.LogRecord('x', logging.WARNING, '', 0, 'Labels %s\n%s', LABELS[:2], None)
  assert_harmless(main._Printable().format(record))
