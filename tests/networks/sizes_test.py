"""Networks in the sizes of configs/networks have as many parameters as the models that were published in them."""

import pathlib

import gin
import jax
import pytest

from nlhf_jax.networks import axes

CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'configs' / 'networks'
FAMILIES = {
  'hugging_face',
  'llama',
  'llama_3',
  'qwen2_5',
  'smollm2',
  't5_1_1',
  't5_1_1_tiny',
  't5x',
}
# As counted on the models' pages at huggingface.co; tied embeddings count once.
PUBLISHED = {
  'llama_3_2_1b': 1_235_814_400,
  'llama_3_2_3b': 3_212_749_824,
  'llama_3_8b': 8_030_261_248,
  'llama_3_1_8b': 8_030_261_248,
  'llama_3_1_70b': 70_553_706_496,
  'qwen2_5_0_5b': 494_032_768,
  'qwen2_5_1_5b': 1_543_714_304,
  'qwen2_5_3b': 3_085_938_688,
  'qwen2_5_7b': 7_615_616_512,
  'qwen2_5_14b': 14_770_033_664,
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


@gin.configurable(module='sizes_test')
def build(network):
  return network


@pytest.mark.parametrize('name', sorted(PUBLISHED))
def test_number_of_parameters(name):
  gin.clear_config()
  gin.add_config_file_search_path(str(CONFIGS.parent.parent))
  gin.parse_config(f"include '{CONFIGS / name}.gin'\nsizes_test.build.network = %NETWORK")
  shapes = jax.eval_shape(axes.init(build()), jax.random.PRNGKey(0))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[name]
  gin.clear_config()


def test_configurations_of_networks():
  """Every size is counted above."""
  assert {path.stem for path in CONFIGS.glob('*.gin')} == PUBLISHED.keys() | FAMILIES
