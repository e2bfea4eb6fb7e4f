"""Adapters in the layout of `peft`: adapter_config.json beside adapter_model.safetensors."""

import collections
import json
import pathlib

import flax.traverse_util
import numpy as np

from nlhf_jax.formats import hf_directory, hf_layout, hf_models
from nlhf_jax.networks import t5
from nlhf_jax.runtime import run_directory
from nlhf_jax.types import Params


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
    adapters: {a, b} at the path of each kernel W.
    network_config: of the model.
    output_dir: made; must not exist.
    alpha: the adapted kernel is W + (alpha / rank) a b.
    base_model: the name or directory of that model, for whoever loads them.

  Raises:
    FileExistsError: there is something at output_dir.
  """
  tensor_for = hf_models.tensor_for(network_config)
  leaves = flax.traverse_util.flatten_dict(adapters)
  modules = collections.defaultdict(list)
  for path in dict.fromkeys(path[:-1] for path in leaves):
    tensor = tensor_for((*path, 'kernel'))
    down, up = np.asarray(leaves[*path, 'a']), np.asarray(leaves[*path, 'b'])
    modules[tensor.name.removesuffix('.weight')].append((tensor.rows, down, up))
  arrays, ranks = {}, {}
  for module, parts in modules.items():
    down, up = _joined(parts)
    arrays[f'base_model.model.{module}.lora_A.weight'] = np.ascontiguousarray(down.T)
    arrays[f'base_model.model.{module}.lora_B.weight'] = np.ascontiguousarray(up.T)
    ranks[module] = up.shape[0]
  rank = next(x.shape[1] for path, x in leaves.items() if path[-1] == 'a')
  larger = {module: own for module, own in ranks.items() if own > rank}
  description = {
    'peft_type': 'LORA',
    'task_type': 'SEQ_2_SEQ_LM' if isinstance(network_config, t5.T5Config) else 'CAUSAL_LM',
    'base_model_name_or_path': base_model,
    'r': rank,
    'lora_alpha': alpha,
    # Of tensors that hold several kernels.
    'rank_pattern': larger,
    'alpha_pattern': {module: alpha * own / rank for module, own in larger.items()},
    'lora_dropout': 0.0,
    'bias': 'none',
    'target_modules': sorted(modules),
    'inference_mode': True,
  }
  text = json.dumps(description, indent=2) + '\n'
  with run_directory.atomic_directory(output_dir) as directory:
    hf_directory.write_tensors(arrays, directory / 'adapter_model.safetensors')
    (directory / 'adapter_config.json').write_text(text, encoding='utf-8')


def _joined(
  parts: list[tuple[hf_layout.Rows | None, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """Factors of one tensor's change: of the kernels that it holds, each beside the others, and 0 where it has none."""
  if parts[0][0] is None:
    return parts[0][1:]
  down = np.concatenate([a for _, a, _ in parts], axis=1)
  up = np.zeros((down.shape[1], parts[0][0].total), down.dtype)
  first = 0
  for rows, _, b in parts:
    up[first : first + len(b), rows.start : rows.stop] = b
    first += len(b)
  return down, up
