"""`nlhf tokenize`: a run's data as token files, and the run as a gin file that reads them and imports neither seqio nor TensorFlow.

What a configuration takes from `nlhf_jax.data` is replaced: batches and held-out rows by files, templates of raters by their
tokens. All else stays as it was, macros too. What cannot be replaced, such as a judge that reads text, is refused.
"""

import copy
import pathlib
from collections.abc import Callable
from typing import Any

import gin

from nlhf_jax.cli import bound, gin_config

_DATA = 'nlhf_jax.data.'
_FILES = f'{_DATA}token_files'
_CONVERSATION = f'{_DATA}chat_raters.conversation'
_RATER = 'nlhf_jax.models.rater.in_decoder'
_READERS = ('batches', 'load_split')
# Where the files are; --data_dir sets it.
_DIRECTORY = 'DATA_DIR'
_TRACE_TEXTS = '--gin.traces.Traces.decode'
_DYNAMIC = 'from __gin__ import dynamic_registration'

# Scope and name of what is configured → its parameters, as gin keeps them.
Config = dict[tuple[str, str], dict[str, Any]]
Scopes = tuple[str, ...]


def tokenize(name: str, output_dir: pathlib.Path) -> pathlib.Path:
  """Writes the Experiment that has just been configured, and its data.

  Args:
    name: of the gin file, and what those of the data begin with.
    output_dir: made if need be.

  Returns:
    The gin file.

  Raises:
    ValueError: the run takes from its data what token files do not hold.
  """
  from nlhf_jax.runtime import atomic, run_lock
  from nlhf_jax.training.experiment import Experiment

  directory = output_dir.resolve()
  replacement = _Replacement(name, directory)
  text = _text(replacement.replace(Experiment))
  path = directory / f'{name}.gin'
  command = f'nlhf train --gin_file={name}.gin --data_dir=DIR --run_dir=RUN_DIR'
  head = f'# Run:     {command}\n#          (DIR holds the token files; other runs that it names lie beside RUN_DIR)\n'
  with run_lock.held(directory):
    for write in replacement.writes:
      write()
    # What is written must describe a run, here too.
    gin_config.from_text(Experiment, text)
    atomic.write_text(path, head + text)
  return path


