"""Methods in two turns: a leader's response y, and a follower's y' who has read it. One network, two prompts.

The leader climbs V(y), what y is worth against the best answer to it; the follower is that answer, held to μ at its own
prompt. Both are policy gradients of one zero-sum game: what one earns for itself and its KL, the other pays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nlhf_jax import losses, pairwise
from nlhf_jax.models import mixture
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  Losses,
  Params,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  Prompts,
  SecondTurn,
)


def make_algorithm(
  policy: Policy,
  preference_fn: PreferenceFn,
  second_turn: SecondTurn,
  tau: float,
  tau_follower: float,
  follower_weight: float,
  num_samples: int,
) -> Algorithm:
  """The method whose k responses to a prompt are each answered once, in sight of it.

  Args:
    policy: both players, π_θ(y|x) and ω_θ(y'|x, y) = π_θ(y'|second prompt).
    preference_fn: compares y with y', at the first prompt.
    second_turn: gives the second prompt.
    tau: of the leader's KL.
    tau_follower: of the follower's.
    follower_weight: of the follower's loss, the leader's having 1: how much faster it learns.
    num_samples: k.
  """

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Comparison:
    first, second = jax.random.split(rng)
    (response,) = policy.play(params, [mixture.ONLINE], prompts, first, num_samples)
    seen = second_turn(prompts, response.tokens)
    (reply,) = policy.play(params, [mixture.ONLINE], seen, second)
    reference = params.named('reference')
    return Comparison(
      prompts,
      response,
      reply,
      reference_token_logp=policy.log_prob(reference, prompts, response.tokens),
      alternative_reference_token_logp=policy.log_prob(reference, seen, reply.tokens),
    )

  def score(batch: Comparison) -> Comparison:
    preference = preference_fn(batch.prompts, batch.response.tokens, batch.alternative.tokens)
    missing = pairwise.known_missing(jnp.isnan(preference)[:, None])
    return batch._replace(preference=preference, votes_missing=missing)

  return Algorithm(
    policy.init,
    sample,
    score,
    _loss(policy, second_turn, tau, tau_follower, follower_weight, num_samples),
    {'reference': parameter_sets.reference()},
    mixtures=(mixture.ONLINE, mixture.ONLINE),
    anchor=mixture.REFERENCE,
  )


def _loss(
  policy: Policy,
  second_turn: SecondTurn,
  tau: float,
  tau_follower: float,
  follower_weight: float,
  num_samples: int,
) -> Callable[[Params, Comparison], Losses]:
  """Of the leader, whose payoff is P(y ≻ y') + τ_F log(ω/ω_ref)(y'), and of the follower, whose is P(y' ≻ y).

  The k rows of a prompt are independent of each other, replies too, so that each is the other's baseline.
  """

  def loss(params: Params, batch: Comparison) -> Losses:
    first, second = batch.response, batch.alternative
    logp = policy.log_prob(params, batch.prompts, first.tokens)
    reply_logp = policy.log_prob(params, second_turn(batch.prompts, first.tokens), second.tokens)
    p, voted = pairwise.where_known(batch.preference, batch.votes_missing, 0.5)
    reply_reference = batch.alternative_reference_token_logp
    reply_kl = losses.kl_to_reference(reply_logp, reply_reference, second.mask)
    paid = tau_follower * jax.lax.stop_gradient(reply_kl)
    advantage = lambda payoff: losses.leave_one_out(payoff - 0.5, num_samples, voted)
    leader = losses.policy_gradient_loss(
      logp,
      batch.reference_token_logp,
      advantage(p + paid),
      first.mask,
      tau=tau,
      group=num_samples,
      counted=voted,
    )
    follower = losses.policy_gradient_loss(
      reply_logp,
      reply_reference,
      advantage(1 - p),
      second.mask,
      tau=tau_follower,
      group=num_samples,
      counted=voted,
    )
    kl = losses.kl_to_reference(logp, batch.reference_token_logp, first.mask)
    metrics = {'kl_to_reference': kl, 'preference': p, 'reply_kl_to_reference': reply_kl}
    value = leader.value + follower_weight * follower.value
    result = leader._replace(value=value, metrics=leader.metrics | metrics)
    return pairwise.with_missing(result, batch.votes_missing, preference=voted)

  return loss
