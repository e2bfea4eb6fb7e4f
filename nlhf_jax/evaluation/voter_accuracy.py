"""How well voters are known: accuracy and log-loss of P_u for known voters, and for unseen ones after a few of their votes.

Beside each stands the population's model, which does not ask who votes. All voters count the same, however many votes they
have; intervals are Student's t over voters, since votes of one voter are not independent. A vote of weight n is n equal votes
throughout: of what is held out and of what is seen, too.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from nlhf_jax.arguments import Count, CountOrZero, Seed
from nlhf_jax.evaluation import judge_accuracy
from nlhf_jax.models import voter_preference
from nlhf_jax.models.preference_model import PreferenceModel
from nlhf_jax.runtime import processes
from nlhf_jax.types import Comparison, Params
from nlhf_jax.votes import intervals, tastes

# Votes after which an unseen voter is tested, all on the same further votes.
SIZES = (0, 1, 2, 4, 8, 16)
NUM_FOLDS = 5
# Directions of taste that are named, and features of each.
_NUM_DIRECTIONS = 3
_NUM_NAMED = 4
# Of each voter's votes, held out where it is known.
_HELD_OUT = 0.2


class Foretold(NamedTuple):
  """What was foretold of M votes, and what they were."""

  voter: Int[np.ndarray, 'M']
  votes: Float[np.ndarray, 'M']
  # P(y ≻ y') of the vote's own voter, and of the population's model.
  own: Float[np.ndarray, 'M']
  population: Float[np.ndarray, 'M']


def measure(
  votes: tastes.TasteVotes,
  names: Sequence[str] = (),
  *,
  sizes: Sequence[int] = SIZES,
  num_folds: int = NUM_FOLDS,
  seed: Seed = 0,
) -> dict[str, Any]:
  """How well voters are foretold by features alone; voters are in turn unseen, a fold at a time.

  Args:
    votes: of voters that are known, whose features are of a like size.
    names: of the features.
    sizes: numbers of votes of an unseen voter.
    num_folds: of voters.
    seed: of folds and of what is held out.

  Returns:
    `known`: accuracy and log-loss, in nats, on a fifth of each voter's votes, its `own` and the `population`'s, and the `gain`;
    `unseen`: the same for each of `sizes`; null where no voter has enough votes. `disagreement` (`tastes.Disagreement`), its
    `share_of_voters` with a jackknife interval; `calibration` of both; `tastes`: the directions in which voters differ most, with
    their shares and their largest features.

  Raises:
    ValueError: there are fewer voters than folds, or weights are not as `tastes.repeated` needs them.
  """
  votes, _ = tastes.repeated(votes)
  rng = np.random.default_rng(seed)
  numbers = np.unique(votes.voter)
  if len(numbers) < num_folds or num_folds < 2:
    raise ValueError(
      f'{num_folds} folds of voters need as many voters, and at least two, got {len(numbers)}: lower num_folds, or give more votes.'
    )
  known = _known(votes, rng)
  fold = np.arange(len(numbers)) % num_folds
  of_vote = rng.permutation(fold)[np.searchsorted(numbers, votes.voter)]
  fits, parts = [], []
  for number in range(num_folds):
    training = tastes.select(votes, of_vote != number)
    fits.append(tastes.fit(training))
    baseline = tastes.pooled(training)
    unseen = tastes.select(votes, of_vote == number)
    foretold = tastes.preference(baseline, unseen.x, unseen.offset)
    parts.append(few_shot(fits[-1], unseen, foretold, sizes=sizes, seed=seed))
  after = [_joined([part[place] for part in parts]) for place in range(len(sizes))]
  population = tastes.fit(votes)
  return _report(votes, known, dict(zip(sizes, after, strict=True))) | {
    'disagreement': _disagreement(population, votes, fits),
    'tastes': named_directions(population, votes, names),
  }


def few_shot(
  population: tastes.Taste,
  votes: tastes.TasteVotes,
  baseline: Float[np.ndarray, 'N'],
  *,
  sizes: Sequence[int] = SIZES,
  seed: Seed = 0,
) -> list[Foretold]:
  """Foretells unseen voters after some of their votes, each on all its votes but the first max(sizes), in random order.

  Args:
    population: of other voters.
    votes: of the unseen; who has no more than max(sizes) is left out.
    baseline: the population's model on each vote.
    sizes: numbers of votes.
    seed: of the order of votes.

  Raises:
    ValueError: weights are not as `tastes.repeated` needs them.
  """
  votes, which = tastes.repeated(votes)
  baseline = baseline[which]
  rank, counts = _ranks(votes.voter, np.random.default_rng(seed))
  test = (rank >= max(sizes)) & (votes.voter >= 0)
  kept = counts > max(sizes)
  asked, found = tastes.select(votes, test), []
  for size in sizes:
    seen = tastes.select(votes, (rank < size) & kept)
    own = tastes.foretold(population, tastes.posteriors(population, seen), asked)
    found.append(Foretold(asked.voter, asked.share, own, baseline[test]))
  return found


def _ranks(
  voter: Int[np.ndarray, 'N'], rng: np.random.Generator
) -> tuple[Int[np.ndarray, 'N'], Int[np.ndarray, 'N']]:
  """The place of each vote among its voter's, in random order, and the number of these."""
  order = rng.permutation(len(voter))
  order = order[np.argsort(voter[order], kind='stable')]
  _, first, counts = np.unique(voter[order], return_index=True, return_counts=True)
  rank, number = np.empty(len(voter), np.int64), np.empty(len(voter), np.int64)
  rank[order] = np.arange(len(voter)) - np.repeat(first, counts)
  number[order] = np.repeat(counts, counts)
  return rank, number


