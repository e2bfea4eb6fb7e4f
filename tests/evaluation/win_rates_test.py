"""Win rates, judges and exact play against simulation and brute force."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nlhf_jax.evaluation import exact
from nlhf_jax.evaluation import judge_accuracy
from nlhf_jax.evaluation import report
from nlhf_jax.evaluation import win_rates
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, Prompts


def prompts(size):
  return Prompts(jnp.zeros((size, 2), jnp.int32), jnp.arange(size))


def biased_judge(prompts, y, other):
  """Prefers the larger first token, and favours the first place by 0.2."""
  return np.clip(0.5 + 0.1 * (y[:, 0] - other[:, 0]) + 0.2, 0, 1)


def test_both_orders_cancel_the_judges_bias():
  responses = [np.full((6, 2), value, np.int32) for value in (1, 3)]
  per_prompt = win_rates.judge_all(biased_judge, prompts(3), responses, batch_size=2)
  np.testing.assert_allclose(per_prompt[:, 0, 1], 0.3)
  np.testing.assert_array_equal(per_prompt + per_prompt.swapaxes(1, 2), 1.0)
  np.testing.assert_array_equal(per_prompt[:, 0, 0], 0.5)


@pytest.mark.parametrize('answer', [np.nan, 1.2])
def test_a_judges_failure_is_no_vote(answer):
  responses = [np.ones((2, 2), np.int32)] * 2
  with pytest.raises(ValueError, match=r'outside \[0, 1\] on prompt 0 for players \(0, 1\)'):
    win_rates.judge_all(lambda x, y, z: np.full(len(y), answer), prompts(2), responses)


def test_intervals_cover_the_truth_at_their_rate():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(200):
    _, low, high = win_rates.mean_with_interval(rng.beta(2, 3, size=60), seed=1)
    covered += low <= 0.4 <= high
  assert 0.89 <= covered / 200 <= 0.99


def test_files_round_trip(tmp_path):
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


def test_exact_play_against_brute_force():
  """Worst case, gap and preference of two policies on small games, by enumeration and by a numerical optimiser."""
  rng = np.random.default_rng(1)
  scores = rng.integers(0, 4, (2, 3, 5)).astype(np.float32)
  scores[1, :, 4] = -np.inf
  log_probs = np.log(rng.dirichlet(np.ones(5), size=(2, 2)) * 0.95)
  reference, tau = np.log(np.full((2, 5), 0.19)), 0.1
  result = exact.evaluate(log_probs, scores, reference, tau)
  for b in range(2):
    size = 5 - b
    table = np.full((size + 1, size + 1), 0.5)
    for i in range(size):
      table[i, size], table[size, i] = 1.0, 0.0
      for j in range(size):
        votes = [(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for s in scores[b]]
        table[i, j] = np.mean(votes)
    p = [np.append(np.exp(x[b, :size]), 1 - np.exp(x[b, :size]).sum()) for x in log_probs]
    mu = np.append(np.exp(reference[b, :size]), 1 - np.exp(reference[b, :size]).sum())
    np.testing.assert_allclose(result.preference[b, 0, 1], p[0] @ table @ p[1], atol=1e-9)
    np.testing.assert_allclose(
      result.worst_case[b, 0], min(p[0] @ table[:, y] for y in range(size + 1))
    )
    kl = lambda q, mu=mu: np.sum(q * np.log(q / mu))

    def loss(logits, p=p, table=table, kl=kl):
      q = np.exp(logits - np.logaddexp.reduce(logits))
      return -(q @ table @ p[1] - tau * kl(q) + tau * kl(p[1]))

    best = -optimize.minimize(loss, np.zeros(size + 1)).fun
    np.testing.assert_allclose(result.duality_gap[b, 1], 2 * best - 1, atol=1e-5)
    np.testing.assert_allclose(result.kl[b, 1], kl(p[1]), atol=1e-9)
    assert result.unbeaten[b] == any(all(table[i] >= 0.5) for i in range(size + 1))


def test_the_table_reports_prompts_without_a_condorcet_winner_apart():
  cycle = np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]], np.float32)  # Three tastes, a cycle.
  winner = np.array([[2, 1, 0]] * 3, np.float32)
  scores = np.stack([cycle, winner])
  uniform = np.log(np.full((2, 3), 1 / 3))
  first = np.log(np.tile([0.998, 0.001, 0.001], (2, 1)))
  result = exact.evaluate(np.stack([uniform, first]), scores, uniform, 0.1)
  table = exact.table(result, ['uniform', 'first'], baseline='first')
  apart = table['no_condorcet_winner']
  assert (table['all']['num_prompts'], apart['num_prompts']) == (2, 1)
  assert apart['worst_case']['mean'][0] == pytest.approx(0.5)
  assert apart['worst_case']['mean'][1] == pytest.approx(1 / 3, abs=2e-3)
  assert apart['worst_case_difference']['mean'][0] == pytest.approx(1 / 6, abs=2e-3)


def _comparisons(votes, first_lengths):
  tokens = np.zeros((len(votes), 4), np.int32)
  for row, length in enumerate(first_lengths):
    tokens[row, :length] = 1
  other = np.tile(np.array([[1, 1, 0, 0]], np.int32), (len(votes), 1))
  return Comparison(
    prompts(len(votes)),
    as_rollout(jnp.asarray(tokens)),
    as_rollout(jnp.asarray(other)),
    jnp.asarray(votes),
  )


def test_judges_are_scored_as_by_hand():
  comparisons = _comparisons([1.0, 0.0, 1.0, 0.5], [3, 3, 1, 2])
  answers = np.array([0.9, 0.6, 0.8, 0.5])
  result = judge_accuracy.measure(lambda x, y, z: answers[np.asarray(x.index)], comparisons, batch_size=3)
  assert result['accuracy']['mean'] == (1 + 0 + 1 + 0.5) / 4
  assert result['longer_wins']['mean'] == (1 + 0 + 0 + 0.5) / 4
  assert result['first_wins']['mean'] == (1 + 0 + 1 + 0.5) / 4
  losses = [-np.log(0.9), -np.log(0.4), -np.log(0.8), -np.log(0.5)]
  assert result['log_loss'] == pytest.approx(np.mean(losses))
  # Each answer is alone in its bin.
  assert result['calibration_error'] == pytest.approx((0.1 + 0.6 + 0.2 + 0.0) / 4)
  assert result['accuracy']['low'] <= 0.625 <= result['accuracy']['high']


def test_the_report_escapes_what_policies_wrote(tmp_path):
  attack = '<script>alert(1)</script>" onmouseover="x'
  row = {'prompt': attack, 'responses': {attack: {'text': attack, 'preference': 0.5}}}
  (tmp_path / 'samples.jsonl').write_text(json.dumps(row) + '\n')
  (tmp_path / attack.replace('/', '')).mkdir()
  (tmp_path / attack.replace('/', '') / 'metrics.jsonl').write_text(
    '{"step": 1, "loss": 1, "entropy": 2.0}\n'
  )
  per_prompt = np.full((4, 2, 2), 0.5)
  win_rates.write(tmp_path, win_rates.summarise(per_prompt, (attack, '[red]x'), attack))
  page = report.from_run_dir(tmp_path).read_text()
  assert '<script' not in page
  assert 'onmouseover="x' not in page
  assert '&lt;script&gt;' in page
  assert 'No exact.json here' in page
  assert 'http' not in page.replace('http-equiv', '')  # Nothing is fetched from anywhere.
  report.print_tables(tmp_path)


def test_a_missing_directory_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='nlhf demo'):
    report.from_run_dir(tmp_path / 'none')
