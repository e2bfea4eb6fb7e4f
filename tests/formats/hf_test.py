"""Models of Hugging Face: logits equal theirs, files make the round trip bit by bit, and what is amiss is named."""

import dataclasses
import json
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from nlhf_jax.formats import hf, hf_directory, hf_layout, hf_models
from tests import tiny
from tests.formats import golden_models
from tests.formats.golden_models import FAMILIES, GOLDEN, load, logits, shapes


@pytest.mark.parametrize('family', FAMILIES)
def test_recorded_logits(family):
  network, params = load(GOLDEN / 'hf' / family)
  with np.load(GOLDEN / 'hf' / family / 'logits.npz', allow_pickle=False) as golden:
    found = logits(network, params, golden['prompts'], golden['responses'])
    np.testing.assert_allclose(found, golden['logits'], atol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_live_logits_before_and_after_export(family, tmp_path):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  golden = golden_models.script('make_hf_models')
  model = golden.make_model(family, seed=int(np.random.default_rng().integers(2**31)))
  model.save_pretrained(tmp_path / 'theirs')
  network, params = load(tmp_path / 'theirs')
  inputs = golden.make_inputs(family, seed=7)
  theirs = golden.logits_of(model, *inputs)
  np.testing.assert_allclose(logits(network, params, *inputs), theirs, atol=1e-4)
  hf.save(params, network.config, tmp_path / 'ours')
  again = type(model).from_pretrained(tmp_path / 'ours', attn_implementation='eager').eval()
  np.testing.assert_allclose(golden.logits_of(again, *inputs), theirs, atol=1e-4)


@pytest.mark.parametrize('family', ['llama', 'qwen2_5', *FAMILIES[6:]])
def test_cached_decoding_equals_uncached(family):
  """Ragged prompts, and two lanes to each."""
  network, params = load(GOLDEN / 'hf' / family)
  with np.load(GOLDEN / 'hf' / family / 'logits.npz', allow_pickle=False) as golden:
    prompts = jnp.asarray(golden['prompts'])
  responses = np.random.default_rng(0).integers(10, 24, (6, 8)).astype(np.int32)
  inputs = np.pad(responses, [(0, 0), (1, 0)])[:, :-1]
  expected = jax.jit(network.apply)({'params': params}, prompts, inputs, responses)
  step, cache = tiny.compiled_step(network.incremental(), params, prompts, 2, 8)
  found = []
  for token in inputs.T:
    logits, cache = step(cache, jnp.asarray(token))
    found.append(logits)
  np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_round_trip(family, dtype, tmp_path):
  """Split into files, too; bfloat16 in and bfloat16 out."""
  network, params = load(GOLDEN / 'hf' / family)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  hf.save(params, network.config, tmp_path / 'model', max_shard_bytes=4000)
  assert len(list((tmp_path / 'model').glob('*.safetensors'))) > 2
  again = hf.network(tmp_path / 'model')
  assert vars(again.config) == vars(network.config)
  loaded = hf.load(tmp_path / 'model', jax.eval_shape(lambda: params))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}


def test_each_device_reads_its_own_shard(tmp_path):
  """Rows of the embedding, of which two change places, and columns of the kernels."""
  network, params = load(GOLDEN / 'hf' / 'qwen2_5')
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('model',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('model'))
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), params)
  loaded = hf.load(GOLDEN / 'hf' / 'qwen2_5', like)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert {x.sharding for x in jax.tree.leaves(loaded)} == {rows}
  with safetensors.safe_open(GOLDEN / 'hf/qwen2_5/model.safetensors', 'np') as file:
    stored = file.get_slice('model.embed_tokens.weight')
    moved = hf.moved_ids(network.config)
    slices = lambda *rows: hf._moved_rows(stored, (slice(*rows), slice(0, 16)), moved)
    gathered, shards = slices(0, 24), [slices(n, n + 6) for n in range(0, 24, 6)]
  np.testing.assert_array_equal(np.concatenate(shards), gathered)
  np.testing.assert_array_equal(gathered, params['token_embedder']['embedding'])


@pytest.fixture
def broken(tmp_path):
  """A model whose tensors a test may change before it is read."""
  directory = tmp_path / 'model'
  shutil.copytree(GOLDEN / 'hf' / 't5_1_0', directory)
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')

  def change(**changes):
    for name, value in changes.items():
      if value is None:
        del tensors[name]
      else:
        tensors[name] = value
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors')
    return load(directory)

  return change


def test_error_of_a_missing_tensor(broken):
  name = 'decoder.block.0.layer.1.EncDecAttention.k.weight'
  path = 'decoder/layers_0/encoder_decoder_attention/key/kernel'
  with pytest.raises(ValueError, match=rf'lacks the tensor {name}, our {path}'):
    broken(**{name: None})


def test_error_of_an_extra_tensor(broken):
  with pytest.raises(ValueError, match=r'holds the tensor encoder\.extra\.weight'):
    broken(**{'encoder.extra.weight': np.zeros(3, np.float32)})