def _known(votes: tastes.TasteVotes, rng: np.random.Generator) -> Foretold:
  """A fifth of the votes of each voter who has five or more, foretold by all others."""
  rank, counts = _ranks(votes.voter, rng)
  held_out = rank < (counts * _HELD_OUT).astype(int)
  training, test = tastes.select(votes, ~held_out), tastes.select(votes, held_out)
  population = tastes.fit(training)
  of_all = tastes.preference(tastes.pooled(training), test.x, test.offset)
  own = tastes.foretold(population, tastes.posteriors(population, training), test)
  return Foretold(test.voter, test.share, own, of_all)


def _joined(parts: Sequence[Foretold]) -> Foretold:
  return Foretold(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def measure_model(
  model: PreferenceModel,
  params: Params,
  training: Iterable[Comparison],
  held_out: Comparison,
  *,
  num_training: CountOrZero | None = None,
  sizes: Sequence[int] = SIZES,
  batch_size: Count = 64,
) -> dict[str, Any]:
  """The same of a trained model: its known voters by its own table, unseen ones by tastes on the features that it has learnt.

  Unseen is who has no training vote: votes of a voter beyond the table who has some are of neither kind.

  Args:
    model: that tells voters apart (`voter_preference.from_rater`).
    params: its parameters.
    training: batches of votes of known voters, of which the population's tastes are fitted.
    held_out: votes of voters that are known, and of others, whose numbers follow.
    num_training: voters of numbers below this voted in training, as all did whose votes are in `training`; None: the model's.
    sizes: numbers of votes of an unseen voter.
    batch_size: pairs to a call.
  """
  ask = jax.jit(functools.partial(_ask, model))
  own, of_all, votes = _answers(ask, params, [held_out], batch_size)
  _, _, fitted = _answers(ask, params, training, batch_size)
  size = len(params[voter_preference.VOTERS])
  has_taste = votes.voter < size
  is_seen = votes.voter < (size if num_training is None else num_training)
  is_seen |= np.isin(votes.voter, fitted.voter)
  is_known = (votes.voter >= 0) & has_taste & is_seen
  known = Foretold(votes.voter[is_known], votes.share[is_known], own[is_known], of_all[is_known])
  population = tastes.fit(tastes.select(fitted, fitted.voter >= 0))
  others = ~is_seen & (votes.voter >= 0)
  after = few_shot(population, tastes.select(votes, others), of_all[others], sizes=sizes)
  named = ('reward', *(f'feature {n}' for n in range(votes.x.shape[1] - 1)))
  return _report(votes, known, dict(zip(sizes, after, strict=True))) | {
    'disagreement': tastes.disagreement(population, votes)._asdict(),
    'tastes': named_directions(population, votes, named),
  }


def _ask(model: PreferenceModel, params: Params, part: Comparison) -> tuple[Array, Array, Array]:
  """Log-odds of each vote's voter and of the population, and differences of features."""
  pair = part.response.tokens, part.alternative.tokens
  own, of_all = voter_preference.log_odds(model, params, part)
  return own, of_all, model.features(params, part.prompts, *pair)


def _answers(
  ask, params: Params, batches: Iterable[Comparison], batch_size: int
) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N'], tastes.TasteVotes]:
  """P of each vote's voter and of the population, and the votes on the model's features, the shared reward first among them."""
  found, voter, share = [], [], []
  for batch in batches:
    voter.append(np.asarray(batch.voter))
    share.append(np.asarray(batch.preference, np.float64))
    num_prompts = len(batch.prompts.tokens)
    per_prompt = len(share[-1]) // num_prompts
    for start in range(0, num_prompts, max(1, batch_size // per_prompt)):
      rows = slice(start, start + max(1, batch_size // per_prompt))
      of_rows = slice(rows.start * per_prompt, rows.stop * per_prompt)
      part = jax.tree.map(lambda x, s=of_rows: x[s], batch._replace(prompts=None))
      part = part._replace(prompts=jax.tree.map(lambda x, s=rows: x[s], batch.prompts))
      found.append(processes.gather(ask(params, part)))
  own, of_all, x = (
    np.concatenate(column).astype(np.float64) for column in zip(*found, strict=True)
  )
  votes = tastes.votes_on(x, np.concatenate(share), np.concatenate(voter))
  return special.expit(own), special.expit(of_all), votes


def _report(
  votes: tastes.TasteVotes, known: Foretold, after: dict[int, Foretold]
) -> dict[str, Any]:
  last = after[max(after)]
  return {
    'num_voters': len(np.unique(votes.voter[votes.voter >= 0])),
    'num_votes': len(votes.voter),
    'num_known': len(np.unique(known.voter)),
    'num_unseen': len(np.unique(last.voter)),
    'known': scores(known),
    'unseen': {str(size): scores(found) for size, found in after.items()},
    'calibration': {
      'known': calibration(known),
      f'after_{max(after)}': calibration(last),
    },
  }


def scores(foretold: Foretold) -> dict[str, Any] | None:
  """Accuracy and log-loss of a voter's own preference and of the population's, and what the former gains; None: of no votes."""
  if not len(foretold.voter):
    return None
  of = lambda measure, p: by_voter(measure(p, foretold.votes), foretold.voter)
  result: dict[str, Any] = {}
  for name, measure_ in (
    ('accuracy', judge_accuracy.agreement),
    ('log_loss', judge_accuracy.log_loss),
  ):
    own, population = of(measure_, foretold.own), of(measure_, foretold.population)
    sign = 1 if name == 'accuracy' else -1
    result[name] = {
      'own': interval(own),
      'population': interval(population),
      'gain': interval(sign * (own - population)),
    }
  return result


def by_voter(values: Float[np.ndarray, 'M'], voter: Int[np.ndarray, 'M']) -> Float[np.ndarray, 'U']:
  """The mean of each voter."""
  _, place = np.unique(voter, return_inverse=True)
  return np.bincount(place, values) / np.bincount(place)


def interval(values: Float[np.ndarray, 'U']) -> dict[str, float | None]:
  """Mean over voters with a 95 % interval, Student's t; None: of one voter there is none."""
  return intervals.plain(intervals.of_mean(values))


def calibration(foretold: Foretold) -> dict[str, Any]:
  """Bins of what was foretold: votes in each, their mean P and their share for y; and the mean distance of the two."""
  size = judge_accuracy.NUM_BINS
  place = np.minimum((foretold.own * size).astype(int), size - 1)
  bins = []
  for number in range(size):
    inside: Bool[np.ndarray, 'M'] = place == number
    if inside.any():
      predicted, share = float(foretold.own[inside].mean()), float(foretold.votes[inside].mean())
      bins.append({'number': int(inside.sum()), 'foretold': predicted, 'votes': share})
  error = judge_accuracy.calibration_error(foretold.own, foretold.votes) if bins else 0.0
  return {'error': error, 'bins': bins}


def _disagreement(
  population: tastes.Taste, votes: tastes.TasteVotes, fits: Sequence[tastes.Taste]
) -> dict[str, Any]:
  """Of all voters, with an interval by the jackknife: each fit leaves a fold of voters out."""
  found = tastes.disagreement(population, votes)
  without = np.array([tastes.disagreement(x, votes).share_of_voters for x in fits])
  size, share = len(fits), found.share_of_voters
  error = np.sqrt((size - 1) / size * np.sum((without - without.mean()) ** 2))
  half = float(special.stdtrit(size - 1, 0.975) * error)
  low, high = max(0.0, share - half), min(1.0, share + half)
  return found._asdict() | {'share_of_voters': {'mean': share, 'low': low, 'high': high}}


def named_directions(
  population: tastes.Taste, votes: tastes.TasteVotes, names: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """The directions in which voters differ most, with what in a response each goes by.

  A direction is named by the correlation, over pairs, of its log-odds with each feature; its sign is that of the largest.
  """
  shares, directions = tastes.directions(population, votes)
  names = names or tuple(f'x{n}' for n in range(len(shares)))
  size = np.sqrt(np.mean(votes.x**2, axis=0))
  found = []
  for share, direction in list(zip(shares, directions.T, strict=True))[:_NUM_DIRECTIONS]:
    log_odds = votes.x @ direction
    spread = max(float(np.sqrt(np.mean(log_odds**2))), np.finfo(float).tiny)
    alike = (log_odds @ votes.x) / len(votes.x) / np.where(size > 0, size, 1) / spread
    order = np.argsort(-np.abs(alike), kind='stable')[:_NUM_NAMED]
    alike = alike * np.sign(alike[order[0]])
    features = {names[n]: float(alike[n]) for n in order.tolist()}
    found.append({'share': float(share), 'features': features})
  return found
