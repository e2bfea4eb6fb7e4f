"""Where runs start from."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.models import general_preference, rater
from nlhf_jax.networks import parameters
from nlhf_jax.runtime import fingerprints
from nlhf_jax.training import experiment, weights
from tests.tiny import t5_network


def test_network_from_keeps_the_head_random(tmp_path):
  """The network's weights are those given, the head's follow their seed."""
  network = t5_network(vocab_size=12)
  reader = rater.in_decoder(network, ((7,), (8,), (9,)), head=rater.linear(4))
  model = general_preference.from_rater(reader)
  given = jax.jit(model.init)(jax.random.PRNGKey(3))['network']

  def start(seed):
    source = experiment.pretrained(lambda like: given)
    return weights.load_params(model, experiment.network_from(source, model, seed), tmp_path)

  first, again, other = start(0), start(0), start(1)
  jax.tree.map(np.testing.assert_array_equal, first['network'], given)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not jnp.allclose(first['head']['kernel'], other['head']['kernel'])


def test_origin_of_a_head_that_was_drawn_elsewhere(tmp_path):
  """Another kind of device rounds what is drawn; another seed, another scale and another network are others."""
  network = t5_network(vocab_size=12)

  def told(seed=0, scale=1.0, factor=1):
    reader = rater.in_decoder(network, ((7,), (8,), (9,)), head=rater.linear(4, scale))
    model = general_preference.from_rater(reader)
    given = experiment.pretrained(lambda like: jax.tree.map(lambda x: factor * x, network_params))
    start = experiment.network_from(given, model, seed)
    params, origin = experiment.load(start, jax.eval_shape(model.init, key), tmp_path)
    return {'fingerprint': fingerprints.fingerprint_tree(params)} | origin

  key = jax.random.PRNGKey(3)
  network_params = jax.jit(parameters.init(network))(key)
  known = told()
  rounded = known | {'fingerprint': '', 'drawn': [x * (1 + 1e-6) for x in known['drawn']]}
  assert len(known['drawn']) == 8
  assert experiment.is_same(known, told()) and experiment.is_same(known, rounded)
  assert not experiment.is_same(known, told(seed=1))
  assert not experiment.is_same(known, told(scale=1.01))
  assert not experiment.is_same(known, told(factor=2))
  before = {'fingerprint': known['fingerprint']}  # Versions before told no origin.
  assert experiment.is_same(before, known) and not experiment.is_same(before, rounded)
