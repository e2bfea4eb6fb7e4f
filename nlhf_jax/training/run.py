"""Trains a run to its end, and goes on where it stopped.

A run is a directory: config.gin, run.json, checkpoints/, metrics.jsonl and TensorBoard events, votes.jsonl, warnings.jsonl; of a
model that tells voters apart, voters.json: their names, by number, and how many voted in training.
"""

import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from nlhf_jax import untrusted
from nlhf_jax.models import preference_model, voter_preference
from nlhf_jax.runtime import (
  atomic,
  checkpoints,
  partitioning,
  processes,
  run_directory,
  run_lock,
)
from nlhf_jax.training import loop, reports, rollouts
from nlhf_jax.training.experiment import Experiment, is_same, plain_fields
from nlhf_jax.training.resolve import Run, check_test, resolve
from nlhf_jax.types import Batch, Comparison, Prompts, TrainState, VoterNames

_VOTERS = 'voters.json'


def train(
  experiment: Experiment,
  run_dir: pathlib.Path,
  fields: Mapping[str, Any] | None = None,
  config: str = '',
  runs: pathlib.Path | None = None,
) -> TrainState:
  """Trains to the end, from the newest intact checkpoint if there is one; or until the process is asked to end.

  On many processes each calls this. The primary one alone writes what is not an array, and holds the lock: while a run is
  trained, no other process can train it (`runtime.run_lock`).

  Args:
    experiment: what to run.
    run_dir: made if need be; a run that is refused leaves none.
    fields: what identifies the run, by name; a directory of other ones is refused. None: the experiment's plain values.
    config: text of the configuration, which is kept with the run.
    runs: the directory of the runs that the experiment names; None: the one that holds `run_dir`.

  Returns:
    The state; its step is below `num_steps` if the process was asked to end.

  Raises:
    ValueError: the directory holds a run of other fields, of another reference, or under a judge that has been trained anew; the model
      has other voters than the data.
    OSError: another process trains this run; its directory has been removed; a checkpoint or metrics could not be written.
  """
  _check_number_of_voters(experiment)
  fields = plain_fields(experiment) if fields is None else fields
  run_directory.check_resumable(run_dir, fields, _has_begun(run_dir))
  layout = partitioning.Layout(partitioning.make_mesh(experiment.devices))
  with (
    _locked(run_dir) as check_directory,
    layout.active(),
    processes.termination() as stop,
  ):
    run = resolve(experiment, runs or run_dir.parent, layout)
    state, sums = _resume(run, run_dir)
    # Another run's test is removed with it, once this one's directory is made.
    tested = _has_begun(run_dir) and (run_dir / run_directory.JUDGE).exists()
    untested = run.held_out is not None and not tested
    # All data are read before anything is written: what is missing must not cost a run, nor leave a directory.
    held_out = run.held_out() if untested else None
    _check_tokens(held_out, experiment)
    unfinished = int(state.step) < run.num_steps
    measure = run.make_measure() if run.make_measure and unfinished else loop.Hooks().measure
    batches = _start_reading(run, int(state.step), experiment)
    # A run that goes on would else keep what it began with beside it, in the same memory.
    run = run._replace(state=None, make_measure=None)
    _check_voters(run_dir, experiment, held_out)
    if processes.is_primary():
      run_directory.create(run_dir, config, fields, _has_begun(run_dir))
      _keep_voters(run_dir, experiment.voters)
    processes.barrier('the run directory exists')
    if unfinished or untested:
      state = _continue(run, run_dir, batches, state, sums, fields, stop, measure, check_directory)
    if untested and int(state.step) == run.num_steps:
      _write_judge_test(run_dir, run.test_judge(state.params, held_out))
  return state


@contextlib.contextmanager
def _locked(run_dir: pathlib.Path) -> Iterator[Callable[[], None]]:
  """The lock of the directory, held by the primary process; if it is refused, that ends all. Yields as `run_lock.held`."""
  with contextlib.ExitStack() as stack:
    check: Callable[[], None] = lambda: None
    refused: OSError | None = None
    if processes.is_primary():
      try:
        check = stack.enter_context(run_lock.held(run_dir))
      except OSError as error:
        refused = error
    reason = processes.from_primary(str(refused or ''))
    if reason:
      raise refused or OSError(reason)
    yield check


def _has_begun(run_dir: pathlib.Path) -> bool:
  """A run that failed before its first checkpoint does not stand in the way of a better one."""
  return checkpoints.latest_step(run_dir / 'checkpoints') is not None


def _check_number_of_voters(experiment: Experiment) -> None:
  model = experiment.model
  if not experiment.voters.names or not isinstance(model, preference_model.PreferenceModel):
    return
  if model.voters is not None:
    voter_preference.check_number(model, experiment.voters)


def _check_voters(
  run_dir: pathlib.Path, experiment: Experiment, held_out: Comparison | None
) -> None:
  """Raises ValueError where the run has learnt of others by the same numbers, or of too few to be tested on votes held out."""
  check_test(experiment, held_out)
  path, voters = run_dir / _VOTERS, experiment.voters
  known = path.exists() and _has_begun(run_dir)
  if voters.names and known and untrusted.read_json(path) != _as_json(voters):
    raise ValueError(
      f'The data have other voters, or in another order, than {path}: what the run has learnt of each would be of another. Give it the '
      'votes that it was started with, or name another run_dir.'
    )


