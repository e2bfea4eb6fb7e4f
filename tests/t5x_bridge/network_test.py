"""A network behind T5X's signatures draws what ours draws. Beside T5X itself: tests/t5x_bridge/model_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import mixture, policy
from nlhf_jax.networks import decoding
from nlhf_jax.t5x_bridge.network import T5XModule
from nlhf_jax.types import PolicyParams
from tests import tiny


@pytest.fixture(scope='module')
def wrapped():
  return policy.from_network(T5XModule(tiny.t5_network()), decoding.Sampling(max_length=3))


def test_parameter_tree_of_the_module(wrapped, tiny_policy):
  shapes = [jax.eval_shape(x.init, jax.random.PRNGKey(0)) for x in (wrapped, tiny_policy)]
  assert shapes[0] == shapes[1]


def test_draws_and_log_probs(wrapped, tiny_policy, tiny_params, tiny_prompts):
  """Those of the module itself, of two mixtures, three lanes each: rows share a prompt, and the cache is made on the way."""
  sets = PolicyParams(tiny_params[0], {'reference': tiny_params[1]})
  mixtures = [mixture.ONLINE, mixture.between(0.3)]

  def draw(which):
    play = jax.jit(lambda sets, rng: which.play(sets, mixtures, tiny_prompts, rng, 3))
    return play(sets, jax.random.PRNGKey(1))

  for theirs, ours in zip(draw(wrapped), draw(tiny_policy), strict=True):
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    np.testing.assert_allclose(theirs.token_logp, ours.token_logp, rtol=1e-5, atol=1e-6)
    logp = jax.jit(wrapped.log_prob)(tiny_params[0], tiny_prompts, ours.tokens)
    np.testing.assert_allclose(
      logp, jax.jit(tiny_policy.log_prob)(tiny_params[0], tiny_prompts, ours.tokens), atol=1e-5
    )


def test_uneven_rows(wrapped, tiny_params, tiny_prompts):
  with pytest.raises(ValueError, match='3 decoder rows for 2 prompts'):
    wrapped.log_prob(tiny_params[0], tiny_prompts, jnp.ones((3, 3), jnp.int32))
