"""Networks in published sizes have as many parameters as the models that were published in them."""

import jax
import pytest

from nlhf_jax.networks import parameters, sizes

# As counted on the models' pages at huggingface.co; tied embeddings count once.
PUBLISHED = {
  'llama_3_2_1b': 1_235_814_400,
  'llama_3_2_3b': 3_212_749_824,
  'llama_3_8b': 8_030_261_248,
  'llama_3_1_8b': 8_030_261_248,
  'llama_3_1_70b': 70_553_706_496,
  'gemma_2_2b': 2_614_341_888,
  'gemma_2_9b': 9_241_705_984,
  'gemma_3_1b': 999_885_952,
  'gemma_3_4b': 3_880_263_168,
  'smollm3_3b': 3_075_098_624,
  'olmo2_1b': 1_484_916_736,
  'olmo2_7b': 7_298_617_344,
  'phi_3_mini': 3_821_079_552,
  'qwen2_5_0_5b': 494_032_768,
  'qwen2_5_1_5b': 1_543_714_304,
  'qwen2_5_3b': 3_085_938_688,
  'qwen2_5_7b': 7_615_616_512,
  'qwen2_5_14b': 14_770_033_664,
  'qwen3_0_6b': 596_049_920,
  'qwen3_1_7b': 1_720_574_976,
  'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'smollm2_135m': 134_515_008,
  'smollm2_360m': 361_821_120,
  'smollm2_1_7b': 1_711_376_384,
  'mistral_7b_v0_1': 7_241_732_096,
  'mistral_7b_v0_3': 7_248_023_552,
  't5_1_1_small': 76_961_152,
  't5_1_1_base': 247_577_856,
  't5_1_1_large': 783_150_080,
  't5_1_1_xl': 2_849_757_184,
  't5_1_1_xxl': 11_135_332_352,
}


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_number_of_parameters(name):
  shapes = jax.eval_shape(parameters.init(sizes.network(name)), jax.random.PRNGKey(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[name]


def test_published_sizes_are_all_counted():
  assert set(sizes.NAMES) == PUBLISHED.keys() | {'t5_1_1_tiny'}


def test_changes_take_the_place_of_published_fields():
  config = sizes.config('t5_1_1_tiny', 'bfloat16', vocab_size=48, num_layers=1)
  assert (config.vocab_size, config.num_encoder_layers, config.num_decoder_layers) == (48, 1, 1)
  assert (config.emb_dim, config.dtype) == (64, 'bfloat16')
  assert sizes.config('llama_3_2_1b', eos_id=128001).eos_id == 128001


def test_unknown_sizes_are_refused_by_name():
  with pytest.raises(ValueError, match=r"No network 'llama_3_2_2b'.* Did you mean llama_3_2_"):
    sizes.config('llama_3_2_2b')
