"""What is restored is what was saved; what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.runtime import checkpoints
from nlhf_jax.types import PolicyParams, TrainState


def state(vocab: int = 5, extra: bool = False) -> TrainState:
  params = {
    'token_embedder': {'embedding': jnp.arange(vocab * 2.0).reshape(vocab, 2) / 3},
    'decoder': {'logits_dense': {'kernel': jnp.ones((2, vocab))}},
  }
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
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))


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


def test_keys_with_a_type_are_restored_as_such(tmp_path):
  like = state()._replace(rng=jax.random.key(0))
  checkpoints.save(tmp_path, 7, like._replace(rng=jax.random.key(3)))
  restored = checkpoints.restore(tmp_path, like)
  drawn = jax.random.bits(restored.rng, (4,))
  np.testing.assert_array_equal(drawn, jax.random.bits(jax.random.key(3), (4,)))


def test_another_optimizer_is_named(tmp_path):
  def like(optimizer):
    return state()._replace(opt_state=optimizer.init(state().params.online))

  checkpoints.save(tmp_path, 7, like(optax.adam(1.0)))
  with pytest.raises(ValueError, match=r'holds 0/mu/token_embedder/embedding \(5, 2\).*optimizer'):
    checkpoints.restore(tmp_path, like(optax.sgd(1.0)))


def test_the_newest_are_kept_and_none_is_passed_over_in_silence(tmp_path):
  for step in (1, 2, 3):
    checkpoints.save(tmp_path, step, state(), keep=2)
  assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 3]
  assert checkpoints.latest_step(tmp_path) == 3
  with pytest.raises(ValueError, match='already holds step 3, so step 2 was not saved'):
    checkpoints.save(tmp_path, 2, state())


def test_a_save_that_was_killed_is_passed_over(saved):
  (saved / '9.orbax-checkpoint-tmp').mkdir()
  assert checkpoints.latest_step(saved) == 7


def test_a_missing_step_or_parameter_set_is_named(saved):
  with pytest.raises(FileNotFoundError, match='No whole checkpoint of step 8'):
    checkpoints.restore(saved, state(), step=8)
  with pytest.raises(ValueError, match=r"no parameter set 'reference': .*'ema', 'online'"):
    checkpoints.restore_params(saved, {}, 'reference')


def test_no_checkpoint_is_an_error_with_a_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='train that run first'):
    checkpoints.restore_params(tmp_path / 'none', {}, 'online')
  assert checkpoints.latest_step(tmp_path / 'none') is None
