"""Environments of the peers' own, made when they are first asked for."""

import pathlib
import subprocess
import venv
from collections.abc import Sequence


def python_of(name: str, packages: Sequence[str]) -> pathlib.Path:
  """The interpreter of benchmarks/NAME, which has these packages."""
  environment = pathlib.Path(__file__).with_name(name)
  python = environment / 'bin' / 'python'
  if not python.exists():
    venv.create(environment, with_pip=True)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *packages], check=True)
  return python
