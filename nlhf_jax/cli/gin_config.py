"""gin at the rim: files and bindings in, what they describe out. The only importer of gin.

Whether two configurations are the same run is decided on resolved fields: every parameter that can reach what is described,
with macros in place of their names. Core errors name arguments; here the flags that set them are added.
"""

import contextlib
import difflib
import functools
import os
import pathlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin

import nlhf_jax
from nlhf_jax.cli import bound, gin_files, gin_references, trust

_PACKAGE = pathlib.Path(nlhf_jax.__file__).resolve().parent
# Holds `configs/`: the package itself where it was installed, the repository where it is worked on.
ROOT = _PACKAGE if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent
_MISTAKES = (
  AttributeError,
  ModuleNotFoundError,
  NameError,
  OSError,
  RuntimeError,
  SyntaxError,
  TypeError,
  ValueError,
)
_DYNAMIC = 'from __gin__ import dynamic_registration'
# What describes what commands ask for.
_DESCRIBED_BY = {
  'Evaluation': ' The evaluation.gin of an experiment does: --experiment=NAME reads it.',
  'Experiment': ' Those of a run do: --experiment=EXPERIMENT/RUN reads them.',
}
# Arguments of one word that a message may name.
_SYMBOLS = ('tau', 'beta', 'eta', 'decay')


class Layer(NamedTuple):
  """Gin files, and bindings that win over them."""

  files: Sequence[str | pathlib.Path]
  # NAME=VALUE each.
  bindings: Sequence[str] = ()


class Source(NamedTuple):
  """What a command is configured by."""

  # In order: the later wins.
  layers: Sequence[Layer]
  search_paths: Sequence[str] = ()
  # Whether bindings of macros that the files lack are passed over: they belong to other files of an experiment.
  ignore_unknown_macros: bool = False
  # What the command line itself knows, NAME=VALUE each, for files that ask for it; the layers' bindings win.
  if_asked: Sequence[str] = ()


class Configured(NamedTuple):
  """What was described, and how."""

  value: Any
  # As one gin file.
  text: str
  # Parameter -> value in JSON, of all that can reach the value.
  fields: dict[str, Any]
  # Argument -> the flag that sets it.
  flags: dict[str, str]
  # Bindings of the last layer, NAME=VALUE each, that reach nothing.
  unread: tuple[str, ...] = ()


def configure(described: Callable[..., Any], source: Source) -> Configured:
  """Calls a function or class by what gin files and bindings make of it.

  Args:
    described: such as `Experiment`.
    source: layers of files and bindings, and where to look for files.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a file or binding is wrong; one line, with the nearest name that exists.
  """
  search_paths = read(source)
  try:
    return _call(described, source.layers, search_paths)
  except _MISTAKES as error:
    raise ValueError(_explain(error)) from error


def read(source: Source) -> list[str]:
  """Reads the files and bindings into gin, and calls nothing; errors as `configure`. Returns the search paths."""
  gin.clear_config()
  _read_plain_files_only()
  search_paths = [*source.search_paths, str(ROOT)]
  gin.config._LOCATION_PREFIXES[1:] = []
  for path in search_paths:
    gin.add_config_file_search_path(path)
  _check_files([file for layer in source.layers for file in layer.files], search_paths)
  try:
    for files, bindings in source.layers:
      gin.parse_config_files_and_bindings(list(map(str, files)), [], finalize_config=False)
      _bind(source.if_asked, ignore_unknown_macros=True)
      _bind(bindings, source.ignore_unknown_macros)
    gin.finalize()
    trust.add_imports()
  except _MISTAKES as error:
    raise ValueError(_explain(error)) from error
  return search_paths


def from_text(
  described: Callable[..., Any],
  text: str,
  bindings: Sequence[str] = (),
  name: str = 'The configuration',
  *,
  ignore_unknown_macros: bool = False,
) -> Configured:
  """The same by the text of a configuration that was kept, which is not trusted, and bindings that win over it.

  Args:
    described: such as `Experiment`.
    text: of the configuration.
    bindings: of the user.
    name: of its file.
    ignore_unknown_macros: whether bindings of macros that it lacks are passed over.

  Raises:
    ValueError: as of `configure`; it imports or calls what no one has allowed (`trust`).
  """
  gin.clear_config()
  try:
    trust.check_imports(text, name)
    gin.parse_config(text)
    trust.check_calls(name)
    _bind(bindings, ignore_unknown_macros)
    return _call(described, [Layer([], bindings)])
  except _MISTAKES as error:
    raise ValueError(_explain(error)) from error


def _call(
  described: Callable[..., Any], layers: Sequence[Layer], search_paths: Sequence[str] = ()
) -> Configured:
  """Compares what is bound with its annotations, and calls; the layers say where it was bound."""
  place = functools.partial(bound.place_of, layers=layers, search_paths=search_paths)
  bound.check(described, place)
  fields, flags = bound.fields_and_flags(described)
  unread = bound.unread(described, layers[-1].bindings)
  with _naming(flags), gin_references.kept():
    return Configured(gin.get_configurable(described)(), gin.config_str(), fields, flags, unread)


