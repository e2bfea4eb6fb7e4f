"""PrefLib's ballots: orders of candidates, complete or not, with ties or without. Source: preflib.org/format."""

import itertools
import pathlib
import re
from collections.abc import Iterator

from nlhf_jax import untrusted
from nlhf_jax.votes import table
from nlhf_jax.votes.table import Row

SUFFIXES = ('.soc', '.soi', '.toc', '.toi')
# Of one ballot: a number that a line claims must not fill the memory.
_MOST_VOTERS = 10_000_000


def votes(path: pathlib.Path) -> Iterator[Row]:
  """Each pair that a ballot orders, once for each voter who cast it.

  Who is not on a ballot is not compared by it.

  Raises:
    FileNotFoundError, ValueError: names file and line.
  """
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}: name a file of votes.')
  names: dict[str, str] = {}
  for number, line in enumerate(untrusted.read_text(path).splitlines(), start=1):
    if match := re.match(r'#\s*ALTERNATIVE NAME (\d+):\s*(.+)', line):
      if match[1] in names or match[2].strip() in names.values():
        raise ValueError(f'{path}:{number}: {untrusted.message(line)!r} names a candidate again.')
      names[match[1]] = match[2].strip()
    elif line.strip() and not line.startswith('#'):
      try:
        yield from _pairs(line, names, f'line {number}')
      except ValueError as error:
        raise ValueError(f'{path}:{number}: {untrusted.message(str(error))}') from None


def _pairs(line: str, names: dict[str, str], place: str) -> Iterator[Row]:
  match = re.fullmatch(r'\s*(\d+)\s*:\s*(.*?)\s*', line)
  if match is None or re.sub(r'\{[^{}]*\}|\d+|[\s,]', '', match[2]):
    raise ValueError(f'expected "count: 1,2,{{3,4}}", got {line!r}.')
  count = int(match[1]) if len(match[1]) <= len(str(_MOST_VOTERS)) else _MOST_VOTERS + 1
  if count > _MOST_VOTERS:
    raise ValueError(f'{match[1]} voters cast this ballot: at most {_MOST_VOTERS:,} are read.')
  groups = [re.findall(r'\d+', group) for group in re.findall(r'\{[^{}]*\}|\d+', match[2])]
  ranked = [(level, one) for level, group in enumerate(groups) for one in group]
  for _, one in ranked:
    if one not in names:
      raise ValueError(f'candidate {one} has no line "# ALTERNATIVE NAME {one}: …".')
  if len({one for _, one in ranked}) < len(ranked):
    raise ValueError('a candidate is on the ballot twice.')
  pairs = [
    {'a': names[one], 'b': names[other], 'verdict': 'tie' if level == other_level else 'a'}
    for (level, one), (other_level, other) in itertools.combinations(ranked, 2)
  ]
  for voter in range(count):
    for pair in pairs:
      yield table.checked(pair | {'voter': f'{place}, {voter + 1}'})
