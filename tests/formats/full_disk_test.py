"""An export that runs out of space says so in one line, leaves nothing that looks like one, and is not in the way of the next."""

import contextlib
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import pytest

from nlhf_jax.formats import hf, peft, t5x
from nlhf_jax.models import lora
from nlhf_jax.networks import parameters
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
  like = jax.eval_shape(parameters.init(network), jax.random.key(0))
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
  # What is compiled on the way is kept in files too, which the limit would truncate: it is compiled before.
  export(*llama, tmp_path / 'before')
  shutil.rmtree(tmp_path / 'before')
  with largest_file(600), pytest.raises(OSError, match='File too large') as caught:
    export(*llama, tmp_path / 'out')
  assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)
  assert 'Traceback' not in capfd.readouterr().err
  # What orbax's threads still write after that bears the name of what is not finished.
  left = [path for path in tmp_path.rglob('*') if path.is_file()]
  assert all('checkpoint_7.orbax-checkpoint-tmp' in path.parts for path in left)
  assert not left or export is to_t5x
  export(*llama, tmp_path / 'out')


def test_export_over_what_a_thread_has_left(llama, tmp_path):
  left = tmp_path / 'out' / 'checkpoint_7.orbax-checkpoint-tmp'
  left.mkdir(parents=True)
  (left / 'file').write_text('')
  to_t5x(*llama, tmp_path / 'out')
  assert (tmp_path / 'out' / 'checkpoint_7').is_dir() and not left.exists()
