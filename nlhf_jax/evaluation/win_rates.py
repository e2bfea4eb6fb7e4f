"""Pairwise win rates P(i ≻ j) between contestants, with intervals.

Every pair of contestants answers the same prompts and is judged in both orders; intervals resample prompts, the same ones
for every entry, so that differences are paired. A pair of responses on which the judge gives no vote in either order is left out.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from nlhf_jax import untrusted
from nlhf_jax.judges import tables
from nlhf_jax.runtime import atomic
from nlhf_jax.types import PreferenceFn, Prompts

# (i, j, P(i ≻ j), P(j ≻ i)); NaN: no vote.
Observe = Callable[[int, int, Float[np.ndarray, 'B k'], Float[np.ndarray, 'B k']], None]

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


class WinRates(NamedTuple):
  """Entry (i, j): the rate at which contestant i is preferred to contestant j; the diagonal is 1/2."""

  labels: tuple[str, ...]
  mean: Float[np.ndarray, 'contestants contestants']
  low: Float[np.ndarray, 'contestants contestants']
  high: Float[np.ndarray, 'contestants contestants']
  num_prompts: int
  judge: str
  # Pairs of responses, of all that were to be judged, on which the judge gave no vote; they are left out.
  num_missing: int = 0


def judge_all(
  judge: PreferenceFn,
  prompts: Prompts,
  responses: Sequence[Int[np.ndarray, 'N T']],
  *,
  batch_size: int = 64,
  observe: Observe = lambda i, j, forward, backward: None,
  advance: Callable[[int], None] = lambda steps: None,
) -> Float[np.ndarray, 'B contestants contestants']:
  """Preference between every two contestants on every prompt, the mean over their samples and both orders.

  Args:
    judge: P(y ≻ y'|x).
    prompts: B prompts.
    responses: for each contestant N = B·k rows, k to a prompt.
    batch_size: prompts to a call of the judge.
    observe: called with each pair of contestants and the judge's answers, [B, k] in either order: P(i ≻ j), P(j ≻ i). Both
      are NaN where either has no vote, since one order by itself would be biased.
    advance: called with 1 after each pair of contestants.

  Returns:
    NaN where no sample of a prompt has a vote.

  Raises:
    ValueError: the judge answered something outside [0, 1], or gave no vote at all on two contestants.
  """
  contestants, size = len(responses), prompts.tokens.shape[0]
  result = np.full((size, contestants, contestants), 0.5)
  for i in range(contestants):
    for j in range(i + 1, contestants):
      forward, backward = (
        _judge_pair(judge, prompts, responses[a], responses[b], batch_size, (a, b))
        for a, b in ((i, j), (j, i))
      )
      missing = np.isnan(forward) | np.isnan(backward)
      if missing.all():
        raise ValueError(f'The judge gave no vote on contestants ({i}, {j}): make it answer.')
      forward, backward = (np.where(missing, np.nan, p) for p in (forward, backward))
      result[:, i, j] = _mean_of_votes(forward + 1 - backward) / 2
      observe(i, j, forward, backward)
      result[:, j, i] = 1 - result[:, i, j]
      advance(1)
  return result


def _judge_pair(
  judge, prompts, response, alternative, batch_size, pair
) -> Float[np.ndarray, 'B k']:
  size = prompts.tokens.shape[0]
  k = response.shape[0] // size
  answers = []
  for start in range(0, size, batch_size):
    rows = slice(start, min(start + batch_size, size))
    lanes = slice(rows.start * k, rows.stop * k)
    part = Prompts(prompts.tokens[rows], prompts.index[rows])
    p = np.asarray(judge(part, response[lanes], alternative[lanes]), np.float64).reshape(-1, k)
    good = np.all(tables.are_answers(p), axis=-1)
    if not good.all():
      bad = start + int(np.argmin(good))
      raise ValueError(
        f'The judge answered outside [0, 1] on prompt {bad} for contestants {pair}: no vote.'
      )
    answers.append(p)
  return np.concatenate(answers)


def _mean_of_votes(values: Float[np.ndarray, 'B k']) -> Float[np.ndarray, 'B']:
  """The mean of those that are not NaN; NaN where all are."""
  number = np.sum(~np.isnan(values), axis=1)
  mean = np.nan_to_num(values).mean(axis=1) * (values.shape[1] / np.maximum(number, 1))
  return np.where(number > 0, mean, np.nan)


def summarise(
  per_prompt: Float[np.ndarray, 'B contestants contestants'],
  labels: Sequence[str],
  judge: str,
  num_missing: int = 0,
) -> WinRates:
  """Means over prompts with their 95 % intervals."""
  known = ~np.isnan(per_prompt)
  mean, low, high = mean_with_interval(per_prompt, known=None if known.all() else known)
  return WinRates(tuple(labels), mean, low, high, per_prompt.shape[0], judge, num_missing)


def mean_with_interval(
  values: Float[np.ndarray, 'B *rest'],
  seed: int = 0,
  known: Bool[np.ndarray, 'B *rest'] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean over prompts, and the 95 % percentile interval of the bootstrap over prompts.

  The resampled prompts depend on the seed and the number of prompts alone. For a paired difference between two
  contestants pass the difference of their values. Means are over the values that are known; None: all are.
  """
  size = values.shape[0]
  draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), NUM_RESAMPLES)
  if known is None:
    mean, means = values.mean(axis=0), np.tensordot(draws / size, values, axes=1)
  else:
    values = np.where(known, values, 0)
    mean = values.sum(axis=0) / known.sum(axis=0)
    # A resample without any value is none.
    number = np.tensordot(draws, known, axes=1)
    means = np.tensordot(draws, values, axes=1) / np.where(number > 0, number, np.nan)
  tail = 50 * (1 - CONFIDENCE)
  percentile = np.percentile if known is None else np.nanpercentile
  low, high = percentile(means, [tail, 100 - tail], axis=0)
  return np.asarray(mean), np.asarray(low), np.asarray(high)


def write(directory: pathlib.Path, rates: WinRates) -> None:
  """Writes win_rates.csv, labels in the first row and column, none of them a formula, and win_rates.json with the intervals."""
  with atomic.replaced(directory / 'win_rates.csv', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(untrusted.csv_row(['i_beats_j', *rates.labels]))
    for label, row in zip(rates.labels, rates.mean, strict=True):
      writer.writerow(untrusted.csv_row([label, *(f'{x:.6f}' for x in row)]))
  fields = {
    name: value.tolist() if isinstance(value, np.ndarray) else value
    for name, value in rates._asdict().items()
  }
  atomic.write_json(directory / 'win_rates.json', fields | {'confidence': CONFIDENCE})
