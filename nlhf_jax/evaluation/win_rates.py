"""Pairwise win rates P(i ≻ j) between contestants, with intervals.

Every pair of contestants answers the same prompts and is judged in both orders; intervals resample prompts, the same ones
for every entry, so that differences are paired.
"""

import csv
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.runtime import atomic
from nlhf_jax.types import PreferenceFn, Prompts

# (i, j, P(i ≻ j), P(j ≻ i)).
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
    observe: called with each pair of contestants and the judge's answers, [B, k] in either order: P(i ≻ j), P(j ≻ i).
    advance: called with 1 after each pair of contestants.

  Raises:
    ValueError: the judge answered NaN or something outside [0, 1]; such an answer is no vote.
  """
  contestants, size = len(responses), prompts.tokens.shape[0]
  result = np.full((size, contestants, contestants), 0.5)
  for i in range(contestants):
    for j in range(i + 1, contestants):
      forward, backward = (
        _judge_pair(judge, prompts, responses[a], responses[b], batch_size, (a, b))
        for a, b in ((i, j), (j, i))
      )
      result[:, i, j] = (forward + 1 - backward).mean(axis=1) / 2
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
    if not np.all((p >= 0) & (p <= 1)):
      bad = start + int(np.argmin(np.all((p >= 0) & (p <= 1), axis=-1)))
      raise ValueError(
        f'The judge answered outside [0, 1] on prompt {bad} for contestants {pair}: no vote.'
      )
    answers.append(p)
  return np.concatenate(answers)


def summarise(
  per_prompt: Float[np.ndarray, 'B contestants contestants'], labels: Sequence[str], judge: str
) -> WinRates:
  """Means over prompts with their 95 % intervals."""
  mean, low, high = mean_with_interval(per_prompt)
  return WinRates(tuple(labels), mean, low, high, per_prompt.shape[0], judge)


def mean_with_interval(
  values: Float[np.ndarray, 'B *rest'], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean over prompts, and the 95 % percentile interval of the bootstrap over prompts.

  The resampled prompts depend on the seed and the number of prompts alone. For a paired difference between two
  contestants pass the difference of their values.
  """
  size = values.shape[0]
  draws = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), NUM_RESAMPLES)
  means = np.tensordot(draws / size, values, axes=1)
  tail = 50 * (1 - CONFIDENCE)
  low, high = np.percentile(means, [tail, 100 - tail], axis=0)
  return np.asarray(values.mean(axis=0)), np.asarray(low), np.asarray(high)


def write(directory: pathlib.Path, rates: WinRates) -> None:
  """Writes win_rates.csv, labels in the first row and column, and win_rates.json with the intervals."""
  with atomic.replaced(directory / 'win_rates.csv', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(['i_beats_j', *rates.labels])
    for label, row in zip(rates.labels, rates.mean, strict=True):
      writer.writerow([label, *(f'{x:.6f}' for x in row)])
  fields = {
    name: value.tolist() if isinstance(value, np.ndarray) else value
    for name, value in rates._asdict().items()
  }
  atomic.write_json(directory / 'win_rates.json', fields | {'confidence': CONFIDENCE})
