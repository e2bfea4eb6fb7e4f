"""Win rates against simulation and by hand."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.evaluation import win_rates
from nlhf_jax.types import Prompts


def prompts(size):
  return Prompts(jnp.zeros((size, 2), jnp.int32), jnp.arange(size))


def biased_judge(prompts, y, other):
  """Prefers the larger first token, and favours the first place by 0.2."""
  return np.clip(0.5 + 0.1 * (y[:, 0] - other[:, 0]) + 0.2, 0, 1)


def test_position_bias_cancels():
  responses = [np.full((6, 2), value, np.int32) for value in (1, 3)]
  per_prompt = win_rates.judge_all(biased_judge, prompts(3), responses, batch_size=2)
  np.testing.assert_allclose(per_prompt[:, 0, 1], 0.3)
  np.testing.assert_array_equal(per_prompt + per_prompt.swapaxes(1, 2), 1.0)
  np.testing.assert_array_equal(per_prompt[:, 0, 0], 0.5)


@pytest.mark.parametrize('answer', [np.nan, 1.2])
def test_failure_of_a_judge(answer):
  responses = [np.ones((2, 2), np.int32)] * 2
  with pytest.raises(ValueError, match=r'outside \[0, 1\] on prompt 0 for contestants \(0, 1\)'):
    win_rates.judge_all(lambda x, y, z: np.full(len(y), answer), prompts(2), responses)


def test_coverage_of_intervals():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(200):
    _, low, high = win_rates.mean_with_interval(rng.beta(2, 3, size=60), seed=1)
    covered += low <= 0.4 <= high
  assert 0.89 <= covered / 200 <= 0.99


def test_files(tmp_path):
  labels = ('a, b', '<b>', 'c')
  per_prompt = np.full((4, 3, 3), 0.5)
  per_prompt[:, 0, 1], per_prompt[:, 1, 0] = 0.75, 0.25
  win_rates.write(tmp_path, win_rates.summarise(per_prompt, labels, 'rule'))
  rows = list(csv.reader((tmp_path / 'win_rates.csv').open()))
  assert rows[0] == ['i_beats_j', *labels]
  assert rows[1][:3] == ['a, b', '0.500000', '0.750000']
  stored = json.loads((tmp_path / 'win_rates.json').read_text())
  assert stored['low'][0][1] == stored['high'][0][1] == 0.75
  assert stored['num_prompts'] == 4
