"""What strangers wrote is text: on a terminal, in a table of rich, and in a spreadsheet."""

import csv
import io
import json
import unicodedata

import pytest
import rich.console
import rich.table

from nlhf_jax import untrusted

# What a terminal or a reader's eye would obey.
STEERING = {
  'clears the screen': '\x1b[2J\x1b[H',
  'sets the title': '\x1b]0;owned\x07',
  'writes the clipboard': '\x1b]52;c;cm0gLXJm\x1b\\',
  'links elsewhere': '\x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\',
  'begins with one byte': '\x9b31m',
  'overwrites the line': 'bad\rgood',
  'goes back': 'bad\b\b\b',
  'forges a line': 'a\nnlhf: all is well',
  'ends a line elsewhere': 'a\u2028b\x85c\x0bd\x0ce',
  'turns letters around': 'a\u202egpj.exe\u2066b\u2069',
  'hides letters': 'a\u200bb\u2060c\ufeffd\U000e0041',
  'is half a character': 'a\ud800',
}
WORDS = 'Wörter, 言葉　と, שלום, emoji 🙂, a no-break\u00a0space, = [bold]x[/] :bomb: \\'


@pytest.mark.parametrize('what', STEERING)
def test_nothing_steers_a_terminal(what):
  shown = untrusted.printable(STEERING[what])
  controls = {c for c in shown if unicodedata.category(c) in ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')}
  assert not controls and len(shown.splitlines()) == 1
  # It is told what was there.
  hidden = [c for c in STEERING[what] if not c.isprintable()]
  assert hidden and all(c.encode('unicode_escape').decode() in shown for c in hidden)


@pytest.mark.parametrize('what', STEERING)
def test_json_for_a_terminal_is_json(what):
  line = untrusted.json_line({'text': STEERING[what] + WORDS})
  assert untrusted.printable(line) == line
  assert json.loads(line) == {'text': STEERING[what] + WORDS}


def test_words_of_all_languages_stay():
  assert untrusted.printable(WORDS) == WORDS
  assert untrusted.json_line([WORDS[:-1]]) == f'["{WORDS[:-1]}"]'


def test_rich_reads_no_markup():
  """Nor emoji by name, nor a backslash at the end, nor control sequences; in cells, columns and titles."""
  label = untrusted.as_text(f'{WORDS}{STEERING["clears the screen"]}')
  table = rich.table.Table(title=untrusted.as_text('[red]title[/red]'))
  table.add_column(label)
  table.add_row(label)
  out = io.StringIO()
  rich.console.Console(file=out, width=200).print(table, label)
  shown = out.getvalue()
  assert shown.count(f'{WORDS}\\x1b[2J\\x1b[H') == 3 and '[red]title[/red]' in shown
  assert '\x1b' not in shown


def test_spreadsheets_make_no_formula():
  cells = [
    '=1+1',
    '+A1',
    '-A1',
    '@SUM(A1)',
    '\t=1',
    '\r=1',
    ' =1',
    "=cmd|'/c calc'!A1",
    'plain',
    '',
  ]
  numbers = [-0.5, 3, None, '-0.5', '+1e-3', '0.25']
  out = io.StringIO()
  csv.writer(out).writerow(untrusted.csv_row([*cells, *numbers]))
  (row,) = csv.reader(io.StringIO(out.getvalue(), newline=''))
  assert row[:8] == [f"'{cell}" for cell in cells[:8]] and row[8:10] == ['plain', '']
  assert row[10:] == ['-0.5', '3', '', '-0.5', '+1e-3', '0.25']


def test_messages_are_short_lines():
  assert untrusted.message('a\nb \x1b[2J') == r'a b \x1b[2J'
  assert len(untrusted.message('x' * 10**6)) == 600
  assert untrusted.quoted('x' * 10**6) == f"'{'x' * 120}'…"
  assert untrusted.quoted({'k': 'x' * 10**6}).endswith('…')


@pytest.mark.parametrize(
  ('content', 'line', 'message'),
  [
    (b'{"a": 1,\n"a": 2}', 1, "the key 'a' stands twice in one object"),
    (b'{"a": 1,\n\n 5}', 3, 'not JSON'),
    (b'{"a":\n"\xff"}', 2, r'not UTF-8 \(byte 0xff at column 2\)'),
    (b'\xef\xbb\xbf{"a":\n"\xff"}', 2, r'not UTF-8 \(byte 0xff at column 2\)'),
    (b'{"a": {"b": 1, "b": 1}}', 1, "the key 'b' stands twice"),
    (b'[' * 100_000, 1, 'nested too deep'),
    (b'9' * 5000, 1, 'more than 4,300 digits'),
  ],
)
def test_json_says_where(content, line, message):
  with pytest.raises(untrusted.ContentError, match=message) as caught:
    untrusted.parse_json(content)
  assert caught.value.line == line
