"""C that is compiled where it runs: by whom, how often, and what happens where it cannot be."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks.cpu import few_rows, native


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
  """Nothing is known of this machine, and nothing stays known."""
  monkeypatch.delenv('NLHF_KERNELS', raising=False)
  caches = native.target, native._directory
  for cache in caches:
    cache.cache_clear()
  yield
  for cache in caches:
    cache.cache_clear()


@pytest.mark.parametrize(
  ('compiler', 'reason'),
  [('/nowhere/cc', 'No such file'), ('false', 'returned non-zero exit status')],
)
def test_without_a_compiler_it_is_said_once_and_not_used(compiler, reason, monkeypatch, caplog):
  monkeypatch.setenv('CC', compiler)
  with caplog.at_level(logging.WARNING):
    assert [few_rows.available(), few_rows.available()] == [False, False]
  (record,) = caplog.records
  assert reason in record.getMessage()
  assert 'install gcc or clang, or set NLHF_KERNELS=0' in record.getMessage()


def test_no_compiler_on_the_path(monkeypatch, caplog):
  monkeypatch.delenv('CC', raising=False)
  monkeypatch.setenv('PATH', '')
  assert not few_rows.available()
  assert 'there is no C compiler' in caplog.text


def test_none_is_wanted(monkeypatch, caplog):
  monkeypatch.setenv('NLHF_KERNELS', '0')
  assert not few_rows.available()
  assert not caplog.records


def test_a_source_that_does_not_compile(monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(native, '_HERE', tmp_path)
  (tmp_path / 'kernel.h').write_text('')
  (tmp_path / 'few_rows.c').write_text('int x = "')
  assert not few_rows.available()
  assert 'few_rows.c' in caplog.text


def test_what_was_compiled_is_kept(monkeypatch, tmp_path):
  compiled = []
  original = native._run
  monkeypatch.setattr(native, '_run', lambda command: compiled.append(command) or original(command))
  kept = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  try:
    names = set()
    for _ in range(2):
      native.target.cache_clear()
      native._directory.cache_clear()
      names.add(native.target('few_rows'))
    (library,) = (tmp_path / 'kernels').iterdir()
    assert names == {f'nlhf_{library.stem}'}
    assert sum('-o' in command for command in compiled) == 1
  finally:
    jax.config.update('jax_compilation_cache_dir', kept)


def test_other_code_is_compiled_anew(monkeypatch):
  first = native.target('few_rows')
  native.target.cache_clear()
  monkeypatch.setattr(native, '_FLAGS', (*native._FLAGS, '-DOTHER'))
  assert native.target('few_rows') != first


def test_a_program_that_is_kept_compiled_runs_in_the_next_process(tmp_path):
  """XLA looks the custom call up by its name, so it must be registered before such a program is read."""
  code = (
    'import jax, jax.numpy as jnp\n'
    'from nlhf_jax.networks.cpu import few_rows\n'
    f'jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})\n'
    'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
    'assert few_rows.available()\n'
    'product = jax.jit(lambda x, w: few_rows.multiply(x, few_rows.pack(w), 20))\n'
    'print(product(jnp.ones((3, 4)), jnp.ones((4, 20))).sum())'
  )
  for _ in range(2):
    run = subprocess.run(
      [sys.executable, '-c', code], check=True, capture_output=True, text=True
    )
    assert float(run.stdout) == 240


def test_arrays_that_do_not_belong_together():
  def call(weights):
    jax.block_until_ready(native.call('few_rows', (2, 16), jnp.ones((2, 3)), weights))

  with pytest.raises(jax.errors.JaxRuntimeError, match='shapes of x, W and y do not belong'):
    call(jnp.ones((1, 4, 16)))
  with pytest.raises(jax.errors.JaxRuntimeError, match='in float32 or bfloat16'):
    call(jnp.ones((1, 3, 16), jnp.int8))


def test_vectorised_over_a_batch():
  x, kernel = np.ones((5, 2, 3), np.float32), np.ones((3, 7), np.float32)
  packed = few_rows.pack(jnp.asarray(kernel))
  found = jax.vmap(lambda x: few_rows.multiply(x, packed, 7))(x)
  np.testing.assert_array_equal(found, np.full((5, 2, 7), 3))
