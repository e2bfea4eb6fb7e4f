"""Exact evaluation where every response can be enumerated: no sampling, no learned judge.

Each prompt is a game over its Y responses and one outcome more, "anything else", which loses to every response. A
policy's worst case on a prompt is what it gets against the response that beats it most. What a method would reach, could
its policy be any distribution, is its fixed point: how far the policy stopped from it is the measure that theory names.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from nlhf_jax.evaluation.win_rates import mean_with_interval
from nlhf_jax.games import aggregation, fits, solve, sources
from nlhf_jax.games import game as games
from nlhf_jax.judges import electorate
from nlhf_jax.runtime import atomic, processes
from nlhf_jax.types import Enumeration, FixedPoint, Params, Policy, Prompts, RewardFn


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
  # min_{u,y} P_u(π ≻ y|x): what the annotator who comes off worst is sure of.
  worst_off_case: Float[np.ndarray, 'B contestants']
  # P_u(π ≻ μ|x) of every annotator, and of the one who comes off worst.
  annotator_win_rate: Float[np.ndarray, 'B contestants U']
  worst_off_win_rate: Float[np.ndarray, 'B contestants']


@runtime_checkable
class LogProbsFn(Protocol):
  """log π(y|x) of every response to every prompt, in nats."""

  def __call__(
    self, params: Params, prompts: Prompts, responses: Int[np.ndarray, 'B Y T']
  ) -> Float[np.ndarray, 'B Y']: ...


class PromptGame(NamedTuple):
  """The game of one prompt; its last outcome is "anything else"."""

  # Which of the task's responses there are.
  valid: Bool[np.ndarray, 'Y']
  # P.
  preference: Float[np.ndarray, 'outcomes outcomes']
  # μ.
  reference: Float[np.ndarray, 'outcomes']
  # Where methods stop.
  fixed_points: dict[FixedPoint, Float[np.ndarray, 'outcomes']]
  # Of every annotator; −inf: "anything else".
  scores: Float[np.ndarray, 'U outcomes']


def make_games(
  scores: Float[np.ndarray, 'B K Y'],
  reference_log_probs: Float[np.ndarray, 'B Y'],
  points: Sequence[FixedPoint | None] = (),
  tolerance: float = 1e-12,
) -> list[PromptGame]:
  """Every prompt's game.

  Args:
    scores: of each annotator; −inf: no response to this prompt, whatever its probability.
    reference_log_probs: log μ(y|x).
    points: fixed points to find. None is passed over, and so is τ = 0: without regularisation there may be many, or none that is reached.
    tolerance: of their probabilities.
  """
  wanted = [point for point in dict.fromkeys(points) if point is not None and point.tau > 0]
  games_of_prompts = []
  for row, log_probs in zip(scores, reference_log_probs, strict=True):
    valid, preference = sources.with_rest(row)
    reference = _with_rest(log_probs[valid])
    own = np.concatenate([row[:, valid], np.full((len(row), 1), -np.inf)], axis=1)
    found = {
      point: fixed_point(preference, reference, point, tolerance)
      if point.tau_opponent is None
      else _blackwell_winner(own, reference, point, tolerance)
      for point in wanted
    }
    games_of_prompts.append(PromptGame(valid, preference, reference, found, own))
  return games_of_prompts


def _blackwell_winner(
  scores: Float[np.ndarray, 'U Y'],
  reference: Float[np.ndarray, 'Y'],
  point: FixedPoint,
  tolerance: float,
) -> Float[np.ndarray, 'Y']:
  """Of the regularised game against annotators and responses."""
  each = np.stack([sources.from_scores(row[None]) for row in scores])
  population = aggregation.make(each, point.annotator_weights, reference, point.tau)
  return aggregation.regularised_maximin(population, point.tau_opponent, tolerance=tolerance).policy


def enumerator(policy: Policy, batch_size: int = 50) -> LogProbsFn:
  """Parameters, prompts and all responses → log π(y|x), as many prompts at a time; no product is rounded to fewer bits than its type has."""

  @jax.jit
  @jax.default_matmul_precision('highest')
  def score(params, part: Prompts, tokens):
    logp = policy.log_prob(params, part, tokens.reshape(-1, tokens.shape[-1]))
    return logp.sum(axis=-1).reshape(tokens.shape[:2])

  def enumerate_all(params, prompts, responses):
    rows = []
    for start in range(0, len(responses), batch_size):
      at = slice(start, start + batch_size)
      part = Prompts(prompts.tokens[at], prompts.index[at])
      rows.append(processes.gather(score(params, part, responses[at])))
    return np.concatenate(rows)

  return enumerate_all


def evaluate(
  log_probs: Float[np.ndarray, 'contestants B Y'],
  prompt_games: Sequence[PromptGame],
  tau: float,
  points: Sequence[FixedPoint | None] | None = None,
) -> Exact:
  """Plays every prompt's game.

  Args:
    log_probs: log π(y|x) of every contestant, prompt and response.
    prompt_games: of `make_games`, with the contestants' fixed points among theirs.
    tau: strength of the regularised game whose gap is taken.
    points: of each contestant's method; None: of none.
  """
  points = [None] * len(log_probs) if points is None else list(points)
  rows = [_play(log_probs[:, b], one, tau, points) for b, one in enumerate(prompt_games)]
  return Exact(*(np.stack(column) for column in zip(*rows, strict=True)))


def fixed_point(
  preference: Float[np.ndarray, 'Y Y'],
  reference: Float[np.ndarray, 'Y'],
  point: FixedPoint,
  tolerance: float = 1e-12,
) -> Float[np.ndarray, 'Y']:
  """The policy that a method would end in, could it play every response.

  Nash-MD's mixture π_β^{1−β} μ^β, of complete responses, is the equilibrium at strength τ/(1 − β); so π_β ∝
  (π*/μ^β)^{1/(1−β)}. A reward is the best Bradley-Terry fit to all pairs alike.

  Args:
    preference: P.
    reference: μ; positive.
    point: which one.
    tolerance: of its probabilities.
  """
  tau, beta = point.tau, point.beta
  log_reference = np.log(reference)
  with jax.enable_x64(True):
    if beta is None:
      log_policy = log_reference + fits.bradley_terry(preference) / tau
    elif beta == 1:
      log_policy = log_reference + preference @ reference / tau
    else:
      game = games.make(preference, reference, tau / (1 - beta))
      nash = np.asarray(solve.regularised_nash(game, tolerance=tolerance))
      log_policy = (np.log(np.maximum(nash, 1e-300)) - beta * log_reference) / (1 - beta)
  return np.exp(log_policy - np.logaddexp.reduce(log_policy))


def reward_fn(enumeration: Callable[[Prompts], Enumeration]) -> RewardFn:
  """The best Bradley-Terry reward to each prompt's votes; runs on the host. What is no response has that of the last place."""

  def reward(prompts: Prompts, response: Int[Array, 'N T']) -> Float[Array, 'N']:
    responses, scores = enumeration(prompts)
    number = np.asarray(electorate.response_numbers(jnp.asarray(responses), response))
    rows = []
    for found, of_prompt in zip(number, scores, strict=True):
      valid, preference = sources.with_rest(of_prompt)
      fit = fits.bradley_terry(preference)
      rewards = np.full(valid.size + 1, fit[-1])
      rewards[:-1][valid] = fit[:-1]
      rows.append(rewards[found])  # −1: none of them.
    return jnp.asarray(np.concatenate(rows), jnp.float32)

  return reward


