"""Directories of models that are damaged or not supported: one line each, which names the value, the file and the remedy."""

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from nlhf_jax.cli import main
from nlhf_jax.data import vocabularies
from nlhf_jax.formats import hf, hf_directory
from tests.formats import golden_models

CONFIG, WEIGHTS, TOKENIZER = 'config.json', 'model.safetensors', 'tokenizer.json'
GENERATION, SETTINGS = 'generation_config.json', 'tokenizer_config.json'
INDEX, SHARD = 'model.safetensors.index.json', 'model-00002-of-00003.safetensors'
QUERY = 'model.layers.0.self_attn.q_proj.weight'


def write(file: str, content: str | bytes):
  """In place of a file."""
  data = content if isinstance(content, bytes) else content.encode()
  return lambda directory: (directory / file).write_bytes(data)


def changed(file: str, **changes):
  """A JSON file with other values; ... is none at all."""

  def change(directory: pathlib.Path) -> None:
    path = directory / file
    values = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: x for key, x in values.items() if x is not ...}))

  return change


def config(**changes):
  """Another config.json."""
  return changed(CONFIG, **changes)


def rope(**values):
  """Other rotary positions."""
  return config(rope_parameters=values, original_max_position_embeddings=32)


def tensors(**changes):
  """Other weights; None: the tensor is missing."""

  def change(directory: pathlib.Path) -> None:
    kept = safetensors.numpy.load_file(directory / WEIGHTS) | changes
    kept = {name: x for name, x in kept.items() if x is not None}
    safetensors.numpy.save_file(kept, directory / WEIGHTS)

  return change


def remove(file: str):
  """Without a file."""
  return lambda directory: (directory / file).unlink()


def truncate(file: str, num_bytes: int):
  """Without its end."""
  return lambda d: (d / file).write_bytes((d / file).read_bytes()[:-num_bytes])


def both(one, other):
  """One after the other."""
  return lambda directory: (one(directory), other(directory))


def sharded(then):
  """In several files, and then something."""

  def change(directory: pathlib.Path) -> None:
    network, params = golden_models.load(directory)
    apart = directory.with_name('sharded')
    hf.save(params, network.config, apart, max_shard_bytes=2000)
    (directory / WEIGHTS).unlink()
    shutil.copytree(apart, directory, dirs_exist_ok=True)
    assert (directory / SHARD).is_file()
    then(directory)

  return change


def pickled(directory: pathlib.Path) -> None:
  """In PyTorch's own format alone."""
  (directory / WEIGHTS).rename(directory / 'pytorch_model.bin')


def emptied(directory: pathlib.Path) -> None:
  """Nothing is left."""
  for path in directory.iterdir():
    path.unlink()


def as_a_file(directory: pathlib.Path) -> None:
  """The directory's name is that of a file."""
  shutil.rmtree(directory)
  directory.write_text('')


def untie(directory: pathlib.Path) -> None:
  """The output layer is another than the embedding, which config.json ties."""
  tensors(**{'lm_head.weight': np.ones((259, 8), np.float32)})(directory)


