"""Progress bars with the time left; on anything but a terminal, a line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich import console, progress, text

from nlhf_jax import untrusted

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def bar(description: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
  """Yields a function that advances the bar.

  Args:
    description: what is being done.
    total: number of steps.
    done: those that were done before.
  """
  description = untrusted.printable(description)
  if not sys.stderr.isatty():
    yield _lines(description, total, done)
    return
  columns = (
    progress.TextColumn('{task.description:>16}', markup=False),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    _Rate(),
    progress.TimeElapsedColumn(),
    progress.TimeRemainingColumn(),
  )
  with progress.Progress(*columns, console=console.Console(stderr=True)) as bars:
    task = bars.add_task(description, total=total, completed=done)
    yield lambda steps: bars.advance(task, steps)


class _Rate(progress.ProgressColumn):
  """Steps per second, of the last seconds."""

  def render(self, task: progress.Task) -> text.Text:
    return text.Text('' if task.speed is None else f'{task.speed:.3g}/s')


def _lines(description: str, total: int, done: int) -> Callable[[int], None]:
  """The same as lines, at most one every few seconds."""
  start = last = time.monotonic()
  count = done

  def advance(steps: int) -> None:
    nonlocal count, last
    count += steps
    now = time.monotonic()
    if now - last < _SECONDS_BETWEEN_LINES and count < total:
      return
    last = now
    rate = (count - done) / max(now - start, 1e-9)  # Steps per second.
    remaining = (total - count) / max(rate, 1e-9)
    print(
      f'{description}: {count}/{total}, {rate:.3g}/s, {now - start:.0f} s, {remaining:.0f} s left',
      file=sys.stderr,
    )

  return advance
