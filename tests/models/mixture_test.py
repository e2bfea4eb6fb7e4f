"""The mixture against brute force: uncached logits of both networks, recomputed for every token."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nlhf_jax.models import mixture, policy
from nlhf_jax.networks import decoding
from nlhf_jax.types import EOS, PAD, PolicyParams, Prompts
from tests import tiny


@pytest.fixture(scope='module')
def both(tiny_params):
  return PolicyParams(tiny_params[0], {'reference': tiny_params[1]})


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

  tables = [conditional(both.online), conditional(both.named('reference'))]
  result = []
  for row in language:
    total = 0.0
    for t, token in enumerate(row):
      if token == PAD:
        break
      mixed = sum(w * tab[tuple(row[:t])] for w, tab in zip((1 - beta, beta), tables, strict=True))
      total += (mixed - np.logaddexp.reduce(mixed))[token - 1]
    result.append(total)
  return np.array(result)


@pytest.mark.parametrize(('beta', 'name'), [(0.0, 'online'), (1.0, 'reference')])
def test_ends_of_the_mixture(tiny_policy, both, tiny_prompts, beta, name):
  """They are the policies themselves."""
  rng = jax.random.PRNGKey(3)
  (mixed,) = tiny_policy.play(both, [mixture.between(beta)], tiny_prompts, rng, 16)
  alone = tiny_policy.sample(both.named(name), tiny_prompts, rng, 16)
  np.testing.assert_array_equal(mixed.tokens, alone.tokens)
  assert set(mixture.between(beta)) == {name}  # The other network does not even run.


@pytest.mark.parametrize('beta', [0.0, 0.125, 0.5, 1.0])
def test_sample_distribution_of_the_mixture(tiny_policy, both, tiny_prompts, language, beta):
  """Chi-square over complete responses, with y' drawn beside a y of the policy."""
  one = Prompts(tiny_prompts.tokens[1:], tiny_prompts.index[1:])
  num_samples = 6000
  mixtures = [mixture.ONLINE, mixture.between(beta)]
  draw = jax.jit(lambda rng: tiny_policy.play(both, mixtures, one, rng, num_samples))
  rollouts = draw(jax.random.PRNGKey(7))
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


def test_log_probs_of_mixture_samples(tiny_policy, both, tiny_prompts, language):
  one = Prompts(tiny_prompts.tokens[:1], tiny_prompts.index[:1])
  (rollout,) = tiny_policy.play(both, [mixture.between(0.5)], one, jax.random.PRNGKey(0), 20)
  exact = exact_log_probs(tiny_policy, both, one, language, 0.5)
  number = {tuple(row): i for i, row in enumerate(language)}
  for tokens, logp in zip(np.asarray(rollout.tokens), rollout.token_logp.sum(-1), strict=True):
    assert float(logp) == pytest.approx(exact[number[tuple(tokens)]], abs=1e-4)


@pytest.mark.parametrize('beta', [0.0, 0.5, 1.0])
def test_greedy_mixture_equals_uncached_argmax(both, beta):
  """Ragged prompts, several lanes, and on past the first EOS of the batch."""
  network = tiny.t5_network()
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
    online, reference = (uncached(both.named(name), tokens) for name in ('online', 'reference'))
    chosen = np.array((1 - beta) * online + beta * reference)[:, t]
    chosen[:, PAD] = -np.inf
    tokens[:, t] = np.where(ended, PAD, chosen.argmax(-1))
    ended |= tokens[:, t] == EOS
  np.testing.assert_array_equal(np.asarray(rollout.tokens), np.repeat(tokens, 2, axis=0))
  np.testing.assert_array_equal(np.asarray(rollout.mask), np.repeat(tokens != PAD, 2, axis=0))


@pytest.mark.parametrize('beta', [-0.1, 1.5])
def test_beta_outside_the_unit_interval(beta):
  with pytest.raises(ValueError, match=rf'beta must be in \[0, 1\].*{beta}'):
    mixture.between(beta)


@pytest.mark.parametrize('name', ['average', 'ring.0', 'ring.2'])
def test_missing_parameter_sets(tiny_policy, both, tiny_prompts, name):
  params = both._replace(
    sets=both.sets | ({'ring': (both.online,) * 2} if name == 'ring.2' else {})
  )
  with pytest.raises(
    ValueError, match=f"needs the parameter set '{name}'; this run has online, .*"
  ):
    tiny_policy.play(params, [{name: 1.0}], tiny_prompts, jax.random.PRNGKey(0))


@pytest.mark.parametrize('weights', [{'online': 0.5}, {'online': 1.5, 'reference': -0.5}])
def test_weights_that_make_no_mixture(tiny_policy, both, tiny_prompts, weights):
  with pytest.raises(ValueError, match='positive weights that add up to 1, got'):
    tiny_policy.play(both, [weights], tiny_prompts, jax.random.PRNGKey(0))


def test_members_of_a_ring(tiny_policy, both, tiny_prompts):
  """A mixture of two members draws what the mixture of the same two sets draws."""
  params = both._replace(sets=both.sets | {'ring': (both.named('reference'), both.online)})
  draw = lambda weights: tiny_policy.play(params, [weights], tiny_prompts, jax.random.PRNGKey(2), 8)
  (found,) = draw({'ring.1': 0.7, 'ring.0': 0.3})
  (expected,) = draw({'online': 0.7, 'reference': 0.3})
  np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.parametrize(
  ('family', 'num_slots'), [('t5', 1), ('t5', 5), ('llama', 2), ('window', 2)]
)
def test_responses_with_slots(family, num_slots):
  """They are those without, of seven prompts of unequal length, two mixtures, two lanes each.

  Responses end after 1 to 6 tokens, or reach the limit.
  """
  network = {
    't5': tiny.t5_network(),
    'llama': tiny.llama_network(num_layers=2),
    'window': tiny.llama_network(num_layers=2, sliding_window=3),
  }[family]
  make = lambda slots: policy.from_network(network, decoding.Sampling(6, num_slots=slots))
  init = jax.jit(make(0).init)
  sets = [jax.tree.map(lambda x: 1.5 * x, init(jax.random.PRNGKey(seed))) for seed in (0, 1)]
  sets = PolicyParams(sets[0], {'reference': sets[1]})
  tokens = np.random.default_rng(0).integers(2, 6, (7, 5)).astype(np.int32)
  for row, size in enumerate([5, 1, 3, 5, 4, 2, 1]):
    tokens[row, size:] = 0
  prompts = Prompts(jnp.asarray(tokens), jnp.arange(7))
  mixtures = [mixture.ONLINE, mixture.between(0.4)]
  draw = lambda slots: jax.jit(lambda rng: make(slots).play(sets, mixtures, prompts, rng, 2))(
    jax.random.PRNGKey(4)
  )
  for together, queued in zip(draw(0), draw(num_slots), strict=True):
    np.testing.assert_array_equal(together.tokens, queued.tokens)
    np.testing.assert_array_equal(together.mask, queued.mask)
    np.testing.assert_allclose(together.token_logp, queued.token_logp, atol=1e-5)
    lengths = np.asarray(together.mask).sum(-1)
    assert lengths.min() == 1 and lengths.max() == 6