class _Replacement:
  """A configuration without `nlhf_jax.data`, and what writes the files that stand for it."""

  def __init__(self, name: str, directory: pathlib.Path):
    self.writes: list[Callable[[], None]] = []
    self._name, self._directory = name, directory
    self._config: Config = gin.config._CONFIG
    files = [f'token_files.{reader}.directory = %{_DIRECTORY}' for reader in _READERS]
    imports = ['from nlhf_jax.data import token_files', 'from nlhf_jax.models import rater']
    # gin knows a function once something of it is bound; nothing reads within this scope.
    known = f'{_DIRECTORY}/rater.in_decoder.template = ()'
    with gin.unlock_config():
      gin.parse_config([_DYNAMIC, *imports, *files, known])

  def replace(self, described: Callable[..., Any]) -> Config:
    """All that can reach what is described, in the scopes in which it was bound."""
    result: Config = {}
    queue: list[tuple[Scopes, str]] = [((), bound.full_name(described))]
    seen = set()
    while queue:
      scopes, selector = queue.pop(0)
      if (scopes, selector) in seen:
        continue
      seen.add((scopes, selector))
      for key in bound.keys(scopes, selector):
        for parameter, value in self._config.get(key, {}).items():
          value = self._without_data(value, scopes, _flag(key, parameter))
          result.setdefault(key, {})[parameter] = value
          references = gin.config.iterate_references([value])
          queue += [(tuple(x.scopes) or scopes, x.config_key[1]) for x in references]
    # Only now: until here it says where the data are that are replaced.
    return result | {(_DIRECTORY, 'gin.macro'): {'value': str(self._directory)}}

  def _without_data(self, value: Any, scopes: Scopes, flag: str) -> Any:
    """A value with what it takes from `nlhf_jax.data` replaced; read within these scopes, set by this flag."""
    if isinstance(value, dict):
      return {k: self._without_data(x, scopes, flag) for k, x in value.items()}
    if isinstance(value, list | tuple):
      return type(value)(self._without_data(x, scopes, flag) for x in value)
    if not _is_reference(value) or not value.config_key[1].startswith(_DATA):
      return value
    selector, scopes = value.config_key[1], tuple(value.scopes) or scopes
    reader = selector.removeprefix(f'{_DATA}pipeline.')
    if selector.startswith(_FILES):
      return value
    if reader in _READERS and not value.evaluate:
      return self._file(reader, bound.bindings(self._config, scopes, selector), scopes)
    if reader == 'shapes':
      return None  # A batch is read in its place.
    if flag == _TRACE_TEXTS:
      return None  # Traces then keep ids.
    if selector == _CONVERSATION and value.evaluate:
      return self._conversation(bound.bindings(self._config, scopes, selector), scopes)
    made = _evaluate(value, scopes) if value.evaluate else None
    if made is None or not gin.config._is_literally_representable(made):
      raise ValueError(
        f'{flag.removeprefix("--gin.")} is {value}, which needs more than tokens: set {flag} to what does without the data, or to '
        'None where it may be left out.'
      )
    return made

  def _conversation(self, settings: dict[str, Any], scopes: Scopes) -> Any:
    """A rater that reads no words of its own is one of `models.rater`, which needs no vocabulary."""
    from nlhf_jax.data import chat_raters

    asked = {**settings, 'template': chat_raters.CONVERSATION}
    self._config.setdefault(('/'.join(scopes), _RATER), {}).update(asked)
    return gin.config.ConfigurableReference('/'.join([*scopes, _RATER]), True)

  def _file(self, reader: str, settings: dict[str, Any], scopes: Scopes) -> Any:
    """Has what a function of `pipeline` reads written; the reference to what reads the file."""
    from nlhf_jax.data import encoded, pipeline, token_files

    told = ('task', 'split', 'prompt_length', 'limit')
    task, split, length, limit = (_evaluate(settings.get(key), scopes) for key in told)
    if isinstance(task, pipeline.Stream):
      raise ValueError(
        f'{task.name} makes its rows when they are asked for, so they cannot all be written: name a task that has its rows.'
      )
    file = '_'.join([self._name, *scopes, reader]) + '.npz'
    labels = {'name': task.name, 'split': split, 'prompt_length': length, 'limit': limit}

    def write():
      rows = encoded.open_split(task, split, length)
      token_files.write(self._directory / file, rows, **labels)

    self.writes.append(write)
    bound = {key: x for key, x in settings.items() if key not in ('task', 'split')}
    scope, selector = '/'.join(scopes), f'{_FILES}.{reader}'
    self._config.setdefault((scope, selector), {}).update(bound | {'file': file})
    return gin.config.ConfigurableReference('/'.join([*scopes, selector]), False)


def _flag(key: tuple[str, str], parameter: str) -> str:
  """What sets a parameter on the command line."""
  scope, selector = key
  if selector == 'gin.macro':
    return f'--gin.{scope}'
  module_and_name = '.'.join(selector.split('.')[-2:])
  return f'--gin.{"/".join(filter(None, [scope, module_and_name]))}.{parameter}'


def _text(config: Config) -> str:
  """As a gin file, which imports what it names and nothing else."""
  imports = set(gin.config._IMPORTS)
  dynamic = {x for x in imports if x.format() == _DYNAMIC}
  try:
    gin.config._IMPORTS.intersection_update(dynamic)
    return gin.config._config_str(config)
  finally:
    gin.config._IMPORTS.update(imports)


def _evaluate(value: Any, scopes: Scopes) -> Any:
  """What gin would pass within these scopes: references are called, macros read."""
  with gin.config_scope(list(scopes)):
    return copy.deepcopy(value)


def _is_reference(value: Any) -> bool:
  return isinstance(value, gin.config.ConfigurableReference)
