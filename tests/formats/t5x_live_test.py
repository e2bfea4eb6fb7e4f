"""Beside T5X itself, where it is installed (requirements-t5x.txt): one network, and checkpoints in both directions."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.formats import t5x
from nlhf_jax.networks import t5
from nlhf_jax.types import PolicyParams, TrainState

pytest.importorskip('t5x.train_state', reason='T5X is not installed: see requirements-t5x.txt')

import seqio
from t5x import adafactor, checkpoints, models, partitioning, utils
from t5x.examples.t5 import network as t5x_network

SIZES = {
  'vocab_size': 160,
  'emb_dim': 130,
  'num_heads': 2,
  'num_encoder_layers': 1,
  'num_decoder_layers': 2,
  'head_dim': 4,
  'mlp_dim': 140,
  'mlp_activations': ('gelu', 'linear'),
  'dropout_rate': 0.0,
}
SHAPES = {
  'encoder_input_tokens': (2, 6),
  'decoder_input_tokens': (2, 4),
  'decoder_target_tokens': (2, 4),
}
LEARNING_RATE = 1e-2


@pytest.fixture(scope='module')
def theirs():
  """T5X's model with its Adafactor, its partitioner, and a fresh state."""
  vocabulary = seqio.ByteVocabulary()
  model = models.EncoderDecoderModel(
    t5x_network.Transformer(t5x_network.T5Config(**SIZES, dtype='float32')),
    vocabulary,
    vocabulary,
    adafactor.Adafactor(
      decay_rate=0.8, logical_factor_rules=adafactor.standard_logical_factor_rules()
    ),
  )
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes=SHAPES,
    partitioner=partitioner,
  )
  return model, partitioner, initializer.from_scratch(jax.random.PRNGKey(0))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  tokens = {name: jnp.asarray(rng.integers(2, 160, s), jnp.int32) for name, s in SHAPES.items()}
  tokens['encoder_input_tokens'] = tokens['encoder_input_tokens'].at[1, 4:].set(0)
  tokens['decoder_loss_weights'] = jnp.ones(SHAPES['decoder_target_tokens'])
  return tokens


def _ours(params, batch):
  network = t5.Transformer(t5.T5Config(**SIZES))
  apply = jax.jit(lambda *args: network.apply({'params': params}, *args, enable_dropout=False))
  return apply(*(batch[name] for name in SHAPES))


def test_identical_logits(theirs, batch):
  model, _, state = theirs
  apply = jax.jit(
    lambda *args: model.module.apply({'params': state.params}, *args, enable_dropout=False)
  )
  np.testing.assert_array_equal(
    _ours(state.params, batch), apply(*(batch[name] for name in SHAPES))
  )


@pytest.mark.parametrize('layout', ['native', 'orbax'])
def test_t5x_resumes_from_our_checkpoints(theirs, batch, layout, tmp_path):
  """Three steps here, then one more on either side, from the same moments: the same parameters."""
  model, partitioner, start = theirs
  optimizer = optax.adafactor(LEARNING_RATE, decay_rate=0.8)

  @jax.jit
  def update(params, opt_state):
    loss = lambda p: model.loss_fn(p, batch, None)[0]
    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  params = flax.core.unfreeze(start.params)
  opt_state = optimizer.init(params)
  for _ in range(3):
    params, opt_state = update(params, opt_state)
  written = TrainState(jnp.int32(3), PolicyParams(params), opt_state, None)
  t5x.save(written, tmp_path, layout)
  if layout == 'native':
    checkpointer = checkpoints.Checkpointer(start, partitioner, str(tmp_path))
  else:
    checkpointer = checkpoints.OrbaxCheckpointManagerInterface(str(tmp_path), start, partitioner)
  resumed = checkpointer.restore(step=3)
  assert int(resumed.step) == 3
  jax.tree.map(np.testing.assert_array_equal, flax.core.unfreeze(resumed.params), params)
  gradient = jax.grad(lambda p: model.loss_fn(p, batch, None)[0])(resumed.params)
  theirs_next = resumed.apply_gradient(gradient, learning_rate=LEARNING_RATE).params
  theirs_next = flax.core.unfreeze(theirs_next)
  ours_next, _ = update(params, opt_state)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), theirs_next, ours_next
  )


@pytest.mark.parametrize('layout', ['native', 'orbax'])
def test_checkpoints_of_t5x(theirs, batch, layout, tmp_path):
  _, partitioner, state = theirs
  if layout == 'native':
    checkpoints.Checkpointer(state, partitioner, str(tmp_path)).save(state)
  else:
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(tmp_path), state, partitioner)
    manager.save(state)
    manager.wait_until_finished()
  params = flax.core.unfreeze(state.params)
  loaded = t5x.load(tmp_path, jax.eval_shape(lambda: params))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
