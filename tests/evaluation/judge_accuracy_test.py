"""How well a judge predicts votes, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.evaluation import judge_accuracy
from nlhf_jax.judges import electorate, headlines
from nlhf_jax.models import preference_model
from nlhf_jax.models.policy import as_rollout
from nlhf_jax.types import Comparison, Prompts


def _comparisons(votes, first_lengths):
  tokens = np.zeros((len(votes), 4), np.int32)
  for row, length in enumerate(first_lengths):
    tokens[row, :length] = 1
  other = np.tile(np.array([[1, 1, 0, 0]], np.int32), (len(votes), 1))
  return Comparison(
    Prompts(jnp.zeros((len(votes), 2), jnp.int32), jnp.arange(len(votes))),
    as_rollout(jnp.asarray(tokens)),
    as_rollout(jnp.asarray(other)),
    jnp.asarray(votes),
  )


def test_measures_of_a_judge():
  comparisons = _comparisons([1.0, 0.0, 1.0, 0.5], [3, 3, 1, 2])
  answers = np.array([0.9, 0.6, 0.8, 0.5])
  result = judge_accuracy.measure(
    lambda x, y, z: answers[np.asarray(x.index)], comparisons, batch_size=3
  )
  assert result['accuracy']['mean'] == (1 + 0 + 1 + 0.5) / 4
  assert result['longer_wins']['mean'] == (1 + 0 + 0 + 0.5) / 4
  assert result['first_wins']['mean'] == (1 + 0 + 1 + 0.5) / 4
  losses = [-np.log(0.9), -np.log(0.4), -np.log(0.8), -np.log(0.5)]
  assert result['log_loss'] == pytest.approx(np.mean(losses))
  # Each answer has its bin to itself.
  assert result['calibration_error'] == pytest.approx((0.1 + 0.6 + 0.2 + 0.0) / 4)
  assert result['accuracy']['low'] <= 0.625 <= result['accuracy']['high']


def test_judges_side_by_side():
  """Two seeds count by their mean; a difference from oneself is 0, and a paired one does not see what both have."""
  comparisons = _comparisons([1.0, 0.0, 1.0, 1.0], [1, 1, 1, 1])
  judge = lambda *answers: lambda x, y, z: np.array(answers)[np.asarray(x.index)]
  good, bad = judge(0.8, 0.2, 0.8, 0.8), judge(0.4, 0.6, 0.4, 0.4)
  found = judge_accuracy.compare({'good': [good], 'mixed': [good, bad]}, comparisons, batch_size=3)
  assert found['good']['accuracy']['mean'] == 1
  assert found['mixed']['accuracy'] == {'mean': 0.5, 'low': 0.5, 'high': 0.5}
  worse = -0.5 * (np.log(0.4) - np.log(0.8))
  for name in ('mean', 'low', 'high'):
    assert found['mixed']['log_loss_above_first'][name] == pytest.approx(worse)
    assert found['good']['log_loss_above_first'][name] == 0
  assert found['good']['log_loss']['mean'] == pytest.approx(-np.log(0.8))


def test_position_bias():
  """½[σ(s(x, y, y')) + σ(s(x, y', y))] − ½ of raw scores by hand, the mean over all rows of all batches."""
  comparisons = _comparisons([1.0, 0.0, 1.0], [1, 1, 1])
  forward, backward = np.array([2.0, 0.0, -1.0]), np.array([1.0, 0.0, 3.0])

  def scores(params, prompts, response, alternative):
    del response, alternative
    return params * jnp.asarray(forward)[prompts.index], params * jnp.asarray(backward)[
      prompts.index
    ]

  model = preference_model.PreferenceModel(init=None, scores=scores)
  found = judge_accuracy.position_bias(model, jnp.float32(1.0), comparisons, batch_size=2)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  expected = np.mean(0.5 * (sigmoid(forward) + sigmoid(backward)) - 0.5)
  assert found == pytest.approx(expected, abs=1e-6)


def test_judge_on_all_pairs():
  """The annotators themselves are at the floor and hold the whole cycle; a reward is at its fit and holds none."""
  ballot = headlines.ballot(
    ('earthquake', 'election', 'jubilee', 'leak', 'petition', 'recital'),
    {story: n for n, story in enumerate(headlines.word_list(), start=2)},
  )
  prompts = Prompts(np.zeros((2, 6), np.int32), np.zeros(2, np.int32))
  enumeration = electorate.enumeration(lambda number: ballot)
  exact, both = electorate.preference_fn(enumeration), enumeration(prompts)
  found = judge_accuracy.measure_all_pairs(exact, prompts, both, batch_size=1)
  assert found['log_loss'] == pytest.approx(found['entropy_of_votes'], abs=1e-6)
  assert found['bradley_terry'] > found['log_loss'] + 0.02
  assert found['cyclic_share'] == pytest.approx(found['cyclic_share_of_judge'], abs=1e-6)
  assert found['cyclic_share'] > 0.3
  assert found['cyclic_correlation'] == pytest.approx(1, abs=1e-6)
  assert found['cyclic_slope'] == pytest.approx(1, abs=1e-6)

  def longer(prompts, response, alternative):
    return jax.nn.sigmoid((response > 1).sum(-1) * 1.0 - (alternative > 1).sum(-1))

  line = judge_accuracy.measure_all_pairs(longer, prompts, both)
  assert line['cyclic_share_of_judge'] < 0.02
  assert line['log_loss'] > line['bradley_terry']