def naming_flags(configured: Configured) -> contextlib.AbstractContextManager[None]:
  """Within, errors that name arguments name the flags that set them too."""
  return _naming(configured.flags)


@contextlib.contextmanager
def _naming(flags: Mapping[str, str]) -> Iterator[None]:
  try:
    yield
  except (ValueError, OSError) as error:
    words = set(re.findall(r'\b[a-z][a-z\d]*(?:_[a-z\d]+)+\b', str(error)))
    words |= {name for name in _SYMBOLS if re.search(rf'\b{name}\b', str(error))}
    known = [flags[name] for name in sorted(words) if name in flags]
    if not known:
      raise
    raise ValueError(f'{error} (Set by {", ".join(known)}.)') from error


def _read_plain_files_only() -> None:
  """Takes away gin's second reader, for files within Python packages.

  It is asked before the search paths are. Of each file that is on one of these it reports that it is not found, and where
  `configs` looks like a package without an __init__.py, it fails.
  """
  gin.config._FILE_READERS[:] = [(gin_files.read, os.path.isfile)]


def _check_files(files: Sequence[str | pathlib.Path], search_paths: Sequence[str]) -> None:
  if not files:
    raise ValueError(
      'No configuration: name an experiment with --experiment, or a gin file with --gin_file.'
    )
  for file in files:
    if not any((pathlib.Path(path) / file).is_file() for path in ('', *search_paths)):
      raise FileNotFoundError(
        f'No gin file {file} in {", ".join(search_paths)}: see --gin_search_paths.'
      )


def _bind(bindings: Sequence[str], ignore_unknown_macros: bool) -> None:
  """Parses the bindings, which may refer to all that the files import, and to modules of the package by their last name."""
  macros = {scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'}
  if ignore_unknown_macros:
    bindings = [b for b in bindings if _macro(b) is None or _macro(b) in macros]
  for binding in bindings:
    gin_files.check_closed(binding, f'The binding {binding}')
    if (name := _macro(binding)) and name not in macros:
      raise ValueError(f'No macro {name} in these gin files.{_nearest(name, macros)}')
  for binding in bindings:
    imported = {statement.format() for statement in gin.config._IMPORTS} - {_DYNAMIC}
    imports = sorted(imported | _missing_imports(binding, imported))
    gin.parse_config('\n'.join([_DYNAMIC, *imports, binding]))


def _missing_imports(binding: str, imported: set[str]) -> set[str]:
  """Imports of the package's modules that a binding names and no file has imported."""
  known = {re.split(r' import | as ', line)[-1].split('.')[-1] for line in imported}
  parameter, _, value = binding.partition('=')
  names = set(re.findall(r'@(?:\w+/)*(\w+)\.\w+', value))
  names |= set(re.findall(r'^\s*(?:\w+/)*(\w+)\.\w+\.\w+\s*$', parameter))
  missing = names - known
  return {line for name, line in _imports_by_name() if name in missing} if missing else set()


@functools.cache
def _imports_by_name() -> tuple[tuple[str, str], ...]:
  """The last name of every module of the package, but for the command line's, and the import of it."""
  modules = pkgutil.walk_packages(nlhf_jax.__path__, 'nlhf_jax.', onerror=lambda name: None)
  names = (module.name.rpartition('.') for module in modules if not module.ispkg)
  return tuple(
    (leaf, f'from {parent} import {leaf}')
    for parent, _, leaf in names
    if not parent.endswith('.cli')
  )


def _macro(binding: str) -> str | None:
  """The macro that a binding sets, if it does not bind a parameter."""
  name = binding.split('=')[0].strip()
  return name if re.fullmatch(r'\w+', name) else None


def _explain(error: Exception) -> str:
  """gin's message in one line, with the nearest name that exists."""
  if isinstance(error, SyntaxError):
    return gin_files.explain(error)
  text = one_line(error)
  match = re.search(r"(?:module '([\w.]+)'.*|<module '([\w.]+)'.*)has no attribute '?(\w+)'?", text)
  if match:
    module = sys.modules.get(match[1] or match[2])
    return text + _nearest(match[3], dir(module))
  if match := re.search(r"No configurable matching '([\w.]*?)(\w+)'", text):
    modules = [m for name, m in sys.modules.items() if f'{name}.'.endswith(match[1] or '.')]
    return text + _nearest(match[2], {name for module in modules for name in dir(module)})
  if unknown := re.search(r"Could not find <\w+ '[\w.]*?(\w+)'> in the Gin registry", text):
    return f'These gin files describe no {unknown[1]}.{_DESCRIBED_BY.get(unknown[1], "")}'
  if missing := re.search(r'[Rr]equired bindings for .*', text):
    return f'Something must be set: {missing[0]}'
  if missing := re.search(r'No values supplied by Gin or caller for arguments: \[(.*?)\]', text):
    return f'Something must be set: {missing[1]}.'
  return text


def _nearest(name: str, known) -> str:
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' Did you mean {close[0]}?' if close else ''


def one_line(error: BaseException) -> str:
  """An error's message without line breaks, and without gin's account of the calls that it came through."""
  text = ' '.join(str(error).split())
  return re.sub(r" In call to configurable '[\w.]+' \(<[^>]*>\)(?: in scope '[^']*')?", '', text)
