"""C sources of this package as custom calls of XLA: compiled by the machine's own compiler when they are first asked for.

What was compiled is kept beside JAX's compiled programs. Where there is no compiler nothing fails: callers ask, and take
their plain path.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp

from nlhf_jax.networks import axes

_HERE = pathlib.Path(__file__).parent
# Of what is compiled; no `-ffast-math`: sums keep their order.
_FLAGS = '-std=gnu11', '-O3', '-march=native', '-shared', '-fPIC'
# Seconds.
_PATIENCE = 60

# XLA takes a name once.
_registered: set[str] = set()


def available(name: str) -> bool:
  """Whether programs that are traced now can call `<name>.c`: on a CPU, and not spread over several devices."""
  alone = jax.default_backend() == 'cpu' and axes.num_devices() == 1
  return alone and target(name) is not None


def call(name: str, shape: tuple[int, ...], *args: jax.Array) -> jax.Array:
  """What `<name>.c` makes: one array, float32; it must be available."""
  result = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.ffi.ffi_call(target(name), result, vmap_method='sequential')(*args)


@functools.cache
def target(name: str) -> str | None:
  """The custom call of `<name>.c`, registered under the name that is returned; None: this machine has none.

  `NLHF_KERNELS=0` in the environment says that none is wanted, `CC` which compiler is taken.
  """
  if os.environ.get('NLHF_KERNELS') == '0':
    return None
  try:
    library = _library(name)
    found = getattr(ctypes.CDLL(str(library)), f'nlhf_{name}')
  except (OSError, subprocess.SubprocessError, AttributeError) as error:
    logging.warning(
      'nlhf_jax/networks/cpu/%s.c cannot be compiled here, and decoding takes its slower path: %s; install gcc or clang, or '
      'set NLHF_KERNELS=0 to be told no more.',
      name,
      _reason(error),
    )
    return None
  registered = f'nlhf_{library.stem}'
  if registered not in _registered:
    _registered.add(registered)
    jax.ffi.register_ffi_target(registered, jax.ffi.pycapsule(found), platform='cpu')
  return registered


def _library(name: str) -> pathlib.Path:
  """The compiled source: of this text, for this processor, by this compiler, for this JAX."""
  source, compiler = _HERE / f'{name}.c', _compiler()
  command = [*compiler, *_FLAGS, f'-I{jax.ffi.include_dir()}']
  about = [jax.__version__, _run([*compiler, '--version']), _processor(), *command]
  texts = source.read_bytes() + (_HERE / 'kernel.h').read_bytes()
  key = hashlib.sha256(texts + '\n'.join(about).encode()).hexdigest()[:16]
  library = _directory() / f'{name}-{key}.so'
  if not library.exists():
    partial = library.with_name(f'.{library.name}.{os.getpid()}.partial')
    try:
      _run([*command, str(source), '-o', str(partial)])
      partial.replace(library)
    finally:
      partial.unlink(missing_ok=True)
  return library


def _compiler() -> list[str]:
  if chosen := os.environ.get('CC'):
    return shlex.split(chosen)
  for name in ('cc', 'gcc', 'clang'):
    if found := shutil.which(name):
      return [found]
  raise FileNotFoundError('there is no C compiler')


def _run(command: list[str]) -> str:
  done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
  return done.stdout


def _processor() -> str:
  """What `-march=native` depends on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    found = [x for x in lines if x.startswith(('model name', 'flags', 'Features', 'CPU part'))]
    return '\n'.join([platform.machine(), *sorted(set(found))])
  except OSError:
    return f'{platform.machine()} {platform.processor()}'


@functools.cache
def _directory() -> pathlib.Path:
  """Where compiled code outlives the process, if JAX has such a place on this machine; else a directory of its own."""
  if (kept := jax.config.jax_compilation_cache_dir) and '://' not in kept:
    directory = pathlib.Path(kept) / 'kernels'
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
  _directory.temporary = tempfile.TemporaryDirectory(prefix='nlhf_jax-')
  return pathlib.Path(_directory.temporary.name)


def _reason(error: Exception) -> str:
  said = getattr(error, 'stderr', None) or str(error)
  return said.strip().splitlines()[0] if said.strip() else type(error).__name__
