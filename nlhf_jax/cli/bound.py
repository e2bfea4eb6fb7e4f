"""What gin files and flags bind: every argument that can reach what is described, checked, and where it was written.

Macros are followed to their values, references to what they refer to.
"""

import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config_parser

from nlhf_jax import arguments

# (scope, selector) -> parameter -> value, as gin keeps it.
Config = Mapping[tuple[str, str], Mapping[str, Any]]
# gin has no types.
Reference: Any = gin.config.ConfigurableReference


class Argument(NamedTuple):
  """One that is bound."""

  # Of whose scopes.
  scopes: tuple[str, ...]
  # What gin calls the function or class.
  selector: str
  parameter: str
  # As it is bound: macros and references may be in it.
  bound: Any

  @property
  def name(self) -> str:
    """As gin files write it."""
    return '/'.join([*self.scopes, f'{_short(self.selector)}.{self.parameter}'])

  @property
  def macro(self) -> str | None:
    """The macro that it is bound to, if it is bound to one."""
    is_macro = isinstance(self.bound, Reference) and self.bound.config_key[1] == 'gin.macro'
    return self.bound.config_key[0] if is_macro else None

  @property
  def flag(self) -> str:
    """That sets it."""
    if self.macro == 'DATA_DIR':
      return '--data_dir'
    return f'--gin.{self.macro or self.name}'


def reaching(described: Callable[..., Any]) -> Iterator[Argument]:
  """Those that reach an object, directly or through references."""
  queue: list[tuple[tuple[str, ...], str]] = [((), full_name(described))]
  seen: set[tuple[tuple[str, ...], str]] = set()
  while queue:
    scopes, selector = queue.pop(0)
    if (scopes, selector) in seen:
      continue
    seen.add((scopes, selector))
    for parameter, value in sorted(bindings(gin.config._CONFIG, scopes, selector).items()):
      yield Argument(scopes, selector, parameter, value)
      for reference in _references(value):
        queue.append((tuple(reference.scopes) or scopes, reference.config_key[1]))


def fields_and_flags(described: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, str]]:
  """All of them by name, in JSON, and the flags that set them, by their last name."""
  fields: dict[str, Any] = {}
  flags: dict[str, str] = {}
  for argument in reaching(described):
    fields[argument.name] = _in_json(argument.bound, argument.scopes)
    flags.setdefault(argument.parameter, argument.flag)
  for parameter in getattr(described, '_fields', ()):
    flags.setdefault(parameter, f'--gin.{_short(full_name(described))}.{parameter}')
  return dict(sorted(fields.items())), flags


