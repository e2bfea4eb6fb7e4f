"""Ctrl-C at real processes: what was asked for is said in one line, and what can be saved is."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from nlhf_jax.cli import main
from nlhf_jax.runtime import checkpoints, processes
from tests.cli.main_test import EVALUATION, SFT, SMALL

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ENDLESS = ('--gin.NUM_STEPS=1000000', '--gin.experiment.Experiment.log_every=1', *SMALL)


class Process:
  """`nlhf` as a terminal starts it."""

  def __init__(self, directory: pathlib.Path, *argv):
    self._log = directory / 'log'
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'nlhf_jax', *map(str, argv)],
      stdout=self._log.open('w'),
      stderr=subprocess.STDOUT,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
    )

  @property
  def text(self) -> str:
    return self._log.read_text()

  def until(self, reached, seconds=240):
    end = time.monotonic() + seconds
    while not reached():
      assert time.monotonic() < end and self._process.poll() is None, self.text
      time.sleep(0.02)

  def interrupt(self):
    self._process.send_signal(signal.SIGINT)

  def wait(self) -> int:
    return self._process.wait(240)


@pytest.fixture
def training(tmp_path):
  process = Process(tmp_path, 'train', SFT, f'--run_dir={tmp_path / "run"}', *ENDLESS)
  yield process
  process._process.kill()


def test_once_while_it_trains(training, tmp_path):
  metrics = tmp_path / 'run' / 'metrics.jsonl'
  training.until(lambda: metrics.exists() and metrics.read_text().count('\n') > 3)
  training.interrupt()
  assert training.wait() == 0
  (step,) = checkpoints.steps(tmp_path / 'run' / 'checkpoints')
  assert re.search(rf'Stopped: .*run at step {step} of 1000000; run again to go on', training.text)
  assert 'Ends after this step, and saves' in training.text
  assert 'Traceback' not in training.text


def test_twice(training, tmp_path):
  """Before the first step is done: nothing is there to be saved."""
  training.until(lambda: (tmp_path / 'run' / 'config.gin').exists())
  training.interrupt()
  training.until(lambda: 'Ends after' in training.text)
  training.interrupt()
  assert training.wait() in (0, 130)
  assert 'Traceback' not in training.text


def test_before_it_trains(tmp_path, monkeypatch, capsys):
  """A library that swallows it does not swallow it for good."""

  def train(args):
    with contextlib.suppress(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    with processes.termination():
      pytest.fail('It went on.')

  before = signal.getsignal(signal.SIGINT)
  monkeypatch.setitem(main._COMMANDS, 'train', train)
  try:
    processes.remember_interrupts()
    assert main.main(['train', '--run_dir=x']) == 130
  finally:
    signal.signal(signal.SIGINT, before)
    processes._interrupted.clear()
  assert capsys.readouterr().err.startswith('nlhf train: interrupted')


def test_while_policies_are_compared(tmp_path):
  argv = ['train', SFT, f'--run_dir={tmp_path / "sft"}', '--gin.NUM_STEPS=1', *SMALL]
  assert Process(tmp_path, *argv).wait() == 0
  out = tmp_path / 'out'
  many = ['--gin.tournament.Evaluation.num_samples=5000', *(x for x in SMALL if 'corpora' in x)]
  runs = [f'--output_dir={out}', '--run_dirs', f'SFT={tmp_path / "sft"}', f'B={tmp_path / "sft"}']
  process = Process(tmp_path, 'win-rates', EVALUATION, *many, *runs)
  process.until(lambda: list(out.glob('*votes.jsonl*')))
  process.interrupt()
  assert process.wait() == 130
  assert 'nlhf win-rates: interrupted' in process.text and 'Traceback' not in process.text
  assert not list(tmp_path.glob('out/*'))
