"""Warnings from sequences of metrics: what must warn, once, and what must not."""

import json
import logging

import numpy as np
import pytest

from nlhf_jax import algorithms
from nlhf_jax.training import warning_signs
from nlhf_jax.types import FixedPoint

METHOD = warning_signs.Method(samples=True, max_kl=5.0, truncated=False)
READS = METHOD._replace(samples=False, max_kl=None)
GOOD = {
  'eos_rate': 0.97,
  'kl_to_reference': 1.0,
  'entropy': 20.0,
  'response_length': 30.0,
  'preference': 0.55,
  'loss': 1.0,
}


def told(*rows, method=METHOD, known=()):
  """(name, step) of what is told of lines of metrics, each GOOD but for some values."""
  watch = warning_signs.Watch(method, (), known)
  signs = watch.start()
  for number, row in enumerate(rows, start=1):
    signs += watch.look(10 * number, GOOD | row)
  return [(sign.name, sign.step) for sign in signs]


BAD = {
  'responses_cut': {'eos_rate': 0.6},
  'kl_beyond_fixed_point': {'kl_to_reference': 5.5},
  'entropy_collapse': {'entropy': 1.9},
  'length_drift': {'response_length': 61.0},
  'preference_stuck': {'preference': 0.985},
  'votes_missing': {'votes_missing': 0.3},
}


@pytest.mark.parametrize('name', BAD)
def test_sign_is_told_once_when_three_lines_agree(name):
  bad = BAD[name]
  assert told({}, bad, bad) == []
  assert told({}, bad, bad, {}, bad, bad) == []
  assert told({}, bad, bad, bad, bad, bad, {}, bad, bad, bad) == [(name, 40)]
  assert told({}, *[bad] * 5, known=[name]) == []


@pytest.mark.parametrize(
  ('start', 'values', 'method'),
  [
    ({}, {'eos_rate': 0.9}, METHOD),
    ({}, {'kl_to_reference': 4.9}, METHOD),
    # Rewards have no greatest KL.
    ({}, {'kl_to_reference': 500.0}, METHOD._replace(max_kl=None)),
    ({}, {'entropy': 2.1}, METHOD),
    # It began without entropy: a game of few responses.
    ({'entropy': 0.4}, {'entropy': 0.01}, METHOD),
    ({}, {'response_length': 59.0}, METHOD),
    ({}, {'response_length': 15.5}, METHOD),
    # Data that are sorted by length: nobody draws them.
    ({}, {'response_length': 90.0}, READS),
    ({}, {'preference': 0.03}, METHOD),
    ({}, {'votes_missing': 0.15}, METHOD),
    # NaN says nothing.
    ({}, {'preference': float('nan'), 'kl_to_reference': float('inf')}, METHOD),
  ],
)
def test_what_is_normal(start, values, method):
  assert told(start, *[values] * 5, method=method) == []


def test_metrics_of_other_methods_are_no_sign():
  """Those of a preference model have none of these; a reward's may be any."""
  watch = warning_signs.Watch(READS)
  rows = [{'loss': 0.6, 'log_loss': 0.6, 'accuracy': 0.7, 'reward': 900.0}] * 5
  assert [watch.look(n, row) for n, row in enumerate(rows)] == [[]] * 5


def test_shorter_and_reading():
  assert told({}, *[{'response_length': 14.0}] * 3) == [('length_drift', 40)]
  assert told({}, *[{'eos_rate': 0.5}] * 3, method=READS) == [('responses_cut', 40)]
  (sign,) = warning_signs.find(GOOD, [GOOD | {'eos_rate': 0.5, 'step': n} for n in range(3)], READS)
  assert 'in the data' in sign.text and sign.step == 2


