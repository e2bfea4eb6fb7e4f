"""The best fits, against their own optima and what blocks can hold; the cyclic part, against games that are all line or all cycle."""

import numpy as np
import pytest
from scipy import linalg, optimize, special

from nlhf_jax.games import fits, solve

# One beats three, each of whom beats the next.
DOMINANT_AND_CYCLE = np.array([[0, 2, 2, 2], [-2, 0, 2, -2], [-2, -2, 0, 2], [-2, 2, -2, 0.0]])
PAIRS_OF_FOUR = np.triu_indices(4, 1)


def _skew(size, seed=0):
  noise = np.random.default_rng(seed).normal(size=(size, size))
  return noise - noise.T


def _excess(preference, logits):
  """Cross-entropy beyond the entropy, in nats a pair."""
  entropy = lambda s: np.logaddexp(0, s) - preference * s
  excess = entropy(logits) - entropy(special.logit(preference))
  return excess[np.triu_indices(len(preference), 1)].mean()


def _num_right(logits, wanted):
  """Pairs of four whose log-odds have the right sign; within rounding of 0 they have none."""
  decided = np.where(np.abs(logits) < 1e-6, 0, np.sign(logits))
  return int(np.sum((decided == np.sign(wanted))[PAIRS_OF_FOUR]))


def test_bradley_terry_finds_the_rewards_that_made_the_table():
  r = np.random.default_rng(0).normal(size=6)
  found = fits.bradley_terry(special.expit(r[:, None] - r), ridge=1e-9)
  np.testing.assert_allclose(found, r - r.mean(), atol=1e-7)


@pytest.mark.parametrize('weighted', [False, True])
def test_bradley_terry_is_the_least_cross_entropy(weighted):
  rng = np.random.default_rng(1)
  noise = rng.normal(size=(5, 5))
  p = special.expit(2 * (noise - noise.T))
  weights = rng.uniform(size=(5, 5)) if weighted else None
  both = np.ones((5, 5)) if weights is None else weights + weights.T

  def entropy(r):
    return -np.sum(both * p * np.log(special.expit(r[:, None] - r)))

  best = optimize.minimize(entropy, np.zeros(5)).fun
  assert entropy(fits.bradley_terry(p, weights, ridge=1e-9)) == pytest.approx(best, abs=1e-6)


def test_bradley_terry_stays_finite_where_a_response_always_loses():
  p = np.array([[0.5, 0.5, 1], [0.5, 0.5, 1], [0, 0, 0.5]])
  found = fits.bradley_terry(p)
  assert np.isfinite(found).all()
  assert found[0] - found[2] > 5


def test_cyclic_part():
  """Rock, paper, scissors has no other; a difference of scores has none; a sum of both keeps its own."""
  cycle = 0.2 * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])
  score = np.array([0.1, 0.05, -0.15])
  line = score[:, None] - score
  np.testing.assert_allclose(fits.cyclic_part(0.5 + cycle), cycle, atol=1e-12)
  np.testing.assert_allclose(fits.cyclic_part(0.5 + line), 0, atol=1e-12)
  np.testing.assert_allclose(fits.cyclic_part(0.5 + cycle + line), cycle, atol=1e-12)


