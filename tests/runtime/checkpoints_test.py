"""What is restored is what was saved; what does not fit is named."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.runtime import checkpoints
from nlhf_jax.types import PolicyParams, TrainState


def state(vocab: int = 5, extra: bool = False) -> TrainState:
  params = {
    'token_embedder': {'embedding': jnp.arange(vocab * 2.0).reshape(vocab, 2) / 3},
    'decoder': {'logits_dense': {'kernel': jnp.ones((2, vocab))}},
  }
  if extra:
    params['more'] = jnp.ones(3)
  ema = jax.tree.map(lambda x: x + 1, params)
  return TrainState(
    jnp.int32(7),
    PolicyParams(params, ema, params),
    {'m': jnp.ones(2, jnp.bfloat16)},
    jax.random.PRNGKey(3),
  )


@pytest.fixture
def saved(tmp_path):
  checkpoints.save(tmp_path / 'c', state())
  return tmp_path / 'c'


def test_round_trip_is_exact(saved):
  like = jax.tree.map(jnp.zeros_like, state())
  restored, _ = checkpoints.restore(saved, like)
  for name in ('step', 'opt_state', 'rng'):
    jax.tree.map(np.testing.assert_array_equal, getattr(restored, name), getattr(state(), name))
  jax.tree.map(np.testing.assert_array_equal, restored.params[:2], state().params[:2])
  jax.tree.map(np.testing.assert_array_equal, restored.params.reference, like.params.reference)


def test_one_parameter_set_can_be_read_alone(saved):
  like = jax.eval_shape(lambda: state().params.ema)
  found = checkpoints.restore_params(saved, like, 'ema')
  jax.tree.map(np.testing.assert_array_equal, found, state().params.ema)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ('like', 'message'),
  [
    (state(vocab=6), r'embedding \(5, 2\), the network expects \(6, 2\).*VOCAB_SIZE = 5'),
    (state(extra=True), 'lacks more'),
  ],
)
def test_what_does_not_fit_is_named(saved, like, message):
  with pytest.raises(ValueError, match=message):
    checkpoints.restore_params(saved, like.params.online, 'online')


def test_keys_with_a_type_are_restored_as_such(tmp_path):
  like = state()._replace(rng=jax.random.key(0))
  checkpoints.save(tmp_path, like._replace(rng=jax.random.key(3)))
  restored, _ = checkpoints.restore(tmp_path, like)
  drawn = jax.random.bits(restored.rng, (4,))
  np.testing.assert_array_equal(drawn, jax.random.bits(jax.random.key(3), (4,)))


def test_another_optimizer_is_named(tmp_path):
  def like(optimizer):
    return state()._replace(opt_state=optimizer.init(state().params.online))

  checkpoints.save(tmp_path, like(optax.adam(1.0)))
  with pytest.raises(ValueError, match=r'holds 0/mu/token_embedder/embedding \(5, 2\).*optimizer'):
    checkpoints.restore(tmp_path, like(optax.sgd(1.0)))


def at(step: int) -> TrainState:
  return state()._replace(step=jnp.int32(step))


def save_all(directory, keep, metrics):
  with checkpoints.Writer(directory, keep) as writer:
    for step, value in enumerate(metrics, start=1):
      writer.save(at(step), {}, {'loss': value})


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
def test_what_is_kept(keep, kept, tmp_path):
  save_all(tmp_path, keep, [6.0, 5.0, 1.0, 3.0, 2.0, 4.0])
  assert checkpoints.steps(tmp_path) == kept
  assert checkpoints.latest_step(tmp_path) == 6


def test_no_save_is_passed_over_in_silence(tmp_path):
  checkpoints.save(tmp_path, at(3))
  with pytest.raises(ValueError, match='already holds step 3, so step 2 was not saved'):
    checkpoints.save(tmp_path, at(2))


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  """The background writes what the state was, not what the next step makes of its buffers."""
  big = jax.tree.map(lambda x: x, {'x': jnp.arange(4.0e6)})
  first = TrainState(jnp.int32(1), PolicyParams(big, None, None), (), jax.random.PRNGKey(0))
  expected = np.array(big['x'])
  step = jax.jit(lambda x: jax.tree.map(lambda x: x * 0 - 1, x), donate_argnums=0)
  with checkpoints.Writer(tmp_path) as writer:
    writer.save(first, {})
    changed = jax.block_until_ready(step(big))
  assert float(changed['x'][5]) == -1
  like = first._replace(params=PolicyParams(changed, None, None))
  np.testing.assert_array_equal(checkpoints.restore(tmp_path, like)[0].params.online['x'], expected)


def test_facts_and_versions_are_saved_with_the_arrays(tmp_path):
  checkpoints.save(tmp_path, at(3), {'sums': {'loss': 0.1 + 0.2, 'odd': float('nan')}})
  _, facts = checkpoints.restore(tmp_path, at(0))
  assert facts['sums']['loss'] == 0.1 + 0.2
  assert facts['step'] == 3
  assert facts['versions']['jax'] == jax.__version__
  assert facts == checkpoints.read_metadata(tmp_path) or np.isnan(facts['sums']['odd'])


def test_a_failed_save_is_an_error_with_its_reason(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  reason = r'Saving to .* failed \(.*No space left on device'
  with pytest.raises(OSError, match=reason), checkpoints.Writer(tmp_path) as writer:
    monkeypatch.setattr(checkpoints.ocp.JsonCheckpointHandler, '_save_fn', full)
    writer.save(at(1), {})
  monkeypatch.undo()
  assert checkpoints.latest_step(tmp_path) is None


def test_a_save_that_was_killed_is_passed_over(saved):
  (saved / '9.orbax-checkpoint-tmp').mkdir()
  assert checkpoints.latest_step(saved) == 7


def test_a_missing_parameter_set_is_named(saved):
  with pytest.raises(ValueError, match=r"no parameter set 'reference': .*'ema', 'online'"):
    checkpoints.restore_params(saved, {}, 'reference')


def test_no_checkpoint_is_an_error_with_a_remedy(tmp_path):
  with pytest.raises(FileNotFoundError, match='train that run first'):
    checkpoints.restore_params(tmp_path / 'none', {}, 'online')
  assert checkpoints.latest_step(tmp_path / 'none') is None


def _files(step):
  return sorted(path for path in step.rglob('*') if path.is_file() and path.stat().st_size)


def _damage(step, rng) -> str:
  """Does one random harm to a checkpoint, and says what."""
  path = _files(step)[rng.integers(len(_files(step)))]
  data = bytearray(path.read_bytes())
  kinds = ('truncate', 'empty', 'remove', 'flip', 'zeros', 'noise', 'remove part')
  kind = kinds[rng.integers(len(kinds))]
  if kind == 'remove':
    path.unlink()
  elif kind == 'remove part':
    path = step / ('default', 'facts')[rng.integers(2)]
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
def test_damage_is_named_or_does_no_harm(seed, two_saved, tmp_path, caplog):
  """What is read is the newest state, or, named as damaged, the one before it; never anything else."""
  directory = tmp_path / 'run' / 'checkpoints'
  shutil.copytree(two_saved, directory)
  what = _damage(directory / '2', np.random.default_rng(seed))
  found, _ = checkpoints.restore(directory, at(0), quarantine=True)
  if int(found.step) == 1:
    assert f'{directory}/2 is damaged' in caplog.text, what
    assert [path.name for path in (directory.parent / 'damaged').iterdir()] == ['2']
    checkpoints.save(directory, at(2))  # Its place is free again.
  expected = at(int(found.step))
  for name in ('step', 'opt_state', 'rng'):
    jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))
  jax.tree.map(np.testing.assert_array_equal, found.params[:2], expected.params[:2])


@pytest.fixture(scope='module')
def two_saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  for step in (1, 2):
    checkpoints.save(directory, at(step))
  return directory


def test_nothing_whole_is_an_error_that_names_all(two_saved, tmp_path):
  directory = tmp_path / 'c'
  shutil.copytree(two_saved, directory)
  for step in (1, 2):
    shutil.rmtree(directory / str(step) / 'facts')
  with pytest.raises(ValueError, match=r'No whole checkpoint in .*/2: .*/1: '):
    checkpoints.restore(directory, at(0))
