"""What is restored is what was saved; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.runtime import checkpoints, metrics, run_directory
from nlhf_jax.types import PolicyParams, TrainState


def state(vocab: int = 5, extra: bool = False) -> TrainState:
  params = {'token_embedder': {'embedding': jnp.arange(vocab * 2.0).reshape(vocab, 2)}}
  if extra:
    params['more'] = jnp.ones(3)
  ema = jax.tree.map(lambda x: x + 1, params)
  return TrainState(
    jnp.int32(7),
    PolicyParams(params, ema, params),
    {'m': jnp.ones(2, jnp.bfloat16)},
    jax.random.PRNGKey(3),
  )


@pytest.fixture
def saved(tmp_path):
  checkpoints.save(tmp_path / 'c', 7, state())
  return tmp_path / 'c'


def test_round_trip_is_exact(saved):
  like = jax.tree.map(jnp.zeros_like, state())
  restored = checkpoints.restore(saved, like)
  for name in ('step', 'opt_state', 'rng'):
    jax.tree.map(np.testing.assert_array_equal, getattr(restored, name), getattr(state(), name))
  jax.tree.map(np.testing.assert_array_equal, restored.params[:2], state().params[:2])
  jax.tree.map(np.testing.assert_array_equal, restored.params.reference, like.params.reference)


def test_one_parameter_set_can_be_read_alone(saved):
  like = jax.eval_shape(lambda: state().params.ema)
  found = checkpoints.restore_params(saved, like, 'ema')
  jax.tree.map(np.testing.assert_array_equal, found, state().params.ema)


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (state(vocab=6), r'embedding \(5, 2\), the network expects \(6, 2\).*VOCAB_SIZE = 5'),
    (state(extra=True), 'lacks more'),
  ],
)
def test_what_does_not_fit_is_named(saved, like, message):
  with pytest.raises(ValueError, match=message):
    checkpoints.restore_params(saved, like.params.online, 'online')


def test_no_checkpoint_is_an_error_with_a_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='train that run first'):
    checkpoints.restore_params(tmp_path / 'none', {}, 'online')
  assert checkpoints.latest_step(tmp_path / 'none') is None


def test_metrics_of_a_resumed_run_are_not_doubled(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.scalars(step, {'loss': float(step), 'bad': float('nan')})
  with metrics.Writer(tmp_path, resume_step=2) as writer:
    writer.scalars(3, {'loss': 30.0})
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  assert [(row['step'], row['loss']) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert rows[0]['bad'] is None
  assert list(tmp_path.glob('events.*'))


def test_a_directory_belongs_to_one_configuration(tmp_path):
  run = tmp_path / 'run'
  run_directory.open(run, 'A = 1\nB = 2\n')
  run_directory.open(run, 'A = 1\nB = 2\n')
  with pytest.raises(ValueError, match=r"config.gin:2: 'B = 2', now 'B = 3'.*another --run_dir"):
    run_directory.check(run, 'A = 1\nB = 3\n')
  assert run_directory.config(run) == 'A = 1\nB = 2\n'