def test_text_is_one_line_of_value_step_cause_and_remedy(caplog):
  kept = []
  signs = warning_signs.find(
    GOOD, [GOOD | {'step': n, 'kl_to_reference': 7.25} for n in (100, 110, 120)], METHOD
  )
  warning_signs.tell(signs, lambda *args: kept.append(args))
  (record,) = caplog.records
  text = record.getMessage()
  assert record.levelno == logging.WARNING
  assert text.startswith('step 120: ') and '7.25 nats' in text and 'more than 5' in text
  assert 'raise tau' in text and '\n' not in text
  assert kept == [(120, 'kl_beyond_fixed_point', text)]
  json.dumps(kept)


@pytest.mark.parametrize('beta', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('tau', [0.02, 0.2, 0.5])
def test_no_fixed_point_is_further_from_the_reference(tau, beta):
  """Of random games and the hardest one, by iterating π ∝ μ exp(P(y ≻ mixture)/τ) slowly; the bound is nearly reached."""
  rng = np.random.default_rng(0)
  games, size = 40, 6
  votes = np.where(np.arange(games)[:, None, None] % 2, rng.random((games, size, size)), 0.5)
  votes[::2] = rng.integers(0, 2, votes[::2].shape)
  upper = np.triu(votes, 1)
  preference = upper + np.tril(1 - upper.swapaxes(1, 2), -1) + 0.5 * np.eye(size)
  mu = rng.dirichlet(np.full(size, 0.3), games) * (1 - 6e-9) + 1e-9
  # One beats all, and μ hardly has it: KL is near its end.
  preference[0], preference[0, 0, 1:], preference[0, 1:, 0] = 0.5, 1.0, 0.0
  rare = np.exp(-0.5 / tau)
  mu[0] = [rare, *[(1 - rare) / 5] * 5]
  log_pi = log_mu = np.log(mu)
  step = min(0.02, 0.2 * tau)
  for _ in range(4000):
    mixed = np.exp(_normalised((1 - beta) * log_pi + beta * log_mu))
    target = log_mu + np.einsum('gij,gj->gi', preference, mixed) / tau
    log_pi = _normalised((1 - step) * log_pi + step * target)
  kl = np.sum(np.exp(log_pi) * (log_pi - log_mu), axis=-1)
  bound = warning_signs.max_kl(FixedPoint(tau, beta))
  assert kl.max() <= bound * (1 + 1e-6)
  assert kl.max() > 0.2 * bound


def _normalised(log_p):
  return log_p - np.log(np.sum(np.exp(log_p), axis=-1, keepdims=True))


def test_bounds_by_hand():
  kl = lambda tau, beta: warning_signs.max_kl(FixedPoint(tau, beta))
  assert kl(0.1, 0.0) == kl(0.1, 1.0) == pytest.approx(5.0)
  assert kl(0.1, 0.5) == pytest.approx(10.0)
  assert kl(0.5, 0.0) == pytest.approx(0.5)
  assert kl(0.1, None) is None and kl(0.0, 0.0) is None
  assert warning_signs.max_kl(None) is None


def test_truncated_sampling_is_told_before_the_first_step(tiny_policy):
  truncated = tiny_policy._replace(untruncated=False)
  judge = lambda *_: None
  for policy, names in ((tiny_policy, []), (truncated, [('truncated_sampling', 0)])):
    method = warning_signs.method_of(algorithms.self_play(policy, judge, tau=0.1), policy)
    assert told(method=method) == names
    # What reads its responses samples nothing.
    assert told(method=warning_signs.method_of(algorithms.sft(policy), policy)) == []
  assert told(method=method, known=['truncated_sampling']) == []


def test_resumed_run_goes_on_with_its_start():
  """The first line is that of the run, not of the session; lines before the kill count."""
  rows = [GOOD | {'step': n, 'entropy': e} for n, e in ((10, 20.0), (20, 1.0), (30, 1.0))]
  watch = warning_signs.Watch(METHOD, rows)
  assert [sign.name for sign in watch.look(40, GOOD | {'entropy': 1.0})] == ['entropy_collapse']
