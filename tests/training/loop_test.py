"""The loop: microbatches, resuming, keys, averages, and what stops it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms, losses
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import loop, optimizers, parameter_sets, steps
from nlhf_jax.types import Algorithm, Demonstration, Losses, Prompts
from tests import compilations

QUIET = loop.Hooks()


def demonstrations(start: int = 0):
  """Batch n is a function of n; responses of unequal length."""
  number = start
  while True:
    rng = np.random.default_rng(number)
    tokens = rng.integers(2, 6, (8, 3)).astype(np.int32)
    tokens[:3, 1], tokens[:3, 2], tokens[3:, 2] = 1, 0, 1
    prompts = Prompts(jnp.asarray(rng.integers(2, 6, (4, 5)), jnp.int32), jnp.arange(4))
    yield Demonstration(prompts, as_rollout(jnp.asarray(tokens)))
    number += 1


@pytest.fixture(scope='module')
def sft(tiny_policy):
  return algorithms.sft(tiny_policy)


def test_microbatches_make_the_batch(sft, tiny_params):
  """Two prompts and their four responses to a part, with different numbers of tokens."""
  batch = next(demonstrations())
  whole, metrics = steps.accumulate(sft.loss, tiny_params[0], batch, 1)
  parts, same = steps.accumulate(sft.loss, tiny_params[0], batch, 2)
  # Sums in another order: rounding is in proportion to the gradient's largest entry.
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(whole))
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * scale)
  assert float(metrics['loss']) == pytest.approx(float(same['loss']), rel=1e-6)
  counted = int(batch.response.mask.sum())
  logp = sft.loss(tiny_params[0], batch).value
  assert float(metrics['loss']) == pytest.approx(float(logp.sum()) / counted, rel=1e-5)


def test_updates_from_one_rollout(tiny_policy, tiny_params, tiny_prompts):
  """Two updates of one step are two updates on the same rollout; sets move after each."""
  judge = jax.jit(lambda prompts, y, other: jax.nn.sigmoid((y[:, 0] - other[:, 0]) * 1.0))
  make = functools.partial(algorithms.nash_ema_pg, tau=0.1, decay=0.5, num_samples=4)
  algorithm = make(tiny_policy, judge, reuse=losses.exact_ratio())
  optimizer = optax.adam(0.01)
  start = lambda: loop.init_state(
    algorithm, optimizer, 0, online=tiny_params[0], given={'reference': tiny_params[1]}
  )
  forever = iter([tiny_prompts] * 2)
  state = loop.train(algorithm, optimizer, start(), forever, num_steps=1, num_updates=2)
  one = steps.Steps(algorithm, optimizer)
  first = start()
  rollout = algorithm.score(one.sample(first.params, tiny_prompts, steps.step_key(first.rng, 0)))
  trained = one.trained(first)
  for number in range(2):
    trained, _ = one.update(trained, None, rollout, jnp.int32(number))
  assert int(state.step) == 1
  for a, b in [
    (state.params.online, trained.online),
    (state.params.sets['average'], trained.sets['average']),
  ]:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)
  plain = make(tiny_policy, judge)
  with pytest.raises(ValueError, match='num_updates must be 1 where rollouts are not reused'):
    loop.train(plain, optimizer, start(), forever, num_steps=1, num_updates=2)


def test_resumed_run_is_the_uninterrupted_run(sft, tmp_path):
  """Parameters, average and optimizer, to the last bit, through a checkpoint on disk."""
  optimizer = optimizers.adafactor(optimizers.warmup_linear(1e-2, num_steps=6, warmup_steps=2))
  averaged = parameter_sets.extend(sft, {'average': parameter_sets.average(0.9)})
  save = loop.Hooks(save=lambda state, sums: checkpoints.save(tmp_path, state))
  first = loop.init_state(averaged, optimizer, 0)
  run = lambda state, hooks, num_steps: loop.train(
    averaged, optimizer, state, demonstrations(int(state.step)), hooks, num_steps=num_steps
  )
  run(first, save, 3)
  fresh = loop.init_state(averaged, optimizer, 0)
  resumed = run(checkpoints.restore(tmp_path, fresh)[0], QUIET, 6)
  straight = run(loop.init_state(averaged, optimizer, 0), QUIET, 6)
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
    np.testing.assert_array_equal(a, b)


def test_no_two_steps_share_a_key():
  rng = jax.random.PRNGKey(0)
  keys = {tuple(np.asarray(steps.step_key(rng, step)).tolist()) for step in range(100)}
  assert len(keys) == 100


def _quadratic() -> Algorithm:
  """θ is pulled to the batch: a loss whose steps are known by hand."""

  def loss(params, batch):
    value = 0.5 * (params['x'] - batch.response.token_logp[:, 0]) ** 2
    return Losses(value, jnp.ones_like(value), {})

  return Algorithm(lambda rng: {'x': jnp.zeros(())}, lambda p, b, rng: b, lambda b: b, loss)


def _targets(*values):
  ones = jnp.ones((1, 1), jnp.int32)
  for value in values:
    rollout = as_rollout(ones)._replace(token_logp=jnp.full((1, 1), value))
    yield Demonstration(Prompts(ones, jnp.zeros(1, jnp.int32)), rollout)


def test_average_follows_its_formula():
  """θ̄ ← κ θ̄ + (1 − κ) θ, after each step θ ← θ − ½ (θ − target)."""
  optimizer, sets = optax.sgd(0.5), {'average': parameter_sets.average(0.75)}
  algorithm = _quadratic()._replace(sets=sets)
  state = loop.init_state(algorithm, optimizer, 0)
  state = loop.train(algorithm, optimizer, state, _targets(1.0, 1.0), QUIET, num_steps=2)
  theta = [0.0, 0.5, 0.75]
  ema = 0.75 * (0.75 * 0.0 + 0.25 * theta[1]) + 0.25 * theta[2]
  assert float(state.params.online['x']) == theta[2]
  assert float(state.params.sets['average']['x']) == pytest.approx(ema)


def test_not_a_number_stops_the_run_with_step_and_batch():
  optimizer, algorithm = optax.sgd(0.5), _quadratic()
  state = loop.init_state(algorithm, optimizer, 0)
  with pytest.raises(loop.NonFiniteError, match='step 1') as caught:
    loop.train(algorithm, optimizer, state, _targets(1.0, float('nan')), QUIET, num_steps=2)
  assert caught.value.step == 1
  assert np.isnan(caught.value.batch.response.token_logp).all()


def test_logs_are_means_over_their_window(sft):
  seen = []
  hooks = loop.Hooks(log=lambda step, metrics: seen.append((step, metrics)))
  optimizer = optax.sgd(0.1)
  state = loop.init_state(sft, optimizer, 0)
  loop.train(sft, optimizer, state, demonstrations(), hooks, num_steps=5, log_every=2)
  assert [step for step, _ in seen] == [2, 4, 5]
  means = seen[0][1]
  assert means['response_length'] == pytest.approx((3 * 2 + 5 * 3) / 8)
  assert means['eos_rate'] == 1.0
  assert {'sample_seconds', 'score_seconds', 'update_tokens_per_second'} <= set(means)
  json.dumps(means)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_microbatches': 0}, 'at least 1'),
  ],
)
def test_bad_options_are_refused(options, message, sft):
  optimizer = optax.sgd(0.1)
  state = loop.init_state(sft, optimizer, 0)
  with pytest.raises(ValueError, match=message):
    loop.train(sft, optimizer, state, iter(()), QUIET, num_steps=1, **options)


def test_what_was_trained_is_kept_where_measuring_fails(sft):
  saved, optimizer = [], optax.sgd(0.1)

  def measure(params, step):
    raise ValueError('no fixed point')

  hooks = loop.Hooks(save=lambda state, sums: saved.append(int(state.step)), measure=measure)
  state = loop.init_state(sft, optimizer, 0)
  with pytest.raises(ValueError, match='no fixed point'):
    loop.train(sft, optimizer, state, demonstrations(), hooks, num_steps=5, log_every=2)
  assert saved == [2]


def _ragged_prompts():
  number = 0
  while True:
    rng = np.random.default_rng(number)
    tokens = rng.integers(2, 6, (4, 5)).astype(np.int32)
    tokens[np.arange(5) >= rng.integers(1, 6, (4, 1))] = 0
    yield Prompts(tokens, np.arange(4, dtype=np.int32))
    number += 1


@pytest.mark.parametrize(
  'method',
  [
    functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.3, num_samples=2),
    functools.partial(algorithms.nash_ema_pg, tau=0.1, decay=0.9),
    functools.partial(algorithms.egpo, tau=0.1, num_samples=2),
  ],
  ids=['nash_md_pg', 'nash_ema_pg', 'egpo'],
)
def test_nothing_compiles_after_the_first_steps(method, tiny_policy, tiny_params):
  """Twenty steps on prompts and responses of all lengths run the programs of the first two."""
  length = lambda tokens: jnp.sum(tokens > 0, axis=-1).astype(jnp.float32)
  prefers_short = jax.jit(lambda x, y, other: jax.nn.sigmoid(length(other) - length(y)))
  algorithm, optimizer = method(tiny_policy, prefers_short), optax.adam(1e-3)
  state = loop.init_state(
    algorithm, optimizer, 0, online=tiny_params[0], given={'reference': tiny_params[1]}
  )
  before = []

  def advance(steps):
    before.append(len(compiled))

  with compilations.counted() as compiled:
    hooks = loop.Hooks(advance=advance)
    batches = _ragged_prompts()
    loop.train(algorithm, optimizer, state, batches, hooks, num_steps=22)
  assert len(before) == 22
  assert before[1] > 0  # They are counted.
  assert len(compiled) == before[1]
