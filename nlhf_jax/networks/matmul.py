"""Products with weights, as each backend computes them fastest."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.networks.cpu import few_rows


def multiply(x: Float[Array, '*b E'], kernel: Float[Array, 'E F']) -> Float[Array, '*b F']:
  """x W, in the type of x."""
  return (_multiply_on_cpu if jax.default_backend() == 'cpu' else jnp.dot)(x, kernel)


def for_few_rows(kernel: Float[Array, 'E F']) -> Float[Array, '*any']:
  """Weights in the layout that `multiply_few_rows` reads; see `few_rows_on_cpu`."""
  return few_rows.pack(kernel) if few_rows.available() else kernel.T


def multiply_few_rows(
  x: Float[Array, '*b E'], weights: Float[Array, '*any'], outputs: int
) -> Float[Array, '*b F']:
  """x W for few rows on a CPU, summed up in float32, in the type of x.

  Args:
    x: few rows.
    weights: of `for_few_rows`.
    outputs: F.
  """
  if weights.ndim == 2:
    return output_major(weights, x)
  rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  y = few_rows.multiply(rows, weights, outputs)
  return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


def output_major(weights: Float[Array, 'F E'], x: Float[Array, '*b E']) -> Float[Array, '*b F']:
  """x Wᵀ for few rows on a CPU by XLA: the product is stored output by output rather than row by row.

  A compiler for CPUs reads the weights a third to a half faster like this, and would undo it without the barrier.
  """
  product = jnp.matmul(weights, x.reshape(-1, x.shape[-1]).T)
  return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], -1)


def worth_a_copy(size: int) -> bool:
  """Whether this many weights are many enough to be copied into the layout of `for_few_rows`."""
  return size >= 2**15 if few_rows.available() else size > 2**16


def few_rows_on_cpu(num_rows: int, dtype: Any) -> bool:
  """Whether a product spends its time on reading the weights, as `multiply_few_rows` does faster."""
  if jax.default_backend() != 'cpu' or num_rows > 32:
    return False
  dtype = jnp.dtype(dtype)
  return dtype == jnp.float32 or (dtype == jnp.bfloat16 and few_rows.available())


@jax.custom_vjp
def _multiply_on_cpu(x: Float[Array, '*b E'], kernel: Float[Array, 'E F']) -> Float[Array, '*b F']:
  """x W as a CPU does it best.

  Accelerators sum up in float32 anyway; on a CPU, asking for it is three times as fast. For the gradient of W either x or
  that of x W is copied to another layout, with all that it is computed from: autodiff takes the latter, this the narrower.
  """
  return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x, kernel):
  return _multiply_on_cpu(x, kernel), (x, kernel)


def _backward(inputs, gradient):
  x, kernel = inputs
  rows, output_rows = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
  product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
  narrow = rows.shape[1] <= output_rows.shape[1]
  kernel_gradient = product(rows.T, output_rows) if narrow else product(output_rows.T, rows).T
  return product(gradient, kernel.T).astype(x.dtype), kernel_gradient.astype(kernel.dtype)


_multiply_on_cpu.defvjp(_forward, _backward)
