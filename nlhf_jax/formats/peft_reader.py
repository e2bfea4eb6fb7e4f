"""Adapters that `peft` has written, read as changes of the tensors of their base; no pickle is ever loaded.

A linear layer's W [out, in] becomes W + s B A, where s = α/r, or α/√r with `use_rslora` (Kalajdzievski (2023),
arXiv:2312.03732). What an adapter holds in full (`modules_to_save`, trained biases) takes the place of the base's.
"""

import collections
import functools
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from re import _parser  # type: ignore[attr-defined]  # Nothing public tells the parts of an expression.
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from nlhf_jax import untrusted
from nlhf_jax.formats import hf_directory

_WEIGHTS = 'adapter_model.safetensors'
_PICKLE = 'adapter_model.bin'
_PREFIX = 'base_model.model.'
# Settings that are read here, or that change nothing of weights that are there already.
_KNOWN = (
  'alpha_pattern',
  'auto_mapping',
  'base_model_name_or_path',
  'bias',
  'corda_config',
  'ensure_weight_tying',
  'eva_config',
  'exclude_modules',
  'inference_mode',
  'init_lora_weights',
  'layers_pattern',
  'layers_to_transform',
  'loftq_config',
  'lora_alpha',
  'lora_dropout',
  'lora_ga_config',
  'megatron_core',
  'modules_to_save',
  'peft_type',
  'peft_version',
  'qalora_group_size',
  'r',
  'rank_pattern',
  'revision',
  'runtime_config',
  'target_modules',
  'task_type',
  'use_rslora',
)
# Ways to begin that leave the base as it is; others (pissa, olora, corda, loftq …) take something out of it.
_STARTS = (None, True, False, 'gaussian', 'eva', 'orthogonal')
# Of the ways in which an expression may be tried on one name, and how long a name is taken to be.
_MOST_WAYS, _NAME_LENGTH = 1e8, 30


class Change(NamedTuple):
  """What becomes of one tensor W of the base: that in its place, if there is one, and + scale · up down."""

  # In the base's layout; None: W stays.
  replacement: np.ndarray | None = None
  # Both None: nothing is added.
  up: Float[np.ndarray, 'out r'] | None = None
  down: Float[np.ndarray, 'r in'] | None = None
  scale: float = 0.0


class ChangedTensor:
  """A stored tensor with a change, to be sliced as if the file held it so; the sum is in float32."""

  def __init__(self, stored: Any, change: Change):
    self._stored, self._change = stored, change

  def get_shape(self) -> list[int]:
    """Of the base's tensor."""
    return self._stored.get_shape()

  def get_dtype(self) -> str:
    """Of the base's tensor, as safetensors calls it."""
    return self._stored.get_dtype()

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    replacement, up, down, scale = self._change
    # Like what is read of a file, an array that its reader may change.
    x = self._stored[index] if replacement is None else replacement[index].copy()
    if up is None or down is None:
      return x
    rows, columns = index
    return x.astype(np.float32) + scale * (up[rows] @ down[:, columns])


class Base(NamedTuple):
  """What an adapter may change."""

  # All of its tensors.
  names: Collection[str]
  # Those of linear layers.
  kernels: Collection[str]
  # Its embedding, where it is the output layer too.
  tied: str | None


def read_changes(directory: pathlib.Path, base: Base) -> dict[str, Change]:
  """The changes of an adapter, by the names of the base's tensors; their shapes are still to be compared (`check_shape`).

  Args:
    directory: holds adapter_config.json and adapter_model.safetensors.
    base: the tensors of the model that it is put on.

  Raises:
    FileNotFoundError: it has no weights.
    ValueError: it is of another kind than LoRA, changes what is not known here, lacks a tensor, or holds one that the
      base has not.
  """
  values = hf_directory.read_json(directory / hf_directory.ADAPTER)
  _check_settings(directory, values)
  factors, replaced = _sorted_tensors(directory, base)
  _check_saved(directory, values, replaced, base)
  _check_targets(directory, values, factors, base)
  changes = {name: Change(replacement=x) for name, x in replaced.items()}
  for module, (down, up) in factors.items():
    name, before = f'{module}.weight', changes.get(f'{module}.weight', Change())
    scale = _scale(directory, values, module, len(down))
    changes[name] = before._replace(up=up, down=down, scale=scale)
  return changes


def check_shape(directory: pathlib.Path, name: str, change: Change, shape: Iterable[int]) -> None:
  """Raises ValueError where a change does not fit the base's tensor of a name, which has this shape."""
  shape = tuple(shape)
  found = None
  if change.replacement is not None and change.replacement.shape != shape:
    found = change.replacement.shape
  elif change.up is not None and change.down is not None:
    found = len(change.up), change.down.shape[1]
  if found not in (None, shape):
    raise ValueError(
      f'{directory / _WEIGHTS} changes {name} as if it were {found}, but the base has it as {shape}: name the model that '
      'the adapter was trained on.'
    )


