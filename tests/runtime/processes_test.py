"""Real processes on one machine: they train as one, go on as another number of them, and end together."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from nlhf_jax.runtime import checkpoints, processes, run_lock

SCRIPT = pathlib.Path(__file__).with_name('run_of_many.py')
ROOT = SCRIPT.parent.parent.parent
QUICK_TO_COMPILE = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


class Run:
  """The processes of one run."""

  def __init__(self, directory, num_steps, save_every, count=1, mesh=(), kind='policy'):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    self.directory, self._logs = directory, []
    self.members = []
    for index in range(count):
      join = [address, count, index, *mesh] if count > 1 else []
      argv = [sys.executable, SCRIPT, kind, directory, num_steps, save_every, *join]
      log = directory.with_name(f'{directory.name}.{count}.{index}.log')
      self._logs.append(log)
      environment = os.environ | {'PYTHONPATH': str(ROOT), 'XLA_FLAGS': QUICK_TO_COMPILE}
      environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
      self.members.append(
        subprocess.Popen(
          list(map(str, argv)),
          stdout=log.open('w'),
          stderr=subprocess.STDOUT,
          env=environment,
        )
      )

  def text(self, index=0) -> str:
    return self._logs[index].read_text()

  def wait(self, seconds=240) -> list[int]:
    return [member.wait(seconds) for member in self.members]

  def until_saved(self, step, seconds=240):
    """Waits until there is a checkpoint of this step or a later one."""
    end = time.monotonic() + seconds
    while (checkpoints.latest_step(self.directory / 'checkpoints') or 0) < step:
      assert time.monotonic() < end and self.members[0].poll() is None, self.text()
      time.sleep(0.05)

  def outcome(self):
    """Samples or the judge's test, metrics without times, and what the last checkpoint holds."""
    line = next(line for line in self.text().splitlines() if line.startswith('outcome'))
    samples = json.loads(line.removeprefix('outcome').partition(' step ')[0])
    rows = map(json.loads, (self.directory / 'metrics.jsonl').read_text().splitlines())
    metrics = [{k: v for k, v in row.items() if 'second' not in k} for row in rows]
    metadata = checkpoints.read_metadata(self.directory / 'checkpoints')
    return samples, metrics, metadata

  def trained(self) -> dict[str, np.ndarray]:
    """Parameters and their average, by name."""
    with np.load(self.directory / 'trained.npz') as arrays:
      return dict(arrays)


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return lambda name, *args, **kwargs: Run(root / name, *args, **kwargs)


@pytest.fixture(scope='module')
def alone(start):
  run = start('alone', 12, 4)
  assert run.wait() == [0], run.text()
  return run.outcome()


@pytest.fixture(scope='module')
def alone_by_sgd(start):
  run = start('alone_by_sgd', 12, 4, kind='sgd')
  assert run.wait() == [0], run.text()
  return run


def same_rollouts(run, other):
  """One process has written them, and of the rows that it holds."""
  read = lambda run: [
    json.loads(line) for line in (run.directory / 'votes.jsonl').read_text().splitlines()
  ]
  one, two = read(run), read(other)
  assert [vote['rollout']['step'] for vote in one] == [
    step for step in (1, 3, 6, 9, 12) for _ in '1234'
  ]
  for a, b in zip(one, two, strict=True):
    for name in ('prompt', 'a', 'b', 'response_a', 'response_b'):
      assert a[name] == b[name]
    assert a['probability'] == pytest.approx(b['probability'], abs=1e-5)


def same_numbers(run, other):
  """Metrics, parameters and average, to rounding. For runs by SGD: those by Adafactor differ by more than that."""
  one, two = run.outcome()[1], other.outcome()[1]
  assert [row['step'] for row in one] == [row['step'] for row in two]
  for a, b in zip(one, two, strict=True):
    # KL and loss are differences of sums of log-probs, of a dozen nats, which float32 holds to 1e-6.
    assert a == pytest.approx(b, rel=1e-5, abs=2e-6)
  one, two = run.trained(), other.trained()
  assert one.keys() == two.keys()
  for name, b in two.items():
    # An array's entries are sums of terms of like size, some of which cancel.
    assert np.abs(one[name] - b).max() <= 1e-5 * np.abs(b).max(), name


@pytest.mark.parametrize(('count', 'mesh'), [(2, (1, 1, 2)), (4, (2, 2, 1))])
def test_many_processes_are_one(count, mesh, start, alone_by_sgd):
  """The same samples and, to rounding, the same numbers; on another number of them it goes on to the same end."""
  run = start(f'many{count}', 9, 4, count=count, mesh=mesh, kind='sgd')
  assert run.wait() == [0] * count, run.text()
  again = start(f'many{count}', 12, 4, count=2 if count == 4 else 1, mesh=(2, 1, 1), kind='sgd')
  assert set(again.wait()) == {0}, again.text()
  samples, metrics, metadata = again.outcome()
  assert metrics[-1]['kl_to_reference'] > 0.1  # It has learnt something that could differ.
  assert samples == alone_by_sgd.outcome()[0]
  same_numbers(again, alone_by_sgd)
  same_rollouts(again, alone_by_sgd)
  assert metadata['next_batch'] == 12


