"""The linear model finds what plain features say, and no more."""

import numpy as np
import pytest

from nlhf_jax.evaluation import judge_accuracy, plain_features
from nlhf_jax.models.rater import as_written
from nlhf_jax.types import Comparison, Prompts, Rollout


def comparisons(seed, votes):
  """Sixteen prompts of six tokens, with four pairs of up to five tokens each."""
  rng = np.random.default_rng(seed)
  prompts = Prompts(rng.integers(2, 20, (16, 6)).astype(np.int32), np.arange(16, dtype=np.int32))
  sides = rng.integers(2, 20, (2, 64, 5)).astype(np.int32)
  sides[np.arange(5) >= rng.integers(1, 6, (2, 64, 1))] = 0
  p = votes(rng, prompts, *sides).astype(np.float32)
  return Comparison(prompts, *(Rollout(side, side != 0) for side in sides), p)


def shorter_wins(rng, prompts, first, second):
  lengths = [(x != 0).sum(axis=-1) for x in (first, second)]
  return 0.5 + 0.4 * np.sign(lengths[1] - lengths[0])


def token_wins(rng, prompts, first, second):
  return 0.5 + 0.4 * np.sign((first == 7).sum(axis=-1) - (second == 7).sum(axis=-1))


def shared_wins(rng, prompts, first, second):
  texts = np.repeat(prompts.tokens, 4, axis=0)[:, None]
  shared = [
    (x[..., None] == texts).any(axis=-1).sum(axis=-1) / (x != 0).sum(axis=-1)
    for x in (first, second)
  ]
  return 0.5 + 0.4 * np.sign(shared[0] - shared[1])


def by_chance(rng, prompts, first, second):
  return rng.integers(2, size=len(first))


@pytest.mark.parametrize('votes', [shorter_wins, token_wins, shared_wins])
def test_plain_tastes_are_found(votes):
  """Up to ties, which count half whatever is said of them."""
  held_out = comparisons(99, votes)
  ties = float(np.mean(held_out.preference == 0.5))
  train = [comparisons(seed, votes) for seed in range(10)]
  found = judge_accuracy.measure_plain_features(train, held_out, as_written)
  assert found['accuracy'] > 0.95 - 0.5 * ties


def test_chance_is_not():
  train = [comparisons(seed, by_chance) for seed in range(30)]
  found = judge_accuracy.measure_plain_features(train, comparisons(99, by_chance), as_written)
  assert 0.3 < found['accuracy'] < 0.7
  assert found['log_loss'] > 0.68


def test_fit_that_has_not_settled_is_warned_of(caplog):
  train = [comparisons(seed, shorter_wins) for seed in range(4)]
  plain_features.fit(train, as_written)
  assert not caplog.records
  plain_features.fit(train, as_written, max_steps=2)
  (record,) = caplog.records
  assert 'its last of 2 steps was' in record.getMessage()
