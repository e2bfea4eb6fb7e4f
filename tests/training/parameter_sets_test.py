"""How parameter sets start and move, by hand; and that the loop moves, saves and restores them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.models.policy import as_rollout
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import loop, parameter_sets
from nlhf_jax.types import Algorithm, Demonstration, Losses, Prompts


def doubling() -> Algorithm:
  """θ goes 1, 2, 4, 8 … under plain gradient steps of size 1."""

  def loss(params, batch):
    value = jnp.broadcast_to(-0.5 * params['x'] ** 2, (1,))
    return Losses(value, jnp.ones(1), {})

  as_is = lambda params, batch, rng: batch
  return Algorithm(lambda rng: {'x': jnp.ones(())}, as_is, lambda batch: batch, loss)


def batches():
  one = np.ones((1, 1), np.int32)
  while True:
    yield Demonstration(Prompts(one, np.zeros(1, np.int32)), as_rollout(jnp.asarray(one)))


def run(sets, num_steps, given=None, state=None, save=None):
  algorithm, optimizer = parameter_sets.extend(doubling(), sets), optax.sgd(1.0)
  if state is None:
    state = loop.init_state(algorithm, optimizer, 0, given=given)
  hooks = loop.Hooks() if save is None else loop.Hooks(save=save)
  return loop.train(algorithm, optimizer, state, batches(), hooks, num_steps=num_steps)


def value(params) -> float:
  return float(params['x'])


def test_average():
  state = run({'average': parameter_sets.average(0.75)}, 3)
  expected = 1.0
  for theta in (2.0, 4.0, 8.0):
    expected = 0.75 * expected + 0.25 * theta
  assert value(state.params.sets['average']) == pytest.approx(expected)


@pytest.mark.parametrize(('num_steps', 'expected'), [(2, 1.0), (3, 8.0), (5, 8.0), (6, 64.0)])
def test_snapshot_every_third_update(num_steps, expected):
  state = run({'snapshot': parameter_sets.snapshot(3)}, num_steps)
  assert value(state.params.sets['snapshot']) == expected


@pytest.mark.parametrize(('num_steps', 'expected'), [(1, 1.0), (2, 4.0), (4, 4.0), (5, 32.0)])
def test_snapshot_at_another_update(num_steps, expected):
  state = run({'snapshot': parameter_sets.snapshot(3, at=2)}, num_steps)
  assert value(state.params.sets['snapshot']) == expected


def test_error_of_a_snapshot_that_is_never_taken():
  with pytest.raises(ValueError, match=r'at must be in \[0, 3\), got 3'):
    parameter_sets.snapshot(3, at=3)


def test_ring_keeps_the_newest_first():
  state = run({'ring': parameter_sets.ring(3, 2)}, 7)
  assert [value(x) for x in state.params.sets['ring']] == [64.0, 16.0, 4.0]
  assert value(state.params.named('ring.1')) == 16.0


@pytest.mark.parametrize(('reset_every', 'expected'), [(None, 5.0), (2, 16.0)])
def test_reference_is_frozen_or_reset(reset_every, expected):
  given = {'reference': {'x': jnp.float32(5.0)}}
  state = run({'reference': parameter_sets.reference(reset_every)}, 5, given)
  assert value(state.params.sets['reference']) == expected
  assert value(given['reference']) == 5.0  # Another run may hold it: it was not donated.


def test_reset_reference_is_given_where_it_starts():
  given = {'reference': {'x': jnp.float32(5.0)}}
  state = run({'reference': parameter_sets.reference(4)}, 3, given)
  assert value(state.params.sets['reference']) == 5.0


def test_reset_reference_without_one_given_starts_at_theta():
  state = run({'reference': parameter_sets.reference(4)}, 3)
  assert value(state.params.sets['reference']) == 1.0


def test_moving_sets_are_saved_and_frozen_ones_are_not():
  sets = {
    'reference': parameter_sets.frozen(),
    'average': parameter_sets.average(0.9),
    'half_step': parameter_sets.half_step(),
    'magnet': parameter_sets.reference(2),
  }
  assert parameter_sets.saved(sets) == ['average', 'magnet']
  assert parameter_sets.moving(sets) == ['average', 'magnet']
  assert parameter_sets.half_step_name(sets) == 'half_step'


def test_sets_through_a_checkpoint(tmp_path):
  """To the last bit: average, ring, snapshot, and a reference that was reset."""
  sets = {
    'average': parameter_sets.average(0.75),
    'ring': parameter_sets.ring(2, 2),
    'snapshot': parameter_sets.snapshot(3),
    'reference': parameter_sets.reference(2),
  }
  saved = parameter_sets.saved(sets)
  run(sets, 3, save=lambda state, _: checkpoints.save(tmp_path, state, saved=saved))
  fresh = loop.init_state(parameter_sets.extend(doubling(), sets), optax.sgd(1.0), 0)
  restored, _ = checkpoints.restore(tmp_path, fresh, saved=saved)
  resumed, straight = run(sets, 7, state=restored), run(sets, 7)
  for name in ('average', 'snapshot', 'reference', 'ring.0', 'ring.1'):
    assert value(resumed.params.named(name)) == value(straight.params.named(name))
  assert value(straight.params.named('reference')) == 64.0


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: parameter_sets.average(1.0), r'decay must be in \[0, 1\), got 1.0'),
    (lambda: parameter_sets.snapshot(0), 'every must be at least 1, got 0'),
    (lambda: parameter_sets.ring(0, 1), 'size must be at least 1, got 0'),
    (lambda: parameter_sets.reference(-2), 'reset_every must be at least 1, got -2'),
  ],
)
def test_constants_out_of_range_are_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
