"""What a device can do, measured: bytes a second of reading and writing an array, operations a second of a matrix product."""

import functools

import jax
import jax.numpy as jnp
import timing

_REPEATS = 10


def _passes() -> int:
  """In one program, so that starting it costs next to nothing; few on a CPU, where other processes interrupt what is long."""
  return 2 if jax.default_backend() == 'cpu' else 20


def bandwidth(num_bytes: int = 2**30) -> float:
  """Bytes a second, those read and those written both counted, of x ← a x + b in float32.

  Args:
    num_bytes: of x; far more than the device's caches hold.
  """

  passes = _passes()
  body = lambda _, x: 0.999 * x + 0.001
  run = jax.jit(lambda x: jax.lax.fori_loop(0, passes, body, x), donate_argnums=0)
  x = jnp.ones((num_bytes // 4,), jnp.float32)

  def work():
    nonlocal x
    x = run(x)
    return x

  shortest = min(timing.repeated(work, _REPEATS, wait=jax.block_until_ready))
  return 2 * x.nbytes * passes / shortest


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
  passes = _passes()
  run = jax.jit(lambda x, w: jax.lax.fori_loop(0, passes, lambda _, y: y @ w, x))
  work = functools.partial(run, x, w)
  shortest = min(timing.repeated(work, _REPEATS, wait=jax.block_until_ready))
  return 2 * size**3 * passes / shortest
