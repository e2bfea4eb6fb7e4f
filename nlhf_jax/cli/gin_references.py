"""Functions that a configuration names without calling them go by that configuration, whatever is read after it.

gin looks for a function's bindings when it is called, among those that were read last. Where two runs' configurations are read in one
process, the functions of the first would be called with the bindings of the second: a judge with blocks and gates as one without.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import gin

# (scope, function) → its bindings.
_Bindings = Mapping[tuple[str, str], Mapping[str, Any]]
_kept: contextvars.ContextVar[_Bindings | None] = contextvars.ContextVar('kept', default=None)
_read_last = gin.config._get_bindings


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Within, what gin has read so far is what functions are called by, and what those that are named keep."""
  with _going_by({key: dict(bound) for key, bound in gin.config._CONFIG.items()}):
    yield


@contextlib.contextmanager
def _going_by(bindings: _Bindings) -> Iterator[None]:
  token = _kept.set(bindings)
  try:
    yield
  finally:
    _kept.reset(token)


def _bindings_of(
  selector: str, scope_components: list[str] | None = None, inherit_scopes: bool = True
) -> dict[str, Any]:
  """gin's own, among those that are kept; inner scopes win."""
  bindings = _kept.get()
  if bindings is None:
    return _read_last(selector, scope_components, inherit_scopes)
  scopes = scope_components or gin.current_scope()
  first = 0 if inherit_scopes else len(scopes)
  result: dict[str, Any] = {}
  for depth in range(first, len(scopes) + 1):
    result.update(bindings.get(('/'.join(scopes[:depth]), selector), {}))
  return result


def _resolved(reference: gin.config.ConfigurableReference, memo) -> Any:
  """What a reference stands for: a call's result, or a function that keeps the configuration; the same one each time."""
  del memo
  function, bindings = reference.scoped_configurable_fn, _kept.get()
  if reference.evaluate:
    return function()
  if bindings is None:
    return function
  before = getattr(reference, '_keeping', None)
  if before is None or before[0] is not bindings:
    reference._keeping = before = bindings, _keeping(function, bindings)
  return before[1]


def _keeping(function, bindings: _Bindings):
  @functools.wraps(function)
  def call(*args, **kwargs):
    with _going_by(bindings):
      return function(*args, **kwargs)

  return call


gin.config._get_bindings = _bindings_of
gin.config.ConfigurableReference.__deepcopy__ = _resolved
