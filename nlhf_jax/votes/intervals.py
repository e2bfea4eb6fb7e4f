"""Means over people or runs, with 95 % intervals."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from scipy import special

CONFIDENCE = 0.95


class Interval(NamedTuple):
  """A mean and where it may be."""

  mean: float
  # NaN: one value has no interval.
  low: float
  high: float


def of_mean(values: Shaped[np.ndarray, 'n']) -> Interval:
  """The mean and Student's interval of it; for a paired difference pass the differences.

  Args:
    values: one of each person or run.

  Raises:
    ValueError: there are none.
  """
  values = np.asarray(values, float)
  if not len(values):
    raise ValueError('There is no value to take the mean of.')
  mean = float(values.mean())
  if len(values) == 1:
    return Interval(mean, np.nan, np.nan)
  quantile = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
  half = float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
  return Interval(mean, mean - half, mean + half)


def plain(interval: Interval) -> dict[str, float | None]:
  """For JSON: None in place of an end that one value alone does not have."""
  return {name: None if math.isnan(x) else x for name, x in interval._asdict().items()}


def of_means(values: Shaped[np.ndarray, 'n m']) -> list[Interval]:
  """The same of each column."""
  return [of_mean(column) for column in np.asarray(values, float).T]
