"""The parts of methods that compare two responses, and what they ask of the training loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms, pairwise
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import loop, parameter_sets, steps
from nlhf_jax.types import PolicyParams

QUIET = loop.Hooks()


def later_wins(prompts, y, y2):
  """A judge: the greater first token wins."""
  return 0.5 + 0.5 * jnp.sign(y[:, 0] - y2[:, 0]).astype(jnp.float32)


def test_pairs_are_scored_as_each_response_alone(tiny_policy, tiny_params, tiny_prompts, language):
  rng = np.random.default_rng(0)
  first, second = (jnp.asarray(language[rng.integers(len(language), size=6)]) for _ in range(2))
  pair = pairwise.pair_logp(
    tiny_policy, tiny_params[0], tiny_prompts, as_rollout(first), as_rollout(second)
  )
  for column, tokens in enumerate((first, second)):
    alone = tiny_policy.log_prob(tiny_params[0], tiny_prompts, tokens).sum(axis=-1)
    np.testing.assert_allclose(pair[:, column], alone, atol=1e-5)


@pytest.mark.parametrize('method', ['online_ipo', 'egpo', 'dno'])
def test_all_pairs_are_the_mean_of_single_ones(
  method, tiny_policy, tiny_params, tiny_prompts, language
):
  """The loss over the k² pairs is that of each pair alone, averaged: as unbiased as one pair."""
  settings = {'dno': {'eta': 0.5, 'refresh_every': 3}}.get(method, {'tau': 0.1})
  make = functools.partial(
    getattr(algorithms, method), tiny_policy, jax.jit(later_wins), **settings
  )
  sets = dict.fromkeys(('reference', 'snapshot', 'half_step'), tiny_params[1])
  k = 3
  every, single = (make(num_samples=n, all_pairs=n > 1) for n in (k, 1))
  rollout = every.sample(PolicyParams(tiny_params[0], sets), tiny_prompts, jax.random.PRNGKey(0))
  scored = every.score(rollout)
  assert scored.payoff.shape == (2 * k, k, 2)
  rows = lambda x, shift: jnp.roll(x.reshape(2, k, *x.shape[1:]), shift, axis=1).reshape(x.shape)
  losses = []
  for shift in range(k):
    other = jax.tree.map(lambda x, s=shift: rows(x, s), rollout.alternative)
    logp = lambda x, s=shift: jnp.stack([x[:, 0], rows(x[:, 1], s)], axis=-1)
    pairs = rollout._replace(
      alternative=other,
      reference_logp=logp(rollout.reference_logp),
      anchor_logp=logp(rollout.anchor_logp),
    )
    losses.append(single.loss(tiny_params[0], single.score(pairs)).value)
  found = every.loss(tiny_params[0], scored).value
  np.testing.assert_allclose(found, np.mean(losses, axis=0), rtol=1e-4, atol=1e-6)


def test_mean_preference_is_over_the_opponents_of_the_same_prompt(tiny_prompts):
  rng = np.random.default_rng(0)
  y, opponents = (jnp.asarray(rng.integers(2, 6, size=(6, 3)), jnp.int32) for _ in range(2))
  found = pairwise.mean_preference(later_wins, tiny_prompts, y, opponents)
  for row in range(6):
    rivals = opponents[row // 3 * 3 : row // 3 * 3 + 3]
    votes = [0.5 + 0.5 * np.sign(int(y[row, 0]) - int(rival[0])) for rival in rivals]
    assert float(found[row]) == pytest.approx(np.mean(votes))


def batches(prompts):
  while True:
    yield prompts


def run(algorithm, params, prompts, num_steps, state=None, hooks=QUIET):
  optimizer = optax.adam(0.01)
  if state is None:
    state = loop.init_state(algorithm, optimizer, 0, online=params, given={'reference': params})
  return loop.train(
    algorithm, optimizer, state, batches(prompts), hooks, num_steps=num_steps, log_every=100
  )


def same(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_snapshot_moves_every_n_updates(tiny_policy, tiny_params, tiny_prompts):
  make = functools.partial(algorithms.inpo, tau=0.1, eta=0.5, refresh_every=3)
  algorithm = make(tiny_policy, jax.jit(later_wins))
  assert set(algorithm.sets) == {'reference', 'snapshot'}
  two = run(algorithm, tiny_params[0], tiny_prompts, 2)
  assert same(two.params.sets['snapshot'], tiny_params[0])
  three = run(algorithm, None, tiny_prompts, 3, two)
  assert same(three.params.sets['snapshot'], three.params.online)
  assert not same(three.params.online, tiny_params[0])


def test_snapshot_through_a_restart(tiny_policy, tiny_params, tiny_prompts, tmp_path):
  make = functools.partial(algorithms.inpo, tau=0.1, eta=0.5, refresh_every=3)
  algorithm = make(tiny_policy, jax.jit(later_wins))
  saved = parameter_sets.saved(algorithm.sets)
  save = lambda state, sums: checkpoints.save(tmp_path, state, saved=saved)
  run(algorithm, tiny_params[0], tiny_prompts, 4, hooks=QUIET._replace(save=save))
  fresh = loop.init_state(
    algorithm, optax.adam(0.01), 0, online=tiny_params[0], given={'reference': tiny_params[0]}
  )
  saved, _ = checkpoints.restore(tmp_path, fresh, saved=saved)
  resumed = run(algorithm, None, tiny_prompts, 7, saved)
  straight = run(algorithm, tiny_params[0], tiny_prompts, 7)
  assert same(resumed, straight)


def test_half_step_is_taken_back(tiny_policy, tiny_params, tiny_prompts):
  """EGPO's iteration is one update from where it began, against the policy of the half-step."""
  algorithm = algorithms.egpo(tiny_policy, jax.jit(later_wins), tau=0.1, num_samples=2)
  state = run(algorithm, tiny_params[0], tiny_prompts, 1)
  assert set(state.params.sets) == {'reference'}
  assert int(state.opt_state[0].count) == 1

  optimizer = optax.adam(0.01)
  first, second = jax.random.split(steps.step_key(jax.random.PRNGKey(0), 0))
  start = loop.init_state(
    algorithm, optimizer, 0, online=tiny_params[0], given={'reference': tiny_params[0]}
  ).params

  def updated(rollout):
    gradient, _ = steps.accumulate(algorithm.loss, start.online, algorithm.score(rollout), 1)
    updates, _ = optimizer.update(gradient, optimizer.init(start.online))
    return optax.apply_updates(start.online, updates)

  sample = jax.jit(algorithm.sample)
  against = lambda half: start._replace(sets={**start.sets, 'half_step': half})
  half = updated(sample(against(start.online), tiny_prompts, first))
  online = updated(sample(against(half), tiny_prompts, second))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params.online, online
  )


