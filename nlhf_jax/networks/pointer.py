"""Pointing at a prompt: a token that the prompt has is scored where it stands there, and read from there once it is written.

Unnormalised, a token v has exp g(v) + Σ_{s: x_s = v} exp(q(h) · k(z_s) / √E): g are the decoder's own logits of its state h, x
the prompt and z the encoder's states of it. The decoder's input of a token is its embedding, and W z̄ with the mean z̄ over the
places where the prompt has it (CopyNet's selective read): what was chosen can be compared with what has not been.

`Gather` is of use where tokens stand for what follows them, such as the markers of sentences.

Sources: Gu et al. (2016), arXiv:1603.06393, sections 3.2 and 3.3; See et al. (2017), arXiv:1704.04368.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.networks import attention, layers

# Of a sum of exponentials that has a logarithm in float32.
_SMALLEST = 1e-37


class Source(NamedTuple):
  """What responses read of their prompts by pointing."""

  # k(z).
  key: Float[Array, 'B S E']
  # W z.
  value: Float[Array, 'B S E']


class Pointer(nn.Module):
  """Scores and reads the tokens of prompts, of which each k = N/B consecutive rows share one."""

  features: int
  dtype: Any = jnp.float32

  def setup(self):
    self.query, self.key = (self._dense(('embed', 'joined_kv')) for _ in range(2))
    self.value = self._dense(('joined_kv', 'embed'))

  def _dense(self, kernel_axes: tuple[str, str]) -> layers.Dense:
    return layers.Dense(self.features, kernel_axes, self.dtype)

  def source(self, encoded: Float[Array, 'B S E']) -> Source:
    """What steps of decoding need not compute again."""
    return Source(self.key(encoded), self.value(encoded))

  def read(
    self,
    source: Source,
    prompts: Int[Array, 'B S'],
    inputs: Int[Array, 'N T'],
    mask: Bool[Array, 'B 1 #M S'],
  ) -> Float[Array, 'N T E']:
    """W z̄ of each input token; 0 where its prompt has no such token."""
    folded = inputs.reshape(prompts.shape[0], -1, 1)
    same = (folded == prompts[:, None]) & mask[:, 0]
    share = same / jnp.maximum(same.sum(axis=-1, keepdims=True), 1)
    found = jnp.matmul(share.astype(self.dtype), source.value)
    return found.reshape(*inputs.shape, -1)

  def logits(
    self,
    source: Source,
    prompts: Int[Array, 'B S'],
    hidden: Float[Array, 'N T E'],
    mask: Bool[Array, 'B 1 #M S'],
    vocab_size: int,
  ) -> Float[Array, 'N T V']:
    """log Σ_{s: x_s = v} exp(q(h) · k(z_s) / √E), float32; far below all others for tokens that the prompt lacks."""
    folded = self.query(hidden).reshape(prompts.shape[0], -1, self.features)
    scores = jnp.matmul(folded, source.key.swapaxes(1, 2)).astype(jnp.float32)
    scores = jnp.where(mask[:, 0], scores / self.features**0.5, attention.MASKED)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    sums = jnp.matmul(jnp.exp(scores - highest), jax.nn.one_hot(prompts, vocab_size))
    logits = jnp.where(sums > 0, highest + jnp.log(jnp.maximum(sums, _SMALLEST)), attention.MASKED)
    return logits.reshape(*hidden.shape[:2], vocab_size)


class Gather(nn.Module):
  """Adds to each separator W Σ e of the tokens up to the next one: a set of words, of which none is drowned by the others."""

  separators: tuple[int, ...]
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B S E'], tokens: Int[Array, 'B S'], mask: Bool[Array, 'B 1 #S S']
  ) -> Float[Array, 'B S E']:
    separates = jnp.isin(tokens, jnp.array(self.separators))
    part = jnp.cumsum(separates, axis=1)
    inside = (part[:, :, None] == part[:, None]) & separates[:, :, None] & ~separates[:, None]
    sums = jnp.matmul((inside & mask[:, 0]).astype(self.dtype), x)
    return x + layers.Dense(self.features, ('joined_kv', 'embed'), self.dtype, name='gather')(sums)
