"""Intervals: they hold as often as they say."""

import numpy as np
import pytest

from nlhf_jax.votes import intervals


def test_coverage_is_95_per_cent():
  samples = np.random.default_rng(0).normal(3, 2, (1000, 6))
  found = [intervals.of_mean(sample) for sample in samples]
  assert np.mean([x.low <= 3 <= x.high for x in found]) == pytest.approx(0.95, abs=0.02)


def test_one_value_has_no_interval_and_none_has_no_mean():
  mean, low, high = intervals.of_mean(np.array([0.5]))
  assert mean == 0.5
  assert np.isnan([low, high]).all()
  with pytest.raises(ValueError, match='no value'):
    intervals.of_mean(np.array([]))
  assert [x.mean for x in intervals.of_means(np.array([[0, 1], [1, 3]]))] == [0.5, 2]
