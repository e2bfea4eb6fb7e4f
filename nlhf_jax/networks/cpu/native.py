"""The C sources beside this as custom calls of XLA: compiled by the machine's own compiler when they are first asked for.

What was compiled is kept beside JAX's compiled programs, where those are kept. Where there is no compiler callers take XLA's
operations, which are slower.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import jaxlib

SOURCES = 'few_rows', 'attend'
_HERE = pathlib.Path(__file__).parent
# Of what is compiled. No -ffast-math: sums keep their order.
_NATIVE = '-mcpu=native' if platform.machine() in ('aarch64', 'arm64') else '-march=native'
_FLAGS = '-std=gnu11', '-O3', _NATIVE, '-shared', '-fPIC'
# Seconds that a compiler may take.
_PATIENCE = 60

_lock = threading.RLock()
# XLA takes a name once.
_registered: set[str] = set()
_unused = contextvars.ContextVar('_unused', default=False)


@contextlib.contextmanager
def unused() -> Iterator[None]:
  """Programs that are traced within are as those of accelerators: a plan reads them."""
  token = _unused.set(True)
  try:
    yield
  finally:
    _unused.reset(token)


def available(name: str) -> bool:
  """Whether programs that are traced now can call `<name>.c`: this process has one device, a CPU.

  Over several devices XLA has to know what is computed, for it divides the work.
  """
  if _unused.get() or jax.default_backend() != 'cpu' or jax.device_count() != 1:
    return False
  return target(name) is not None


def call(
  name: str, plain: Callable[..., jax.Array], shape: tuple[int, ...], *args: jax.Array
) -> jax.Array:
  """What `<name>.c` makes of arrays on a CPU, and `plain` elsewhere: one array, float32. It must be available."""
  result = jax.ShapeDtypeStruct(shape, jnp.float32)
  native = jax.ffi.ffi_call(target(name), result, vmap_method='sequential')
  return jax.lax.platform_dependent(*args, cpu=native, default=plain)


@functools.cache
def target(name: str) -> str | None:
  """The custom call of `<name>.c`, registered under the name that is returned; None: this machine has none.

  `NLHF_KERNELS=0` in the environment says that none is wanted, `CC` which compiler is taken.

  Raises:
    ValueError: there is no such source.
  """
  if name not in SOURCES:
    raise ValueError(f'There is {" and ".join(SOURCES)} in C, not {name!r}.')
  if os.environ.get('NLHF_KERNELS') == '0':
    return None
  with _lock:
    try:
      return _registered_name(name)
    except (
      AttributeError,
      OSError,
      RuntimeError,
      ValueError,
      subprocess.SubprocessError,
    ) as error:
      logging.warning(
        'nlhf_jax/networks/cpu/%s.c cannot be compiled and loaded here (%s), so that decoding is slower. It needs gcc or '
        'clang, from PATH or CC; set NLHF_KERNELS=0 to be told no more.',
        name,
        _reason(error),
      )
      return None


def _registered_name(name: str) -> str:
  """Compiles it, or loads what was compiled, and tells XLA."""
  key = _key(name)
  registered = f'nlhf_{name}-{key}'
  if registered not in _registered:
    function = _load(name, f'{name}-{key}.so')[f'nlhf_{name}']
    jax.ffi.register_ffi_target(registered, jax.ffi.pycapsule(function), platform='cpu')
    _registered.add(registered)
  return registered


def _key(name: str) -> str:
  """Of this text, for this processor, by this compiler, for this JAX."""
  texts = [(_HERE / file).read_bytes() for file in (f'{name}.c', 'kernel.h')]
  compiler = _compiler()
  about = [jaxlib.__version__, *compiler, _run([*compiler, '--version']), _processor(), *_FLAGS]
  return hashlib.sha256(b''.join(texts) + '\n'.join(about).encode()).hexdigest()[:16]


def _load(name: str, file: str) -> ctypes.CDLL:
  """What was kept, unless it is damaged; or else what is compiled now, and kept if it can be."""
  kept = _kept()
  if kept and kept.joinpath(file).exists():
    with contextlib.suppress(OSError):
      return ctypes.CDLL(str(kept / file))
  made = _scratch(kept) / file
  command = [*_compiler(), *_FLAGS, f'-I{jax.ffi.include_dir()}', str(_HERE / f'{name}.c')]
  _run([*command, '-o', str(made)])
  library = ctypes.CDLL(str(made))
  if kept:
    try:
      made.replace(kept / file)
    except OSError as error:
      logging.warning('%s is not kept in %s: %s.', file, kept, error.strerror)
  return library


def _kept() -> pathlib.Path | None:
  """Where compiled code outlives the process and nobody else writes; None: there is no such place."""
  directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if not directory or '://' in directory:
    return None
  kept = pathlib.Path(directory) / 'kernels'
  try:
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = kept.lstat()
  except OSError:
    return None
  own = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
  return kept if own and found.st_uid == os.getuid() else None


@functools.cache
def _directory(where: pathlib.Path | None) -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix='nlhf_jax-', dir=where)


def _scratch(kept: pathlib.Path | None) -> pathlib.Path:
  """This process's own directory, which goes with it: where libraries are kept, if they can be written there."""
  try:
    return pathlib.Path(_directory(kept).name)
  except OSError:
    return pathlib.Path(_directory(None).name)


def _compiler() -> list[str]:
  if chosen := os.environ.get('CC'):
    return shlex.split(chosen)
  for name in ('cc', 'gcc', 'clang'):
    if found := shutil.which(name):
      return [found]
  raise FileNotFoundError('there is no C compiler')


def _run(command: list[str]) -> str:
  """What a compiler prints."""
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    errors='replace',
    timeout=_PATIENCE,
    check=True,
    env={**os.environ, 'LC_ALL': 'C'},
  )
  return done.stdout


def _processor() -> str:
  """What -march=native depends on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    return f'{platform.machine()} {platform.processor()}'
  named = (
    'model name',
    'flags',
    'Features',
    'CPU implementer',
    'CPU variant',
    'CPU part',
    'isa',
    'uarch',
  )
  found = {x for x in lines if x.startswith(named)}
  return '\n'.join([platform.machine(), *sorted(found)])


def _reason(error: Exception) -> str:
  """The line that says what went wrong: a compiler's, where there is one."""
  told = getattr(error, 'stderr', None)
  told = told.decode(errors='replace') if isinstance(told, bytes) else told
  lines = (told or str(error)).strip().splitlines()
  return next((x for x in lines if 'error' in x), (lines or [type(error).__name__])[-1])
