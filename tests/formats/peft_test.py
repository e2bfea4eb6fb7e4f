"""Adapters as `peft` reads them change the same weights by as much."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from nlhf_jax.formats import hf, peft
from nlhf_jax.models import lora
from nlhf_jax.networks import parameters
from nlhf_jax.types import Adapted

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'hf'


@pytest.mark.parametrize('family', ['llama', 'phi3'])
@pytest.mark.parametrize(
  'targets', [('query', 'value', 'wo'), ('query', 'key', 'value'), lora.Lora().targets]
)
def test_change_of_each_tensor(family, targets, tmp_path):
  """Of files that hold several kernels in one tensor, too: W + (alpha / rank) B A, tensor by tensor."""
  network = hf.network(GOLDEN / family)
  like = jax.eval_shape(parameters.init(network), jax.random.key(0))
  base, method = hf.load(GOLDEN / family, like), lora.Lora(2, 3.0, targets)
  adapters = lora.init(method, base, jax.random.key(1))
  adapters = jax.tree.map(lambda x: x + jnp.float32(0.1), adapters)
  merged = lora.merge(method, Adapted(base, adapters))
  hf.save(merged, network.config, tmp_path / 'merged')
  peft.save_adapters(adapters, network.config, tmp_path / 'peft', alpha=3.0, base_model=family)
  settings = json.loads((tmp_path / 'peft' / 'adapter_config.json').read_text())
  factors = safetensors.numpy.load_file(tmp_path / 'peft' / 'adapter_model.safetensors')
  weights = safetensors.numpy.load_file(GOLDEN / family / 'model.safetensors')
  for module in settings['target_modules']:
    down, up = (factors[f'base_model.model.{module}.lora_{x}.weight'] for x in 'AB')
    rank = settings['rank_pattern'].get(module, settings['r'])
    assert rank == len(down)
    scale = settings['alpha_pattern'].get(module, settings['lora_alpha']) / rank
    weights[f'{module}.weight'] = weights[f'{module}.weight'] + scale * up @ down
  found = safetensors.numpy.load_file(tmp_path / 'merged' / 'model.safetensors')
  assert len(factors) == 2 * len(settings['target_modules'])
  for name, x in found.items():
    np.testing.assert_allclose(x, weights[name], rtol=1e-5, atol=1e-6, err_msg=name)
