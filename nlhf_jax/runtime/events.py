"""A run's metrics and warnings as TensorBoard events.

tensorboardX makes the events; its own writer is not used: it hands them to a thread that dies of a full disk, or of a clock that is set
back, and whoever reports then waits in its queue for ever. Here each call appends to the file, or fails.
"""

import pathlib
import re
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import record_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

from nlhf_jax.runtime import metrics


def tensorboard(about: metrics.About) -> metrics.Writer:
  """Begins a file of events, of which TensorBoard shows those of steps after `resume_step` in place of earlier files' ones."""
  path = _new_path(about.run_dir)

  def append(step: int, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), step=step, **content)
    with path.open('ab') as file:
      file.write(_record(event.SerializeToString()))

  def scalars(step: int, values: Mapping[str, float]) -> None:
    found = [summary.scalar(name, value).value[0] for name, value in values.items()]
    append(step, summary=summary_pb2.Summary(value=found))

  def text(step: int, name: str, text: str) -> None:
    append(step, summary=summary.text(name, text))

  append(0, file_version='brain.Event:2')
  # A run killed before its first checkpoint starts anew, and left events too.
  start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  append(about.resume_step + 1, session_log=start)
  return metrics.Writer(scalars, text)


def _new_path(run_dir: pathlib.Path) -> pathlib.Path:
  """The name begins with the time, and is the last by name, as TensorBoard reads them, whatever a clock has done since the one before."""
  names = [path.name for path in run_dir.glob('events.out.tfevents.*')]
  times = [int(found[1]) for name in names if (found := re.match(r'\D*(\d{10})\.', name))]
  now = max(int(time.time()), *(x + 1 for x in times), 0)
  return run_dir / f'events.out.tfevents.{now:010d}.{socket.gethostname()}'


def _record(data: bytes) -> bytes:
  """As TensorFlow frames a record: its length, the length's checksum, itself, its own checksum."""
  length = struct.pack('<Q', len(data))
  checksum = lambda x: struct.pack('<I', record_writer.masked_crc32c(x))
  return length + checksum(length) + data + checksum(data)
