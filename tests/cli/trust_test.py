"""A run's config.gin is code, and the run may be a stranger's: what it may not call is refused before it is imported or called."""

import os
import pathlib
import stat
import sys

import gin
import jax
import pytest

from nlhf_jax.cli import experiments, gin_config, main, trust
from nlhf_jax.evaluation import tournament

HEAD = 'from __gin__ import dynamic_registration\n'
OURS = f'{HEAD}from nlhf_jax.evaluation import tournament\nfrom nlhf_jax.judges import rules\n'
GOOD = f'{OURS}tournament.Evaluation.judge = @rules.shorter\n'


@pytest.fixture(autouse=True)
def _no_one_is_trusted():
  trust.reset([])
  yield
  trust.reset([])


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A package of someone's; importing it leaves a trace."""
  trace = tmp_path / 'imported'
  code = f'import pathlib\npathlib.Path({str(trace)!r}).touch()\ndef judge(x=1):\n  return x\ndef also(x=1):\n  return x\n'
  (tmp_path / 'their_package.py').write_text(code)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield trace
  sys.modules.pop('their_package', None)


def kept(tmp_path, text) -> pathlib.Path:
  run_dir = tmp_path / 'run'
  run_dir.mkdir(exist_ok=True)
  (run_dir / 'config.gin').write_text(text)
  (run_dir / 'run.json').write_text('{"nlhf_jax": "1", "fields": {}}')
  return run_dir


