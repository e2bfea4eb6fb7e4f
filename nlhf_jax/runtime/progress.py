"""Progress bars with the time left; on anything but a terminal, a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import progress

_SECONDS_BETWEEN_LINES = 15.0


@contextlib.contextmanager
def bar(description: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
  """Yields a function that advances the bar.

  Args:
    description: what is being done.
    total: steps in all.
    done: of which were done before.
  """
  if not sys.stderr.isatty():
    yield _lines(description, total, done)
    return
  columns = (
    progress.TextColumn('{task.description:>16}'),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
    progress.TimeRemainingColumn(),
  )
  with progress.Progress(*columns) as bars:
    task = bars.add_task(description, total=total, completed=done)
    yield lambda steps: bars.advance(task, steps)


def _lines(description: str, total: int, done: int) -> Callable[[int], None]:
  start = last = time.monotonic()
  count = done

  def advance(steps: int) -> None:
    nonlocal count, last
    count += steps
    now = time.monotonic()
    if now - last < _SECONDS_BETWEEN_LINES and count < total:
      return
    last = now
    left = (now - start) / max(count - done, 1) * (total - count)
    print(
      f'{description}: {count}/{total}, {now - start:.0f} s, {left:.0f} s left', file=sys.stderr
    )

  return advance
