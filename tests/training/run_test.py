"""What a run refuses before it writes anything, whose weights it takes, and what ends it on its way."""

import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.evaluation import distance
from nlhf_jax.models import lora, policy, preference_model, rater, voter_preference
from nlhf_jax.networks import decoding
from nlhf_jax.runtime import checkpoint_files, checkpoints, metrics, run_lock
from nlhf_jax.training import experiment, resolve, run, weights
from nlhf_jax.types import EOS, PAD, Comparison, Demonstration, Prompts, Rollout, VoterNames
from tests.tiny import t5_network


def batches(largest, start=0):
  tokens = np.full((2, 3), 5, np.int32)
  response = np.array([[largest, EOS, PAD]] * 2, np.int32)
  while True:
    yield Demonstration(Prompts(tokens, np.zeros(2, np.int32)), Rollout(response, response != PAD))


def imitation(**changes) -> experiment.Experiment:
  network = t5_network(vocab_size=12)
  described = experiment.Experiment(
    model=policy.from_network(network, decoding.Sampling(max_length=3)),
    algorithm=algorithms.sft,
    batches=functools.partial(batches, 11),
    optimizer=optax.sgd(0.1),
    num_steps=1,
    network=network,
  )
  return described._replace(**changes)


@pytest.mark.parametrize('where', ['batches', 'held_out'])
def test_tokens_beyond_the_embedding(tmp_path, where):
  described = imitation(
    batches=functools.partial(batches, 12 if where == 'batches' else 11),
    held_out=(lambda: next(batches(12))) if where == 'held_out' else None,
  )
  with pytest.raises(
    ValueError, match='The data have token 12, but the network has embeddings of 0 to 11'
  ):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('size', [1, 3])
def test_voters_of_the_model_are_those_of_training(tmp_path, size):
  """Three have names, of whom two voted in training: any other number is refused before anything is read."""
  one = rater.in_decoder(t5_network(vocab_size=12), ((7,), (8,), (9,)), head=rater.linear(2))
  model = voter_preference.from_rater(one, size, num_features=1)
  described = imitation(model=model, voters=VoterNames(('Ada', 'Bo', 'Cy'), num_training=2))
  with pytest.raises(
    ValueError, match=rf'The model has {size} voters, but 2 voted in training: .*NUM_VOTERS=2\)'
  ):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  voter_preference.check_number(voter_preference.from_rater(one, 2, 1), described.voters)


def test_adapters_on_weights_that_have_changed_since(tmp_path):
  """They are the difference from those that they were trained on; a run whose base has gone on, or is another, is refused."""
  run.train(imitation(), tmp_path / 'base')
  adapted = imitation(adapters=lora.Lora(rank=1), start_from='base')
  run.train(adapted, tmp_path / 'adapted')
  weights.trained_params(adapted, tmp_path / 'adapted')
  shutil.rmtree(tmp_path / 'base')
  run.train(imitation(seed=1), tmp_path / 'base')
  with pytest.raises(ValueError, match=r"adapters on other weights than 'base' has now"):
    weights.trained_params(adapted, tmp_path / 'adapted')


def test_adapters_from_another_kind_of_device(tmp_path, monkeypatch):
  """There merging rounds otherwise, and so does drawing; what was trained elsewhere is read, and goes on."""
  merged = lora.merge
  first = imitation(adapters=lora.Lora(rank=1), start_from='base')
  start = experiment.from_run('first', first.adapters, 'base')
  second = imitation(adapters=lora.Lora(rank=1), start_from=start, num_steps=2)
  run.train(imitation(), tmp_path / 'base')
  run.train(first, tmp_path / 'first')
  run.train(second._replace(num_steps=1), tmp_path / 'second', {'name': 'second'})
  rounded = lambda *args: jax.tree.map(lambda x: x * np.float32(1 + 1e-6), merged(*args))
  monkeypatch.setattr(lora, 'merge', rounded)
  weights.trained_params(second, tmp_path / 'second')
  assert int(run.train(second, tmp_path / 'second', {'name': 'second'}).step) == 2
  assert 'origin' in checkpoints.newest_metadata(tmp_path / 'second' / 'checkpoints')['reference']
  shutil.rmtree(tmp_path / 'first')
  run.train(first._replace(seed=1), tmp_path / 'first')
  with pytest.raises(ValueError, match=r"adapters on other weights than 'first' has now"):
    weights.trained_params(second, tmp_path / 'second')
  with pytest.raises(ValueError, match='second was trained against another reference'):
    run.train(second, tmp_path / 'second', {'name': 'second'})


