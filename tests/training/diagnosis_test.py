"""Diagnosis names the obstacle that was put there."""

import functools
import json
import types

import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.evaluation import distance
from nlhf_jax.judges import electorate
from nlhf_jax.training import diagnosis
from nlhf_jax.training.experiment import Experiment, pretrained
from nlhf_jax.types import Enumeration


@pytest.fixture(scope='module')
def experiment(tiny_policy, tiny_params, tiny_prompts, language):
  """Self-play under the annotators themselves, with a step that is far too long: that alone is wrong."""
  scores = np.random.default_rng(0).normal(size=(2, 3, len(language)))

  def enumeration(prompts):
    rows = np.asarray(prompts.index)
    return Enumeration(np.stack([language] * len(rows)), scores[rows])

  return Experiment(
    tiny_policy,
    functools.partial(algorithms.self_play, tau=0.1, num_samples=16),
    lambda start: iter([tiny_prompts] * 9),
    optax.adam(1.0),
    num_steps=8,
    feedback=electorate.preference_fn(enumeration),
    start_from=pretrained(lambda like: tiny_params[0]),
    measured=distance.Measured({'held_out': lambda: tiny_prompts}, enumeration, tau=0.1, every=2),
    log_every=2,
  )


def test_obstacle_is_found(experiment, tmp_path):
  """Trials that are done are measured, and not trained again."""
  result = diagnosis.diagnose(experiment, tmp_path / 'self_play', tmp_path / 'out', algorithms.sft)
  cost, judge = result['costs']['step'], result['costs']['judge']
  assert cost['last']['mean'] > 0.05
  assert judge['last']['mean'] == judge['alone']['mean'] == 0
  assert 'data' not in result['costs']
  table, sentences = diagnosis.report(result)
  assert table.row_count == len(result['trials']) == 10
  assert sentences[1].startswith('step: holds it back')
  assert any(line.startswith('judge: hardly') for line in sentences)
  times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('metrics.jsonl')}
  again = diagnosis.diagnose(experiment, tmp_path / 'self_play', tmp_path / 'out', algorithms.sft)
  assert again == result == json.loads((tmp_path / 'out' / 'diagnosis.json').read_text())
  assert {path: path.stat().st_mtime_ns for path in times} == times


def test_diagnosis_that_is_asked_to_end_measures_no_half_trained_trial(
  experiment, monkeypatch, tmp_path
):
  """No other trial begins, and nothing is written; run again, it goes on."""
  trained = []

  def stopping(trial, directory, *args, **settings):
    trained.append(directory.name)
    return types.SimpleNamespace(step=3, params=None)

  monkeypatch.setattr(diagnosis.run, 'train', stopping)
  found = diagnosis.diagnose(experiment, tmp_path / 'run', tmp_path / 'out', algorithms.sft)
  assert found is None and trained == ['as_it_is']
  assert not (tmp_path / 'out' / 'diagnosis.json').exists()


def test_run_that_is_not_measured(experiment, tmp_path):
  with pytest.raises(ValueError, match='set Experiment'):
    diagnosis.diagnose(
      experiment._replace(measured=None), tmp_path / 'run', tmp_path / 'out', algorithms.sft
    )


def test_fresh_prompts_that_are_the_runs_own(experiment, tmp_path):
  """An obstacle that is never taken away would be measured as none."""
  measured = experiment.measured._replace(fresh_batches=experiment.batches)
  with pytest.raises(ValueError, match=r'fresh_batches gives the prompts of Experiment\.batches'):
    diagnosis.diagnose(
      experiment._replace(measured=measured), tmp_path / 'run', tmp_path / 'out', algorithms.sft
    )


def test_result_that_is_a_link_is_refused_before_anything_is_trained(experiment, tmp_path):
  theirs, out = tmp_path / 'theirs', tmp_path / 'out'
  theirs.write_text('theirs')
  out.mkdir()
  (out / 'diagnosis.json').symlink_to(theirs)
  with pytest.raises(OSError, match=r'diagnosis\.json is a link to .*theirs, outside'):
    diagnosis.diagnose(experiment, tmp_path / 'run', out, algorithms.sft)
  assert theirs.read_text() == 'theirs'
  assert [path.name for path in out.iterdir()] == ['diagnosis.json']
