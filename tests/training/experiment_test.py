"""Where runs start from."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.models import general_preference, rater
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
  """Its seed tells it, not its bits, which another kind of device rounds otherwise; the network's bits are a file's."""
  network = t5_network(vocab_size=12)
  reader = rater.in_decoder(network, ((7,), (8,), (9,)), head=rater.linear(4))
  model = general_preference.from_rater(reader)
  source = experiment.pretrained(lambda like: like)
  params = jax.jit(model.init)(jax.random.PRNGKey(3))
  rounded = params | {'head': jax.tree.map(lambda x: x * (1 + 1e-6), params['head'])}
  other = params | {'network': jax.tree.map(lambda x: x * 2, params['network'])}

  def described(params, seed=0):
    return experiment.described(experiment.network_from(source, model, seed), params, tmp_path)

  known = described(params)
  assert known['fingerprint'] != described(rounded)['fingerprint']
  assert experiment.is_same(known, described(rounded))
  assert not experiment.is_same(known, described(rounded, seed=1))
  assert not experiment.is_same(known, described(other))
  before = {'fingerprint': known['fingerprint']}  # Versions before told no origin.
  assert experiment.is_same(before, described(params))
  assert not experiment.is_same(before, described(rounded))
