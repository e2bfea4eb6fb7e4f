"""What importing costs: the core needs neither TensorFlow nor gin."""

import pathlib
import subprocess
import sys

import nlhf_jax

WITH_TENSORFLOW = ('data', 'main.py', 't5x_models.py')
PACKAGE = pathlib.Path(nlhf_jax.__file__).parent


def run(code: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout


def test_importing_the_package_imports_neither_tensorflow_nor_gin():
  loaded = run('import nlhf_jax, sys; print(*sorted(sys.modules))').split()
  assert not {'tensorflow', 'gin', 'seqio', 'jax'} & set(loaded)


def test_the_core_works_where_tensorflow_seqio_and_gin_are_not_installed():
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


def test_posts_and_electorate_need_no_tensorflow():
  run(
    "import sys; sys.modules['tensorflow'] = None\n"
    'from nlhf_jax.data import electorate, extracts, posts, readers\n'
    'electorate.elect(posts.generate(3, 0), range(3, 11))'
  )
