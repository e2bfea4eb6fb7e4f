"""Parameters that are declared: drawn together, with Linen's numbers."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks import axes, parameters
from tests import tiny

KEY = jax.random.PRNGKey(4)


MADE = [
  (tiny.llama_network, {'num_layers': 6}),
  (tiny.t5_network, {'num_encoder_layers': 6, 'num_decoder_layers': 6}),
]


@pytest.mark.parametrize(('make', 'layers'), MADE)
def test_numbers_are_those_of_linen(make, layers):
  del layers
  network = make()
  found = jax.jit(parameters.init(network))(KEY)
  expected = jax.jit(lambda rng: axes.variables(network, rng)['params'])(KEY)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(('make', 'layers'), MADE)
def test_layers_are_drawn_by_one_loop(make, layers):
  """More layers are no more draws."""

  def number_of_draws(network):
    text = jax.jit(parameters.init(network)).lower(KEY).as_text()
    return len(re.findall(r'call @_(?:truncated_normal|normal|uniform)\w*\(', text))

  assert 0 < number_of_draws(make(**layers)) == number_of_draws(make())


def test_draws_come_back_in_the_order_asked_for():
  normal = lambda key, shape, dtype: jax.random.normal(key, shape, dtype)
  zeros = lambda key, shape, dtype: jnp.zeros(shape, dtype)
  keys = jax.random.split(KEY, 4)
  kinds = [(normal, (2,)), (zeros, (3,)), (normal, (2,)), (normal, (3,))]
  wanted = [
    parameters.Draw(key, make, shape, (None,))
    for key, (make, shape) in zip(keys, kinds, strict=True)
  ]
  for x, each in zip(parameters.draw(wanted), wanted, strict=True):
    np.testing.assert_array_equal(x, each.initializer(each.key, each.shape, each.dtype))


def test_error_of_weights_of_another_shape():
  network = tiny.llama_network()
  params = jax.jit(parameters.init(network))(KEY)
  params['decoder']['decoder_norm']['scale'] = jnp.ones(3)
  tokens = jnp.ones((1, 2), jnp.int32)
  with pytest.raises(
    ValueError, match=r'decoder/decoder_norm/scale must have the shape \(\d+,\), got \(3,\)'
  ):
    network.apply({'params': params}, tokens, tokens, tokens, enable_dropout=False)


def test_axes_of_a_network_that_cannot_be_hashed():
  network = tiny.t5_network()
  config = dataclasses.replace(network.config, mlp_activations=list(network.config.mlp_activations))
  with_list = network.clone(config=config)
  with pytest.raises(TypeError):
    hash(with_list)
  assert axes.logical_axes(with_list) == axes.logical_axes(network)
