"""Adapters: off they change nothing, on they are W + (α/r) A B, and nothing else is trained or saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import lora, mixture, rater, reward_model
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import loop
from nlhf_jax.types import Adapted, PolicyParams
from tests import tiny

LORA = lora.Lora(rank=2, alpha=4.0, targets=('query', 'wo'))


@pytest.fixture(scope='module')
def adapters(tiny_policy):
  """As if trained: neither factor is 0."""
  fresh = jax.jit(lora.adapt(tiny_policy, LORA).init)(jax.random.PRNGKey(1))
  return jax.tree.map(lambda x: x + 2.0, fresh)


def test_fresh_adapters_change_nothing(tiny_policy, tiny_params, tiny_prompts, language):
  adapted = lora.adapt(tiny_policy, LORA)
  fresh = jax.jit(adapted.init)(jax.random.PRNGKey(0))
  tokens = jnp.asarray(language[:4])
  plain = jax.jit(tiny_policy.log_prob)(tiny_params[0], tiny_prompts, tokens)
  for state in (fresh, None):
    found = jax.jit(adapted.log_prob)(Adapted(tiny_params[0], state), tiny_prompts, tokens)
    np.testing.assert_array_equal(found, plain)


def test_adapters_add_their_product(tiny_params, adapters):
  merged = lora.merge(LORA, Adapted(tiny_params[0], adapters))
  layer, factors = (tree['encoder']['layers_0'] for tree in (tiny_params[0], adapters))
  expected = (
    layer['mlp']['wo']['kernel'] + 2.0 * factors['mlp']['wo']['a'] @ factors['mlp']['wo']['b']
  )
  found = merged['encoder']['layers_0']['mlp']['wo']['kernel']
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  untouched = ('encoder', 'layers_0', 'mlp', 'wi_0', 'kernel')
  ours, theirs = merged, tiny_params[0]
  for key in untouched:
    ours, theirs = ours[key], theirs[key]
  assert ours is theirs


def test_merging_keeps_float32_on_accelerators(tiny_params, adapters):
  """Which round what products read, unless they are told not to."""
  merge = jax.make_jaxpr(lambda adapters: lora.merge(LORA, Adapted(tiny_params[0], adapters)))
  products = [x for x in str(merge(adapters)).split('\n') if 'dot_general' in x]
  assert products and str(merge(adapters)).count('precision=(Precision.HIGHEST') == len(products)


def test_reference_has_adapters_off(tiny_policy, tiny_params, tiny_prompts, adapters):
  """So mixing with it changes what is drawn, and it is the base to the last bit."""
  adapted = lora.adapt(tiny_policy, LORA)
  base = tiny_params[0]
  sets = PolicyParams(Adapted(base, adapters), {'reference': Adapted(base, None)})
  rng = jax.random.PRNGKey(3)
  mixtures = [mixture.ONLINE, mixture.between(0.5), mixture.REFERENCE]

  def drawn(params, weights, policy=adapted):
    run = jax.jit(lambda *args: policy.play(params, [weights], *args, 64))
    return np.asarray(run(tiny_prompts, rng)[0].tokens)

  online, mixed, reference = (drawn(sets, weights) for weights in mixtures)
  assert (online != mixed).any()
  assert (mixed != reference).any()
  plain = PolicyParams(base)
  np.testing.assert_array_equal(reference, drawn(plain, mixture.ONLINE, tiny_policy))


def test_training_moves_and_saves_adapters_alone(tiny_policy, tiny_params, tiny_prompts, tmp_path):
  adapted = lora.adapt(tiny_policy, LORA)
  likes_twos = lambda prompts, y, alternative: (
    0.5 + 0.5 * (jnp.mean(y == 2, axis=-1) - jnp.mean(alternative == 2, axis=-1))
  )
  algorithm = algorithms.nash_md_pg(adapted, likes_twos, tau=0.01, beta=0.25, num_samples=8)
  optimizer = optax.adam(0.05)
  before = jax.tree.map(np.array, tiny_params[0])
  state = loop.init_state(algorithm, optimizer, 0, base=tiny_params[0])
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  # Adam's moments, and its count.
  assert size(state.opt_state) == 2 * size(state.params.online) + 1
  logs, saved = [], []
  hooks = loop.Hooks(
    log=lambda step, scalars: logs.append(scalars), save=lambda state, _: saved.append(state)
  )
  batches = iter(lambda: tiny_prompts, None)
  state = loop.train(algorithm, optimizer, state, batches, hooks, num_steps=30, log_every=1)
  jax.tree.map(np.testing.assert_array_equal, state.params.base, before)
  assert logs[0]['kl_to_reference'] == pytest.approx(0, abs=1e-6)
  assert logs[-1]['kl_to_reference'] > 0.05
  checkpoints.save(tmp_path, state, saved=())
  fresh = loop.init_state(algorithm, optimizer, 1, base=tiny_params[0])
  restored, _ = checkpoints.restore(tmp_path, fresh, saved=())
  jax.tree.map(np.testing.assert_array_equal, restored.params.online, state.params.online)
  assert restored.params.base is tiny_params[0]


def test_bad_adapters_are_refused(tiny_policy, tiny_params):
  with pytest.raises(ValueError, match='rank must be at least 1'):
    lora.adapt(tiny_policy, lora.Lora(rank=0))
  with pytest.raises(ValueError, match='no kernel of q_proj'):
    lora.init(lora.Lora(targets=('q_proj',)), tiny_params[0], jax.random.PRNGKey(0))


def test_head_of_a_rater_is_trained_in_full(tiny_params, tiny_prompts):
  """Of `in_full` the change itself is trained: it starts at 0, is added, and has the gradient of what it changes."""
  network = tiny.t5_network()
  judge = reward_model.from_rater(rater.in_decoder(network, ((2,), (3,), ()), head=rater.linear()))
  base = {'network': tiny_params[0], 'head': {'kernel': jnp.linspace(-1.0, 1.0, 8)}}
  adapted = lora.adapt(judge, LORA)
  fresh = jax.jit(adapted.init)(jax.random.PRNGKey(0))
  tokens = jnp.array([[4, 1], [5, 1]])
  reward = jax.jit(judge.reward)
  plain = reward(base, tiny_prompts, tokens)
  found = adapted.reward(Adapted(base, fresh), tiny_prompts, tokens)
  np.testing.assert_allclose(found, plain, rtol=1e-6)
  total = lambda adapters: adapted.reward(Adapted(base, adapters), tiny_prompts, tokens).sum()
  gradient = jax.jit(jax.grad(total))(fresh)
  expected = jax.grad(lambda params: judge.reward(params, tiny_prompts, tokens).sum())(base)
  np.testing.assert_allclose(
    gradient['head']['kernel']['change'], expected['head']['kernel'], rtol=1e-5
  )
  moved = jax.tree.map(lambda x: x, fresh)
  moved['head']['kernel']['change'] = jnp.full(8, 0.5)
  merged = lora.merge(LORA, Adapted(base, moved))
  np.testing.assert_allclose(merged['head']['kernel'], base['head']['kernel'] + 0.5)
  names = jax.tree.map(len, adapted.axes(), is_leaf=lambda x: isinstance(x, tuple))
  assert names == jax.tree.map(lambda x: x.ndim, fresh)
