"""Decoder-only networks against themselves computed the long way; tests/runtime/hf_test.py has Hugging Face's logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import mixture
from nlhf_jax.models import policy
from nlhf_jax.models import preference_model
from nlhf_jax.networks import decoding, llama
from nlhf_jax.types import PolicyParams, Prompts

TINY = llama.LlamaConfig(
  vocab_size=11,
  emb_dim=8,
  num_heads=4,
  num_kv_heads=2,
  num_layers=2,
  head_dim=4,
  mlp_dim=16,
  rope_base=100.0,
)
PROMPTS = np.array([[3, 4, 5, 6, 2], [7, 8, 0, 0, 0], [9, 0, 0, 0, 0]], np.int32)
RESPONSES = np.array([[2, 3, 4], [4, 5, 1], [5, 6, 7], [2, 2, 2], [8, 9, 3], [3, 7, 10]], np.int32)


def _network(**changes):
  return llama.Transformer(llama.LlamaConfig(**{**vars(TINY), **changes}))


@functools.cache
def _params(seed=0, **changes):
  """With biases and norms away from 0 and 1, and attention far from uniform."""
  network = _network(**changes)
  init = jax.jit(functools.partial(network.init, enable_dropout=False))
  params = init(jax.random.key(seed), PROMPTS, PROMPTS, PROMPTS)['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return jax.tree.unflatten(
    tree, [x + 0.4 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  )


def _logits(params, prompts, responses, **changes):
  inputs = np.pad(responses, [(0, 0), (1, 0)])[:, :-1]
  return jax.jit(_network(**changes).apply)({'params': params}, prompts, inputs, responses)


@pytest.mark.parametrize('changes', [{}, {'sliding_window': 3}, {'qkv_bias': True}])
def test_a_prompt_and_its_response_are_one_text(changes):
  """Wherever a text is cut in two, the logits of what follows the cut are the same; padding changes nothing."""
  params = _params(**changes)
  text = np.array([[3, 4, 5, 6, 2, 7, 8, 10]], np.int32)
  whole = _logits(params, text[:, :1], text[:, 1:], **changes)
  for cut in range(2, 8):
    prompt = np.pad(text[:, :cut], [(0, 0), (0, 3)])
    rest = _logits(params, prompt, text[:, cut:], **changes)
    np.testing.assert_allclose(rest, whole[:, cut - 1 :], atol=2e-5)


def test_rows_share_their_prompt():
  """Two responses to each of three prompts are as good as six prompts."""
  params = _params()
  shared = _logits(params, PROMPTS, RESPONSES)
  repeated = _logits(params, np.repeat(PROMPTS, 2, axis=0), RESPONSES)
  np.testing.assert_allclose(shared, repeated, atol=1e-5)
  with pytest.raises(ValueError, match='6 decoder rows for 4 prompts'):
    _logits(params, np.ones((4, 2), np.int32), RESPONSES)


def test_gradients_reach_the_prompt():
  """Folding rows and joining parts of a softmax lose none: finite differences agree."""
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


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0])
def test_greedy_mixtures_equal_brute_force(beta):
  """Two networks, ragged prompts, past the end of some responses; every token is the uncached argmax."""
  sets = PolicyParams(_params(0), None, _params(7))
  play = policy.from_network(_network(), decoding.Sampling(6, temperature=0)).play
  prompts = Prompts(jnp.asarray(PROMPTS), jnp.arange(3))
  run = jax.jit(lambda rng: play(sets, [mixture.between(beta)], prompts, rng, 1))
  drawn = np.asarray(run(jax.random.key(0))[0].tokens)
  written = np.zeros_like(drawn)
  for t in range(drawn.shape[1]):
    pair = [_logits(params, PROMPTS, written)[:, t] for params in (sets.online, sets.reference)]
    mixed = np.array((1 - beta) * pair[0] + beta * pair[1])
    mixed[:, 0] = -np.inf
    ended = (written == 1).any(axis=1)
    written[:, t] = np.where(ended, 0, mixed.argmax(axis=1))
  np.testing.assert_array_equal(drawn, written)


@pytest.mark.parametrize('layout', [preference_model.in_encoder, preference_model.in_decoder])
def test_preference_models_need_no_change(layout):
  """Both layouts score the same text; the model is antisymmetric to the bit."""
  prompt = preference_model.RaterPrompt((2, 3), (4,), (5, 6), (7,))
  model = layout(_network(), prompt)
  prompts = Prompts(jnp.asarray(PROMPTS), jnp.arange(3))
  first, second = jnp.asarray(RESPONSES), jnp.asarray(RESPONSES[::-1])
  fn = preference_model.preference_fn(model, _params())
  p, q = fn(prompts, first, second), fn(prompts, second, first)
  np.testing.assert_array_equal(p + q, 1)
  other = preference_model.preference_fn(preference_model.in_encoder(_network(), prompt), _params())
  np.testing.assert_allclose(p, other(prompts, first, second), atol=1e-5)


def test_rotations_are_stretched_as_in_llama_3():
  """Slow ones by the whole factor, fast ones not at all, those between by a mixture of both."""
  plain = llama._frequencies(llama.LlamaConfig(11, head_dim=16, rope_base=1e3))
  scaling = llama.RopeScaling(8.0, 1.0, 4.0, 32)
  stretched = llama._frequencies(
    llama.LlamaConfig(11, head_dim=16, rope_base=1e3, rope_scaling=scaling)
  )
  turns = 32 * plain / (2 * np.pi)
  np.testing.assert_allclose(stretched[turns > 4], plain[turns > 4])
  np.testing.assert_allclose(stretched[turns < 1], plain[turns < 1] / 8)
  between = (turns > 1) & (turns < 4)
  assert between.any()
  assert ((plain / 8 < stretched) & (stretched < plain))[between].all()


def test_bad_sizes_are_refused():
  with pytest.raises(ValueError, match='num_heads = 9 is no multiple of num_kv_heads = 4'):
    llama.LlamaConfig(11, num_kv_heads=4)
  with pytest.raises(ValueError, match='pad_id and eos_id are both 2'):
    llama.LlamaConfig(11, pad_id=2, eos_id=2)
