"""Length bucketing: the fewest tokens of padding, and no row lost but what no batch holds."""

import itertools

import numpy as np
import pytest

from nlhf_jax.data import buckets


@pytest.mark.parametrize('number', [1, 2, 3, 9])
def test_best_lengths_leave_the_least_padding(number):
  """Against all choices there are."""
  lengths = np.random.default_rng(number).integers(1, 61, 40)
  edges = range(8, 65, 8)
  total = lambda chosen: sum(min(e for e in chosen if e >= n) for n in lengths)
  choices = itertools.chain.from_iterable(
    itertools.combinations(edges, k) for k in range(1, min(number, 8) + 1)
  )
  best = min(total(chosen) for chosen in choices if chosen[-1] >= lengths.max())
  found = buckets.best_lengths(lengths, number, 64)
  assert len(found) <= number and found == sorted(found)
  assert total(found) == best


def test_best_lengths_do_not_exceed_the_longest():
  assert buckets.best_lengths(np.array([3, 17, 20]), 3, 20) == [8, 20]


def test_each_group_is_in_the_smallest_shape_that_holds_it():
  prompts, responses = np.array([4, 9, 30, 4]), np.array([2, 20, 3, 17])
  found = buckets.choose(prompts, responses, (32, 24), (2, 2))
  assert found.shapes == [(8, 8), (8, 24), (32, 8), (32, 24)]
  assert found.of_group.tolist() == [0, 3, 2, 1]
  assert found.overflow == [1, 3, 3, 4]


def test_prompts_alone_have_no_response_length():
  found = buckets.choose(np.array([4, 30]), np.array([0, 0]), (32, 0), (2, 5))
  assert found.shapes == [(8, 0), (32, 0)]


def test_epoch_holds_every_group_once_in_a_shape_that_fits():
  rng = np.random.default_rng(0)
  prompts, responses = rng.integers(1, 33, 60), rng.integers(1, 25, 60)
  found = buckets.choose(prompts, responses, (32, 24), (3, 2))
  batches = buckets.plan_epoch(found, batch_size=4, seed=1, epoch=0)
  groups = np.concatenate([batch.groups for batch in batches])
  assert sorted(groups) == list(range(60))  # 60 is a multiple of 4: what overflows fills the last.
  for (prompt_length, response_length), members in batches:
    assert (prompts[members] <= prompt_length).all()
    assert (responses[members] <= response_length).all()


def test_order_follows_seed_and_epoch():
  found = buckets.choose(np.full(30, 4), np.zeros(30, int), (8, 0), (1, 1))
  order = lambda *key: np.concatenate([b.groups for b in buckets.plan_epoch(found, 5, *key)])
  np.testing.assert_array_equal(order(3, 2), order(3, 2))
  assert (order(3, 2) != order(3, 3)).any()
  assert (order(3, 2) != order(4, 2)).any()
