"""Rotary positions, against those of transformers (tests/golden/make_hf_models.py) and in words."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.formats import hf_rope
from nlhf_jax.networks import parameters, rope
from tests import tiny

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'hf' / 'rope.json'


def test_recorded_frequencies():
  """Linear, dynamic, YaRN in three ways, Llama 3; and each as it is written again."""
  for row in json.loads(GOLDEN.read_text()):
    base = hf_rope.read_base(row['config'], 1e4)
    scaling = hf_rope.read_scaling(row['config'])
    found = rope.frequencies(base, 16, scaling)
    np.testing.assert_allclose(found, row['frequencies'], rtol=1e-6)
    np.testing.assert_allclose(rope.amplitude(scaling), row['amplitude'], rtol=1e-6)
    assert hf_rope.read_scaling(hf_rope.scaling_to_json(scaling)) == scaling


def test_stretched_rotations_of_llama_3():
  """Slow ones by the full factor, fast ones not at all, those between by a mixture of both."""
  plain = rope.frequencies(1e3, 16, None)
  stretched = rope.frequencies(1e3, 16, rope.RopeScaling(8.0, 1.0, 4.0, 32))
  rotations = 32 * plain / (2 * np.pi)
  np.testing.assert_allclose(stretched[rotations > 4], plain[rotations > 4])
  np.testing.assert_allclose(stretched[rotations < 1], plain[rotations < 1] / 8)
  between = (rotations > 1) & (rotations < 4)
  assert between.any()
  assert ((plain / 8 < stretched) & (stretched < plain))[between].all()


def test_dynamic_scaling_changes_nothing_within_the_original_length_and_is_refused_beyond():
  scaled = tiny.llama_network(rope_scaling=rope.DynamicScaling(4.0, 6))
  params = jax.jit(parameters.init(scaled))(jax.random.key(0))
  prompts, responses = jnp.full((1, 3), 2), jnp.full((1, 4), 3)
  run = lambda network, *args: network.apply({'params': params}, *args, responses)
  plain = run(tiny.llama_network(), prompts, responses)
  np.testing.assert_array_equal(run(scaled, prompts, responses), plain)
  with pytest.raises(ValueError, match=r'up to 7 tokens: .* DynamicScaling are known up to 6'):
    run(scaled, jnp.full((1, 4), 2), responses)
