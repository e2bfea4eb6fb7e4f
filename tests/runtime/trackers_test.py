"""What trackers are told; with the package itself where it is installed, offline, and of each with a fake in its place."""

import importlib.util
import json
import pathlib
import sys
import types

import pytest

from nlhf_jax.runtime import background, metrics, trackers

FIELDS = {'Experiment.num_steps': 4, 'pipeline.batches.task': '@corpora.prompts()'}
TRACKERS = ('wandb', 'mlflow', 'trackio')


@pytest.mark.parametrize('name', TRACKERS)
def test_package_that_is_missing_is_refused(name, monkeypatch):
  """Of who begins a run, not of who reads its configuration."""
  monkeypatch.delitem(sys.modules, name, raising=False)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  tracker = getattr(trackers, name)()
  with pytest.raises(ValueError, match=rf"pip install 'nlhf_jax\[{name}\]'"):
    metrics.check_installed([tracker])
  monkeypatch.setitem(sys.modules, name, Fake(name))
  metrics.check_installed([tracker, lambda about: None])


def test_package_that_is_looked_for_is_not_imported(tmp_path, monkeypatch):
  """As it would be to look for a module within it."""
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / 'a_package').mkdir()
  (tmp_path / 'a_package' / '__init__.py').write_text('raise AssertionError')
  metrics.check_installed([metrics.Tracker('a_package.part', lambda about: None)])
  assert 'a_package' not in sys.modules


class Fake(types.ModuleType):
  """A package that keeps the calls of its functions, and of the objects that they give."""

  def __init__(self, name):
    super().__init__(name)
    self.told = []


class Run:
  """W&B's and trackio's."""

  def __init__(self, told):
    self.told, self.step, self.summary = told, 0, {}

  def log(self, values, step):
    self.told.append(('log', values, step))
    self.step = step

  def alert(self, **kwargs):
    self.told.append(('alert', kwargs))

  def finish(self, **kwargs):
    self.told.append(('finish', kwargs, dict(self.summary)))


@pytest.fixture
def fake(request, monkeypatch):
  module = Fake(request.param)
  monkeypatch.setitem(sys.modules, request.param, module)

  def init(*args, **kwargs):
    module.told.append(('init', args, kwargs))
    return Run(module.told)

  module.init = init
  return module


def train(make, run_dir, steps, resume_step=0, fine=True):
  """Reports of a few steps, as a run gives them."""
  run_dir.mkdir(exist_ok=True)
  writer = make(metrics.About(run_dir, FIELDS, resume_step))
  for step in steps:
    writer.scalars(step, {'loss': 1.0 / step, 'odd': float('nan')})
  writer.text(steps[-1], 'length_drift', 'responses are long')
  writer.close(fine)


@pytest.mark.parametrize('fake', ['wandb'], indirect=True)
def test_calls_of_wandb(fake, tmp_path):
  make = trackers.wandb(project='p', group='g', tags=['t'])
  train(make, tmp_path / 'run', [1, 2])
  train(make, tmp_path / 'run', [2, 3], resume_step=1, fine=False)
  first, again = (kwargs for call, _, kwargs in fake.told if call == 'init')
  assert first == again
  assert (first['project'], first['group'], first['tags']) == ('p', 'g', ['t'])
  assert (first['name'], first['config'], first['resume']) == ('run', FIELDS, 'allow')
  assert first['id'] == (tmp_path / 'run' / 'wandb.id').read_text().strip()
  assert first['dir'] == str(tmp_path / 'run')
  assert not {'key', 'api_key'} & {*first, *first['settings']}
  logged = [(values['loss'], step) for call, values, step in fake.told if call == 'log']
  assert logged == [(1.0, 1), (0.5, 2), (0.5, 2), (1 / 3, 3)]
  ends = [call[1:] for call in fake.told if call[0] == 'finish']
  warnings = {'warnings/length_drift': 'responses are long'}
  assert ends == [({'exit_code': 0}, warnings), ({'exit_code': 1}, warnings)]


@pytest.mark.parametrize('fake', ['wandb'], indirect=True)
def test_wandb_steps_only_grow(fake, tmp_path):
  """What W&B has of a run that was killed is not logged again: it would be refused, with a warning each."""
  tmp_path.joinpath('run').mkdir()
  run = Run(fake.told)
  run.step = 3
  fake.init = lambda **kwargs: run
  train(trackers.wandb(), tmp_path / 'run', [2, 3, 4], resume_step=1)
  assert [call[2] for call in fake.told if call[0] == 'log'] == [3, 4]


@pytest.mark.parametrize('fake', ['trackio'], indirect=True)
def test_calls_of_trackio(fake, tmp_path):
  for _ in range(2):
    train(trackers.trackio(project='p'), tmp_path / 'run', [1])
  (project, name), kwargs = fake.told[0][1:]
  assert project == 'p' and name.startswith('run-')
  assert (kwargs['config'], kwargs['resume'], kwargs['embed']) == (FIELDS, 'allow', False)
  assert fake.told[1] == ('log', {'loss': 1.0}, 1)
  assert fake.told[2] == ('alert', {'title': 'length_drift', 'text': 'responses are long'})
  assert fake.told[4][1] == ('p', name)


