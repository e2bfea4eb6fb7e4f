"""Pairs on which a judge gives no vote: training goes on as if there had been the others alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms, losses
from nlhf_jax.judges import llm, llm_settings
from nlhf_jax.training import loop, steps
from nlhf_jax.types import PolicyParams
from tests.judges import llm_stub

TAU, K = 0.1, 4


def judge(missing, prompts, y, other):
  """An exact judge, who fails on the share `missing` of all pairs."""
  y, other = (np.asarray(x, np.int64) for x in (y, other))
  p = 1 / (1 + np.exp(-0.4 * ((y - other) @ [1.0, 0.5, 0.25])))
  number = (y @ [7919, 104729, 1299709] + other @ [15485863, 32452843, 49979687]) % 97
  return jnp.asarray(np.where(number < 97 * missing, np.nan, p), jnp.float32)


def rollout_of(make, tiny_policy, tiny_params, tiny_prompts, missing=0.4):
  method = make(tiny_policy, functools.partial(judge, missing))
  sets = dict.fromkeys(('reference', 'snapshot', 'half_step', 'average'), tiny_params[1])
  sample = jax.jit(method.sample)
  rollout = sample(PolicyParams(tiny_params[0], sets), tiny_prompts, jax.random.PRNGKey(1))
  return method, method.score(rollout)


def assert_same_update(method, rollout, expected_loss, online):
  """`steps.accumulate` against the gradient of a loss that was put together by hand."""
  gradient, metrics = steps.accumulate(method.loss, online, rollout, 1)
  value, expected = jax.value_and_grad(expected_loss)(online)
  assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-4)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
  assert scale > 1e-3
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * scale)
  assert all(np.isfinite(float(x)) for x in metrics.values())
  return metrics


@pytest.mark.parametrize(
  ('method', 'settings'),
  [
    ('self_play', {}),
    ('nash_md_pg', {'beta': 0.3}),
    ('nash_md_pg', {'beta': 0.3, 'all_pairs': False}),
    ('self_play', {'num_samples': 1}),
  ],
)
def test_policy_gradient_over_the_rows_that_remain(
  method, settings, tiny_policy, tiny_params, tiny_prompts
):
  settings = {'num_samples': K} | settings
  k, each_other = settings['num_samples'], method == 'self_play' and settings['num_samples'] > 1
  make = functools.partial(getattr(algorithms, method), tau=TAU, **settings)
  algorithm, rollout = rollout_of(make, tiny_policy, tiny_params, tiny_prompts)
  y, other = (
    np.asarray(x.tokens).reshape(2, k, -1) for x in (rollout.response, rollout.alternative)
  )
  preference, num_missing, num_pairs = np.full((2, k), np.nan), 0, 0
  for b in range(2):
    for i in range(k):
      rivals = [j for j in range(k) if settings.get('all_pairs', True) or j == i]
      rivals = [j for j in rivals if not (each_other and j == i)]
      votes = [float(judge(0.4, None, y[b, i : i + 1], other[b, j : j + 1])[0]) for j in rivals]
      num_missing, num_pairs = num_missing + np.isnan(votes).sum(), num_pairs + len(votes)
      if not np.isnan(votes).all():
        preference[b, i] = np.nanmean(votes)
  np.testing.assert_allclose(rollout.preference, preference.ravel(), rtol=1e-5)
  assert 0 < num_missing < num_pairs

  def expected(online):
    token_logp = tiny_policy.log_prob(online, tiny_prompts, rollout.response.tokens)
    total = 0.0
    for b in range(2):
      rows = np.flatnonzero(~np.isnan(preference[b])) + b * k
      if not rows.size:
        continue
      p = jnp.asarray(preference.ravel()[rows], jnp.float32)
      alone = each_other or len(rows) == 1
      advantage = p - 0.5 if alone else losses.leave_one_out(p, len(rows))
      reference, mask = rollout.reference_token_logp[rows], rollout.response.mask[rows]
      total += losses.policy_gradient_loss(
        token_logp[rows], reference, advantage, mask, tau=TAU, group=len(rows)
      ).value.sum()
    return total / np.sum(~np.isnan(preference))

  metrics = assert_same_update(algorithm, rollout, expected, tiny_params[0])
  assert float(metrics['preference']) == pytest.approx(np.nanmean(preference), rel=1e-5)
  assert float(metrics['votes_missing']) == pytest.approx(num_missing / num_pairs)


def test_rewards_that_are_missing(tiny_policy, tiny_params, tiny_prompts):
  """Such as the win rates of an exploiter whose judge abstains; a response whose others have none is compared with the batch."""
  known = np.array([True, True, False, True, False, True, False, False])
  values = jnp.asarray([3.0, 5.0, 0.0, 4.0, 0.0, 7.0, 0.0, 0.0])
  reward = lambda prompts, y: jnp.where(known, values, jnp.nan)
  make = lambda policy, judge: algorithms.rlhf(policy, reward, tau=TAU, num_samples=K)
  algorithm, rollout = rollout_of(make, tiny_policy, tiny_params, tiny_prompts)

  def expected(online):
    token_logp = tiny_policy.log_prob(online, tiny_prompts, rollout.response.tokens)
    total = 0.0
    for rows, advantage in (([0, 1, 3], [-1.5, 1.5, 0.0]), ([5], [7.0 - 19 / 4])):
      rows = np.array(rows)
      reference, mask = rollout.reference_token_logp[rows], rollout.response.mask[rows]
      total += losses.policy_gradient_loss(
        token_logp[rows], reference, jnp.array(advantage), mask, tau=TAU, group=len(rows)
      ).value.sum()
    return total / known.sum()

  metrics = assert_same_update(algorithm, rollout, expected, tiny_params[0])
  assert float(metrics['reward']) == pytest.approx(19 / 4)
  assert float(metrics['votes_missing']) == 0.5


@pytest.mark.parametrize(
  ('method', 'settings', 'loss'),
  [
    ('online_ipo', {'tau': TAU}, functools.partial(losses.squared_difference_loss, tau=TAU)),
    ('egpo', {'tau': TAU}, functools.partial(losses.squared_difference_loss, tau=TAU)),
    (
      'sppo',
      {'eta': 0.5, 'refresh_every': 2},
      functools.partial(losses.squared_payoff_loss, eta=0.5),
    ),
  ],
)
def test_pairwise_loss_over_the_pairs_that_remain(
  method, settings, loss, tiny_policy, tiny_params, tiny_prompts
):
  make = functools.partial(getattr(algorithms, method), num_samples=K, **settings)
  algorithm, rollout = rollout_of(make, tiny_policy, tiny_params, tiny_prompts)
  if (
    method != 'online_ipo'
  ):  # Against several opponents a payoff is seldom missing: some are taken away.
    missing = np.random.default_rng(0).random(rollout.payoff.shape[:2]) < 0.4
    payoff = jnp.where(missing[..., None], jnp.nan, rollout.payoff)
    share = jnp.asarray(missing.mean(axis=-1), jnp.float32)
    rollout = rollout._replace(payoff=payoff, votes_missing=share)
  payoff = np.asarray(rollout.payoff)
  remain = ~np.isnan(payoff).any(axis=-1)
  assert 0 < remain.sum() < remain.size
  every, per_row = method != 'sppo', payoff.shape[1]

  def expected(online):
    logp = [
      tiny_policy.log_prob(online, tiny_prompts, x.tokens).sum(-1)
      for x in (rollout.response, rollout.alternative)
    ]
    ratios = [x - rollout.anchor_logp[:, n] for n, x in enumerate(logp)]
    total = 0.0
    for row, number in np.argwhere(remain):
      other = row // K * K + number if every else row
      pair = jnp.stack([ratios[0][row], ratios[1][other]])[None]
      total += loss(pair, jnp.asarray(payoff[row, number])[None]).value[0]
    return total / remain.sum()

  metrics = assert_same_update(algorithm, rollout, expected, tiny_params[0])
  assert per_row == (K if every else 1)
  assert float(metrics['votes_missing']) == pytest.approx(1 - remain.mean(), abs=1e-6)


def train(method, tiny_params, tiny_prompts, num_steps=1, rows=None):
  optimizer = optax.adam(0.01)
  state = loop.init_state(
    method, optimizer, 0, online=tiny_params[0], given={'reference': tiny_params[1]}
  )
  log = (lambda step, means: rows.append(means)) if rows is not None else loop.Hooks().log
  batches = iter([tiny_prompts] * num_steps)
  return loop.train(
    method, optimizer, state, batches, loop.Hooks(log=log), num_steps=num_steps, log_every=1
  )


@pytest.mark.parametrize('name', ['nash_md_pg', 'egpo'])
def test_batch_without_any_vote_stops_the_run(name, tiny_policy, tiny_params, tiny_prompts):
  """Before a policy of the half-step, which is not finite then, is played."""
  settings = {'nash_md_pg': {'beta': 0.3}, 'egpo': {}}[name]
  make = functools.partial(getattr(algorithms, name), tau=TAU, num_samples=K, **settings)
  with pytest.raises(ValueError, match='gave no vote on any pair of step 0'):
    train(make(tiny_policy, functools.partial(judge, 1)), tiny_params, tiny_prompts)


def panel_judge(stub, **limit):
  panel = llm.Panel(
    ['m'],
    server=llm_settings.Server(stub.url, concurrency=1, num_retries=0),
    failures=llm.FailureLimit(**limit),
  )
  decode = lambda ids: ''.join(chr(ord('a') + i) for i in ids)
  return panel, llm.from_panel(panel, decode, decode)


def every_tenth_fails(number, body):
  return llm_stub.Reply('?') if number % 10 == 0 else llm_stub.longer(number, body)


def test_training_goes_on_without_a_tenth_of_the_answers(
  tiny_policy, tiny_params, tiny_prompts, monkeypatch
):
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  rows = []
  with llm_stub.Stub(every_tenth_fails) as stub:
    panel, preference_fn = panel_judge(stub, max_share=0.2)
    method = algorithms.nash_md_pg(tiny_policy, preference_fn, tau=TAU, beta=0.3, num_samples=K)
    state = train(method, tiny_params, tiny_prompts, 4, rows)
  assert panel.num_failed.total() > 0
  missing = [row['votes_missing'] for row in rows]
  assert max(missing) > 0
  assert sum(missing) < 4 * 0.3
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_too_many_failures_stop_the_run_with_the_reason(
  tiny_policy, tiny_params, tiny_prompts, monkeypatch
):
  """A tenth, where a twentieth may."""
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  with llm_stub.Stub(every_tenth_fails) as stub:
    _, preference_fn = panel_judge(stub, max_share=0.05, min_judgements=30)
    method = algorithms.nash_md_pg(tiny_policy, preference_fn, tau=TAU, beta=0.3, num_samples=K)
    with pytest.raises(
      ValueError, match=r'of \d+ judgements failed, more than 5%; .* by malformed answer'
    ):
      train(method, tiny_params, tiny_prompts, 20)
