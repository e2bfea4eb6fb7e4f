"""Several processes that run one program, and how they end.

Every process runs the same code on the same arrays, of which it holds some shards. One that dies takes the others with
it: they learn of it from a broken exchange at once, or from missing heartbeats after HEARTBEAT_SECONDS.
"""

import contextlib
import ipaddress
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Without a sign of life for this long, a process counts as dead.
HEARTBEAT_SECONDS = 30


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


def is_primary() -> bool:
  """Whether this is the process that writes what is not an array."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes have reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
  """NumPy arrays with all rows, those of other processes too. All processes must call it."""

  def rows(x):
    if getattr(x, 'is_fully_addressable', True):
      return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return jax.tree.map(rows, tree)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
  """Yields a function of the step that is done: whether the run was asked to end (SIGTERM); the same for all processes."""
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False
    return
  asked = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)
