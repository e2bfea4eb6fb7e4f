"""Models in Hugging Face's layout: config.json beside safetensors, read and written; no pickle is ever loaded.

A directory is read tensor by tensor, straight into the shardings that are asked for, so that no more than one file of
it is in memory at a time. An adapter of `peft` is merged into its base on the way (`peft_reader`).
"""

import collections
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.arguments import CountOrZero, DType
from nlhf_jax.formats import hf_directory, hf_layout, hf_models, peft_reader
from nlhf_jax.networks import layers, llama
from nlhf_jax.runtime import run_directory
from nlhf_jax.types import Params

# A tensor's leaves, each with its place there; and those of all tensors, by name.
_Held = list[tuple[hf_layout.Tensor, Any]]
_Leaves = dict[str, _Held]
_GENERATION = 'generation_config.json'
_TOKENIZER = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  _GENERATION,
  'spiece.model',
)


class Ids(NamedTuple):
  """Two ids of a vocabulary, where a model does not give them, or gives others than are of use here."""

  # Padding; None: that of the model, and 0 where it gives none.
  pad: CountOrZero | None = None
  # Ends a response, and is written where it ends; None: the first that the model gives.
  eos: CountOrZero | None = None


AS_GIVEN = Ids()


class SpecialIds(NamedTuple):
  """What padding and ends are in a model's own vocabulary."""

  pad: CountOrZero
  # Written where a response ends.
  eos: CountOrZero
  # End a response too.
  other_ends: tuple[int, ...] = ()


def read_config(
  name: str | pathlib.Path, dtype: DType = 'float32', ids: Ids = AS_GIVEN
) -> hf_models.Config:
  """The configuration of the network that a model's config.json describes.

  A response ends at any of the ids that config.json, generation_config.json and the tokenizer name.

  Args:
    name: a directory, or hf://OWNER/NAME@REVISION on the hub; of an adapter, its base is meant.
    dtype: of activations.
    ids: of padding and end.

  Raises:
    FileNotFoundError: there is no such model, or it has no config.json.
    ValueError: it is of another family, or uses what the networks here do not have; it names no end.
  """
  return _read_config(hf_directory.find(name), dtype, ids)


def _read_config(
  model: hf_directory.Model, dtype: DType = 'float32', ids: Ids = AS_GIVEN
) -> hf_models.Config:
  path = model.base / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(f'No {path}: name the directory of a model, or download it again.')
  values = hf_directory.read_json(path)
  special = special_ids(_named_ids(model, values), ids, str(model.base))
  values |= {'pad_token_id': special.pad, 'eos_token_id': [special.eos, *special.other_ends]}
  try:
    config = hf_models.config_from_json(values, dtype)
  except ValueError as error:  # Of config.json, which has a place here.
    text = str(error).removeprefix('config.json ')
    raise ValueError(f'{path} {text}' if text != str(error) else f'{path}: {text}') from None
  _check_ids(model.base, special, config.vocab_size)
  return config


def _check_ids(directory: pathlib.Path, special: SpecialIds, vocab_size: int) -> None:
  """Raises ValueError where an id is of no token that the network can write."""
  otherwise = {
    special.pad: ', or give another as ids.pad',
    special.eos: ', or give another as ids.eos',
  }
  for number in (special.pad, special.eos, *special.other_ends):
    if number >= vocab_size:
      meaning = 'padding' if number == special.pad else 'an end'
      raise ValueError(
        f'{directory} has id {number} for {meaning}, but embeddings of 0 to {vocab_size - 1} (vocab_size of config.json): '
        f'correct its JSON{otherwise.get(number, "")}.'
      )


def special_ids(
  values: Mapping[str, Any], ids: Ids = AS_GIVEN, name: str = 'The model'
) -> SpecialIds:
  """Ids of padding and ends.

  Padding may be what ends responses too, if it is not the first: then it ends none here.

  Args:
    values: `pad_token_id` and `eos_token_id`, each an id, a list of them by rank, or null; below 0 is null.
    ids: given instead.
    name: of the model, for errors.

  Raises:
    ValueError: there is no end, or padding is the first end.
  """
  keys = 'pad_token_id', 'eos_token_id'
  pads, ends = (_ids(values.get(key), key, name) for key in keys)
  if ids.eos is None and not ends:
    raise ValueError(f'{name} names no token that ends a response: give its id as ids.eos.')
  eos = ends[0] if ids.eos is None else ids.eos
  pad = next((number for number in pads if number != eos), 0) if ids.pad is None else ids.pad
  if pad == eos:
    raise ValueError(
      f'{name} ends responses with id {eos} and names no other for padding: give one that text never uses, such as a '
      'reserved token, as ids.pad.'
    )
  others = (number for number in ends if number not in (pad, eos))
  return SpecialIds(pad, eos, tuple(dict.fromkeys(others)))


