"""GGUF files of Llama-like models: weights, dequantised, and tokenizer, to be written in Hugging Face's layout.

Needs the package `gguf` (extra `gguf`).
"""

import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from nlhf_jax.formats import hf, hf_directory, hf_layout, hf_models
from nlhf_jax.networks import llama
from nlhf_jax.runtime import run_directory
from nlhf_jax.types import Params

_PROJECTIONS = {'query': 'attn_q', 'key': 'attn_k', 'value': 'attn_v', 'out': 'attn_output'}
_MLP = {'wi_0': 'ffn_gate', 'wi_1': 'ffn_up', 'wo': 'ffn_down'}
_NORMS = {'pre_self_attention_layer_norm': 'attn_norm', 'pre_mlp_layer_norm': 'ffn_norm'}
_EPSILON = 'llama.attention.layer_norm_rms_epsilon'
# Kinds of token that text is never split into, nor merged across.
_CONTROL, _USER_DEFINED = 3, 4


def convert(path: str | pathlib.Path, output_dir: str | pathlib.Path) -> None:
  """Writes the model as config.json, safetensors, tokenizer.json and tokenizer_config.json; raises as `load`, `hf.save`."""
  config, params = load(path)
  encoding, settings = tokenizer(path)
  text = json.dumps(settings, indent=2, ensure_ascii=False) + '\n'
  with run_directory.atomic_directory(output_dir) as directory:
    hf.write(params, config, directory)
    encoding.save(str(directory / 'tokenizer.json'))
    (directory / 'tokenizer_config.json').write_text(text, encoding='utf-8')


def load(path: str | pathlib.Path) -> tuple[llama.LlamaConfig, Params]:
  """Configuration and weights, in float32.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is of another architecture than Llama, lacks a tensor, or holds what the network would not follow.
  """
  reader = _reader(path)
  fields = _fields(reader)
  architecture = _required(path, fields, 'general.architecture')
  if architecture != 'llama':
    raise ValueError(
      f'{path} is of architecture {architecture!r}: only llama is supported, so take the safetensors of the model.'
    )
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  config = _config(path, fields, tied='output.weight' not in tensors)
  network = hf_models.network_from_config(config)
  dummy = jnp.ones((1, 2), jnp.int32)
  like = jax.eval_shape(lambda: network.init(jax.random.key(0), dummy, dummy, dummy)['params'])
  _check_understood(
    path, fields, tensors, {_name(leaf) for leaf in flax.traverse_util.flatten_dict(like)}
  )
  leaves = {
    leaf: _read_tensor(path, tensors, leaf, x.shape, config)
    for leaf, x in flax.traverse_util.flatten_dict(like).items()
  }
  return config, flax.traverse_util.unflatten_dict(leaves)


def tokenizer(path: str | pathlib.Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
  """The tokenizer, and the contents of its tokenizer_config.json.

  Raises:
    ValueError: it is no byte-pair encoding, or splits text in a way that is not known here.
  """
  fields = _fields(_reader(path))
  kind = fields.get('tokenizer.ggml.model'), fields.get('tokenizer.ggml.pre')
  if kind not in (('gpt2', 'smollm'), ('gpt2', 'gpt-2')):
    raise ValueError(
      f'{path} has a tokenizer of kind {kind}: copy tokenizer.json of the model instead.'
    )
  tokens, pairs, types = (
    _required(path, fields, f'tokenizer.ggml.{name}') for name in ('tokens', 'merges', 'token_type')
  )
  merges = [tuple(pair.split(' ')) for pair in pairs]
  vocabulary = {token: number for number, token in enumerate(tokens)}
  result = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
  splits: list[Any] = [tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)]
  if kind[1] == 'smollm':
    splits.insert(0, tokenizers.pre_tokenizers.Digits(individual_digits=True))
  result.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(splits)
  result.decoder = tokenizers.decoders.ByteLevel()
  kinds = zip(tokens, types, strict=True)
  result.add_special_tokens([token for token, kind in kinds if kind in (_CONTROL, _USER_DEFINED)])
  names = {'bos': 'bos_token', 'eos': 'eos_token', 'unknown': 'unk_token', 'padding': 'pad_token'}
  ids = {new: fields.get(f'tokenizer.ggml.{old}_token_id') for old, new in names.items()}
  settings = {name: tokens[number] for name, number in ids.items() if number is not None}
  settings |= {'tokenizer_class': 'PreTrainedTokenizerFast'}
  if template := fields.get('tokenizer.chat_template'):
    settings['chat_template'] = template
  return result, settings


def _reader(path: str | pathlib.Path):
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'No file {path}: name a GGUF file.')
  try:
    import gguf
  except ModuleNotFoundError:
    raise ValueError("Reading GGUF needs one more package: pip install 'nlhf_jax[gguf]'.") from None
  try:
    return gguf.GGUFReader(path)
  except Exception as error:  # Whatever NumPy meets where the file ends too early.
    text = ' '.join(str(error).split())
    raise ValueError(
      f'{path} is no intact GGUF file ({type(error).__name__}: {text}): download it again.'
    ) from None