NAN = np.full((8, 8), np.nan, np.float32)
# Name -> how a good model is spoilt, and what is said.
KINDS = {
  # config.json.
  'config: missing': (remove(CONFIG), r'No .*config\.json: name the directory of a model'),
  'config: empty': (write(CONFIG, ''), r'config\.json is no JSON .*: download it again'),
  'config: truncated': (truncate(CONFIG, 9), r'config\.json is no JSON .*: download it again'),
  'config: not UTF-8': (write(CONFIG, b'\xff\xfe{}'), r'config\.json is no JSON'),
  'config: an array': (write(CONFIG, '[]'), r'config\.json holds no JSON object: download'),
  'config: brackets without end': (write(CONFIG, '[' * 100_000), r'config\.json is no JSON'),
  'config: a key twice': (
    write(CONFIG, '{"hidden_size": 8, "hidden_size": 16}'),
    r"config\.json is no JSON .the key 'hidden_size' stands twice",
  ),
  'config: a number without end': (
    write(CONFIG, '{"hidden_size": ' + '9' * 5000 + '}'),
    r'config\.json is no JSON',
  ),
  'type: unknown': (config(model_type='gpt2'), r"config\.json is of model_type 'gpt2'.*take one"),
  'type: none': (config(model_type=...), 'model_type None, which is not supported'),
  'type: a list': (config(model_type=['llama']), r"model_type \['llama'\], which is not"),
  'type: experts': (config(model_type='mixtral'), "model_type 'mixtral', which is not supported"),
  'type: of text and images': (config(model_type='gemma3'), "model_type 'gemma3', which is not"),
  'activation': (config(hidden_act='gelu'), r"config\.json has hidden_act = 'gelu': only 'silu'"),
  'quantised: 8 bits': (
    config(quantization_config={'quant_method': 'fp8'}),
    "quant_method 'fp8', and quantised weights are not read: take the model in bfloat16",
  ),
  'rope: unknown': (rope(rope_type='mrope'), "rope_type = 'mrope': only .*take another model"),
  'rope: a list': (rope(rope_type=['yarn']), r"rope_type = \['yarn'\]: only"),
  'rope: a word': (config(rope_parameters='yarn'), "rope_parameters = 'yarn', where an object"),
  'rope: no factor': (rope(rope_type='linear'), 'lacks factor, a number above 0: download'),
  'rope: negative factor': (rope(rope_type='linear', factor=-2.0), 'factor = -2.0, where a number'),
  'rope: frequencies': (
    rope(rope_type='llama3', factor=2, low_freq_factor=4, high_freq_factor=4),
    'low_freq_factor = 4.0, which must be below',
  ),
  'rope: long factors': (
    rope(rope_type='longrope', factor=2, short_factor=[1], long_factor=[1, 2]),
    'a short_factor of 1 numbers for 2 rotations',
  ),
  'base: NaN': (config(rope_theta=float('nan')), 'rope_theta = nan, where a number above 0'),
  'sizes: missing': (config(hidden_size=...), 'lacks hidden_size, a whole number above 0'),
  'sizes: zero': (config(num_hidden_layers=0), 'num_hidden_layers = 0, where a whole number'),
  'sizes: negative': (config(intermediate_size=-16), 'intermediate_size = -16, where a whole'),
  'sizes: a word': (config(vocab_size='259'), "vocab_size = '259', where a whole number"),
  'sizes: a fraction': (config(num_attention_heads=2.5), 'num_attention_heads = 2.5, where'),
  'sizes: null': (config(hidden_size=None), 'hidden_size = None, where a whole number'),
  'sizes: a truth': (config(head_dim=True), 'head_dim = True, where a whole number'),
  'sizes: odd heads': (config(head_dim=5), 'heads of 5 features, which must be even'),
  'sizes: heads': (
    config(num_attention_heads=3, num_key_value_heads=3, head_dim=None),
    'hidden_size = 8, which is no multiple of num_attention_heads = 3',
  ),
  'sizes: groups': (config(num_key_value_heads=3), r'config\.json: num_heads = 2 is no multiple'),
  'sizes: other weights': (
    config(intermediate_size=20),
    r'model\.safetensors: tensor .* is \(8, 16',
  ),
  'norms': (config(rms_norm_eps='small'), "rms_norm_eps = 'small', where a number above 0"),
  'ties: a word': (config(tie_word_embeddings='yes'), "tie_word_embeddings = 'yes', where true"),
  'ties: an output layer apart': (untie, 'lm_head.weight differs from .*set tie_word_embeddings'),
  'ties: no output layer': (
    config(tie_word_embeddings=False),
    r'lacks the tensor lm_head\.weight, our decoder/logits_dense/kernel: take weights and',
  ),
  'layers: too few': (
    config(model_type='smollm3', num_hidden_layers=2, no_rope_layers=[1]),
    r'no_rope_layers = \[1\], where a list of \(0, 1\) for each of 2 layers',
  ),
  'ids: a word': (config(eos_token_id='<|end|>'), r"config\.json has eos_token_id = '<|end|>'"),
  'ids: a fraction': (config(eos_token_id=[2.0]), r'eos_token_id = \[2.0\], where an id is needed'),
  'ids: negative': (
    both(config(eos_token_id=-2), remove(GENERATION)),
    'names no token that ends a response: give its id as ids.eos',
  ),
  'ids: beyond': (config(eos_token_id=[2, 400]), 'id 400 for an end, but embeddings of 0 to 258'),
  'ids: padding beyond': (config(pad_token_id=259), 'id 259 for padding, .* as ids.pad'),
  'ids: of generation': (changed(GENERATION, eos_token_id={}), r'generation_config\.json has eos_'),
  'generation: damaged': (write(GENERATION, '{'), r'generation_config\.json is no JSON'),
  # Weights.
  'weights: missing': (remove(WEIGHTS), r'No model\.safetensors and no .*: download them'),
  'weights: empty': (write(WEIGHTS, b''), r'model\.safetensors is damaged .*: download it again'),
  'weights: truncated': (truncate(WEIGHTS, 99), r'model\.safetensors is damaged .*: download it'),
  'weights: another format': (write(WEIGHTS, b'\x00' * 64), r'model\.safetensors is damaged'),
  'weights: a page of a hub': (write(WEIGHTS, b'<html>not found</html>'), 'is damaged'),
  'weights: pickled': (pickled, r'pytorch_model\.bin is a pickle.*save_pretrained'),
  'weights: a tensor is missing': (tensors(**{QUERY: None}), rf'lacks the tensor {QUERY}, our'),
  'weights: a tensor too many': (
    tensors(**{f'{QUERY}_scale': np.ones(1, np.float32)}),
    'holds the tensor .*weight_scale, which the network lacks: take weights and config.json from',
  ),
  'weights: another shape': (
    tensors(**{QUERY: np.zeros((8, 12), np.float32)}),
    r'safetensors: tensor .*q_proj\.weight is \(12, 8\) in our layout, .* is \(8, 8\): use',
  ),
  'weights: another rank': (
    tensors(**{QUERY: np.zeros(64, np.float32)}),
    r'tensor .*q_proj\.weight is \(64,\) in our layout',
  ),
  'weights: NaN': (tensors(**{QUERY: NAN}), r'q_proj\.weight has weights that are NaN or inf'),
  'weights: infinite': (
    tensors(**{QUERY: np.full((8, 8), np.inf, np.float16)}),
    'has weights that are NaN or infinite: download it again, or save it in bfloat16',
  ),
  'weights: 8 bits': (
    tensors(**{QUERY: np.ones((8, 8), np.int8)}),
    r'q_proj\.weight is stored as I8, and quantised weights are not read: take the model',
  ),
  'index: damaged': (sharded(write(INDEX, '{"weight_map"')), r'index\.json is no JSON'),
  'index: without a map': (sharded(write(INDEX, '{}')), 'has no weight_map from tensors to files'),
  'index: a map of numbers': (sharded(changed(INDEX, weight_map={'a': 1})), 'has no weight_map'),
  'index: a file elsewhere': (
    sharded(changed(INDEX, weight_map={'a': '../../x.safetensors'})),
    r"names '\.\./\.\./x.safetensors', which is not a file beside it",
  ),
  'index: a file is missing': (sharded(remove(SHARD)), rf'No .*{SHARD}, which .* names: download'),
  'index: a file is truncated': (sharded(truncate(SHARD, 9)), f'{SHARD} is damaged'),
  'index: a tensor is elsewhere': (
    sharded(lambda d: shutil.copy(d / 'model-00001-of-00003.safetensors', d / SHARD)),
    f'{SHARD} lacks the tensor .*, which .* places there: download both again',
  ),
  # The tokenizer.
  'tokenizer: missing': (remove(TOKENIZER), r'No .*tokenizer\.json: name the directory'),
  'tokenizer: damaged': (truncate(TOKENIZER, 50), r'tokenizer\.json is no JSON'),
  'tokenizer: of another kind': (write(TOKENIZER, '{"a": 1}'), 'is no tokenizer .*: download it'),
  'tokenizer: words without ids': (
    changed(TOKENIZER, added_tokens=['<|end|>']),
    'which are no tokens with ids: download it again',
  ),
  'tokenizer: a part that panics': (
    changed(TOKENIZER, normalizer={'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'}),
    'is no tokenizer .Precompiled: .*: download it again',
  ),
  'tokenizer: parts that do not know each other': (
    changed(
      TOKENIZER,
      post_processor={
        'type': 'TemplateProcessing',
        'single': [{'SpecialToken': {'id': '<q>', 'type_id': 0}}],
        'pair': [],
        'special_tokens': {},
      },
    ),
    'is no tokenizer .*: download it again',
  ),
  'tokenizer: larger than the embedding': (config(vocab_size=250), 'has id 258, but config.json'),
  'settings: damaged': (write(SETTINGS, 'no'), r'tokenizer_config\.json is no JSON'),
  'template: missing': (write(SETTINGS, '{}'), 'has no chat template: set chat = False'),
  'template: does not compile': (
    changed(SETTINGS, chat_template='{% for m in %}'),
    'the chat template fails .TemplateSyntaxError: .*correct .*or set chat = False',
  ),
  'template: divides by zero': (
    changed(SETTINGS, chat_template='{{ 1 / 0 }}'),
    'the chat template fails .ZeroDivisionError',
  ),
  'template: without bounds': (
    changed(SETTINGS, chat_template="{{ 'x' * 10**10 }}"),
    'the chat template fails .ExceededError: it makes too long a text',
  ),
  'template: not UTF-8': (
    write('chat_template.jinja', b'{{ messages }}\n\xff'),
    r'chat_template\.jinja:2: not UTF-8 .byte 0xff at column 1',
  ),
  'template: a number': (changed(SETTINGS, chat_template=3), 'has chat_template = 3, which is no'),
  'template: a list of numbers': (
    changed(SETTINGS, chat_template=[1]),
    'has a list as chat_template that is not of names and templates',
  ),
  # The directory.
  'directory: empty': (emptied, r'No .*tokenizer\.json: name the directory of a model'),
  'directory: a file': (as_a_file, 'is a file: name the directory that holds config.json'),
  'directory: none': (shutil.rmtree, 'No directory .*: name one that holds config.json'),
}
# Those of which the command line shows that they end it; each is refused at another place.
ON_THE_COMMAND_LINE = (
  'config: truncated',
  'type: unknown',
  'sizes: groups',
  'ids: beyond',
  'weights: truncated',
  'weights: NaN',
  'weights: another shape',
  'index: a file is missing',
  'tokenizer: of another kind',
  'template: does not compile',
  'directory: none',
)


