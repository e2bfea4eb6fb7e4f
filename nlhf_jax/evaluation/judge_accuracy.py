"""How well a judge predicts held-out votes: accuracy, log-loss, calibration error, raw position bias.

Beside it two trivial judges that do not read the text: "the longer wins" and "the first wins". Intervals resample
prompts, since comparisons of one prompt are not independent. Where responses can be enumerated, all pairs of them are asked:
how much of what no reward can say the judge holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import special

from nlhf_jax.evaluation import plain_features
from nlhf_jax.games import fits, sources
from nlhf_jax.judges.tables import preference_table
from nlhf_jax.models import preference_model
from nlhf_jax.runtime import processes
from nlhf_jax.types import Comparison, Enumeration, Params, PreferenceFn, Prompts

NUM_BINS = 10
NUM_RESAMPLES = 2000


def measure(judge: PreferenceFn, comparisons: Comparison, batch_size: int = 64) -> dict[str, Any]:
  """Scores a judge on comparisons with known votes.

  Args:
    judge: P(y ≻ y'|x).
    comparisons: one pair to a prompt row, with the share of votes for `response`.
    batch_size: pairs to a call.

  Returns:
    `accuracy` (a tie of either side counts half), `log_loss` in nats, `calibration_error` (expected, over 10 bins of
    equal width), `longer_wins` and `first_wins` (accuracies of the trivial judges), each accuracy with its 95 %
    interval, `entropy_of_votes` (the log-loss of a judge who knows every share), and `num_comparisons`.
  """
  votes = np.asarray(comparisons.preference, np.float64)
  predicted = _judge_all(judge, comparisons, batch_size)
  lengths = [
    np.asarray(x.mask).sum(axis=-1) for x in (comparisons.response, comparisons.alternative)
  ]
  longer = 0.5 + 0.5 * np.sign(lengths[0] - lengths[1])
  groups = np.asarray(comparisons.prompts.index)
  return {
    'num_comparisons': int(votes.size),
    'accuracy': _with_interval(agreement(predicted, votes), groups),
    'log_loss': float(np.mean(log_loss(predicted, votes))),
    'entropy_of_votes': float(np.mean(log_loss(votes, votes))),
    'calibration_error': calibration_error(predicted, votes),
    'longer_wins': _with_interval(agreement(longer, votes), groups),
    'first_wins': _with_interval(agreement(np.ones_like(votes), votes), groups),
  }


def compare(
  judges: Mapping[str, Sequence[PreferenceFn]], comparisons: Comparison, batch_size: int = 64
) -> dict[str, dict[str, dict[str, float]]]:
  """Judges side by side on the same votes, paired.

  Args:
    judges: by name; of several that share a name, such as seeds of one model, the scores' mean counts.
    comparisons: as `measure`.
    batch_size: pairs to a call.

  Returns:
    By name: `accuracy`, `log_loss`, and how far each is above the first judge's (`accuracy_above_first`,
    `log_loss_above_first`), with 95 % intervals over prompts.
  """
  votes = np.asarray(comparisons.preference, np.float64)
  groups = np.asarray(comparisons.prompts.index)
  scores: dict[str, dict[str, Float[np.ndarray, 'N']]] = {}
  for name, members in judges.items():
    predicted = [_judge_all(judge, comparisons, batch_size) for judge in members]
    scores[name] = {
      'accuracy': np.mean([agreement(p, votes) for p in predicted], axis=0),
      'log_loss': np.mean([log_loss(p, votes) for p in predicted], axis=0),
    }
  first = next(iter(scores.values()))
  return {
    name: {score: _with_interval(x, groups) for score, x in own.items()}
    | {f'{score}_above_first': _with_interval(x - first[score], groups) for score, x in own.items()}
    for name, own in scores.items()
  }


def measure_plain_features(
  train: Iterable[Comparison], held_out: Comparison, render: plain_features.Render
) -> dict[str, float]:
  """Accuracy and log-loss of a linear model on plain features: what a network must beat.

  Args:
    train: batches of training data.
    held_out: one pair to a prompt row.
    render: turns responses into what raters read.
  """
  predicted = plain_features.fit(train, render).preference(held_out)
  votes = np.asarray(held_out.preference, np.float64)
  return {
    'accuracy': float(agreement(predicted, votes).mean()),
    'log_loss': float(log_loss(predicted, votes).mean()),
  }


def measure_all_pairs(
  judge: PreferenceFn,
  prompts: Prompts,
  enumeration: Enumeration,
  *,
  max_responses: int = 24,
  batch_size: int = 10,
) -> dict[str, float]:
  """A judge against the annotators on all pairs of some responses to each prompt.

  Args:
    judge: P(y ≻ y'|x).
    prompts: held out.
    enumeration: their responses and the annotators' scores of them.
    max_responses: to each prompt, drawn at random.
    batch_size: prompts to a call.

  Returns:
    `log_loss` in nats beside its floor, `entropy_of_votes`, and beside that of the best `bradley_terry` fit to each prompt;
    `cyclic_share` of the variance of P − ½, the annotators' and `cyclic_share_of_judge`; and the judge's cyclic part
    against the annotators': `cyclic_correlation`, and `cyclic_slope` of a line through the origin.
  """
  tokens, votes = _some_responses(enumeration, max_responses)
  rewards = np.stack([fits.bradley_terry(table) for table in votes])
  line = special.expit(rewards[:, :, None] - rewards[:, None])
  answers = []
  for start in range(0, len(tokens), batch_size):
    rows = slice(start, start + batch_size)
    part = Prompts(prompts.tokens[rows], prompts.index[rows])
    asked = jnp.asarray(tokens[rows].reshape(-1, tokens.shape[-1]))
    answers.append(processes.gather(preference_table(judge, part, asked)))
  predicted = np.concatenate(answers).astype(np.float64)
  cyclic, of_judge = (np.stack([fits.cyclic_part(p) for p in x]) for x in (votes, predicted))
  size, size_of_judge = np.sum(cyclic**2) + 1e-12, np.sum(of_judge**2) + 1e-12
  return {
    'log_loss': float(np.mean(log_loss(predicted, votes))),
    'entropy_of_votes': float(np.mean(log_loss(votes, votes))),
    'bradley_terry': float(np.mean(log_loss(line, votes))),
    'cyclic_share': float(size / np.sum((votes - 0.5) ** 2)),
    'cyclic_share_of_judge': float(size_of_judge / (np.sum((predicted - 0.5) ** 2) + 1e-12)),
    'cyclic_correlation': float(np.sum(cyclic * of_judge) / np.sqrt(size * size_of_judge)),
    'cyclic_slope': float(np.sum(cyclic * of_judge) / size),
  }


def _some_responses(
  enumeration: Enumeration, number: int
) -> tuple[Int[np.ndarray, 'B k T'], Float[np.ndarray, 'B k k']]:
  """As many responses of each prompt, at random, and how the annotators compare them."""
  rng = np.random.default_rng(0)
  valid = [np.flatnonzero(np.isfinite(scores[0])) for scores in enumeration.scores]
  number = min(number, *(len(x) for x in valid))
  chosen = [np.sort(rng.permutation(x)[:number]) for x in valid]
  tokens = np.stack([x[n] for x, n in zip(enumeration.responses, chosen, strict=True)])
  scores = [x[:, n] for x, n in zip(enumeration.scores, chosen, strict=True)]
  return tokens, np.stack([sources.from_scores(x) for x in scores])


def agreement(
  predicted: Float[np.ndarray, 'N'], votes: Float[np.ndarray, 'N']
) -> Float[np.ndarray, 'N']:
  """1 where judge and majority favour the same side, 0 where opposite ones, 1/2 where either is undecided."""
  return 0.5 + 0.5 * np.sign(predicted - 0.5) * np.sign(votes - 0.5)


def log_loss(
  predicted: Float[np.ndarray, '*rows'], votes: Float[np.ndarray, '*rows']
) -> Float[np.ndarray, '*rows']:
  """Cross-entropy of the votes under the judge, in nats."""
  p = np.clip(predicted, 1e-7, 1 - 1e-7)
  return -votes * np.log(p) - (1 - votes) * np.log(1 - p)


def calibration_error(predicted: Float[np.ndarray, 'N'], votes: Float[np.ndarray, 'N']) -> float:
  """Expected calibration error: mean distance of prediction from votes, bin by bin, weighted by the bin's size."""
  bins = np.minimum((predicted * NUM_BINS).astype(int), NUM_BINS - 1)
  gaps = np.bincount(bins, predicted - votes, minlength=NUM_BINS)
  return float(np.abs(gaps).sum() / votes.size)


def position_bias(
  model: preference_model.PreferenceModel,
  params: Params,
  comparisons: Comparison,
  batch_size: int = 64,
) -> float:
  """How much the raw network favours the response shown first, in [−½, ½]; the model itself cancels it.

  Args:
    model: the preference model.
    params: its parameters.
    comparisons: what it is asked.
    batch_size: pairs to a call.
  """

  @jax.jit
  def bias(params: Params, part: Comparison):
    scores = model.scores(params, part.prompts, part.response.tokens, part.alternative.tokens)
    return preference_model.position_bias(*scores)

  size = comparisons.response.tokens.shape[0]
  parts = (
    jax.tree.map(lambda x: x[start : start + batch_size], comparisons)
    for start in range(0, size, batch_size)
  )
  return float(np.mean(np.concatenate([processes.gather(bias(params, part)) for part in parts])))


def _judge_all(judge, comparisons: Comparison, batch_size: int) -> Float[np.ndarray, 'N']:
  answers = []
  for start in range(0, comparisons.response.tokens.shape[0], batch_size):
    part = jax.tree.map(lambda x, s=start: x[s : s + batch_size], comparisons)
    answer = judge(part.prompts, part.response.tokens, part.alternative.tokens)
    answers.append(processes.gather(answer))
  return np.concatenate(answers).astype(np.float64)


def _with_interval(
  values: Float[np.ndarray, 'N'], groups: Int[np.ndarray, 'N'], seed: int = 0
) -> dict[str, float]:
  """Mean with a 95 % bootstrap interval over groups."""
  _, group = np.unique(groups, return_inverse=True)
  sums, sizes = np.bincount(group, values), np.bincount(group)
  draws = np.random.default_rng(seed).integers(sums.size, size=(NUM_RESAMPLES, sums.size))
  means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return {'mean': float(values.mean()), 'low': float(low), 'high': float(high)}