def _fields(reader) -> dict[str, Any]:
  return {name: field.contents() for name, field in reader.fields.items()}


def _required(path: str | pathlib.Path, fields: dict[str, Any], name: str) -> Any:
  if name not in fields:
    raise ValueError(f'{path} lacks the field {name}: download it again.')
  return fields[name]


def _size(path: str | pathlib.Path, fields: dict[str, Any], name: str) -> int:
  found = _required(path, fields, name)
  if not isinstance(found, int) or found < 1:
    raise ValueError(
      f'{path} has {name} = {found!r}, where a whole number above 0 is needed: download it again.'
    )
  return found


def _config(path: str | pathlib.Path, fields: dict[str, Any], tied: bool) -> llama.LlamaConfig:
  at = lambda name: _size(path, fields, f'llama.{name}')
  heads = at('attention.head_count')
  names = {'pad_token_id': 'padding', 'eos_token_id': 'eos'}
  given = {key: fields.get(f'tokenizer.ggml.{name}_token_id') for key, name in names.items()}
  special = hf.special_ids(given, name=str(path))
  return llama.LlamaConfig(
    vocab_size=len(_required(path, fields, 'tokenizer.ggml.tokens')),
    dtype='float32',
    emb_dim=at('embedding_length'),
    num_heads=heads,
    num_kv_heads=fields.get('llama.attention.head_count_kv', heads),
    num_layers=at('block_count'),
    head_dim=fields.get('llama.attention.key_length', at('embedding_length') // heads),
    mlp_dim=at('feed_forward_length'),
    rope_base=float(fields.get('llama.rope.freq_base', 1e4)),
    # Stored in float32.
    norm_epsilon=float(f'{_required(path, fields, _EPSILON):.6g}'),
    logits_via_embedding=tied,
    pad_id=special.pad,
    eos_id=special.eos,
    bos_id=fields.get('tokenizer.ggml.bos_token_id'),
    max_position_embeddings=fields.get('llama.context_length'),
  )


def _check_understood(path, fields: dict[str, Any], tensors, wanted: set[str]) -> None:
  """Raises ValueError where the file says what the network would not follow."""
  scaling = fields.get('llama.rope.scaling.type', 'none')
  if scaling != 'none':
    raise ValueError(
      f'{path} scales rotary positions by {scaling!r}, which is not read from GGUF: take the safetensors of the model.'
    )
  if left_over := sorted(set(tensors) - wanted):
    raise ValueError(
      f'{path} holds the tensor {left_over[0]}, which the network lacks (rope_freqs stretches rotary positions): take the '
      'safetensors of the model.'
    )


def _read_tensor(
  path, tensors, leaf: tuple[str, ...], shape, config: llama.LlamaConfig
) -> np.ndarray:
  import gguf

  name = _name(leaf)
  if name not in tensors:
    raise ValueError(f'{path} lacks the tensor {name}, our {"/".join(leaf)}: download it again.')
  stored = tensors[name]
  try:
    x = np.array(gguf.dequantize(stored.data, stored.tensor_type), np.float32)
  except NotImplementedError:
    raise ValueError(
      f'{path}: tensor {name} is quantised as {stored.tensor_type.name}, which is not read: take a file in F16 or Q8_0, or the '
      'safetensors of the model.'
    ) from None
  hf_directory.check_finite(pathlib.Path(path), name, x)
  if leaf[-2] in ('query', 'key'):
    x = _halves(x, config.num_heads if leaf[-2] == 'query' else config.num_kv_heads)
  if name in ('token_embd.weight', 'output.weight'):
    moved = hf_layout.moved_ids(config.pad_id, config.eos_id)
    x[list(moved)] = x[list(moved.values())]
  x = x.T if leaf[-1] == 'kernel' else x
  if x.shape != shape:
    raise ValueError(
      f'{path}: {name} is {x.shape} in our layout, {"/".join(leaf)} is {shape}: download it again.'
    )
  return np.ascontiguousarray(x)


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head: pairs that are rotated together, from (0, 1), (2, 3) … to (0, d/2), (1, d/2 + 1) …"""
  return x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


def _name(leaf: tuple[str, ...]) -> str:
  """The tensor that holds a leaf of ours."""
  if leaf[0] == 'token_embedder':
    return 'token_embd.weight'
  _, block, *rest = leaf
  if block in ('decoder_norm', 'logits_dense'):
    return {'decoder_norm': 'output_norm.weight', 'logits_dense': 'output.weight'}[block]
  part = rest[0] if rest[0] in _NORMS else rest[1]
  return f'blk.{block.removeprefix("layers_")}.{ {**_NORMS, **_PROJECTIONS, **_MLP}[part] }.weight'
