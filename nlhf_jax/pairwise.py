"""Methods that compare two responses: a loss on their log-ratios to an anchor and on their payoffs.

The anchor is what ratios are taken against: μ, a snapshot, or a geometric mixture of parameter sets. Payoffs are
preferences of y and of y' over a common opponent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import losses
from nlhf_jax.judges import tables
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import (
  Algorithm,
  Losses,
  MixtureWeights,
  Pair,
  ParameterSet,
  Params,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  Prompts,
  Rollout,
)

# Log-ratios and payoffs, each of y and of y' [N, 2], to the loss of each pair.
PairLoss = Callable[[Array, Array], Losses]


@runtime_checkable
class PayoffFn(Protocol):
  """What y and each of the m alternatives that it is paired with are worth, in [0, 1]."""

  def __call__(
    self,
    prompts: Prompts,
    response: Int[Array, 'N T'],
    alternative: Int[Array, 'N T'],
    opponent: Int[Array, 'N T'] | None,
  ) -> Float[Array, 'N m 2']: ...


def make_algorithm(
  policy: Policy,
  mixtures: Sequence[MixtureWeights],
  payoff_fn: PayoffFn,
  anchor: MixtureWeights,
  loss: PairLoss,
  num_samples: int,
  sets: Mapping[str, ParameterSet] | None = None,
  *,
  all_pairs: bool = False,
) -> Algorithm:
  """A method that learns from pairs.

  With all pairs, each of a prompt's k responses y is paired with each of its k alternatives y': any one of the k² pairs is
  distributed as the only one would be, so their mean is as unbiased, and of less variance, for no more sampling.

  Args:
    policy: π_θ.
    mixtures: who draws y, y' and, if there is a third, y''.
    payoff_fn: gives the payoffs, of all pairs or of one.
    anchor: what log-ratios are taken against, as weights of parameter sets.
    loss: of log-ratios and payoffs.
    num_samples: responses y to each prompt, and as many y'.
    sets: parameter sets besides θ and μ.
    all_pairs: pair each y with every y' of its prompt; False: with one.
  """
  mixtures = tuple(mixtures)
  all_pairs = all_pairs and num_samples > 1

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Pair:
    y, y2, *opponent = policy.play(params, mixtures, prompts, rng, num_samples)
    logp = {}
    for name in sorted({'reference', *anchor}):
      # Whoever drew both with these weights alone has their log-probs already.
      if policy.untruncated and mixtures[:2] == ({name: 1.0},) * 2:
        logp[name] = jnp.stack([jnp.sum(x.token_logp, axis=-1) for x in (y, y2)], axis=-1)
      else:
        logp[name] = pair_logp(policy, params.named(name), prompts, y, y2)
    third = opponent[0] if opponent else None
    return Pair(prompts, y, y2, third, logp['reference'], mix(anchor, logp))

  def score(batch: Pair) -> Pair:
    third = None if batch.opponent is None else batch.opponent.tokens
    tokens = batch.response.tokens, batch.alternative.tokens, third
    payoff = payoff_fn(batch.prompts, *tokens)
    missing = known_missing(jnp.any(jnp.isnan(payoff), axis=-1))
    return batch._replace(payoff=payoff, votes_missing=missing)

  def pair_loss(params: Params, batch: Pair) -> Losses:
    logp = pair_logp(policy, params, batch.prompts, batch.response, batch.alternative)
    log_ratio = _paired(logp - batch.anchor_logp, batch.prompts, all_pairs)
    result = _pair_loss(loss, log_ratio.reshape(-1, 2), batch)
    of_response = lambda x: jnp.mean(x.reshape(log_ratio.shape[:-1]), axis=-1)
    result = jax.tree.map(of_response, result)
    return _with_metrics(result, batch)

  sets = {'reference': parameter_sets.reference()} | dict(sets or {})
  return Algorithm(policy.init, sample, score, pair_loss, sets, mixtures=mixtures, anchor=anchor)


def _pair_loss(loss: PairLoss, log_ratio: Float[Array, 'P 2'], batch: Pair) -> Losses:
  """Of each pair; those that lack a payoff weigh nothing, and only the rest have metrics."""
  payoff = batch.payoff.reshape(-1, 2)
  if batch.votes_missing is None:
    return loss(log_ratio, payoff)
  voted = ~jnp.any(jnp.isnan(payoff), axis=-1)
  result = losses.weigh(loss(log_ratio, jnp.where(voted[:, None], payoff, 0.5)), voted)
  # Summed over the pairs of a response, then divided by how many have a payoff.
  metrics = {name: jnp.where(voted, x, 0) for name, x in result.metrics.items()}
  return result._replace(metrics=metrics)


def _with_metrics(result: Losses, batch: Pair) -> Losses:
  """Of whoever was sampled: π_θ, a mixture or a snapshot."""
  logp = jnp.sum(batch.response.token_logp, axis=-1)
  metrics = {'kl_to_reference': logp - batch.reference_logp[:, 0], 'entropy': -logp}
  missing = batch.votes_missing
  if missing is None:
    metrics['preference'] = jnp.mean(batch.payoff[..., 0], axis=-1)
    return result._replace(metrics=result.metrics | metrics)
  preference = tables.mean_of_votes(batch.payoff[..., 0])
  own = {name: x / jnp.where(missing < 1, 1 - missing, 1) for name, x in result.metrics.items()}
  counted = dict.fromkeys(own, missing < 1) | {'preference': ~jnp.isnan(preference)}
  metrics |= {'preference': preference, 'votes_missing': missing}
  return result._replace(metrics=own | metrics, counted=counted)


def _paired(x: Float[Array, 'N 2'], prompts: Prompts, all_pairs: bool) -> Float[Array, 'N m 2']:
  """The values of each y beside those of the alternatives that it is paired with: the one of its row, or all of its prompt."""
  if not all_pairs:
    return x[:, None]
  by_prompt = x.reshape(prompts.tokens.shape[0], -1, 2)
  first, second = by_prompt[:, :, None, 0], by_prompt[:, None, :, 1]
  return jnp.stack(jnp.broadcast_arrays(first, second), axis=-1).reshape(len(x), -1, 2)


def against_each_other(preference_fn: PreferenceFn, all_pairs: bool) -> PayoffFn:
  """Both against y': P(y ≻ y'), and 1/2."""

  def payoffs(prompts, response, alternative, opponent):
    del opponent
    if all_pairs:
      p = tables.preference_table(preference_fn, prompts, response, alternative)
      p = p.reshape(response.shape[0], -1)
    else:
      p = preference_fn(prompts, response, alternative)[:, None]
    return jnp.stack([p, jnp.full_like(p, 0.5)], axis=-1)

  return payoffs


def against_opponent(preference_fn: PreferenceFn, all_pairs: bool) -> PayoffFn:
  """Payoffs of y and y' against all k of y''.

  Each other's samples would not do in place of y'': given the pair, the estimate would lean towards their own
  comparison, and a loss on the pair would see the payoffs' difference too large.
  """

  def payoffs(prompts, response, alternative, opponent):
    both = [
      mean_preference(preference_fn, prompts, tokens, opponent)
      for tokens in (response, alternative)
    ]
    return _paired(jnp.stack(both, axis=-1), prompts, all_pairs)

  return payoffs


def response_against_opponent(preference_fn: PreferenceFn) -> PayoffFn:
  """The payoff of y against all k of y''. Nobody is asked about y', which has 1/2."""

  def payoffs(prompts, response, alternative, opponent):
    del alternative
    p = mean_preference(preference_fn, prompts, response, opponent)
    return jnp.stack([p, jnp.full_like(p, 0.5)], axis=-1)[:, None]

  return payoffs


