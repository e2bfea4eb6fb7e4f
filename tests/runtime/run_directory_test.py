"""A directory belongs to one configuration, and what is refused leaves nothing behind."""

import json
import os
import stat

import pytest

import nlhf_jax
from nlhf_jax.runtime import run_directory

CONFIG = 'Experiment.num_steps = 3\n'
FIELDS = {
  'Experiment.num_steps': 3,
  'Experiment.save_every': None,
  'Experiment.log_every': 10,
  'Experiment.reference_on_host': False,
  'nash_md_pg.beta': 0.125,
  'partitioning.Devices.fsdp': 1,
  'checkpoints.Keep.last': 2,
  'mesh/Devices.data': -1,
}


def test_one_configuration_per_directory(tmp_path):
  run = tmp_path / 'runs' / 'run'
  run_directory.create(run, CONFIG, FIELDS)
  run_directory.create(run, '# Another text of the same fields.\n', FIELDS)
  message = r'nash_md_pg.beta was 0.125, now 0.5\): name another run_dir, delete it, or set the'
  for refuse in (
    run_directory.check_resumable,
    lambda path, fields: run_directory.create(path, CONFIG, fields),
  ):
    with pytest.raises(ValueError, match=message):
      refuse(run, FIELDS | {'nash_md_pg.beta': 0.5})
  assert run_directory.read_config(run) == CONFIG
  assert sorted(path.name for path in run.iterdir()) == ['config.gin', 'run.json']
  found = json.loads((run / 'run.json').read_text())
  assert found == {'nlhf_jax': nlhf_jax.__version__, 'fields': FIELDS}


@pytest.mark.parametrize(
  ('old', 'new', 'values'),
  [({}, {'a.b': 2}, 'not set, now 2'), ({'a.b': 2}, {}, '2, now not set')],
)
def test_error_of_a_field_more_or_less(tmp_path, old, new, values):
  run_directory.create(tmp_path, CONFIG, old)
  with pytest.raises(ValueError, match=f'a.b was {values}'):
    run_directory.check_resumable(tmp_path, new)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('partitioning.Devices.fsdp', 8),
    ('mesh/Devices.data', 4),
    ('Devices.tensor', 2),
    ('checkpoints.Keep.last', 5),
    ('Keep.best', 1),
    ('Experiment.save_every', 20),
    ('Experiment.reference_on_host', True),
  ],
)
def test_fields_that_may_change(tmp_path, name, value):
  run_directory.create(tmp_path, CONFIG, FIELDS)
  run_directory.check_resumable(tmp_path, FIELDS | {name: value})
  assert run_directory.read_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
  'name', ['Experiment.log_every', 'OtherDevices.data', 'Devices.data.x', 'data', 'Keep']
)
def test_fields_that_may_not_change(tmp_path, name):
  run_directory.create(tmp_path, CONFIG, FIELDS)
  with pytest.raises(ValueError, match=f'{name} was'):
    run_directory.check_resumable(tmp_path, FIELDS | {name: 99})


def test_values_by_what_json_makes_of_them(tmp_path):
  """A tuple is written as a list, and NaN equals itself."""
  fields = {'a.shape': (1, 2), 'a.start': float('nan')}
  run_directory.create(tmp_path, CONFIG, fields)
  run_directory.check_resumable(tmp_path, fields)


def test_check_writes_nothing(tmp_path):
  run_directory.check_resumable(tmp_path / 'run', FIELDS)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('below', ['', 'run'])
def test_error_of_a_file(tmp_path, below):
  (tmp_path / 'file').write_text('x')
  with pytest.raises(FileExistsError, match=r'file is a file.*another run_dir'):
    run_directory.check_resumable(tmp_path / 'file' / below, FIELDS)


def test_error_of_no_run(tmp_path):
  with pytest.raises(FileNotFoundError, match='name the directory of a trained run'):
    run_directory.read_config(tmp_path / 'none')


def test_error_of_a_run_of_version_0_1(tmp_path):
  """It has a configuration, and no resolved fields."""
  (tmp_path / 'config.gin').write_text('NUM_STEPS = 3\n')
  for read in (
    lambda: run_directory.read_config(tmp_path),
    lambda: run_directory.check_resumable(tmp_path, FIELDS),
  ):
    with pytest.raises(
      ValueError, match=r'is a run of nlhf_jax 0\.1\.0 .*commit bb3ff7b'
    ) as caught:
      read()
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', '[]', '{"fields": 3}', '{}'])
def test_error_of_corrupt_fields(tmp_path, text):
  run_directory.create(tmp_path, CONFIG, FIELDS)
  (tmp_path / 'run.json').write_text(text)
  with pytest.raises(ValueError, match=r'run.json cannot be read .*name another run_dir'):
    run_directory.check_resumable(tmp_path, FIELDS)


def test_kill_between_the_two_files(tmp_path):
  """Fields without a configuration are no run yet, so that the next start writes both."""
  run_directory.create(tmp_path, CONFIG, FIELDS)
  (tmp_path / 'config.gin').unlink()
  run_directory.create(tmp_path, CONFIG, {'a.b': 1})
  run_directory.check_resumable(tmp_path, {'a.b': 1})


