"""What is restored is what was saved; what does not fit is named."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nlhf_jax
from nlhf_jax.runtime import checkpoints
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import PolicyParams, TrainState

# The sets of `state`, and those of them that checkpoints hold.
SETS = {'reference': parameter_sets.frozen(), 'average': parameter_sets.average(0.9)}
SAVED = parameter_sets.saved(SETS)


def state(vocab: int = 5, extra: bool = False) -> TrainState:
  params = {
    'token_embedder': {'embedding': jnp.arange(vocab * 2.0).reshape(vocab, 2) / 3},
    'decoder': {'logits_dense': {'kernel': jnp.ones((2, vocab))}},
  }
  if extra:
    params['more'] = jnp.ones(3)
  average = jax.tree.map(lambda x: x + 1, params)
  return TrainState(
    jnp.int32(7),
    PolicyParams(params, {'reference': params, 'average': average}),
    {'m': jnp.ones(2, jnp.bfloat16)},
    jax.random.PRNGKey(3),
  )


@pytest.fixture
def saved(tmp_path):
  checkpoints.save(tmp_path / 'c', state(), saved=SAVED)
  return tmp_path / 'c'


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_round_trip(saved):
  """All that is saved comes back to the bit; a frozen reference is that of `like`."""
  like = jax.tree.map(jnp.zeros_like, state())
  restored, _ = checkpoints.restore(saved, like, SAVED)
  params = state().params
  expected = {'reference': like.params.sets['reference'], 'average': params.sets['average']}
  same(restored, state()._replace(params=params._replace(sets=expected)))


def test_round_trip_of_a_moving_reference_and_a_ring(tmp_path):
  """μ that is reset is saved, and so is each member of a ring; a half-step is not."""
  sets = {
    'reference': parameter_sets.reference(reset_every=5),
    'ring': parameter_sets.ring(2, 3),
    'half_step': parameter_sets.half_step(),
  }
  scaled = lambda k: jax.tree.map(lambda x: k * x, state().params.online)
  params = scaled(1)
  moved = {'reference': scaled(2), 'ring': (scaled(3), scaled(4))}
  full = state()._replace(params=PolicyParams(params, moved))
  saved = parameter_sets.saved(sets)
  checkpoints.save(tmp_path, full, saved=saved)
  same(checkpoints.restore(tmp_path, jax.tree.map(jnp.zeros_like, full), saved)[0], full)
  same(checkpoints.restore_params(tmp_path, params, 'ring.1'), scaled(4))
  with pytest.raises(ValueError, match=r"no parameter set 'ring.2'"):
    checkpoints.restore_params(tmp_path, params, 'ring.2')


def test_restore_of_one_parameter_set(saved):
  average = state().params.sets['average']
  found = checkpoints.restore_params(saved, jax.eval_shape(lambda: average), 'average')
  same(found, average)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (state(vocab=6), r'embedding \(5, 2\), the network expects \(6, 2\).*vocab_size = 5'),
    (state(extra=True), 'lacks more'),
  ],
)
def test_error_of_mismatched_shapes(saved, like, message):
  with pytest.raises(ValueError, match=message):
    checkpoints.restore_params(saved, like.params.online, 'online')


def test_round_trip_of_typed_keys(tmp_path):
  like = state()._replace(rng=jax.random.key(0))
  checkpoints.save(tmp_path, like._replace(rng=jax.random.key(3)))
  restored, _ = checkpoints.restore(tmp_path, like)
  drawn = jax.random.bits(restored.rng, (4,))
  np.testing.assert_array_equal(drawn, jax.random.bits(jax.random.key(3), (4,)))


def test_error_of_another_optimizer(tmp_path):
  def like(optimizer):
    return state()._replace(opt_state=optimizer.init(state().params.online))

  checkpoints.save(tmp_path, like(optax.adam(1.0)))
  with pytest.raises(ValueError, match=r'holds 0/mu/token_embedder/embedding \(5, 2\).*optimizer'):
    checkpoints.restore(tmp_path, like(optax.sgd(1.0)))


def at(step: int) -> TrainState:
  return state()._replace(step=jnp.int32(step))


def save_all(directory, keep, losses):
  """As a run does: one mapping of what was measured last; and in two parts, as one that resumes."""
  latest, numbered = {}, list(enumerate(losses, start=1))
  for part in (numbered[:4], numbered[4:]):
    with checkpoints.Writer(directory, keep) as writer:
      for step, loss in part:
        if loss is not None:
          latest['loss'] = loss
        writer.save(at(step), {}, latest)


@pytest.mark.parametrize(
  ('keep', 'kept'),
  [
    (checkpoints.Keep(last=2), [5, 6]),
    (checkpoints.Keep(last=1, every=2), [2, 4, 6]),
    (checkpoints.Keep(last=1, best=1), [3, 6]),
    (checkpoints.Keep(last=1, best=2, highest=True), [1, 2, 6]),
    (checkpoints.Keep(last=None), [1, 2, 3, 4, 5, 6]),
  ],
)
def test_retention(keep, kept, tmp_path):
  save_all(tmp_path, keep, [6.0, 5.0, 1.0, 3.0, 2.0, 4.0])
  assert checkpoints.steps(tmp_path) == kept
  assert checkpoints.latest_step(tmp_path) == 6


def test_metrics_that_are_not_measured_yet_or_are_no_numbers(tmp_path):
  """Are worth less than any other, and no reason to fail."""
  save_all(tmp_path, checkpoints.Keep(last=1, best=2), [None, 3.0, float('nan'), 1.0, 2.0, 9.0])
  assert checkpoints.steps(tmp_path) == [4, 5, 6]


def test_error_of_a_step_that_is_not_newer(tmp_path):
  checkpoints.save(tmp_path, at(3))
  with pytest.raises(ValueError, match='already holds step 3, so step 2 was not saved'):
    checkpoints.save(tmp_path, at(2))


def test_donation_right_after_saving(tmp_path):
  """The background writes what the state was, not what the next step makes of its buffers."""
  big = jax.tree.map(lambda x: x, {'x': jnp.arange(4.0e6)})
  first = TrainState(jnp.int32(1), PolicyParams(big), (), jax.random.PRNGKey(0))
  expected = np.array(big['x'])
  step = jax.jit(lambda x: jax.tree.map(lambda x: x * 0 - 1, x), donate_argnums=0)
  with checkpoints.Writer(tmp_path) as writer:
    writer.save(first, {})
    changed = jax.block_until_ready(step(big))
  assert float(changed['x'][5]) == -1
  like = first._replace(params=PolicyParams(changed))
  np.testing.assert_array_equal(checkpoints.restore(tmp_path, like)[0].params.online['x'], expected)


@pytest.mark.parametrize(
  'error',
  [
    MemoryError(),
    OSError(116, 'Stale file handle'),
    OSError(24, 'Too many open files'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.'),
    jax.errors.JaxRuntimeError('INTERNAL: CUDA error: an illegal memory access was encountered'),
  ],
  ids=lambda x: type(x).__name__,
)
def test_what_the_machine_fails_at_is_no_corrupt_checkpoint(error, tmp_path, monkeypatch):
  """It stays where it is, and the run does not begin anew from an older one."""
  save_all(tmp_path, checkpoints.Keep(), [2.0, 1.0])

  def fail(*args, **kwargs):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints.checkpoint_files.ocp.Checkpointer, 'restore', fail)
    with pytest.raises(type(error)):
      checkpoints.restore(tmp_path, state(), quarantine=True)
  assert checkpoints.steps(tmp_path) == [1, 2]
  assert checkpoints.restore(tmp_path, state())[1]['step'] == 2


def test_metadata_and_versions(tmp_path):
  checkpoints.save(tmp_path, at(3), {'sums': {'loss': 0.1 + 0.2}})
  _, metadata = checkpoints.restore(tmp_path, at(0))
  assert metadata['sums']['loss'] == 0.1 + 0.2
  assert metadata['step'] == 3
  assert metadata['versions']['jax'] == jax.__version__
  assert metadata == checkpoints.read_metadata(tmp_path)


def test_saving_from_source_trees_that_are_not_installed(tmp_path, monkeypatch):
  installed = importlib.metadata.version

  def version(name: str) -> str:
    if name in ('nlhf_jax', 'jaxlib'):
      raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

  monkeypatch.setattr(importlib.metadata, 'version', version)
  checkpoints.save(tmp_path, at(3), {})
  versions = checkpoints.read_metadata(tmp_path)['versions']
  assert versions['nlhf_jax'] == nlhf_jax.__version__
  assert versions['jaxlib'] == 'unknown'


def test_metadata_that_are_not_a_number(tmp_path):
  """A metric may be NaN: it comes back as such, and its signature holds."""
  checkpoints.save(tmp_path, at(3), {'sums': {'loss': float('nan')}})
  assert np.isnan(checkpoints.read_metadata(tmp_path)['sums']['loss'])


def test_error_of_a_failed_save(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  reason = r'Saving to .* failed \(.*No space left on device'
  with pytest.raises(OSError, match=reason), checkpoints.Writer(tmp_path) as writer:
    monkeypatch.setattr(checkpoints.ocp.JsonCheckpointHandler, '_save_fn', full)
    writer.save(at(1), {})
  monkeypatch.undo()
  assert checkpoints.latest_step(tmp_path) is None


# Saves where nothing can be saved, once it can: a file's size is limited, or no directory can be made.
SAVES = """
import os, pathlib, resource, sys
from nlhf_jax.runtime import checkpoints, processes
from tests.runtime.checkpoints_test import at
how, directory = sys.argv[1], pathlib.Path(sys.argv[2])
def makedirs(path, *args, **kwargs):
  raise OSError(30, 'Read-only file system', str(path))
