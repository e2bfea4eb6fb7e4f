"""Several processes that run one program, and how they end.

Every process runs the same code on the same arrays, of which it holds some shards. One that dies takes the others with
it: they learn of it from a broken exchange at once, or from missing heartbeats after HEARTBEAT_SECONDS.
"""

import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Without a sign of life for this long, a process counts as dead.
HEARTBEAT_SECONDS = 30
# By Ctrl-C, at any time.
_interrupted = threading.Event()


def join(
  coordinator_address: str | None = None, count: int | None = None, index: int | None = None
) -> None:
  """Joins this process to the others of its run; must come before anything else is asked of JAX.

  Args:
    coordinator_address: HOST:PORT of the process of index 0; None, as the rest: what the cluster reports (TPU pods,
      SLURM, Open MPI, GKE).
    count: number of processes.
    index: of this process, from 0.

  Raises:
    ValueError: only some of the three are given, or the cluster reports none.
    ConnectionError: the others did not come.
  """
  given = coordinator_address, count, index
  if any(x is None for x in given) and any(x is not None for x in given):
    raise ValueError(
      'coordinator_address, count and index of the processes belong together: '
      f'got {coordinator_address}, {count}, {index}.'
    )
  if count is not None and not 0 <= index < count:
    raise ValueError(f'The index of a process must be in [0, {count}), got {index}.')
  try:
    jax.distributed.initialize(
      coordinator_address,
      count,
      index,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      coordinator_bind_address=bind_address(coordinator_address) if index == 0 else None,
    )
  except ValueError as error:
    raise ValueError(
      f'The cluster does not report how to join ({error}): give coordinator_address, and count and '
      'index of the processes.'
    ) from error
  except RuntimeError as error:
    raise ConnectionError(
      f'The {count} processes of the run did not find each other at {coordinator_address} '
      f'({" ".join(str(error).split())}): start all of them, with the same address.'
    ) from error


def bind_address(coordinator_address: str | None) -> str | None:
  """Where the coordinator listens: at its own address alone, where that is one of this machine; None: at all of them.

  Whoever reaches it can take part in the run.
  """
  host, _, port = (coordinator_address or '').rpartition(':')
  if not host:
    return None
  try:
    family, *_, place = socket.getaddrinfo(host.strip('[]'), None, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
      probe.bind((place[0], 0))
  except OSError:
    # It is reached by another name or address than its own, as in many clusters.
    return None
  is_own_name = host not in ('localhost', place[0], f'[{place[0]}]')
  if ipaddress.ip_address(place[0]).is_loopback and is_own_name:
    # Some machines give themselves a name that others reach them by elsewhere.
    return None
  return f'[{place[0]}]:{port}' if family == socket.AF_INET6 else f'{place[0]}:{port}'


def is_single_process() -> bool:
  """Whether this process has joined no others."""
  return not jax.distributed.is_initialized()


def abort(status: int) -> None:
  """Ends one of several processes at once: the usual way out waits for the others, which may wait for this one.

  Args:
    status: the exit status.
  """
  if not is_single_process():
    os._exit(status)


def end_despite_threads(status: int, patience: float = 2.0) -> None:
  """Ends the process if threads would keep it; else returns.

  After a failure, threads of a library may wait for minutes for what will not come.

  Args:
    status: the exit status.
    patience: seconds that they have to end by themselves.
  """
  end = time.monotonic() + patience
  # Asked for, and not joined: orbax's threads raise what they died of in whoever joins them.
  while any(x is not threading.current_thread() and not x.daemon for x in threading.enumerate()):
    if time.monotonic() > end:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
    time.sleep(0.02)


def is_primary() -> bool:
  """Whether this is the process that writes what is not an array."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes have reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def from_primary(text: str) -> str:
  """What the primary process gives, for all; as much of it as is read in one line (1,000 bytes). All processes must call it."""
  if jax.process_count() == 1:
    return text
  size = 1000
  padded = np.frombuffer(text.encode()[:size].ljust(size, b'\0'), np.uint8)
  received = np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)
  return received.tobytes().rstrip(b'\0').decode(errors='ignore')


def gather(tree: Any) -> Any:
  """NumPy arrays with all rows, those of other processes too. All processes must call it."""

  def rows(x):
    if getattr(x, 'is_fully_addressable', True):
      return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return jax.tree.map(rows, tree)


def remember_interrupts() -> None:
  """From now on, in the main thread: Ctrl-C raises KeyboardInterrupt as ever; `termination` raises it again where a library swallowed it.

  Libraries do so while they are imported, and in callbacks.
  """

  def interrupt(number, frame):
    _interrupted.set()
    raise KeyboardInterrupt

  signal.signal(signal.SIGINT, interrupt)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step that is done: whether the run was asked to end; the same for all processes.

  SIGTERM asks, and so does the first Ctrl-C of a process that has joined no others; the second one interrupts.

  Raises:
    KeyboardInterrupt: it was asked to end before (`remember_interrupts`).
  """
  if _interrupted.is_set():
    raise KeyboardInterrupt
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  asked = threading.Event()

  def interrupt(number, frame):
    if asked.is_set():
      raise KeyboardInterrupt
    asked.set()
    print('\nEnds after this step, and saves; Ctrl-C again ends at once.', file=sys.stderr)

  before = {
    number: signal.signal(number, handler)
    for number, handler in ((signal.SIGTERM, lambda *_: asked.set()), (signal.SIGINT, interrupt))
  }
  try:
    yield lambda step: asked.is_set()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
