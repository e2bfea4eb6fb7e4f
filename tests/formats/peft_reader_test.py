"""Adapters that `peft` has written: logits as of its own merged models, and what is amiss is named in one line."""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from nlhf_jax.formats import hf, hf_directory, peft, peft_reader
from nlhf_jax.models import lora
from nlhf_jax.types import Adapted
from tests.formats import golden_models
from tests.formats.golden_models import FAMILIES, GOLDEN

BASES = {
  'patterns': 'llama',
  'biases': 'qwen2_5',
  'fused': 'phi3',
  'some_layers': 'mistral',
  'expression': 'gemma3',
  'encoder_decoder': 'flan_t5',
}
CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
Q = 'base_model.model.model.layers.0.self_attn.q_proj'
# As the settings know them.
Q_MODULE, V_MODULE = (f'model.layers.0.self_attn.{x}_proj' for x in 'qv')
DOWN = 'model.layers.0.mlp.down_proj'


def _copy(name: str, to: pathlib.Path) -> pathlib.Path:
  """An adapter whose base is named by where it is here."""
  shutil.copytree(GOLDEN / 'peft' / name, to)
  values = json.loads((to / CONFIG).read_text())
  values['base_model_name_or_path'] = str(GOLDEN / 'hf' / BASES[name])
  (to / CONFIG).write_text(json.dumps(values))
  return to


@pytest.mark.parametrize('name', BASES)
def test_recorded_logits(name):
  network, params = golden_models.load(GOLDEN / 'hf' / BASES[name], adapter=GOLDEN / 'peft' / name)
  with np.load(GOLDEN / 'peft' / name / 'logits.npz', allow_pickle=False) as golden:
    found = golden_models.logits(network, params, golden['prompts'], golden['responses'])
    np.testing.assert_allclose(found, golden['logits'], atol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_live_logits(family, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('peft')
  golden = golden_models.script('make_peft_adapters')
  seed = int(np.random.default_rng().integers(2**31))
  settings = {'target_modules': 'all-linear', 'use_rslora': seed % 2 == 0}
  model = golden.make_adapted(family, settings, seed)
  golden.save(model, family, tmp_path / 'theirs')
  base = GOLDEN / 'hf' / family
  network, params = golden_models.load(base, adapter=tmp_path / 'theirs')
  inputs = golden.make_hf_models.make_inputs(family, seed=7)
  theirs = golden.make_hf_models.logits_of(model.merge_and_unload(), *inputs)
  np.testing.assert_allclose(golden_models.logits(network, params, *inputs), theirs, atol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_round_trip(family, tmp_path):
  """What we write, read back onto its base, is what our own merge makes of it."""
  network, base = golden_models.load(GOLDEN / 'hf' / family)
  method = lora.Lora(2, 3.0)
  like = jax.eval_shape(lambda: lora.init(method, base, jax.random.key(1)))
  rng = np.random.default_rng(1)
  adapters = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), like)
  expected = lora.merge(method, Adapted(jax.tree.map(np.asarray, base), adapters))
  where = str(GOLDEN / 'hf' / family)
  peft.save_adapters(adapters, network.config, tmp_path / 'peft', alpha=3.0, base_model=where)
  again, found = golden_models.load(tmp_path / 'peft')
  assert again.config == network.config
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


def test_each_device_reads_its_own_shard(tmp_path):
  """Of changed tensors, of rows that change places, and of replaced ones."""
  name, base = _copy('some_layers', tmp_path / 'adapter'), GOLDEN / 'hf' / 'mistral'
  network, expected = golden_models.load(name)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('model',))
  columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'model'))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=columns if x.ndim == 2 else None),
    golden_models.shapes(network),
  )
  found = hf.load(base, like, adapter=name)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_directory_of_an_adapter_is_its_base_with_it(tmp_path):
  """Network, weights; and both ways to name it are the same."""
  directory = _copy('patterns', tmp_path / 'adapter')
  network, params = golden_models.load(directory)
  base = GOLDEN / 'hf' / 'llama'
  assert network.config == hf.network(base).config
  _, again = golden_models.load(base, adapter=directory)
  jax.tree.map(np.testing.assert_array_equal, params, again)
  _, plain = golden_models.load(base)
  kernel = lambda tree: tree['decoder']['layers_0']['self_attention']['query']['kernel']
  assert np.abs(kernel(params) - kernel(plain)).max() > 0.1