def _named_ids(model: hf_directory.Model, values: Mapping[str, Any]) -> dict[str, list[int]]:
  """All that a model's files name for padding and for ends: config.json, generation_config.json, then the tokenizer."""
  generation_file, config_file = model.base / _GENERATION, model.base / 'config.json'
  generation = hf_directory.read_json(generation_file)
  settings = hf_directory.read_json(model.tokenizer / 'tokenizer_config.json')
  of_tokens = _added_tokens(model.tokenizer)
  result = {}
  for key in ('pad_token', 'eos_token'):
    token = token_text(settings.get(key))
    number = f'{key}_id'
    named = (
      (values.get(number), config_file),
      (generation.get(number), generation_file),
      (of_tokens.get(token) if token else None, model.tokenizer / 'tokenizer.json'),
    )
    result[number] = [x for value, file in named for x in _ids(value, number, str(file))]
  return result


def _ids(value: Any, key: str, place: str) -> list[int]:
  """None, one or several; below 0 is none. Raises ValueError where a value is no id."""
  given = value if isinstance(value, list) else [value]
  for number in given:
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
      raise ValueError(f'{place} has {key} = {value!r}, where an id is needed: correct it.')
  return [number for number in given if number is not None and number >= 0]


def _added_tokens(directory: pathlib.Path) -> dict[str, int]:
  """Ids of a tokenizer's special words."""
  path = directory / 'tokenizer.json'
  tokens = hf_directory.read_json(path).get('added_tokens') or []
  try:
    return {token['content']: token['id'] for token in tokens}
  except (KeyError, TypeError):
    raise ValueError(
      f'{path} has added_tokens = {str(tokens)[:80]}, which are no tokens with ids: download it again.'
    ) from None


def token_text(value: Any) -> str | None:
  """A special token's text, which tokenizer_config.json gives as it is or as an object; None: there is none."""
  value = value.get('content') if isinstance(value, dict) else value
  return value if isinstance(value, str) else None


def network(
  name: str | pathlib.Path,
  dtype: DType = 'float32',
  ids: Ids = AS_GIVEN,
  execution: layers.Execution = layers.PLAIN,
) -> nn.Module:
  """The network of a model, without its weights; arguments as of `read_config`, and how its layers are run."""
  config = dataclasses.replace(read_config(name, dtype, ids), execution=execution)
  return hf_models.network_from_config(config)


def weights(
  name: str | pathlib.Path, ids: Ids = AS_GIVEN, adapter: str | pathlib.Path | None = None
) -> Callable[[Params], Params]:
  """Reads a model's weights, when it is called with the shapes, types and shardings that they are to have.

  Args:
    name: a directory, or hf://OWNER/NAME@REVISION on the hub; of an adapter, its base is read with the adapter merged into it.
    ids: of padding and end.
    adapter: one for the model of that name, whatever base it was written for.
  """
  return lambda like: load(name, like, ids, adapter)


def load(
  name: str | pathlib.Path,
  like: Params,
  ids: Ids = AS_GIVEN,
  adapter: str | pathlib.Path | None = None,
) -> Params:
  """The weights of a model; name and adapter as of `weights`.

  Args:
    name: a directory, or hf://OWNER/NAME@REVISION on the hub.
    like: arrays, or `jax.ShapeDtypeStruct`s; with shardings, each device's shard is read by itself.
    ids: as of `read_config`; the same as the network's.
    adapter: what is merged into them.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a tensor is missing, left over, quantised, not finite, or of another shape; the model has pickled weights
      only; the adapter is of a kind that is not read, or does not fit.
  """
  model = hf_directory.find(name, adapter)
  directory, config = model.base, _read_config(model, ids=ids)
  files = hf_directory.tensor_files(directory)
  tensor_for = hf_models.tensor_for(config)
  leaves = flax.traverse_util.flatten_dict(like)
  tensors = {path: tensor_for(path) for path in leaves}
  known = hf_models.copies(config) | hf_models.constants(config)
  _check_names(directory, files, tensors, known)
  _check_copies(directory, files, config)
  changes = _changes(model.adapter, tensors, config)
  moved = moved_ids(config)
  by_file = collections.defaultdict(list)
  for path, tensor in tensors.items():
    by_file[files[tensor.name]].append(path)
  result = {}
  for file, paths in by_file.items():
    with hf_directory.open_tensors(directory / file) as stored:
      for path in paths:
        name = tensors[path].name
        x = stored.get_slice(name)
        if name in changes:
          peft_reader.check_shape(model.adapter, name, changes[name], x.get_shape())
          x = peft_reader.ChangedTensor(x, changes[name])
        result[path] = _read_tensor(directory / file, x, path, tensors[path], leaves[path], moved)
  return flax.traverse_util.unflatten_dict({path: result[path] for path in leaves})