def test_base_whose_newest_checkpoint_is_corrupt(tmp_path):
  """The one before it is other weights, whatever the newest one's metadata say."""
  first = imitation(adapters=lora.Lora(rank=1), start_from='base', num_steps=2, save_every=1)
  start = experiment.from_run('first', first.adapters, 'base')
  second = imitation(adapters=lora.Lora(rank=1), start_from=start)
  run.train(imitation(), tmp_path / 'base')
  run.train(first, tmp_path / 'first')
  run.train(second, tmp_path / 'second')
  for file in (tmp_path / 'first' / 'checkpoints' / '2' / 'default').rglob('d/*'):
    file.write_bytes(b'')
  with pytest.raises(ValueError, match=r"adapters on other weights than 'first' has now"):
    weights.trained_params(second, tmp_path / 'second')


def judged(**changes):
  """Imitation that a run `judge` judges, whose weights alone count here."""
  half = lambda params: lambda prompts, response, alternative: jnp.full(len(response), 0.5)
  source = experiment.FeedbackSource(half, imitation().model, 'judge')
  method = lambda model, judge: algorithms.sft(model)
  return sft(algorithm=method, feedback=source, **changes)


def test_a_judge_that_was_trained_anew(tmp_path):
  """What resumes would go on under another judge of that name; the same weights are the same judge."""
  run.train(imitation(), tmp_path / 'judge')
  run.train(judged(num_steps=1), tmp_path / 'run', {'name': 'judged'})
  shutil.copytree(tmp_path / 'judge', tmp_path / 'kept')
  shutil.rmtree(tmp_path / 'judge')
  run.train(imitation(seed=1), tmp_path / 'judge')
  with pytest.raises(
    ValueError,
    match=r"run was trained under other weights of its judge .*'judge'.*: restore the run",
  ):
    run.train(judged(), tmp_path / 'run', {'name': 'judged'})
  assert saved_steps(tmp_path / 'run') == [1]
  shutil.rmtree(tmp_path / 'judge')
  run.train(imitation(), tmp_path / 'judge')
  assert int(run.train(judged(), tmp_path / 'run', {'name': 'judged'}).step) == 3


def test_checkpoints_that_do_not_say_who_judged(tmp_path, monkeypatch):
  """Of a version that did not keep it: they go on."""
  run.train(imitation(), tmp_path / 'judge')
  described = checkpoint_files.describe

  def without(arrays, step, metadata):
    return described(arrays, step, {k: x for k, x in metadata.items() if k != 'judged_by'})

  monkeypatch.setattr(checkpoint_files, 'describe', without)
  run.train(judged(num_steps=1), tmp_path / 'run', {'name': 'judged'})
  monkeypatch.undo()
  assert int(run.train(judged(), tmp_path / 'run', {'name': 'judged'}).step) == 3


def test_weights_of_a_file_are_told_by_themselves(tmp_path):
  like = {'w': jnp.ones(3)}
  one, other = ({'w': jnp.full(3, x)} for x in (1.0, 2.0))
  identity = functools.partial(weights.identity, lambda shapes, runs: like, runs=tmp_path)
  assert identity(params=one) == identity(params=like) != identity(params=other)


@pytest.mark.parametrize(('every', 'log_every'), [(25, 10), (5, 10), (0, 10)])
def test_measurements_that_would_be_left_out(tmp_path, every, log_every):
  """The loop logs every tenth step: of each 25th it would measure every other alone."""
  measured = distance.Measured({}, lambda prompts: None, tau=0.1, every=every)
  described = imitation(num_steps=100, measured=measured, log_every=log_every)
  with pytest.raises(ValueError, match=f'Measured.every is {every}, .*set Measured.every to [12]0'):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def saved_steps(run_dir) -> list[int]:
  return checkpoints.steps(run_dir / 'checkpoints')


@pytest.fixture(scope='module')
def two_runs(tmp_path_factory):
  """The same model, trained by two configurations."""
  root = tmp_path_factory.mktemp('runs')
  for name, number in (('one', 1), ('other', 2)):
    run.train(imitation(), root / name, {'a.b': number})
  return root


@pytest.fixture
def mixed_up(two_runs, tmp_path):
  """A run's directory with another's checkpoints."""
  shutil.copytree(two_runs / 'one', tmp_path / 'one')
  shutil.rmtree(tmp_path / 'one' / 'checkpoints')
  shutil.copytree(two_runs / 'other' / 'checkpoints', tmp_path / 'one' / 'checkpoints')
  return tmp_path / 'one'


@pytest.mark.parametrize(
  'read',
  [
    lambda run_dir: run.train(imitation(), run_dir, {'a.b': 1}),
    lambda run_dir: weights.trained_params(imitation(), run_dir),
    lambda run_dir: run.train(
      imitation(start_from='one'), run_dir.with_name('next'), {'a.b': 3}, runs=run_dir.parent
    ),
  ],
  ids=['resume', 'sample', 'start'],
)
def test_checkpoints_of_another_run(mixed_up, read):
  with pytest.raises(
    ValueError, match=r'by another run than that of .*run.json \(a.b was 2, now 1'
  ):
    read(mixed_up)
  assert saved_steps(mixed_up) == [1] and not mixed_up.with_name('next').exists()