@pytest.mark.parametrize('size', [2, 3, 4, 7, 12])
def test_blocks_hold_every_skew_matrix(size):
  """⌊n/2⌋ of them, whose λ are those of SciPy's real Schur form."""
  skew = 3 * _skew(size, size)
  blocks = fits.skew_blocks(skew)
  assert blocks.a.shape == (size, size // 2)
  np.testing.assert_allclose(blocks.logits(), skew, atol=1e-12)
  form, _ = linalg.schur(skew, output='real')
  expected = np.sort(np.abs(np.diagonal(form, 1)))[::-1][: size // 2]
  np.testing.assert_allclose(blocks.scale, expected, atol=1e-12)


def test_few_blocks_leave_the_rest():
  """Without the smallest of three blocks, its two singular values are what is missing; log-odds stay skew to the bit."""
  skew = _skew(6)
  blocks = fits.skew_blocks(skew, 2)
  missing = np.linalg.norm(blocks.logits() - skew)
  assert missing == pytest.approx(np.sqrt(2) * fits.skew_blocks(skew).scale[2], rel=1e-9)
  np.testing.assert_array_equal(blocks.logits(), -blocks.logits().T)


@pytest.mark.parametrize(
  ('name', 'excess', 'num_right'),
  [('bradley_terry', 0.164, 3), ('gpm1', 0.156, 5), ('hrc1_unit', 0.012, 6), ('gpm2', 0, 6)],
)
def test_dominant_and_inner_cycle(name, excess, num_right):
  """What one block and a reward make of it. Bradley-Terry's three on the circle are tied: it has no sign for them."""
  p = special.expit(DOMINANT_AND_CYCLE)
  if name == 'bradley_terry':
    reward = fits.bradley_terry(p, ridge=1e-9)
    logits = reward[:, None] - reward
  else:
    fit = {
      'gpm1': lambda: fits.gpm(p, 1, ridge=1e-9),
      'hrc1_unit': lambda: fits.hrc(p, 1, unit_norm=True, ridge=1e-9),
      'gpm2': lambda: fits.gpm(p, 2, ridge=1e-9),
    }
    logits = fit[name]().logits()
  assert _excess(p, logits) == pytest.approx(excess, abs=5e-4)
  assert _num_right(logits, DOMINANT_AND_CYCLE) == num_right


def test_reward_beside_a_block_holds_dominant_and_inner_cycle():
  p = special.expit(DOMINANT_AND_CYCLE)
  found = fits.hrc(p, 1, ridge=1e-9).logits()
  np.testing.assert_allclose(found, DOMINANT_AND_CYCLE, atol=1e-3)


def test_one_block_orders_whatever_one_response_beats():
  """No three of those that any response beats go round, for vectors of any norm."""
  vectors = np.random.default_rng(0).normal(size=(5000, 7, 2)) ** 3
  beats = np.einsum('nia,njb,ab->nij', vectors, vectors, [[0, 1], [-1, 0]]) > 0
  for beaten in np.moveaxis(beats, 1, 0):
    among = (beats & beaten[:, None] & beaten[:, :, None]).astype(int)
    assert not np.trace(among @ among @ among, axis1=1, axis2=2).any()
  everywhere = beats.astype(int)
  assert np.trace(everywhere @ everywhere @ everywhere, axis1=1, axis2=2).any()


def test_reward_is_one_more_block():
  """HRC(k) is GPM(k + 1) with the block (r, 1)."""
  rng = np.random.default_rng(0)
  reward, a, b = rng.normal(size=6), rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
  hrc = fits.Blocks(reward, a, b, np.array([1.0, 2.0]))
  with_one = lambda x, first: np.concatenate([first[:, None], x], axis=1)
  gpm = fits.Blocks(
    np.zeros(6), with_one(a, reward), with_one(b, np.ones(6)), np.array([1.0, 1.0, 2.0])
  )
  np.testing.assert_allclose(gpm.logits(), hrc.logits(), atol=1e-12)


@pytest.mark.parametrize('unit_norm', [False, True])
@pytest.mark.parametrize('fit', [fits.gpm, fits.hrc])
def test_blocks_are_the_least_cross_entropy(fit, unit_norm):
  """No step from them improves it, in rewards, vectors or λ."""
  p, weights = special.expit(_skew(5, 3)), np.random.default_rng(1).uniform(size=(5, 5))
  found = fit(p, 1, weights, unit_norm=unit_norm, ridge=1e-9)
  if unit_norm:
    norms = np.sum(found.a**2 + found.b**2, axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-12)

  def entropy(blocks):
    logits = blocks.logits()
    return np.sum((weights + weights.T) * (np.logaddexp(0, logits) - p * logits))

  least, rng = entropy(found), np.random.default_rng(2)
  for _ in range(200):
    reward = found.reward + 1e-2 * rng.normal(size=5) * (fit is fits.hrc)
    a, b = (x + 1e-2 * rng.normal(size=x.shape) for x in (found.a, found.b))
    norm = np.sqrt(np.sum(a**2 + b**2, axis=1, keepdims=True)) if unit_norm else 1.0
    scale = found.scale * (np.exp(1e-2 * rng.normal(size=1)) if unit_norm else 1.0)
    assert entropy(fits.Blocks(reward, a / norm, b / norm, scale)) > least - 1e-7


def test_blocks_stay_finite_where_a_response_always_loses():
  p = np.array([[0.5, 0.5, 1], [0.5, 0.5, 1], [0, 0, 0.5]])
  for fit in (fits.gpm, fits.hrc):
    for unit_norm in (False, True):
      logits = fit(p, 1, unit_norm=unit_norm).logits()
      assert np.isfinite(logits).all()
      assert logits[0, 2] > 4


def test_lottery_of_log_odds_is_another():
  """Of a cycle (1, −3, 2): who wins by more in log-odds does not win by as much more in votes."""
  logits = np.array([[0, 1, -3], [-1, 0, 2], [3, -2, 0.0]])
  of_votes = solve.maximal_lottery(special.expit(logits)).policy
  of_logits = solve.maximal_lottery(0.5 + logits / 6).policy
  np.testing.assert_allclose(of_votes, [0.358, 0.425, 0.217], atol=5e-4)
  np.testing.assert_allclose(of_logits, [1 / 3, 1 / 2, 1 / 6], atol=1e-6)


def test_fit_without_blocks_is_refused():
  with pytest.raises(ValueError, match='num_blocks and num_starts must be at least 1, got 0 and 8'):
    fits.gpm(np.full((3, 3), 0.5), 0)
