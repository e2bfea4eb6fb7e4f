"""Where games come from: files, votes, ratings, payoffs, annotators' scores, and the named games of the literature.

A table is P with the labels of its alternatives, and the counts behind it where there are some. Everything is checked
on its way in, and an error names the entry.
"""

import csv
import inspect
import io
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from nlhf_jax import untrusted
from nlhf_jax.games import game

Matrix = Float[np.ndarray, 'Y Y']


class Table(NamedTuple):
  """Alternatives and how they compare."""

  labels: tuple[str, ...]
  # P(y_i ≻ y_j); 1/2 on the diagonal; NaN where the two were never compared.
  preference: Matrix
  # Comparisons that y_i won against y_j, ties half; None: not known.
  wins: Matrix | None = None


def from_matrix(preference, labels: Sequence[str] | None = None) -> Table:
  """A table from P itself; NaN: the two were never compared.

  Raises:
    ValueError: P is no preference, or the labels do not fit.
  """
  preference = np.asarray(preference, np.float64)
  labels = _labels(labels, len(preference))
  unknown = np.isnan(preference) & np.isnan(preference.T)
  game.check(np.where(unknown, 0.5, preference), labels)
  return Table(labels, preference)


def from_wins(wins, labels: Sequence[str] | None = None) -> Table:
  """P as the share of comparisons won; of a pair that was never compared it is unknown, NaN.

  Args:
    wins: [Y, Y], wins[i, j] comparisons that i won against j; a tie counts half on both sides.
    labels: of the alternatives; None: their numbers.

  Raises:
    ValueError: a count is negative or missing; names the entry.
  """
  wins = np.asarray(wins, np.float64)
  if wins.ndim != 2 or wins.shape[0] != wins.shape[1]:
    raise ValueError(f'Counts must be a square matrix, got shape {wins.shape}.')
  labels = _labels(labels, len(wins))
  for i, j in np.argwhere(~((wins >= 0) & np.isfinite(wins))):
    raise ValueError(f'wins[{labels[i]}, {labels[j]}] = {wins[i, j]} must be 0 or more.')
  wins = wins * (1 - np.eye(len(wins)))
  played = wins + wins.T
  share = np.divide(wins, played, out=np.full_like(wins, np.nan), where=played > 0)
  np.fill_diagonal(share, 0.5)
  return Table(labels, share, wins)


def from_ballots(
  ballots: Iterable[tuple[int | float, Sequence[Sequence[int]]]],
  num_alternatives: int,
  labels: Sequence[str] | None = None,
) -> Table:
  """Pairwise shares of ranked ballots; unranked is below ranked, and ties count half.

  Args:
    ballots: (number of voters, ranking) each; a ranking is groups of equals, best first, by alternative number.
    num_alternatives: Y.
    labels: of the alternatives; None: their numbers.

  Raises:
    ValueError: a ballot names an alternative that is not there, or one twice.
  """
  wins = np.zeros((num_alternatives, num_alternatives))
  for number, (count, ranking) in enumerate(ballots):
    # Below all that are ranked.
    place = np.full(num_alternatives, num_alternatives)
    seen = [alternative for group in ranking for alternative in group]
    for alternative in seen:
      if not 0 <= alternative < num_alternatives or seen.count(alternative) > 1:
        raise ValueError(
          f'Ballot {number} names alternative {alternative} twice, or there is none: they are '
          f'numbered 0 to {num_alternatives - 1}.'
        )
    for rank, group in enumerate(ranking):
      place[list(group)] = rank
    wins += count * (0.5 + 0.5 * np.sign(place[None] - place[:, None]))
  return from_wins(wins, labels)


def from_scores(scores: Float[np.ndarray, 'K Y']) -> Matrix:
  """The share of K annotators who score y above y'; a tie is half a vote. −inf ties with −inf."""
  above = scores[:, :, None] > scores[:, None]
  return np.mean(0.5 + 0.5 * above - 0.5 * above.swapaxes(1, 2), axis=0)


def with_rest(
  scores: Float[np.ndarray, 'K Y'],
) -> tuple[Bool[np.ndarray, 'Y'], Float[np.ndarray, 'outcomes outcomes']]:
  """Which responses there are, and how they and "anything else", which every annotator puts last, compare.

  Args:
    scores: of K annotators; −inf: no response.
  """
  valid = np.isfinite(scores[0])
  rest = np.full((len(scores), 1), -np.inf)
  return valid, from_scores(np.concatenate([scores[:, valid], rest], axis=1))


def bradley_terry(scores: Float[np.ndarray, 'Y']) -> Matrix:
  """P(i ≻ j) = σ(r_i − r_j), rewards in nats."""
  scores = np.asarray(scores, np.float64)
  return special.expit(scores[:, None] - scores)


