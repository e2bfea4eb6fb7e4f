"""Shared by all tests: where real data is, and small compiled models."""

import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from nlhf_jax.cli import main
from nlhf_jax.formats import hf
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding, t5
from nlhf_jax.types import EOS, PAD, Prompts
from tests import tiny


def pytest_configure(config: pytest.Config) -> None:
  """A second run of the tests finds its programs compiled, those of the processes that it starts too, however small."""
  main.keep_compiled()
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = jax.config.jax_compilation_cache_dir
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'


@pytest.fixture(scope='session')
def test_data() -> pathlib.Path:
  """The directory of real data; NLHF_TEST_DATA names it."""
  default = pathlib.Path(__file__).parent.parent.parent / 'shared' / 'data'
  path = pathlib.Path(os.environ.get('NLHF_TEST_DATA', default))
  if not path.is_dir():
    message = f'no data in {path}: set NLHF_TEST_DATA'
    if os.environ.get('NLHF_REQUIRE_TEST_DATA'):
      pytest.fail(message)
    pytest.skip(message)
  return path


@pytest.fixture(scope='session')
def few_abstracts(test_data, tmp_path_factory) -> pathlib.Path:
  """A directory with the first abstracts of SciTLDR."""
  directory = tmp_path_factory.mktemp('scitldr')
  for name in ('train.jsonl', 'valid.jsonl'):
    with (test_data / 'scitldr' / name).open() as lines:
      (directory / name).write_text(''.join(itertools.islice(lines, 40)))
  return directory


def tiny_network(vocab_size: int = 6) -> t5.Transformer:
  """`tests.tiny` has more to change."""
  return tiny.t5_network(vocab_size=vocab_size)


@pytest.fixture(scope='session')
def tiny_policy():
  """A policy over sequences of up to 3 tokens from {EOS, 2, 3, 4, 5}."""
  return policy.from_network(tiny_network(), decoding.Sampling(max_length=3))


@pytest.fixture(scope='session')
def tiny_params(tiny_policy):
  """Two parameter sets that disagree: sharpened, so that their samples differ from uniform."""
  init = jax.jit(tiny_policy.init)
  return [jax.tree.map(lambda x: 1.5 * x, init(jax.random.PRNGKey(seed))) for seed in (0, 1)]


@pytest.fixture(scope='session')
def tiny_prompts() -> Prompts:
  """Two prompts of unequal length."""
  tokens = np.array([[3, 4, 5, 2, 2], [5, 3, 0, 0, 0]], np.int32)
  return Prompts(jnp.asarray(tokens), jnp.arange(2, dtype=jnp.int32))


@pytest.fixture(scope='session')
def language() -> np.ndarray:
  """Every response that the tiny policy can give: 1 + 4 + 16 that end, and 64 that reach the limit."""
  rows = []
  for length in range(1, 4):
    for body in np.ndindex(*(4,) * (length - 1)):
      rows.append([*(b + 2 for b in body), EOS] + [PAD] * (3 - length))
  rows += [[b + 2 for b in body] for body in np.ndindex(4, 4, 4)]
  return np.array(rows, np.int32)


CHAT_TEMPLATE = (
  "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def write_chat_model(directory: pathlib.Path) -> None:
  """A random Llama over bytes, as a hub would hold it; special tokens: 0 nothing, 1 start of a turn, 2 its end."""
  network = tiny.llama_network(vocab_size=259, logits_via_embedding=True, eos_id=2)
  init = policy.from_network(network, decoding.Sampling(max_length=2)).init
  hf.save(jax.jit(init)(jax.random.PRNGKey(0)), network.config, directory)
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  words = {'<|none|>': 0, '<|start|>': 1, '<|end|>': 2}
  words |= {letter: number for number, letter in enumerate(letters, start=3)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(['<|none|>', '<|start|>', '<|end|>'])
  tokenizer.save(str(directory / 'tokenizer.json'))
  settings = {'chat_template': CHAT_TEMPLATE}
  (directory / 'tokenizer_config.json').write_text(json.dumps(settings))


@pytest.fixture(scope='session')
def chat_model(tmp_path_factory) -> pathlib.Path:
  """The directory of a tiny chat model; not to be changed."""
  directory = tmp_path_factory.mktemp('hub') / 'model'
  write_chat_model(directory)
  return directory