def beneath(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Of `fields_and_flags` this one, and all that reach it through references: what it is once it is called."""
  found, queue = {}, [name]
  while queue:
    field = queue.pop()
    if field in found or field not in fields:
      continue
    found[field] = fields[field]
    for referred in re.findall(r'@([\w./]+)', json.dumps(fields[field])):
      queue += [x for x in fields if x.rpartition('.')[0] == referred]
  return dict(sorted(found.items()))


def unread(described: Callable[..., Any], statements: Sequence[str]) -> tuple[str, ...]:
  """Those of bindings, NAME=VALUE each, that reach nothing of what is described."""
  reached = list(reaching(described))
  macros = {name for argument in reached for name in _macros(argument.bound)}

  def is_read(statement: Any) -> bool:
    return statement.selector in macros or any(_binds(argument, statement) for argument in reached)

  return tuple(text for text in statements if not any(map(is_read, _statements(text))))


def check(described: Callable[..., Any], place: Callable[[Argument], str]) -> None:
  """Compares each with its annotation.

  Args:
    described: what they reach.
    place: where one was written.

  Raises:
    ValueError: a value is of another type than its argument, or out of its range; names argument, value, range and place.
  """
  for argument in reaching(described):
    hint = arguments.hints(function(argument.selector)).get(argument.parameter, Any)
    value = _without_macros(argument.bound)
    if _references(value):
      wrong = _problem_of_reference(hint, value)
    else:
      wrong = arguments.problem(hint, value)
    if wrong is not None:
      raise ValueError(f'{argument.name} {wrong}: {place(argument)}')


def place_of(argument: Argument, layers: Sequence[Any], search_paths: Sequence[str]) -> str:
  """Where an argument was bound last: 'FILE, line N', or its flag.

  Args:
    argument: that was bound.
    layers: of gin files and of bindings, in the order in which they were read.
    search_paths: of the files.
  """
  for files, bindings in reversed(layers):
    if any(_binds(argument, x) for binding in bindings for x in _statements(binding)):
      return f'see {argument.flag}.'
    for file in reversed(files):
      found = _last(argument, str(file), search_paths)
      if found is not None:
        return f'see {found}, or set {argument.flag}.'
  return f'set {argument.flag}.'


def full_name(described: Callable[..., Any]) -> str:
  """What gin calls a function or class."""
  return f'{described.__module__}.{described.__qualname__}'


def keys(scopes: tuple[str, ...], selector: str) -> list[tuple[str, str]]:
  """Where gin keeps what is bound in a scope, inner scopes last: they win."""
  return [('/'.join(scopes[:n]), selector) for n in range(len(scopes) + 1)]


def bindings(config: Config, scopes: tuple[str, ...], selector: str) -> dict[str, Any]:
  """Parameter -> what is bound to it within scopes."""
  result: dict[str, Any] = {}
  for key in keys(scopes, selector):
    result |= config.get(key, {})
  return result


def _problem_of_reference(hint: Any, value: Any) -> str | None:
  """A result that is bound must be of a class that the argument may have; what cannot be told is allowed."""
  if not isinstance(value, Reference):
    return None
  described = function(value.config_key[1])
  if not value.evaluate:
    name = f'@{_short(value.config_key[1])}'
    wrong = None if arguments.may_be(hint, type(described)) else arguments.describe(hint)
    return wrong and f'must be {wrong}, got the function {name}: {name}() is its result'
  result = described if isinstance(described, type) else _annotated_result(described)
  if not isinstance(result, type) or arguments.may_be(hint, result):
    return None
  given = f'@{_short(value.config_key[1])}()'
  return f'must be {arguments.describe(hint)}, got {given}, a {result.__name__}'


def function(selector: str) -> Callable[..., Any]:
  """The function or class that a selector names."""
  return gin.config._REGISTRY.get_match(selector).wrapped


def _annotated_result(described: Callable[..., Any]) -> Any:
  return getattr(described, '__annotations__', {}).get('return')


def _last(argument: Argument, file: str, search_paths: Sequence[str]) -> str | None:
  """The last place in a file, and in those that it includes, that binds an argument."""
  paths = (pathlib.Path(path) / file for path in ('', *search_paths))
  path = next((path for path in paths if path.is_file()), None)
  found = None
  for statement in () if path is None else _statements(path.read_text(encoding='utf-8')):
    if isinstance(statement, config_parser.IncludeStatement):
      found = _last(argument, statement.filename, search_paths) or found
    elif _binds(argument, statement):
      found = f'{file}, line {statement.location.line_num}'
  return found


def _statements(text: str) -> Iterator[Any]:
  return iter(config_parser.ConfigParser(text, gin.config.ParserDelegate(skip_unknown=True)))


def _binds(argument: Argument, statement: Any) -> bool:
  """Whether a statement binds the argument, or the macro that it is bound to."""
  if not isinstance(statement, config_parser.BindingStatement):
    return False
  if argument.macro is not None:
    return (statement.selector, statement.arg_name) == (argument.macro, '')
  selector = f'.{argument.selector}'.endswith(f'.{statement.selector}')
  scope = '/'.join(argument.scopes).startswith(statement.scope or '')
  return selector and scope and statement.arg_name == argument.parameter


def _in_json(value: Any, scopes: tuple[str, ...]) -> Any:
  value = _without_macros(value)
  if isinstance(value, Reference):
    name = '/'.join([*(tuple(value.scopes) or scopes), _short(value.config_key[1])])
    return f'@{name}()' if value.evaluate else f'@{name}'
  if isinstance(value, dict):
    return {str(k): _in_json(x, scopes) for k, x in value.items()}
  if isinstance(value, list | tuple):
    return [_in_json(x, scopes) for x in value]
  return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _without_macros(value: Any) -> Any:
  """The value that is bound, macros replaced by theirs."""
  if isinstance(value, Reference):
    scope, selector = value.config_key
    if selector == 'gin.macro':
      return _without_macros(gin.config._CONFIG[scope, selector]['value'])
    return value
  if isinstance(value, dict):
    return {k: _without_macros(x) for k, x in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(map(_without_macros, value))
  return value


def _macros(value: Any) -> Iterator[str]:
  """Macros within a value, those within their values too."""
  for reference in gin.config.iterate_references([value]):
    scope, selector = reference.config_key
    if selector == 'gin.macro':
      yield scope
      yield from _macros(gin.config._CONFIG[scope, selector]['value'])


def _references(value: Any) -> list[Any]:
  """To functions and classes, through macros."""
  return list(gin.config.iterate_references([_without_macros(value)]))


def _short(selector: str) -> str:
  """As gin files write it: module and name."""
  return '.'.join(selector.split('.')[-2:])
