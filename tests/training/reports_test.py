"""A run's files, trackers, traces and warnings, together: what is left of a run that was killed, and of one that was not."""

import functools
import importlib.util
import json
import shutil

import jax
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.runtime import metrics, run_directory
from nlhf_jax.training import experiment, run, traces
from nlhf_jax.types import Prompts
from tests.tiny import t5_network

NETWORK = t5_network(vocab_size=12)
WHAT_A_CLOCK_SAYS = ('_seconds', '_per_second')


def batches(start=0):
  number = start
  while True:
    rng = np.random.default_rng(number)
    yield Prompts(rng.integers(2, 12, (4, 3)).astype(np.int32), np.arange(4, dtype=np.int32))
    number += 1


def always_first(prompts, y, other):
  return jax.numpy.ones(y.shape[0])


def described(num_steps, *writers, **changes):
  pi = policy.from_network(NETWORK, decoding.Sampling(max_length=3, **changes))
  return experiment.Experiment(
    model=pi,
    algorithm=functools.partial(algorithms.best_response, tau=0.1, num_samples=2),
    batches=batches,
    optimizer=optax.sgd(0.1),
    num_steps=num_steps,
    feedback=always_first,
    start_from=lambda like, runs: jax.jit(pi.init)(jax.random.key(0)),
    traced=traces.Traces(every=2, num_prompts=1),
    writers=writers,
    log_every=1,
    save_every=2,
  )


class Recorder:
  """A tracker of one's own: a function of the run."""

  def __init__(self):
    self.abouts, self.steps, self.texts = [], [], []

  def make(self, about):
    self.abouts.append(about)
    return metrics.Writer(
      lambda step, values: self.steps.append(step),
      lambda step, name, text: self.texts.append((step, name)),
    )


def rows(run_dir, name):
  return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def test_killed_run_reports_what_the_other_does(tmp_path):
  """Traces, metrics and warnings of one that ended at step 4, of which steps up to 6 were on disk, and went on."""
  recorder = Recorder()
  fields = {'Experiment.num_steps': 6}
  run.train(described(6, recorder.make), tmp_path / 'straight', fields)
  assert recorder.steps == [1, 2, 3, 4, 5, 6]
  assert recorder.abouts[0].fields == fields
  run_dir = tmp_path / 'killed'
  run.train(described(6), run_dir, fields)
  for step in (5, 6):
    for path in (run_dir / 'checkpoints').glob(f'{step}*'):
      shutil.rmtree(path)
  again = Recorder()
  run.train(described(6, again.make), run_dir, fields)
  assert again.steps == [5, 6] and again.abouts[0].resume_step == 4
  for name in ('votes.jsonl', 'warnings.jsonl', 'metrics.jsonl'):
    first, second = (rows(tmp_path / x, name) for x in ('straight', 'killed'))
    if name == 'metrics.jsonl':
      for row in (*first, *second):
        for key in [key for key in row if key.endswith(WHAT_A_CLOCK_SAYS)]:
          del row[key]
    assert first == second, name
  kept = rows(run_dir, 'votes.jsonl')
  assert [row['rollout']['step'] for row in kept] == [1, 1, 2, 2, 4, 4, 6, 6]
  assert {row['probability'] for row in kept} == {1.0}
  # P is 1 in each line, which is told once, and to trackers too; not again by the session that went on.
  assert [row['name'] for row in rows(run_dir, 'warnings.jsonl')].count('preference_stuck') == 1
  assert (3, 'preference_stuck') in recorder.texts
  assert not [text for text in again.texts if text[1] == 'preference_stuck']


def test_tracker_that_fails_leaves_the_run(tmp_path, caplog):
  def offline(about):
    raise ConnectionError('no network')

  state = run.train(described(2, offline), tmp_path / 'run')
  assert int(state.step) == 2
  assert len(rows(tmp_path / 'run', 'metrics.jsonl')) == 2
  lines = [x.getMessage() for x in caplog.records if 'gets no more reports' in x.getMessage()]
  assert len(lines) == 1 and 'no network' in lines[0]


def test_package_that_is_missing_costs_no_run(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  missing = metrics.Tracker('no_such_tracker', lambda about: None)
  with pytest.raises(ValueError, match=r"pip install 'nlhf_jax\[no_such_tracker\]'"):
    run.train(described(1, missing), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_truncated_sampling_is_told(tmp_path, caplog):
  run.train(described(1, top_p=0.9), tmp_path / 'run')
  (warning,) = rows(tmp_path / 'run', 'warnings.jsonl')
  assert (warning['step'], warning['name']) == (0, 'truncated_sampling')
  assert warning['text'] in caplog.text


def test_number_of_traces_is_checked_before_the_run(tmp_path):
  bad = described(1)._replace(traced=traces.Traces(every=0))
  with pytest.raises(ValueError, match=r'Traces.every must be at least 1'):
    run.train(bad, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_reports_may_change_when_a_run_resumes(tmp_path):
  fields = {'Experiment.num_steps': 2, 'Experiment.traced': None}
  run_directory.create(tmp_path / 'run', '', fields)
  more = {
    'Experiment.traced': '@traces.Traces()',
    'traces.Traces.every': 5,
    'vocabularies.decoder.vocabulary': '@corpora.vocabulary()',
    'Experiment.writers': ['@trackers.wandb()'],
    'trackers.wandb.project': 'p',
  }
  run_directory.check_resumable(tmp_path / 'run', fields | more)
  with pytest.raises(ValueError, match=r'decoding\.Sampling\.max_length'):
    run_directory.check_resumable(tmp_path / 'run', fields | {'decoding.Sampling.max_length': 3})
