"""One writer to a directory: another is refused, a dead one is followed, and one whose directory is gone is told."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from nlhf_jax.runtime import run_lock

# Holds the directory's lock, says so, and waits; beside a process of its own that outlives it.
HOLDER = """
import pathlib, subprocess, sys, time
from nlhf_jax.runtime import run_lock
try:
  with run_lock.held(pathlib.Path(sys.argv[1])):
    child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(child.pid, flush=True)
    time.sleep(60)
except OSError as error:
  sys.exit(str(error))
"""
# Adds 1 to a number by reading and writing it, thirty times.
COUNTER = """
import pathlib, sys, time
from nlhf_jax.runtime import run_lock
directory, number = map(pathlib.Path, sys.argv[1:])
added = 0
while added < 30:
  try:
    with run_lock.held(directory):
      number.write_text(str(int(number.read_text()) + 1))
      added += 1
  except run_lock.InUseError:
    time.sleep(0.001)
"""


def python(code, *argv):
  command = [sys.executable, '-c', code, *map(str, argv)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_third_writer_is_refused_and_follows_what_was_killed(tmp_path):
  """The kernel takes the locks back, though a child of each dead holder lives on."""
  runs = [tmp_path / 'one', tmp_path / 'two']
  holders = [python(HOLDER, run) for run in runs]
  children = [int(holder.stdout.readline()) for holder in holders]
  try:
    for run, holder in zip(runs, holders, strict=True):
      with pytest.raises(run_lock.InUseError) as caught, run_lock.held(run):
        pass
      message = str(caught.value)
      assert f'{run} is in use: process {holder.pid} on {socket.gethostname()}, since 2' in message
      assert 'name another.' in message and '\n' not in message
      refused = python(HOLDER, run)
      assert (refused.wait(30), f'process {holder.pid} on' in refused.stderr.read()) == (1, True)
    for holder in holders:
      holder.send_signal(signal.SIGKILL)
      holder.wait(30)
    for run in runs:
      assert (run / run_lock.FILE).exists()
      with run_lock.held(run):
        assert json.loads((run / run_lock.FILE).read_text())['process'] == os.getpid()
      assert not list(run.iterdir())
  finally:
    for child in children:
      os.kill(child, signal.SIGKILL)


def test_locks_that_come_and_go(tmp_path):
  """Each holder makes the file and removes it again, and no two ever have it at once."""
  number = tmp_path / 'number'
  number.write_text('0')
  counters = [python(COUNTER, tmp_path / 'run', number) for _ in range(3)]
  assert [counter.communicate(timeout=60) for counter in counters] == [('', '')] * 3
  assert number.read_text() == '90'
  assert [path for path in tmp_path.rglob('*') if path.is_file()] == [number]


@pytest.mark.parametrize('fine', [True, False])
def test_directory_is_left_as_it_was_found_or_as_it_was_filled(tmp_path, fine):
  kept = tmp_path / 'kept'
  kept.mkdir()
  for run, left in ((tmp_path / 'new' / 'run', []), (kept, []), (tmp_path / 'filled', ['file'])):
    try:
      with run_lock.held(run):
        for name in left:
          (run / name).write_text('')
        if not fine:
          raise KeyError
    except KeyError:
      pass
    assert run.exists() == (bool(left) or run == kept)
    assert [path.name for path in run.glob('*')] == left
  assert not (tmp_path / 'new').exists()


def move(run):
  run.rename(run.with_name('moved'))


def replace(run):
  """Another run has been started in its place."""
  shutil.rmtree(run)
  run.mkdir()
  (run / run_lock.FILE).write_text('{}')


@pytest.mark.parametrize('away', [shutil.rmtree, move, replace])
@pytest.mark.parametrize('when', ['on the way', 'at the end'])
def test_error_of_a_directory_that_is_gone(tmp_path, away, when):
  run = tmp_path / 'run'
  with (
    pytest.raises(FileNotFoundError, match=r'/run has been removed, moved or replaced') as caught,
    run_lock.held(run) as check,
  ):
    check()
    away(run)
    if when == 'on the way':
      check()
      pytest.fail('went on')
  assert '\n' not in str(caught.value)
  # What stands there now is another's.
  assert (run / run_lock.FILE).exists() == (away is replace)


def test_same_process_is_refused_too(tmp_path):
  with run_lock.held(tmp_path):
    with (
      pytest.raises(run_lock.InUseError, match=f'process {os.getpid()} on'),
      run_lock.held(tmp_path),
    ):
      pass
    assert (tmp_path / run_lock.FILE).exists()


def test_file_is_locked_apart_from_its_directory(tmp_path):
  votes = tmp_path / 'new' / 'votes.jsonl'
  with run_lock.file_held(votes), run_lock.file_held(votes.with_name('others.jsonl')):
    with (
      pytest.raises(run_lock.InUseError, match=rf'votes\.jsonl is in use: process {os.getpid()}'),
      run_lock.file_held(votes),
    ):
      pass
    votes.write_text('')
  assert list(votes.parent.iterdir()) == [votes]


def test_link_stands_for_its_file(tmp_path):
  votes, link = tmp_path / 'votes.jsonl', tmp_path / 'elsewhere' / 'link.jsonl'
  link.parent.mkdir()
  link.symlink_to(votes)
  with (
    run_lock.file_held(link),
    pytest.raises(run_lock.InUseError, match='is in use'),
    run_lock.file_held(votes),
  ):
    pass


def test_holder_that_has_not_written_who_it_is(tmp_path):
  with (tmp_path / run_lock.FILE).open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with (
      pytest.raises(run_lock.InUseError, match='is in use: another process writes to it'),
      run_lock.held(tmp_path),
    ):
      pass


def test_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
  def none(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', none)
  with run_lock.held(tmp_path / 'run') as check:
    check()
  assert 'cannot be locked (No locks available): see to it that nothing else' in caplog.text


def test_full_disk_is_named(tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  with (
    pytest.raises(OSError, match=r'No space left on device.*run/.lock'),
    run_lock.held(tmp_path / 'run'),
  ):
    pass
  assert not list(tmp_path.iterdir())


def test_directory_that_cannot_be_made_or_written_to(tmp_path):
  (tmp_path / 'file').write_text('')
  for run in (tmp_path / 'file', tmp_path / 'file' / 'run', tmp_path.__class__('/proc/nlhf')):
    with pytest.raises(OSError, match=str(run)), run_lock.held(run):
      pass


def test_clock_that_steps_back(tmp_path, monkeypatch):
  """Nothing of a lock depends on the time."""
  now = time.time
  with run_lock.held(tmp_path) as check:
    monkeypatch.setattr(time, 'time', lambda: now() - 60 * 86400)
    check()


@pytest.mark.parametrize(
  'target', ['{out}/theirs', '{out}/none/new', '{out}/new', 'config.gin', '.lock']
)
def test_link_in_place_of_the_lock_is_refused(tmp_path, target):
  """A lock replaces its file's content: of a link, wherever it leads, nothing is touched; and no writer waits for ever."""
  out, run = tmp_path / 'out', tmp_path / 'run'
  for directory in (out, run):
    directory.mkdir()
  for path in (out / 'theirs', run / 'config.gin'):
    path.write_text('theirs')
  link = run / run_lock.FILE
  link.symlink_to(target.format(out=out))
  refused = python(HOLDER, run)
  error = refused.communicate(timeout=60)[1]
  assert error.startswith(f'{link} is a link to ') and 'delete the link' in error
  assert (refused.returncode, error.count('\n')) == (1, 1)
  assert link.is_symlink() and [path.name for path in out.iterdir()] == ['theirs']
  assert {path.read_text() for path in (out / 'theirs', run / 'config.gin')} == {'theirs'}


def test_link_that_takes_the_place_of_the_lock_is_not_its_file(tmp_path):
  """It may lead to the very file that is locked."""
  run, moved = tmp_path / 'run', tmp_path / 'moved'
  with pytest.raises(FileNotFoundError, match='has been removed'), run_lock.held(run) as check:
    (run / run_lock.FILE).rename(moved)
    (run / run_lock.FILE).symlink_to(moved)
    check()
  assert moved.exists()
