"""What a run refuses before it writes anything, and what ends it on its way."""

import functools
import os
import shutil

import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.evaluation import distance
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.runtime import metrics, run_lock
from nlhf_jax.training import experiment, run
from nlhf_jax.types import EOS, PAD, Demonstration, Prompts, Rollout
from tests.tiny import t5_network


def batches(largest, start=0):
  tokens = np.full((2, 3), 5, np.int32)
  response = np.array([[largest, EOS, PAD]] * 2, np.int32)
  while True:
    yield Demonstration(Prompts(tokens, np.zeros(2, np.int32)), Rollout(response, response != PAD))


@pytest.mark.parametrize('where', ['batches', 'held_out'])
def test_tokens_beyond_the_embedding(tmp_path, where):
  network = t5_network(vocab_size=12)
  described = experiment.Experiment(
    model=policy.from_network(network, decoding.Sampling(max_length=3)),
    algorithm=algorithms.sft,
    batches=functools.partial(batches, 12 if where == 'batches' else 11),
    optimizer=optax.sgd(0.1),
    num_steps=1,
    network=network,
    held_out=(lambda: next(batches(12))) if where == 'held_out' else None,
  )
  with pytest.raises(
    ValueError, match='The data have token 12, but the network has embeddings of 0 to 11'
  ):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('every', 'log_every'), [(25, 10), (5, 10), (0, 10)])
def test_measurements_that_would_be_left_out(tmp_path, every, log_every):
  """The loop logs every tenth step: of each 25th it would measure every other alone."""
  network = t5_network(vocab_size=12)
  described = experiment.Experiment(
    model=policy.from_network(network, decoding.Sampling(max_length=3)),
    algorithm=algorithms.sft,
    batches=functools.partial(batches, 11),
    optimizer=optax.sgd(0.1),
    num_steps=100,
    network=network,
    measured=distance.Measured({}, lambda prompts: None, tau=0.1, every=every),
    log_every=log_every,
  )
  with pytest.raises(ValueError, match=f'Measured.every is {every}, .*set Measured.every to [12]0'):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def sft(read=lambda number: None, **changes):
  """Three steps, each of which is logged and saved; `read` is called with the number of each batch."""

  def numbered(start=0):
    for number, batch in enumerate(batches(11), start=start):
      read(number)
      yield batch

  network = t5_network(vocab_size=12)
  settings = {'log_every': 1, 'save_every': 1, 'num_steps': 3, 'optimizer': optax.sgd(0.1)}
  return experiment.Experiment(
    model=policy.from_network(network, decoding.Sampling(max_length=3)),
    algorithm=algorithms.sft,
    batches=numbered,
    **settings | changes,
  )


def test_second_process_is_refused_before_it_reads_anything(tmp_path):
  def read(number):
    pytest.fail('read data')

  with run_lock.held(tmp_path / 'run'):
    with pytest.raises(run_lock.InUseError, match=f'in use: process {os.getpid()} on'):
      run.train(sft(read), tmp_path / 'run')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


@pytest.mark.parametrize('save_every', [1, None])
def test_run_whose_directory_is_removed_stops(tmp_path, capfd, save_every):
  """And does not make it again, but for a save that orbax was at just then."""

  def read(number):
    if number == 2:
      shutil.rmtree(tmp_path / 'run')

  with pytest.raises(OSError, match=r'run has been removed|Saving to .*No such file') as caught:
    run.train(sft(read, num_steps=100, save_every=save_every), tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert save_every or not list(tmp_path.iterdir())
  assert 'Traceback' not in capfd.readouterr().err


def test_full_disk_while_logging_and_the_run_after_it(tmp_path):
  """/dev/full takes no byte. What was saved before is gone on from."""
  run.train(sft(num_steps=1), tmp_path / 'run', {'name': 'sft'})
  log = tmp_path / 'run' / 'metrics.jsonl'
  log.rename(tmp_path / 'kept')
  log.symlink_to('/dev/full')
  with pytest.raises(
    OSError, match=r'^Writing .*metrics.jsonl failed \(No space left on device\)'
  ) as caught:
    run.train(sft(), tmp_path / 'run', {'name': 'sft'})
  assert '\n' not in str(caught.value)
  log.unlink()
  (tmp_path / 'kept').rename(log)
  assert int(run.train(sft(), tmp_path / 'run', {'name': 'sft'}).step) == 3
  assert [row['step'] for row in metrics.read_rows(log)] == [1, 2, 3]
  assert not (tmp_path / 'run' / '.lock').exists()
