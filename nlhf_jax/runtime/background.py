"""Writers that may be slow, or fail: each on a thread of its own, so that a network that is away costs a run one line.

Files of the run are written at once, by the thread that trains. All others get a queue; what does not fit, and what comes
after an error, is not sent, and a warning says so once. Nothing waits for them, but the end of the run, and that not for long.
"""

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nlhf_jax.runtime import metrics

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
  """A writer to the run's files and to all others.

  Args:
    about: the run.
    others: besides the files.
    patience: seconds that each may take to close.
  """
  writers = [Apart(make, about, patience).writer for make in others]
  fine = False
  try:
    writers.insert(0, metrics.files(about))
    yield metrics.Writer(
      lambda step, values: _each(writers, 'scalars', step, values),
      lambda step, name, text: _each(writers, 'text', step, name, text),
    )
    fine = True
  finally:
    _each(writers, 'close', fine)


def _each(writers: Sequence[metrics.Writer], function: str, *args: Any) -> None:
  for writer in writers:
    getattr(writer, function)(*args)


class Apart:
  """A writer on a thread of its own, which is made there too."""

  def __init__(self, make: metrics.MakeWriter, about: metrics.About, patience: float):
    """Starts the thread.

    Args:
      make: of the writer.
      about: the run.
      patience: seconds that it may take to close.
    """
    self._make, self._about, self._patience = make, about, patience
    self._calls: queue.Queue = queue.Queue(_CAPACITY)
    self._done, self._failed = threading.Event(), False
    self._lock = threading.Lock()
    # A daemon: one that hangs must not keep the process.
    threading.Thread(target=self._work, name=f'writer {self.name}', daemon=True).start()
    self.writer = metrics.Writer(self._scalars, self._text, self._close)

  @property
  def name(self) -> str:
    """Of the function that made it: 'wandb' of `trackers.wandb()`."""
    return getattr(self._make, '__qualname__', type(self._make).__name__).split('.')[0]

  def _scalars(self, step: int, values: Mapping[str, float]) -> None:
    self._put('scalars', step, dict(values))

  def _text(self, step: int, name: str, text: str) -> None:
    self._put('text', step, name, text)

  def _close(self, fine: bool) -> None:
    self._put('close', fine)
    if not self._failed and not self._done.wait(self._patience):
      self._fail(f'it did not end within {self._patience:g} s, and what it had not sent is lost')

  def _put(self, *call: Any) -> None:
    if self._failed:
      return
    try:
      self._calls.put_nowait(call)
    except queue.Full:
      self._fail(f'{_CAPACITY} reports wait for it')

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