def test_tokenizer_is_the_adapters_own_or_the_bases(tmp_path):
  directory = _copy('patterns', tmp_path / 'adapter')
  assert hf_directory.find(directory).tokenizer == GOLDEN / 'hf' / 'llama'
  (directory / 'tokenizer.json').write_text('{}')
  assert hf_directory.find(directory).tokenizer == directory


def test_directory_of_model_and_adapter(tmp_path):
  """It is not guessed which is meant; named twice, the adapter changes the model beside it."""
  directory = _copy('patterns', tmp_path / 'both')
  base = GOLDEN / 'hf' / 'llama'
  shutil.copytree(base, directory, dirs_exist_ok=True)
  with pytest.raises(ValueError, match='holds a model, and an adapter too') as caught:
    golden_models.load(directory)
  assert '\n' not in str(caught.value)
  _, params = golden_models.load(GOLDEN / 'hf' / 'llama', adapter=directory)
  found = hf.load(base, params, adapter=directory)
  jax.tree.map(np.testing.assert_array_equal, found, params)


def _settings(**changes):
  """Changes adapter_config.json."""

  def change(directory: pathlib.Path) -> None:
    values = json.loads((directory / CONFIG).read_text()) | changes
    (directory / CONFIG).write_text(json.dumps(values))

  return change


def _tensors(**changes):
  """Changes adapter_model.safetensors; None: the tensor is left out."""

  def change(directory: pathlib.Path) -> None:
    tensors = safetensors.numpy.load_file(directory / WEIGHTS) | changes
    tensors = {name: x for name, x in tensors.items() if x is not None}
    safetensors.numpy.save_file(tensors, directory / WEIGHTS)

  return change


def _pickled(directory: pathlib.Path) -> None:
  (directory / WEIGHTS).rename(directory / 'adapter_model.bin')


def _of_itself(directory: pathlib.Path) -> None:
  _settings(base_model_name_or_path=str(directory))(directory)


def _zeros(*shape):
  return np.zeros(shape, np.float32)


