"""Functions that a configuration names and does not call, once another configuration has been read."""

from nlhf_jax.cli import gin_config


def scaled(x: float, by: float = 1.0) -> float:
  return x * by


def described(function=None, functions=(), value=None):
  return function, *functions, value


HEAD = """
from __gin__ import dynamic_registration
from tests.cli import gin_references_test
gin_references_test.described.function = @gin_references_test.scaled
gin_references_test.described.functions = [@a/gin_references_test.scaled]
"""


def read(tmp_path, text: str):
  (tmp_path / 'x.gin').write_text(HEAD + text)
  layers = [gin_config.Layer([tmp_path / 'x.gin'])]
  return gin_config.configure(described, gin_config.Source(layers)).value


def test_functions_keep_the_bindings_that_they_were_read_with(tmp_path):
  """Scopes and macros too."""
  scope = 'a/gin_references_test.scaled.by = %BY\nBY = 5.0\n'
  first = read(tmp_path, f'gin_references_test.scaled.by = 2.0\n{scope}')
  second = read(tmp_path, 'gin_references_test.scaled.by = 3.0\n')
  third = read(tmp_path, '')
  assert [x(10.0) for x in first[:2]] == [20, 50]
  assert [x(10.0) for x in second[:2]] == [30, 30]
  assert [x(10.0) for x in third[:2]] == [10, 10]
  assert first[0](1.0, by=7.0) == 7


def test_functions_within_functions_keep_them_too(tmp_path):
  """What is evaluated when a function is called, and what that names."""
  inner = 'gin_references_test.outer.inner = @gin_references_test.scaled\n'
  outer = 'gin_references_test.described.value = @gin_references_test.outer\n'
  first = read(tmp_path, f'{inner}{outer}gin_references_test.scaled.by = 2.0\n')[-1]
  read(tmp_path, '')
  assert first(10.0) == 20
  later = first()
  read(tmp_path, 'gin_references_test.scaled.by = 3.0\n')
  assert later(10.0) == 20


def outer(x: float | None = None, inner=None):
  return inner if x is None else inner(x)
