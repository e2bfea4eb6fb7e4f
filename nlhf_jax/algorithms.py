"""The table of methods. A method is who the alternative is, who judges, and a loss: one short function each.

| method        | alternative y' ~          | feedback    | loss                 | fixed point                          |
|---------------|---------------------------|-------------|----------------------|--------------------------------------|
| sft           |                           |             | cross-entropy        | the demonstrations                   |
| preference    |                           | comparisons | pairwise             | P                                    |
| reward        |                           | comparisons | Bradley-Terry        | r                                    |
| rlhf          |                           | reward      | policy gradient      | μ exp(r/τ)                           |
| self_play     | π_θ                       | preference  | policy gradient      | π*_τ, the Nash equilibrium           |
| nash_md_pg    | π_θ^{1−β} μ^β, per token  | preference  | policy gradient      | μ exp(P(y ≻ mix_β)/τ): the *mixture* |
|               |                           |             |                      | is the equilibrium at τ/(1−β)        |
| nash_ema_pg   | π_θ̄, averaged weights     | preference  | policy gradient      | π*_τ where it settles                |
| best_response | μ                         | preference  | policy gradient      | μ exp(P(y ≻ μ)/τ)                    |

On trees of tokens the per-token mixture of nash_md_pg is not the mixture of whole responses; its fixed point is that of
the game played with the per-token one.

Source: Munos et al. (2024), arXiv:2312.00886, sections 6 and 7.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax import losses, mixture, preference_model, reward_model
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  Demonstration,
  Losses,
  Params,
  Player,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  Prompts,
  RewardFn,
  Scored,
)


def sft(policy: Policy) -> Algorithm:
  """Supervised fine-tuning: imitate the demonstrations."""

  def loss(params: Params, batch: Demonstration) -> Losses:
    token_logp = policy.log_prob(params, batch.prompts, batch.response.tokens)
    return losses.cross_entropy_loss(token_logp, batch.response.mask)

  return Algorithm(policy.init, _as_read, _as_sampled, loss)


def preference(model: preference_model.PreferenceModel) -> Algorithm:
  """Learns P(y ≻ y'|x) from comparisons."""
  loss = functools.partial(preference_model.loss, model)
  return Algorithm(model.init, _as_read, _as_sampled, loss)


def reward(model: reward_model.RewardModel) -> Algorithm:
  """Learns the Bradley-Terry reward r(x, y) from comparisons."""
  loss = functools.partial(reward_model.loss, model)
  return Algorithm(model.init, _as_read, _as_sampled, loss)


def rlhf(policy: Policy, reward_fn: RewardFn, *, tau: float, num_samples: int = 1) -> Algorithm:
  """KL-regularised policy gradient on a scalar reward."""
  _check_tau(tau)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Scored:
    (response,) = policy.play(params, [mixture.ONLINE], prompts, rng, num_samples)
    return Scored(prompts, response, None, _reference_logp(policy, params, prompts, response))

  def judge(rollout: Scored) -> Scored:
    reward = reward_fn(rollout.prompts, rollout.response.tokens)
    # The baseline spans the batch where a prompt has one response: rewards have no natural zero.
    group = num_samples if num_samples > 1 else reward.shape[0]
    return rollout._replace(reward=reward, payoff=leave_one_out(reward, group))

  def loss(params: Params, rollout: Scored) -> Losses:
    token_logp = policy.log_prob(params, rollout.prompts, rollout.response.tokens)
    result = losses.policy_gradient_loss(
      token_logp, rollout.reference_token_logp, rollout.payoff, rollout.response.mask, tau=tau
    )
    return result._replace(metrics=result.metrics | {'reward': rollout.reward})

  return Algorithm(policy.init, sample, judge, loss)


def self_play(policy: Policy, preference_fn: PreferenceFn, *, tau: float, num_samples: int = 1):
  """The policy against itself: y' ~ π_θ. Nash-MD-PG with β = 0."""
  return _policy_gradient(policy, preference_fn, mixture.ONLINE, tau, num_samples)


def nash_md_pg(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: float,
  beta: float,
  num_samples: int = 1,
) -> Algorithm:
  """The policy against its geometric mixture with the reference: y' ~ π_θ^{1−β} μ^β, per token."""
  return _policy_gradient(policy, preference_fn, mixture.between(beta), tau, num_samples)


def nash_ema_pg(policy: Policy, preference_fn: PreferenceFn, *, tau: float, num_samples: int = 1):
  """The policy against its past: y' ~ π_θ̄, θ̄ the exponential moving average of θ."""
  return _policy_gradient(policy, preference_fn, mixture.EMA, tau, num_samples)


def best_response(
  policy: Policy, preference_fn: PreferenceFn, *, tau: float, num_samples: int = 1
) -> Algorithm:
  """The policy against the reference: y' ~ μ. Nash-MD-PG with β = 1."""
  return _policy_gradient(policy, preference_fn, mixture.REFERENCE, tau, num_samples)


def _policy_gradient(
  policy: Policy, preference_fn: PreferenceFn, alternative: Player, tau: float, num_samples: int
) -> Algorithm:
  _check_tau(tau)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Comparison:
    players = [mixture.ONLINE, alternative]
    response, other = policy.play(params, players, prompts, rng, num_samples)
    reference = _reference_logp(policy, params, prompts, response)
    return Comparison(prompts, response, other, None, reference)

  def judge(comparison: Comparison) -> Comparison:
    p = preference_fn(comparison.prompts, comparison.response.tokens, comparison.alternative.tokens)
    return comparison._replace(preference=p)

  def loss(params: Params, comparison: Comparison) -> Losses:
    token_logp = policy.log_prob(params, comparison.prompts, comparison.response.tokens)
    payoff = (
      leave_one_out(comparison.preference, num_samples)
      if num_samples > 1
      else comparison.preference - 0.5
    )
    result = losses.policy_gradient_loss(
      token_logp, comparison.reference_token_logp, payoff, comparison.response.mask, tau=tau
    )
    return result._replace(metrics=result.metrics | {'preference': comparison.preference})

  return Algorithm(policy.init, sample, judge, loss)


def leave_one_out(payoff: Float[Array, 'N'], group: int) -> Float[Array, 'N']:
  """Payoff less the mean of the others in its group of consecutive rows: a baseline that its own sample cannot move.

  Unbiased, and of lower variance than a constant. A group of one has no others: its payoff is returned as it is.
  """
  if group == 1:
    return payoff
  rows = payoff.reshape(-1, group)
  others = (jnp.sum(rows, axis=-1, keepdims=True) - rows) / (group - 1)
  return (rows - others).reshape(-1)


def _reference_logp(policy, params, prompts, response):
  return policy.log_prob(params.reference, prompts, response.tokens)


def _as_read(params: PolicyParams, batch, rng: PRNGKey):
  """Supervised methods learn from the batch as it was read."""
  del params, rng
  return batch


def _as_sampled(batch):
  return batch


def _check_tau(tau: float) -> None:
  if tau < 0:
    raise ValueError(f'tau must be at least 0, got {tau}.')
