"""The same numbers on every mesh, and no more bytes sent than must be; on simulated devices, in a process of their own."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from nlhf_jax.networks import axes
from nlhf_jax.runtime import partitioning
from nlhf_jax.types import PolicyParams, TrainState

SCRIPT = pathlib.Path(__file__).with_name('on_devices.py')
VOCAB, EMBED, LENGTH, HEAD_DIM = 88, 32, 7, 8
MESHES = [
  ('t5', ('2x1x1', '1x2x1', '1x1x2', '2x2x1')),
  ('t5', ('1x2x2', '8x1x1', '2x2x2')),
  ('t5_pointer', ('1x2x2',)),
  ('llama', ('2x2x2',)),
]


@pytest.mark.parametrize(('family', 'meshes'), MESHES)
def test_equal_numbers_on_every_mesh(family, meshes):
  """Parameters, averages and moments after two steps, metrics, and the responses that are then drawn."""
  argv = [sys.executable, str(SCRIPT), family, *meshes]
  environment = os.environ | {'PYTHONPATH': str(SCRIPT.parent.parent.parent)}
  result = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
  assert result.returncode == 0, result.stderr[-3000:]
  found = json.loads(result.stdout.splitlines()[-1])
  for mesh in meshes:
    data, fsdp, tensor = map(int, mesh.split('x'))
    assert found[mesh]['moved'] > 1e-3
    assert found[mesh]['state'] < 1e-5, mesh
    assert found[mesh]['metrics'] < 1e-5, mesh
    assert found[mesh]['tokens'] == 0, mesh
    # The program that was compiled ahead is the one that is run.
    assert found[mesh]['updates'] == 1, mesh
    assert found[mesh]['shard'] == 1 / (fsdp * tensor), mesh
    assert found[mesh]['logits'] * data * fsdp * tensor == 16 * LENGTH * VOCAB, mesh
  if '2x2x2' in meshes:
    assert max(found['microbatches'][name] for name in ('state', 'metrics', 'tokens')) < 1e-5
    for phase, collectives in found['collectives'].items():
      check_gathered_arrays(phase, collectives)


def check_gathered_arrays(phase, collectives):
  """Neither logits nor caches: weights are, along fsdp and once, outside of the loop over tokens; in it, a few numbers."""
  gathered = [x for x in collectives if x[0] in ('all-gather', 'all-to-all')]
  assert gathered
  for kind, along, shapes, _, times in gathered:
    for shape in shapes:
      what = f'{phase}: {kind} of {shape} along {along}, {times} times'
      is_weight = along == ['fsdp'] and times == 1 and EMBED in shape and len(shape) <= 2
      assert is_weight or np.prod(shape) <= 64, what
      assert is_weight or not {VOCAB, LENGTH, HEAD_DIM} & set(shape[1:]), what


@pytest.mark.parametrize(
  ('devices', 'number', 'sizes'),
  [
    (partitioning.Devices(), 6, (6, 1, 1)),
    (partitioning.Devices(data=1, fsdp=-1, tensor=2), 8, (1, 4, 2)),
    (partitioning.Devices(2, 2, 2), 8, (2, 2, 2)),
  ],
)
def test_devices_that_remain(devices, number, sizes):
  assert partitioning.resolve_devices(devices, number) == sizes


@pytest.mark.parametrize('devices', [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1)])
def test_error_of_a_mesh_that_does_not_fit(devices):
  with pytest.raises(ValueError, match=r'does not fit 4 devices: choose data, fsdp and tensor'):
    partitioning.resolve_devices(partitioning.Devices(*devices), 4)


@pytest.mark.parametrize(
  ('names', 'shape', 'spec'),
  [
    (('embed', 'mlp'), (8, 8), (('fsdp',), ('tensor',))),
    (('embed', 'mlp'), (8, 9), (('fsdp',), None)),  # 9 does not divide.
    (('batch', None), (8, 3), (('data', 'fsdp'), None)),
    (('batch', None), (6, 3), (None, None)),
    (('vocab', 'mlp'), (8, 8), (('tensor',), None)),  # No axis of the mesh twice.
    (('unheard of', None), (8, 8), (None, None)),
  ],
)
def test_sharding_by_the_rules(names, shape, spec):
  sizes = {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert axes.spec(names, shape, partitioning.RULES, sizes) == PartitionSpec(*spec)


@pytest.mark.parametrize(
  ('shape', 'remaining'),
  [
    ((4, 6), PartitionSpec('fsdp', 'tensor')),
    ((4,), PartitionSpec('fsdp')),
    ((6,), PartitionSpec('tensor')),
    ((1,), PartitionSpec()),
    ((), PartitionSpec()),
  ],
)
def test_sharding_of_factored_moments(shape, remaining):
  """Along the axes of the parameter that they keep."""
  spec = PartitionSpec('fsdp', 'tensor')
  assert partitioning._remaining_spec(shape, (4, 6), spec) == remaining


def test_error_of_a_batch_that_does_not_divide():
  layout = partitioning.Layout(type('M', (), {'shape': {'data': 2, 'fsdp': 4, 'tensor': 2}}))
  layout.check_batch(16)
  with pytest.raises(
    ValueError, match=r'12 prompts does not divide over 8 groups .* batch_size a multiple of 8'
  ):
    layout.check_batch(12)


def test_no_sharding_outside_of_a_mesh(tiny_policy, tiny_params):
  x = jax.numpy.ones((2, 3))
  assert axes.constrain(x, 'batch', 'embed') is x
  names = tiny_policy.axes()
  assert jax.tree.structure(names, is_leaf=lambda x: isinstance(x, tuple)) == jax.tree.structure(
    tiny_params[0]
  )
  assert names['decoder']['layers_0']['mlp']['wo']['kernel'] == ('mlp', 'embed')


def test_mesh_of_one_device(tiny_policy, tiny_params):
  """Moments are sharded as their parameters, each parameter set as θ, each member of a ring too."""
  layout = partitioning.Layout(partitioning.make_mesh(partitioning.Devices(), jax.devices()[:1]))
  params, reference = tiny_params
  state = TrainState(
    jax.ShapeDtypeStruct((), np.int32),
    PolicyParams(params, {'reference': reference, 'ring': (params, reference)}),
    jax.eval_shape(optax.adafactor(1.0).init, params),
    jax.random.PRNGKey(0),
  )
  shardings = layout.state_shardings(state, tiny_policy.axes())
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  one = layout.param_shardings(params, tiny_policy.axes())
  assert shardings.params == PolicyParams(one, {'reference': one, 'ring': (one, one)})
