"""Weights of Hugging Face's T5 as this package's parameter tree."""

import re
from collections.abc import Mapping

import flax.traverse_util
import numpy as np

from nlhf_jax.types import Params

_PROJECTIONS = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}
_MLP = r'DenseReluDense\.(wi|wi_0|wi_1|wo)'
_SELF_ATTENTION = {'encoder': 'attention', 'decoder': 'self_attention'}
_NORMS = {
  'encoder': ('pre_attention_layer_norm', 'pre_mlp_layer_norm'),
  'decoder': (
    'pre_self_attention_layer_norm',
    'pre_cross_attention_layer_norm',
    'pre_mlp_layer_norm',
  ),
}


def t5_from_hf(state: Mapping[str, np.ndarray]) -> Params:
  """Converts the weights of a `T5ForConditionalGeneration`.

  Its linear layers are stored [out, in], ours [in, out]; likewise the position biases. An output
  layer that is absent, or the embedding itself, is tied: set `logits_via_embedding` then.

  Args:
    state: the model's `state_dict()`, or a checkpoint's tensors, as NumPy arrays.

  Returns:
    The collection `params` of `networks.t5.Transformer`, in float32.

  Raises:
    ValueError: a tensor that T5 1.0 and 1.1 lack, or one that is missing.
  """
  leaves = {}
  for name, value in state.items():
    if name in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'):
      continue  # Further names of shared.weight.
    if name == 'lm_head.weight' and np.array_equal(value, state.get('shared.weight')):
      continue
    path = _path(name)
    value = np.asarray(value, np.float32)
    leaves[path] = value.T if path[-1] in ('kernel', 'rel_embedding') else value
  _check_complete(leaves)
  return flax.traverse_util.unflatten_dict(leaves)


def _path(name: str) -> tuple[str, ...]:
  """Where the tensor of this name lies in our tree."""
  if name == 'shared.weight':
    return 'token_embedder', 'embedding'
  if name == 'lm_head.weight':
    return 'decoder', 'logits_dense', 'kernel'
  match = re.fullmatch(r'(encoder|decoder)\.(block\.(\d+)\.layer\.(\d)\.)?(.+)\.weight', name)
  if match:
    stack, _, block, layer, rest = match.groups()
    path = _outside_blocks(stack, rest) if block is None else _in_block(stack, int(layer), rest)
    if path and block is not None and path[0] != 'relpos_bias':
      path = (f'layers_{block}', *path)
    if path:
      return stack, *path
  raise ValueError(f'Tensor {name!r} belongs to no T5: convert a T5ForConditionalGeneration.')


def _outside_blocks(stack: str, rest: str) -> tuple[str, ...]:
  return (f'{stack}_norm', 'scale') if rest == 'final_layer_norm' else ()


def _in_block(stack: str, layer: int, rest: str) -> tuple[str, ...]:
  """A path within a layer of a stack, () if there is none."""
  if rest == 'layer_norm' and layer < len(_NORMS[stack]):
    return _NORMS[stack][layer], 'scale'
  if rest == 'SelfAttention.relative_attention_bias':
    return 'relpos_bias', 'rel_embedding'
  if attention := re.fullmatch(r'(Self|EncDec)Attention\.([qkvo])', rest):
    kind, letter = attention.groups()
    name = _SELF_ATTENTION[stack] if kind == 'Self' else 'encoder_decoder_attention'
    return name, _PROJECTIONS[letter], 'kernel'
  if mlp := re.fullmatch(_MLP, rest):
    return 'mlp', mlp.group(1), 'kernel'
  return ()


def _check_complete(leaves: Mapping[tuple[str, ...], np.ndarray]) -> None:
  """Tensors outside layers must be there, and each layer of a stack must have what others have."""
  wanted = {('token_embedder', 'embedding')}
  for stack in ('encoder', 'decoder'):
    wanted |= {(stack, 'relpos_bias', 'rel_embedding'), (stack, f'{stack}_norm', 'scale')}
    inside = [path for path in leaves if path[0] == stack and path[1].startswith('layers_')]
    numbers = {int(path[1].removeprefix('layers_')) for path in inside}
    wanted |= {
      (stack, f'layers_{number}', *path[2:])
      for number in range(max(numbers, default=0) + 1)
      for path in inside
    }
  if missing := sorted('/'.join(path) for path in wanted - set(leaves)):
    raise ValueError(
      f'The checkpoint lacks {len(missing)} tensors, the first of them {missing[0]!r}: '
      'is a shard of it missing?'
    )
