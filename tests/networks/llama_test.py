"""Decoder-only networks against themselves computed the long way; tests/formats/hf_test.py has Hugging Face's logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import mixture, policy, preference_model, rater
from nlhf_jax.networks import decoding, layers, llama, parameters
from nlhf_jax.types import EOS, PAD, PolicyParams, Prompts
from tests import tiny

SIZES = {'vocab_size': 11, 'num_heads': 4, 'num_kv_heads': 2, 'num_layers': 2, 'rope_base': 100.0}
PROMPTS = np.array([[3, 4, 5, 6, 2], [7, 8, 0, 0, 0], [9, 0, 0, 0, 0]], np.int32)
RESPONSES = np.array([[2, 3, 4], [4, 5, 1], [5, 6, 7], [2, 2, 2], [8, 9, 3], [3, 7, 10]], np.int32)


def _network(**changes):
  return tiny.llama_network(**SIZES | changes)


@functools.cache
def _params(seed=0, **changes):
  """With biases and norms away from 0 and 1, and attention far from uniform."""
  params = jax.jit(parameters.init(_network(**changes)))(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(
    tree, [x + 0.4 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )


@functools.cache
def _apply(**changes):
  return jax.jit(_network(**changes).apply)


def _logits(params, prompts, responses, **changes):
  inputs = np.pad(responses, [(0, 0), (1, 0)])[:, :-1]
  return _apply(**changes)({'params': params}, prompts, inputs, responses)


# Features that networks have or have not, each.
FEATURES: list[dict] = [
  {'sliding_window': 3},
  {'qkv_bias': True},
  {'qk_norm': 'head'},
  {'qk_norm': 'projection', 'norms_before': False, 'norms_after': True},
  {'rotary_pattern': (True, False)},
  {
    'sliding_window': 3,
    'window_pattern': (True, False),
    'local_rope_base': 7.0,
    'norms_after': True,
    'norm_offset': 1.0,
    'mlp_activation': 'gelu',
    'scaled_embedding': True,
    'query_dim': 5,
    'attention_soft_cap': 2.0,
    'logit_soft_cap': 3.0,
  },
]


@pytest.mark.parametrize('changes', [{}, *FEATURES])
def test_prompt_and_response_as_one_text(changes):
  """Wherever a text is split in two, the logits of the second part are the same; padding changes nothing."""
  params = _params(**changes)
  text = np.array([[3, 4, 5, 6, 2, 7, 8, 10]], np.int32)
  expected = _logits(params, text[:, :1], text[:, 1:], **changes)
  for split in range(2, 8):
    prompt = np.pad(text[:, :split], [(0, 0), (0, 3)])
    rest = _logits(params, prompt, text[:, split:], **changes)
    np.testing.assert_allclose(rest, expected[:, split - 1 :], atol=2e-5)


@pytest.mark.parametrize('changes', [{}, *FEATURES[2:]])
def test_shared_prompts_equal_repeated_ones(changes):
  """Two responses to each of three prompts are as good as six prompts."""
  params = _params(**changes)
  shared = _logits(params, PROMPTS, RESPONSES, **changes)
  repeated = _logits(params, np.repeat(PROMPTS, 2, axis=0), RESPONSES, **changes)
  np.testing.assert_allclose(shared, repeated, atol=1e-5)
  with pytest.raises(ValueError, match='6 decoder rows for 4 prompts'):
    _logits(params, np.ones((4, 2), np.int32), RESPONSES, **changes)


@pytest.mark.parametrize('changes', FEATURES[3:])
@pytest.mark.parametrize(
  'execution',
  [layers.Execution(scan=True), layers.Execution(True, 'layers'), layers.Execution(False, 'dots')],
)
def test_scanned_layers_of_several_kinds(changes, execution):
  params = _params(**changes)
  expected = _logits(params, PROMPTS, RESPONSES, **changes)
  found = _logits(params, PROMPTS, RESPONSES, **changes, execution=execution)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_by_finite_differences():
  """Folding rows and joining parts of a softmax lose none, of prompts either."""
  params = _params()

  @jax.jit
  def loss(params):
    inputs = np.pad(RESPONSES, [(0, 0), (1, 0)])[:, :-1]
    logits = _network().apply({'params': params}, *map(jnp.asarray, (PROMPTS, inputs, RESPONSES)))
    logp = policy.token_log_probs(logits, jnp.asarray(RESPONSES), 1.0)
    return -jnp.mean(logp)

  gradient = jax.grad(loss)(params)
  keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(params)))
  tree = jax.tree.structure(params)
  direction = jax.tree.map(
    lambda k, x: jax.random.normal(k, x.shape), jax.tree.unflatten(tree, keys), params
  )
  at = lambda h: float(loss(jax.tree.map(lambda x, d: x + h * d, params, direction)))
  slope = (at(1e-3) - at(-1e-3)) / 2e-3
  expected = sum(
    jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
  )
  np.testing.assert_allclose(slope, expected, rtol=2e-2)


@pytest.mark.parametrize(
  ('beta', 'changes'), [(0.0, {}), (0.5, {}), (1.0, {}), *((0.5, x) for x in FEATURES[2:])]
)
def test_greedy_mixture_equals_uncached_argmax(beta, changes):
  """Two networks, ragged prompts, past the end of some responses; every token is the uncached argmax."""
  sets = PolicyParams(_params(0, **changes), {'reference': _params(7, **changes)})
  play = policy.from_network(_network(**changes), decoding.Sampling(6, temperature=0)).play
  prompts = Prompts(jnp.asarray(PROMPTS), jnp.arange(3))
  run = jax.jit(lambda rng: play(sets, [mixture.between(beta)], prompts, rng, 1))
  drawn = np.asarray(run(jax.random.key(0))[0].tokens)
  written = np.zeros_like(drawn)
  for t in range(drawn.shape[1]):
    pair = [_logits(_params(seed, **changes), PROMPTS, written, **changes)[:, t] for seed in (0, 7)]
    mixed = np.array((1 - beta) * pair[0] + beta * pair[1])
    mixed[:, PAD] = -np.inf
    ended = (written == EOS).any(axis=1)
    written[:, t] = np.where(ended, PAD, mixed.argmax(axis=1))
  np.testing.assert_array_equal(drawn, written)


def test_layouts_of_preference_models():
  """Both score the same text; the models are antisymmetric to the bit."""
  template = ((2, 3), (4,), (5, 6), (7,))
  prompts = Prompts(jnp.asarray(PROMPTS), jnp.arange(3))
  first, second = jnp.asarray(RESPONSES), jnp.asarray(RESPONSES[::-1])

  def preferences(layout):
    model = preference_model.from_rater(layout(_network(), template))
    fn = preference_model.preference_fn(model, _params())
    p, q = fn(prompts, first, second), fn(prompts, second, first)
    np.testing.assert_array_equal(p + q, 1)
    return p

  np.testing.assert_allclose(
    preferences(rater.in_decoder), preferences(rater.in_encoder), atol=1e-5
  )


def test_sizes_that_do_not_fit():
  with pytest.raises(ValueError, match='num_heads = 9 is no multiple of num_kv_heads = 4'):
    llama.LlamaConfig(11, num_kv_heads=4)
  with pytest.raises(ValueError, match='pad_id and eos_id are both 2'):
    llama.LlamaConfig(11, pad_id=2, eos_id=2)
