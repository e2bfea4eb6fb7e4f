"""Policies of networks that have several ends: they count as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import policy
from nlhf_jax.networks import decoding, parameters
from nlhf_jax.types import EOS, PAD, Prompts
from tests import tiny

OTHER_ENDS = (3, 5)
PROMPTS = Prompts(jnp.array([[2, 4, 0], [4, 2, 2]], jnp.int32), jnp.arange(2))
RESPONSES = np.array([[2, 4, 1], [1, 0, 0], [4, 4, 4], [2, 1, 0]], np.int32)


@pytest.fixture(scope='module')
def params():
  init = parameters.init(tiny.llama_network())
  return jax.tree.map(lambda x: 3 * x, jax.jit(init)(jax.random.key(0)))


def _policies(temperature):
  sampling = decoding.Sampling(max_length=3, temperature=temperature)
  networks = [tiny.llama_network(), tiny.llama_network(other_ends=OTHER_ENDS)]
  return [policy.from_network(network, sampling) for network in networks]


@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_end_has_the_probability_of_all_ends(params, temperature):
  """And words theirs, as at the same place with one end."""
  with_one, with_all = _policies(temperature)
  logp = lambda of, tokens: np.asarray(jax.jit(of.log_prob)(params, PROMPTS, tokens))
  found = logp(with_all, RESPONSES)
  single = logp(with_one, RESPONSES)
  is_end = RESPONSES == EOS
  np.testing.assert_allclose(found[~is_end], single[~is_end], atol=1e-6)
  ends = [logp(with_one, np.where(is_end, end, RESPONSES)) for end in (EOS, *OTHER_ENDS)]
  together = np.asarray(jax.nn.logsumexp(jnp.stack(ends), axis=0))
  np.testing.assert_allclose(found[is_end], together[is_end], atol=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 0.7, 0.0])
def test_other_ends_are_never_written(params, temperature):
  """What is sampled ends with EOS and has the log-probs that the policy gives it."""
  of = _policies(temperature)[1]
  rollout = jax.jit(lambda rng: of.sample(params, PROMPTS, rng, 64))(jax.random.key(1))
  tokens = np.asarray(rollout.tokens)
  assert not np.isin(tokens, OTHER_ENDS).any()
  assert (tokens[:, 1:][tokens[:, :-1] == EOS] == PAD).all()
  if temperature:
    assert (tokens == EOS).any()
    again = jax.jit(of.log_prob)(params, PROMPTS, rollout.tokens)
    np.testing.assert_allclose(rollout.token_logp, again, atol=1e-5)


def test_greedy_end_is_the_likeliest_end(params):
  """Greedily a response ends where any end is the likeliest token, as in `transformers`."""
  with_one, with_all = _policies(0.0)
  draw = lambda of: np.asarray(
    jax.jit(lambda r: of.sample(params, PROMPTS, r))(jax.random.key(0)).tokens
  )
  one, found = draw(with_one), draw(with_all)
  ended = np.maximum.accumulate(np.isin(one, (EOS, *OTHER_ENDS)), axis=1)
  first = ended & ~np.pad(ended, [(0, 0), (1, 0)])[:, :-1]
  np.testing.assert_array_equal(found, np.where(first, EOS, np.where(ended, PAD, one)))
