"""The mixture against brute force: uncached logits of both networks, recomputed for every token."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nlhf_jax.models import mixture
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding, llama
from nlhf_jax.types import PolicyParams, Prompts
from tests.conftest import tiny_network

TINY_LLAMA = llama.LlamaConfig(
  vocab_size=6, emb_dim=8, num_heads=2, num_kv_heads=1, num_layers=2, head_dim=4, mlp_dim=16
)


@pytest.fixture(scope='module')
def both(tiny_params):
  return PolicyParams(online=tiny_params[0], ema=None, reference=tiny_params[1])


def exact_log_probs(tiny_policy, both, prompts, language, beta):
  """log π̃^β(y|x) of every response, by normalising the mixed per-token distributions."""

  def conditional(params):
    """log-probs over the vocabulary after every prefix, from complete sequences: {prefix: [V]}."""
    table = {}
    for prefix_length in range(3):
      for prefix in itertools.product(range(2, 6), repeat=prefix_length):
        tokens = np.zeros((5, 3), np.int32)
        for row, token in enumerate(range(1, 6)):
          tokens[row, : prefix_length + 1] = [*prefix, token]
        logp = tiny_policy.log_prob(params, prompts, jnp.asarray(tokens))
        table[prefix] = np.asarray(logp)[:, prefix_length]
    return table

  tables = [conditional(both.online), conditional(both.reference)]
  result = []
  for row in language:
    total = 0.0
    for t, token in enumerate(row):
      if token == 0:
        break
      mixed = sum(w * tab[tuple(row[:t])] for w, tab in zip((1 - beta, beta), tables, strict=True))
      total += (mixed - np.logaddexp.reduce(mixed))[token - 1]
    result.append(total)
  return np.array(result)


@pytest.mark.parametrize(('beta', 'name'), [(0.0, 'online'), (1.0, 'reference')])
def test_ends_of_the_mixture_are_the_policies_themselves(
  tiny_policy, both, tiny_prompts, beta, name
):
  rng = jax.random.PRNGKey(3)
  (mixed,) = tiny_policy.play(both, [mixture.between(beta)], tiny_prompts, rng, 16)
  alone = tiny_policy.sample(getattr(both, name), tiny_prompts, rng, 16)
  np.testing.assert_array_equal(mixed.tokens, alone.tokens)
  assert set(mixture.between(beta)) == {name}  # The other network does not even run.


@pytest.mark.parametrize('beta', [0.0, 0.125, 0.5, 1.0])
def test_samples_follow_the_exact_mixture(tiny_policy, both, tiny_prompts, language, beta):
  """Chi-square over whole responses, with y' drawn beside a y of the policy."""
  one = Prompts(tiny_prompts.tokens[1:], tiny_prompts.index[1:])
  num_samples = 6000
  players = [mixture.ONLINE, mixture.between(beta)]
  rollouts = jax.jit(lambda rng: tiny_policy.play(both, players, one, rng, num_samples))(
    jax.random.PRNGKey(7)
  )
  for rollout, at in zip(rollouts, (0.0, beta), strict=True):
    expected = np.exp(exact_log_probs(tiny_policy, both, one, language, at).astype(np.float64))
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    number = {tuple(row): i for i, row in enumerate(language)}
    seen = np.bincount([number[tuple(row)] for row in np.asarray(rollout.tokens)], minlength=85)
    common = expected * num_samples > 5
    observed = np.append(seen[common], seen[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum()) * num_samples
    if predicted[-1] < 1:
      observed, predicted = (
        observed[:-1],
        predicted[:-1] * observed[:-1].sum() / predicted[:-1].sum(),
      )
    predicted *= observed.sum() / predicted.sum()
    assert stats.chisquare(observed, predicted).pvalue > 1e-3


def test_log_probs_of_samples_are_those_of_the_mixture(tiny_policy, both, tiny_prompts, language):
  one = Prompts(tiny_prompts.tokens[:1], tiny_prompts.index[:1])
  (rollout,) = tiny_policy.play(both, [mixture.between(0.5)], one, jax.random.PRNGKey(0), 20)
  exact = exact_log_probs(tiny_policy, both, one, language, 0.5)
  number = {tuple(row): i for i, row in enumerate(language)}
  for tokens, logp in zip(np.asarray(rollout.tokens), rollout.token_logp.sum(-1), strict=True):
    assert float(logp) == pytest.approx(exact[number[tuple(tokens)]], abs=1e-4)


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0])
def test_greedy_equals_uncached_argmax(both, beta):
  """Ragged prompts, several lanes, and on past the first EOS of the batch."""
  network = tiny_network()
  length = 8
  greedy = policy.from_network(network, decoding.Sampling(length, temperature=0))
  rng = np.random.default_rng(0)
  prompts = rng.integers(2, 6, (6, 7)).astype(np.int32)
  for row, size in enumerate([7, 1, 3, 7, 5, 2]):
    prompts[row, size:] = 0
  (rollout,) = greedy.play(
    both,
    [mixture.between(beta)],
    Prompts(jnp.asarray(prompts), jnp.arange(6)),
    jax.random.PRNGKey(0),
    2,
  )

  @jax.jit
  def uncached(params, tokens):
    inputs = jnp.pad(tokens, [(0, 0), (1, 0)])
    return network.apply(
      {'params': params}, jnp.asarray(prompts), inputs, inputs + 1, enable_dropout=False
    )

  tokens = np.zeros((6, length), np.int32)
  ended = np.zeros(6, bool)
  for t in range(length):
    logits = (1 - beta) * uncached(both.online, tokens) + beta * uncached(both.reference, tokens)
    chosen = np.asarray(logits)[:, t].copy()
    chosen[:, 0] = -np.inf
    tokens[:, t] = np.where(ended, 0, chosen.argmax(-1))
    ended |= tokens[:, t] == 1
  np.testing.assert_array_equal(np.asarray(rollout.tokens), np.repeat(tokens, 2, axis=0))
  np.testing.assert_array_equal(np.asarray(rollout.mask), np.repeat(tokens > 0, 2, axis=0))


