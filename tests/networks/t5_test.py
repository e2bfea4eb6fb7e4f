"""T5 against T5X's table of parameters, and itself computed the long way; tests/formats/hf_test.py has Hugging Face's."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks import parameters, t5
from nlhf_jax.types import PAD
from tests import tiny

SIZES = {'vocab_size': 11, 'num_decoder_layers': 2}
PROMPTS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0], [9, 0, 0, 0]])
TARGETS = jnp.array([[2, 3, 1], [4, 1, 0], [5, 6, 7]])
POINTING = {'pointer': True, 'separators': (3, 5, 9)}


def _network(**changes) -> t5.Transformer:
  return tiny.t5_network(**SIZES | changes)


def _init(seed: int = 0, **changes):
  """A network with random norms and large weights, so that attention is far from uniform."""
  network = _network(**changes)
  params = jax.jit(parameters.init(network))(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noisy = [x + 0.4 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return network, jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope='module', params=[{}, POINTING], ids=['plain', 'pointer'])
def noisy(request):
  return _init(**request.param)


@functools.partial(jax.jit, static_argnums=0, static_argnames=('decode', 'method', 'mutable'))
def _apply(network, params, *args, **kwargs):
  return network.apply({'params': params}, *args, enable_dropout=False, **kwargs)


def _logits(network, params, prompts, targets, **kwargs):
  inputs = jnp.pad(targets, [(0, 0), (1, 0)])[:, :-1]
  return _apply(network, params, prompts, inputs, targets, **kwargs)


def _t5x_table(config: t5.T5Config) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
  """Path → (shape, logical axes), as T5X has them."""
  v, e, m, j = config.vocab_size, config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
  table = {'token_embedder/embedding': ((v, e), ('vocab', 'embed'))}
  if not config.logits_via_embedding:
    table['decoder/logits_dense/kernel'] = ((e, v), ('embed', 'vocab'))
  stacks = {
    'encoder': (config.num_encoder_layers, ['attention'], ['pre_attention', 'pre_mlp']),
    'decoder': (
      config.num_decoder_layers,
      ['self_attention', 'encoder_decoder_attention'],
      ['pre_self_attention', 'pre_cross_attention', 'pre_mlp'],
    ),
  }
  wi = ['wi'] if len(config.mlp_activations) == 1 else ['wi_0', 'wi_1']
  for stack, (num_layers, attentions, norms) in stacks.items():
    table[f'{stack}/relpos_bias/rel_embedding'] = (
      (config.num_heads, 32),
      ('heads', 'relpos_buckets'),
    )
    table[f'{stack}/{stack}_norm/scale'] = ((e,), ('embed',))
    for number in range(num_layers):
      layer = f'{stack}/layers_{number}'
      for name in norms:
        table[f'{layer}/{name}_layer_norm/scale'] = ((e,), ('embed',))
      for attention in attentions:
        for name in ('query', 'key', 'value'):
          table[f'{layer}/{attention}/{name}/kernel'] = ((e, j), ('embed', 'joined_kv'))
        table[f'{layer}/{attention}/out/kernel'] = ((j, e), ('joined_kv', 'embed'))
      for name in wi:
        table[f'{layer}/mlp/{name}/kernel'] = ((e, m), ('embed', 'mlp'))
      table[f'{layer}/mlp/wo/kernel'] = ((m, e), ('mlp', 'embed'))
  return table


# Beside T5X's.
POINTER_TABLE = {
  'pointer/query/kernel': ((8, 8), ('embed', 'joined_kv')),
  'pointer/key/kernel': ((8, 8), ('embed', 'joined_kv')),
  'pointer/value/kernel': ((8, 8), ('joined_kv', 'embed')),
  'gather/gather/kernel': ((8, 8), ('joined_kv', 'embed')),
}


@pytest.mark.parametrize(
  'changes',
  [{}, {'logits_via_embedding': True}, {'mlp_activations': ('relu',)}, POINTING],
  ids=str,
)
def test_names_shapes_and_axes_of_parameters(changes):
  """They are T5X's, and those of what is not."""
  network = _network(**changes)
  variables = jax.eval_shape(
    lambda: network.init(jax.random.key(0), PROMPTS, TARGETS, TARGETS, enable_dropout=False)
  )
  assert set(variables) == {'params', 'params_axes'}
  shapes = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  names = flax.traverse_util.flatten_dict(variables['params_axes'], sep='/')
  found = {path: (x.shape, tuple(names[f'{path}_axes'].names)) for path, x in shapes.items()}
  added = POINTER_TABLE if network.config.pointer else {}
  assert found == _t5x_table(network.config) | added
  assert len(names) == len(shapes)


