"""Products of few rows in C, beside the same in float64 and by XLA; for each kind of processor that compiles here."""

import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks.cpu import few_rows, native

# With 512, 256 and 128 bits a vector, where this machine has them.
KINDS = ['native', *(['haswell', 'x86-64'] if platform.machine() == 'x86_64' else [])]
# Rows, inputs, outputs: one tile and several, whole and broken; more inputs than a block.
SIZES = [(1, 7, 5), (3, 513, 100), (8, 256, 1024), (13, 576, 160), (32, 1100, 49), (5, 3, 16)]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
  """Compiles for this kind of processor."""
  flags = [x for x in native._FLAGS if not x.startswith('-march')]
  monkeypatch.setattr(native, '_FLAGS', (*flags, f'-march={request.param}'))
  native.target.cache_clear()
  yield request.param
  native.target.cache_clear()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.usefixtures('kind')
def test_products(dtype):
  assert few_rows.available()
  rng = np.random.default_rng(0)
  for rows, inputs, outputs in SIZES:
    x = jnp.asarray(rng.normal(size=(rows, inputs)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(inputs, outputs)), dtype)
    packed = few_rows.pack(kernel)
    found = few_rows.multiply(x, packed, outputs)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    np.testing.assert_allclose(found, exact, atol=1e-6 * inputs)
    plain = few_rows.multiply_plainly(x, packed.astype(jnp.float32), outputs)
    np.testing.assert_allclose(found, plain, atol=1e-6 * inputs)


def test_a_row_does_not_depend_on_the_others():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(21, 700)), jnp.float32)
  packed = few_rows.pack(jnp.asarray(rng.normal(size=(700, 333)), jnp.float32))
  together = np.asarray(few_rows.multiply(x, packed, 333))
  for row in range(len(x)):
    alone = few_rows.multiply(x[row : row + 1], packed, 333)
    np.testing.assert_array_equal(alone[0], together[row])


def test_many_at_a_time():
  """Threads help each other with several products at once, over and over; none is lost and none is done twice."""
  rng = np.random.default_rng(2)
  kernels = [jnp.asarray(rng.normal(size=(96, 1024)), jnp.float32) for _ in range(4)]
  packed = [few_rows.pack(x) for x in kernels]
  x = jnp.asarray(rng.normal(size=(8, 96)), jnp.float32)

  @jax.jit
  def many(x):
    def step(x, _):
      made = [few_rows.multiply(x, w, 1024)[:, :96] for w in packed]
      return sum(made) / jnp.float32(20), None

    return jax.lax.scan(step, x, length=20)[0]

  expected = np.asarray(x, np.float64)
  for _ in range(20):
    expected = sum(expected @ np.asarray(w[:, :96], np.float64) for w in kernels) / 20
  found = many(x)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  for _ in range(50):
    np.testing.assert_array_equal(found, many(x))
