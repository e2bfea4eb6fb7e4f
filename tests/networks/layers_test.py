"""Stacks of layers: each is run as if it had been traced by itself, and is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks import layers

TRACED = []


class Layer(nn.Module):
  """x ↦ dropout(x) W + a number + its own array; counts its calls in the cache."""

  @nn.compact
  def __call__(self, x, own, common):
    array, number = own
    TRACED.append(number)
    kernel = self.param('kernel', lambda key, shape: jnp.eye(*shape), (3, 3))
    calls = self.variable('cache', 'calls', lambda: jnp.zeros((), jnp.int32))
    if self.is_mutable_collection('cache') and not self.is_initializing():
      calls.value += 1
    x = nn.Dropout(0.5, deterministic=not self.has_rng('dropout'))(x)
    return x @ kernel + common + number + array, calls.value


class Stack(nn.Module):
  """Three layers, of which the second has another number."""

  def setup(self):
    self.layers = [Layer() for _ in range(3)]

  def __call__(self, x, common):
    owns = [(jnp.full(3, n), number) for n, number in [(10.0, 1), (20.0, 2), (30.0, 1)]]
    return layers.run(self.layers, x, owns, layers.PLAIN, common)


@pytest.fixture
def variables():
  found = Stack().init(jax.random.key(0), jnp.ones((2, 3)), jnp.ones(3))
  TRACED.clear()
  return found


def test_layers_that_are_alike_are_traced_once(variables):
  x, common = jnp.arange(6.0).reshape(2, 3), jnp.array([100.0, 200, 300])
  apply = jax.jit(lambda variables: Stack().apply(variables, x, common, mutable=['cache']))
  (y, calls), changed = apply(variables)
  assert TRACED == [1, 2]
  np.testing.assert_array_equal(y, x + 3 * common + 64)
  assert [*map(int, calls)] == [int(x['calls']) for x in changed['cache'].values()] == [1, 1, 1]


def test_the_program_is_as_if_each_had_been_traced(variables):
  x, common = jnp.ones((2, 3)), jnp.ones(3)
  program = jax.make_jaxpr(lambda variables: Stack().apply(variables, x, common))(variables)
  names = [equation.primitive.name for equation in program.jaxpr.eqns]
  assert names.count('dot_general') == 3
  assert not {'jit', 'pjit', 'closed_call'} & set(names)


def test_no_two_layers_drop_the_same(variables):
  rngs = {'dropout': jax.random.key(1)}
  y, _ = Stack().apply(variables, jnp.ones((1000, 3)), jnp.zeros(3), rngs=rngs)
  # Layers double what they keep: 1 → 13 → 48 → 127 where nothing is dropped. Were the masks one, that would be half of all.
  assert np.mean(y == 127) == pytest.approx(1 / 8, abs=0.03)


def test_layers_that_keep_more_are_run_by_themselves(variables):
  """Outside of a program nothing is compiled for them; what they sow or capture is not lost."""
  x, common = jnp.ones((2, 3)), jnp.ones(3)
  Stack().apply(variables, x, common)
  assert TRACED == [1, 2, 1]
  capture = lambda variables: Stack().apply(variables, x, common, capture_intermediates=True)
  _, captured = jax.jit(capture)(variables)
  assert {'layers_0', 'layers_1', 'layers_2'} <= captured['intermediates'].keys()