REFUSED = {
  'another kind': (_settings(peft_type='IA3'), "peft_type = 'IA3': only 'LORA'.*merge_and_unload"),
  'no kind': (_settings(peft_type=None), 'peft_type = None'),
  'DoRA': (_settings(use_dora=True), 'use_dora = True, which is not read.*merge_and_unload'),
  'biases of its own': (_settings(lora_bias=True), 'lora_bias = True'),
  'transposed': (_settings(fan_in_fan_out=True), 'fan_in_fan_out = True'),
  'copied layers': (_settings(layer_replication=[[0, 2]]), 'layer_replication = '),
  'a setting of the future': (_settings(use_xlora=1.5), 'use_xlora = 1.5, which is not read'),
  'a start that changes the base': (
    _settings(init_lora_weights='pissa_niter_4'),
    'pissa_niter_4.*path_initial_model_for_weight_conversion',
  ),
  'rank of no tensor': (_settings(r=4), 'the rank 4, where .* has 2: take both'),
  'rank of words': (_settings(r='two'), "has r = 'two', where a number"),
  'rank of 0': (_settings(r=0), 'has r = 0, where a number'),
  'alpha of nothing': (_settings(lora_alpha=None), 'lora_alpha = None, where a number'),
  'pattern that is none': (_settings(rank_pattern={'(': 2}), r'rank_pattern = .*no regular exp'),
  'patterns in a list': (_settings(alpha_pattern=['q']), 'alpha_pattern = .*no object'),
  'target that is none': (_settings(target_modules='*q'), 'no regular expression'),
  'target without tensors': (
    _settings(target_modules=['q_proj', 'v_proj', 'gate_proj', 'down_proj', 'o_proj']),
    r'does not adapt model\.layers\.0\.self_attn\.o_proj, which',
  ),
  'tensors without target': (
    _settings(target_modules=['q_proj', 'v_proj', 'gate_proj']),
    r'adapts model\.layers\.0\.mlp\.down_proj, which .* does not name',
  ),
  'excluded tensors': (_settings(exclude_modules=['q_proj']), 'q_proj, which .* does not name'),
  'saved module without tensor': (
    _settings(modules_to_save=['lm_head', 'embed_tokens']),
    "'embed_tokens' among modules_to_save, of which .* holds no tensor",
  ),
  'half of the factors': (
    _tensors(**{f'{Q}.lora_A.weight': None}),
    r'lacks the tensor .*q_proj\.lora_A\.weight: save',
  ),
  'factors of an unknown layer': (
    _tensors(**{f'{Q.replace("q_proj", "w_proj")}.lora_A.weight': _zeros(2, 16)}),
    r'adapts model\.layers\.0\.self_attn\.w_proj, and the base has no such',
  ),
  'an unknown tensor': (
    _tensors(**{'base_model.model.score.weight': _zeros(2, 16)}),
    r'holds the tensor base_model\.model\.score\.weight, which is not read',
  ),
  'factors of an embedding': (
    _tensors(**{'base_model.model.model.embed_tokens.lora_embedding_A': _zeros(2, 24)}),
    'lora_embedding_A, which is not read',
  ),
  'factors of another width': (
    _tensors(**{f'{Q}.lora_A.weight': _zeros(2, 12)}),
    r'q_proj\.weight as if it were \(16, 12\), but the base has it as \(16, 16\): name the model',
  ),
  'embedding of another length': (
    _tensors(**{'base_model.model.lm_head.weight': _zeros(28, 16)}),
    r'lm_head\.weight as if it were \(28, 16\), but the base has it as \(24, 16\)',
  ),
  'a number that is none': (
    _tensors(**{f'{Q}.lora_A.weight': _zeros(2, 16) + np.float32(np.nan)}),
    r'q_proj\.lora_A\.weight has weights that are NaN',
  ),
  'integers': (
    _tensors(**{f'{Q}.lora_A.weight': np.zeros((2, 16), np.int8)}),
    'is stored as I8, and quantised weights are not read',
  ),
  'truncated': (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), 'damaged'),
  'pickled': (_pickled, r'adapter_model\.bin is a pickle.*safe_serialization=True'),
  'without weights': (lambda d: (d / WEIGHTS).unlink(), r'No .*adapter_model\.safetensors: down'),
  'no JSON': (lambda d: (d / CONFIG).write_text('{'), r'adapter_config\.json is no JSON'),
  'base of nothing': (
    _settings(base_model_name_or_path=None),
    'base_model_name_or_path = None, .*: name its base, .* and this directory as its adapter',
  ),
  'base that is gone': (
    _settings(base_model_name_or_path='/no/such/base'),
    "holds a PEFT adapter of '/no/such/base', which is not here .*name its base",
  ),
  'base that is an adapter': (_of_itself, 'is an adapter itself, and no model for the adapter'),
  'base of another family': (
    _settings(base_model_name_or_path=str(GOLDEN / 'hf' / 't5_1_1')),
    'adapts model.layers.0.mlp.down_proj, and the base has no such linear layer: name the model',
  ),
}


ENDLESS = {
  'groups in groups': '((.+)+)+!',
  'alternatives that are alike': '(a|.|o|..)*!',
  'optional ones': '.?' * 40 + '!',
  'one after the other': '.*' * 12 + '!',
  'a number of times': '(.+){20}!',
  'lazily': '(?:(?:.+?)+?)+?!',
  'ahead': '(?=((.+)+)+!)',
  'nothing, for ever': '((){9999}){9999}',
  'a number that is too large': '(){99999999999999}',
  'too deep': '(' * 5000 + ')' * 5000,
}


