"""Adapters in the layout of `peft`: adapter_config.json beside adapter_model.safetensors."""

import json
import pathlib

import flax.traverse_util
import numpy as np
import safetensors.numpy

from nlhf_jax.formats import hf_models
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
  arrays, modules, rank = {}, set(), 0
  for (*path, factor), x in flax.traverse_util.flatten_dict(adapters).items():
    module = tensor_for((*path, 'kernel')).name.removesuffix('.weight')
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
