"""Time is a list of seconds: what is printed follows from it by hand."""

import io
import re
import sys
import time

import pytest

from nlhf_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  return now


def test_lines_without_a_terminal(clock, capsys):
  with progress.bar('sft', 20, done=10) as advance:
    for step in range(10):
      clock[0] += 4
      advance(1)
      if step == 1:
        assert capsys.readouterr().err == ''  # After 8 s.
  # A step takes 4 s, so lines come every 12 s; the steps done before took no time of this run.
  assert capsys.readouterr().err.splitlines() == [
    'sft: 13/20, 0.25/s, 12 s, 28 s left',
    'sft: 16/20, 0.25/s, 24 s, 16 s left',
    'sft: 19/20, 0.25/s, 36 s, 4 s left',
    'sft: 20/20, 0.25/s, 40 s, 0 s left',
  ]


def test_bar_on_a_terminal(monkeypatch, capsys):
  """It goes to standard error: standard output stays clean for results."""
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('TERM', 'xterm')
  with progress.bar('sft', 4, done=1) as advance:
    advance(1)
    time.sleep(0.01)
    advance(2)
  assert 'sft' in terminal.getvalue()
  assert re.search(r'4/4 [\d.e+]+/s', re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', terminal.getvalue()))
  assert capsys.readouterr().out == ''
