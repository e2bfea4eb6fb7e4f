"""How long work takes; for all benchmarks, those in environments of their own too, so it needs Python alone."""

import time
from collections.abc import Callable
from typing import Any


def seconds(
  work: Callable[[], Any], repeats: int = 3, *, wait: Callable[[Any], Any] = lambda result: result
) -> float:
  """The shortest of several runs, after one that compiles or warms up.

  Args:
    work: what is timed.
    repeats: number of runs.
    wait: returns once a result is there, such as `jax.block_until_ready`; part of what is timed.
  """
  wait(work())
  best = float('inf')
  for _ in range(repeats):
    start = time.perf_counter()
    wait(work())
    best = min(best, time.perf_counter() - start)
  return best