def fixed_points(prompt_games: Sequence[PromptGame], point: FixedPoint) -> Float[np.ndarray, 'B Y']:
  """log π(y|x) of the fixed point of every prompt's game; −∞ for what is no response."""
  result = np.full((len(prompt_games), prompt_games[0].valid.size), -np.inf)
  for row, one in zip(result, prompt_games, strict=True):
    row[one.valid] = np.log(np.maximum(one.fixed_points[point][:-1], 1e-300))
  return result


def _play(log_probs, one: PromptGame, tau, points):
  """Of one prompt: the fields of `Exact`."""
  policies = np.stack([_with_rest(x[one.valid]) for x in log_probs])
  missing = np.full_like(one.reference, np.nan)
  ends = np.stack([one.fixed_points.get(point, missing) for point in points])
  with jax.enable_x64(True):
    game = games.make(one.preference, one.reference, tau)
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
    policies @ one.preference @ policies.T,
    np.array(games.has_unbeaten(one.preference)),
    *_of_annotators(one, policies),
  )


def _of_annotators(one: PromptGame, policies: Float[np.ndarray, 'contestants Y']):
  """The last fields of `Exact`."""
  sure, win_rates = [], []
  for row in one.scores:
    against = policies @ sources.from_scores(row[None])
    sure.append(against.min(axis=-1))
    win_rates.append(against @ one.reference)
  return np.min(sure, axis=0), np.stack(win_rates, axis=-1), np.min(win_rates, axis=0)


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
    baseline: a label; paired differences from it are added, of worst cases and of the worst-off annotator's.
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
      for field in ('worst_case', 'worst_off_win_rate', 'worst_off_case'):
        values = getattr(exact, field)
        columns[f'{field}_difference'] = values - values[:, place : place + 1]
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
  atomic.write_json(directory / 'exact.json', result)
