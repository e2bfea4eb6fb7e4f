"""The loop against its slow twin and exact probabilities; top-k and top-p against NumPy; slots by their steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nlhf_jax.networks import decoding, parameters
from nlhf_jax.networks.decoding import Sampling, loop, slots, truncation
from nlhf_jax.types import EOS, PAD
from tests import tiny


def _markov(table, first=None):
  """A decoder whose next logits depend on the last token alone; its cache counts steps.

  Args:
    table: logits after each token.
    first: logits of the first token in each lane; None: those after PAD.
  """
  table = jnp.asarray(table, jnp.float32)

  def step(count, tokens):
    logits = table[tokens]
    return logits if first is None else jnp.where(count == 0, first, logits), count + 1

  return step


NO_STEPS = jnp.zeros((), int)


@functools.cache
def _tiny_t5():
  network = tiny.t5_network(vocab_size=7, num_decoder_layers=2)
  params = jax.jit(parameters.init(network))(jax.random.key(38))
  params['decoder']['logits_dense']['kernel'] *= 2.0  # Far from uniform.
  return network, params


def _slow_twin(logits_of, rng, sampling: Sampling, num_lanes: int):
  """Recomputes all logits at each step and draws lane by lane, in plain Python.

  Args:
    logits_of: decoder inputs [L, T] → logits [L, T, V].
  """
  length = sampling.max_length
  inputs = np.zeros((num_lanes, length + 1), np.int32)
  logp = np.zeros((num_lanes, length), np.float32)
  mask = np.zeros((num_lanes, length), bool)
  keys = jax.random.split(rng, num_lanes)
  for t in range(length):
    logits = np.asarray(logits_of(inputs[:, :length]), np.float64)[:, t]
    for lane in range(num_lanes):
      if (inputs[lane, 1 : t + 1] == EOS).any():
        continue
      x = logits[lane] / (sampling.temperature or 1.0)
      if sampling.top_k:
        x = np.where(x >= np.sort(x)[-sampling.top_k], x, -np.inf)
      x = x - np.log(np.exp(x).sum())
      if sampling.temperature == 0:
        token = x.argmax()
      else:
        token = jax.random.categorical(jax.random.fold_in(keys[lane], t), jnp.float32(x))
      inputs[lane, t + 1], logp[lane, t], mask[lane, t] = token, x[token], True
  return inputs[:, 1:], mask, logp


@pytest.mark.parametrize(
  'sampling',
  [Sampling(8, temperature=0), Sampling(8), Sampling(8, temperature=0.7, top_k=3)],
  ids=['greedy', 'sampled', 'truncated'],
)
def test_cached_decoding_equals_uncached(sampling):
  """Token for token, over ragged prompts, two lanes each, past EOS."""
  network, params = _tiny_t5()
  prompts = jnp.array([[3, 4, 5, 6], [2, 5, 0, 0], [6, 0, 0, 0], [5, 5, 2, 0]])
  rng = jax.random.key(5)
  decoder = network.incremental()

  @jax.jit
  def fast(params):
    step, cache = tiny.compiled_step(decoder, params, prompts, 2, sampling.max_length)
    return loop.sample(step, cache, 8, rng, sampling)

  @jax.jit
  def logits_of(inputs):
    repeated = jnp.repeat(prompts, 2, axis=0)
    targets = jnp.ones_like(inputs)
    return network.apply({'params': params}, repeated, inputs, targets, enable_dropout=False)

  tokens, mask, logp = _slow_twin(logits_of, rng, sampling, num_lanes=8)
  rollout = fast(params)
  np.testing.assert_array_equal(rollout.tokens, tokens)
  np.testing.assert_array_equal(rollout.mask, mask)
  np.testing.assert_allclose(rollout.token_logp, logp, atol=1e-4)
  ended = (tokens == EOS).any(axis=1)
  assert ended.any() and not ended.all(), (
    'The case is to hold lanes that end and lanes that do not.'
  )


@pytest.mark.parametrize(
  'sampling', [Sampling(2, temperature=0.7), Sampling(2, top_k=3), Sampling(2, top_p=0.6)], ids=str
)
def test_sample_distribution(sampling):
  """Chi-square of 20,000 two-token responses against the product of the softmaxes."""
  rng = np.random.default_rng(0)
  num_lanes, vocab_size = 20_000, 5
  table = rng.normal(size=(vocab_size, vocab_size))
  probabilities = np.stack([_truncated(row, sampling) for row in table])
  run = jax.jit(lambda key: loop.sample(_markov(table), NO_STEPS, num_lanes, key, sampling))
  rollout = run(jax.random.key(0))
  first, second = np.asarray(rollout.tokens).T
  counts = np.zeros((vocab_size, vocab_size))
  np.add.at(counts, (first, second), 1)
  expected = num_lanes * probabilities[0][:, None] * probabilities
  expected[EOS] = 0
  expected[EOS, PAD] = num_lanes * probabilities[0, EOS]  # Only padding after EOS.
  assert not counts[expected == 0].any()
  possible = expected > 0
  assert scipy.stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3
  logp = np.log(probabilities[0][first]), np.log(probabilities[first, second])
  np.testing.assert_allclose(rollout.token_logp[:, 0], logp[0], atol=1e-5)
  alive = first != EOS
  np.testing.assert_allclose(rollout.token_logp[alive, 1], logp[1][alive], atol=1e-5)
  np.testing.assert_array_equal(rollout.token_logp[~alive, 1], 0)
  np.testing.assert_array_equal(rollout.mask, np.stack([np.ones_like(alive), alive], axis=1))


def _truncated(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
  """By the definition: the most probable tokens in order, until there are k or they reach p."""
  p = np.exp(logits / sampling.temperature)
  p /= p.sum()
  order = np.argsort(-p)
  kept = order[: sampling.top_k or None]
  if sampling.top_p < 1:
    reached = np.cumsum(p[order])
    kept = order[: np.argmax(reached >= sampling.top_p) + 1]
  result = np.zeros_like(p)
  result[kept] = p[kept]
  return result / result.sum()


@pytest.mark.parametrize(
  'sampling',
  [
    Sampling(1, top_k=1),
    Sampling(1, top_k=4),
    Sampling(1, top_k=99),
    Sampling(1, top_p=1e-6),
    Sampling(1, top_p=0.5),
    Sampling(1, top_p=0.999, temperature=0.3),
    Sampling(1, top_k=3, temperature=2.5),
  ],
  ids=str,
)
def test_truncated_distribution(sampling):
  logits = np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32) * 2
  expected = np.stack([_truncated(row, sampling) for row in logits])
  np.testing.assert_allclose(
    np.exp(truncation.transform(jnp.asarray(logits), sampling)), expected, atol=1e-6
  )


def test_top_p_of_what_top_k_left():
  logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  p = jnp.exp(truncation.transform(logits, Sampling(1, top_k=2, top_p=0.55)))
  np.testing.assert_allclose(p, [[1, 0, 0, 0]], atol=1e-6)  # 0.4 / 0.7 reaches 0.55; 0.4 does not.


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_tokens_are_those_of_jax(temperature):
  """The same as `jax.random.categorical` and `argmax` draw: the first of several equals, none of −∞."""
  rng = np.random.default_rng(5)
  logits = rng.integers(-3, 4, (64, 17)).astype(np.float32)
  logits[rng.random(logits.shape) < 0.5] = -np.inf
  logits[:, 5] = 0
  logits[0, :-1], logits[0, -1] = -np.inf, -40.0
  logits[1], logits[2, 9] = np.nan, np.nan
  keys = jax.random.split(jax.random.PRNGKey(6), len(logits))
  ended = jnp.zeros(len(logits), bool)
  token, _ = loop.draw(keys, jnp.asarray(logits), ended, Sampling(1, temperature=temperature))
  expected = (
    jax.vmap(jax.random.categorical)(keys, jax.nn.log_softmax(logits))
    if temperature
    else jnp.argmax(logits, axis=-1)
  )
  np.testing.assert_array_equal(token, expected)


def test_greedy_log_prob_at_temperature_one():
  logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]]))
  sampling = Sampling(1, temperature=0, top_k=1)
  step = _markov(jnp.zeros((3, 3)), logits)
  rollout = loop.sample(step, NO_STEPS, 1, jax.random.key(0), sampling)
  assert rollout.tokens.item() == 2
  np.testing.assert_allclose(rollout.token_logp, np.log([[0.7]]), rtol=1e-5)


# Greedy chains: 2 → 3 → 4 → EOS, and 5 → 5 for ever.
CHAIN = np.full((6, 6), -9.0)
CHAIN[[2, 3, 4, 5, 0, EOS], [3, 4, EOS, 5, 2, 2]] = 9.0


@pytest.mark.parametrize(
  ('first', 'num_steps'), [([2, 4], 4), ([4, EOS], 2), ([EOS, EOS], 1), ([2, 5], 7)], ids=str
)
def test_number_of_steps_until_every_lane_has_ended(first, num_steps):
  """As many steps as the longest response has tokens."""
  steps = []

  def step(cache, tokens):
    jax.debug.callback(lambda _: steps.append(1), tokens)
    return _markov(CHAIN, 9.0 * jax.nn.one_hot(jnp.array(first), 6))(cache, tokens)

  run = jax.jit(lambda key: loop.sample(step, NO_STEPS, 2, key, Sampling(7, temperature=0)))
  rollout = run(jax.random.key(0))
  jax.effects_barrier()
  assert len(steps) == num_steps
  continued = {2: [2, 3, 4, 1, 0, 0, 0], 4: [4, 1, 0, 0, 0, 0, 0], EOS: [1] + [0] * 6, 5: [5] * 7}
  np.testing.assert_array_equal(rollout.tokens, [continued[token] for token in first])
  np.testing.assert_array_equal(rollout.mask, rollout.tokens != PAD)


def test_independence_of_lanes():
  """A lane draws the same whatever its neighbours do."""
  table = np.random.default_rng(2).normal(size=(5, 5))
  logits = jnp.zeros((6, 5))
  draw = lambda logits, key: loop.sample(_markov(table, logits), NO_STEPS, 6, key, Sampling(5))
  run = jax.jit(lambda logits, key: draw(logits, key).tokens)
  key = jax.random.key(0)
  alone = run(logits, key)
  crowd = run(logits.at[1:, 2].add(50.0), key)
  np.testing.assert_array_equal(alone[0], crowd[0])
  assert (alone[1:] != crowd[1:]).any()
  assert len(np.unique(alone, axis=0)) > 1, 'Lanes have keys of their own.'
  assert (run(logits, jax.random.key(1)) != alone).any()


@pytest.mark.parametrize(
  ('sampling', 'message'),
  [
    (Sampling(0), 'max_length .* got 0'),
    (Sampling(4, temperature=-1.0), 'temperature .* got -1.0'),
    (Sampling(4, top_k=-2), 'top_k .* got -2'),
    (Sampling(4, num_slots=-1), 'num_slots .* got -1'),
    (Sampling(4, top_p=0.0), 'top_p .* got 0.0'),
    (Sampling(4, top_p=1.5), 'top_p .* got 1.5'),
  ],
)
def test_sampling_validation(sampling, message):
  with pytest.raises(ValueError, match=message):
    decoding.validate(sampling)


def test_capacities_of_growing_caches():
  """They double, up to the length that is asked for."""
  assert [loop.stages(n) for n in (1, 128, 129, 512)] == [[1], [128], [65, 129], [128, 256, 512]]


def test_number_of_steps_with_slots():
  """Five prompts whose responses have 4, 1, 1, 1 and 2 tokens, two at a time: never a step with nothing to draw."""
  lengths = jnp.array([4, 1, 1, 1, 2])
  steps = []

  def step(encoded, count, tokens, positions):
    jax.debug.callback(lambda _: steps.append(1), tokens)
    ends = positions + 1 == encoded  # Of each slot's one lane.
    return jnp.where(ends[:, None], jnp.array([0, 9.0, 0]), jnp.array([0, 0, 9.0])), count

  sampling = Sampling(6, temperature=0, num_slots=2)
  rollout = slots.sample(step, lengths, jnp.zeros(()), 1, jax.random.key(0), sampling)
  jax.effects_barrier()
  np.testing.assert_array_equal(rollout.mask.sum(-1), lengths)
  assert len(steps) == 5  # 9 tokens in two slots.
