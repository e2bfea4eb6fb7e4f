"""Attention of one position in C, beside the same by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks.cpu import attend, native
from tests.networks.cpu.few_rows_test import kind

__all__ = ['kind']
# Prompts, lanes to each, heads, queries to a head, their size, and lengths of prompts and responses.
SIZES = [
  (2, 1, 1, 1, 16, 5, 3),
  (8, 1, 4, 2, 32, 256, 33),
  (3, 4, 3, 3, 64, 100, 17),
  (2, 2, 2, 1, 48, 31, 64),
  (1, 8, 12, 1, 64, 1, 128),
]


def parts_of(rng, size, dtype):
  """Of a prompt, part of which is masked, and of a response, with a bias for each head."""
  prompts, k, heads, _, d, length, own = size
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  mask = jnp.where(draw(prompts, 1, length) > -0.5, 0.0, -1e10)
  shared = draw(prompts, heads, d, length), draw(prompts, heads, length, d)
  lanes = draw(prompts * k, heads, d, own), draw(prompts * k, heads, own, d)
  cast = lambda pair: [x.astype(dtype) for x in pair]
  return (*cast(shared), mask), (*cast(lanes), draw(1, heads, own))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.usefixtures('kind')
def test_attention(dtype):
  rng = np.random.default_rng(0)
  for size in SIZES:
    prompts, k, heads, queries, d, *_ = size
    # Logits of about 2, as trained networks have; their rounding is what the weights then differ by.
    query = rng.normal(size=(prompts * k, heads, queries, d)) * 2 / np.sqrt(d)
    query = jnp.asarray(query, jnp.float32)
    prompt, own = parts_of(rng, size, dtype)
    for parts in ([own], [prompt], [own, prompt], [prompt, own]):
      found = attend.attend(query, parts)
      np.testing.assert_allclose(found, attend.attend_plainly(query, parts), atol=3e-6)


def test_biases_of_lanes():
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  key, value, query = draw(2, 3, 32, 9), draw(2, 3, 9, 32), draw(6, 3, 2, 32) / 5
  for rows in (1, 2, 6):
    for heads in (1, 3):
      parts = [(key, value, draw(rows, heads, 9) * 4)]
      found, plain = attend.attend(query, parts), attend.attend_plainly(query, parts)
      np.testing.assert_allclose(found, plain, atol=3e-6)


def test_rows_that_are_shared_by_some():
  """Of eight lanes two share a row of one part, and four one of the other; and all are one prompt's with one head."""
  rng = np.random.default_rng(3)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  part = lambda rows, heads, length, bias: (
    draw(rows, heads, 32, length),
    draw(rows, heads, length, 32),
    draw(bias, 1, length),
  )
  for heads, first, second in [(3, (4, 3, 20, 4), (2, 3, 9, 8)), (1, (1, 1, 40, 1), (8, 1, 5, 8))]:
    query = draw(8, heads, 2, 32) / 5
    parts = [part(*first), part(*second)]
    found = attend.attend(query, parts)
    np.testing.assert_allclose(found, attend.attend_plainly(query, parts), atol=3e-6)


def test_keys_that_are_masked_or_far():
  """A prompt of one token has no keys besides the response's; logits of any size have finite weights."""
  one = jnp.ones((1, 1, 32, 4))
  values = one.swapaxes(2, 3)
  far = jnp.asarray([[[0.0, -50.0, -100.0, -1e10]]])
  masked = one, values * 7, jnp.full((1, 1, 4), -1e10)
  seen = one, values * jnp.arange(3.0, 7.0)[:, None], far
  query = jnp.ones((1, 1, 1, 32)) * 20
  np.testing.assert_allclose(attend.attend(query, [seen, masked]), 3, rtol=1e-6)
  small = jnp.ones((1, 1, 1, 32)) / 32
  np.testing.assert_allclose(attend.attend(small, [masked]), 7, rtol=1e-6)


@pytest.mark.usefixtures('kind')
@pytest.mark.parametrize('bits', [0x7FC00000, 0xFFFFFFFF, 0x7FC00001])
def test_not_a_number_stays_one(bits):
  """Whichever it is, and wherever."""
  nan = np.array([bits], np.uint32).view(np.float32)[0]
  value = jnp.ones((1, 1, 20, 32))
  for place in (0, 3, 17):
    key = np.ones((1, 1, 32, 20), np.float32)
    key[0, 0, :, place] = nan
    found = attend.attend(
      jnp.ones((1, 1, 1, 32)), [(jnp.asarray(key), value, jnp.zeros((1, 1, 20)))]
    )
    assert np.isnan(found).all()


@pytest.mark.parametrize('wrong', ['size', 'rows', 'bias', 'dtype', 'heads', 'values', 'sharing'])
def test_parts_that_do_not_belong_to_the_queries(wrong):
  query = jnp.ones((4, 2, 1, 32))
  key, value, bias = jnp.ones((2, 2, 32, 5)), jnp.ones((2, 2, 5, 32)), jnp.zeros((1, 1, 5))
  own = ()
  if wrong == 'size':
    query = jnp.ones((4, 2, 1, 24))
  elif wrong == 'rows':
    query = jnp.ones((5, 2, 1, 32))
  elif wrong == 'bias':
    bias = jnp.zeros((3, 1, 5))
  elif wrong == 'dtype':
    value = value.astype(jnp.bfloat16)
  elif wrong == 'heads':
    bias = jnp.zeros((1, 3, 5))
  elif wrong == 'values':
    value = value[:, :, :4]
  else:
    query = jnp.ones((6, 2, 1, 32))
    own = jnp.ones((3, 2, 32, 5)), jnp.ones((3, 2, 5, 32)), bias
  shape = jax.ShapeDtypeStruct(query.shape, jnp.float32)
  with pytest.raises(jax.errors.JaxRuntimeError, match='attend'):
    jax.block_until_ready(
      jax.ffi.ffi_call(native.target('attend'), shape)(query, key, value, bias, *own)
    )