def _changes(
  adapter: pathlib.Path | None,
  tensors: Mapping[hf_layout.Path, hf_layout.Tensor],
  config: hf_models.Config,
) -> dict[str, peft_reader.Change]:
  """Of an adapter, by names of tensors; none where there is none."""
  if adapter is None:
    return {}
  tied = hf_models.embedding(config) if config.logits_via_embedding else None
  kernels = {tensor.name for path, tensor in tensors.items() if path[-1] == 'kernel'}
  names = {tensor.name for tensor in tensors.values()}
  return peft_reader.read_changes(adapter, peft_reader.Base(names, kernels, tied))


def save(
  params: Params,
  network_config: hf_models.Config,
  output_dir: str | pathlib.Path,
  *,
  dtype: DType | None = None,
  max_shard_bytes: int = 5 * 10**9,
  tokenizer_from: str | pathlib.Path | None = None,
) -> None:
  """Writes a model that `transformers` loads.

  Args:
    params: of the network.
    network_config: its configuration.
    output_dir: made, completely or not at all; must not exist.
    dtype: of the file; None: of each array.
    max_shard_bytes: a model larger than this is split into several files.
    tokenizer_from: a model's directory whose tokenizer is copied along.

  Raises:
    FileExistsError: there is something at output_dir.
    FileNotFoundError: there is no such directory to take a tokenizer from.
  """
  with run_directory.atomic_directory(output_dir) as directory:
    write(params, network_config, directory, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if tokenizer_from:
      source = hf_directory.find(tokenizer_from).tokenizer
      for file in filter(lambda file: (source / file).is_file(), _TOKENIZER):
        shutil.copy(source / file, directory / file)


def write(
  params: Params,
  network_config: hf_models.Config,
  directory: pathlib.Path,
  *,
  dtype: DType | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and safetensors into an existing directory; arguments as of `save`."""
  description = hf_models.config_to_json(network_config, _stored_type(params, dtype))
  tensor_for = hf_models.tensor_for(network_config)
  moved = moved_ids(network_config)
  leaves: _Leaves = collections.defaultdict(list)
  for path, x in flax.traverse_util.flatten_dict(params).items():
    tensor = tensor_for(path)
    leaves[tensor.name].append((tensor, x))
  (directory / 'config.json').write_text(description, encoding='utf-8')
  (directory / _GENERATION).write_text(_generation_config(description), encoding='utf-8')
  shards = list(_shards(leaves, dtype, max_shard_bytes))
  weight_map: dict[str, str] = {}
  for number, shard in enumerate(shards, start=1):
    file = (
      hf_directory.SINGLE
      if len(shards) == 1
      else f'model-{number:05}-of-{len(shards):05}.safetensors'
    )
    arrays = {name: _theirs(leaves[name], dtype, moved) for name in shard}
    hf_directory.write_tensors(arrays, directory / file)
    weight_map |= dict.fromkeys(arrays, file)
  if len(shards) > 1:
    total = sum(_num_bytes(held, dtype) for held in leaves.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (directory / hf_directory.INDEX).write_text(
      json.dumps(index, indent=2) + '\n', encoding='utf-8'
    )


def _stored_type(params: Params, dtype: Any) -> str:
  """Of the file; of several types, the one that most weights have."""
  sizes: collections.Counter[str] = collections.Counter()
  for leaf in jax.tree.leaves(params):
    sizes[jnp.dtype(dtype or leaf.dtype).name] += leaf.size
  return sizes.most_common(1)[0][0]


def _generation_config(description: str) -> str:
  """generation_config.json of a config.json: where a text begins and ends."""
  values = json.loads(description)
  ids = {
    key: values[key]
    for key in ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')
    if values.get(key) is not None
  }
  return json.dumps(ids, indent=2) + '\n'


def moved_ids(network_config: hf_models.Config) -> dict[int, int]:
  """Our id → theirs, for the tokens that have another one in the model's vocabulary; T5's is ours."""
  if not isinstance(network_config, llama.LlamaConfig):
    return {}
  return hf_layout.moved_ids(network_config.pad_id, network_config.eos_id)


def _check_names(directory, files: Mapping[str, str], tensors, aliases: frozenset[str]) -> None:
  wanted = {tensor.name: path for path, tensor in tensors.items()}
  for name, path in wanted.items():
    if name not in files:
      raise ValueError(
        f'{directory} lacks the tensor {name}, our {"/".join(path)}: take weights and config.json from one model.'
      )
  for name in files:
    if name not in wanted and name not in aliases:
      raise ValueError(
        f'{directory} holds the tensor {name}, which the network lacks: take weights and config.json from one model.'
      )


def _check_copies(
  directory: pathlib.Path, files: Mapping[str, str], config: hf_models.Config
) -> None:
  """Raises ValueError where the embedding's other names hold something else: they would be lost."""
  name = hf_models.embedding(config)
  for copy in hf_models.copies(config) & files.keys():
    with (
      hf_directory.open_tensors(directory / files[name]) as one,
      hf_directory.open_tensors(directory / files[copy]) as other,
    ):
      tensors = one.get_slice(name), other.get_slice(copy)
      if not hf_directory.are_equal(*tensors):
        raise ValueError(
          f'{directory / files[copy]}: tensor {copy} differs from {name}, which it is by config.json: set '
          'tie_word_embeddings to false there (of T5 scale_decoder_outputs too), or take both from one model.'
        )


def _read_tensor(
  file: pathlib.Path,
  stored: Any,
  path: hf_layout.Path,
  tensor: hf_layout.Tensor,
  like: Any,
  moved: Mapping[int, int],
) -> jax.Array:
  """One leaf, in the sharding of `like`; each device reads its own shard of what is stored alone."""
  hf_directory.check_floats(file, tensor.name, stored)
  shape = tuple(stored.get_shape())
  first = 0
  if tensor.rows and shape[0] == tensor.rows.total:
    first, shape = tensor.rows.start, (tensor.rows.stop - tensor.rows.start, *shape[1:])
  shape = shape[::-1] if tensor.transposed else shape
  if shape != tuple(like.shape):
    raise ValueError(
      f'{file}: tensor {tensor.name} is {shape} in our layout, {"/".join(path)} is {tuple(like.shape)}: '
      'use the network of its config.json.'
    )

  def shard(index) -> np.ndarray:
    index = tuple(slice(*i.indices(size)[:2]) for i, size in zip(index, shape, strict=True))
    rows, *columns = index[::-1] if tensor.transposed else index
    index = slice(first + rows.start, first + rows.stop), *columns
    x = _moved_rows(stored, index, moved) if tensor.by_token else stored[index]
    hf_directory.check_finite(file, tensor.name, x)
    x = x.astype(like.dtype, copy=False)
    return np.ascontiguousarray(x.T) if tensor.transposed else x

  sharding = getattr(like, 'sharding', None)
  if sharding is None:
    return jax.device_put(shard((slice(None),) * len(shape)))  # jnp.asarray would copy it twice.
  return jax.make_array_from_callback(shape, sharding, shard)


def _moved_rows(stored, index: tuple[slice, ...], moved: Mapping[int, int]) -> np.ndarray:
  """Rows of a vocabulary in our order."""
  rows, *columns = index
  x = stored[index]
  x = x if x.flags.writeable else x.copy()
  for ours, theirs in moved.items():
    if rows.start <= ours < rows.stop:
      x[ours - rows.start] = stored[(slice(theirs, theirs + 1), *columns)][0]
  return x


def _theirs(held: _Held, dtype: Any, moved: Mapping[int, int]) -> np.ndarray:
  """A tensor as it is stored."""
  parts = []
  for tensor, leaf in sorted(held, key=lambda part: part[0].rows or ()):
    x = np.asarray(leaf)
    x = x.T if tensor.transposed else x
    if tensor.by_token:
      x = x.copy()
      x[list(moved.values())] = x[list(moved)]
    parts.append(x.astype(dtype or x.dtype))
  return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _shards(leaves: _Leaves, dtype: Any, max_bytes: int) -> Iterator[list[str]]:
  """Names of tensors in groups of at most `max_bytes`; a larger one is a group of its own."""
  group: list[str] = []
  size = 0
  for name, held in leaves.items():
    num_bytes = _num_bytes(held, dtype)
    if group and size + num_bytes > max_bytes:
      yield group
      group, size = [], 0
    group.append(name)
    size += num_bytes
  yield group


def _num_bytes(held: _Held, dtype: Any) -> int:
  return sum(leaf.size * jnp.dtype(dtype or leaf.dtype).itemsize for _, leaf in held)
