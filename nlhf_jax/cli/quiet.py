"""Keeps off the terminal what TensorFlow's libraries write while they are loaded; no setting of theirs does."""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any


def load_tensorflow_quietly() -> None:
  """From now on; TensorFlow is loaded when it is first imported, as ever."""
  if 'tensorflow' not in sys.modules and not any(isinstance(x, _Finder) for x in sys.meta_path):
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
  """Finds TensorFlow once, with a loader that loads it without a standard error stream."""

  def find_spec(self, fullname, path=None, target=None):
    if fullname != 'tensorflow':
      return None
    sys.meta_path.remove(self)
    spec: Any = importlib.util.find_spec(fullname)
    if spec is not None:
      load = spec.loader.exec_module

      def load_quietly(module):
        with _nothing_on_stderr():
          load(module)

      spec.loader.exec_module = load_quietly
    return spec


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
  """What native code writes there is lost; errors are raised as ever."""
  sys.stderr.flush()
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
