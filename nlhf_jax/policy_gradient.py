"""Policy gradients: y ~ π_θ earns a reward, or the rate at which it is preferred to an alternative y'.

The gradient is the score function's, and the KL to an anchor is charged to each token as reward-to-go.

Source: Munos et al. (2024), arXiv:2312.00886, eq. 13 (preference) and eq. 16 (reward).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import losses, pairwise
from nlhf_jax.judges import annotators, tables
from nlhf_jax.models import mixture
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  FixedPoint,
  Losses,
  MixtureWeights,
  ParameterSet,
  Params,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  Prompts,
  RewardFn,
  Scored,
)


def on_reward(
  policy: Policy,
  reward_fn: RewardFn,
  tau: float,
  num_samples: int,
  *,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """The method whose k responses to a prompt each earn a reward; their baseline is the mean of the others."""
  _check_tau(tau)
  _check_reuse(policy, reuse)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Scored:
    (response,) = policy.play(params, [mixture.ONLINE], prompts, rng, num_samples)
    reference_logp = policy.log_prob(params.named('reference'), prompts, response.tokens)
    return Scored(prompts, response, None, reference_logp)

  def score(rollout: Scored) -> Scored:
    reward = reward_fn(rollout.prompts, rollout.response.tokens)
    # The baseline spans the batch where a prompt has one response: rewards have no natural zero.
    group = num_samples if num_samples > 1 else reward.shape[0]
    missing = pairwise.known_missing(jnp.isnan(reward)[:, None])
    # One that has no others is compared with the batch.
    usual = 0.0 if missing is None else jnp.nan_to_num(jnp.nanmean(reward))
    known_reward, known = pairwise.where_known(reward, missing, usual)
    advantage = losses.leave_one_out(known_reward, group, known)
    return rollout._replace(reward=reward, advantage=advantage, votes_missing=missing)

  def loss(params: Params, rollout: Scored) -> Losses:
    token_logp = policy.log_prob(params, rollout.prompts, rollout.response.tokens)
    reference_logp, mask = rollout.reference_token_logp, rollout.response.mask
    reward, known = pairwise.where_known(rollout.reward, rollout.votes_missing, 0.0)
    result = losses.policy_gradient_loss(
      token_logp,
      reference_logp,
      rollout.advantage,
      mask,
      tau=tau,
      group=num_samples,
      behaviour_token_logp=rollout.response.token_logp,
      reuse=reuse,
      counted=known,
    )
    kl = losses.kl_to_reference(token_logp, reference_logp, mask)
    result = _with_metrics(result, kl_to_reference=kl, reward=reward)
    return pairwise.with_missing(result, rollout.votes_missing, reward=known)

  return Algorithm(
    policy.init,
    sample,
    score,
    loss,
    {'reference': parameter_sets.reference()},
    mixtures=(mixture.ONLINE,),
    anchor=mixture.REFERENCE,
    reusable=reuse is not None,
    scores_jointly=num_samples == 1,
    fixed_point=FixedPoint(tau, None),
  )


def on_preference(
  policy: Policy,
  preference_fn: PreferenceFn,
  alternative: MixtureWeights,
  tau: float,
  num_samples: int,
  sets: Mapping[str, ParameterSet] | None = None,
  anchor: MixtureWeights = mixture.REFERENCE,
  *,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
  deviation: float | None = None,
  fixed_point: FixedPoint | None = None,
) -> Algorithm:
  """The method whose k responses to a prompt are each judged against all of its alternatives, or (all_pairs=False) one.

  Where the alternatives are π_θ's too, the k responses are each other's, and nothing else is drawn. With `deviation` (ε)
  advantages are divided by the group's standard deviation plus ε (`losses.divide_by_deviation`).
  """
  _check_tau(tau)
  _check_reuse(policy, reuse)
  each_other = all_pairs and alternative == mixture.ONLINE and num_samples > 1
  _check_deviation(deviation, each_other)
  mixtures = (mixture.ONLINE,) if each_other else (mixture.ONLINE, alternative)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Comparison:
    rollouts = policy.play(params, mixtures, prompts, rng, num_samples)
    response, other = rollouts[0], rollouts[-1]
    logp = {
      name: policy.log_prob(params.named(name), prompts, response.tokens)
      for name in sorted({'reference', *anchor})
    }
    anchor_logp = pairwise.mix(anchor, logp)
    return Comparison(prompts, response, other, None, logp['reference'], anchor_logp)

  def score(comparison: Comparison) -> Comparison:
    responses = comparison.prompts, comparison.response.tokens, comparison.alternative.tokens
    if not all_pairs:
      preference = preference_fn(*responses)
      missing = pairwise.known_missing(jnp.isnan(preference)[:, None])
      return comparison._replace(preference=preference, votes_missing=missing)
    asked = responses[:2] if each_other else responses
    table = tables.preference_table(preference_fn, *asked)
    preference, missing = pairwise.mean_over_opponents(table, each_other=each_other)
    of_response = table.reshape(-1, table.shape[-1])
    return comparison._replace(
      preference=preference, votes_missing=missing, pair_preference=of_response
    )

  # Among each other responses win 1/2 on average, which is the baseline; the mean of the others would count each pair twice.
  leave_one_out = not each_other and num_samples > 1
  loss = _preference_loss(policy, tau, num_samples, leave_one_out, reuse, deviation)
  sets = {'reference': parameter_sets.reference()} | dict(sets or {})
  return Algorithm(
    policy.init,
    sample,
    score,
    loss,
    sets,
    mixtures=mixtures,
    anchor=anchor,
    reusable=reuse is not None,
    fixed_point=fixed_point,
  )


def on_annotators(
  policy: Policy,
  judge: PreferenceFn,
  tau: float,
  tau_opponent: float,
  num_samples: int,
  *,
  beta: float = 0.0,
  weights: Sequence[float] | None = None,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """The method whose responses are judged by the annotators, against the opponents, that are hardest for the policy.

  It ascends −τ' log E_{u ~ w, y' ~ μ} exp(−P_u(π ≻ y')/τ') − τ KL(π‖μ), a soft minimum, which is concave. Opponents are drawn
  from π_θ^{1−β} μ^β and weighed by what they are to μ: π_θ draws those that are hard for itself more often.

  Args:
    policy: π_θ.
    judge: keeps its annotators apart.
    tau: τ ≥ 0.
    tau_opponent: τ' > 0.
    num_samples: responses to each prompt, 2 or more, and as many opponents.
    beta: in [0, 1].
    weights: w > 0 of each annotator; None: all alike.
    reuse: as everywhere.
  """
  _check_tau(tau)
  _check_reuse(policy, reuse)
  if num_samples < 2:
    raise ValueError(
      f'num_samples must be at least 2, for the others say who is hardest for each: got {num_samples}.'
    )
  prior = None if weights is None else annotators.checked_weights(weights)
  mixtures = mixture.ONLINE, mixture.between(beta)
  hardest = jax.jit(functools.partial(losses.hardest_preference, tau=tau_opponent))

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Comparison:
    response, other = policy.play(params, mixtures, prompts, rng, num_samples)
    logp = lambda x: policy.log_prob(params.named('reference'), prompts, x.tokens)
    log_weight = None
    if mixtures[1] != mixture.REFERENCE:
      log_weight = jnp.sum(logp(other) - other.token_logp, axis=-1)
    reference = logp(response)
    return Comparison(prompts, response, other, None, reference, alternative_log_weight=log_weight)

  def score(comparison: Comparison) -> Comparison:
    prompts, response, other = comparison[:3]
    table = annotators.apart(judge, prompts, response.tokens, other.tokens)
    log_weight = _log_weights(table.shape, comparison.alternative_log_weight, prior)
    payoff, baseline = (x.reshape(-1) for x in hardest(table, log_weight))
    missing = pairwise.known_missing(jnp.isnan(table).reshape(*table.shape[:2], -1))
    return comparison._replace(
      preference=payoff,
      advantage=jnp.nan_to_num(payoff - baseline),
      votes_missing=missing,
      pair_preference=tables.mean_of_votes(table).reshape(-1, table.shape[2]),
    )

  return Algorithm(
    policy.init,
    sample,
    score,
    _preference_loss(policy, tau, num_samples, False, reuse, None),
    {'reference': parameter_sets.reference()},
    mixtures=mixtures,
    anchor=mixture.REFERENCE,
    reusable=reuse is not None,
    fixed_point=FixedPoint(tau, 0.0, tau_opponent, None if weights is None else tuple(weights)),
  )


def _log_weights(
  shape: tuple[int, ...], of_opponents: Float[Array, 'N'] | None, prior: np.ndarray | None
) -> Float[Array, 'B m U']:
  """What each opponent and annotator weighs before it is known who is hardest."""
  size, _, number, num_annotators = shape
  result = jnp.zeros((size, number, num_annotators))
  if of_opponents is not None:
    result += of_opponents.reshape(size, number, 1)
  if prior is not None:
    annotators.check_number(prior, num_annotators)
    result += jnp.log(prior)
  return result


def _preference_loss(
  policy: Policy,
  tau: float,
  num_samples: int,
  leave_one_out: bool,
  reuse: losses.Reuse | None,
  deviation: float | None,
) -> Callable[[Params, Comparison], Losses]:
  """The loss of `on_preference`; the baseline is the mean of a prompt's other responses, or 1/2."""

  def loss(params: Params, comparison: Comparison) -> Losses:
    token_logp = policy.log_prob(params, comparison.prompts, comparison.response.tokens)
    mask = comparison.response.mask
    p, voted = pairwise.where_known(comparison.preference, comparison.votes_missing, 0.5)
    advantage = losses.leave_one_out(p, num_samples, voted) if leave_one_out else p - 0.5
    if comparison.advantage is not None:
      advantage = comparison.advantage
    if deviation is not None:
      advantage = losses.divide_by_deviation(advantage, p, num_samples, deviation, voted)
    anchor_logp = comparison.anchor_token_logp
    if anchor_logp is None:
      anchor_logp = comparison.reference_token_logp
    result = losses.policy_gradient_loss(
      token_logp,
      anchor_logp,
      advantage,
      mask,
      tau=tau,
      group=num_samples,
      behaviour_token_logp=comparison.response.token_logp,
      reuse=reuse,
      counted=voted,
    )
    kl = losses.kl_to_reference(token_logp, comparison.reference_token_logp, mask)
    result = _with_metrics(result, kl_to_reference=kl, preference=p)
    return pairwise.with_missing(result, comparison.votes_missing, preference=voted)

  return loss


def _with_metrics(result: Losses, **metrics: Float[Array, 'N']) -> Losses:
  return result._replace(metrics=result.metrics | metrics)


def _check_reuse(policy: Policy, reuse: losses.Reuse | None) -> None:
  if reuse is not None and not policy.untruncated:
    raise ValueError(
      'Rollouts that were truncated cannot be reused: set reuse to None, or top_k and top_p of the sampling off.'
    )


def _check_deviation(deviation: float | None, each_other: bool) -> None:
  if deviation is None:
    return
  if not deviation > 0:
    raise ValueError(f'deviation must be positive, got {deviation}: it is added to the divisor.')
  if not each_other:
    raise ValueError(
      'deviation needs groups that are judged against each other: set num_samples to 2 or more, and all_pairs to True.'
    )


def _check_tau(tau: float) -> None:
  if tau < 0:
    raise ValueError(f'tau must be at least 0, got {tau}.')
