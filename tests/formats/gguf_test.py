"""GGUF: the same logits as the model that the file was made of, and its tokenizer."""

import json
import pathlib
import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from nlhf_jax.cli import main
from nlhf_jax.formats import gguf, hf
from nlhf_jax.networks import llama

writer = pytest.importorskip('gguf')
TOKENS = ['<|none|>', '<|start|>', '<|end|>', *'abcdefghij0123456789 ', 'ab', 'Ġ', 'abc']
CONFIG = llama.LlamaConfig(
  vocab_size=len(TOKENS),
  dtype='float32',
  emb_dim=32,
  num_heads=4,
  num_kv_heads=2,
  num_layers=2,
  head_dim=8,
  mlp_dim=64,
  rope_base=1e3,
  logits_via_embedding=True,
  eos_id=2,
)


def _interleaved(x, heads):
  """Their order of rows: pairs that are rotated together are neighbours."""
  return x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


@pytest.fixture(scope='module')
def params():
  network = llama.Transformer(CONFIG)
  dummy = jnp.ones((1, 2), jnp.int32)
  like = jax.eval_shape(lambda: network.init(jax.random.key(0), dummy, dummy, dummy)['params'])
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), like)


@pytest.fixture(scope='module')
def file(params, tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('gguf') / 'tiny.gguf'
  out = writer.GGUFWriter(str(path), 'llama')
  out.add_block_count(CONFIG.num_layers)
  out.add_embedding_length(CONFIG.emb_dim)
  out.add_feed_forward_length(CONFIG.mlp_dim)
  out.add_head_count(CONFIG.num_heads)
  out.add_head_count_kv(CONFIG.num_kv_heads)
  out.add_rope_freq_base(CONFIG.rope_base)
  out.add_layer_norm_rms_eps(1e-5)
  out.add_tokenizer_model('gpt2')
  out.add_tokenizer_pre('smollm')
  out.add_token_list(TOKENS)
  out.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
  out.add_token_merges(['a b', 'ab c'])
  out.add_eos_token_id(2)
  out.add_pad_token_id(2)
  out.add_chat_template('{{ messages }}')
  for leaf, x in flax.traverse_util.flatten_dict(params).items():
    x = x.T if leaf[-1] == 'kernel' else x
    if leaf[-2] in ('query', 'key'):
      x = _interleaved(x, CONFIG.num_heads if leaf[-2] == 'query' else CONFIG.num_kv_heads)
    if leaf[0] == 'token_embedder':
      x = x[[0, 2, 1, *range(3, len(TOKENS))]]  # Ours ends with 1, theirs with 2.
    x = np.ascontiguousarray(x)
    if leaf[-2] == 'wo':
      kind = writer.GGMLQuantizationType.Q8_0
      out.add_tensor(gguf._name(leaf), writer.quantize(x, kind), raw_dtype=kind)
    else:
      out.add_tensor(gguf._name(leaf), x)
  out.write_header_to_file()
  out.write_kv_data_to_file()
  out.write_tensors_to_file()
  out.close()
  return path


def test_weights(file, params):
  """To the bit, but for what was quantised to 8 bits."""
  config, loaded = gguf.load(file)
  assert vars(config) == vars(CONFIG)
  expected = flax.traverse_util.flatten_dict(params)
  for leaf, x in flax.traverse_util.flatten_dict(loaded).items():
    step = np.abs(expected[leaf]).max() / 127 if leaf[-2] == 'wo' else 0
    np.testing.assert_allclose(x, expected[leaf], atol=step, rtol=0, err_msg='/'.join(leaf))


def test_converted_directory(file, tmp_path):
  gguf.convert(file, tmp_path / 'model')
  config, expected = gguf.load(file)
  assert vars(hf.read_config(tmp_path / 'model')) == vars(config)
  loaded = hf.load(tmp_path / 'model', expected)
  jax.tree.map(np.testing.assert_array_equal, loaded, expected)
  settings = json.loads((tmp_path / 'model/tokenizer_config.json').read_text())
  assert (settings['eos_token'], settings['chat_template']) == ('<|end|>', '{{ messages }}')
  encoding = tokenizers.Tokenizer.from_file(str(tmp_path / 'model/tokenizer.json'))
  assert encoding.encode('abcab12<|end|>').tokens == ['abc', 'ab', '1', '2', '<|end|>']


def test_errors(file, tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match='name a GGUF file'):
    gguf.load(tmp_path / 'none.gguf')
  fields = gguf._fields
  for changes, message in [
    ({'general.architecture': 'gemma'}, "architecture 'gemma'"),
    ({'tokenizer.ggml.pre': 'llama-bpe'}, 'copy tokenizer.json'),
    ({'llama.block_count': 3}, r'lacks the tensor blk\.2\.'),
    ({'llama.block_count': 1}, r'holds the tensor blk\.1\.'),
    ({'llama.rope.scaling.type': 'yarn'}, "scales rotary positions by 'yarn'"),
    ({'tokenizer.ggml.eos_token_id': None}, 'names no token that ends a response'),
  ]:
    monkeypatch.setattr(gguf, '_fields', lambda reader, c=changes: fields(reader) | c)
    with pytest.raises(ValueError, match=message):
      gguf.convert(file, tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def _changed(start: int, content: bytes):
  """Some bytes of a file are others."""
  return lambda data: data[:start] + content + data[start + len(content) :]


def _quantised(data: bytes) -> bytes:
  """A tensor of 8 bits is said to be of a kind that is for intermediate results alone."""
  name = b'blk.0.ffn_down.weight'
  start = data.index(name) + len(name) + 4 + 2 * 8
  assert data[start] == writer.GGMLQuantizationType.Q8_0
  return _changed(start, bytes([writer.GGMLQuantizationType.Q8_1]))(data)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda data: b'', r'tiny\.gguf is no intact GGUF file .*: download it again'),
    (lambda data: data[:300], r'tiny\.gguf is no intact GGUF file'),
    (lambda data: data[:-3000], r'tiny\.gguf is no intact GGUF file'),
    (_changed(0, b'GGML'), r'tiny\.gguf is no intact GGUF file .*magic'),
    (_changed(4, b'\x63'), r'tiny\.gguf is no intact GGUF file .*: download'),
    (lambda data: data.replace(b'llama', b'gemma'), "architecture 'gemma': only llama"),
    (lambda data: data.replace(b'block_count', b'block_cnt__'), r'lacks the field llama\.block_c'),
    (lambda data: data.replace(b'.merges', b'.merged'), r'lacks the field tokenizer\.ggml\.merges'),
    (_quantised, 'is quantised as Q8_1, which is not read: take a file in F16 or Q8_0'),
  ],
)
def test_damaged_file_is_one_line_of_the_command(change, message, file, tmp_path, capsys):
  path = tmp_path / 'tiny.gguf'
  path.write_bytes(change(file.read_bytes()))
  argv = ['import', f'--gguf_file={path}', f'--output_dir={tmp_path / "model"}']
  status = main.main(argv)
  output = capsys.readouterr()
  assert (status, output.out) == (2, '')
  (line,) = output.err.splitlines()
  assert re.search(message, line), line
  assert list(tmp_path.iterdir()) == [path]
