"""What a run refuses before it writes anything."""

import functools

import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.evaluation import distance
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
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
