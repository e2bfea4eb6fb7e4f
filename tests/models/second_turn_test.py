"""Prompts of a second turn, and a network of either family that answers them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import policy, second_turn
from nlhf_jax.networks import decoding, parameters
from nlhf_jax.types import PolicyParams, Prompts
from tests import tiny

TURN = second_turn.after_response((5, 4))
PROMPTS = Prompts(jnp.array([[2, 4, 0], [3, 2, 2]], jnp.int32), jnp.array([7, 9]))
# Two to a prompt.
RESPONSES = jnp.array([[2, 1, 0], [1, 0, 0], [3, 3, 3], [4, 3, 1]], jnp.int32)


def test_second_prompt_has_the_first_the_response_and_the_piece():
  found = TURN(PROMPTS, RESPONSES)
  expected = [[2, 4, 2, 5, 4], [2, 4, 5, 4], [3, 2, 2, 3, 3, 3, 5, 4], [3, 2, 2, 4, 3, 5, 4]]
  assert [[t for t in row if t] for row in found.tokens.tolist()] == expected
  padding = np.asarray(found.tokens == 0)
  assert np.all(padding[:, :-1] <= padding[:, 1:])  # Behind the words alone.
  np.testing.assert_array_equal(found.index, [7, 7, 9, 9])


@pytest.mark.parametrize('piece', [(), (5, 0), (1, 5)])
def test_piece_without_words_is_refused(piece):
  with pytest.raises(ValueError, match='needs tokens other than 0'):
    second_turn.after_response(piece)


@pytest.mark.parametrize('network', [tiny.t5_network(), tiny.llama_network()], ids=['t5', 'llama'])
def test_network_that_plays_both_sides(network):
  """What its sampler drew at the second prompts is what its log-probs say there, and it answers what it was shown."""
  model = policy.from_network(network, decoding.Sampling(max_length=3))
  params = jax.tree.map(lambda x: 4 * x, jax.jit(parameters.init(network))(jax.random.key(0)))
  judge = lambda prompts, y, y2: jnp.full(y.shape[0], 0.75)
  method = algorithms.stackelberg(
    model, judge, second_turn=TURN, tau=0.1, tau_follower=0.1, num_samples=2
  )
  sample = jax.jit(method.sample)
  batch = sample(PolicyParams(params, {'reference': params}), PROMPTS, jax.random.key(1))
  drawn = np.asarray(batch.alternative.token_logp)
  np.testing.assert_allclose(batch.alternative_reference_token_logp, drawn, atol=1e-4)
  at_first = model.log_prob(params, PROMPTS, batch.alternative.tokens)
  assert float(jnp.abs(at_first - drawn).max()) > 1e-2
  gradient = jax.grad(lambda x: jnp.sum(method.loss(x, method.score(batch)).value))(params)
  assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradient))
  other = TURN(PROMPTS, jnp.flip(RESPONSES, axis=0))
  log_prob = functools.partial(model.log_prob, params)
  shown, else_shown = (log_prob(x, RESPONSES) for x in (TURN(PROMPTS, RESPONSES), other))
  assert float(jnp.abs(shown - else_shown).max()) > 1e-2
