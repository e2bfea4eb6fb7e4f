"""The conversion's refusals; the logits in tests/networks/t5_test.py show that it is right."""

import pathlib

import numpy as np
import pytest

from nlhf_jax.runtime import hf


@pytest.fixture(scope='module')
def state():
  path = pathlib.Path(__file__).parents[1] / 'golden' / 't5_logits.npz'
  with np.load(path, allow_pickle=False) as golden:
    prefix = 'tied/state/'
    return {x.removeprefix(prefix): golden[x] for x in golden.files if x.startswith(prefix)}


@pytest.mark.parametrize('present', [True, False])
def test_a_tied_output_layer_is_the_embedding(state, present):
  """It may be stored under both names, or once."""
  state = {**state, 'lm_head.weight': state['shared.weight']}
  if not present:
    del state['lm_head.weight']
  assert 'logits_dense' not in hf.t5_from_hf(state)['decoder']


@pytest.mark.parametrize(
  'name',
  [
    'model.embed_tokens.weight',
    'encoder.block.0.layer.2.layer_norm.weight',
    'encoder.block.0.layer.0.SelfAttention.bias.weight',
    'decoder.layer_norm.weight',
  ],
)
def test_a_tensor_of_another_model_is_refused(state, name):
  with pytest.raises(ValueError, match=name):
    hf.t5_from_hf({**state, name: np.zeros(3)})


@pytest.mark.parametrize(
  ('name', 'path'),
  [
    ('shared.weight', 'token_embedder/embedding'),
    ('encoder.final_layer_norm.weight', 'encoder/encoder_norm/scale'),
    ('decoder.block.1.layer.1.EncDecAttention.k.weight', 'encoder_decoder_attention/key/kernel'),
  ],
)
def test_a_missing_tensor_is_named(state, name, path):
  with pytest.raises(ValueError, match=path):
    hf.t5_from_hf({key: value for key, value in state.items() if key != name})
