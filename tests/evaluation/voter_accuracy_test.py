"""How well voters are known: against planted tastes, whose best predictions are known, and where nobody differs."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.evaluation import voter_accuracy, voter_report
from nlhf_jax.models import voter_preference
from nlhf_jax.models.rater import Rater, as_written
from nlhf_jax.types import Comparison, Prompts, Rollout
from nlhf_jax.votes import tastes


def planted(deviation, num_voters=40, num_votes=60, seed=0):
  rng = np.random.default_rng(seed)
  weights = np.array([0.5, 0.0]) + deviation * rng.normal(size=(num_voters, 1)) * np.array([0, 1.0])
  x = rng.normal(size=(num_voters, num_votes, 2))
  p = special.expit(np.einsum('und,ud->un', x, weights)).ravel()
  share = (rng.random(p.size) < p) * 1.0
  return p, tastes.votes_on(x.reshape(-1, 2), share, np.repeat(np.arange(num_voters), num_votes))


@pytest.fixture(scope='module')
def differing():
  p, votes = planted(2.0)
  return p, votes, voter_accuracy.measure(votes, ('shared', 'own'))


def test_a_few_votes_tell_and_more_tell_more(differing):
  p, _, found = differing
  gains = [found['unseen'][str(size)]['log_loss']['gain'] for size in voter_accuracy.SIZES]
  means = [gain['mean'] for gain in gains]
  assert abs(means[0]) < 0.02
  assert gains[-1]['low'] > 0.03 and means[-1] > means[2] > means[0]
  best = float(np.mean(np.maximum(p, 1 - p)))
  own, of_all = (found['known']['accuracy'][key]['mean'] for key in ('own', 'population'))
  assert own == pytest.approx(best, abs=0.04)
  assert own > of_all + 0.08
  assert found['num_unseen'] == 40


def test_voters_and_noise(differing):
  _, votes, found = differing
  rng = np.random.default_rng(1)
  drawn = special.expit(
    votes.x @ np.array([0.5, 0])[:, None] + 2.0 * votes.x[:, 1:] * rng.normal(size=400)
  )
  voters = drawn.var(axis=1).mean()
  noise = np.mean(drawn * (1 - drawn))
  share = found['disagreement']['share_of_voters']
  assert share['low'] < voters / (voters + noise) < share['high']
  assert share['high'] - share['low'] < 0.3
  assert found['tastes'][0]['share'] > 0.9
  assert next(iter(found['tastes'][0]['features'])) == 'own'


def test_calibration(differing):
  _, _, found = differing
  bins = found['calibration']['known']['bins']
  assert sum(x['number'] for x in bins) == 480
  assert found['calibration']['after_16']['error'] < 0.06
  sure = voter_accuracy.Foretold(
    np.zeros(4, int), np.array([1, 0, 1, 0.0]), np.full(4, 0.95), np.ones(4)
  )
  assert voter_accuracy.calibration(sure)['error'] == pytest.approx(0.45)


def test_where_nobody_differs_nothing_is_gained():
  _, votes = planted(0.0)
  found = voter_accuracy.measure(votes)
  for part in (found['known'], *found['unseen'].values()):
    gain = part['log_loss']['gain']
    assert abs(gain['mean']) < 0.02
  assert found['disagreement']['share_of_voters']['mean'] < 0.05


def test_few_shot_asks_all_sizes_the_same_votes_and_looks_at_none_of_them():
  """Votes that are asked are turned around: what is foretold stays."""
  _, votes = planted(2.0, num_voters=6, num_votes=20)
  votes = tastes.select(votes, np.arange(120) > 10)  # The first voter has nine.
  population = tastes.Taste(np.zeros(2), np.eye(2))
  rank, _ = voter_accuracy._ranks(votes.voter, np.random.default_rng(0))
  found = voter_accuracy.few_shot(population, votes, votes.share)
  turned = votes._replace(share=np.where(rank >= 16, 1 - votes.share, votes.share))
  again = voter_accuracy.few_shot(population, turned, votes.share)
  for one, other in zip(found, again, strict=True):
    assert sorted(set(one.voter.tolist())) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(one.voter, found[0].voter)
    np.testing.assert_array_equal(one.own, other.own)
    np.testing.assert_array_equal(one.votes, 1 - other.votes)
  assert len(found[0].voter) == 20


def test_a_vote_of_weight_n_is_n_equal_votes():
  """In what is held out, what is seen of the unseen, and all scores: as if each stood in a row of its own."""
  _, votes = planted(2.0, num_voters=10, num_votes=12)
  weighted = votes._replace(weight=np.random.default_rng(0).integers(5, size=120).astype(float))
  rows = tastes.select(votes, np.repeat(np.arange(120), weighted.weight.astype(int)))
  found = voter_accuracy.measure(weighted, sizes=(0, 4))
  assert found == voter_accuracy.measure(rows, sizes=(0, 4))
  assert found['num_votes'] == weighted.weight.sum()
  assert found != voter_accuracy.measure(votes, sizes=(0, 4))
  population = tastes.Taste(np.zeros(2), np.eye(2))
  parts = [voter_accuracy.few_shot(population, x, x.share, sizes=(0, 4)) for x in (weighted, rows)]
  for one, other in zip(*parts, strict=True):
    for column, expected in zip(one, other, strict=True):
      np.testing.assert_array_equal(column, expected)


def test_who_votes_once_with_weight_is_tested():
  """One row of weight 50 is more than 16 votes, of which a fifth is held out."""
  _, votes = planted(1.0, num_voters=10, num_votes=1)
  found = voter_accuracy.measure(votes._replace(weight=np.full(10, 50.0)))
  assert (found['num_known'], found['num_unseen'], found['num_votes']) == (10, 10, 500)


@pytest.mark.parametrize(
  ('weight', 'message'),
  [
    ([1, 2.5, 0.5, 1], r'number 2 has weight 2\.5: weights must be whole numbers here'),
    ([1, 1, 1e-3, 1], r'number 3 has weight 0\.001: weights must be whole'),
    ([1, 1e300, 1, 1], r'Weights that add up to 1,0.* are more than 16,777,216'),
    ([1, 2e7, 1, 1], r'up to 20,000,003 are more than 16,777,216, the most votes on 2 features'),
  ],
)
def test_weights_that_are_no_numbers_of_votes_are_refused(weight, message):
  _, votes = planted(1.0, num_voters=2, num_votes=2)
  votes = votes._replace(weight=np.array(weight, float))
  with pytest.raises(ValueError, match=message):
    voter_accuracy.measure(votes)
  with pytest.raises(ValueError, match=message):
    voter_accuracy.few_shot(tastes.Taste(np.zeros(2), np.eye(2)), votes, votes.share)


def test_intervals_are_over_voters():
  one = voter_accuracy.Foretold(
    np.array([0, 0, 0, 0, 1, 2]), np.ones(6), np.array([0.9] * 4 + [0.1, 0.9]), np.full(6, 0.9)
  )
  found = voter_accuracy.scores(one)['accuracy']
  assert found['own']['mean'] == pytest.approx(2 / 3)
  assert found['gain']['low'] < -1 < found['gain']['mean'] == pytest.approx(-1 / 3)
  assert voter_accuracy.scores(one._replace(**{k: v[:0] for k, v in one._asdict().items()})) is None
  assert voter_accuracy.interval(np.ones(1)) == {'mean': 1.0, 'low': None, 'high': None}
  with pytest.raises(
    ValueError, match='5 folds of voters need as many voters, and at least two, got 2'
  ):
    voter_accuracy.measure(planted(1.0, num_voters=2)[1])


def test_in_words(differing):
  said = voter_report.sentences(differing[2])
  assert 'is who votes' in said[0] and 'Of 40 unseen voters after 16 votes' in said[2]
  assert 'own (+1.00)' in said[3]
  few = voter_accuracy.measure(planted(1.0, num_votes=10)[1])
  assert few['unseen']['0'] is None and few['num_unseen'] == 0
  assert any('No voter has more than 16 votes' in x for x in voter_report.sentences(few))
  assert voter_report.accuracy_table(few).row_count == 1
  assert voter_report.calibration_table(few).row_count > 3


def test_of_a_trained_model():
  """Features of tokens by a table: known voters by the model's own tastes, others by a few votes on its features."""
  rng = np.random.default_rng(0)
  table = rng.normal(size=(30, 3)).astype(np.float32)
  init = lambda key: {'embedding': jnp.asarray(table)}
  one = Rater(
    init,
    lambda p, prompts, y: p['embedding'][y[:, 0]],
    lambda: {'embedding': (None, None)},
    as_written,
    1,
  )
  model = voter_preference.from_rater(one, num_voters=6, num_features=2)
  weights = 2 * rng.normal(size=(10, 2))
  params = {'embedding': jnp.asarray(table), 'voters': jnp.asarray(weights[:6], jnp.float32)}

  def votes(size, who):
    voter, tokens = rng.integers(*who, size=size), rng.integers(2, 30, size=(2, size, 1))
    x = (table[tokens[0]] - table[tokens[1]])[:, 0]
    p = special.expit(x[:, 0] + np.sum(x[:, 1:] * weights[voter], axis=1))
    share = (rng.random(size) < p).astype(np.float32)
    pair = (Rollout(side, side > 0) for side in tokens.astype(np.int32))
    prompts = Prompts(np.full((size, 1), 2, np.int32), np.arange(size))
    return Comparison(prompts, *pair, share, voter=voter), p

  training, held_out = votes(600, (0, 6))[0], votes(1000, (0, 10))
  found = voter_accuracy.measure_model(model, params, [training], held_out[0], batch_size=500)
  best = np.maximum(held_out[1], 1 - held_out[1])[held_out[0].voter < 6].mean()
  known = found['known']['accuracy']
  assert known['own']['mean'] == pytest.approx(best, abs=0.05)
  assert known['gain']['mean'] > 0.1
  assert found['num_unseen'] == 4 and found['num_votes'] == 1000
  # Voters 6 and 7 voted in training without a taste in the table, 5 has one and never voted.
  beyond = votes(600, (0, 5))[0], votes(200, (6, 8))[0]
  found = voter_accuracy.measure_model(
    model, params, beyond, held_out[0], num_training=5, batch_size=500
  )
  assert found['num_known'] == 5 and found['num_unseen'] == 3
  losses = [found['unseen'][str(n)]['log_loss']['own']['mean'] for n in (0, 16)]
  assert losses[1] < losses[0] - 0.05
