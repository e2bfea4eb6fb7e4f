"""Models in Hugging Face's layout: config.json beside safetensors, read and written; no pickle is ever loaded.

A directory is read tensor by tensor, straight into the shardings that are asked for, so that no more than one shard of
it is in memory at a time.
"""

import collections
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from nlhf_jax.networks import layers, t5
from nlhf_jax.formats import hf_models
from nlhf_jax.runtime import run_directory
from nlhf_jax.types import Params

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_TOKENIZER = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')
_TOKENIZER += ('chat_template.jinja', 'generation_config.json', 'spiece.model')


def locate(name: str | pathlib.Path) -> pathlib.Path:
  """The directory of a model: a path on disk, or else the name of a repository on the hub.

  Raises:
    FileNotFoundError: it is neither, or the hub cannot be reached.
  """
  path = pathlib.Path(name)
  if path.is_dir():
    return path
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)):
    raise FileNotFoundError(
      f'No directory {name}: name one that holds config.json and safetensors.'
    )
  import huggingface_hub

  try:
    patterns = ['*.json', '*.safetensors', '*.jinja', '*.model']
    return pathlib.Path(huggingface_hub.snapshot_download(str(name), allow_patterns=patterns))
  except Exception as error:  # Its own kinds, and those of three network libraries below it.
    reason = str(error).split('\n')[0]
    raise FileNotFoundError(
      f'{name} is no directory here, and the hub has not given it ({type(error).__name__}: {reason}): '
      'name a directory that holds config.json and safetensors.'
    ) from error


class Ids(NamedTuple):
  """Two ids of a vocabulary, where its model does not say them, or says what is of no use here."""

  pad: int | None = None  # Padding; None: what the model says, and 0 where it says nothing.
  eos: int | None = (
    None  # Ends a response; None: what the model says, and the last where it says several.
  )


AS_GIVEN = Ids()


def read_config(
  name: str | pathlib.Path, dtype: Any = 'float32', ids: Ids = AS_GIVEN
) -> hf_models.Config:
  """The configuration of the network that a model's config.json describes.

  Args:
    name: a directory, or a repository on the hub.
    dtype: of activations.
    ids: what to use for padding and end.
  """
  path = locate(name) / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'No {path}: name the directory of a model with --gin.MODEL.')
  values = json.loads(path.read_text(encoding='utf-8'))
  pad, eos = special_ids(values, ids)
  return hf_models.config_from_json({**values, 'pad_token_id': pad, 'eos_token_id': eos}, dtype)


def special_ids(values: Mapping[str, Any], ids: Ids = AS_GIVEN) -> tuple[int, int]:
  """Padding and end by a config.json; what ends responses is not taken for padding."""
  ends = np.atleast_1d(values.get('eos_token_id') or 1).tolist()
  eos = ends[-1] if ids.eos is None else ids.eos
  said = values.get('pad_token_id')
  pad = (0 if said is None or said in ends else said) if ids.pad is None else ids.pad
  return pad, eos


def network(
  name: str | pathlib.Path,
  dtype: Any = 'float32',
  ids: Ids = AS_GIVEN,
  execution: layers.Execution = layers.PLAIN,
) -> nn.Module:
  """The network of a model, without its weights; arguments as of `config`, and how its layers are run."""
  return hf_models.network_from_config(dataclasses.replace(read_config(name, dtype, ids), execution=execution))


def weights(name: str | pathlib.Path, ids: Ids = AS_GIVEN) -> Callable[[Params], Params]:
  """Reads a model's weights, when it is called with the shapes, types and shardings that they are to have."""
  return lambda like: load(name, like, ids)


def load(name: str | pathlib.Path, like: Params, ids: Ids = AS_GIVEN) -> Params:
  """The weights of a model.

  Args:
    name: a directory, or a repository on the hub.
    like: arrays, or `jax.ShapeDtypeStruct`s; with shardings, each device's part is read by itself.
    ids: as of `config`; the same as the network's.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a tensor is missing, left over, or of another shape; the model has pickled weights only.
  """
  directory = locate(name)
  known = read_config(directory, ids=ids)
  files = _files(directory)
  tensor_of = hf_models.tensor_for(known)
  leaves = flax.traverse_util.flatten_dict(like)
  tensors = {path: tensor_of(path) for path in leaves}
  _check_names(directory, files, tensors, hf_models.aliases(known))
  moved = moved_ids(known)
  by_file = collections.defaultdict(list)
  for path, tensor in tensors.items():
    by_file[files[tensor.name]].append(path)
  result = {}
  for file, paths in by_file.items():
    with safetensors.safe_open(directory / file, framework='np') as shard:
      for path in paths:
        result[path] = _read(shard, path, tensors[path], leaves[path], moved)
  return flax.traverse_util.unflatten_dict({path: result[path] for path in leaves})