def elo(ratings: Float[np.ndarray, 'Y']) -> Matrix:
  """P(i ≻ j) = 1/(1 + 10^((R_j − R_i)/400))."""
  return bradley_terry(np.asarray(ratings, np.float64) * math.log(10) / 400)


def from_payoffs(payoffs) -> Matrix:
  """P = 1/2 + A/(2 max|A|) of a symmetric zero-sum game with payoffs A = −Aᵀ.

  Raises:
    ValueError: A is not antisymmetric; names the entry.
  """
  payoffs = np.asarray(payoffs, np.float64)
  for i, j in np.argwhere(~(np.abs(payoffs + payoffs.T) <= 1e-6 * np.abs(payoffs).max())):
    raise ValueError(
      f'Payoffs of a symmetric zero-sum game satisfy A = −Aᵀ: A[{i}, {j}] = {payoffs[i, j]}, '
      f'A[{j}, {i}] = {payoffs[j, i]}.'
    )
  return 0.5 + payoffs / (2 * max(np.abs(payoffs).max(), 1e-300))


def is_matrix(path: pathlib.Path) -> bool:
  """Whether a file is a CSV with labels in the first row and column, and not one of votes."""
  if path.suffix != '.csv' or not path.is_file():
    return False
  lines = _lines(path)
  columns = {label.strip() for label in lines[0][1:]} if lines else set()
  return any(line[0].strip() in columns for line in lines[1:])


def _lines(path: pathlib.Path) -> list[list[str]]:
  text = io.StringIO(untrusted.read_text(path), newline='')
  reader = csv.reader(text, delimiter=delimiter(text.readline()))
  text.seek(0)
  try:
    return [line for line in reader if line]
  except csv.Error as error:
    raise ValueError(
      f'{path}:{reader.line_num}: no CSV ({error}): is a quote before it never closed?'
    ) from None


def delimiter(header: str) -> str:
  """What stands between the fields of a CSV: the one of , ; and tab that its first line has most of."""
  return max(',;\t', key=header.count)


def read_table(path: pathlib.Path) -> Table:
  """A CSV with labels in the first row and column: shares P(i ≻ j), or counts of comparisons won.

  An entry above 1, or a diagonal of zeros, tells counts from shares. A blank, or nan, is a pair that was never compared.
  Shares may be rounded: P(i ≻ j) and P(j ≻ i) need to add up to 1 within their last printed digits.

  Raises:
    FileNotFoundError, ValueError: names file, line and entry.
  """
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}: name a CSV, or one of the games {", ".join(NAMED)}.')
  lines = _lines(path)
  if len(lines) < 2:
    raise ValueError(
      f'{path} has no rows: labels in the first row and column, a number for each pair.'
    )
  labels = [label.strip() for label in lines[0][1:]]
  for number, line in enumerate(lines[1:], start=2):
    if len(line) != len(labels) + 1:
      raise ValueError(f'{path}:{number} has {len(line)} fields, the first line {len(labels) + 1}.')
  rows = [line[0].strip() for line in lines[1:]]
  if rows != labels:
    raise ValueError(
      f'{path}: labels of rows and columns differ: {_first_difference(rows, labels)}.'
    )
  fields = [[field.strip() for field in line[1:]] for line in lines[1:]]
  values = np.array(
    [
      [_entry(path, number, label, field) for label, field in zip(labels, line, strict=True)]
      for number, line in enumerate(fields, start=2)
    ]
  )
  try:
    if _are_counts(values):
      return from_wins(np.nan_to_num(values), labels)
    return from_matrix(_exact(values, _precision(fields)), labels)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _entry(path: pathlib.Path, number: int, label: str, field: str) -> float:
  if field == '':
    return math.nan
  try:
    value = float(field)
  except ValueError:
    value = math.inf
  if math.isinf(value) or '_' in field:
    shown = untrusted.quoted(label), untrusted.quoted(field)
    raise ValueError(f'{path}:{number}: column {shown[0]} holds {shown[1]}, not a number.')
  return value


def _are_counts(values: Matrix) -> bool:
  """Integers or, since a tie counts half, halves; of which one is above 1, or the diagonal is 0."""
  known = values[~np.isnan(values)]
  whole = bool(np.all(np.mod(2 * known, 1) == 0))
  return whole and bool(np.any(known > 1) or np.all(np.diag(values) == 0))


def _precision(fields: Sequence[Sequence[str]]) -> float:
  """Half a unit of the last digit of the number that has most digits; of the second, if that is fewer."""
  digits = [
    len(field.partition('.')[2].lower().partition('e')[0]) for line in fields for field in line
  ]
  return 0.5 * 10.0 ** -max(2, *digits)


def _exact(values: Matrix, precision: float) -> Matrix:
  """Shares that add up to 1 exactly, if they did before they were rounded."""
  diagonal = np.eye(len(values), dtype=bool)
  values = np.where(diagonal & np.isnan(values), 0.5, values)
  off = np.abs(values + values.T - 1)
  # A little more than two roundings.
  rounded = off <= 2.01 * precision
  mean = np.clip((values + 1 - values.T) / 2, 0, 1)
  return np.where(rounded & (values >= 0) & (values <= 1), mean, values)


