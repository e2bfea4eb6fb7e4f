"""What a configuration that was kept in a run's directory may call. It is code, and the directory may be a stranger's.

It may import this package, optax, and packages that the user trusts: with --trust, or because gin files that the user named import
them. Of this package it may call what describes runs, not what writes files or runs commands.
"""

import re
from collections.abc import Iterable

from nlhf_jax import untrusted

_ALWAYS = ('nlhf_jax', 'optax')
# Of gin itself; its parsers would read further configurations.
_GIN = ('gin.macro', 'gin.constant', 'gin.singleton')
# They run commands, read further configurations, or write whatever they are given to wherever they are told.
_NEVER = ('nlhf_jax.cli', 'nlhf_jax.runtime.atomic', 'nlhf_jax.runtime.run_directory', 'nlhf_jax.runtime.processes', 'nlhf_jax.votes.vote_file', 'nlhf_jax.votes.annotation')  # fmt: skip
_WRITING = re.compile(
  r'(^|\.)(_|(write|save|convert|export|render|from_run_dir|drop_later|train|diagnose|compare|collect)(_|$))'
)
_named: set[str] = set()


def reset(packages: Iterable[str]) -> None:
  """Forgets whom earlier commands trusted.

  Args:
    packages: that the user names now.
  """
  _named.clear()
  _named.update(packages)


def add_imports() -> None:
  """Trusts what gin has imported for files that the user named."""
  import gin

  _named.update(statement.module.partition('.')[0] for statement in gin.config._IMPORTS)


def check_imports(text: str, name: str) -> None:
  """Looks at a kept configuration before anything of it is imported.

  Args:
    text: of the configuration.
    name: of its file.

  Raises:
    ValueError: it imports another package, or includes a file.
    SyntaxError: it is no configuration.
  """
  import gin
  from gin import config_parser

  for statement in config_parser.ConfigParser(text, gin.config.ParserDelegate(skip_unknown=True)):
    line = getattr(getattr(statement, 'location', None), 'line_num', 0)
    if isinstance(statement, config_parser.IncludeStatement):
      raise ValueError(
        f'{name}, line {line}: includes {untrusted.quoted(statement.filename)}, as no kept configuration does.'
      )
    if isinstance(statement, config_parser.ImportStatement) and not _is_trusted(statement.module):
      raise ValueError(
        _refusal(f'{name}, line {line}: imports {statement.module}', statement.module)
      )


def check_calls(name: str) -> None:
  """Looks at what gin has read of a kept configuration, before anything of it is called.

  Args:
    name: of its file.

  Raises:
    ValueError: it names what belongs to another package, or what writes files or runs commands.
  """
  import gin

  from nlhf_jax.cli import bound

  config = gin.config._CONFIG
  selectors = {selector for _, selector in config}
  selectors |= {x.config_key[1] for x in gin.config.iterate_references(config)}
  for selector in sorted(selectors - set(_GIN)):
    described = bound.function(selector)
    module = getattr(described, '__module__', None) or type(described).__module__
    if not _is_trusted(module):
      raise ValueError(_refusal(f'{name}: names {selector}, which is of {module}', module))
    writes = _is_within(module, *_NEVER) or _WRITING.search(described.__qualname__)
    if writes and _is_within(module, 'nlhf_jax'):
      raise ValueError(
        f'{name}: names {selector}, which no kept configuration may call: it could write files or run commands.'
      )


def _is_trusted(module: str) -> bool:
  return module == '__gin__.dynamic_registration' or _is_within(module, *_ALWAYS, *_named)


def _is_within(module: str, *packages: str) -> bool:
  return any(module == package or module.startswith(f'{package}.') for package in packages)


def _refusal(what: str, module: str) -> str:
  return f'{what}, and a kept configuration is code: if you trust who made it, allow it with --trust {module.partition(".")[0]}.'