@pytest.mark.parametrize('kind', ENDLESS)
@pytest.mark.parametrize(
  'key', ['target_modules', 'exclude_modules', 'rank_pattern', 'alpha_pattern']
)
def test_expression_that_could_take_for_ever_is_refused(kind, key, tmp_path):
  directory, expression = _copy('patterns', tmp_path / 'adapter'), ENDLESS[kind]
  _settings(**{key: {expression: 2} if 'pattern' in key else expression})(directory)
  with pytest.raises(
    ValueError, match=rf'adapter_config\.json has {key} = .*(ways: write|correct it)'
  ) as caught:
    golden_models.load(directory)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
  ('expression', 'names', 'others'),
  [
    (r'.*\.(q|v)_proj', (Q_MODULE, V_MODULE), (DOWN,)),
    (r'model\.layers\.(\d+)\.self_attn\.(q_proj|v_proj)', (Q_MODULE, V_MODULE), (DOWN,)),
    (r'^(?!.*lm_head).*$', (Q_MODULE, DOWN), ('lm_head',)),
    (
      r'(?:model\.)?layers\.[0-9]{1,2}\..*\.(q|k|v|o|gate|up|down)_proj',
      (Q_MODULE, DOWN),
      ('lm_head',),
    ),
    (r'.*layers.*(self_attn|mlp).*_proj.*', (Q_MODULE, DOWN), ('lm_head',)),
    (
      '|'.join(rf'model\.layers\.{i}\.mlp\.(up|down)_proj' for i in range(80)),
      (DOWN,),
      (Q_MODULE,),
    ),
  ],
)
def test_ordinary_expressions_match(expression, names, others, tmp_path):
  matches = lambda module, **settings: peft_reader._matches(
    tmp_path, 'target_modules', expression, module, **settings
  )
  assert all(map(matches, names)) and not any(map(matches, others))
  assert all(matches(name, ends=True) for name in names)


def test_most_ways_take_no_time(tmp_path):
  """The worst that is allowed, on a name of usual length that does not match."""
  name = 'base.model.model.layers.17.self_attn.q_proj'
  for expression in ('.*' * 5 + '!', '.?' * 16 + '!', '(?:.|..)' * 16 + '!', '(.*)' * 5 + '[!?]'):
    start = time.perf_counter()
    assert not peft_reader._matches(tmp_path, 'rank_pattern', expression, name, ends=True)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize('kind', REFUSED)
def test_refused(kind, tmp_path):
  directory = _copy('patterns', tmp_path / 'adapter')
  change, message = REFUSED[kind]
  change(directory)
  with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
    golden_models.load(directory)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'tensors', 'message'),
  [
    (
      {'modules_to_save': ['embed_tokens']},
      {'base_model.model.model.embed_tokens.weight': _zeros(24, 16)},
      'both embedding and output layer',
    ),
    (
      {'target_modules': ['lm_head']},
      {'base_model.model.lm_head.lora_A.weight': _zeros(2, 16)},
      'adapts lm_head, which in the base is the embedding model.embed_tokens.weight',
    ),
  ],
)
def test_output_layers_that_are_embeddings_are_not_untied(changes, tensors, message, tmp_path):
  directory = _copy('biases', tmp_path / 'adapter')
  _settings(**changes)(directory)
  _tensors(**tensors)(directory)
  with pytest.raises(ValueError, match=message):
    golden_models.load(directory)


def test_second_adapter_is_refused(tmp_path):
  one, other = _copy('patterns', tmp_path / 'one'), _copy('patterns', tmp_path / 'other')
  with pytest.raises(ValueError, match='is an adapter itself, and no model for the adapter'):
    golden_models.load(one, adapter=other)
  with pytest.raises(FileNotFoundError, match=r'No .*adapter_config\.json: name the directory of'):
    golden_models.load(GOLDEN / 'hf' / 'llama', adapter=GOLDEN / 'hf' / 'llama')
