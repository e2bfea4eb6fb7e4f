"""What a run tells on its way: metrics, traces and warnings to its writers, and a bar of progress."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from nlhf_jax.runtime import background, metrics, processes, progress
from nlhf_jax.training import traces, warning_signs
from nlhf_jax.training.resolve import Run
from nlhf_jax.types import Batch


class Reports(NamedTuple):
  """Hooks of the loop."""

  # (step, means since the last call)
  log: Callable[[int, dict[str, float]], None] = lambda step, means: None
  # Steps that were done.
  advance: Callable[[int], None] = lambda steps: None
  # (step done, rollout)
  trace: Callable[[int, Batch], None] = lambda step, rollout: None


@contextlib.contextmanager
def opened(
  run: Run, run_dir: pathlib.Path, fields: Mapping[str, Any], start: int
) -> Iterator[Reports]:
  """The reports of a run that goes on from step `start`; of all processes but the primary one they do nothing.

  Args:
    run: what is trained.
    run_dir: exists.
    fields: resolved configuration, which trackers show.
    start: what was reported of later steps is dropped, or written again.
  """
  if not processes.is_primary():
    yield Reports()
    return
  about = metrics.About(run_dir, fields, start)
  votes = traces.Writer(run_dir, resume_step=start)
  with (
    background.open_all(about, run.writers) as writer,
    progress.bar(run_dir.name, run.num_steps, done=start) as advance,
  ):
    watch = _watch(run, run_dir)
    warning_signs.tell(watch.start(), writer.text)

    def log(step: int, means: dict[str, float]) -> None:
      writer.scalars(step, means)
      warning_signs.tell(watch.look(step, means), writer.text)

    def trace(step: int, rollout: Batch) -> None:
      if traces.is_traced(run.traced, run.algorithm, step):
        votes.append(traces.votes(run.traced, run.algorithm, rollout, step))

    yield Reports(log, advance, trace)


def _watch(run: Run, run_dir: pathlib.Path) -> warning_signs.Watch:
  """Goes on from what a resumed run has kept of its metrics and warnings."""
  rows = metrics.read_rows(run_dir / metrics.METRICS)
  told = [row['name'] for row in metrics.read_rows(run_dir / metrics.WARNINGS)]
  return warning_signs.Watch(run.method, rows, told)