def test_error_of_a_misshapen_fused_tensor(tmp_path):
  shutil.copytree(GOLDEN / 'hf' / 'phi3', tmp_path / 'model')
  tensors = safetensors.numpy.load_file(tmp_path / 'model' / 'model.safetensors')
  tensors['model.layers.0.mlp.gate_up_proj.weight'] = np.zeros((42, 16), np.float32)
  safetensors.numpy.save_file(tensors, tmp_path / 'model' / 'model.safetensors')
  with pytest.raises(ValueError, match=r'gate_up_proj.*\(16, 42\).*\(16, 20\)'):
    load(tmp_path / 'model')


def test_error_of_a_misshapen_tensor(broken):
  with pytest.raises(ValueError, match=r'relative_attention_bias.*\(3, 30\).*\(3, 32\)'):
    name = 'encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
    broken(**{name: np.zeros((30, 3), np.float32)})


def test_second_name_of_the_embedding(broken):
  """A tied output layer may be stored under both names, or once."""
  path = GOLDEN / 'hf' / 't5_1_0' / 'model.safetensors'
  embedding = safetensors.numpy.load_file(path)['shared.weight']
  _, params = broken(**{'lm_head.weight': embedding})
  assert 'logits_dense' not in params['decoder']


def test_error_of_a_pickle(tmp_path):
  shutil.copy(GOLDEN / 'hf/t5_1_0/config.json', tmp_path)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'\x80')
  with pytest.raises(ValueError, match=r'is a pickle.*save_pretrained'):
    load(tmp_path)


def test_error_of_a_file_elsewhere(tmp_path):
  shutil.copy(GOLDEN / 'hf/t5_1_0/config.json', tmp_path)
  index = {'weight_map': {'shared.weight': '../../secret.safetensors'}}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(ValueError, match='not a file beside it'):
    load(tmp_path)


def test_error_of_a_missing_file(tmp_path):
  shutil.copytree(GOLDEN / 'hf' / 'mistral', tmp_path / 'model')
  (tmp_path / 'model/model-00002-of-00004.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='model-00002-of-00004'):
    load(tmp_path / 'model')


def test_error_of_an_unreachable_hub(monkeypatch):
  import huggingface_hub

  def fail(*args, **kwargs):
    raise ConnectionError('no route\nto host')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(FileNotFoundError, match='hub has not given it') as caught:
    hf_directory.locate('hf://some/model')
  assert '\n' not in str(caught.value)
  with pytest.raises(FileNotFoundError, match='No directory'):
    hf_directory.locate('/no/such/directory')


def test_the_hub_is_asked_for_what_is_said_to_be_there(monkeypatch, tmp_path, caplog):
  """By hf:// alone, at the revision that is given; without one, the log says which it was."""
  import huggingface_hub

  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision))
    assert not any(pattern.endswith(('.py', '.bin', '.pt')) for pattern in allow_patterns)
    return str(tmp_path / 'c0ffee')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  with pytest.raises(
    FileNotFoundError, match=r'No directory models/smol: .* hf://models/smol if you'
  ):
    hf_directory.locate('models/smol')
  for wrong in ('hf://smol', 'hf://a/b/c', 'hf://../x/y'):
    with pytest.raises(FileNotFoundError, match='is no name on the hub: write hf://OWNER/NAME@REV'):
      hf_directory.locate(wrong)
  assert not asked
  assert hf_directory.locate('hf://some/model@v1.0') == tmp_path / 'c0ffee'
  assert not caplog.text
  hf_directory.locate('hf://some/model')
  assert 'hf://some/model@c0ffee pins it' in caplog.text
  assert asked == [('some/model', 'v1.0'), ('some/model', None)]


def test_an_adapter_here_does_not_ask_the_hub_for_its_base(monkeypatch, tmp_path):
  """Its own file names the base, and it may be a stranger's."""
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *args, **kwargs: pytest.fail())
  config = {'base_model_name_or_path': 'some/model', 'revision': 'main'}
  (tmp_path / 'adapter_config.json').write_text(json.dumps(config))
  with pytest.raises(
    FileNotFoundError, match=r"adapter of 'some/model', which is not here .*name its"
  ):
    hf_directory.find(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'gpt2'}, "model_type 'gpt2'"),
    ({'rope_parameters': {'rope_type': 'mrope'}}, "rope_type = 'mrope': only .*yarn"),
    ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor = 0.5: only 1.0'),
    ({'hidden_act': 'gelu'}, "hidden_act = 'gelu'"),
    ({'attention_bias': True}, 'attention_bias = True'),
    ({'model_type': 'qwen3', 'use_sliding_window': True}, 'use_sliding_window = True'),
    ({'model_type': 'gemma2', 'hidden_activation': 'gelu'}, "hidden_activation = 'gelu': only"),
    ({'num_key_value_heads': 3}, 'num_heads = 4 is no multiple'),
  ],
)
def test_errors_of_what_the_networks_lack(changes, message):
  values = json.loads((GOLDEN / 'hf/llama/config.json').read_text())
  with pytest.raises(ValueError, match=message):
    hf_models.config_from_json({**values, **changes})


