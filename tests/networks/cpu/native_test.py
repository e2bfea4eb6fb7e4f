"""C that is compiled where it runs: by whom, how often, and what happens where it cannot be."""

import concurrent.futures
import itertools
import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.networks.cpu import few_rows, native

_number = itertools.count()


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
  """Nothing was compiled before, nor is known afterwards; the directory for what is compiled."""
  monkeypatch.delenv('NLHF_KERNELS', raising=False)
  flag = f'-DTEST_{os.getpid()}_{next(_number)}'
  monkeypatch.setattr(native, '_FLAGS', (*native._FLAGS, flag))
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  native.target.cache_clear()
  yield tmp_path / 'kernels'
  native.target.cache_clear()
  jax.config.update('jax_compilation_cache_dir', before)


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
  """What was compiled."""
  sources = []
  original = native._run

  def run(command):
    sources.extend(x for x in command if x.endswith('.c'))
    return original(command)

  monkeypatch.setattr(native, '_run', run)
  return sources


def product() -> np.ndarray:
  return np.asarray(few_rows.multiply(jnp.ones((3, 4)), few_rows.pack(jnp.ones((4, 20))), 20))


@pytest.mark.parametrize(
  ('compiler', 'reason'),
  [
    ('/nowhere/cc', "No such file or directory: '/nowhere/cc'"),
    ('false', 'returned non-zero exit status 1'),
    ('gcc "', 'No closing quotation'),
  ],
)
def test_compiler_that_does_not_work(compiler, reason, monkeypatch, caplog):
  """It is said once."""
  monkeypatch.setenv('CC', compiler)
  with caplog.at_level(logging.WARNING):
    assert [few_rows.available(), few_rows.available()] == [False, False]
  (record,) = caplog.records
  assert reason in record.getMessage()
  assert 'It needs gcc or clang, from PATH or CC; set NLHF_KERNELS=0' in record.getMessage()


@pytest.mark.parametrize(
  ('script', 'reason'),
  [
    ('echo slow >&2; exec sleep 9', 'slow'),
    ('exec gcc -fvisibility=hidden "$@"', 'undefined symbol: nlhf_few_rows'),
  ],
)
def test_compilers_that_are_slow_or_hide_what_they_make(
  script, reason, monkeypatch, caplog, tmp_path
):
  compiler = tmp_path / 'compiler'
  compiler.write_text(f'#!/bin/sh\n{script}\n')
  compiler.chmod(0o700)
  monkeypatch.setenv('CC', str(compiler))
  monkeypatch.setattr(native, '_PATIENCE', 5)
  assert not few_rows.available()
  assert reason in caplog.text


def test_no_compiler(monkeypatch, caplog):
  monkeypatch.delenv('CC', raising=False)
  monkeypatch.setenv('PATH', '')
  assert not few_rows.available()
  assert 'there is no C compiler' in caplog.text


def test_none_is_wanted(monkeypatch, caplog):
  monkeypatch.setenv('NLHF_KERNELS', '0')
  assert not few_rows.available()
  assert not caplog.records


def test_source_that_does_not_compile(monkeypatch, caplog, tmp_path):
  monkeypatch.setattr(native, '_HERE', tmp_path)
  (tmp_path / 'kernel.h').write_text('')
  (tmp_path / 'few_rows.c').write_text('#include "kernel.h"\nint x = unheard_of;')
  assert not few_rows.available()
  assert "error: 'unheard_of' undeclared" in caplog.text.replace('‘', "'").replace('’', "'")


def test_other_names():
  with pytest.raises(ValueError, match="There is few_rows and attend in C, not '/tmp/other'"):
    native.target('/tmp/other')


def test_what_was_compiled_is_kept(kept, compiled, monkeypatch):
  names = set()
  for _ in range(2):
    native.target.cache_clear()
    monkeypatch.setattr(native, '_registered', set(native._registered) - names)
    names.add(native._key('few_rows'))
    native._load('few_rows', f'few_rows-{native._key("few_rows")}.so')
  assert len(names) == len(compiled) == 1
  (library,) = kept.glob('*.so')
  assert library.stem == f'few_rows-{names.pop()}'
  assert kept.stat().st_mode & 0o777 == 0o700


