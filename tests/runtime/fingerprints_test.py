"""Fingerprints notice what a sum would not."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.runtime import fingerprints


def test_fingerprint_of_every_change_of_one_entry():
  fingerprint = lambda x: fingerprints.fingerprint_arrays({'x': x})['x']
  rng = np.random.default_rng(0)
  for dtype in ('float32', 'bfloat16', 'int32', 'bool'):
    x = jnp.asarray(rng.integers(0, 2, (5, 7)), dtype)
    changed = [x.at[at].set((1 - x[at]).astype(x.dtype)) for at in np.ndindex(5, 7)]
    assert len({fingerprint(x), *map(fingerprint, changed)}) == 36
  swapped = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[2.0, 1.0]])
  assert len({fingerprints.fingerprint_tree(x) for x in swapped}) == 2


def test_fingerprint_on_the_host_is_that_on_the_device(monkeypatch):
  rng = np.random.default_rng(0)
  dtypes = 'float32', 'float16', 'bfloat16', 'float8_e4m3fn', 'int32', 'uint32', 'int8', 'bool'
  arrays = {x: jnp.asarray(rng.normal(size=(5, 3, 2)), x) for x in dtypes}
  arrays |= {'none': jnp.zeros((0, 3)), 'one': jnp.float32(3), 'key': jax.random.key(1)}
  arrays |= {'special': jnp.asarray([np.nan, -0.0, np.inf, 0.0])}
  # Other arrays are as JAX would have them.
  arrays |= {'float64': np.array([1.0, 2.0]), 'int64': np.arange(5), 'scalar': np.float32(2)}
  on_host = fingerprints.fingerprint_arrays(arrays)
  monkeypatch.setattr(fingerprints, '_SMALL', -1)
  assert fingerprints.fingerprint_arrays(arrays) == on_host


def test_numpy_float64_is_what_jax_makes_of_it():
  one, two, narrow = np.array([1.0]), np.array([2.0]), np.array([1.0], np.float32)
  found = fingerprints.fingerprint_arrays({'one': one, 'two': two, 'narrow': narrow})
  assert found['one'] == found['narrow'] != found['two']
