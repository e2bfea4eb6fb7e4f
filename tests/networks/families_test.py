"""Each decoder-only family through what a run does with it: mixtures, slots, adapters, shardings, plans."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from nlhf_jax.formats import hf_models
from nlhf_jax.models import lora, mixture, policy
from nlhf_jax.networks import axes, decoding
from nlhf_jax.planning import plan
from nlhf_jax.training import weights
from nlhf_jax.types import PAD, PolicyParams, Prompts
from tests.formats import golden_models
from tests.formats.golden_models import DECODERS, GOLDEN

# Longer than the windows of those that have one, ragged, and one token alone.
PROMPTS = np.array([[11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 22] + [0] * 6, [23] + [0] * 8])
LENGTH, LANES, BETA = 6, 2, 0.4


@functools.cache
def _sets(family: str):
  """A network, and two sets of its weights."""
  network, params = golden_models.load(GOLDEN / 'hf' / family)
  rng = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), params)
  return network, PolicyParams(params, {'reference': moved})


@functools.cache
def _drawn(family: str, num_slots: int):
  """Responses of the mixture."""
  network, sets = _sets(family)
  play = policy.from_network(network, decoding.Sampling(LENGTH, num_slots=num_slots)).play
  prompts = Prompts(jnp.asarray(PROMPTS, jnp.int32), jnp.arange(len(PROMPTS)))
  mixtures = [mixture.between(BETA)]
  run = jax.jit(lambda sets, rng: play(sets, mixtures, prompts, rng, LANES)[0])
  return jax.tree.map(np.asarray, run(sets, jax.random.key(3)))


@pytest.mark.parametrize('family', DECODERS)
def test_cached_mixture_equals_uncached(family):
  """Each token is what its lane's key draws of the logits of both sets, computed anew; and so are the log-probs."""
  network, sets = _sets(family)
  rollout = _drawn(family, 0)
  inputs = np.pad(rollout.tokens, [(0, 0), (1, 0)])[:, :-1]
  apply = jax.jit(lambda p, *args: network.apply({'params': p}, *args))
  online, reference = (
    apply(p, PROMPTS, inputs, np.ones_like(inputs)) for p in (sets.online, sets.sets['reference'])
  )
  logits = np.array((1 - BETA) * online + BETA * reference)
  assert not network.config.other_ends
  logits[..., PAD] = -1e10
  keys = jax.random.split(jax.random.key(3), len(inputs))
  draw = lambda key, x: jax.vmap(
    lambda t, x: jax.random.categorical(jax.random.fold_in(key, t), x)
  )(jnp.arange(LENGTH), x)
  expected = np.where(rollout.mask, jax.jit(jax.vmap(draw))(keys, logits), PAD)
  np.testing.assert_array_equal(rollout.tokens, expected)
  logp = np.take_along_axis(
    logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True), expected[..., None], axis=-1
  )[..., 0]
  np.testing.assert_allclose(rollout.token_logp, np.where(rollout.mask, logp, 0), atol=1e-4)
  assert rollout.mask.sum() > rollout.mask.size / 2


@pytest.mark.parametrize('family', DECODERS)
def test_slots_draw_the_same(family):
  """Three prompts, two at a time."""
  expected, found = _drawn(family, 0), _drawn(family, 2)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_allclose(found.token_logp, expected.token_logp, atol=1e-4)


@pytest.mark.parametrize('family', DECODERS)
def test_adapters_reach_every_projection(family):
  """Those of attention and of MLPs, in each layer; `tests/formats/peft_reader_test.py` reads back what is exported."""
  network, sets = _sets(family)
  adapted = jax.eval_shape(lambda: lora.init(lora.Lora(2), sets.online, jax.random.key(0)))
  modules = {path[:-1] for path in flax.traverse_util.flatten_dict(adapted)}
  of_layer = {
    *(('self_attention', name) for name in ('query', 'key', 'value', 'out')),
    *(('mlp', name) for name in ('wi_0', 'wi_1', 'wo')),
  }
  layers = range(network.config.num_layers)
  assert modules == {('decoder', f'layers_{n}', *path) for n in layers for path in of_layer}


@pytest.mark.parametrize('family', DECODERS)
def test_each_axis_has_a_name(family):
  """So that no parameter is left on every device."""
  network, sets = _sets(family)
  names = flax.traverse_util.flatten_dict(axes.logical_axes(network))
  shapes = flax.traverse_util.flatten_dict(sets.online)
  assert names.keys() == shapes.keys()
  known = {'embed', 'mlp', 'kv', 'joined_kv', 'vocab'}
  for path, own in names.items():
    assert len(own) == shapes[path].ndim and known.issuperset(own), (path, own)


@pytest.mark.parametrize('family', DECODERS)
def test_planned_parameters_are_those_of_the_files(family):
  network, _ = _sets(family)
  model = policy.from_network(network, decoding.Sampling(LENGTH))
  copies = hf_models.copies(network.config) | hf_models.constants(network.config)
  count = 0
  for path in (GOLDEN / 'hf' / family).glob('*.safetensors'):
    with safetensors.safe_open(path, 'np') as file:
      count += sum(file.get_tensor(name).size for name in set(file.keys()) - copies)
  assert plan._num_parameters(weights.shapes_of(model)) == count
