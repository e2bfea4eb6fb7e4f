"""What arguments may be: ranges, unions, containers, and results that are bound to them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import pytest

from nlhf_jax import arguments
from nlhf_jax.arguments import (
  AxisSize,
  Count,
  CountOrZero,
  Decay,
  NonNegative,
  Positive,
  Seed,
  Share,
)
from nlhf_jax.data import corpora, encoded, pipeline, vocabulary


@pytest.mark.parametrize(
  ('hint', 'good', 'bad'),
  [
    (Count, [1, 7], [0, -1, 2.0, True, '8', None, math.nan]),
    (Count | None, [1, None], [0, 'None', 1.5]),
    (CountOrZero, [0, 3], [-1, False]),
    (AxisSize, [-1, 1, 4], [0, -2]),
    (Seed, [0, 2**32 - 1], [-1, 2**32, 2**40]),
    (Positive, [1, 0.5], [0, 0.0, -1, math.inf, math.nan, '1e-3', True]),
    (NonNegative, [0, 0.0, 3], [-1e-9, math.inf, math.nan]),
    (Share, [0, 1, 0.5], [1.5, -0.1, math.nan]),
    (Decay, [0, 0.999], [1, 1.0]),
    (bool, [True, False], ['yes', 1, 0, None]),
    (str | None, ['a', None], [1, True]),
    (Literal['float32', 'bfloat16'], ['bfloat16'], ['int32', 16]),
    (Sequence[str], [('a', 'b'), []], ['ab', [1], ['a', 1, 'b']]),
    (tuple[Share, ...], [(), (0.5, 1.0)], [(0.5, 2.0), 0.5]),
    (Mapping[str, Count], [{'a': 1}], [{'a': 0}, {1: 1}, ['a']]),
    (Callable[[int], int], [len], ['len', 3]),
  ],
)
def test_ranges(hint, good, bad):
  for value in good:
    assert arguments.problem(hint, value) is None, value
  for value in bad:
    wrong = arguments.problem(hint, value)
    assert wrong is not None and wrong.startswith('must be ') and '\n' not in wrong, value


def test_messages_say_range_and_value():
  assert arguments.problem(Count | None, 0) == 'must be a whole number of at least 1 or None, got 0'
  assert arguments.problem(Literal['a', 'b'], 'c') == "must be 'a' or 'b', got 'c'"


class _Optimizer(NamedTuple):
  init: int


class _Judge(NamedTuple):
  pairs: int

  def __call__(self, x: int) -> int:
    return x


@runtime_checkable
class _Fn(Protocol):
  def __call__(self, x: int) -> int: ...


def test_results_that_an_argument_may_be():
  assert arguments.may_be(_Optimizer | None, _Optimizer)
  assert not arguments.may_be(_Optimizer | None, _Judge)
  assert arguments.may_be(_Fn | None, _Judge)
  assert not arguments.may_be(_Fn | None, _Optimizer)
  assert arguments.may_be(Positive, float) and not arguments.may_be(Count, str)


def test_hints_of_functions_classes_and_named_tuples():
  class Plain:
    def __init__(self, size: Count):
      self.size = size

  def function(size: Count, *, share: Share = 0.5) -> Plain:
    del share
    return Plain(size)

  assert arguments.hints(function) == {'size': Count, 'share': Share}
  assert arguments.hints(Plain) == {'size': Count}
  assert arguments.hints(_Optimizer) == {'init': int}


def test_results_that_a_protocol_may_be():
  """Of a class its methods are known; what attributes its objects have is not."""
  task = encoded.Task | pipeline.Stream
  assert arguments.may_be(task, encoded.Task) and arguments.may_be(task, pipeline.Stream)
  assert arguments.may_be(vocabulary.Vocabulary, vocabulary.WordVocabulary)
  for other in (corpora.Corpus, vocabulary.Vocabulary, dict, int):
    assert not arguments.may_be(task, other)
  for other in (corpora.Corpus, encoded.Task, str):
    assert not arguments.may_be(vocabulary.Vocabulary, other)
