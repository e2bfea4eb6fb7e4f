"""Every family is a `Network`: its decoder, token by token, gives the logits of a pass over complete responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks import network, parameters
from nlhf_jax.t5x_bridge.network import T5XModule
from nlhf_jax.types import PAD
from tests import tiny

FAMILIES = {
  't5': tiny.t5_network(num_decoder_layers=2),
  't5 that points': tiny.t5_network(num_decoder_layers=2, pointer=True, separators=(4, 5)),
  'llama': tiny.llama_network(num_layers=2),
  't5x': T5XModule(tiny.t5_network(num_decoder_layers=2)),
}
PROMPTS = jnp.array([[3, 4, 5, 2], [5, 3, 0, 0]])
INPUTS = jnp.array([[PAD, 2, 5, 3, 4], [PAD, 4, 4, 2, 3], [PAD, 3, 2, 5, 5], [PAD, 5, 2, 4, 2]])


def _params(which):
  params = jax.jit(parameters.init(which))(jax.random.key(0))
  return jax.tree.map(lambda x: 1.5 * x, params)


def _logits(which, params):
  hidden, head = network.hidden_and_head(which, params, PROMPTS, INPUTS, jnp.ones_like(INPUTS))
  return head(hidden)


@pytest.mark.parametrize('family', FAMILIES)
def test_network_protocol(family):
  assert isinstance(FAMILIES[family], network.Network)


@pytest.mark.parametrize('family', FAMILIES)
def test_hidden_and_head(family):
  """Together they are the network's own call."""
  which = FAMILIES[family]
  params = _params(which)
  call = jax.jit(lambda *args: which.apply({'params': params}, *args, enable_dropout=False))
  expected = call(PROMPTS, INPUTS, jnp.ones_like(INPUTS))
  found = jax.jit(lambda params: _logits(which, params))(params)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('family', FAMILIES)
def test_decoder_of_each_family(family):
  """Two lanes to a prompt; where the cache grows, it begins with half of its capacity."""
  which = FAMILIES[family]
  params, decoder, length = _params(which), which.incremental(), INPUTS.shape[1]
  capacity = length if decoder.grow is None else 2
  step, cache = tiny.compiled_step(decoder, params, PROMPTS, 2, capacity)
  found = []
  for t in range(length):
    if t == capacity:
      cache = decoder.grow(cache, length)
    logits, cache = step(cache, INPUTS[:, t])
    found.append(logits)
  np.testing.assert_allclose(jnp.stack(found, axis=1), _logits(which, params), atol=1e-5)


def test_positions_of_lanes_in_t5x():
  """Its decoders cannot begin a lane later than the others."""
  decoder = FAMILIES['t5x'].incremental()
  with pytest.raises(ValueError, match='set num_slots = 0'):
    decoder.step({}, (), {}, jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize('length', [1, 2, 3, 7, 8])
def test_map_in_chunks(length):
  """The same values and gradients as at once; the last chunk may be shorter."""
  hidden = jax.random.normal(jax.random.key(1), (3, 7, 4))
  tokens = jax.random.randint(jax.random.key(2), (3, 7), 0, 4)
  function = lambda x, t: jnp.tanh(jnp.take_along_axis(x, t[..., None], axis=-1)[..., 0])
  chunked = lambda x: network.map_in_chunks(function, x, tokens, length)
  np.testing.assert_array_equal(chunked(hidden), function(hidden, tokens))
  gradients = [
    jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(hidden)
    for f in (chunked, lambda x: function(x, tokens))
  ]
  np.testing.assert_allclose(*gradients, rtol=1e-6)
