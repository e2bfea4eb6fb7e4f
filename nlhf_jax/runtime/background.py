"""Writers that may be slow, or fail: each on a thread of its own, so that a network that is away costs a run one line.

metrics.jsonl and warnings.jsonl are written at once, by the thread that trains, and what they raise ends the run. All others,
TensorBoard's events among them, get a queue; what does not fit, and what comes after an error, is not sent, and a warning says so once.
Nothing waits for them, but the end of the run, and that not for long.
"""

import contextlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nlhf_jax.runtime import events, metrics

# Reports that may wait: hours of training, even where every step is logged.
_CAPACITY = 10_000
# A server may take so long for what is left at the end of a run.
PATIENCE_SECONDS = 60.0
# Environment variables whose values are nobody's business.
_SECRET = re.compile(r'KEY|TOKEN|SECRET|PASSWORD', re.IGNORECASE)


@contextlib.contextmanager
def open_all(
  about: metrics.About,
  others: Sequence[metrics.MakeWriter] = (),
  patience: float = PATIENCE_SECONDS,
) -> Iterator[metrics.Writer]:
  """A writer to the run's files, to TensorBoard's, and to all others.

  Args:
    about: the run.
    others: besides the files.
    patience: seconds that they may take to close, all at a time.

  Raises:
    OSError: metrics.jsonl cannot be written; so does the writer.
  """
  files = metrics.files(about)
  apart = [Apart(make, about) for make in (events.tensorboard, *others)]

  def scalars(step: int, values: Mapping[str, float]) -> None:
    files.scalars(step, values)
    for other in apart:
      other.put('scalars', step, dict(values))

  def text(step: int, name: str, text: str) -> None:
    files.text(step, name, text)
    for other in apart:
      other.put('text', step, name, text)

  fine = False
  try:
    yield metrics.Writer(scalars, text)
    fine = True
  finally:
    for other in apart:
      other.put('close', fine)
    end = time.monotonic() + patience
    for other in apart:
      other.wait(max(0.0, end - time.monotonic()), patience)


class Apart:
  """A writer on a thread of its own, which is made there too."""

  def __init__(self, make: metrics.MakeWriter, about: metrics.About):
    """Starts the thread."""
    self._make, self._about = make, about
    self._calls: queue.Queue = queue.Queue(_CAPACITY)
    self._done, self._failed = threading.Event(), False
    self._lock = threading.Lock()
    # A daemon: one that hangs must not keep the process.
    threading.Thread(target=self._work, name=f'writer {self.name}', daemon=True).start()

  @property
  def name(self) -> str:
    """That of the tracker, or of the function that made it."""
    known = self._make.package if isinstance(self._make, metrics.Tracker) else None
    return known or getattr(self._make, '__qualname__', type(self._make).__name__).split('.')[0]

  def put(self, *call: Any) -> None:
    """Has one of the writer's functions called, by its name; does not wait."""
    if self._failed:
      return
    try:
      self._calls.put_nowait(call)
    except queue.Full:
      self._fail(f'{_CAPACITY} reports wait for it')

  def wait(self, seconds: float, patience: float) -> None:
    """Waits for the end of a writer that was told to close; `patience` is what the warning says."""
    if not self._failed and not self._done.wait(seconds):
      self._fail(f'it did not end within {patience:g} s, and what it had not sent is lost')
    with self._lock:  # The process may end now: not before a warning is out.
      pass

  def _work(self) -> None:
    try:
      writer = self._make(self._about)
      if not isinstance(writer, metrics.Writer):
        raise TypeError(
          f'it made a {type(writer).__name__}, not a metrics.Writer: in gin, write @{self.name}() with its parentheses'
        )
      function = ''
      while function != 'close' and not self._failed:
        function, *args = self._calls.get()
        getattr(writer, function)(*args)
    except BaseException as error:  # Some libraries leave by SystemExit.
      self._fail(f'{type(error).__name__}: {error}')
    finally:
      self._done.set()

  def _fail(self, why: str) -> None:
    with self._lock:
      first, self._failed = not self._failed, True
      if first:
        logging.warning(
          'The writer %s gets no more reports (%s). Training goes on; metrics.jsonl has them all.',
          self.name,
          without_secrets(' '.join(why.split()))[:500],
        )


def without_secrets(text: str) -> str:
  """A message without passwords of addresses, and without values of environment variables that are keys."""
  for name, value in os.environ.items():
    if _SECRET.search(name) and len(value) > 5:
      text = text.replace(value, f'${name}')
  return re.sub(r'://[^/@\s]+@', '://…@', text)