@pytest.mark.parametrize('beta', [-0.1, 1.5])
def test_beta_outside_the_unit_interval_is_refused(beta):
  with pytest.raises(ValueError, match=rf'beta must be in \[0, 1\].*{beta}'):
    mixture.between(beta)


def test_a_missing_parameter_set_is_named(tiny_policy, both, tiny_prompts):
  with pytest.raises(ValueError, match="needs the parameter set 'ema'"):
    tiny_policy.play(both, [mixture.EMA], tiny_prompts, jax.random.PRNGKey(0))


@pytest.mark.parametrize(
  ('family', 'num_slots'), [('t5', 1), ('t5', 5), ('llama', 2), ('window', 2)]
)
def test_prompts_that_take_turns_get_the_same_responses(family, num_slots):
  """Seven prompts of unequal length, two players, two lanes each; responses end after 1 to 6 tokens, or are cut."""
  network = {
    't5': tiny_network(),
    'llama': llama.Transformer(TINY_LLAMA),
    'window': llama.Transformer(dataclasses.replace(TINY_LLAMA, sliding_window=3)),
  }[family]
  make = lambda seats: policy.from_network(network, decoding.Sampling(6, num_slots=seats))
  init = jax.jit(make(0).init)
  sets = [jax.tree.map(lambda x: 1.5 * x, init(jax.random.PRNGKey(seed))) for seed in (0, 1)]
  sets = PolicyParams(online=sets[0], ema=None, reference=sets[1])
  tokens = np.random.default_rng(0).integers(2, 6, (7, 5)).astype(np.int32)
  for row, size in enumerate([5, 1, 3, 5, 4, 2, 1]):
    tokens[row, size:] = 0
  prompts = Prompts(jnp.asarray(tokens), jnp.arange(7))
  players = [mixture.ONLINE, mixture.between(0.4)]
  draw = lambda seats: jax.jit(lambda rng: make(seats).play(sets, players, prompts, rng, 2))(
    jax.random.PRNGKey(4)
  )
  for together, in_turns in zip(draw(0), draw(num_slots), strict=True):
    np.testing.assert_array_equal(together.tokens, in_turns.tokens)
    np.testing.assert_array_equal(together.mask, in_turns.mask)
    np.testing.assert_allclose(together.token_logp, in_turns.token_logp, atol=1e-5)
    lengths = np.asarray(together.mask).sum(-1)
    assert lengths.min() == 1 and lengths.max() == 6


def test_few_seats_take_as_many_steps_as_their_lanes_need():
  """Five prompts whose responses have 1, 1, 1, 2 and 4 tokens, two at a time: never a step with nobody to draw."""
  lengths = jnp.array([4, 1, 1, 1, 2])
  steps = []

  def step(reads, count, tokens, positions):
    jax.debug.callback(lambda _: steps.append(1), tokens)
    ends = positions + 1 == reads  # Of each seat's one lane.
    return jnp.where(ends[:, None], jnp.array([0, 9.0, 0]), jnp.array([0, 0, 9.0])), count

  sampling = decoding.Sampling(6, temperature=0, num_slots=2)
  rollout = decoding.sample_with_slots(step, lengths, jnp.zeros(()), 1, jax.random.key(0), sampling)
  jax.effects_barrier()
  np.testing.assert_array_equal(rollout.mask.sum(-1), lengths)
  assert len(steps) == 5  # 9 tokens in two seats.