def test_scales_of_initial_weights():
  """T5X's standard deviations: 1 embedding, 1/√(E d) query, 1/√(fan in) the other kernels."""
  network = _network(emb_dim=64, num_heads=8, head_dim=16, mlp_dim=256, vocab_size=300)
  params = jax.jit(parameters.init(network))(jax.random.key(0))
  params = flax.traverse_util.flatten_dict(params, sep='/')
  expected = {
    'token_embedder/embedding': 1,
    'decoder/layers_1/self_attention/query/kernel': (64 * 16) ** -0.5,
    'decoder/layers_1/encoder_decoder_attention/key/kernel': 64**-0.5,
    'encoder/layers_0/attention/out/kernel': 128**-0.5,
    'encoder/layers_0/mlp/wo/kernel': 256**-0.5,
    'decoder/logits_dense/kernel': 64**-0.5,
  }
  for path, scale in expected.items():
    np.testing.assert_allclose(jnp.std(params[path]), scale, rtol=0.05, err_msg=path)


def test_windows_of_heads_with_local_init():
  """Buckets 0 … 7 of the encoder are keys at that distance before the query, 17 … 23 after it."""
  params = jax.jit(parameters.init(_network(local_init=True, num_heads=5)))(jax.random.key(0))
  seen = np.asarray(params['encoder']['relpos_bias']['rel_embedding']) == 1.0
  next_five, everything = range(17, 22), {*range(32)} - {16}  # No key is 0 after the query.
  for head, window in enumerate([next_five, range(1, 6), [17], everything, next_five]):
    assert set(np.flatnonzero(seen[head])) == set(window), head
  assert np.std(params['decoder']['relpos_bias']['rel_embedding']) > 0.05


def test_padding_changes_nothing(noisy):
  logits = _logits(*noisy, PROMPTS, TARGETS)
  wider = jnp.pad(PROMPTS, [(0, 0), (0, 3)]), jnp.pad(TARGETS, [(0, 0), (0, 2)])
  padded = _logits(*noisy, *wider)[:, : TARGETS.shape[1]]
  real = np.asarray(TARGETS != PAD)
  np.testing.assert_allclose(logits[real], padded[real], atol=1e-5)


def test_shared_prompts_equal_repeated_ones(noisy):
  """Decoder rows i·k … i·k + k − 1 read prompt i: the same logits, and the same gradients."""
  targets = jnp.concatenate([TARGETS, TARGETS[::-1]])  # Two for each of three prompts.

  def loss(params, prompts):
    logits = _logits(noisy[0], params, prompts, targets)
    return jnp.sum(jnp.sin(logits)), logits

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, shared), shared_grad = run(noisy[1], PROMPTS)
  (_, repeated), repeated_grad = run(noisy[1], jnp.repeat(PROMPTS, 2, axis=0))
  np.testing.assert_allclose(shared, repeated, atol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-4), shared_grad, repeated_grad
  )


def test_lanes_of_a_prompt_equal_repeated_prompts(noisy):
  network, params = noisy
  decoder, repeated_prompts = network.incremental(), jnp.repeat(PROMPTS, 2, axis=0)
  shared, cache = tiny.compiled_step(decoder, params, PROMPTS, 2, 4)
  repeated, repeated_cache = tiny.compiled_step(decoder, params, repeated_prompts, 1, 4)
  for tokens in (jnp.zeros(6, jnp.int32), jnp.array([2, 3, 4, 5, 6, 7])):
    logits, cache = shared(cache, tokens)
    expected, repeated_cache = repeated(repeated_cache, tokens)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_shapes_of_the_cache():
  """It holds responses; the encoding holds each prompt once."""
  network, params = _init()
  decoder = network.incremental()
  step, cache = tiny.compiled_step(decoder, params, PROMPTS, 2, 5)
  _, cache = step(cache, jnp.zeros(6, jnp.int32))
  heads, d = network.config.num_heads, network.config.head_dim
  for layer in ('layers_0', 'layers_1'):
    assert set(cache['decoder'][layer]) == {'self_attention'}
    assert cache['decoder'][layer]['self_attention']['cached_key'].shape == (6, heads, d, 5)
    assert cache['decoder'][layer]['self_attention']['cached_value'].shape == (6, heads, 5, d)
  assert cache['decoder']['cache_index'] == 1
  (layers, _) = jax.eval_shape(decoder.encode, params, PROMPTS)
  assert [x.key.shape for x in layers] == [(3, heads, d, PROMPTS.shape[1])] * 2


