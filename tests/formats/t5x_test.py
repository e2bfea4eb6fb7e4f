"""T5X's checkpoints: read completely or refused by name, and written so that they come back to the bit."""

import pathlib

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.formats import t5x
from nlhf_jax.networks import t5
from nlhf_jax.types import PolicyParams, TrainState
from tests.conftest import tiny_network

LAYOUTS = ('native', 'orbax')


def _like(network):
  dummy = jnp.ones((1, 2), jnp.int32)
  init = lambda key: network.init(key, dummy, dummy, dummy, enable_dropout=False)['params']
  return jax.eval_shape(init, jax.random.key(0))


@pytest.fixture(scope='module')
def state():
  """Halfway through training: Adafactor's moments of a large array are factored, those of others are not."""
  shapes = _like(tiny_network(vocab_size=130))
  shapes['wide'] = {'kernel': jax.ShapeDtypeStruct((140, 130), jnp.float32)}
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for x in leaves]
  params = jax.tree.unflatten(tree, arrays)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adafactor(1e-3))
  opt_state = jax.tree.map(lambda x: x + 2, optimizer.init(params))
  return TrainState(jnp.int32(7), PolicyParams(params), opt_state, jax.random.key(0))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_round_trip(state, layout, dtype, tmp_path):
  params = jax.tree.map(lambda x: x.astype(dtype), state.params.online)
  written = state._replace(params=state.params._replace(online=params))
  path = t5x.save(written, tmp_path, layout)
  assert path.name == 'checkpoint_7'
  for place in (path, tmp_path):
    loaded = t5x.load(place, jax.eval_shape(lambda: params))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}


def test_native_layout(state, tmp_path):
  """Version 3, specs with relative paths, a NumPy step, and four moments at each leaf."""
  path = t5x.save(state, tmp_path, 'native')
  contents = flax.serialization.msgpack_restore((path / 'checkpoint').read_bytes())
  assert contents['version'] == 3
  step = contents['optimizer']['state']['step']
  assert (int(step), np.asarray(step).dtype) == (7, np.int32)
  spec = contents['optimizer']['target']['wide']['kernel']
  assert spec['kvstore'] == {'driver': 'file', 'path': 'target.wide.kernel'}
  assert (spec['driver'], spec['dtype'], spec['metadata']['shape']) == (
    'zarr',
    'float32',
    [140, 130],
  )
  moments = contents['optimizer']['state']['param_states']['wide']['kernel']
  shapes = {name: x.shape for name, x in moments.items()}
  assert shapes == {'m': (1,), 'v': (1,), 'v_row': (130,), 'v_col': (140,)}
  narrow = contents['optimizer']['state']['param_states']['encoder']['encoder_norm']['scale']
  assert narrow['v'].shape == (8,)


def test_zero_moments_without_adafactor(state):
  moments = t5x.param_states(state.params.online, optax.sgd(0.1).init(state.params.online))
  assert moments['wide']['kernel']['v_row'].shape == (130,)
  assert not any(np.any(x) for x in jax.tree.leaves(moments))


def test_each_device_reads_its_own_shard(state, tmp_path):
  path = t5x.save(state, tmp_path, 'native')
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('model',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('model'))
  params = state.params.online
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), params)
  loaded = t5x.load(path, like)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert {x.sharding for x in jax.tree.leaves(loaded)} == {rows}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_errors_of_mismatched_arrays(state, layout, tmp_path):
  t5x.save(state, tmp_path, layout)
  like = flax.traverse_util.flatten_dict(state.params.online, sep='/')

  def load(changed):
    return t5x.load(tmp_path, flax.traverse_util.unflatten_dict(changed, sep='/'))

  with pytest.raises(ValueError, match=r'holds wide/kernel \(140, 130\), which the network lacks'):
    load({name: x for name, x in like.items() if name != 'wide/kernel'})
  with pytest.raises(ValueError, match=r'lacks tall/kernel \(2,\)'):
    load(like | {'tall/kernel': jnp.zeros(2)})
  with pytest.raises(ValueError, match=r'wide/kernel \(140, 130\), the network expects \(2,\)'):
    load(like | {'wide/kernel': jnp.zeros(2)})


def test_error_of_a_path_outside(state, tmp_path):
  path = t5x.save(state, tmp_path, 'native')
  contents = flax.serialization.msgpack_restore((path / 'checkpoint').read_bytes())
  contents['optimizer']['target']['wide']['kernel']['kvstore']['path'] = '../../secret'
  (path / 'checkpoint').write_bytes(flax.serialization.msgpack_serialize(contents))
  with pytest.raises(ValueError, match='is outside of it'):
    t5x.load(path, state.params.online)


def test_error_of_a_lost_array(state, tmp_path):
  path = t5x.save(state, tmp_path, 'native')
  (path / 'target.wide.kernel').rename(tmp_path / 'gone')
  with pytest.raises(FileNotFoundError, match=r'target\.wide\.kernel'):
    t5x.load(path, state.params.online)


