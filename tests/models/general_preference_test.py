"""Preference models of one vector a response: antisymmetric, cyclic, gated by the prompt, and a table that is its pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from nlhf_jax import losses
from nlhf_jax.models import general_preference, preference_model, rater
from nlhf_jax.networks.network import hidden_and_head
from nlhf_jax.types import AllPairsJudge, Prompts
from tests.tiny import llama_network, t5_network

TEMPLATE = ((7, 8), (9,), (10,))
PAIR_FNS = [general_preference.cyclic_blocks, general_preference.mixed_tastes]
GPM, HRC = general_preference.skew_blocks, general_preference.reward_and_skew
# With τ = 1.
GPM_1 = functools.partial(GPM, tau=1.0)


def _make(pair_fn, num_features=5, layout=rater.in_decoder):
  network = t5_network(vocab_size=12)
  head = rater.linear(num_features, scale=2.0)
  return general_preference.from_rater(layout(network, TEMPLATE, head=head), pair_fn)


@pytest.fixture(scope='module')
def prompts():
  return Prompts(jnp.array([[2, 3, 4, 5], [6, 2, 0, 0]]), jnp.arange(2))


@pytest.fixture(scope='module')
def responses():
  """Three to each of two prompts."""
  return jnp.array([[2, 1, 0], [3, 4, 1], [5, 1, 0], [6, 1, 0], [2, 2, 1], [3, 1, 0]])


@pytest.mark.parametrize('pair_fn', PAIR_FNS)
def test_table_holds_the_pairs_and_is_antisymmetric(pair_fn, prompts, responses):
  model = _make(pair_fn)
  judge = preference_model.preference_fn(model, jax.jit(model.init)(jax.random.PRNGKey(0)))
  assert isinstance(judge, AllPairsJudge)
  table = np.asarray(judge.table(prompts, responses, responses))
  assert table.shape == (2, 3, 3)
  assert table.std() > 0.02
  np.testing.assert_allclose(table + table.swapaxes(1, 2), 1, atol=1e-6)
  for shift in range(3):
    other = jnp.roll(responses.reshape(2, 3, 3), -shift, axis=1).reshape(6, 3)
    found = np.asarray(judge(prompts, responses, other)).reshape(2, 3)
    expected = [[table[b, i, (i + shift) % 3] for i in range(3)] for b in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(
      found + np.asarray(judge(prompts, other, responses)).reshape(2, 3), 1
    )


def test_alternatives_may_be_of_another_number(prompts, responses):
  model = _make(general_preference.mixed_tastes)
  params = jax.jit(model.init)(jax.random.PRNGKey(0))
  full = model.table(params, prompts, responses, responses)
  two = responses.reshape(2, 3, 3)[:, :2].reshape(4, 3)
  np.testing.assert_allclose(
    model.table(params, prompts, responses, two), full[:, :, :2], atol=1e-6
  )


def test_mixed_tastes_are_the_mean_of_bradley_terry():
  vector, other = np.random.default_rng(0).normal(size=(2, 7, 4)) * 3
  found = special.expit(general_preference.mixed_tastes(jnp.asarray(vector), jnp.asarray(other)))
  np.testing.assert_allclose(found, special.expit(vector - other).mean(axis=-1), rtol=1e-5)


@pytest.mark.parametrize('pair_fn', PAIR_FNS)
def test_cycle(pair_fn):
  """Three responses of which each beats the next."""
  turns = 2 * np.pi * np.arange(3) / 3
  if pair_fn is general_preference.cyclic_blocks:
    vectors = np.stack([0 * turns, np.cos(turns), np.sin(turns)], axis=-1)
  else:
    vectors = 9.0 * np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]])
  p = special.expit(pair_fn(jnp.asarray(vectors), jnp.asarray(np.roll(vectors, -1, axis=0))))
  np.testing.assert_allclose(p, p[0], rtol=1e-5)
  assert p[0] > 0.65


def test_blocks_hold_every_preference_of_four_responses():
  """Skew log-odds of four responses have rank four: two blocks, by the eigenvectors of the skew matrix."""
  noise = np.random.default_rng(0).normal(size=(4, 4))
  skew = noise - noise.T
  values, vectors = np.linalg.eig(skew)
  blocks = []
  for place in np.flatnonzero(values.imag > 1e-9):
    v, size = vectors[:, place], values[place].imag
    blocks.append((np.sqrt(2 * size) * v.real, np.sqrt(2 * size) * v.imag))
  a, b = (np.stack(x, axis=-1) for x in zip(*blocks, strict=True))
  rows = jnp.asarray(np.concatenate([np.zeros((4, 1)), a, b], axis=-1))
  found = np.asarray(general_preference.cyclic_blocks(rows[:, None], rows[None]))
  np.testing.assert_allclose(np.abs(found), np.abs(skew), atol=1e-5)
  assert np.allclose(found, skew, atol=1e-5) or np.allclose(found, -skew, atol=1e-5)


def _vectors(pair_fn, k, gated, seed=0):
  """Of 3 prompts: of 9 and of 5 responses, and λ behind them where there is a gate."""
  rng = np.random.default_rng(seed)
  size = 2 * k + (pair_fn is HRC)
  gates = rng.uniform(size=(3, 1, k * gated))
  rows = [rng.normal(size=(3, n, size)) for n in (9, 5)]
  with_gates = lambda x: np.concatenate([x, np.broadcast_to(gates, (*x.shape[:2], k * gated))], -1)
  return [with_gates(x).astype(np.float32) for x in rows]


@pytest.mark.parametrize('options', [{}, {'gated': True, 'unit_norm': True}])
@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('pair_fn', [GPM, HRC])
def test_antisymmetric_to_the_last_bit(pair_fn, k, options):
  """Compiled, as table and as rows; one block is where a fused multiply-add would round one product of two."""
  first, second = _vectors(pair_fn, k, 'gated' in options)
  table = jax.jit(lambda v, w: pair_fn(v[:, :, None], w[:, None], **options))
  square, forward = np.asarray(table(first, first)), np.asarray(table(first, second))
  np.testing.assert_array_equal(square, -square.swapaxes(1, 2))
  np.testing.assert_array_equal(forward, -np.asarray(table(second, first)).swapaxes(1, 2))
  rows = jax.jit(functools.partial(pair_fn, **options))
  forward, backward = (
    np.asarray(rows(*x)) for x in ((first[:, :5], second), (second, first[:, :5]))
  )
  np.testing.assert_array_equal(forward, -backward)
  assert square.std() > 0.1


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('unit_norm', [False, True])
def test_blocks_are_the_product_with_a_skew_matrix(gated, unit_norm):
  """⟨R(x) v, v'⟩/τ, R written out."""
  first, second = _vectors(GPM, 3, gated)
  found = jax.jit(functools.partial(GPM, tau=0.5, gated=gated, unit_norm=unit_norm))(
    first[:, :5], second
  )
  v, w = (np.asarray(x[:, :5, :6], np.float64) for x in (first, second))
  if unit_norm:
    v, w = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (v, w))
  gates = np.asarray(first[:, 0, 6:]) if gated else np.ones((3, 3))
  for prompt in range(3):
    skew = np.block([[np.zeros((3, 3)), np.diag(gates[prompt])], [np.zeros((3, 6))]])
    expected = np.einsum('ni,ij,nj->n', v[prompt], skew - skew.T, w[prompt]) / 0.5
    np.testing.assert_allclose(found[prompt], expected, atol=1e-5)