def _first_difference(rows: Sequence[str], columns: Sequence[str]) -> str:
  for row, column in itertools.zip_longest(rows, columns):
    if row != column:
      return f'{row!r} in a row where a column has {column!r}'
  return 'none'


def _labels(labels: Sequence[str] | None, size: int) -> tuple[str, ...]:
  if labels is None:
    return tuple(f'y{number + 1}' for number in range(size))
  if len(labels) != size:
    raise ValueError(f'{len(labels)} labels for {size} alternatives.')
  for label in labels:
    if list(labels).count(label) > 1:
      raise ValueError(f'The label {label!r} occurs twice.')
  return tuple(labels)


def section_3_2(epsilon: float = 0.1) -> Table:
  """Munos et al. (2024), section 3.2: Nash (1/3 + ε/2, 1/3 + ε/2, 1/3 − ε) for |ε| ≤ 1/3; Bradley-Terry picks one."""
  p = np.full((3, 3), 0.5)
  pairs = {
    (1, 0): 2 / 3 - epsilon / 2,
    (2, 0): 1 / 3 - epsilon / 4,
    (2, 1): 2 / 3 + epsilon / 4,
  }
  for (i, j), value in pairs.items():
    p[i, j], p[j, i] = value, 1 - value
  return from_matrix(p)


def appendix_a() -> Table:
  """Munos et al. (2024), appendix A: Bradley-Terry with rewards (0, log 9, log 2)."""
  return from_matrix(bradley_terry(np.log([1.0, 9.0, 2.0])))


def appendix_c_2() -> Table:
  """Munos et al. (2024), appendix C.2: three annotators' scores whose majorities cycle, every edge 2/3."""
  return from_matrix(from_scores(np.array([[2, 1, 3], [4, 6, 5], [9, 8, 7]], float)))


def rock_paper_scissors(size: int = 3) -> Table:
  """Each beats the (size − 1)/2 before it on a circle for sure; size odd."""
  if size < 3 or size % 2 == 0:
    raise ValueError(
      f'rock_paper_scissors needs an odd number of alternatives, 3 or more: got {size}.'
    )
  ahead = (np.arange(size)[:, None] - np.arange(size)) % size
  p = np.where(ahead == 0, 0.5, (ahead <= size // 2).astype(float))
  return from_matrix(p, ('rock', 'paper', 'scissors') if size == 3 else None)


def blotto(soldiers: int = 5, fields: int = 3) -> Table:
  """Colonel Blotto: who takes more fields wins."""
  plans = [p for p in itertools.product(range(soldiers + 1), repeat=fields) if sum(p) == soldiers]
  grid = np.array(plans)
  taken = np.sign(grid[:, None] - grid[None]).sum(axis=-1)
  separator = '' if soldiers < 10 else '-'
  return from_matrix(0.5 + 0.5 * np.sign(taken), [separator.join(map(str, p)) for p in plans])


def cyclic(size: int = 9, seed: int = 0) -> Table:
  """A random game with cycles: places on a disc, i ahead of j by the angle between them, and noise.

  Log-odds are 3 r_i r_j sin(angle) plus a Gaussian's antisymmetric part. Without noise it is the disc game of Balduzzi et
  al. (2019), arXiv:1901.08106.
  """
  rng = np.random.default_rng(seed)
  angle, radius = rng.uniform(0, 2 * math.pi, size), np.sqrt(rng.uniform(size=size))
  noise = rng.normal(size=(size, size))
  odds = 3 * np.outer(radius, radius) * np.sin(angle[:, None] - angle) + 0.5 * (noise - noise.T)
  return from_matrix(special.expit(odds))


NAMED: dict[str, Callable[..., Table]] = {
  'section_3_2': section_3_2,
  'appendix_a': appendix_a,
  'appendix_c_2': appendix_c_2,
  'rock_paper_scissors': rock_paper_scissors,
  'blotto': blotto,
  'cyclic': cyclic,
}


def named(text: str) -> Table | None:
  """A game by name, with its numbers after a colon, such as 'blotto:5,3'; None where no game has that name."""
  match = re.fullmatch(r'(\w+)(?::([-\d.,]+))?', text)
  if match is None or match[1] not in NAMED:
    return None
  texts = match[2].split(',') if match[2] else []
  kinds = [type(p.default) for p in inspect.signature(NAMED[match[1]]).parameters.values()]
  if len(texts) > len(kinds):
    raise ValueError(f'{match[1]} takes at most {len(kinds)} numbers: {text}.')
  try:
    return NAMED[match[1]](*(kind(x) for kind, x in zip(kinds, texts, strict=False)))
  except ValueError as error:
    raise ValueError(f'{text}: {error}.') from error