def test_damaged_library_is_compiled_anew(kept, compiled):
  key = native._key('few_rows')
  kept.mkdir(mode=0o700)
  (kept / f'few_rows-{key}.so').write_bytes(b'\x7fELF and no more')
  assert (product() == 4).all()
  assert len(compiled) == 1
  assert len((kept / f'few_rows-{key}.so').read_bytes()) > 10_000


def test_library_that_cannot_take_its_place(kept, caplog):
  """A directory has its name."""
  key = native._key('few_rows')
  (kept / f'few_rows-{key}.so' / 'other').mkdir(parents=True)
  kept.chmod(0o700)
  assert (product() == 4).all()
  assert f'few_rows-{key}.so is not kept in {kept}: ' in caplog.text


@pytest.mark.parametrize('fault', ['writable', 'link', 'file', 'nowhere'])
def test_directory_where_nothing_can_be_kept(fault, kept, tmp_path):
  """Others may have written there, or it is none."""
  if fault == 'writable':
    kept.mkdir()
    kept.chmod(0o777)
  elif fault == 'link':
    (tmp_path / 'other').mkdir()
    kept.symlink_to(tmp_path / 'other')
  elif fault == 'file':
    kept.write_text('')
  else:
    jax.config.update('jax_compilation_cache_dir', None)
  assert (product() == 4).all()
  assert not kept.is_dir() or not list(kept.iterdir())


def test_threads_that_ask_at_once(compiled):
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    names = set(threads.map(lambda _: native.target('few_rows'), range(8)))
  assert len(names) == len(compiled) == 1
  assert None not in names


def test_program_that_is_kept_compiled_in_the_next_process(tmp_path):
  """XLA finds the custom call of a program that it has not compiled here."""
  code = (
    'import jax, jax.monitoring, jax.numpy as jnp, numpy as np\n'
    'from nlhf_jax.networks.cpu import few_rows\n'
    'hits = []\n'
    'jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))\n'
    'x, packed = jnp.ones((3, 4)), few_rows.pack(jnp.ones((4, 20)))\n'
    'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
    'hits.clear()\n'
    'print(np.asarray(jax.jit(lambda x, w: few_rows.multiply(x, w, 20))(x, packed)).sum(), sum(hits))'
  )
  settings = {
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path),
    'JAX_RAISE_PERSISTENT_CACHE_ERRORS': '1',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
  }
  run = lambda: subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    capture_output=True,
    text=True,
    env=os.environ | settings,
  ).stdout.split()
  assert run() == ['240.0', '0']
  (library,) = (tmp_path / 'kernels').iterdir()
  made = library.stat().st_mtime_ns
  assert run() == ['240.0', '1']
  assert library.stat().st_mtime_ns == made


def test_arrays_that_do_not_belong_together():
  with pytest.raises(jax.errors.JaxRuntimeError, match='shapes of x, W and y do not belong'):
    jax.block_until_ready(raw(jnp.ones((1, 4, 16))))
  with pytest.raises(jax.errors.JaxRuntimeError, match='in float32 or bfloat16'):
    jax.block_until_ready(raw(jnp.ones((1, 3, 16), jnp.int8)))


def raw(weights):
  """The call itself, of two rows of three."""
  call = jax.ffi.ffi_call(native.target('few_rows'), jax.ShapeDtypeStruct((2, 16), jnp.float32))
  return call(jnp.ones((2, 3)), weights)


def test_vectorised_over_a_batch():
  x, kernel = np.ones((5, 2, 3), np.float32), np.ones((3, 7), np.float32)
  packed = few_rows.pack(jnp.asarray(kernel))
  found = jax.vmap(lambda x: few_rows.multiply(x, packed, 7))(x)
  np.testing.assert_array_equal(found, np.full((5, 2, 7), 3))