def test_reward_stands_beside_the_blocks():
  """C₁ (r − r') + C₂ ⟨R v, v'⟩, r clipped; and r − r' is the block (r, 1)."""
  first, second = (x[:, :5] for x in _vectors(HRC, 2, False))
  r, other = (np.clip(x[..., 0], -0.4, 0.4) for x in (first, second))
  blocks = jax.jit(GPM_1)
  expected = 2 * (r - other) + 0.5 * np.asarray(blocks(first[..., 1:], second[..., 1:]))
  scaled = functools.partial(HRC, reward_scale=2.0, cyclic_scale=0.5, max_reward=0.4)
  np.testing.assert_allclose(jax.jit(scaled)(first, second), expected, atol=1e-5)
  with_block = lambda x: np.insert(x, 3, 1, axis=-1)
  found = np.asarray(jax.jit(HRC)(first, second))
  np.testing.assert_allclose(blocks(with_block(first), with_block(second)), found, atol=1e-5)
  plain = jax.jit(general_preference.cyclic_blocks)(first, second)
  np.testing.assert_array_equal(plain, found)


def test_unit_norm_of_nothing():
  """A vector of zeros has no direction, and a finite gradient."""
  total = lambda v: GPM(v, jnp.ones((2, 4)), unit_norm=True).sum()
  assert np.isfinite(jax.jit(jax.grad(total))(np.zeros((2, 4), np.float32))).all()