def test_decoding_by_the_calls_of_t5x(noisy):
  """A call with dummy prompts allocates the cache; steps see the encoder's output repeated."""
  network, params = noisy
  inputs = jnp.array([[0, 2, 3], [0, 4, 1], [0, 5, 6], [0, 7, 8], [0, 9, 2], [0, 3, 3]])
  prompts = jnp.repeat(PROMPTS, 2, axis=0)
  ones = jnp.ones_like(inputs)
  allocate = functools.partial(_apply, network, decode=True, mutable='cache')
  _, variables = allocate(params, jnp.ones_like(prompts), ones, ones)
  encoded = _apply(network, params, prompts, method='encode')
  cache, steps = variables['cache'], []

  @jax.jit
  def step(cache, token):
    return network.apply(
      {'params': params, 'cache': cache},
      encoded,
      prompts,
      token,
      token,
      enable_dropout=False,
      decode=True,
      max_decode_length=inputs.shape[1],
      mutable=['cache'],
      method='decode',
    )

  for t in range(inputs.shape[1]):
    logits, variables = step(cache, inputs[:, t : t + 1])
    assert jax.tree.structure(cache) == jax.tree.structure(variables['cache'])
    cache = variables['cache']
    steps.append(logits[:, 0])
  expected = _apply(network, params, prompts, inputs, ones)
  np.testing.assert_allclose(jnp.stack(steps, axis=1), expected, atol=1e-5)


def test_packed_examples_do_not_see_each_other(noisy):
  apart = _logits(*noisy, PROMPTS[1:, :2], TARGETS[1:])
  prompts = jnp.array([[7, 8, 9, 0]])
  targets = jnp.array([[4, 1, 5, 6, 7]])
  network, params = noisy
  packed = _apply(
    network,
    params,
    prompts,
    jnp.array([[0, 4, 0, 5, 6]]),
    targets,
    jnp.array([[1, 1, 2, 0]]),
    jnp.array([[1, 1, 2, 2, 2]]),
  )
  np.testing.assert_allclose(packed[0, :2], apart[0, :2], atol=1e-5)
  np.testing.assert_allclose(packed[0, 2:], apart[1], atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
def test_float32_of_parameters_and_logits_in_bfloat16(tied):
  network, params = _init(logits_via_embedding=tied)
  half = _network(logits_via_embedding=tied, dtype=jnp.bfloat16)
  shapes = jax.eval_shape(parameters.init(half), jax.random.key(0))
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
  exact, rounded = (_logits(net, params, PROMPTS, TARGETS) for net in (network, half))
  assert rounded.dtype == jnp.float32
  assert 0 < jnp.max(jnp.abs(exact - rounded)[TARGETS != PAD]) < 0.1 * jnp.max(jnp.abs(exact))


def test_dropout_drops_a_feature_at_all_positions_of_a_row():
  network, params = _init(num_encoder_layers=0, dropout_rate=0.5)
  encoded = network.apply(
    {'params': params}, PROMPTS, rngs={'dropout': jax.random.key(0)}, method='encode'
  )
  dropped = np.asarray(encoded == 0)
  np.testing.assert_array_equal(dropped, np.repeat(dropped[:, :1], PROMPTS.shape[1], axis=1))
  assert 0 < dropped.mean() < 1
  assert len(np.unique(dropped[:, 0], axis=0)) == len(PROMPTS)


def test_unknown_activation():
  with pytest.raises(ValueError, match="'gelue'"):
    _network(mlp_activations=('gelue', 'linear'))


def test_uneven_rows(noisy):
  with pytest.raises(ValueError, match='4 decoder rows for 3 prompts'):
    _logits(*noisy, PROMPTS, jnp.ones((4, 2), jnp.int32))
