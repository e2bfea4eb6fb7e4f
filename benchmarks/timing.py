"""How long work takes; for all benchmarks, those in environments of their own too, so it needs Python alone."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def repeated(
  work: Callable[[], Any],
  repeats: int = 3,
  *,
  wait: Callable[[Any], Any] = lambda result: result,
  enough: float = float('inf'),
) -> list[float]:
  """Seconds of each of several runs, after one that compiles or warms up.

  Args:
    work: what is timed.
    repeats: number of runs.
    wait: returns once a result is there, such as `jax.block_until_ready`; part of what is timed.
    enough: seconds after which no further run begins; one is always made.
  """
  wait(work())
  begun, found = time.perf_counter(), []
  while len(found) < repeats and (not found or time.perf_counter() - begun < enough):
    start = time.perf_counter()
    wait(work())
    found.append(time.perf_counter() - start)
  return found


def seconds(work: Callable[[], Any], repeats: int = 3, **options: Any) -> float:
  """The shortest of several runs; arguments as of `repeated`."""
  return min(repeated(work, repeats, **options))


def spread(seconds: list[float]) -> dict[str, float]:
  """Median, extremes and number of several runs."""
  median = statistics.median(seconds)
  return {'median': median, 'low': min(seconds), 'high': max(seconds), 'repeats': len(seconds)}