def test_a_run_that_has_not_begun_stands_in_nobodys_way(tmp_path):
  run_directory.create(tmp_path, CONFIG, FIELDS)
  run_directory.check_resumable(tmp_path, {'a.b': 1}, begun=False)
  run_directory.create(tmp_path, 'another', {'a.b': 1}, begun=False)
  assert run_directory.read_config(tmp_path) == 'another'
  assert json.loads((tmp_path / 'run.json').read_text())['fields'] == {'a.b': 1}
  (tmp_path / 'file').write_text('')
  with pytest.raises(FileExistsError, match='is a file, not a directory'):
    run_directory.check_resumable(tmp_path / 'file', FIELDS, begun=False)


@pytest.mark.parametrize(
  ('fields', 'begun', 'left'),
  [
    ({'a.b': 1}, False, set()),
    (FIELDS, False, {'wandb.id', 'mlflow.id'}),
    (FIELDS, True, {'wandb.id', 'mlflow.id', 'judge.json'}),
  ],
)
def test_what_a_run_leaves_to_the_next_in_its_place(tmp_path, fields, begun, left):
  """Trackers' names of a run are those of its fields; the test of its judge is of what it has saved."""
  run_directory.create(tmp_path, CONFIG, FIELDS)
  for name in ('wandb.id', 'mlflow.id', 'judge.json'):
    (tmp_path / name).write_text('of the first')
  run_directory.create(tmp_path, 'another', fields, begun)
  assert {path.name for path in tmp_path.iterdir()} == left | {'config.gin', 'run.json'}


def test_names_of_trackers_whose_run_nobody_knows(tmp_path):
  (tmp_path / 'wandb.id').write_text('of whom?')
  run_directory.create(tmp_path, CONFIG, FIELDS, begun=False)
  assert not (tmp_path / 'wandb.id').exists()


def test_atomic_directory(tmp_path):
  with run_directory.atomic_directory(tmp_path / 'out') as directory:
    (directory / 'file').write_text('1')
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'file']
  with (
    pytest.raises(FileExistsError, match='exists: name another directory'),
    run_directory.atomic_directory(tmp_path / 'out'),
  ):
    pass
  with (
    pytest.raises(OSError, match='disk'),
    run_directory.atomic_directory(tmp_path / 'other') as directory,
  ):
    (directory / 'file').write_text('2')
    raise OSError('disk is full')
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'file']


def test_atomic_directory_beside_what_a_user_has(tmp_path):
  """A directory of a like name is left as it is, before, after and where writing fails."""
  (tmp_path / 'out.partial').mkdir()
  (tmp_path / 'out.partial' / 'file').write_text('mine')
  for fails in (True, False):
    try:
      with run_directory.atomic_directory(tmp_path / 'out') as directory:
        if fails:
          raise KeyError
        (directory / 'new').write_text('')
    except KeyError:
      pass
    assert (tmp_path / 'out.partial' / 'file').read_text() == 'mine'
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == (['out.partial'] if fails else ['out', 'out.partial'])


def test_two_that_write_one_atomic_directory(tmp_path):
  """The later one is refused, and what the first has written stays."""
  first, second = (run_directory.atomic_directory(tmp_path / 'out') for _ in range(2))
  for number, each in enumerate((first, second)):
    (each.__enter__() / 'file').write_text(str(number))
  first.__exit__(None, None, None)
  with pytest.raises(FileExistsError, match=r'out exists: name another directory'):
    second.__exit__(None, None, None)
  assert [path.name for path in tmp_path.rglob('*')] == ['out', 'file']
  assert (tmp_path / 'out' / 'file').read_text() == '0'


KEYS = {
  'a name': ({'mine.writer.api_key': 'x'}, ''),
  'a token': ({'mine.writer.token': 'x'}, ''),
  'a key in a list': ({}, "mine.writer.headers = ['Bearer hf_aBcDeFgHiJkLmNoP']"),
  'a key by itself': ({}, "mine.writer.x = 'sk-proj-0123456789abcdef'"),
}


@pytest.mark.skipif(os.name == 'nt', reason='modes are POSIX')
@pytest.mark.parametrize('kind', KEYS)
def test_bindings_that_may_hold_keys_are_for_the_user_alone(kind, tmp_path):
  fields, config = KEYS[kind]
  run_directory.create(tmp_path / 'run', config, fields)
  for name in ('config.gin', 'run.json'):
    assert stat.S_IMODE((tmp_path / 'run' / name).stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == 'nt', reason='modes are POSIX')
def test_other_bindings_are_as_the_user_has_files(tmp_path):
  """The name of an environment variable is no key, nor is a number of tokens."""
  fields = {'Server.key_variable': 'OPENAI_API_KEY', 'x.max_tokens': 3, 'x.token': 3}
  run_directory.create(tmp_path / 'run', 'risk-averse = 1', fields)
  (tmp_path / 'other').write_text('')
  for name in ('config.gin', 'run.json'):
    assert (tmp_path / 'run' / name).stat().st_mode == (tmp_path / 'other').stat().st_mode