def _merge_it(directory: pathlib.Path) -> str:
  return (
    f'merge it where peft is installed, with PeftModel.from_pretrained(BASE, {str(directory)!r}).merge_and_unload()'
    '.save_pretrained(NEW_DIR), and name NEW_DIR.'
  )


def _check_settings(directory: pathlib.Path, values: Mapping[str, Any]) -> None:
  path, remedy = directory / hf_directory.ADAPTER, _merge_it(directory)
  if values.get('peft_type') != 'LORA':
    raise ValueError(
      f"{path} has peft_type = {values.get('peft_type')!r}: only 'LORA' is read here; {remedy}"
    )
  for key, value in values.items():
    if key not in _KNOWN and value not in (None, False, [], {}, ''):
      raise ValueError(f'{path} has {key} = {value!r}, which is not read here: {remedy}')
  start = values.get('init_lora_weights')
  if start not in _STARTS:
    raise ValueError(
      f'{path} has init_lora_weights = {start!r}, with which peft changes the base too: save it as plain LoRA, with '
      'path_initial_model_for_weight_conversion of save_pretrained.'
    )


def _sorted_tensors(
  directory: pathlib.Path, base: Base
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
  """(A, B) by module, and tensors in full by their names in the base."""
  path = directory / _WEIGHTS
  factors: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  replaced = {}
  for key, x in _read_tensors(directory).items():
    name = key.removeprefix(_PREFIX)
    if factor := re.fullmatch(r'(.+)\.lora_([AB])\.weight', name):
      _check_module(directory, factor[1], base)
      factors[factor[1]][factor[2]] = x
      continue
    name = name.replace('.modules_to_save.', '.').replace('.base_layer.', '.')
    if 'lora_' in name or name not in base.names or not key.startswith(_PREFIX):
      raise ValueError(
        f'{path} holds the tensor {key}, which is not read here: {_merge_it(directory)}'
      )
    replaced[name] = x
  for module, found in factors.items():
    if lost := {'A', 'B'} - set(found):
      raise ValueError(
        f'{path} lacks the tensor {_PREFIX}{module}.lora_{lost.pop()}.weight: save the adapter again.'
      )
  return {module: (found['A'], found['B']) for module, found in factors.items()}, replaced


def _read_tensors(directory: pathlib.Path) -> dict[str, np.ndarray]:
  path, pickled = directory / _WEIGHTS, directory / _PICKLE
  if not path.is_file() and pickled.is_file():
    raise ValueError(
      f'{pickled} is a pickle, which could run any code and is not read: convert it where you trust it, with '
      'PeftModel.from_pretrained(BASE, DIR).save_pretrained(NEW_DIR, safe_serialization=True) of peft.'
    )
  if not path.is_file():
    raise FileNotFoundError(f'No {path}: download it, or save the adapter again.')
  tensors = {}
  with hf_directory.open_tensors(path) as stored:
    for key in sorted(stored.keys()):
      hf_directory.check_floats(path, key, stored.get_slice(key))
      tensors[key] = stored.get_tensor(key)
      hf_directory.check_finite(path, key, tensors[key])
  # What NumPy multiplies fast.
  return {key: x.astype(np.float32) if '.lora_' in key else x for key, x in tensors.items()}


def _check_module(directory: pathlib.Path, module: str, base: Base) -> None:
  if f'{module}.weight' in base.kernels:
    return
  path = directory / _WEIGHTS
  if module == 'lm_head' and base.tied:
    raise ValueError(
      f'{path} adapts lm_head, which in the base is the embedding {base.tied} (tie_word_embeddings): save the base with an '
      'output layer of its own.'
    )
  raise ValueError(
    f'{path} adapts {module}, and the base has no such linear layer: name the model that the adapter was trained on.'
  )


def _check_saved(
  directory: pathlib.Path, values: Mapping[str, Any], replaced: Collection[str], base: Base
) -> None:
  """Raises ValueError where `modules_to_save` is not what was saved, or would untie the embedding from the output."""
  path = directory / hf_directory.ADAPTER
  for module in values.get('modules_to_save') or ():
    saved = [name for name in replaced if name.rpartition('.')[0].endswith(module)]
    if not saved:
      raise ValueError(
        f'{path} has {module!r} among modules_to_save, of which {_WEIGHTS} holds no tensor: save the adapter again, or put '
        'it on the model that it was trained on.'
      )
    if base.tied in saved:
      raise ValueError(
        f'{path} has {module!r} among modules_to_save, which in the base is both embedding and output layer '
        '(tie_word_embeddings): save the base with an output layer of its own.'
      )


def _check_targets(
  directory: pathlib.Path, values: Mapping[str, Any], adapted: Collection[str], base: Base
) -> None:
  """Raises ValueError where not exactly those linear layers are adapted that the settings name."""
  modules = {name.removesuffix('.weight') for name in base.kernels}
  named = {m for m in modules if _is_target(directory, values, m)}
  if extra := sorted(set(adapted) - named):
    raise ValueError(
      f'{directory / _WEIGHTS} adapts {extra[0]}, which {hf_directory.ADAPTER} does not name: take both files from one '
      'adapter.'
    )
  # With layers_to_transform the tensors tell which layers.
  lost = sorted(named - set(adapted))
  if lost and values.get('layers_to_transform') is None:
    raise ValueError(
      f'{directory / _WEIGHTS} does not adapt {lost[0]}, which {hf_directory.ADAPTER} names: save the adapter again, or put it '
      'on the model that it was trained on.'
    )


def _is_target(directory: pathlib.Path, values: Mapping[str, Any], module: str) -> bool:
  named, excluded = (
    _names_module(directory, key, values.get(key), module)
    for key in ('target_modules', 'exclude_modules')
  )
  saved = values.get('modules_to_save') or ()
  return named and not excluded and not any(module.endswith(each) for each in saved)


def _names_module(directory: pathlib.Path, key: str, value: Any, module: str) -> bool:
  """Whether a setting names a module: as a regular expression, or in a list of names' ends."""
  if isinstance(value, str):
    if value == 'all-linear':
      return module != 'lm_head'
    return _matches(directory, key, value, module)
  return any(module == each or module.endswith(f'.{each}') for each in value or ())


def _matches(
  directory: pathlib.Path, key: str, expression: str, module: str, *, ends: bool = False
) -> bool:
  """Whether the expression matches the name, or with `ends` its end; one that could take for ever is refused."""
  path = directory / hf_directory.ADAPTER
  try:
    if not _log_ways_of(expression) <= math.log(_MOST_WAYS):
      raise ValueError(
        f'{path} has {key} = {untrusted.quoted(expression)}, which could be tried on a name in too many ways: write it without *, + or ? '
        'within a group that is repeated, and with fewer of * + ? | in all.'
      )
    return re.fullmatch(rf'(.*\.)?({expression})' if ends else expression, module) is not None
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(
      f'{path} has {key} = {untrusted.quoted(expression)}, which is no regular expression that can be read ({error}): correct it.'
    ) from None


@functools.lru_cache
def _log_ways_of(expression: str) -> float:
  return _log_ways(_parser.parse(expression))


def _log_ways(parts: Any) -> float:
  """The logarithm of how many ways through a parsed expression there are, about: `re` may go each of them before it gives up.

  Each choice is counted as one more than it is, since many small ones cost the most.
  """
  return sum(_log_ways_of_part(kind, value) for kind, value in parts)


def _log_ways_of_part(kind: Any, value: Any) -> float:
  name = str(kind)
  if name.endswith('REPEAT'):
    least, most, repeated = value
    # Of what is empty, a minimum is gone through all the same.
    times = max(least, min(most, _NAME_LENGTH))
    return math.log(times + 2) + times * _log_ways(repeated)
  if name == 'BRANCH':
    return math.log(len(value[1]) + 1) + max(map(_log_ways, value[1]))
  if name == 'GROUPREF_EXISTS':
    return math.log(3) + max(_log_ways(part or ()) for part in value[1:])
  if name == 'ATOMIC_GROUP':
    return _log_ways(value)
  # The last of what a group, or what stands ahead or behind, has.
  return _log_ways(value[-1]) if name in ('SUBPATTERN', 'ASSERT', 'ASSERT_NOT') else 0.0


def _scale(
  directory: pathlib.Path, values: Mapping[str, Any], module: str, stored_rank: int
) -> float:
  """α/r, or α/√r, of a module."""
  rank = _of_module(directory, values, 'rank_pattern', 'r', 8, module)
  alpha = _of_module(directory, values, 'alpha_pattern', 'lora_alpha', 8, module)
  if rank != stored_rank:
    raise ValueError(
      f'{directory / hf_directory.ADAPTER} gives {module} the rank {rank}, where {_WEIGHTS} has {stored_rank}: take both '
      'files from one adapter.'
    )
  return alpha / (math.sqrt(rank) if values.get('use_rslora') else rank)


def _of_module(
  directory: pathlib.Path,
  values: Mapping[str, Any],
  pattern: str,
  key: str,
  default: int,
  module: str,
) -> int | float:
  """A module's number: that of the first expression that its name ends with, or else everybody's."""
  path, special = directory / hf_directory.ADAPTER, values.get(pattern) or {}
  if not isinstance(special, dict):
    raise ValueError(f'{path} has {pattern} = {special!r}, which is no object: save it again.')
  found = values.get(key, default)
  for expression, own in special.items():
    if _matches(directory, pattern, expression, module, ends=True):
      found, key = own, f'{pattern}[{expression!r}]'
      break
  if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < abs(found) < math.inf:
    raise ValueError(f'{path} has {key} = {found!r}, where a number other than 0 is needed.')
  return found
