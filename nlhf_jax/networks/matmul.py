"""Products with weights, as each backend computes them fastest."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def multiply(x: Float[Array, '*b E'], kernel: Float[Array, 'E F']) -> Float[Array, '*b F']:
  """x W, in the type of x."""
  return (_multiply_on_cpu if jax.default_backend() == 'cpu' else jnp.dot)(x, kernel)


def output_major(weights: Float[Array, 'F E'], x: Float[Array, '*b E']) -> Float[Array, '*b F']:
  """x Wᵀ for few rows on a CPU: the product is stored output by output rather than row by row.

  A compiler for CPUs reads the weights a third to a half faster like this, and would undo it without the barrier.
  """
  product = jnp.matmul(weights, x.reshape(-1, x.shape[-1]).T)
  return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], -1)


def few_rows_on_cpu(num_rows: int, dtype: Any) -> bool:
  """Whether a product spends its time on reading the weights, as `output_major` does faster."""
  return jax.default_backend() == 'cpu' and jnp.dtype(dtype) == jnp.float32 and num_rows <= 32


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
