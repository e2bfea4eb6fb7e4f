"""The skeleton of methods that compare two responses: a loss on their log-ratios to an anchor and on their payoffs.

The anchor is what ratios are taken against: μ, a snapshot, or a geometric mixture of parameter sets. Payoffs are
preferences of y and of y' over a common opponent.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.types import (
  Algorithm,
  Pair,
  Losses,
  Params,
  MixtureWeights,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  Prompts,
  Rollout,
)

# (prompts, y, y', y'' or None) -> payoffs of y and y', [N, 2].
PayoffFn = Callable[..., Array]


def make_algorithm(
  policy: Policy,
  players: Sequence[MixtureWeights],
  judge: PayoffFn,
  anchor: MixtureWeights,
  loss: Callable[..., Losses],
  num_samples: int,
  refresh: int | None = None,
) -> Algorithm:
  """A method that learns from pairs.

  Args:
    policy: π_θ.
    players: who draws y, y' and, if there is a third, y''.
    judge: gives the payoffs.
    anchor: what log-ratios are taken against, as weights of parameter sets.
    loss: (log-ratios [N, 2], payoffs [N, 2]) -> Losses.
    num_samples: pairs of each prompt.
    refresh: updates between two moves of the set 'past' to θ; None: never.
  """

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Pair:
    y, y2, *opponent = policy.play(params, players, prompts, rng, num_samples)
    logp = {}
    for name in sorted({'reference', *anchor}):
      if policy.whole and list(players[:2]) == [{name: 1.0}] * 2:  # Who drew them has said it.
        logp[name] = jnp.stack([jnp.sum(x.token_logp, axis=-1) for x in (y, y2)], axis=-1)
      else:
        logp[name] = pair_logp(policy, getattr(params, name), prompts, y, y2)
    third = opponent[0] if opponent else None
    return Pair(prompts, y, y2, third, logp['reference'], mix(anchor, logp))

  def judge_all(batch: Pair) -> Pair:
    third = None if batch.opponent is None else batch.opponent.tokens
    tokens = batch.response.tokens, batch.alternative.tokens, third
    return batch._replace(payoff=judge(batch.prompts, *tokens))

  def loss_of(params: Params, batch: Pair) -> Losses:
    pair = pair_logp(policy, params, batch.prompts, batch.response, batch.alternative)
    result = loss(pair - batch.anchor_logp, batch.payoff)
    # Of whoever was sampled: π_θ, a mixture or a snapshot.
    sampled = jnp.sum(batch.response.token_logp, axis=-1)
    seen = {
      'kl_to_reference': sampled - batch.reference_logp[:, 0],
      'entropy': -sampled,
      'preference': batch.payoff[:, 0],
    }
    return result._replace(metrics=result.metrics | seen)

  plays = frozenset({'reference', *anchor, *(name for player in players for name in player)})
  return Algorithm(
    policy.init, sample, judge_all, loss_of, plays - {'online', 'half'}, refresh_every=refresh
  )


def against_each_other(preference_fn: PreferenceFn) -> PayoffFn:
  """Both against y': P(y ≻ y'), and 1/2."""

  def payoffs(prompts, response, alternative, opponent):
    del opponent
    p = preference_fn(prompts, response, alternative)
    return jnp.stack([p, jnp.full_like(p, 0.5)], axis=-1)

  return payoffs


def against_opponent(preference_fn: PreferenceFn, num_samples: int) -> PayoffFn:
  """Payoffs of y and y' against all k of y''.

  Each other's samples would not do in place of y'': given the pair, the estimate would lean towards their own
  comparison, and a contrast would see the payoffs' difference too large.
  """

  def payoffs(prompts, response, alternative, opponent):
    both = [
      mean_preference(preference_fn, prompts, tokens, opponent, num_samples)
      for tokens in (response, alternative)
    ]
    return jnp.stack(both, axis=-1)

  return payoffs


def mean_preference(
  preference_fn: PreferenceFn,
  prompts: Prompts,
  response: Int[Array, 'N T'],
  opponents: Int[Array, 'N T'],
  group: int,
) -> Float[Array, 'N']:
  """P(y ≻ π') of every response, as the mean over the `group` opponents that its prompt has."""
  length = response.shape[-1]
  first = jnp.repeat(response, group, axis=0)
  second = jnp.repeat(opponents.reshape(-1, 1, group, length), group, axis=1)
  p = preference_fn(prompts, first, second.reshape(-1, length))
  return jnp.mean(p.reshape(-1, group), axis=-1)


def pair_logp(
  policy: Policy, params: Params, prompts: Prompts, response: Rollout, alternative: Rollout
) -> Float[Array, 'N 2']:
  """log π(y|x) and log π(y'|x), both in one batch, [B, 2, k]."""
  size, length = prompts.tokens.shape[0], response.tokens.shape[-1]
  lanes = [x.tokens.reshape(size, -1, length) for x in (response, alternative)]
  both = jnp.stack(lanes, axis=1)
  logp = policy.log_prob(params, prompts, both.reshape(-1, length)).sum(axis=-1)
  return logp.reshape(both.shape[:-1]).swapaxes(1, 2).reshape(-1, 2)


def mix(anchor: MixtureWeights, logp: dict[str, Array]) -> Array:
  """Log-probs of a geometric mixture, up to a constant."""
  return sum(weight * logp[name] for name, weight in anchor.items())
