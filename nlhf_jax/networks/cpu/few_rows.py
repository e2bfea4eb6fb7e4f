"""x W for few rows of x, in the time that reading W takes."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.networks.cpu import native

# Columns of a panel.
PANEL = 16


def available() -> bool:
  """Whether it can be called here; compiles it, at the first call."""
  return native.available('few_rows')


def pack(kernel: Float[Array, 'E F']) -> Float[Array, 'panels E PANEL']:
  """Weights as the product reads them: panels of 16 columns, zeros behind the last one; float32 or bfloat16."""
  if kernel.dtype != jnp.bfloat16:
    kernel = kernel.astype(jnp.float32)
  inputs, outputs = kernel.shape
  panels = -(-outputs // PANEL)
  padded = jnp.pad(kernel, ((0, 0), (0, PANEL * panels - outputs)))
  return padded.reshape(inputs, panels, PANEL).swapaxes(0, 1)


def multiply(
  x: Float[Array, 'N E'], packed: Float[Array, 'panels E PANEL'], outputs: int
) -> Float[Array, 'N F']:
  """x W, float32; not differentiable.

  Args:
    x: float32.
    packed: of `pack`, in float32 or bfloat16.
    outputs: F.
  """
  plain = functools.partial(multiply_plainly, outputs=outputs)
  return native.call('few_rows', plain, (x.shape[0], outputs), x, packed)


def multiply_plainly(
  x: Float[Array, 'N E'], packed: Float[Array, 'panels E PANEL'], outputs: int
) -> Float[Array, 'N F']:
  """The same by XLA, on any device."""
  y = jnp.einsum('ne,pec->npc', x, packed, preferred_element_type=jnp.float32)
  return y.reshape(x.shape[0], -1)[:, :outputs]
