"""What a command writes to standard error is its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def python(program: str) -> subprocess.CompletedProcess:
  argv = [sys.executable, '-c', program]
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'TF_CPP_MIN_LOG_LEVEL': '3'}
  return subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)


def test_tensorflow_says_nothing():
  """Loaded as ever, and standard error is as it was."""
  result = python(
    'import sys\n'
    'from nlhf_jax.cli import quiet\n'
    'quiet.load_tensorflow_quietly(); quiet.load_tensorflow_quietly()\n'
    'assert "tensorflow" not in sys.modules\n'
    'import tensorflow as tf\n'
    'print(int(tf.constant(2) + 1)); print("mine", file=sys.stderr)'
  )
  assert (result.returncode, result.stdout, result.stderr) == (0, '3\n', 'mine\n')


def test_error_of_a_package_that_is_not_there():
  """Python's own, and on the terminal."""
  result = python(
    'import sys\n'
    'from nlhf_jax.cli import quiet\n'
    'quiet.load_tensorflow_quietly()\n'
    'sys.path[:] = []\n'
    'import tensorflow'
  )
  assert "No module named 'tensorflow'" in result.stderr
