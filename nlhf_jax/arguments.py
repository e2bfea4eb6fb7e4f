"""What arguments may be: types with a range, written where the argument is, and checked before anything runs.

  def nash_md_pg(policy, preference_fn, *, tau: NonNegative, beta: Share, num_samples: Count = 1): …

Annotations are all that there is to write. `problem` compares a value with one; who reads configurations asks it of every
argument that a file binds. True and False are no numbers here, NaN and infinity are in no
range, and a whole number will do where a fraction is asked for.
"""

import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from beartype import BeartypeConf
from beartype.door import is_bearable

_WORDS: dict[Any, str] = {
  int: 'a whole number',
  float: 'a number',
  bool: 'True or False',
  str: 'a text in quotes',
  pathlib.Path: 'a path in quotes',
  type(None): 'None',
}
_CONF = BeartypeConf(is_pep484_tower=True)


class Range(NamedTuple):
  """Numbers for which something holds, and how messages call them."""

  holds: Callable[[Any], bool]
  words: str


# Steps, rows, tokens, sizes: at least 1.
Count = Annotated[int, Range(lambda n: n >= 1, 'a whole number of at least 1')]
# What may be none at all.
CountOrZero = Annotated[int, Range(lambda n: n >= 0, 'a whole number of at least 0')]
# What one alone makes no sense of.
Several = Annotated[int, Range(lambda n: n >= 2, 'a whole number of at least 2')]
# Of a mesh axis: −1 is what is left.
AxisSize = Annotated[int, Range(lambda n: n >= 1 or n == -1, 'a whole number of at least 1, or -1')]
# What JAX's generators take without folding it.
Seed = Annotated[int, Range(lambda n: 0 <= n < 2**32, 'a whole number from 0 to 2**32 - 1')]
# Greater than 0, finite.
Positive = Annotated[float, Range(lambda x: 0 < x < math.inf, 'a number greater than 0')]
# At least 0, finite.
NonNegative = Annotated[float, Range(lambda x: 0 <= x < math.inf, 'a number of at least 0')]
# From 0 to 1, both included.
Share = Annotated[float, Range(lambda x: 0 <= x <= 1, 'a number from 0 to 1')]
# From 0 to 1, without 1.
Decay = Annotated[float, Range(lambda x: 0 <= x < 1, 'a number from 0 to 1, less than 1')]
# From 0 to 1, without 0.
PositiveShare = Annotated[
  float, Range(lambda x: 0 < x <= 1, 'a number from 0 to 1, greater than 0')
]
# Finite.
Number = Annotated[float, Range(math.isfinite, 'a finite number')]
# What weights and arithmetic may be in.
DType = Literal['float32', 'bfloat16', 'float16']


def problem(hint: Any, value: Any) -> str | None:
  """What is wrong with a value for an argument: 'must be a whole number of at least 1, got 0'; None: nothing is.

  Args:
    hint: the argument's annotation; what says nothing allows everything.
    value: what it is to be; of sequences and mappings every element is looked at.
  """
  if hint is Any or hint is None or fits(hint, value):
    return None
  return f'must be {describe(hint)}, got {_shown(value)}'


def fits(hint: Any, value: Any) -> bool:
  """Whether a value is what an annotation says."""
  kinds = members(hint)
  if len(kinds) > 1:
    return any(fits(member, value) for member in kinds)
  if typing.get_origin(hint) is Annotated:
    kind, within = typing.get_args(hint)[:2]
    return fits(kind, value) and within.holds(value)
  if hint in (int, float) and isinstance(value, bool):
    return False
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if isinstance(value, str) and origin in (Sequence, tuple, list):
    return False  # A text is no sequence of texts.
  if not is_bearable(value, hint, conf=_CONF):
    return False
  if origin in (Sequence, list):
    return all(fits(inner[0], x) for x in value)
  if origin is tuple:
    kinds = inner[:1] * len(value) if inner[-1:] == (Ellipsis,) else inner
    return all(map(fits, kinds, value))
  if origin in (Mapping, dict):
    return all(fits(inner[0], k) and fits(inner[1], x) for k, x in value.items())
  return True


def may_be(hint: Any, result: type) -> bool:
  """Whether an argument may be of a class; where annotations do not tell, it may."""
  for member in members(hint):
    kind = typing.get_origin(member) or member
    if kind is Annotated:
      kind = typing.get_args(member)[0]
    if kind is Any or kind is Literal or not isinstance(kind, type) or hasattr(kind, 'array_type'):
      return True  # Shapes are jaxtyping's to check.
    if kind is Callable or '__call__' in vars(kind):
      if any('__call__' in vars(parent) for parent in result.__mro__):
        return True
    elif getattr(kind, '_is_protocol', False):
      # What attributes an object has, its class alone does not tell; methods it does, and functions and classes have none of them.
      if result not in (types.FunctionType, type) and _has_methods(result, kind):
        return True
    elif issubclass(result, kind):
      return True
    if kind is float and issubclass(result, int):
      return True
  return False


def _has_methods(result: type, protocol: type) -> bool:
  """Whether a class has the methods and properties that a protocol asks for."""
  wanted = {
    name
    for parent in protocol.__mro__
    if getattr(parent, '_is_protocol', False)
    for name, value in vars(parent).items()
    if not name.startswith('_') and (callable(value) or isinstance(value, property))
  }
  return hasattr(result, '__getattr__') or wanted <= set(dir(result))


def describe(hint: Any) -> str:
  """What messages call an annotation."""
  if typing.get_origin(hint) is Annotated:
    return typing.get_args(hint)[1].words
  if hint in _WORDS:
    return _WORDS[hint]
  kinds = members(hint)
  if len(kinds) > 1:
    return ' or '.join(map(describe, kinds))
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return ' or '.join(map(repr, inner))
  if origin in (Sequence, tuple, list) and inner:
    return f'a list, of each {describe(inner[0])}'
  if origin in (Mapping, dict):
    return f'a dictionary to {describe(inner[1])}'
  if origin is not None and getattr(origin, '__name__', '') == 'Callable':
    return 'a function, such as @module.name'
  return f'a {getattr(hint, "__name__", str(hint))}'


def hints(described: Callable[..., Any]) -> dict[str, Any]:
  """Argument -> annotation, of a function or of a class; empty where they cannot be told."""
  annotated: Any = described
  if isinstance(described, type) and not hasattr(described, '_fields'):
    annotated = described.__dict__.get('__init__', described)
  try:
    found = typing.get_type_hints(annotated, include_extras=True)
  except (NameError, TypeError):
    return {}
  return {name: hint for name, hint in found.items() if name != 'return'}


def members(hint: Any) -> tuple[Any, ...]:
  """Of a union; of anything else, itself."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return typing.get_args(hint)
  return (hint,)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}…'