def test_a_moved_run_is_read(two_runs, tmp_path):
  shutil.copytree(two_runs / 'one', tmp_path / 'elsewhere' / 'renamed')
  assert weights.trained_params(imitation(), tmp_path / 'elsewhere' / 'renamed')


def test_weights_of_a_policy_do_not_judge(two_runs):
  """An encoder-decoder that reads pairs has the arrays of a policy."""
  model = preference_model.from_rater(
    rater.in_encoder(t5_network(vocab_size=12), ((), (2,), (2,), ()), head=rater.vocabulary_row(3))
  )
  source = experiment.trained_preference(model, 'one')
  with pytest.raises(ValueError, match='one has trained a Policy, where a PreferenceModel is need'):
    resolve.bind_feedback(source, two_runs)


def test_checkpoints_without_their_configuration(two_runs, tmp_path):
  run_dir = tmp_path / 'run'
  shutil.copytree(two_runs / 'one', run_dir)
  (run_dir / 'config.gin').unlink()
  with pytest.raises(ValueError, match=r'another configuration \(a.b was 1, now 5\)'):
    run.train(imitation(), run_dir, {'a.b': 5})
  run.train(imitation(), run_dir, {'a.b': 1}, 'of the same fields')
  assert (run_dir / 'config.gin').read_text() == 'of the same fields'
  for name in ('config.gin', 'run.json'):
    (run_dir / name).unlink()
  with pytest.raises(ValueError, match=r'has checkpoints, but neither config.gin nor run.json'):
    run.train(imitation(), run_dir, {'a.b': 1})
  assert not (run_dir / 'run.json').exists()


def test_a_run_that_failed_before_its_first_checkpoint(tmp_path):
  """Its directory, and what it logged, belong to the next one."""
  run_dir = tmp_path / 'run'
  settings = {'num_steps': 3, 'log_every': 1, 'voters': VoterNames(('Ada',), 1)}
  wild = imitation(optimizer=optax.sgd(jnp.inf), **settings)
  with pytest.raises(FloatingPointError, match='There is no checkpoint before: lower the learning'):
    run.train(wild, run_dir, {'a.b': 1}, 'wild')
  assert (run_dir / 'config.gin').read_text() == 'wild'
  tame = imitation(**settings | {'num_steps': 2, 'voters': VoterNames(('Bo',), 1)})
  run.train(tame, run_dir, {'a.b': 2}, 'tame')
  kept = json.loads((run_dir / 'voters.json').read_text())
  assert kept == {'names': ['Bo'], 'num_training': 1}
  assert (run_dir / 'config.gin').read_text() == 'tame'
  rows = metrics.read_rows(run_dir / metrics.METRICS)
  assert [row['step'] for row in rows] == [1, 2] and rows[1]['loss'] is not None


def test_the_way_back_from_numbers_that_are_not_finite(tmp_path):
  """They are not saved; a restart goes on from what was, and so does a run with a smaller step."""
  run_dir = tmp_path / 'wild'
  wild = optax.sgd(lambda step: jnp.where(step < 2, 0.1, jnp.inf))
  described = imitation(optimizer=wild, num_steps=5, save_every=1)
  for _ in range(2):
    with pytest.raises(
      FloatingPointError,
      match=r'not finite after step 3 .*The checkpoint of step 2 is finite: .*start_from = .wild.',
    ):
      run.train(described, run_dir, {'a.b': 1})
    assert saved_steps(run_dir) == [1, 2] and not (run_dir / 'quarantine').exists()
  tame = imitation(start_from='wild')
  state = run.train(tame, tmp_path / 'tame', {'a.b': 2})
  assert int(state.step) == 1


def test_a_checkpoint_that_is_not_finite(two_runs, tmp_path, monkeypatch):
  """Of a version that saved it: the one before is taken."""
  run_dir = tmp_path / 'run'
  described = imitation(num_steps=2, save_every=1, optimizer=optax.sgd(jnp.inf))
  monkeypatch.setattr(checkpoint_files, 'first_not_finite', lambda tree: None)
  with pytest.raises(FloatingPointError, match='Loss or gradient is not finite at step 1'):
    run.train(described, run_dir, {'a.b': 1})
  monkeypatch.undo()
  with pytest.raises(
    ValueError, match=r'No intact checkpoint in .*is not finite.*: train that run'
  ):
    weights.trained_params(described, run_dir)


