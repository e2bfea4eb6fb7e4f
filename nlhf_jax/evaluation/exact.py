"""Exact evaluation where every response can be enumerated: no sampling, no learned judge.

Each prompt is a game over its Y responses and one outcome more, "anything else", which loses to every response. A
policy's worst case on a prompt is what it gets against the response that beats it most. What a method would reach, could
its policy be any distribution, is its fixed point: how far the policy stopped from it is the measure that theory names.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special

from nlhf_jax.evaluation.win_rates import mean_with_interval
from nlhf_jax.games import fits, solve, sources
from nlhf_jax.games import game as games
from nlhf_jax.types import FixedPoint


class Exact(NamedTuple):
  """Per prompt and contestant; NaN where a contestant has no fixed point."""

  # min_y P(π ≻ y|x), in [0, 1/2].
  worst_case: Float[np.ndarray, 'B contestants']
  # The same of its fixed point π°.
  worst_case_of_fixed_point: Float[np.ndarray, 'B contestants']
  # Of the regularised game.
  duality_gap: Float[np.ndarray, 'B contestants']
  duality_gap_of_fixed_point: Float[np.ndarray, 'B contestants']
  # ½ Σ_y |π(y) − π°(y)|, in [0, 1].
  total_variation: Float[np.ndarray, 'B contestants']
  # KL(π°‖π), nats.
  kl_to_fixed_point: Float[np.ndarray, 'B contestants']
  # KL(π‖μ), nats.
  kl: Float[np.ndarray, 'B contestants']
  # P(π_i ≻ π_j|x).
  preference: Float[np.ndarray, 'B contestants contestants']
  # Whether some response loses to none.
  unbeaten: Bool[np.ndarray, 'B']


def evaluate(
  log_probs: Float[np.ndarray, 'contestants B Y'],
  scores: Float[np.ndarray, 'B K Y'],
  reference_log_probs: Float[np.ndarray, 'B Y'],
  tau: float,
  fixed_points: Sequence[FixedPoint | None] | None = None,
) -> Exact:
  """Plays every prompt's game.

  Args:
    log_probs: log π(y|x) of every contestant, prompt and response.
    scores: of each annotator; −inf: no response to this prompt, whatever its probability.
    reference_log_probs: log μ(y|x).
    tau: strength of the regularised game whose gap is taken.
    fixed_points: of each contestant's method; None: of none.
  """
  points = [None] * len(log_probs) if fixed_points is None else list(fixed_points)
  rows = [
    _play(log_probs[:, b], scores[b], reference_log_probs[b], tau, points)
    for b in range(len(scores))
  ]
  return Exact(*(np.stack(column) for column in zip(*rows, strict=True)))


def fixed_point(
  preference: Float[np.ndarray, 'Y Y'], reference: Float[np.ndarray, 'Y'], point: FixedPoint
) -> Float[np.ndarray, 'Y']:
  """The policy that a method would end in, could it play every response.

  Nash-MD's mixture π_β^{1−β} μ^β, of complete responses, is the equilibrium at strength τ/(1 − β); so π_β ∝
  (π*/μ^β)^{1/(1−β)}. A reward is the best Bradley-Terry fit to all pairs alike.

  Args:
    preference: P.
    reference: μ; positive.
    point: which one.
  """
  tau, beta = point
  log_reference = np.log(reference)
  with jax.enable_x64(True):
    if beta is None:
      log_policy = log_reference + fits.bradley_terry(preference) / tau
    elif beta == 1:
      log_policy = log_reference + preference @ reference / tau
    else:
      game = games.make(preference, reference, tau / (1 - beta))
      nash = np.asarray(solve.regularised_nash(game))
      log_policy = (np.log(np.maximum(nash, 1e-300)) - beta * log_reference) / (1 - beta)
  return np.exp(log_policy - np.logaddexp.reduce(log_policy))


def fixed_points(
  scores: Float[np.ndarray, 'B K Y'],
  reference_log_probs: Float[np.ndarray, 'B Y'],
  point: FixedPoint,
) -> Float[np.ndarray, 'B Y']:
  """log π(y|x) of the fixed point of every prompt's game.

  Args:
    scores: of each annotator; −inf: no response to this prompt.
    reference_log_probs: log μ(y|x).
    point: which one.
  """
  result = np.full(reference_log_probs.shape, -np.inf)
  for b, row in enumerate(scores):
    valid, preference = _table(row)
    policy = fixed_point(preference, _with_rest(reference_log_probs[b, valid]), point)
    result[b, valid] = np.log(np.maximum(policy[:-1], 1e-300))
  return result


def _table(scores: Float[np.ndarray, 'K Y']):
  """Which responses there are, and how they and "anything else", which every annotator puts last, compare."""
  valid = np.isfinite(scores[0])
  scores = np.concatenate([scores[:, valid], np.full((len(scores), 1), -np.inf)], axis=1)
  return valid, sources.from_scores(scores)


def _play(log_probs, scores, reference_log_probs, tau, points):
  """Of one prompt: the fields of `Exact`."""
  valid, preference = _table(scores)
  policies = np.stack([_with_rest(x[valid]) for x in log_probs])
  reference = _with_rest(reference_log_probs[valid])
  found = {p: fixed_point(preference, reference, p) for p in dict.fromkeys(points) if p is not None}
  missing = np.full_like(reference, np.nan)
  ends = np.stack([found.get(point, missing) for point in points])
  with jax.enable_x64(True):
    game = games.make(preference, reference, tau)
    worst_case, gap, kl = jax.tree.map(np.asarray, _measure(game, policies))
    worst_case_of_end, gap_of_end, _ = jax.tree.map(np.asarray, _measure(game, ends))
  return (
    worst_case,
    worst_case_of_end,
    gap,
    gap_of_end,
    0.5 * np.abs(policies - ends).sum(axis=-1),
    special.rel_entr(ends, policies).sum(axis=-1),
    kl,
    policies @ preference @ policies.T,
    np.array(games.has_unbeaten(preference)),
  )


@jax.jit
def _measure(game: games.PreferenceGame, policies: Float[Array, 'contestants Y']):
  """Worst case, duality gap and KL to μ of every policy."""

  def measures(policy):
    kl = games.kl_divergence(policy, game.reference)
    return games.worst_case(game, policy), games.duality_gap(game, policy), kl

  return jax.vmap(measures)(policies)


def _with_rest(log_probs: Float[np.ndarray, 'Y']) -> Float[np.ndarray, 'Y_and_rest']:
  """Probabilities of the responses, and of all else."""
  p = np.exp(np.asarray(log_probs, np.float64))
  # A floor far below float32's resolution keeps logarithms finite.
  return np.maximum(np.append(p, 1 - p.sum()), 1e-30)


def table(exact: Exact, labels: Sequence[str], baseline: str | None = None) -> dict[str, Any]:
  """Means with 95 % intervals, over all prompts and over those where no response is unbeaten.

  Args:
    exact: of `evaluate`.
    labels: of the contestants.
    baseline: a label; the worst cases' paired differences from it are added.
  """
  subsets = {'all': np.ones(len(exact.unbeaten), bool), 'no_condorcet_winner': ~exact.unbeaten}
  result: dict[str, Any] = {'labels': list(labels), 'baseline': baseline}
  for name, rows in subsets.items():
    result[name] = {'num_prompts': int(rows.sum())}
    if not rows.any():
      continue
    columns = exact._asdict()
    del columns['unbeaten']
    if baseline is not None:
      place = list(labels).index(baseline)
      columns['worst_case_difference'] = exact.worst_case - exact.worst_case[:, place : place + 1]
    for column, values in columns.items():
      mean, low, high = mean_with_interval(values[rows])
      ends = {'mean': mean, 'low': low, 'high': high}
      result[name][column] = {end: _without_nan(value.tolist()) for end, value in ends.items()}
  return result


def _without_nan(values: Any) -> Any:
  """JSON has no NaN: null stands where a contestant has no such value."""
  if isinstance(values, list):
    return [_without_nan(value) for value in values]
  return None if np.isnan(values) else values


def write(directory: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes exact.json."""
  (directory / 'exact.json').write_text(json.dumps(result, indent=2) + '\n')
