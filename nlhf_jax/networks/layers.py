"""Layers of T5 1.1 and of decoder-only networks, with T5X's parameter names, logical axes and numerics; and stacks of them.

Attention is in `attention`, T5's bias of relative positions in `position_bias`.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.arguments import Count, Positive
from nlhf_jax.networks import axes, matmul, parameters


class Dense(nn.Module):
  """x W, and + b where asked for.

  In place of its `kernel` it may be given one that is laid out `for_few_rows` (see `network.cached_decoder`).
  """

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any = jnp.float32
  kernel_init: Any = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b F']:
    x = x.astype(self.dtype)
    if self.has_variable('params', 'for_few_rows'):
      weights: Array = self.get_variable('params', 'for_few_rows')
      y = matmul.multiply_few_rows(x, weights, self.features)
    else:
      shape = (x.shape[-1], self.features)
      kernel = parameters.declare(self, 'kernel', self.kernel_init, shape, self.kernel_axes)
      y = matmul.multiply(x, axes.gather(kernel.astype(self.dtype), self.kernel_axes))
    features = None if self.kernel_axes[1] == 'embed' else self.kernel_axes[1]
    y = axes.constrain(y, 'batch', *[None] * (y.ndim - 2), features)
    if not self.use_bias:
      return y
    bias = parameters.declare(
      self, 'bias', nn.initializers.zeros, (self.features,), self.kernel_axes[1:]
    )
    return y + bias.astype(self.dtype)


class LayerNorm(nn.Module):
  """RMS norm: a scale, no mean and no bias; in float32."""

  dtype: Any = jnp.float32
  epsilon: Positive = 1e-6
  # The logical axis that it is over.
  axis: str = 'embed'
  # What is added to the scale.
  offset: float = 0.0

  @nn.compact
  def __call__(self, x: Float[Array, '*b E']) -> Float[Array, '*b E']:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    start = nn.initializers.constant(1 - self.offset)
    scale = parameters.declare(self, 'scale', start, (x.shape[-1],), (self.axis,))
    scale = axes.gather(scale, (self.axis,))
    scale = scale + self.offset if self.offset else scale
    return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Embed(nn.Module):
  """Token embedding, which may serve as the output layer too; of that, it may be given weights `for_few_rows`, as `Dense`."""

  num_embeddings: int
  features: int
  dtype: Any = jnp.float32

  def setup(self):
    shape = self.num_embeddings, self.features
    start = nn.initializers.normal(1.0)
    self.embedding = parameters.declare(self, 'embedding', start, shape, ('vocab', 'embed'))

  def __call__(self, tokens: Int[Array, '*b']) -> Float[Array, '*b E']:
    x = self._table()[tokens]
    return axes.constrain(x, 'batch', *[None] * (x.ndim - 1))

  def attend(self, x: Float[Array, '*b E']) -> Float[Array, '*b V']:
    """Logits, summed up in float32 whatever the compute dtype."""
    x = x.astype(self.dtype)
    if self.has_variable('params', 'for_few_rows'):
      weights: Array = self.get_variable('params', 'for_few_rows')
      logits = matmul.multiply_few_rows(x.astype(jnp.float32), weights, self.num_embeddings)
    elif x.dtype == jnp.float32 and matmul.few_rows_on_cpu(x.size // x.shape[-1], x.dtype):
      logits = matmul.output_major(self._table(), x)
    else:
      logits = jnp.dot(x, self._table().T, preferred_element_type=jnp.float32)
    return axes.constrain(logits, 'batch', *[None] * (x.ndim - 2), 'vocab')

  def _table(self) -> Float[Array, 'V E']:
    return axes.gather(self.embedding.astype(self.dtype), ('vocab', 'embed'))


class MlpBlock(nn.Module):
  """Gated feed-forward: (act(x W_0) · x W_1) W_o; with one activation, act(x W) W_o."""

  mlp_dim: Count
  activations: Sequence[str]
  dropout_rate: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*b T E'], deterministic: bool) -> Float[Array, '*b T E']:
    hidden: Any = 1.0
    for number, name in enumerate(self.activations):
      dense_name = 'wi' if len(self.activations) == 1 else f'wi_{number}'
      projected = Dense(self.mlp_dim, ('embed', 'mlp'), self.dtype, name=dense_name)(x)
      hidden = hidden * (projected if name == 'linear' else getattr(nn, name)(projected))
    hidden = nn.Dropout(self.dropout_rate, broadcast_dims=(-2,))(hidden, deterministic)
    return Dense(x.shape[-1], ('mlp', 'embed'), self.dtype, name='wo')(hidden)


class Execution(NamedTuple):
  """How the layers of a stack are run where a gradient may be taken; results are the same."""

  # One compiled layer for all: programs compile sooner. The weights of the layers are stacked anew at each step, which takes
  # memory, and time on a CPU (docs/LOG.md); dropout must be off.
  scan: bool = False
  # What is computed again in the backward pass: 'none', 'layers' (all that is inside of them) or 'dots' (all but products
  # with weights). Dropout must be off.
  remat: str = 'none'


PLAIN = Execution()
_ARRAYS = jax.Array, np.ndarray
_REMAT = {'layers': None, 'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def check_execution(execution: Execution) -> None:
  """Raises ValueError where the rematerialisation is unknown."""
  if execution.remat not in ('none', *_REMAT):
    raise ValueError(f'remat must be one of none, {", ".join(_REMAT)}, got {execution.remat!r}.')


def run(
  stack: Sequence[nn.Module], x: Any, inputs: Sequence[Any], execution: Execution, *args: Any
) -> tuple[Any, list[Any]]:
  """Runs the layers of a stack one after another: x, y = layer(x, input of the layer, *args).

  They are traced once for all where they have the same shapes; the program is as if each had been.

  Args:
    stack: bound modules of one kind.
    x: what the first layer gets.
    inputs: of each layer, besides what the layer before makes; all of one shape, or one object for all.
    execution: scanned, rematerialised, both or neither.
    *args: what all layers get, a part of the collection `cache` that they write aside; what is no array or pytree of arrays
      must be hashable.

  Returns:
    What the last layer makes, and the y of every layer.
  """
  if not stack:
    return x, []
  if execution == PLAIN or stack[0].is_initializing():
    once = _may_be_traced_once(stack[0], x)
    own_call = (
      _traced_once(stack[0], args) if once else lambda x, layer: layer[0](x, layer[1], *args)
    )
    return _one_by_one(own_call, x, zip(stack, inputs, strict=True))
  apply = stack[0].clone(parent=None).apply
  weights = [layer.variables['params'] for layer in stack]
  common = all(own is inputs[0] for own in inputs)

  def call(x, layer):
    return apply({'params': layer[0]}, x, inputs[0] if common else layer[1], *args)

  if execution.remat != 'none':
    call = jax.checkpoint(call, policy=_REMAT[execution.remat], prevent_cse=not execution.scan)
  owned = list(zip(weights, [None] * len(stack) if common else inputs, strict=True))
  if not execution.scan:
    return _one_by_one(call, x, owned)
  x, stacked = jax.lax.scan(call, x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *owned))
  return x, [jax.tree.map(operator.itemgetter(n), stacked) for n in range(len(stack))]


def _may_be_traced_once(layer: nn.Module, x: Any) -> bool:
  """Whether the layers are traced at all, and each makes nothing of its own but what it returns and caches."""
  owns = layer.has_rng('dropout') or layer.is_mutable_collection('intermediates')
  if owns or layer.is_initializing():
    return False
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((x, layer.variables)))


def _traced_once(first: nn.Module, args: tuple[Any, ...]) -> Callable[[Any, Any], tuple[Any, Any]]:
  """x, (layer, its input) → x, y: of layers that are as the first, of which one is traced for all."""
  written = ['cache'] if first.is_mutable_collection('cache') else []
  apply = functools.partial(first.clone(parent=None).apply, mutable=written)

  def call(x: Any, bound: tuple[nn.Module, Any]) -> tuple[Any, Any]:
    layer, own = bound
    held = layer.variables
    variables = {name: held[name] for name in ('params', 'cache') if name in held}
    leaves, structure = jax.tree.flatten((x, own, *args))
    # What is no array decides how the layer is traced.
    fixed = tuple(None if isinstance(leaf, _ARRAYS) else (leaf,) for leaf in leaves)
    arrays = [leaf for leaf in leaves if isinstance(leaf, _ARRAYS)]
    result, changed = traced(structure, fixed, variables, arrays)
    for name, value in changed.get('cache', {}).items():
      layer.put_variable('cache', name, value)
    return result

  @functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
  def traced(structure, fixed, variables, arrays):
    rest = iter(arrays)
    leaves = [next(rest) if constant is None else constant[0] for constant in fixed]
    return apply(variables, *jax.tree.unflatten(structure, leaves))

  return call


def _one_by_one(
  call: Callable[[Any, Any], tuple[Any, Any]], x: Any, layers: Iterable[Any]
) -> tuple[Any, list[Any]]:
  """`jax.lax.scan` over what the layers own, without a loop in the program."""
  results = []
  for layer in layers:
    x, y = call(x, layer)
    results.append(y)
  return x, results
