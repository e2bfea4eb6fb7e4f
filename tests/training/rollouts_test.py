"""Rollouts in parts: the same numbers as of the joined rollout, and judging that goes on while sampling does."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.training import loop, rollouts, steps
from nlhf_jax.types import PolicyParams, Prompts, Rollout, Scored

PATIENCE = 60.0
NUM_PARTS = 2


def prompts(size=4):
  tokens = np.random.default_rng(0).integers(2, 6, (size, 5)).astype(np.int32)
  tokens[np.arange(5) >= np.arange(size)[:, None] % 5 + 1] = 0
  return Prompts(jnp.asarray(tokens), jnp.arange(size, dtype=jnp.int32))


def host_judge(prompts, y, other):
  """An exact judge on the host, who looks at the prompt too."""
  y, other, x = (np.asarray(tokens, np.float64) for tokens in (y, other, prompts.tokens))
  x = np.repeat(x[:, 0], len(y) // len(x))
  return (1 / (1 + np.exp(-0.3 * x * ((y - other) @ [1.0, 0.5, 0.25])))).astype(np.float32)


METHODS = {
  'nash_md_pg': functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.3, num_samples=2),
  'egpo': functools.partial(algorithms.egpo, tau=0.1, num_samples=2),
  'rlhf': functools.partial(algorithms.rlhf, tau=0.1, num_samples=2),
}


@pytest.fixture(scope='module')
def params(tiny_params):
  return PolicyParams(tiny_params[0], {'reference': tiny_params[1], 'half_step': tiny_params[0]})


def judge_of(name):
  if name == 'rlhf':
    return lambda prompts, y: jnp.asarray(host_judge(prompts, y, jnp.full_like(y, 3)))
  return host_judge


@pytest.mark.parametrize('name', METHODS)
def test_joined_parts_are_a_rollout(name, tiny_policy, params):
  """Each part is what its key samples; rows are in the order of the prompts; scores and gradient are those of the batch."""
  method, batch, rng = METHODS[name](tiny_policy, judge_of(name)), prompts(), jax.random.PRNGKey(3)
  sample = functools.partial(jax.jit(method.sample), params)
  found = rollouts.overlapped(sample, method.score, batch, rng, num_parts=NUM_PARTS)
  np.testing.assert_array_equal(found.prompts.tokens, batch.tokens)
  for number, key in enumerate(jax.random.split(rng, NUM_PARTS)):
    part = sample(jax.tree.map(lambda x, n=number: x[n::NUM_PARTS], batch), key)
    tokens = found.response.tokens.reshape(4, 2, -1)[number::NUM_PARTS]
    np.testing.assert_array_equal(tokens.reshape(-1, 3), part.response.tokens)
  field = {'nash_md_pg': 'preference', 'egpo': 'payoff', 'rlhf': 'advantage'}[name]
  at_once = method.score(found._replace(**{field: None}))
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(at_once), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
  gradients = [steps.accumulate(method.loss, params.online, x, 1)[0] for x in (found, at_once)]
  for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def tiny_scored(part):
  rows = Rollout(part.tokens, jnp.ones(part.tokens.shape, bool))
  return Scored(part, rows)


def test_a_part_is_judged_while_the_next_is_sampled():
  """Neither goes on before the other has begun; one part is judged at a time, in order."""
  begun = [threading.Event() for _ in range(4)]
  judging = [threading.Event() for _ in range(4)]
  at_once, order = threading.Semaphore(1), []
  calls = iter(range(4))

  def sample(part, key):
    number = next(calls)
    begun[number].set()
    assert number == 0 or judging[number - 1].wait(PATIENCE)
    return tiny_scored(part)

  def score(rollout):
    assert at_once.acquire(blocking=False)
    number = int(rollout.prompts.index[0])
    judging[number].set()
    assert number == 3 or begun[number + 1].wait(PATIENCE)
    order.append((number, threading.current_thread() is threading.main_thread()))
    at_once.release()
    return rollout._replace(reward=rollout.prompts.index * 1.0)

  laps = []
  found = rollouts.overlapped(
    sample,
    score,
    prompts(8),
    jax.random.PRNGKey(0),
    num_parts=4,
    lap=lambda phase, result: laps.append(phase),
  )
  assert order == [(number, False) for number in range(4)]
  assert laps == ['sample'] * 4 + ['score']
  np.testing.assert_array_equal(found.reward, np.arange(8.0))


def test_error_of_the_judge_stops_the_batch():
  """Its own error, once the part that is sampled then is there; no other part is judged."""
  failed, scored = threading.Event(), []
  calls = iter(range(4))

  def sample(part, key):
    if next(calls) == 1:
      assert failed.wait(PATIENCE)
    return tiny_scored(part)

  def score(rollout):
    scored.append(int(rollout.prompts.index[0]))
    failed.set()
    raise ValueError('too many judgements failed')

  with pytest.raises(ValueError, match='too many judgements failed'):
    rollouts.overlapped(sample, score, prompts(8), jax.random.PRNGKey(0), num_parts=4)
  assert scored[0] == 0
  assert next(calls) < 4


def test_interrupt_waits_for_the_part_that_is_judged():
  begun, go_on, ended = threading.Event(), threading.Event(), []
  calls = iter(range(4))

  def sample(part, key):
    if next(calls) == 2:
      assert begun.wait(PATIENCE)
      threading.Timer(0.05, go_on.set).start()
      raise KeyboardInterrupt
    return tiny_scored(part)

  def score(rollout):
    begun.set()
    assert go_on.wait(PATIENCE)
    ended.append(int(rollout.prompts.index[0]))
    return rollout

  with pytest.raises(KeyboardInterrupt):
    rollouts.overlapped(sample, score, prompts(8), jax.random.PRNGKey(0), num_parts=4)
  assert ended == [0]


@pytest.mark.parametrize('name', METHODS)
def test_run_in_parts(name, tiny_policy, tiny_params):
  """Through the loop, a half-step too; phases are timed as ever."""
  method, rows = METHODS[name](tiny_policy, judge_of(name)), []
  optimizer = optax.adam(0.01)
  state = loop.init_state(
    method, optimizer, 0, online=tiny_params[0], given={'reference': tiny_params[1]}
  )
  hooks = loop.Hooks(log=lambda step, means: rows.append(means))
  state = loop.train(
    method, optimizer, state, iter([prompts()] * 2), hooks, num_steps=2, num_rollout_parts=NUM_PARTS
  )
  assert int(state.step) == 2
  assert {'sample_seconds', 'score_seconds', 'update_seconds'} <= set(rows[0])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params.online))


def test_refusals(tiny_policy):
  rlhf = algorithms.rlhf(tiny_policy, judge_of('rlhf'), tau=0.1)
  with pytest.raises(ValueError, match='must be at least 1, got 0'):
    rollouts.check_method(rlhf, 0)
  with pytest.raises(ValueError, match=r'spans the batch .* set num_rollout_parts to 1'):
    rollouts.check_method(rlhf, 2)
  with pytest.raises(ValueError, match='samples nothing'):
    rollouts.check_method(algorithms.sft(tiny_policy), 2)
  with pytest.raises(
    ValueError, match='4 prompts does not divide into num_rollout_parts = 3 parts'
  ):
    rollouts.check_prompts(prompts(), 3)
