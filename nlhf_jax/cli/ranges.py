"""Flags that are numbers, with the range that each is in: an annotation of `arguments`, checked before a command runs.

ranges.add(parser, '--num_folds', Several, default=5, help='of voters')
"""

import argparse
import typing
from typing import Any

from nlhf_jax import arguments

# Of a parser's defaults, which its groups share: name of a flag -> its annotation.
_RANGES = 'ranges'


def add(parser: Any, flag: str, hint: Any, **settings: Any) -> None:
  """Adds a flag.

  Args:
    parser: a parser, or a group of its flags.
    flag: its name, with hyphens.
    hint: of the number, or of each of them.
    **settings: further ones of `add_argument`; where the default is None, it may be left out.
  """
  kind = typing.get_args(hint)[0]
  action = parser.add_argument(flag, type=kind, **settings)
  parser.set_defaults(**{_RANGES: {**(parser.get_default(_RANGES) or {}), action.dest: hint}})


def check(args: argparse.Namespace) -> None:
  """Checks what was parsed.

  Raises:
    ValueError: a number is out of its range; names flag, range and number.
  """
  for name, hint in getattr(args, _RANGES, {}).items():
    value = getattr(args, name)
    for number in value if isinstance(value, list) else [value]:
      problem = None if number is None else arguments.problem(hint, number)
      if problem is not None:
        raise ValueError(f'--{name} {problem}.')
