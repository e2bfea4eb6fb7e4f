"""Products of few rows in C, beside the same in float64 and by XLA; for each kind of processor that compiles here."""

import pathlib
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks.cpu import few_rows, native

# With 512, 256 and 128 bits a vector, where this machine has them.
_HAS = pathlib.Path('/proc/cpuinfo').read_text() if pathlib.Path('/proc/cpuinfo').exists() else ''
KINDS = ['native']
KINDS += ['haswell'] if ' avx2 ' in _HAS and ' fma ' in _HAS else []
KINDS += ['x86-64'] if platform.machine() == 'x86_64' else []
# Rows, inputs, outputs: one tile and several, whole and broken; more inputs than a block.
SIZES = [(1, 7, 5), (3, 513, 100), (8, 256, 1024), (13, 576, 160), (32, 1100, 49), (5, 3, 16)]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
  """Compiles for this kind of processor."""
  if request.param != 'native':
    flags = [x for x in native._FLAGS if x != native._NATIVE]
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


def test_nothing_is_added_up():
  found = few_rows.multiply(jnp.ones((2, 0)), few_rows.pack(jnp.ones((0, 20))), 20)
  np.testing.assert_array_equal(found, np.zeros((2, 20)))


def test_a_row_does_not_depend_on_the_others():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(21, 700)), jnp.float32)
  packed = few_rows.pack(jnp.asarray(rng.normal(size=(700, 333)), jnp.float32))
  together = np.asarray(few_rows.multiply(x, packed, 333))
  for row in range(len(x)):
    alone = few_rows.multiply(x[row : row + 1], packed, 333)
    np.testing.assert_array_equal(alone[0], together[row])


def test_many_at_a_time():
  """Threads help each other with several products at once, over and over; no part is lost."""
  rng = np.random.default_rng(2)
  kernels = [jnp.asarray(rng.normal(size=(96, 1056)) / 3, jnp.float32) for _ in range(4)]
  packed = [few_rows.pack(x) for x in kernels]
  x = jnp.asarray(rng.normal(size=(8, 96)), jnp.float32)

  @jax.jit
  def many(x):
    def step(x, _):
      made = [few_rows.multiply(x, w, 1056).reshape(8, 11, 96).sum(1) for w in packed]
      return sum(made) / jnp.float32(20), None

    return jax.lax.scan(step, x, length=20)[0]

  expected = np.asarray(x, np.float64)
  for _ in range(20):
    made = (expected @ np.asarray(w, np.float64) for w in kernels)
    expected = sum(x.reshape(8, 11, 96).sum(1) for x in made) / 20
  found = many(x)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
  for _ in range(50):
    np.testing.assert_array_equal(found, many(x))