def sft(read=lambda number: None, **changes):
  """Three steps, each of which is logged and saved; `read` is called with the number of each batch."""

  def numbered(start=0):
    for number, batch in enumerate(batches(11), start=start):
      read(number)
      yield batch

  settings = {'log_every': 1, 'save_every': 1, 'num_steps': 3, 'batches': numbered}
  return imitation(**settings | changes)


def test_second_process_is_refused_before_it_reads_anything(tmp_path):
  def read(number):
    pytest.fail('read data')

  with run_lock.held(tmp_path / 'run'):
    with pytest.raises(run_lock.InUseError, match=f'in use: process {os.getpid()} on'):
      run.train(sft(read), tmp_path / 'run')
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['.lock']


@pytest.mark.parametrize('save_every', [1, None])
def test_run_whose_directory_is_removed_stops(tmp_path, capfd, save_every):
  """And does not make it again, but for a save that orbax was at just then."""

  def read(number):
    if number == 2:
      # At once: batches are read on another thread, and a line of the log could come between two files.
      shutil.rmtree((tmp_path / 'run').rename(tmp_path.with_name(f'{tmp_path.name}_away')))

  gone = r'run has been removed|(Saving to|Writing) .*No such file'
  with pytest.raises(OSError, match=gone) as caught:
    run.train(sft(read, num_steps=100, save_every=save_every), tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert save_every or not list(tmp_path.iterdir())
  assert 'Traceback' not in capfd.readouterr().err


def test_full_disk_while_logging_and_the_run_after_it(tmp_path):
  """/dev/full takes no byte. What was saved before is gone on from."""
  run.train(sft(num_steps=1), tmp_path / 'run', {'name': 'sft'})
  log = tmp_path / 'run' / 'metrics.jsonl'
  log.rename(tmp_path / 'kept')
  log.symlink_to('/dev/full')
  with pytest.raises(
    OSError, match=r'^Writing .*metrics.jsonl failed \(No space left on device\)'
  ) as caught:
    run.train(sft(), tmp_path / 'run', {'name': 'sft'})
  assert '\n' not in str(caught.value)
  log.unlink()
  (tmp_path / 'kept').rename(log)
  assert int(run.train(sft(), tmp_path / 'run', {'name': 'sft'}).step) == 3
  assert [row['step'] for row in metrics.read_rows(log)] == [1, 2, 3]
  assert not (tmp_path / 'run' / '.lock').exists()


@pytest.mark.parametrize('deleted', [False, True])
def test_a_judges_test_belongs_to_its_run(tmp_path, monkeypatch, deleted):
  """Where checkpoints were deleted, what is trained in their place is tested itself."""
  run_dir, tests = tmp_path / 'run', []

  def test_judge(*args):
    tests.append(len(tests))
    return {'test': tests[-1]}

  monkeypatch.setattr(resolve, '_test_judge', test_judge)
  described = imitation(held_out=lambda: next(votes([0, 0, 1, 1])))
  run.train(described, run_dir, {'a.b': 1})
  if deleted:
    shutil.rmtree(run_dir / 'checkpoints')
  run.train(described, run_dir, {'a.b': 2 if deleted else 1})
  assert tests == ([0, 1] if deleted else [0])
  assert json.loads((run_dir / 'judge.json').read_text()) == {'test': tests[-1]}


def votes(voters, start=0):
  """Four on one pair."""
  for batch in batches(11, start):
    two = Rollout(*(np.concatenate([x, x]) for x in batch.response[:2]))
    prompts = Prompts(*(np.concatenate([x, x]) for x in batch.prompts))
    preference = np.array([1, 0, 1, 1], np.float32)
    yield Comparison(prompts, two, two, preference, voter=np.array(voters, np.int32))


def voters_model(number) -> experiment.Experiment:
  head = rater.linear(2)
  one = rater.in_decoder(t5_network(vocab_size=12), ((7,), (8,), (9,)), head=head)
  return imitation(
    model=voter_preference.from_rater(one, num_voters=number, num_features=1),
    algorithm=functools.partial(
      algorithms.voter_preference, prior=voter_preference.Prior(num_votes=100)
    ),
    held_out=lambda: next(votes([0, 0, number, number])),
  )


@pytest.mark.parametrize('voters', [[0, 0, 0, 0], [0, -1, -1, 0]])
def test_votes_of_one_voter(tmp_path, voters):
  """Tastes of a population cannot be fitted to them, whoever votes in the test: refused before a step is trained."""
  described = voters_model(1)._replace(batches=functools.partial(votes, voters))
  with pytest.raises(
    ValueError, match='at least two voters, got those of 1 in the first 8,000: give it votes of'
  ):
    run.train(described, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  two = voters_model(2)._replace(batches=functools.partial(votes, [0, 0, 1, -1]))
  resolve.check_test(two, two.held_out())
