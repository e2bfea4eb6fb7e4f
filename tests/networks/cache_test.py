"""A cache is a ring of positions that knows the age of each, and grows without losing any."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nlhf_jax.networks import cache


class Counter(nn.Module):
  """Keeps the numbers of its calls as keys and values."""

  capacity: int

  @nn.compact
  def __call__(self, number):
    call = cache.advance(self, 1, self.capacity, None)
    x = jnp.full((2, 1, 1, 1), number)
    return cache.append(self, cache.KeysAndValues(x, x), call), call


def _run(capacity, numbers, variables):
  for number in numbers:
    result, variables = Counter(capacity).apply(variables, number, mutable='cache')
  return *result, variables


def test_ring():
  """Whatever is written a calls before the last one has age a, also where old places were taken again."""
  for last in range(7):
    held, call, _ = _run(3, range(last + 1), {})
    ages = np.asarray(call.ages[0])
    assert sorted(ages) == [0, 1, 2]
    assert call.positions.tolist() == [[last]]
    seen = ages <= last
    for x in (held.key[1, 0, 0], held.value[1, 0, :, 0]):
      np.testing.assert_array_equal(x[seen], last - ages[seen])


def test_growth():
  """What was held has its age still, and new positions find room."""
  _, _, variables = _run(3, range(3), {})
  assert cache.capacity(variables['cache']) == 3
  grown = cache.grow(variables['cache'], 5)
  assert cache.capacity(grown) == 5
  held, call, _ = _run(5, [3], {'cache': grown})
  np.testing.assert_array_equal(held.key[0, 0, 0], [0, 1, 2, 3, 0])
  np.testing.assert_array_equal(call.ages[0], [3, 2, 1, 0, 4])


def test_empty_cache():
  """Zeros of the shapes that a first call would leave, which later calls fill."""
  step = lambda number: Counter(3).apply({}, number, mutable='cache')
  made = cache.make(step, 5)['cache']
  assert cache.capacity(made) == 3
  assert not made['cached_key'].any() and made['cache_index'] == 0