try:
  with checkpoints.Writer(directory) as writer:
    writer.save(at(1), {})
    writer.wait()
    if how == 'full':
      resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    else:
      os.makedirs = makedirs  # As orbax does, and the writer's own first try does not.
    writer.save(at(2), {})
except OSError as error:
  print(' '.join(str(error).split()), file=sys.stderr, flush=True)
  processes.end_despite_threads(2)
  sys.exit(2)
"""


@pytest.mark.parametrize(('how', 'reason'), [('full', 'File too large'), ('no mkdir', 'Read-only')])
def test_failed_save_ends_the_process_with_one_line(tmp_path, how, reason):
  """The reason and no traceback of a thread; the process ends, and what was saved before is intact."""
  command = [sys.executable, '-c', SAVES, how, str(tmp_path / 'c')]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
  assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
  assert done.stderr.startswith(f'Saving to {tmp_path / "c"} failed (') and reason in done.stderr
  restored, _ = checkpoints.restore(tmp_path / 'c', at(0))
  same(restored, at(1))


def test_error_of_a_directory_that_cannot_be_written_to(tmp_path):
  """It comes before the first step, and before each save; a file is in the way, or nothing can be made there."""
  (tmp_path / 'file').write_text('')
  for directory in (tmp_path / 'file', pathlib.Path('/proc/nlhf')):
    with pytest.raises(OSError, match=f'Saving to {directory} failed'):
      checkpoints.Writer(directory)
  with (
    pytest.raises(OSError, match=r'Saving to .* failed \(.*No such file or directory'),
    checkpoints.Writer(tmp_path / 'c') as writer,
  ):
    shutil.rmtree(tmp_path / 'c')
    writer.save(at(1), {})
  assert not (tmp_path / 'c').exists()


def test_unfinished_save_is_ignored(saved):
  (saved / '9.orbax-checkpoint-tmp').mkdir()
  assert checkpoints.latest_step(saved) == 7


def test_error_of_a_missing_parameter_set(saved):
  with pytest.raises(ValueError, match=r"no parameter set 'reference': .*'average', 'online'"):
    checkpoints.restore_params(saved, {}, 'reference')


def test_error_of_no_checkpoint(tmp_path):
  with pytest.raises(FileNotFoundError, match='train that run first'):
    checkpoints.restore_params(tmp_path / 'none', {}, 'online')
  assert checkpoints.latest_step(tmp_path / 'none') is None


def test_error_of_a_checkpoint_of_version_0_1(two_saved, tmp_path):
  """Its metadata had another name. It is refused by name, and stays where it is."""
  directory = tmp_path / 'run' / 'checkpoints'
  shutil.copytree(two_saved, directory)
  (directory / '2' / 'run_metadata').rename(directory / '2' / 'facts')
  for read in (
    lambda: checkpoints.restore(directory, at(0), quarantine=True),
    lambda: checkpoints.restore_params(directory, state().params.online, 'online'),
    lambda: checkpoints.read_metadata(directory),
  ):
    with pytest.raises(ValueError, match=r'/2 was written by nlhf_jax 0\.1\.0: .*commit bb3ff7b'):
      read()
  assert checkpoints.steps(directory) == [1, 2]


def _files(step):
  return sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)


def _corrupt(step, rng) -> str:
  """Injects one random fault into a checkpoint, and returns which."""
  path = _files(step)[rng.integers(len(_files(step)))]
  data = bytearray(path.read_bytes())
  kinds = ('truncate', 'empty', 'remove', 'flip', 'zeros', 'noise', 'remove item')
  kind = kinds[rng.integers(len(kinds))]
  if kind == 'remove':
    path.unlink()
  elif kind == 'remove item':
    path = step / ('default', 'run_metadata')[rng.integers(2)]
    shutil.rmtree(path)
  elif kind == 'truncate':
    path.write_bytes(data[: rng.integers(len(data))])
  elif kind == 'empty':
    path.write_bytes(b'')
  else:
    size = 1 if kind == 'flip' else max(1, len(data) // 4)
    start = rng.integers(len(data) - size + 1)
    for n in range(start, start + size):
      random = rng.integers(256) if kind == 'noise' else 0
      data[n] = data[n] ^ (1 << rng.integers(8)) if kind == 'flip' else random
    path.write_bytes(data)
  return f'{kind} {path.relative_to(step)}'


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('seed', range(30))
def test_injected_faults(seed, two_saved, tmp_path, caplog):
  """What is restored is the newest state, or, named as corrupt, the one before it; never anything else."""
  directory = tmp_path / 'run' / 'checkpoints'
  shutil.copytree(two_saved, directory)
  fault = _corrupt(directory / '2', np.random.default_rng(seed))
  found, _ = checkpoints.restore(directory, at(0), quarantine=True)
  if int(found.step) == 1:
    assert f'{directory}/2 is corrupt' in caplog.text, fault
    assert [path.name for path in (directory.parent / 'quarantine').iterdir()] == ['2']
    checkpoints.save(directory, at(2))  # Its place is free again.
  same(found, at(int(found.step)))


def test_links_out_of_the_run_are_refused(two_saved, tmp_path):
  """Nothing is saved to, or moved to and from, what a link leads to."""
  theirs, run = tmp_path / 'theirs', tmp_path / 'run'
  shutil.copytree(two_saved, theirs / 'checkpoints')
  run.mkdir()
  (run / 'checkpoints').symlink_to(theirs / 'checkpoints')
  for write in (
    lambda: checkpoints.Writer(run / 'checkpoints'),
    lambda: checkpoints.restore(run / 'checkpoints', at(0), quarantine=True),
  ):
    with pytest.raises(OSError, match=r'checkpoints is a link to .*theirs/checkpoints, outside'):
      write()
  (run / 'checkpoints').unlink()
  shutil.copytree(two_saved, run / 'checkpoints')
  (run / 'quarantine').symlink_to(theirs)
  shutil.rmtree(run / 'checkpoints' / '2' / 'default')
  with pytest.raises(OSError, match=r'quarantine is a link to .*theirs, outside'):
    checkpoints.restore(run / 'checkpoints', at(0), quarantine=True)
  assert checkpoints.steps(run / 'checkpoints') == [1, 2]
  assert [path.name for path in theirs.iterdir()] == ['checkpoints']
  assert checkpoints.steps(theirs / 'checkpoints') == [1, 2]


@pytest.fixture(scope='module')
def two_saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  for step in (1, 2):
    checkpoints.save(directory, at(step))
  return directory


def test_error_of_no_intact_checkpoint(two_saved, tmp_path):
  directory = tmp_path / 'c'
  shutil.copytree(two_saved, directory)
  for step in (1, 2):
    shutil.rmtree(directory / str(step) / 'run_metadata')
  with pytest.raises(ValueError, match=r'No intact checkpoint in .*/2: .*/1: '):
    checkpoints.restore(directory, at(0))
