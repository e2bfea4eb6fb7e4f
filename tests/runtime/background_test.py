"""Writers that fail, hang or lag cost a run one line, and nothing else."""

import logging
import pathlib
import shutil
import threading
import time

import pytest

from nlhf_jax.runtime import background, events, metrics
from tests.runtime.metrics_test import shown


class Recorder:
  """A writer that keeps what it is told; made with one name, as trackers are."""

  def __init__(self, **functions):
    self.calls, self.threads, self._functions = [], set(), functions

  def make(self, about):
    def function(name):
      def call(*args):
        self.threads.add(threading.get_ident())
        self._functions.get(name, lambda *args: None)(*args)
        self.calls.append((name, *args))

      return call

    self.about = about
    return metrics.Writer(*map(function, ('scalars', 'text', 'close')))


def report(tmp_path, *makers, steps=3, patience=5.0, fine=True):
  about = metrics.About(tmp_path, {'Experiment.num_steps': steps})
  try:
    with background.open_all(about, makers, patience) as writer:
      for step in range(steps):
        writer.scalars(step, {'loss': 1.0})
      writer.text(steps, 'length_drift', 'long')
      if not fine:
        raise KeyError
  except KeyError:
    pass
  return [row['step'] for row in metrics.read_rows(tmp_path / 'metrics.jsonl')]


@pytest.mark.parametrize('fine', [True, False])
def test_calls_come_in_order_from_a_thread_of_their_own(tmp_path, fine):
  recorder = Recorder()
  assert report(tmp_path, recorder.make, fine=fine) == [0, 1, 2]
  assert recorder.calls == [
    *(('scalars', step, {'loss': 1.0}) for step in range(3)),
    ('text', 3, 'length_drift', 'long'),
    ('close', fine),
  ]
  assert recorder.about.fields == {'Experiment.num_steps': 3}
  assert len(recorder.threads) == 1 and threading.get_ident() not in recorder.threads


def raises(error):
  def function(*args):
    raise error

  return function


@pytest.mark.parametrize('where', ['make', 'scalars', 'text', 'close'])
@pytest.mark.parametrize('error', [ConnectionError('no route'), SystemExit(1)], ids=repr)
def test_failure_is_one_warning(tmp_path, caplog, where, error):
  good, bad = Recorder(), Recorder(**{where: raises(error)})
  make = raises(error) if where == 'make' else bad.make
  assert report(tmp_path, make, good.make) == [0, 1, 2]
  assert [name for name, *_ in good.calls] == ['scalars'] * 3 + ['text', 'close']
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  assert str(error) in record.getMessage() and 'metrics.jsonl has them all' in record.getMessage()


@pytest.mark.parametrize('where', ['make', 'scalars', 'close'])
def test_writer_that_hangs_is_left(tmp_path, caplog, where):
  free = threading.Event()
  stuck = Recorder(**{where: lambda *args: free.wait()})

  def make(about):
    if where == 'make':
      free.wait()
    return stuck.make(about)

  start = time.monotonic()
  assert report(tmp_path, make, patience=0.2) == [0, 1, 2]
  assert time.monotonic() - start < 3
  (record,) = caplog.records
  assert 'did not end within 0.2 s' in record.getMessage()
  free.set()


def test_writer_that_lags_loses_reports_not_time(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(background, '_CAPACITY', 5)
  free = threading.Event()
  assert len(report(tmp_path, Recorder(scalars=lambda *a: free.wait()).make, steps=50)) == 50
  # TensorBoard's file may lag too, by five of fifty reports that come at once.
  (record,) = [x for x in caplog.records if 'writer Recorder' in x.getMessage()]
  assert '5 reports wait for it' in record.getMessage()
  free.set()


def test_forgotten_parentheses(tmp_path, caplog):
  """`@trackers.wandb` in place of `@trackers.wandb()` is called with the run, and makes no writer."""

  def tracker(project='p'):
    return lambda about: Recorder().make(about)

  report(tmp_path, tracker)
  assert 'not a metrics.Writer' in caplog.text and 'parentheses' in caplog.text


def test_secrets_are_not_logged(tmp_path, caplog, monkeypatch):
  monkeypatch.setenv('SOME_API_KEY', 'sesame-123')
  bad = raises(ConnectionError('https://me:pass-456@host refused sesame-123'))
  report(tmp_path, Recorder(scalars=bad).make)
  assert 'https://…@host refused $SOME_API_KEY' in caplog.text
  assert 'sesame' not in caplog.text and 'pass-456' not in caplog.text


def test_full_disk_ends_the_run_with_the_reason(tmp_path):
  """/dev/full takes no byte; other writers are told that the run did not end well."""
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  recorder = Recorder()
  reason = r'^Writing .*metrics.jsonl failed \(No space left on device\): see to its space'
  about = metrics.About(tmp_path)
  with (
    pytest.raises(OSError, match=reason),
    background.open_all(about, [recorder.make]) as writer,
  ):
    writer.scalars(1, {'loss': 1.0})
  assert recorder.calls == [('close', False)]


def test_full_disk_under_tensorboard_is_one_warning(tmp_path, caplog, monkeypatch, capfd):
  """No thread leaves a traceback; metrics.jsonl has all."""
  monkeypatch.setattr(events, '_new_path', lambda _: pathlib.Path('/dev/full'))
  assert report(tmp_path) == [0, 1, 2]
  (record,) = caplog.records
  assert (
    'writer tensorboard gets no more reports (OSError: [Errno 28] No space' in record.getMessage()
  )
  assert 'Traceback' not in capfd.readouterr().err


def test_clock_that_steps_back(tmp_path, caplog, monkeypatch):
  """By 60 days, on the way: everything is written, and nothing waits."""
  now, start = time.time, time.monotonic()
  with background.open_all(metrics.About(tmp_path)) as writer:
    for step in range(100):
      writer.scalars(step, {'loss': 1.0})
      monkeypatch.setattr(time, 'time', lambda: now() - 60 * 86400)
  assert time.monotonic() - start < 20
  assert len(metrics.read_rows(tmp_path / 'metrics.jsonl')) == 100
  assert shown(tmp_path) == [(step, 1.0) for step in range(100)]
  assert not caplog.records


def test_directory_that_is_removed(tmp_path):
  run_dir = tmp_path / 'run'
  run_dir.mkdir()
  with (
    pytest.raises(OSError, match=r'Writing .*metrics.jsonl failed \(No such file or directory\)'),
    background.open_all(metrics.About(run_dir)) as writer,
  ):
    # In one step: the writer's thread may just be making a file in it.
    run_dir.rename(tmp_path / 'removed')
    shutil.rmtree(tmp_path / 'removed', ignore_errors=True)
    writer.scalars(1, {'loss': 1.0})
  assert not run_dir.exists()