def _keep_voters(run_dir: pathlib.Path, voters: VoterNames) -> None:
  if voters.names and not ((run_dir / _VOTERS).exists() and _has_begun(run_dir)):
    atomic.write_json(run_dir / _VOTERS, _as_json(voters))


def _as_json(voters: VoterNames) -> dict[str, Any]:
  return {'names': list(voters.names), 'num_training': voters.num_training}


def _start_reading(run: Run, start: int, experiment: Experiment) -> Iterator[Batch]:
  """Batches from a step on, of which the first has been read; none where the run is at its end."""
  if start >= run.num_steps:
    return iter(())
  rest = _checked(run.batches(start=start), experiment)
  first = next(rest)
  if isinstance(first, Prompts):
    rollouts.check_prompts(first, run.num_rollout_parts, run.layout)
  return itertools.chain([first], rest)


def _checked(batches: Iterator[Batch], experiment: Experiment) -> Iterator[Batch]:
  for batch in batches:
    _check_tokens(batch, experiment)
    yield batch


def _check_tokens(batch: Batch | None, experiment: Experiment) -> None:
  """Raises ValueError where a token has no row in the network's embedding, which JAX would read as the last one."""
  if experiment.network is None:
    return
  size = experiment.network.config.vocab_size
  tokens = (x for x in jax.tree.leaves(batch) if isinstance(x, np.ndarray) and x.ndim == 2)
  largest = max((int(x.max(initial=0)) for x in tokens), default=0)
  if largest >= size:
    raise ValueError(
      f'The data have token {largest}, but the network has embeddings of 0 to {size - 1}: its vocab_size is {size}, give it '
      "the vocabulary's, or name the vocabulary that it was made for."
    )


def _continue(
  run: Run, run_dir, batches, state: TrainState, sums, fields, stop, measure, check_directory
) -> TrainState:
  """From a state to the last step, with reports and checkpoints on the way."""
  latest, start = {}, int(state.step)
  with (
    reports.opened(run, run_dir, fields, start) as report,
    checkpoints.Writer(run_dir / 'checkpoints', run.keep) as writer,
  ):

    def keep_and_log(step, means):
      latest.update(means)
      report.log(step, means)

    def check_and_advance(steps):
      check_directory()
      writer.check()
      report.advance(steps)

    def save(state, sums):
      check_directory()
      metadata = {'fields': dict(fields), 'model': run.kind, 'reference': run.reference}
      metadata |= {'judged_by': run.judged_by}
      metadata |= {'next_batch': int(state.step), 'sums': sums}
      writer.save(state, metadata, latest or None, saved=run.saved)

    try:
      return loop.train(
        run.algorithm,
        run.optimizer,
        state,
        batches,
        loop.Hooks(keep_and_log, save, check_and_advance, stop, measure, report.trace),
        num_steps=run.num_steps,
        num_microbatches=run.num_microbatches,
        num_updates=run.num_updates,
        num_rollout_parts=run.num_rollout_parts,
        compiles_ahead=run.compiles_ahead,
        log_every=run.log_every,
        save_every=run.save_every,
        layout=run.layout,
        sums=sums,
      )
    except FloatingPointError as error:
      kept = ''
      if isinstance(error, loop.NonFiniteError):
        kept = f' Its batch: {_keep_batch(run_dir, error)}.'
      writer.wait()
      raise FloatingPointError(f'{error}{kept} {_way_back(run_dir)}') from error


def _way_back(run_dir: pathlib.Path) -> str:
  """How to go on after a number that is not finite."""
  step = checkpoints.latest_step(run_dir / 'checkpoints')
  if step is None:
    return 'There is no checkpoint before: lower the learning rate, in another run_dir.'
  return (
    f'The checkpoint of step {step} is finite: lower the learning rate in a new run that starts from it (start_from = '
    f'{run_dir.name!r}).'
  )


def _resume(run: Run, run_dir: pathlib.Path) -> tuple[TrainState, dict[str, Any] | None]:
  """The newest intact checkpoint's state and sums of metrics; if there is none, the first state."""
  directory = run_dir / 'checkpoints'
  if checkpoints.latest_step(directory) is None:
    return run.state, None
  state, metadata = checkpoints.restore(directory, run.state, saved=run.saved, quarantine=True)
  known, now = metadata['reference'], run.reference
  if known != now and not (known and now and is_same(known, now)):
    raise ValueError(
      f'{run_dir} was trained against another reference ({known}) than it would be now '
      f'({now}): restore the run that it starts from, or name another run_dir.'
    )
  # Older versions did not keep it.
  before = metadata.get('judged_by', run.judged_by)
  if before != run.judged_by:
    raise ValueError(
      f'{run_dir} was trained under other weights of its judge or reward model ({before}) than it would be now ({run.judged_by}): '
      'restore the run that judges it, or name another run_dir.'
    )
  return state, metadata['sums']


def _write_judge_test(run_dir: pathlib.Path, result: dict[str, Any]) -> None:
  if processes.is_primary():
    atomic.write_json(run_dir / run_directory.JUDGE, result)


def _keep_batch(run_dir: pathlib.Path, error: loop.NonFiniteError) -> pathlib.Path:
  path = run_dir / f'not_finite_at_step_{error.step}.npz'
  leaves, _ = jax.tree_util.tree_flatten_with_path(processes.gather(error.batch))
  if processes.is_primary():
    with atomic.replaced(path, 'wb') as file:
      np.savez(file, **{jax.tree_util.keystr(key): leaf for key, leaf in leaves})
  return path