@pytest.mark.parametrize('kind', ['by_rule', 'adapters', 'judge'])
def test_two_processes_are_one_in_other_kinds_of_runs(kind, start):
  """A judge that runs on the host and so must see all rows; adapters; the test of a judge that is sharded over both."""
  runs = [start(f'{kind}{n}', 6, 6, count=n, mesh=(1, 2, 1), kind=kind) for n in (1, 2)]
  assert [status for run in runs for status in run.wait()] == [0, 0, 0], runs[1].text()
  one, two = (run.outcome()[0] for run in runs)
  assert one == (pytest.approx(two, rel=1e-5) if kind == 'judge' else two)
  same_numbers(*runs)


def test_run_that_is_killed_ends_as_if_it_had_not_been(start, alone):
  """To the last bit: parameters, average, optimizer, metrics and samples; killed while it steps and while it saves."""
  for step in (4, 8):
    run = start('killed', 12, 4)
    run.until_saved(step)
    run.members[0].send_signal(signal.SIGKILL)
    run.wait()
  run = start('killed', 12, 4)
  assert run.wait() == [0], run.text()
  samples, metrics, metadata = run.outcome()
  assert (samples, metrics) == alone[:2]
  assert metadata['fingerprints'] == alone[2]['fingerprints']


@pytest.mark.parametrize('victim', [0, 1])
def test_others_end_when_one_is_killed(victim, start):
  run = start(f'victim{victim}', 100_000, 5, count=2)
  run.until_saved(5)
  run.members[victim].send_signal(signal.SIGKILL)
  before = time.monotonic()
  other = run.members[1 - victim].wait(60)
  assert time.monotonic() - before < 60
  assert other not in (0, None)
  text = run.text(1 - victim)
  assert 'an exchange failed' in text or 'another task died' in text


@pytest.mark.parametrize('count', [1, 2])
def test_lock_that_is_refused_ends_all(count, tmp_path):
  """The primary process alone asks for it; each says why it ends, and none is left waiting."""
  directory = tmp_path / 'run'
  with run_lock.held(directory):
    run = Run(directory, 9, 4, count=count)
    assert run.wait(120) == [2] * count, run.text()
    for index in range(count):
      assert f'refused: {directory} is in use: process {os.getpid()} on' in run.text(index)
    assert [path.name for path in directory.iterdir()] == [run_lock.FILE]


@pytest.mark.parametrize('count', [1, 2])
def test_sigterm_saves_and_ends(count, start):
  """And one process goes on from there: Adafactor's moments, sharded over two, are read as they were written."""
  run = start(f'asked{count}', 100_000, 100_000, count=count, mesh=(1, 2, 1))
  metrics = run.directory / 'metrics.jsonl'
  end = time.monotonic() + 240
  while not (metrics.is_file() and metrics.read_text()):
    assert time.monotonic() < end, run.text()
    time.sleep(0.05)
  run.members[-1].send_signal(signal.SIGTERM)
  assert run.wait(60) == [0] * count, run.text()
  step = int(run.text().split(' step ')[1].split()[0])
  assert 3 <= step < 100_000
  assert checkpoints.latest_step(run.directory / 'checkpoints') == step
  before = metrics.read_text()
  again = start(f'asked{count}', step + 3, 100_000)
  assert again.wait() == [0], again.text()
  assert metrics.read_text().startswith(before)  # Or it would have begun anew.
  assert not (run.directory / 'quarantine').exists()
  _, rows, metadata = again.outcome()
  assert [row['step'] for row in rows] == sorted({*range(3, step + 3, 3), step + 3})
  assert metadata['next_batch'] == step + 3
  assert None not in [value for row in rows for value in row.values()]
  assert all(np.isfinite(x).all() for x in again.trained().values())


def test_part_of_an_address_is_refused():
  with pytest.raises(ValueError, match='belong together: got localhost:1, 2, None'):
    processes.join('localhost:1', 2)
  with pytest.raises(ValueError, match=r'index of a process must be in \[0, 2\), got 2'):
    processes.join('localhost:1', 2, 2)


def test_gathered_arrays_are_numpy():
  assert isinstance(processes.gather({'x': np.ones(2)})['x'], np.ndarray)


@pytest.mark.parametrize(
  ('address', 'found'),
  [
    ('localhost:1234', r'(127\.0\.0\.1|\[::1\]):1234'),
    ('127.0.0.1:80', r'127\.0\.0\.1:80'),
    # Another machine's, a name of none, and what the cluster knows.
    ('192.0.2.1:80', None),
    ('no-such-host.invalid:80', None),
    (None, None),
  ],
)
def test_the_coordinator_listens_at_its_own_address(address, found):
  bound = processes.bind_address(address)
  assert bound is None if found is None else re.fullmatch(found, bound)


def test_a_name_that_is_loopback_here_is_reached_elsewhere(monkeypatch):
  """Debian gives a machine's own name the address 127.0.1.1: nobody else would reach it there."""
  answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.1.1', 0))]
  monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: answer)
  assert processes.bind_address('machine:80') is None