@pytest.fixture
def model(chat_model, tmp_path) -> pathlib.Path:
  """A good one, to be spoilt."""
  return shutil.copytree(chat_model, tmp_path / 'model')


def _read(directory: pathlib.Path):
  vocabularies.hugging_face(str(directory), chat=True)
  return golden_models.load(directory)


def test_good_model_is_read(model):
  """In one file and in several."""
  _read(model)
  sharded(_read)(model)


@pytest.mark.parametrize('kind', KINDS)
def test_one_line(kind, model):
  spoil, message = KINDS[kind]
  spoil(model)
  with pytest.raises((ValueError, OSError), match=message) as caught:
    _read(model)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('command', ['train', 'sample'])
@pytest.mark.parametrize('kind', ON_THE_COMMAND_LINE)
def test_one_line_of_the_command(kind, command, model, few_abstracts, tmp_path, capsys):
  spoil, message = KINDS[kind]
  spoil(model)
  own = {
    'train': [
      f'--run_dir={tmp_path / "run"}',
      '--gin.NUM_STEPS=1',
      '--gin.BATCH_SIZE=2',
      '--gin.optimizers.warmup_linear.warmup_steps=0',
    ],
    'sample': ['--gin_file=configs/experiments/smollm2/evaluation.gin', '--prompt=Why?'],
  }
  argv = [command, '--gin_file=configs/experiments/smollm2/sft.gin', *own[command]]
  status = main.main([*argv, f'--data_dir={few_abstracts}', f"--gin.MODEL_DIR='{model}'"])
  _assert_one_line(status, capsys, message)
  assert not (tmp_path / 'run').exists()


def _assert_one_line(status: int, capsys, message: str) -> None:
  output = capsys.readouterr()
  assert (status, output.out) == (2, '')
  (line,) = [x for x in output.err.splitlines() if x.strip()]
  assert re.search(message, line), line


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
@pytest.mark.parametrize('file', [CONFIG, WEIGHTS])
def test_without_permission(file, model):
  (model / file).chmod(0)
  with pytest.raises(PermissionError, match=rf'{file} may not be read by this user: allow it'):
    _read(model)


def test_repository_that_the_hub_lacks(monkeypatch):
  """Nothing answers there."""
  import huggingface_hub

  def fail(*args, **kwargs):
    raise ConnectionError('no route\nto host')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(FileNotFoundError, match=r'hub has not given it, .*: name a dir') as caught:
    hf_directory.find('hf://no-such-owner/no-such-model')
  assert '\n' not in str(caught.value)