def mean_preference(
  preference_fn: PreferenceFn,
  prompts: Prompts,
  response: Int[Array, 'N T'],
  opponents: Int[Array, 'M T'],
) -> Float[Array, 'N']:
  """P(y ≻ π') of every response, as the mean over all the opponents that its prompt has; NaN: no vote on any of them."""
  return preference_and_missing(preference_fn, prompts, response, opponents)[0]


def preference_and_missing(
  preference_fn: PreferenceFn,
  prompts: Prompts,
  responses: Int[Array, 'N T'],
  opponents: Int[Array, 'M T'] | None = None,
) -> tuple[Float[Array, 'N'], Float[Array, 'N'] | None]:
  """`mean_preference`, and the share of the opponents against whom there is no vote, as `known_missing`.

  None for the opponents: those of each are the k − 1 other responses to its prompt.
  """
  table = tables.preference_table(preference_fn, prompts, responses, opponents)
  return mean_over_opponents(table, each_other=opponents is None)


def mean_over_opponents(
  table: Float[Array, 'B k m'], *, each_other: bool
) -> tuple[Float[Array, 'N'], Float[Array, 'N'] | None]:
  """`preference_and_missing` of a table that is there; each other: a response is no opponent of its own."""
  size, missing = table.shape[-1], jnp.isnan(table)
  if each_other:
    itself = jnp.eye(size, dtype=bool)
    share = known_missing(missing & ~itself, size - 1)
    if share is None:
      others = jnp.sum(jnp.where(itself, 0, table), axis=-1)
      return (others / (size - 1)).reshape(-1), None
    table = jnp.where(itself, jnp.nan, table)
  else:
    share = known_missing(missing, size)
    if share is None:
      return table.mean(axis=-1).reshape(-1), None
  return tables.mean_of_votes(table).reshape(-1), share


