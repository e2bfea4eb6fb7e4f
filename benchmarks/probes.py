"""What a device can do, measured: bytes a second of reading and writing an array, operations a second of a matrix product."""

import functools

import jax
import jax.numpy as jnp
import timing

# Passes in one program, so that starting it costs next to nothing.
_PASSES = 20
_REPEATS = 5


def bandwidth(num_bytes: int = 2**30) -> float:
  """Bytes a second, those read and those written both counted, of x ← a x + b in float32.

  Args:
    num_bytes: of x; far more than the device's caches hold.
  """

  def body(_, x):
    return 0.999 * x + 0.001

  run = jax.jit(lambda x: jax.lax.fori_loop(0, _PASSES, body, x), donate_argnums=0)
  x = jnp.ones((num_bytes // 4,), jnp.float32)

  def work():
    nonlocal x
    x = run(x)
    return x

  shortest = min(timing.repeated(work, _REPEATS, wait=jax.block_until_ready))
  return 2 * x.nbytes * _PASSES / shortest


def matrix_rate(size: int = 8192, dtype: str = 'bfloat16') -> float:
  """Operations a second, a multiply-add counting two, of square products of random numbers.

  Args:
    size: of each side.
    dtype: of the factors.
  """
  keys = jax.random.split(jax.random.PRNGKey(0))
  x = jax.random.normal(keys[0], (size, size)).astype(dtype)
  # Products then stay of one size; zeros would take less power, and be faster.
  w = (jax.random.normal(keys[1], (size, size)) / size**0.5).astype(dtype)
  run = jax.jit(lambda x, w: jax.lax.fori_loop(0, _PASSES, lambda _, y: y @ w, x))
  work = functools.partial(run, x, w)
  shortest = min(timing.repeated(work, _REPEATS, wait=jax.block_until_ready))
  return 2 * size**3 * _PASSES / shortest