@pytest.mark.parametrize(
  ('method', 'settings', 'message'),
  [
    (algorithms.inpo, {'tau': 0.5, 'eta': 0.1, 'refresh_every': 1}, 'eta must be at least tau'),
    (algorithms.online_ipo, {'tau': 0.0}, 'tau must be positive, got 0.0'),
    (algorithms.nash_mp, {'tau': 0.1, 'eta': 0.0, 'decay': 0.9}, 'eta must be positive, got 0.0'),
    (algorithms.sppo, {'eta': -1.0, 'refresh_every': 1}, 'eta must be positive, got -1.0'),
    (algorithms.ipo_md, {'tau': 0.1, 'beta': 1.2}, r'beta must be in \[0, 1\]'),
  ],
)
def test_wrong_constant_is_named(method, settings, message, tiny_policy):
  with pytest.raises(ValueError, match=message):
    method(tiny_policy, later_wins, **settings)


@pytest.mark.parametrize('untruncated', [True, False])
def test_log_probs_of_the_sampler_are_not_computed_again(
  untruncated, tiny_policy, tiny_params, tiny_prompts
):
  """Samples of a snapshot carry its log-probs; where sampling was truncated they are computed."""
  scored = []

  def log_prob(params, *args):
    scored.append(params)
    return tiny_policy.log_prob(params, *args)

  method = algorithms.sppo(
    tiny_policy._replace(log_prob=log_prob, untruncated=untruncated),
    later_wins,
    eta=1.0,
    refresh_every=3,
    num_samples=2,
  )
  sets = {'reference': tiny_params[0], 'snapshot': tiny_params[1]}
  batch = method.sample(PolicyParams(tiny_params[0], sets), tiny_prompts, jax.random.PRNGKey(0))
  assert sum(params is tiny_params[1] for params in scored) == (0 if untruncated else 1)
  expected = pairwise.pair_logp(
    tiny_policy, tiny_params[1], tiny_prompts, batch.response, batch.alternative
  )
  np.testing.assert_allclose(batch.anchor_logp, expected, atol=2e-5)