def known_missing(missing: Bool[Array, '*rows m'], size: int | None = None) -> Array | None:
  """The share of m pairs, or of `size`, that have no vote, of each row; None: none is known to.

  A judge that is traced is one whose votes nobody has seen yet: it is taken to give them all, and such programs need not
  look for what is missing.
  """
  if isinstance(missing, jax.core.Tracer) or not bool(jnp.any(missing)):
    return None
  number = jnp.sum(missing, axis=-1).reshape(-1)
  return number / (missing.shape[-1] if size is None else size)


def where_known(
  payoff: Float[Array, 'N'], missing: Float[Array, 'N'] | None, otherwise: float | Array
) -> tuple[Float[Array, 'N'], Bool[Array, 'N'] | None]:
  """Payoffs with a number where they are not known, and where they are; None: everywhere."""
  if missing is None:
    return payoff, None
  known = ~jnp.isnan(payoff)
  return jnp.where(known, payoff, otherwise), known


def with_missing(
  result: Losses, missing: Float[Array, 'N'] | None, **counted: Bool[Array, 'N'] | None
) -> Losses:
  """With the share of votes that are missing, if some are, and which rows of a metric count then."""
  if missing is None:
    return result
  metrics = result.metrics | {'votes_missing': missing}
  return result._replace(metrics=metrics, counted=counted)


def pair_logp(
  policy: Policy, params: Params, prompts: Prompts, response: Rollout, alternative: Rollout
) -> Float[Array, 'N 2']:
  """log π(y|x) and log π(y'|x), both in one batch, [B, 2, k]."""
  size, length = prompts.tokens.shape[0], response.tokens.shape[-1]
  lanes = [x.tokens.reshape(size, -1, length) for x in (response, alternative)]
  both = jnp.stack(lanes, axis=1)
  logp = policy.log_prob(params, prompts, both.reshape(-1, length)).sum(axis=-1)
  return logp.reshape(both.shape[:-1]).swapaxes(1, 2).reshape(-1, 2)


def mix(weights: MixtureWeights, logp: Mapping[str, Array]) -> Array:
  """Log-probs of a geometric mixture, up to a constant."""
  return sum((w * logp[name] for name, w in weights.items()), jnp.float32(0))