@pytest.mark.parametrize(('pair_fn', 'size', 'excess'), [(GPM_1, 2, 0.156), (HRC, 3, 0.0)])
def test_dominant_and_inner_cycle(pair_fn, size, excess):
  """One response over three that cycle: gradients through the pair function end where the tabular fits do."""
  logits = np.array([[0, 2, 2, 2], [-2, 0, 2, -2], [-2, -2, 0, 2], [-2, 2, -2, 0.0]])
  i, j = np.triu_indices(4, 1)
  votes = jnp.asarray(special.expit(logits[i, j]), jnp.float32)
  entropy = float(-np.mean(votes * np.log(votes) + (1 - votes) * np.log(1 - votes)))
  optimizer = optax.adam(3e-2)

  def loss(v):
    return losses.pairwise_loss(pair_fn(v[i], v[j]), votes).value.mean()

  def step(carry, _):
    v, state = carry
    change, state = optimizer.update(jax.grad(loss)(v), state)
    return (optax.apply_updates(v, change), state), None

  @jax.jit
  def train(v):
    (v, _), _ = jax.lax.scan(step, (v, optimizer.init(v)), length=2000)
    return loss(v)

  starts = np.random.default_rng(0).normal(size=(4, 4, size)).astype(np.float32)
  found = min(float(train(jnp.asarray(v))) for v in starts)
  assert found - entropy == pytest.approx(excess, abs=2e-3)


FAMILIES = {'t5': t5_network, 'llama': llama_network}


@pytest.mark.parametrize('family', FAMILIES)
def test_gate_is_of_the_prompt_alone(family, prompts, responses):
  """λ = k softmax(W h_x), h_x of a pass that has no response; all responses to a prompt have it, pairs and tables to the bit."""
  network = FAMILIES[family](vocab_size=12)
  reader = rater.in_decoder(network, TEMPLATE, head=rater.gated_linear(5, 2, scale=2.0))
  params = jax.jit(reader.init)(jax.random.PRNGKey(0))
  vectors = np.asarray(jax.jit(reader.score)(params, prompts, responses)).reshape(2, 3, 7)
  start = jnp.zeros((2, 1), jnp.int32)
  before = jnp.asarray(np.concatenate([[[7, 8]] * 2, prompts.tokens], axis=1), jnp.int32)
  one_pass = jax.jit(lambda p: hidden_and_head(network, p, before, start, start + 1)[0][:, 0])
  logits = np.asarray(one_pass(params['network'])) @ np.asarray(params['head']['gate'])
  expected = 2 * special.softmax(logits, axis=-1)
  for row in range(3):
    np.testing.assert_allclose(vectors[:, row, 5:], expected, atol=1e-5)
  assert np.abs(expected[0] - expected[1]).max() > 1e-2
  assert vectors[..., :5].std(axis=1).min() > 1e-3
  pair_fn = functools.partial(HRC, gated=True)
  judge = preference_model.preference_fn(general_preference.from_rater(reader, pair_fn), params)
  table = np.asarray(judge.table(prompts, responses))
  np.testing.assert_array_equal(table + table.swapaxes(1, 2), 1)
  other = jnp.roll(responses.reshape(2, 3, 3), -1, axis=1).reshape(6, 3)
  forward = np.asarray(judge(prompts, responses, other)).reshape(2, 3)
  np.testing.assert_array_equal(
    forward + np.asarray(judge(prompts, other, responses)).reshape(2, 3), 1
  )
  np.testing.assert_allclose(forward, [[t[0, 1], t[1, 2], t[2, 0]] for t in table], atol=1e-6)
  assert table.std() > 0.02


def test_refusals():
  with pytest.raises(ValueError, match=r'2 k numbers, got 3: make num_features 2 k\.'):
    GPM(jnp.ones(3), jnp.ones(3))
  with pytest.raises(ValueError, match=r'a reward and 3 k numbers, got 5: .* and num_gates k'):
    HRC(jnp.ones(5), jnp.ones(5), gated=True)
  with pytest.raises(ValueError, match='reads both at once: take in_decoder'):
    rater.in_encoder(t5_network(vocab_size=12), TEMPLATE, head=rater.gated_linear(4, 2))
  with pytest.raises(ValueError, match=r'got 4: make num_features 2 k \+ 1'):
    general_preference.cyclic_blocks(jnp.ones(4), jnp.ones(4))
  two = rater.in_decoder(t5_network(vocab_size=12), ((7,), (8,), (9,), (10,)), head=rater.linear(3))
  with pytest.raises(ValueError, match='takes 2: give the rater one of three pieces'):
    general_preference.from_rater(two)
