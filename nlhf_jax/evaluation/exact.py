"""Exact evaluation where every response can be enumerated: no sampling, no learned judge.

Each prompt is a game over its Y responses and one outcome more, "anything else", which loses to every response. A
policy's worst case on a prompt is what it gets against the response that beats it most.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from nlhf_jax.evaluation.win_rates import mean_with_interval
from nlhf_jax.games import game as games
from nlhf_jax.games import solve, sources


class Exact(NamedTuple):
  """Per prompt and contestant."""

  # min_y P(π ≻ y|x), in [0, 1/2].
  worst_case: Float[np.ndarray, 'B contestants']
  # Of the regularised game.
  duality_gap: Float[np.ndarray, 'B contestants']
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
) -> Exact:
  """Plays every prompt's game.

  Args:
    log_probs: log π(y|x) of every contestant, prompt and response.
    scores: of each annotator; −inf: no response to this prompt, whatever its probability.
    reference_log_probs: log μ(y|x).
    tau: strength of the regularised game whose gap is taken.
  """
  rows = [
    _play(log_probs[:, b], scores[b], reference_log_probs[b], tau) for b in range(len(scores))
  ]
  return Exact(*(np.stack(column) for column in zip(*rows, strict=True)))


def fixed_points(
  scores: Float[np.ndarray, 'B K Y'],
  reference_log_probs: Float[np.ndarray, 'B Y'],
  tau: float,
  beta: float,
) -> Float[np.ndarray, 'B Y']:
  """log π_β(y|x) of the policies that Nash-MD would end in, could it play every response: β = 1 replies to μ.

  The mixture π_β^{1−β} μ^β, of complete responses, is the equilibrium at strength τ/(1 − β); so π_β ∝
  (π*/μ^β)^{1/(1−β)}.

  Args:
    scores: of each annotator; −inf: no response to this prompt.
    reference_log_probs: log μ(y|x).
    tau: strength of the regularisation.
    beta: β in [0, 1], the mixture's weight on μ.
  """
  result = np.full(reference_log_probs.shape, -np.inf)
  for b, row in enumerate(scores):
    valid, preference = _table(row)
    reference = _with_rest(reference_log_probs[b, valid])
    with jax.enable_x64(True):
      if beta == 1:
        log_policy = np.log(reference) + preference @ reference / tau
      else:
        game = games.make(preference, reference, tau / (1 - beta))
        nash = np.asarray(solve.regularised_nash(game))
        log_policy = (np.log(np.maximum(nash, 1e-300)) - beta * np.log(reference)) / (1 - beta)
    result[b, valid] = (log_policy - np.logaddexp.reduce(log_policy))[:-1]
  return result


def _table(scores: Float[np.ndarray, 'K Y']):
  """Which responses there are, and how they and "anything else", which every annotator puts last, compare."""
  valid = np.isfinite(scores[0])
  scores = np.concatenate([scores[:, valid], np.full((len(scores), 1), -np.inf)], axis=1)
  return valid, sources.from_scores(scores)


def _play(log_probs, scores, reference_log_probs, tau):
  """Of one prompt: the fields of `Exact`."""
  valid, preference = _table(scores)
  policies = np.stack([_with_rest(x[valid]) for x in log_probs])
  with jax.enable_x64(True):
    game = games.make(preference, _with_rest(reference_log_probs[valid]), tau)
    values = jax.tree.map(np.asarray, _measure(game, policies))
  unbeaten = np.array(games.has_unbeaten(preference))
  return *values, policies @ preference @ policies.T, unbeaten


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
    columns = {
      'worst_case': exact.worst_case,
      'duality_gap': exact.duality_gap,
      'kl': exact.kl,
      'preference': exact.preference,
    }
    if baseline is not None:
      place = list(labels).index(baseline)
      columns['worst_case_difference'] = exact.worst_case - exact.worst_case[:, place : place + 1]
    for column, values in columns.items():
      mean, low, high = mean_with_interval(values[rows])
      result[name][column] = {'mean': mean.tolist(), 'low': low.tolist(), 'high': high.tolist()}
  return result


def write(directory: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes exact.json."""
  (directory / 'exact.json').write_text(json.dumps(result, indent=2) + '\n')