# Reaching out by an import, by the attributes of a module that is allowed, and by our own functions that write or run.
REFUSED = {
  'a module': ('import os\nos.system.command = "x"\n', r'line 2: imports os, .*--trust os\.$'),
  'from a package': (
    'from subprocess import run\n',
    r'imports subprocess\.run, .*--trust subprocess',
  ),
  'under a name of ours': (
    'import os as nlhf_jax\n',
    'imports os, and a kept configuration is code',
  ),
  'what begins like us': (
    'import nlhf_jax_evil\n',
    'imports nlhf_jax_evil, .*--trust nlhf_jax_evil',
  ),
  'numbers': ('from jax import numpy\nX = @numpy.load()\n', r'imports jax\.numpy, .*--trust jax'),
  'gin itself': ('import gin\nX = @gin.parse_config()\n', 'imports gin, and a kept'),
  'gin through our module': (
    'from nlhf_jax.cli import bound\nX = @bound.gin.parse_config()\n',
    'names .*parse_config, which is of gin',
  ),
  'our trainer': (
    'from nlhf_jax.training import run\nX = @run.train()\n',
    'names .*train, which no kept configuration may call',
  ),
  'a file': ("include '/etc/x.gin'\n", r"line 2: includes '/etc/x\.gin'"),
  'a module of our module': (
    'from nlhf_jax.runtime import trackers\nX = @trackers.importlib.import_module()\n',
    'names .*import_module, which is of importlib',
  ),
  'a class of our module': (
    'from nlhf_jax.evaluation import report\nX = @report.pathlib.Path()\n',
    'names .*Path, which is of pathlib',
  ),
  'what is bound and not called': (
    'from nlhf_jax.runtime import processes\nprocesses.os.system.command = "x"\n',
    'names .*system, which is of posix|No configurable|signature|inspect',
  ),
  'our writer': (
    'from nlhf_jax.runtime import atomic\nX = @atomic.write_text()\n',
    'names .*write_text, which no kept configuration may call',
  ),
  'our writer in another module': (
    'from nlhf_jax.evaluation import report\nX = @report.atomic.write_text()\n',
    'names .*write_text, which no kept configuration may call',
  ),
  'our command line': (
    'from nlhf_jax.cli import main\nX = @main.main()\n',
    r'names nlhf_jax\.cli\.main\.main, which no kept',
  ),
  'our reader of configurations': (
    'from nlhf_jax.cli import gin_config\nX = @gin_config.from_text()\n',
    'names .*from_text, which no kept configuration may call',
  ),
  'our private parts': (
    'from nlhf_jax.evaluation import report\nX = @report._page()\n',
    'names .*_page, which no kept configuration may call',
  ),
  'our rows': (
    'from nlhf_jax.formats import t5x\nfrom nlhf_jax.runtime import metrics\nt5x.locate.path = "x"\n'
    "metrics.append_rows.path = @t5x.locate()\nmetrics.append_rows.rows = [{'$(x)': 1}]\nX = @metrics.append_rows()\n",
    'names .*(append_rows|locate), which no kept configuration may call',
  ),
  'our importer of a package by its name': (
    'from nlhf_jax.runtime import metrics\nmetrics.Tracker.package = "a.b"\n',
    'names .*Tracker, which no kept configuration may call',
  ),
  'our class that writes': (
    'from nlhf_jax.training import traces\nX = @traces.Writer()\n',
    'names .*Writer, which no kept configuration may call',
  ),
  'a method of our judge': (
    'from nlhf_jax.judges import llm\nllm.Panel.judge.self = @llm.Panel()\nX = @llm.Panel.judge()\n',
    r'names .*Panel\.judge, which no kept configuration may call',
  ),
  'a method of our struct': (
    'from nlhf_jax.runtime import checkpoints\nX = @checkpoints.Keep._make()\n',
    'names .*_make, which is of collections',
  ),
  'our client': (
    'from nlhf_jax.judges import llm\nX = @llm.llm_client.Client()\n',
    'names .*Client, which no kept configuration may call',
  ),
  'our exporter': (
    'from nlhf_jax.formats import hf\nX = @hf.save()\n',
    'names .*save, which no kept configuration may call',
  ),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_a_kept_configuration_may_not(kind):
  text, message = REFUSED[kind]
  with pytest.raises(ValueError, match=message) as caught:
    gin_config.from_text(tournament.Evaluation, f'{HEAD}{text}', name='run/config.gin')
  assert '\n' not in str(caught.value)


def test_nothing_is_imported_before_it_is_refused(module):
  text = f'{GOOD}import their_package\n'
  with pytest.raises(ValueError, match=r'run/config\.gin, line 5: imports their_package'):
    gin_config.from_text(tournament.Evaluation, text, name='run/config.gin')
  assert not module.exists() and 'their_package' not in sys.modules


@pytest.mark.parametrize('command', ['sample', 'export'])
def test_a_strangers_run_writes_and_asks_nothing(command, tmp_path, capsys, monkeypatch):
  """What it would append to is as it was, and no server is asked by a judge that it calls; a judge that it only describes is fine."""
  monkeypatch.setattr('nlhf_jax.judges.llm_client.Client.ask', lambda *args: pytest.fail('asked'))
  (tmp_path / 'victim').write_text('as it was')
  head = f'{HEAD}from nlhf_jax.formats import t5x\nfrom nlhf_jax.judges import llm\nfrom nlhf_jax.runtime import metrics\n'
  head += 'from nlhf_jax.training import experiment\n'
  writes = f"""t5x.locate.path = '{tmp_path / 'victim'}'
metrics.append_rows.path = @t5x.locate()
metrics.append_rows.rows = [{{'$(x)': 1}}]
experiment.Experiment.sets = {{'x': @metrics.append_rows()}}
"""
  asks = """llm.Panel.models = ('m',)
llm.Panel.judge.self = @llm.Panel()
llm.Panel.judge.questions = ['q']
experiment.Experiment.sets = {'x': @llm.Panel.judge()}
"""
  for text in (writes, asks):
    run_dir = kept(tmp_path, head + text)
    where = [f'--output_dir={tmp_path / "out"}'] if command == 'export' else []
    assert main.main([command, f'--run_dir={run_dir}', *where]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'which no kept configuration may call' in line
  assert (tmp_path / 'victim').read_text() == 'as it was' and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('command', ['sample', 'export', 'win-rates', 'diagnose'])
def test_commands_refuse_a_strangers_run(command, module, tmp_path, capsys):
  run_dir = kept(tmp_path, f'{GOOD}import their_package\n')
  argv = {
    'sample': ['sample', f'--run_dir={run_dir}'],
    'export': ['export', f'--run_dir={run_dir}', f'--output_dir={tmp_path / "out"}'],
    'win-rates': [
      'win-rates',
      '--gin_file=configs/experiments/builtin/evaluation.gin',
      f'--output_dir={tmp_path / "out"}',
      '--run_dirs',
      f'SFT={run_dir}',
    ],
    'diagnose': ['diagnose', f'--run_dir={run_dir}'],
  }[command]
  assert main.main(argv) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'nlhf {command}: {run_dir / "config.gin"}, line 5: imports their_package')
  assert line.endswith('allow it with --trust their_package.')
  assert not module.exists() and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('package', ['their_package'])
def test_what_the_user_trusts_is_imported(package, module):
  """By --trust, for one command."""
  text = f'{HEAD}import their_package\nX = @their_package.judge()\n'
  with pytest.raises(ValueError, match='imports their_package'):
    trust.check_imports(text, 'x')
  trust.reset([package])
  trust.check_imports(text, 'x')
  gin.clear_config()
  gin.parse_config(text)
  trust.check_calls('x')
  assert module.exists()
  trust.reset([])
  with pytest.raises(ValueError, match='which is of their_package'):
    trust.check_calls('x')


def test_what_the_users_own_files_import_is_trusted(module, tmp_path):
  """A demo of someone's experiment reads the runs that it has just trained."""
  file = tmp_path / 'own.gin'
  file.write_text(f'{HEAD}import their_package\nX = @their_package.also()\n')
  gin_config.read(gin_config.Source([gin_config.Layer([file])]))
  assert module.exists()
  trust.check_imports(file.read_text(), 'x')


def test_our_writers_are_refused_whatever_is_trusted(tmp_path):
  """The user's own files import this package too."""
  text = f'{HEAD}from nlhf_jax.runtime import atomic\nX = @atomic.write_json()\n'
  file = tmp_path / 'own.gin'
  file.write_text(GOOD)
  gin_config.read(gin_config.Source([gin_config.Layer([file])]))
  with pytest.raises(ValueError, match='write_json, which no kept configuration may call'):
    gin_config.from_text(tournament.Evaluation, text)


def test_what_shipped_experiments_are_kept_as_may_be_read():
  """Every third run of each: nothing that it imports or calls is refused."""
  number, known = 0, [f"{name} = 'x'" for name in ('RUNS', 'DATA_DIR', 'MODEL_DIR')]
  for directory in sorted(x.parent for x in (gin_config.ROOT / 'configs').rglob('stages.txt')):
    for stage in experiments.stages(directory)[::3]:
      layer = gin_config.Layer(stage.files, stage.bindings)
      try:
        gin_config.read(gin_config.Source([layer], if_asked=known))
      except ValueError as error:
        # Some want more to be set.
        assert 'must be set' in str(error) or 'REQUIRED' in str(error)
        continue
      text = gin.config_str()
      trust.reset([])
      gin.clear_config()
      trust.check_imports(text, stage.name)
      gin.parse_config(text)
      trust.check_calls(stage.name)
      number += 1
  assert number > 12


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Where compiled programs are to go; JAX is as before afterwards."""
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  jax.config.update('jax_compilation_cache_dir', None)
  yield tmp_path / 'cache' / 'nlhf_jax'
  jax.config.update('jax_compilation_cache_dir', before)


def mode(path: pathlib.Path) -> int:
  return stat.S_IMODE(path.stat().st_mode)


def test_what_is_compiled_is_the_users_alone(cache):
  """A new directory, and one that others could look into."""
  main.keep_compiled()
  assert jax.config.jax_compilation_cache_dir == str(cache) and mode(cache) == 0o700
  cache.chmod(0o755)
  main.keep_compiled()
  assert mode(cache) == 0o700


@pytest.mark.parametrize('given', ['', 'relative'])
def test_cache_that_is_not_absolute_is_the_users_usual_one(given, cache, monkeypatch, tmp_path):
  """Not the directory that the command is started in, which may be a checkout with the package in it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', given)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  main.keep_compiled()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'home' / '.cache' / 'nlhf_jax')
  assert [x.name for x in tmp_path.iterdir()] == ['home']


def test_no_home(cache, caplog, monkeypatch):
  """A container's user may have none."""
  monkeypatch.delenv('XDG_CACHE_HOME')

  def home():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(pathlib.Path, 'home', home)
  main.keep_compiled()
  assert jax.config.jax_compilation_cache_dir is None
  assert 'home directory. Set JAX_COMPILATION_CACHE_DIR; nothing that is compiled' in caplog.text


@pytest.mark.parametrize('danger', ['written by others', 'another user', 'a link', 'no directory'])
def test_code_of_others_is_not_run(danger, cache, caplog, monkeypatch):
  """Compiled programs are native code: what others may have put there is not read, and the log says so."""
  cache.mkdir(parents=True)
  if danger == 'written by others':
    cache.chmod(0o777)
  elif danger == 'another user':
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
  elif danger == 'a link':
    cache.rename(cache.with_name('theirs'))
    cache.symlink_to(cache.with_name('theirs'))
  else:
    cache.rmdir()
    cache.write_text('')
  main.keep_compiled()
  assert jax.config.jax_compilation_cache_dir is None
  assert str(cache) in caplog.text and 'nothing that is compiled is kept' in caplog.text
