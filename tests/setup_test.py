"""What importing costs: the core needs neither TensorFlow nor gin."""

import ast
import pathlib
import subprocess
import sys

import pytest

import nlhf_jax

# Rooms that may import TensorFlow, seqio, gin or T5X.
WITH_TENSORFLOW = ('data', 'cli', 't5x_bridge')
PACKAGE = pathlib.Path(nlhf_jax.__file__).parent


def run(code: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout


def test_importing_the_package_imports_neither_tensorflow_nor_gin():
  loaded = run('import nlhf_jax, sys; print(*sorted(sys.modules))').split()
  assert not {'tensorflow', 'gin', 'seqio', 'jax'} & set(loaded)


def test_generated_texts_need_neither_tensorflow_nor_seqio():
  loaded = run(
    'import sys\n'
    'from nlhf_jax.data import corpora, pipeline\n'
    'sizes = dict(batch_size=2, prompt_length=16, response_length=4)\n'
    'task = corpora.comparisons(corpora.headlines())\n'
    "next(pipeline.batches(task, split='train', **sizes))\n"
    'print(*sys.modules)'
  ).split()
  assert not {'tensorflow', 'seqio'} & set(loaded)


def test_core_works_where_tensorflow_seqio_and_gin_are_not_installed():
  names = [
    '.'.join(('nlhf_jax', *path.relative_to(PACKAGE).with_suffix('').parts))
    for path in PACKAGE.rglob('*.py')
    if path.relative_to(PACKAGE).parts[0] not in WITH_TENSORFLOW and path.name != '__init__.py'
  ]
  block = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'seqio', 'gin']))\n"
  run(block + '\n'.join(f'import {name}' for name in sorted(names)))


def test_setup_has_the_version_and_the_readme_of_the_package():
  shown = run(
    f'import os, sys; os.chdir({str(PACKAGE.parent)!r})\n'
    'sys.argv = ["setup.py", "--version", "--quiet"]\n'
    'exec(open("setup.py").read(), {"__name__": "__main__", "__file__": "setup.py"})'
  )
  assert shown.split() == [nlhf_jax.__version__]


def test_public_names_import_on_first_use():
  """Nothing comes with the package itself; each of its names is what its own module defines."""
  found = run(
    'import nlhf_jax, sys\n'
    "assert 'jax' not in sys.modules\n"
    'for name in nlhf_jax.__all__: getattr(nlhf_jax, name)\n'
    "print(nlhf_jax.nash_md_pg.__module__, *({'tensorflow', 'seqio', 'gin'} & set(sys.modules)))"
  )
  assert found.split() == ['nlhf_jax.algorithms']
  with pytest.raises(AttributeError, match="has no attribute 'nash_md'"):
    _ = nlhf_jax.nash_md


FLOORS = {
  'types': 0,
  'arguments': 0,
  'losses': 1,
  'networks': 1,
  'games': 1,
  'judges': 1,
  'models': 2,
  'runtime': 2,
  'votes': 2,
  'formats': 3,
  'personalisation': 3,
  'evaluation': 3,
  'data': 4,
  'training': 4,
  'pairwise': 5,
  'policy_gradient': 6,
  'two_turns': 6,
  'planning': 5,
  't5x_bridge': 5,
  'algorithms': 7,
  'cli': 8,
  '__main__': 9,
}


def test_rooms_import_from_floors_below_alone():
  """No circles, and no room that the plan of the house does not have."""
  for path in PACKAGE.rglob('*.py'):
    room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if room == '__init__':
      continue
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      names = []
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('nlhf_jax'):
        names = [f'{node.module}.{alias.name}' for alias in node.names]
      elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names if alias.name.startswith('nlhf_jax.')]
      for name in names:
        other = name.split('.')[1]
        if other in FLOORS and other != room:
          assert FLOORS[other] < FLOORS[room], f'{path} imports {name}'