def test_error_of_a_network_that_no_family_has(tmp_path):
  network, params = load(GOLDEN / 'hf' / 'qwen2_5')
  config = dataclasses.replace(network.config, sliding_window=3)
  with pytest.raises(
    ValueError, match='qwen2 comes closest, with sliding_window = None in place of 3'
  ):
    hf.save(params, config, tmp_path / 'model')


def test_error_of_an_existing_directory(tmp_path):
  network, params = load(GOLDEN / 'hf' / 'smollm2')
  with pytest.raises(FileExistsError, match='name another directory'):
    hf.save(params, network.config, tmp_path)


@pytest.mark.parametrize(
  ('values', 'ids', 'found'),
  [
    ({'pad_token_id': 7, 'eos_token_id': 2}, {}, (7, 2)),
    ({'pad_token_id': 2, 'eos_token_id': 2}, {}, (0, 2)),
    ({'pad_token_id': -1, 'eos_token_id': 2}, {}, (0, 2)),
    ({'pad_token_id': 2, 'eos_token_id': [1, 2]}, {}, (2, 1)),
    ({'pad_token_id': 3, 'eos_token_id': 0}, {}, (3, 0)),
    ({'eos_token_id': 2}, {'pad': 5}, (5, 2)),
    ({'eos_token_id': [2, 3, 2, 5], 'pad_token_id': 4}, {}, (4, 2, (3, 5))),
    ({'eos_token_id': [2, 3], 'pad_token_id': 4}, {'eos': 3}, (4, 3, (2,))),
  ],
)
def test_special_ids(values, ids, found):
  assert hf.special_ids(values, hf.Ids(**ids)) == hf.SpecialIds(*found)


@pytest.mark.parametrize(
  ('values', 'error'),
  [
    ({'pad_token_id': None}, 'names no token that ends a response: give its id as ids.eos'),
    ({'eos_token_id': 0}, 'ends responses with id 0 and names no other for padding: .* as ids.pad'),
  ],
)
def test_special_ids_that_are_missing(values, error):
  with pytest.raises(ValueError, match=error):
    hf.special_ids(values)


def test_ends_of_all_files_count(tmp_path):
  """config.json's first, then generation_config.json's, then the tokenizer's; and all of them are exported."""
  shutil.copytree(GOLDEN / 'hf' / 'smollm2', tmp_path / 'model')
  write = lambda name, **values: (tmp_path / 'model' / name).write_text(json.dumps(values))
  config = json.loads((tmp_path / 'model' / 'config.json').read_text())
  write('config.json', **(config | {'eos_token_id': 7, 'pad_token_id': None, 'bos_token_id': 5}))
  write('generation_config.json', eos_token_id=[9, 7], pad_token_id=3)
  write('tokenizer_config.json', eos_token={'content': '<end>'})
  write('tokenizer.json', added_tokens=[{'content': '<end>', 'id': 1}])
  network, params = load(tmp_path / 'model')
  found = network.config
  # Ours of 9 is 9; their 1 has changed places with the end.
  assert (found.pad_id, found.eos_id, found.other_ends) == (3, 7, (9, 7))
  hf.save(params, found, tmp_path / 'saved', dtype='bfloat16')
  saved = json.loads((tmp_path / 'saved' / 'config.json').read_text())
  assert saved['eos_token_id'] == [7, 9, 1]
  assert saved['bos_token_id'] == 5
  assert saved['max_position_embeddings'] == config['max_position_embeddings']
  assert saved['torch_dtype'] == 'bfloat16'
  generation = json.loads((tmp_path / 'saved' / 'generation_config.json').read_text())
  assert generation == {'bos_token_id': 5, 'eos_token_id': [7, 9, 1], 'pad_token_id': 3}


@pytest.mark.parametrize('content', ['', '{', '[]', '\udc80'])
def test_damaged_config_is_named(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content.encode(errors='surrogateescape'))
  with pytest.raises(ValueError, match=r'config.json .*: download it again'):
    hf.read_config(tmp_path)


@pytest.mark.parametrize(
  ('pad_id', 'eos_id', 'order'),
  [
    (0, 1, [0, 1, 2, 3, 4]),
    (0, 2, [0, 2, 1, 3, 4]),
    (4, 2, [4, 2, 1, 3, 0]),
    (1, 0, [1, 0, 2, 3, 4]),
    (3, 0, [3, 0, 2, 1, 4]),
    (1, 2, [1, 2, 0, 3, 4]),
  ],
)
def test_moved_ids(pad_id, eos_id, order):
  ids = np.arange(5)
  moved = hf_layout.moved_ids(pad_id, eos_id)
  ids[list(moved)] = list(moved.values())
  assert ids.tolist() == order


def test_distinct_names_of_all_leaves():
  for family in FAMILIES:
    network = hf.network(GOLDEN / 'hf' / family)
    paths = flax.traverse_util.flatten_dict(shapes(network))
    tensor_for = hf_models.tensor_for(network.config)
    assert len({tensor_for(path) for path in paths}) == len(paths)