def save(
  params: Params,
  network_config: hf_models.Config,
  output_dir: str | pathlib.Path,
  *,
  dtype: Any = None,
  max_shard_bytes: int = 5 * 10**9,
  tokenizer_from: str | pathlib.Path | None = None,
) -> None:
  """Writes a model that `transformers` loads.

  Args:
    params: of the network.
    network_config: its configuration.
    output_dir: made, whole or not at all; must not exist.
    dtype: of the file; None: of each array.
    max_shard_bytes: a model larger than this is cut into several files.
    tokenizer_from: a model's directory whose tokenizer is copied along.

  Raises:
    FileExistsError: there is something at output_dir.
  """
  with run_directory.atomic_directory(output_dir) as directory:
    write(params, network_config, directory, dtype=dtype, max_shard_bytes=max_shard_bytes)
    for file in _TOKENIZER if tokenizer_from else ():
      if (pathlib.Path(tokenizer_from) / file).is_file():
        shutil.copy(pathlib.Path(tokenizer_from) / file, directory / file)


def write(
  params: Params,
  network_config: hf_models.Config,
  directory: pathlib.Path,
  *,
  dtype: Any = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and safetensors into a directory that is there; arguments as of `save`."""
  description = hf_models.config_to_json(network_config)
  tensor_of = hf_models.tensor_for(network_config)
  moved = moved_ids(network_config)
  leaves = {tensor_of(p): x for p, x in flax.traverse_util.flatten_dict(params).items()}
  (directory / 'config.json').write_text(description, encoding='utf-8')
  shards = list(_shards(leaves, dtype, max_shard_bytes))
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file = _SINGLE if len(shards) == 1 else f'model-{number:05}-of-{len(shards):05}.safetensors'
    arrays = {tensor.name: _theirs(leaves[tensor], tensor, dtype, moved) for tensor in shard}
    safetensors.numpy.save_file(arrays, directory / file, metadata={'format': 'pt'})
    weight_map |= dict.fromkeys(arrays, file)
  if len(shards) > 1:
    total = sum(_num_bytes(x, dtype) for x in leaves.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (directory / _INDEX).write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')


def save_adapters(
  adapters: Params,
  network_config: hf_models.Config,
  output_dir: str | pathlib.Path,
  *,
  alpha: float,
  base_model: str,
) -> None:
  """Writes adapters that `peft` puts on the model that they were trained on.

  Args:
    adapters: {a, b} at each kernel's path.
    network_config: of the model.
    output_dir: made; must not exist.
    alpha: W + (alpha / rank) a b is what they make of W.
    base_model: the name or directory of that model, for whoever loads them.

  Raises:
    FileExistsError: there is something at output_dir.
  """
  tensor_of = hf_models.tensor_for(network_config)
  arrays, modules, rank = {}, set(), 0
  for (*path, factor), x in flax.traverse_util.flatten_dict(adapters).items():
    module = tensor_of((*path, 'kernel')).name.removesuffix('.weight')
    modules.add(module)
    name = f'base_model.model.{module}.lora_{factor.upper()}.weight'
    arrays[name] = np.ascontiguousarray(np.asarray(x).T)
    rank = x.shape[1 if factor == 'a' else 0]
  description = {
    'peft_type': 'LORA',
    'task_type': 'SEQ_2_SEQ_LM' if isinstance(network_config, t5.T5Config) else 'CAUSAL_LM',
    'base_model_name_or_path': base_model,
    'r': rank,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'target_modules': sorted(modules),
    'inference_mode': True,
  }
  text = json.dumps(description, indent=2) + '\n'
  with run_directory.atomic_directory(output_dir) as directory:
    safetensors.numpy.save_file(
      arrays, directory / 'adapter_model.safetensors', metadata={'format': 'pt'}
    )
    (directory / 'adapter_config.json').write_text(text, encoding='utf-8')


def moved_ids(network_config: hf_models.Config) -> dict[int, int]:
  """Our id → theirs, for the words that lie elsewhere in the model's vocabulary; T5's is ours."""
  if not hasattr(network_config, 'pad_id'):
    return {}
  return hf_models.moved_ids(network_config.pad_id, network_config.eos_id)


def _files(directory: pathlib.Path) -> dict[str, str]:
  """The file that holds each tensor."""
  if (directory / _INDEX).is_file():
    files = json.loads((directory / _INDEX).read_text(encoding='utf-8'))['weight_map']
    for file in set(files.values()):
      if pathlib.PurePath(file).name != file:
        raise ValueError(f'{directory / _INDEX} names {file!r}, which is not a file beside it.')
      if not (directory / file).is_file():
        raise FileNotFoundError(f'No {directory / file}, which {_INDEX} names: download it again.')
    return files
  if (directory / _SINGLE).is_file():
    with safetensors.safe_open(directory / _SINGLE, framework='np') as shard:
      return dict.fromkeys(shard.keys(), _SINGLE)
  if pickled := sorted(directory.glob('*.bin')):
    raise ValueError(
      f'{pickled[0]} is a pickle, which could run any code and is not read: convert it where you trust it, with '
      'AutoModel….from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True) of transformers.'
    )
  raise FileNotFoundError(f'No {_SINGLE} and no {_INDEX} in {directory}: download them.')


def _check_names(directory, files: Mapping[str, str], tensors, aliases: frozenset[str]) -> None:
  wanted = {tensor.name: path for path, tensor in tensors.items()}
  for name, path in wanted.items():
    if name not in files:
      raise ValueError(f'{directory} lacks the tensor {name}, our {"/".join(path)}.')
  for name in files:
    if name not in wanted and name not in aliases:
      raise ValueError(f'{directory} holds the tensor {name}, which the network lacks.')


def _read(shard, path, tensor: hf_models.Tensor, like: Any, moved: Mapping[int, int]) -> jax.Array:
  """One leaf, in the layout of `like`; each device reads just its own part."""
  stored = shard.get_slice(tensor.name)
  shape = tuple(stored.get_shape())
  shape = shape[::-1] if tensor.transposed else shape
  if shape != tuple(like.shape):
    raise ValueError(
      f'Tensor {tensor.name} is {shape} in our layout, {"/".join(path)} is {tuple(like.shape)}: '
      'use the network of its config.json.'
    )

  def part(index) -> np.ndarray:
    index = tuple(slice(*i.indices(size)[:2]) for i, size in zip(index, shape, strict=True))
    index = index[::-1] if tensor.transposed else index
    x = _moved_rows(stored, index, moved) if tensor.words else stored[index]
    x = x.astype(like.dtype, copy=False)
    return np.ascontiguousarray(x.T) if tensor.transposed else x

  sharding = getattr(like, 'sharding', None)
  if sharding is None:
    return jax.device_put(part((slice(None),) * len(shape)))  # jnp.asarray would copy it twice.
  return jax.make_array_from_callback(shape, sharding, part)


def _moved_rows(stored, index: tuple[slice, ...], moved: Mapping[int, int]) -> np.ndarray:
  """Rows of a vocabulary in our order."""
  rows, *columns = index
  x = stored[index]
  x = x if x.flags.writeable else x.copy()
  for ours, theirs in moved.items():
    if rows.start <= ours < rows.stop:
      x[ours - rows.start] = stored[(slice(theirs, theirs + 1), *columns)][0]
  return x


def _theirs(
  leaf: Any, tensor: hf_models.Tensor, dtype: Any, moved: Mapping[int, int]
) -> np.ndarray:
  x = np.asarray(leaf)
  x = x.T if tensor.transposed else x
  if tensor.words:
    x = x.copy()
    x[list(moved.values())] = x[list(moved)]
  return np.ascontiguousarray(x.astype(dtype or x.dtype))


def _shards(leaves, dtype: Any, max_bytes: int) -> Iterator[list[hf_models.Tensor]]:
  """Tensors in groups of at most `max_bytes`; a larger one stands alone."""
  group, size = [], 0
  for tensor, leaf in leaves.items():
    num_bytes = _num_bytes(leaf, dtype)
    if group and size + num_bytes > max_bytes:
      yield group
      group, size = [], 0
    group.append(tensor)
    size += num_bytes
  yield group


def _num_bytes(leaf: Any, dtype: Any) -> int:
  return leaf.size * jnp.dtype(dtype or leaf.dtype).itemsize
