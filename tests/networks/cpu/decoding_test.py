"""Networks decode by the C kernels what they decode without, and where these do not fit they take XLA's operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import mixture, policy
from nlhf_jax.networks import decoding, matmul
from nlhf_jax.networks.cpu import attend, few_rows, native
from nlhf_jax.types import PolicyParams, Prompts
from tests import tiny

_OF_32 = {'head_dim': 32, 'vocab_size': 40}
NETWORKS = {
  't5': (tiny.t5_network, {'num_decoder_layers': 2}),
  't5, tied': (tiny.t5_network, {'logits_via_embedding': True, 'float32_attention_logits': True}),
  'llama': (tiny.llama_network, {'num_heads': 4, 'num_kv_heads': 2, 'num_layers': 2}),
  'llama, tied': (tiny.llama_network, {'logits_via_embedding': True}),
  'windows': (
    tiny.llama_network,
    {
      'num_layers': 2,
      'sliding_window': 3,
      'window_pattern': (True, False),
      'qkv_bias': True,
      'qk_norm': 'head',
    },
  ),
}
PROMPTS = jnp.array([[5, 3, 7, 2, 9, 0], [8, 4, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]])
INPUTS = jnp.asarray(np.random.default_rng(0).integers(2, 40, (6, 7))).at[:, 0].set(0)
TARGETS = jnp.ones_like(INPUTS)


@pytest.fixture(autouse=True)
def calls(monkeypatch) -> dict[str, int]:
  """How often each kernel was traced; small weights are worth it too."""
  number = {'attend': 0, 'few_rows': 0}
  original = native.call

  def counted(name, *args):
    number[name] += 1
    return original(name, *args)

  monkeypatch.setattr(native, 'call', counted)
  monkeypatch.setattr(matmul, 'worth_a_copy', lambda size: True)
  return number


def made(name: str, **changes):
  make, own = NETWORKS[name]
  network = make(**_OF_32, **own, **changes)
  params = jax.jit(functools.partial(network.init, enable_dropout=False))(
    jax.random.key(1), PROMPTS, INPUTS[::2], TARGETS[::2]
  )['params']
  return network, params


@pytest.mark.parametrize('name', NETWORKS)
def test_steps_and_a_complete_pass(name, calls):
  """Two lanes to a prompt, in a cache that grows."""
  network, params = made(name)
  decoder, found = network.incremental(), []
  step, cache = tiny.compiled_step(decoder, params, PROMPTS, 2, 2)
  for t in range(INPUTS.shape[1]):
    cache = decoder.grow(cache, INPUTS.shape[1]) if t == 2 else cache
    logits, cache = step(cache, INPUTS[:, t])
    found.append(logits)
  expected = network.apply({'params': params}, PROMPTS, INPUTS, TARGETS, enable_dropout=False)
  np.testing.assert_allclose(jnp.stack(found, axis=1), expected, atol=2e-5)
  layers = network.config.num_layers if hasattr(network.config, 'num_layers') else None
  attentions = layers or 2 * network.config.num_decoder_layers
  assert calls['attend'] >= attentions
  # All projections of the stack, and the output layer.
  assert calls['few_rows'] >= 7 * (layers or network.config.num_decoder_layers) + 1


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_responses_in_slots_with_and_without(name, dtype, calls):
  """Lanes that begin late; both players of Nash-MD, two responses of each."""
  network, params = made(name, dtype=dtype)
  sets = PolicyParams(params, {'reference': jax.tree.map(lambda x: x * 0.9, params)})
  model = policy.from_network(network, decoding.Sampling(6, num_slots=2))
  prompts = Prompts(PROMPTS, jnp.arange(3))
  mixtures = [mixture.ONLINE, mixture.between(0.3)]
  play = lambda: model.play(sets, mixtures, prompts, jax.random.key(2), 2)
  found = jax.jit(lambda: play())()
  assert calls['attend'] and calls['few_rows']
  with native.unused():
    number = dict(calls)
    expected = jax.jit(lambda: play())()
  assert calls == number
  for one, other in zip(found, expected, strict=True):
    if dtype == 'float32':
      np.testing.assert_array_equal(one.tokens, other.tokens)
      np.testing.assert_allclose(one.token_logp, other.token_logp, atol=2e-5)
    else:  # The same until roundings choose another token.
      np.testing.assert_allclose(one.token_logp[:, 0], other.token_logp[:, 0], atol=0.05)


@pytest.mark.parametrize('name', ['t5', 'llama'])
def test_types_that_the_kernels_do_not_take(name, calls):
  network, params = made(name, dtype='float16')
  step, cache = tiny.compiled_step(network.incremental(), params, PROMPTS, 2, 4)
  logits, _ = step(cache, INPUTS[:, 0])
  assert np.isfinite(logits).all()
  assert not calls['attend']


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_weights_of_another_type_than_activations(dtype):
  """The output layer keeps the type that it is stored in."""
  network, params = made('t5')
  rounded = jax.tree.map(lambda x: x.astype(dtype), params)
  step, cache = tiny.compiled_step(network.incremental(), rounded, PROMPTS, 2, 4)
  logits, _ = step(cache, INPUTS[:, 0])
  first = INPUTS[:, :1]
  expected = network.apply(
    {'params': rounded}, PROMPTS, first, TARGETS[:, :1], enable_dropout=False
  )
  np.testing.assert_allclose(logits, expected[:, 0], atol=1e-2)


def test_gradients_of_a_pass_over_what_was_precomputed(calls):
  network, params = made('t5')
  apply = functools.partial(network.apply, {'params': params})
  encoded = apply(apply(PROMPTS, method='encode', enable_dropout=False), method='precompute')

  def loss(params):
    arguments = encoded, PROMPTS, INPUTS, TARGETS
    return jnp.sum(
      network.apply({'params': params}, *arguments, enable_dropout=False, method='decode')
    )

  assert np.isfinite(jax.tree.leaves(jax.grad(loss)(params))[0]).all()
  assert not calls['attend']


def test_several_devices_and_other_backends(monkeypatch):
  assert few_rows.available() and attend.available(32, 'float32')
  assert not attend.available(16, 'float32') and not attend.available(32, 'float64')
  with native.unused():
    assert not few_rows.available()
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  assert not few_rows.available() and not attend.available(32, 'float32')
  monkeypatch.undo()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not few_rows.available()


def test_other_platforms_take_xlas_operations():
  """A program that is lowered for a GPU here has no call that only this machine knows."""
  lowered = jax.jit(lambda x, w: few_rows.multiply(x, few_rows.pack(w), 40)).trace(
    jax.ShapeDtypeStruct((2, 8), jnp.float32), jax.ShapeDtypeStruct((8, 40), jnp.float32)
  )
  assert 'nlhf_few_rows' in lowered.lower().as_text()
  assert 'nlhf_few_rows' not in lowered.lower(lowering_platforms=('cuda',)).as_text()
