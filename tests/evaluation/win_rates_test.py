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


@pytest.mark.parametrize(
  ('answer', 'message'),
  [
    (np.nan, r'no vote on contestants \(0, 1\)'),
    (1.2, r'outside \[0, 1\] on prompt 0 for contestants \(0, 1\)'),
  ],
)
def test_failure_of_a_judge(answer, message):
  responses = [np.ones((2, 2), np.int32)] * 2
  with pytest.raises(ValueError, match=message):
    win_rates.judge_all(lambda x, y, z: np.full(len(y), answer), prompts(2), responses)


def test_pairs_without_a_vote_are_left_out():
  """Sample 1 of prompt 0 fails in one order, all of prompt 1 in the other: means are over the rest."""
  first = np.array([[2, 0], [3, 0], [4, 0], [4, 0], [5, 0], [6, 0]], np.int32)
  second = np.full((6, 2), 9, np.int32)
  failing = {(3, 9), (9, 4)}

  def judge(prompts, y, other):
    pairs = zip(y[:, 0].tolist(), other[:, 0].tolist(), strict=True)
    return np.array(
      [np.nan if pair in failing else 0.5 + 0.01 * (pair[0] - pair[1]) for pair in pairs]
    )

  seen = []
  per_prompt = win_rates.judge_all(
    judge, prompts(3), [first, second], batch_size=2, observe=lambda *pair: seen.append(pair[2:])
  )
  np.testing.assert_allclose(per_prompt[:, 0, 1], [0.43, np.nan, 0.465])
  for answers in seen[0]:
    np.testing.assert_array_equal(np.isnan(answers), [[False, True], [True, True], [False, False]])
  rates = win_rates.summarise(per_prompt, ('a', 'b'), 'rule', 3)
  assert rates.mean[0, 1] == pytest.approx((0.43 + 0.465) / 2)
  assert rates.mean[1, 0] == pytest.approx(1 - rates.mean[0, 1])
  assert rates.low[0, 1] == pytest.approx(0.43)
  assert rates.num_missing == 3


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
