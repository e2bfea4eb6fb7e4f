"""Where chat templates run: a template is foreign code, which can reach nothing here, and may take only so much time.

Every turn of a loop and every call of a macro looks at the clock; and an operation that could make a text or a number much larger
than what it is given is asked how large first.
"""

import contextvars
import datetime
import functools
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

# Seconds of one rendering.
MAX_SECONDS = 10.0
# Items of a list and of all within it, characters of a text, bits of a number, and a width or a count that is asked for.
_MAX_ITEMS, _MAX_SIZE, _MAX_BITS, _MAX_COUNT = 1 << 18, 1 << 24, 1 << 12, 1 << 12
# Filters and methods of texts that are given a width or a count.
_WITH_COUNTS = ('batch', 'center', 'expandtabs', 'indent', 'ljust', 'rjust', 'slice', 'tojson', 'wordwrap', 'zfill')  # fmt: skip
# A width of five digits, or one that is given apart.
_WIDE = re.compile(r'\d{5}|\*|:.*\{')
_TICK = 'nlhf_tick'
_deadline: contextvars.ContextVar[float] = contextvars.ContextVar('_deadline')


class ExceededError(jinja2.TemplateError):
  """A template takes too much time or memory."""


def render(source: str, **values: Any) -> str:
  """The text that a template makes of values.

  Raises:
    ExceededError: it takes longer than MAX_SECONDS, or makes too much.
    Exception: whatever a template raises.
  """
  before = _deadline.set(time.monotonic() + MAX_SECONDS)
  try:
    pieces, size = [], 0
    for piece in _compiled(source).generate(**values):
      pieces.append(piece)
      size += len(piece)
      _check_size(size)
    return ''.join(pieces)
  finally:
    _deadline.reset(before)


@functools.cache
def _compiled(source: str) -> jinja2.Template:
  return _SANDBOX.from_string(source)


class _Generation(jinja2.ext.Extension):
  """{% generation %} … {% endgeneration %}, which marks what an assistant said and changes nothing of the text."""

  tags = {'generation'}  # noqa: RUF012

  def parse(self, parser) -> jinja2.nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body, lineno=line)


class _Ticking(jinja2.visitor.NodeTransformer):
  """Has each loop and macro look at the clock, and each joined text at its size."""

  def visit_For(self, node):
    self.generic_visit(node)
    tick = _tick(jinja2.nodes.Const('', lineno=node.lineno))
    node.body.insert(0, jinja2.nodes.Output([tick], lineno=node.lineno))
    return node

  visit_Macro = visit_CallBlock = visit_For

  def visit_Concat(self, node):
    self.generic_visit(node)
    return _tick(node)

  visit_List = visit_Dict = visit_Concat

  def visit_Tuple(self, node):
    self.generic_visit(node)
    # One that is assigned to is none of a value.
    return _tick(node) if node.ctx == 'load' else node


def _tick(node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
  return jinja2.nodes.Filter(node, _TICK, [], [], None, None, lineno=node.lineno)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Jinja's, with bounds."""

  intercepted_binops = frozenset(['+', '*', '**', '%'])

  def _parse(self, source, name, filename):
    tree = _Ticking().visit(super()._parse(source, name, filename))
    tree.set_environment(self)
    return tree

  def call_binop(self, context, operator, left, right):
    _check_operands(operator, left, right)
    return _within(super().call_binop(context, operator, left, right))

  def call(__self, __context, __obj, *args, **kwargs):
    # Jinja wraps str.format.
    method = getattr(__obj, '__wrapped__', __obj)
    text = getattr(method, '__self__', None)
    if isinstance(text, str):
      _check_call(method.__name__, text, args, kwargs)
    return _within(super().call(__context, __obj, *args, **kwargs))


def _check_operands(operator: str, left: Any, right: Any) -> None:
  if operator == '%' and isinstance(left, str):
    _check_format(left)
  bits = sum(x.bit_length() for x in (left, right) if isinstance(x, int))
  if operator == '**':
    bits = bits * right if isinstance(right, int) else bits
  if operator in ('*', '**') and bits > _MAX_BITS:
    raise ExceededError('it makes too large a number')
  for one, other in ((left, right), (right, left)):
    if operator == '*' and isinstance(other, int) and hasattr(one, '__len__'):
      _check_size(len(one) * other)


def _check_call(name: str, text: Any, args, kwargs) -> None:
  """Of a filter, or a method of a text."""
  given = [*args, *kwargs.values()]
  if name in _WITH_COUNTS and any(isinstance(x, int) and x > _MAX_COUNT for x in given):
    raise ExceededError(f'it gives {name} a number above {_MAX_COUNT}')
  if name in ('format', 'format_map'):
    _check_format(str(text))
  if name == 'replace' and len(args) > 1:
    _check_size(len(str(args[1])) * str(text).count(str(args[0])))
  # A filter is given the items, a method what stands between them.
  between, items = (
    (text, given[:1]) if isinstance(text, str) else (''.join(map(str, given)), [text])
  )
  if name == 'join' and items and hasattr(items[0], '__len__'):
    _check_size(len(between) * len(items[0]))


def _check_format(form: str) -> None:
  if _WIDE.search(form):
    raise ExceededError('it formats to a width of thousands, or one that is given apart')


def _check_size(size: int) -> None:
  if size > _MAX_SIZE:
    raise ExceededError('it makes too long a text')


def _within(value: Any) -> Any:
  """The value, unless it is too long or it is too late."""
  if time.monotonic() > _deadline.get():
    raise ExceededError(f'it takes longer than {MAX_SECONDS:g} seconds')
  if isinstance(value, str):
    _check_size(len(value))
  elif isinstance(value, list | tuple | dict):
    _check_items(value)
  return value


def _check_items(value: Any) -> None:
  """Counts what is within what; the same list twice counts twice, as it does where it is printed."""
  waiting, number = [value], 0
  while waiting:
    one = waiting.pop()
    inner = [*one, *one.values()] if isinstance(one, dict) else one
    number += len(inner)
    if number > _MAX_ITEMS:
      raise ExceededError('it makes too long a list')
    waiting += [x for x in inner if isinstance(x, list | tuple | dict)]


# Not before the template runs.
@jinja2.pass_context
def _ticking(context, value: Any) -> Any:
  return _within(value)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """A filter that is checked first; its attributes say whether it is given more than a value and its arguments."""
  start = 1 if hasattr(function, 'jinja_pass_arg') else 0

  @functools.wraps(function)
  def call(*args, **kwargs):
    _check_call(name, args[start], args[start + 1 :], kwargs)
    return _within(function(*args, **kwargs))

  return call


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """Unlike Jinja's own, without escapes for HTML."""
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse(message: str):
  raise jinja2.TemplateError(message)


def _sandbox() -> _Sandbox:
  sandbox = _Sandbox(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  sandbox.filters['tojson'] = _to_json
  for name in (*_WITH_COUNTS, 'format', 'join', 'replace'):
    if name in sandbox.filters:
      sandbox.filters[name] = _bounded(name, sandbox.filters[name])
  sandbox.filters[_TICK] = _ticking
  sandbox.globals['raise_exception'] = _refuse
  sandbox.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  # Texts without an end.
  del sandbox.globals['lipsum']
  return sandbox


_SANDBOX = _sandbox()
