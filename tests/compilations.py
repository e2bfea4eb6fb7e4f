"""Programs that JAX compiles while a test runs, those that its cache of the disk gives included."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def counted(name: str = '') -> Iterator[list[str]]:
  """Yields a list that gets an entry for each program, or for each with this in its name."""
  compiled: list[str] = []

  def listen(event: str, duration: float, **about) -> None:
    if event == '/jax/core/compile/backend_compile_duration' and name in str(about):
      compiled.append(str(about))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
