"""The built wheel, installed apart from the repository: its configurations come along, and the commands run from anywhere."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.docs_test import blocks_in, command_lines

ROOT = pathlib.Path(__file__).parent.parent
SMALL = (
  '--gin.NUM_STEPS=1',
  '--gin.BATCH_SIZE=2',
  '--gin.optimizers.warmup_linear.warmup_steps=0',
  '--gin.corpora.headlines.num_train=40',
  '--gin.corpora.headlines.num_test=8',
  '--gin.sizes.network.num_layers=1',
)


def check(argv, **kwargs) -> str:
  done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, **kwargs)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  directory, source = tmp_path_factory.mktemp('dist'), tmp_path_factory.mktemp('source')
  # Of a copy: what an earlier build has left in the repository would go into this one.
  for name in ('nlhf_jax', 'configs'):
    shutil.copytree(ROOT / name, source / name)
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps']
  check([*pip, f'--wheel-dir={directory}', source])
  (found,) = directory.glob('*.whl')
  return found


@pytest.fixture(scope='module')
def nlhf(wheel, tmp_path_factory):
  """The command in an environment that has the wheel, and else what this one has; it runs in an empty directory."""
  home = tmp_path_factory.mktemp('environment')
  check([sys.executable, '-m', 'venv', '--without-pip', home])
  python = home / 'bin' / 'python'
  code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
  packages = pathlib.Path(check([python, '-c', code]).strip())
  # A path that stands in a .pth file is not searched for further ones: this repository is not on it.
  (packages / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
  install = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps']
  check([*install, '--force-reinstall', wheel])
  empty = tmp_path_factory.mktemp('elsewhere')
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

  def run(*argv) -> str:
    return check([home / 'bin' / 'nlhf', *argv], cwd=empty, env=environment)

  run.directory = empty
  where = check(
    [python, '-c', 'import nlhf_jax; print(nlhf_jax.__file__)'], cwd=empty, env=environment
  )
  assert where.startswith(str(packages))
  return run


def test_wheel_holds_every_configuration(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  for path in ROOT.glob('configs/**/*'):
    if path.suffix in ('.gin', '.txt'):
      assert f'nlhf_jax/{path.relative_to(ROOT).as_posix()}' in names
  assert {'nlhf_jax/py.typed', 'nlhf_jax/evaluation/report.html'} <= names
  assert {f'nlhf_jax/judges/templates/{name}.txt' for name in ('chat', 'summary')} <= names
  sources = 'kernel.h', 'few_rows.c', 'attend.c'
  assert {f'nlhf_jax/networks/cpu/{name}' for name in sources} <= names


@pytest.fixture(scope='module')
def demo(nlhf) -> str:
  """What `make demo` prints, of one step a stage."""
  return nlhf('demo', '--run_dir=runs/demo', *SMALL)


def test_demo_of_an_installed_wheel(nlhf, demo):
  """Every stage takes a step, and the policies play."""
  assert 'P(row ≻ column)' in demo
  runs = nlhf.directory / 'runs' / 'demo'
  rates = json.loads((runs / 'win_rates.json').read_text())
  assert rates['labels'] == ['SFT', 'RLHF', 'SP', 'Nash-MD', 'Nash-EMA', 'BR']
  assert (runs / 'report.html').is_file()


def test_commands_of_the_readme(nlhf, demo):
  """Word for word, in their order, after the demo; runs that it has finished are found, and not run again."""
  (block,) = (b for b in blocks_in(ROOT / 'README.md', 'bash') if 'nlhf train' in b.text)
  printed = {}
  for line in command_lines(block):
    program, command, *words = shlex.split(line)
    flags = {'train': SMALL, 'win-rates': [x for x in SMALL if 'corpora' in x]}
    assert program == 'nlhf'
    printed[command] = nlhf(command, *words, *flags.get(command, []))
  assert 'Trained: runs/demo/nash_md_pg' in printed['train']
  assert (nlhf.directory / 'runs' / 'compared' / 'report.html').is_file()
  assert 'Nash-MD' in printed['rank'] and 'nash_mp' in printed['solve']


def test_solve_of_an_installed_wheel(nlhf):
  output = nlhf('solve', '--game', 'rock_paper_scissors:3', '--num_steps=200', '--output=out.json')
  assert 'nash_md' in output
  assert (nlhf.directory / 'out.json').is_file()