class Client:
  """MLflow's, without a store."""

  def __init__(self, told, uri):
    self.told = told
    told.append(('client', uri))

  def get_experiment_by_name(self, name):
    return None

  def create_experiment(self, name):
    return f'number of {name}'

  def create_run(self, number, run_name):
    self.told.append(('create_run', number, run_name))
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id='abc'))

  def __getattr__(self, name):
    return lambda *args, **kwargs: self.told.append((name, *args, kwargs))


@pytest.mark.parametrize('fake', ['mlflow'], indirect=True)
def test_calls_of_mlflow(fake, tmp_path, monkeypatch):
  entities = types.ModuleType('mlflow.entities')
  entities.Param, entities.Metric = (lambda *args: args), (lambda k, v, now, step: (k, v, step))
  monkeypatch.setitem(sys.modules, 'mlflow.entities', entities)
  fake.MlflowClient = lambda uri: Client(fake.told, uri)
  make = trackers.mlflow(experiment='e', tracking_uri='sqlite:///x')
  train(make, tmp_path / 'run', [1])
  train(make, tmp_path / 'run', [2], resume_step=1, fine=False)
  calls = [call for call in fake.told if call[0] != 'log_batch']
  assert calls[:2] == [('client', 'sqlite:///x'), ('create_run', 'number of e', 'run')]
  text = ('set_tag', 'abc', 'warning.length_drift', 'responses are long', {})
  assert calls[2:] == [
    text,
    ('set_terminated', 'abc', 'FINISHED', {}),
    ('client', 'sqlite:///x'),
    ('update_run', 'abc', {'status': 'RUNNING'}),
    text,
    ('set_terminated', 'abc', 'FAILED', {}),
  ]
  batches = [call[2] for call in fake.told if call[0] == 'log_batch']
  assert dict(batches[0]['params']) == {name: str(x) for name, x in FIELDS.items()}
  assert [batch['metrics'][0] for batch in batches[1:]] == [('loss', 1.0, 1), ('loss', 0.5, 2)]


def test_warnings_name_the_tracker(tmp_path, caplog, monkeypatch):
  module = Fake('wandb')
  monkeypatch.setitem(sys.modules, 'wandb', module)
  with background.open_all(metrics.About(tmp_path), [trackers.wandb()]) as writer:
    writer.scalars(1, {'loss': 1.0})
  assert 'The writer wandb gets no more reports' in caplog.text


def two_sessions(make, run_dir):
  """A run that is killed and goes on, each through threads of their own."""
  run_dir.mkdir()
  for resume_step, steps in ((0, (1, 2)), (2, (3, 4))):
    about = metrics.About(run_dir, FIELDS, resume_step)
    with background.open_all(about, [make]) as writer:
      for step in steps:
        writer.scalars(step, {'loss': 1.0 / step})
      writer.text(4, 'length_drift', 'responses are long')


def test_wandb_itself_offline(tmp_path, monkeypatch, caplog):
  pytest.importorskip('wandb', reason="wandb is not installed: pip install 'nlhf_jax[wandb]'")
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  two_sessions(trackers.wandb(), tmp_path / 'run')
  assert not caplog.records
  identity = (tmp_path / 'run' / 'wandb.id').read_text().strip()
  files = sorted((tmp_path / 'run' / 'wandb').glob(f'offline-run-*/run-{identity}.wandb'))
  assert files
  content = b''.join(path.read_bytes() for path in files)
  assert b'Experiment.num_steps' in content and b'responses are long' in content


def test_mlflow_itself_on_a_local_store(tmp_path, monkeypatch, caplog):
  mlflow = pytest.importorskip(
    'mlflow', reason="mlflow is not installed: pip install 'nlhf_jax[mlflow]'"
  )
  uri = f'sqlite:///{tmp_path / "store.db"}'
  monkeypatch.setenv('MLFLOW_TRACKING_URI', uri)
  monkeypatch.chdir(tmp_path)
  two_sessions(trackers.mlflow('e'), tmp_path / 'run')
  assert not caplog.records
  client = mlflow.MlflowClient(uri)
  (run,) = client.search_runs([client.get_experiment_by_name('e').experiment_id])
  assert run.info.run_id == (tmp_path / 'run' / 'mlflow.id').read_text().strip()
  assert (run.info.run_name, run.info.status) == ('run', 'FINISHED')
  assert run.data.params == {name: str(x) for name, x in FIELDS.items()}
  history = client.get_metric_history(run.info.run_id, 'loss')
  assert [(x.step, x.value) for x in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
  assert run.data.tags['warning.length_drift'] == 'responses are long'


def test_trackio_itself_locally(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
  pytest.importorskip('trackio', reason="trackio is not installed: pip install 'nlhf_jax[trackio]'")
  two_sessions(trackers.trackio('p'), tmp_path / 'run')
  assert not [x for x in caplog.records if 'nlhf' in x.getMessage() or 'writer' in x.getMessage()]
  name = (tmp_path / 'run' / 'trackio.id').read_text().strip()
  import sqlite3

  (path,) = pathlib.Path(tmp_path / 'trackio').rglob('*.db')
  with sqlite3.connect(path) as store:
    rows = store.execute('select run_name, step, metrics from metrics order by step').fetchall()
  found = [(step, json.loads(values)['loss']) for run, step, values in rows if run == name]
  assert found == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
