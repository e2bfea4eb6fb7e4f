"""Low-rank adapters: W + (α/r) A B in place of W, as a transformation of parameters; networks know nothing of it.

A model that was adapted takes `Adapted(base, adapters)` for its parameters. The base is shared by all parameter sets and
never copied; without adapters it is the reference.

Source: Hu et al. (2021), arXiv:2106.09685.
"""

from typing import Any, NamedTuple, TypeVar

import flax.traverse_util
import jax
import jax.numpy as jnp

from nlhf_jax.arguments import Count, Positive
from nlhf_jax.networks import parameters
from nlhf_jax.types import Adapted, Params, PolicyParams, PRNGKey

# A named tuple of functions of parameters: a policy, a preference or a reward model.
Model = TypeVar('Model', bound=Any)


class Lora(NamedTuple):
  """Which kernels get adapters, and how large."""

  rank: Count = 16
  alpha: Positive = 32.0
  targets: tuple[str, ...] = ('query', 'key', 'value', 'out', 'wi_0', 'wi_1', 'wi', 'wo')
  # Parts of the model that are trained in full, where it has them: the head of a rater, voters' tastes.
  in_full: tuple[str, ...] = ('head', 'voters')


def adapt(model: Model, lora: Lora) -> Model:
  """The same model with `Adapted` parameters; its `init` makes adapters, which change nothing yet.

  Raises:
    ValueError: the rank is no positive number.
  """
  if lora.rank < 1:
    raise ValueError(f'rank must be at least 1, got {lora.rank}.')

  def merged(function):
    return lambda params, *args, **kwargs: function(_merge_all(lora, params), *args, **kwargs)

  functions = {
    name: merged(f)
    for name, f in model._asdict().items()
    if callable(f) and name not in ('init', 'axes', 'render')
  }
  return model._replace(
    init=lambda rng: init(lora, jax.eval_shape(model.init, rng), rng),
    axes=model.axes and (lambda: _logical_axes(lora, model.axes())),
    **functions,
  )


def init(lora: Lora, base: Params, rng: PRNGKey) -> Params:
  """Adapters {a: [in, r], b: [r, out]} at the path of each kernel; b is 0. What is trained in full has {change}, which is 0.

  Args:
    lora: what to adapt.
    base: arrays or their shapes.
    rng: of a, which is normal with variance 1/in.

  Raises:
    ValueError: the network has none of the targets.
  """
  kernels = _kernels(lora, base)
  if not kernels:
    raise ValueError(
      f'The network has no kernel of {", ".join(lora.targets)}: name others as targets.'
    )
  keys = jax.random.split(rng, len(kernels))
  wanted = [
    parameters.Draw(key, _fan_in, (kernel.shape[0], lora.rank), (None, None))
    for key, kernel in zip(keys, kernels.values(), strict=True)
  ]
  result = {}
  for path, a in zip(kernels, parameters.draw(wanted), strict=True):
    result[*path, 'a'] = a
    result[*path, 'b'] = jnp.zeros((lora.rank, kernels[path].shape[1]))
  for path, leaf in _in_full(lora, base).items():
    result[*path, 'change'] = jnp.zeros(leaf.shape, leaf.dtype)
  return flax.traverse_util.unflatten_dict(result)


def _fan_in(key: PRNGKey, shape: tuple[int, ...], dtype) -> jax.Array:
  return jax.random.normal(key, shape, dtype) / jnp.sqrt(shape[0])


def _logical_axes(lora: Lora, base: Any) -> Any:
  """Logical axes of adapters: those of the kernel, less the rank."""
  names: dict[tuple[str, ...], tuple[str | None, ...]] = {}
  for path, (rows, columns) in _kernels(lora, base).items():
    names |= {(*path, 'a'): (rows, None), (*path, 'b'): (None, columns)}
  names |= {(*path, 'change'): axes for path, axes in _in_full(lora, base).items()}
  return flax.traverse_util.unflatten_dict(names)


def merge(lora: Lora, params: Adapted) -> Params:
  """The weights that adapters make of their base; the base itself, not a copy, where they are off."""
  if params.adapters is None:
    return params.base
  leaves = flax.traverse_util.flatten_dict(params.base)
  adapters = flax.traverse_util.flatten_dict(params.adapters)
  for path in _kernels(lora, params.base):
    kernel = leaves[*path, 'kernel']
    # In float32 where that is their type, which accelerators round by default.
    change = jnp.matmul(adapters[*path, 'a'], adapters[*path, 'b'], precision='highest')
    change = lora.alpha / lora.rank * change
    leaves[*path, 'kernel'] = kernel + change.astype(kernel.dtype)
  for path in _in_full(lora, params.base):
    leaves[path] = leaves[path] + adapters[*path, 'change']
  return flax.traverse_util.unflatten_dict(leaves)


def _merge_all(lora: Lora, params: Adapted | PolicyParams) -> Any:
  if isinstance(params, Adapted):
    return merge(lora, params)
  sets = {name: _merge_members(lora, x) for name, x in params.sets.items()}
  return PolicyParams(merge(lora, params.online), sets)


def _merge_members(lora: Lora, params: Adapted | tuple[Adapted, ...]) -> Any:
  """Of a set, or of every member of a ring."""
  return (
    merge(lora, params) if isinstance(params, Adapted) else tuple(merge(lora, x) for x in params)
  )


def _kernels(lora: Lora, base: Params) -> dict[tuple[str, ...], Any]:
  """The kernels to adapt, by the paths of their layers."""
  leaves = flax.traverse_util.flatten_dict(base)
  return {p[:-1]: x for p, x in leaves.items() if p[-1] == 'kernel' and p[-2] in lora.targets}


def _in_full(lora: Lora, base: Params) -> dict[tuple[str, ...], Any]:
  """What is trained in full, by its path."""
  leaves = flax.traverse_util.flatten_dict(base)
  return {path: x for path, x in leaves.items() if path[0] in lora.in_full}
