"""An export that runs out of space says so in one line, and leaves nothing."""

import contextlib
import pathlib
import resource

import jax
import jax.numpy as jnp
import pytest

from nlhf_jax.formats import hf, peft, t5x
from nlhf_jax.models import lora
from nlhf_jax.networks import axes
from nlhf_jax.types import PolicyParams, TrainState

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'hf'


@contextlib.contextmanager
def largest_file(size):
  """A disk of one's own needs rights; beyond a limit to its size, a file cannot be written either."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope='module')
def llama():
  network = hf.network(GOLDEN / 'llama')
  like = jax.eval_shape(axes.init(network), jax.random.key(0))
  return network.config, hf.load(GOLDEN / 'llama', like)


def to_hf(config, params, directory):
  hf.save(params, config, directory)


def to_peft(config, params, directory):
  adapters = lora.init(lora.Lora(16, 3.0), params, jax.random.key(1))
  peft.save_adapters(adapters, config, directory, alpha=3.0, base_model='')


def to_t5x(config, params, directory, layout='orbax'):
  state = TrainState(jnp.int32(7), PolicyParams(params), (), jax.random.key(0))
  t5x.save(state, directory, layout)


def to_native_t5x(config, params, directory):
  to_t5x(config, params, directory, 'native')


@pytest.mark.parametrize('export', [to_hf, to_peft, to_t5x, to_native_t5x])
def test_full_disk(export, llama, tmp_path, capfd):
  with largest_file(600), pytest.raises(OSError, match='File too large') as caught:
    export(*llama, tmp_path / 'out')
  assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)
  assert 'Traceback' not in capfd.readouterr().err
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]
  export(*llama, tmp_path / 'out')  # And there is nothing in the way.
