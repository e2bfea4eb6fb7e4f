"""What a configuration that was kept in a run's directory may call. It is code, and the directory may be a stranger's.

It may import this package, optax, and packages that the user trusts: with --trust, or because gin files that the user named import
them. Of this package it may call what describes runs, which is listed here; all else is refused, and methods are.
"""

import re
from collections.abc import Iterable

from nlhf_jax import untrusted

_ALWAYS = ('nlhf_jax', 'optax')
# Of gin itself; its parsers would read further configurations.
_GIN = ('gin.macro', 'gin.constant', 'gin.singleton')
# What describes runs: modules, and names of modules that do other things as well. What one of them does when it is called must not
# write, run, send or import anything (tests/cli/trusted_calls_test.py).
_DESCRIBING = tuple(f'nlhf_jax.{name}' for name in (
  'algorithms', 'losses', 'models', 'networks',
  'data.chat_raters', 'data.corpora', 'data.pipeline', 'data.prompts', 'data.tasks', 'data.token_files', 'data.vocabularies',
  'data.written',
  'evaluation.collection.Collection', 'evaluation.distance.Measured', 'evaluation.tournament.Evaluation',
  'formats.hf.Ids', 'formats.hf.network', 'formats.hf.weights', 'formats.t5x.weights',
  'judges.annotators', 'judges.rules',
  'judges.llm.FailureLimit', 'judges.llm.Panel', 'judges.llm_settings.Budget', 'judges.llm_settings.Server',
  'runtime.checkpoints.Keep', 'runtime.partitioning.Devices',
  'runtime.trackers.mlflow', 'runtime.trackers.trackio', 'runtime.trackers.wandb',
  't5x_bridge.model.Model', 't5x_bridge.model.StartFrom', 't5x_bridge.network.in_place_of',
  'training.experiment', 'training.optimizers', 'training.parameter_sets', 'training.traces.Traces',
))  # fmt: skip
# Of these what compiles.
_NOT_DESCRIBING = ('nlhf_jax.networks.cpu',)
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
    if _is_within(module, *_ALWAYS) and not _is_description(module, described.__qualname__):
      raise ValueError(
        f'{name}: names {selector}, which no kept configuration may call: it is not among what describes runs, and could write '
        'files or run commands.'
      )


def _is_description(module: str, name: str) -> bool:
  """Of a function or class of what may always be imported; methods are none."""
  if '.' in name:
    return False
  if not _is_within(module, 'nlhf_jax'):
    return True
  if _is_within(module, *_NOT_DESCRIBING) or _WRITING.search(name):
    return False
  return _is_within(f'{module}.{name}', *_DESCRIBING)


def _is_trusted(module: str) -> bool:
  return module == '__gin__.dynamic_registration' or _is_within(module, *_ALWAYS, *_named)


def _is_within(module: str, *packages: str) -> bool:
  return any(module == package or module.startswith(f'{package}.') for package in packages)


def _refusal(what: str, module: str) -> str:
  return f'{what}, and a kept configuration is code: if you trust who made it, allow it with --trust {module.partition(".")[0]}.'
