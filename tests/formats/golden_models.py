"""The models of tests/golden/hf, and how the tests read and run them."""

import functools
import importlib.util
import pathlib
import sys
import types

import jax
import numpy as np

from nlhf_jax.formats import hf
from nlhf_jax.networks import parameters

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
DECODERS = (
  'llama',
  'smollm2',
  'qwen2_5',
  'mistral',
  'yarn',
  'qwen3',
  'phi3',
  'smollm3',
  'olmo2',
  'gemma2',
  'gemma3',
)
FAMILIES = ('t5_1_0', 't5_1_1', 'flan_t5', *DECODERS)


@functools.cache
def shapes(network):
  """Of its parameters."""
  return jax.eval_shape(parameters.init(network), jax.random.key(0))


def load(directory, **options):
  """A directory's network and its weights, with options of `hf.load`."""
  network = hf.network(directory)
  return network, hf.load(directory, shapes(network), **options)


def logits(network, params, prompts, responses):
  """In their vocabulary; prompts are padded with 0 already."""
  ids = np.arange(24)
  moved = hf.moved_ids(network.config)
  ids[list(moved.values())] = list(moved)  # Their id → ours.
  prompts = np.where(prompts > 0, ids[prompts], 0)
  responses = ids[responses]
  inputs = np.pad(responses, [(0, 0), (1, 0)])[:, :-1]
  apply = jax.jit(lambda *args: network.apply({'params': params}, *args, enable_dropout=False))
  return np.asarray(apply(prompts, inputs, np.ones_like(inputs)))[..., ids]


def script(name: str) -> types.ModuleType:
  """One of the scripts that made the golden files, where what it needs is installed."""
  directory = str(GOLDEN)
  if directory not in sys.path:  # They import each other.
    sys.path.append(directory)
  spec = importlib.util.spec_from_file_location(name, GOLDEN / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
