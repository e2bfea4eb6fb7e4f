"""Distances in training are those of exact play, on each split by itself."""

import numpy as np
import pytest

from nlhf_jax.evaluation import distance, exact
from nlhf_jax.types import Enumeration, FixedPoint, Prompts


@pytest.fixture
def measured(tiny_prompts, language):
  """Two splits of one prompt each; two annotators."""
  scores = np.random.default_rng(0).normal(size=(2, 2, len(language)))
  split = lambda row: Prompts(tiny_prompts.tokens[row : row + 1], tiny_prompts.index[row : row + 1])

  def enumeration(prompts):
    rows = np.asarray(prompts.index)
    return Enumeration(np.stack([language] * len(rows)), scores[rows])

  splits = {'train': lambda: split(0), 'held_out': lambda: split(1)}
  return distance.Measured(splits, enumeration, tau=0.1)


def test_distances(measured, tiny_policy, tiny_params, tiny_prompts, language):
  point = FixedPoint(0.1, 0.0)
  measure = distance.make_measure(measured, tiny_policy, tiny_params[0], point)
  found = measure(tiny_params[1])
  responses, scores = measured.enumeration(tiny_prompts)
  score = exact.enumerator(tiny_policy)
  prompt_games = exact.make_games(scores, score(tiny_params[0], tiny_prompts, responses), [point])
  log_probs = score(tiny_params[1], tiny_prompts, responses)
  both = exact.evaluate(log_probs[None], prompt_games, 0.1, [point])
  metrics = distance.metrics(found)
  for row, split in enumerate(('train', 'held_out')):
    for name in ('duality_gap', 'worst_case', 'total_variation', 'kl_to_fixed_point'):
      expected = float(getattr(both, name)[row, 0])
      assert metrics[f'{split}_{name}'] == pytest.approx(expected, abs=1e-6)
  assert metrics['train_duality_gap'] > 0.01


def test_policy_without_a_fixed_point(measured, tiny_policy, tiny_params):
  measure = distance.make_measure(measured, tiny_policy, tiny_params[0], None)
  names = set(distance.metrics(measure(tiny_params[1])))
  assert names == {f'{s}_{n}' for s in ('train', 'held_out') for n in ('duality_gap', 'worst_case')}