def test_other_errors(state, tmp_path):
  with pytest.raises(FileNotFoundError, match='No checkpoint of T5X'):
    t5x.load(tmp_path / 'none', state.params.online)
  with pytest.raises(ValueError, match='layout must be one of native, orbax'):
    t5x.save(state, tmp_path, 'pickle')
  t5x.save(state, tmp_path)
  with pytest.raises(FileExistsError, match='checkpoint_7 exists'):
    t5x.save(state, tmp_path)
  (tmp_path / 'other').write_bytes(flax.serialization.msgpack_serialize({'a': 1}))
  with pytest.raises(ValueError, match='no checkpoint of T5X'):
    t5x.load(tmp_path / 'other', state.params.online)


LIKE = {'dense': {'kernel': jax.ShapeDtypeStruct((2, 2), jnp.float32)}}
GOOD = np.ones((2, 2), np.float32)


def _msgpack(target) -> bytes:
  return flax.serialization.msgpack_serialize({'optimizer': {'target': target}})


def _of(kernel) -> bytes:
  return _msgpack({'dense': {'kernel': kernel}})


FOREIGN = {
  'empty': (b'', 'is damaged, or no checkpoint of T5X .*: copy it again'),
  'truncated': (_of(GOOD)[:-5], 'is damaged'),
  'a page of a hub': (b'<html>not found</html>', 'is damaged'),
  'a size that lies': (b'\xdf\xff\xff\xff\xff', 'is damaged'),
  'maps without end': (b'\x81\xa1a' * 100_000, 'is damaged'),
  'a shape that lies': (_of(GOOD).replace(b'\x92\x02\x02', b'\x92\x7f\x7f'), 'is damaged'),
  'a list': (_msgpack([1]), 'no optimizer/target'),
  'a number': (_msgpack(3), 'no optimizer/target'),
  'integers': (_of(np.ones((2, 2), np.int32)), 'array dense/kernel holds int32, where weights are'),
  'truths': (_of(np.ones((2, 2), bool)), 'array dense/kernel holds bool'),
  'a word': (_of('kernel'), 'dense/kernel'),
  'NaN': (_of(np.full((2, 2), np.nan, np.float32)), 'dense/kernel has weights that are NaN or'),
  'infinite': (_of(np.full((2, 2), np.inf, np.float32)), 'dense/kernel has weights that are NaN'),
  'a store that is a word': (_of({'kvstore': 'x'}), 'is damaged|No '),
  'a path that is a number': (_of({'kvstore': {'path': 3}}), 'names 3, which is no file'),
  'missing': (_msgpack({'other': GOOD}), 'lacks dense/kernel'),
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_foreign_files_are_refused_in_one_line(kind, tmp_path):
  content, message = FOREIGN[kind]
  path = tmp_path / 'checkpoint'
  path.write_bytes(content)
  with pytest.raises((ValueError, OSError), match=message) as caught:
    t5x.load(path, LIKE)
  assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('value', [np.nan, 3])
def test_weights_that_are_none_are_refused(layout, value, tmp_path):
  """In the layouts of many files."""
  dtype = np.float32 if np.isnan(value) else np.int32
  params = {'dense': {'kernel': jnp.full((2, 2), value, dtype)}}
  t5x.save(TrainState(jnp.int32(7), PolicyParams(params), (), jax.random.key(0)), tmp_path, layout)
  message = 'dense/kernel has weights that are NaN' if np.isnan(value) else 'holds int32, where'
  with pytest.raises(ValueError, match=message):
    t5x.load(tmp_path, LIKE)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_damaged_files_of_arrays_are_refused(layout, tmp_path):
  params = {'dense': {'kernel': jnp.ones((2, 2))}}
  state = TrainState(jnp.int32(7), PolicyParams(params), (), jax.random.key(0))
  path = t5x.save(state, tmp_path, layout)
  for file in path.rglob('*'):
    if file.is_file() and ('kernel' in str(file) or layout == 'orbax'):
      file.write_bytes(b'\xff' + file.read_bytes()[:7])
  with pytest.raises((ValueError, OSError), match=r'checkpoint_7.* is damaged') as caught:
    t5x.load(tmp_path, LIKE)
  assert '\n' not in str(caught.value)


def test_legacy_file(test_data: pathlib.Path):
  """T5X's own test checkpoint, 518,240 parameters in one msgpack file."""
  config = t5.T5Config(
    vocab_size=32128,
    emb_dim=8,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=3,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
  )
  path = test_data / 'models/t5x_tiny_random/test_t5_tiny.checkpoint_0'
  params = t5x.load(path, _like(t5.Transformer(config)))
  assert sum(x.size for x in jax.tree.leaves(params)) == 518_240
  contents = flax.serialization.msgpack_restore(path.read_bytes())['optimizer']['target']
  jax.tree.map(np.testing.assert_array_equal, params, contents)
  smaller = t5.Transformer(t5.T5Config(**{**vars(config), 'num_decoder_layers': 1}))
  with pytest.raises(ValueError, match=r'decoder/layers_1/.*which the network lacks'):
    t5x.load(path, _like(smaller))
