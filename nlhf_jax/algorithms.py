"""The table of methods. A method is who is sampled, who judges, and a loss: one short function each.

Policy gradients: y ~ π_θ against an alternative y'.

| method        | alternative y' ~          | feedback    | fixed point                                                  |
|---------------|---------------------------|-------------|--------------------------------------------------------------|
| rlhf          |                           | reward      | μ exp(r/τ)                                                   |
| self_play     | π_θ                       | preference  | π*_τ, the Nash equilibrium                                   |
| nash_md_pg    | π_θ^{1−β} μ^β, per token  | preference  | μ exp(P(y ≻ mix_β)/τ): the *mixture* is that at τ/(1−β)      |
| nash_ema_pg   | π_θ̄, averaged weights     | preference  | π*_τ where it settles                                        |
| nash_mp       | π_θ̄, and KL to π_θ̄        | preference  | π*_τ                                                         |
| best_response | μ                         | preference  | μ exp(P(y ≻ μ)/τ)                                            |

Contrasts: the log-ratio of y less that of y' is to be what their payoffs say.

| method        | y, y' ~                   | judged against     | log-ratios to | fixed point                           |
|---------------|---------------------------|--------------------|---------------|---------------------------------------|
| online_ipo    | π_θ                       | each other         | μ             | π*_τ                                  |
| ipo_md        | π_θ^{1−β} μ^β, per token  | each other         | μ             | that of nash_md_pg                    |
| egpo          | π_θ                       | π of a half-step   | μ             | π*_τ                                  |
| inpo          | π_t, a snapshot           | each other         | μ and π_t     | π*_τ                                  |
| sppo          | π_t                       | π_t                | π_t           | a stage: near π_t exp(η P(y ≻ π_t))   |
| dno           | π_t                       | π_t                | π_t           | a stage: π_t exp(P(y ≻ π_t)/η)        |
| dpo           | the data                  | each other's votes | μ             | μ exp(r/τ), r Bradley-Terry's         |

Supervised: sft imitates demonstrations, preference and reward learn P and r from comparisons.

On trees of tokens the per-token mixture of nash_md_pg and ipo_md is not the mixture of whole responses; their fixed
point is that of the game played with the per-token one.

Source: Munos et al. (2024), arXiv:2312.00886, sections 6 and 7; of each of the others, below.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax import pairwise
from nlhf_jax import losses
from nlhf_jax.models import mixture
from nlhf_jax.models import preference_model
from nlhf_jax.models import reward_model
from nlhf_jax.types import (
  Algorithm,
  Comparison,
  Pair,
  Demonstration,
  Losses,
  Params,
  MixtureWeights,
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

  return Algorithm(policy.init, _as_read, _as_sampled, loss, reads=Demonstration)


def preference(model: preference_model.PreferenceModel) -> Algorithm:
  """Learns P(y ≻ y'|x) from comparisons."""
  loss = functools.partial(preference_model.loss, model)
  return Algorithm(model.init, _as_read, _as_sampled, loss, reads=Comparison)


def reward(model: reward_model.RewardModel) -> Algorithm:
  """Learns the Bradley-Terry reward r(x, y) from comparisons."""
  loss = functools.partial(reward_model.loss, model)
  return Algorithm(model.init, _as_read, _as_sampled, loss, reads=Comparison)


def rlhf(policy: Policy, reward_fn: RewardFn, *, tau: float, num_samples: int = 1) -> Algorithm:
  """KL-regularised policy gradient on a scalar reward."""
  _check_tau(tau)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Scored:
    (response,) = policy.play(params, [mixture.ONLINE], prompts, rng, num_samples)
    reference = policy.log_prob(params.reference, prompts, response.tokens)
    return Scored(prompts, response, None, reference)

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

  return Algorithm(policy.init, sample, judge, loss, frozenset({'reference'}))


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


def nash_mp(
  policy: Policy, preference_fn: PreferenceFn, *, tau: float, eta: float, num_samples: int = 1
) -> Algorithm:
  """Nash Mirror Prox: against averaged weights θ̄, which the policy is held close to with strength τ/η.

  Args:
    policy, preference_fn, tau, num_samples: as everywhere.
    eta: η > 0, the step size of the proximal step; the larger, the looser the hold on π_θ̄.

  Source: Tiapkin et al. (2025), arXiv:2505.19731, practical version.
  """
  _check_positive('tau', tau)
  _check_positive('eta', eta)
  hold = tau / eta
  # τ log(π/μ) + (τ/η) log(π/π_θ̄) is (τ + τ/η) times the log-ratio to a geometric mixture of the two.
  anchor = {'reference': tau / (tau + hold), 'ema': hold / (tau + hold)}
  return _policy_gradient(policy, preference_fn, mixture.EMA, tau + hold, num_samples, anchor)


def _policy_gradient(
  policy: Policy,
  preference_fn: PreferenceFn,
  alternative: MixtureWeights,
  tau: float,
  num_samples: int,
  anchor: MixtureWeights = mixture.REFERENCE,
) -> Algorithm:
  _check_tau(tau)

  def sample(params: PolicyParams, prompts: Prompts, rng: PRNGKey) -> Comparison:
    players = [mixture.ONLINE, alternative]
    response, other = policy.play(params, players, prompts, rng, num_samples)
    logp = _logp_of_sets(policy, params, {'reference', *anchor}, prompts, response.tokens)
    return Comparison(prompts, response, other, None, logp['reference'], pairwise.mix(anchor, logp))

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
    anchor_logp = comparison.anchor_token_logp
    if anchor_logp is None:
      anchor_logp = comparison.reference_token_logp
    mask = comparison.response.mask
    result = losses.policy_gradient_loss(token_logp, anchor_logp, payoff, mask, tau=tau)
    kl = jnp.sum(jnp.where(mask, token_logp - comparison.reference_token_logp, 0), axis=-1)
    seen = {'kl_to_reference': kl, 'preference': comparison.preference}
    return result._replace(metrics=result.metrics | seen)

  plays = frozenset({'reference', *alternative, *anchor}) - {'online'}
  return Algorithm(policy.init, sample, judge, loss, plays)


def online_ipo(
  policy: Policy, preference_fn: PreferenceFn, *, tau: float, num_samples: int = 1
) -> Algorithm:
  """IPO on pairs of the policy's own. Source: Calandriello et al. (2024), arXiv:2403.08635."""
  return _ipo(policy, preference_fn, mixture.ONLINE, tau, num_samples)


def ipo_md(
  policy: Policy, preference_fn: PreferenceFn, *, tau: float, beta: float, num_samples: int = 1
) -> Algorithm:
  """IPO on pairs of the mixture π_θ^{1−β} μ^β. Source: Calandriello et al. (2024), arXiv:2403.08635, section 4."""
  return _ipo(policy, preference_fn, mixture.between(beta), tau, num_samples)


def inpo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: float,
  eta: float,
  refresh_every: int,
  num_samples: int = 1,
) -> Algorithm:
  """Iterative Nash policy optimisation: a mirror step from a snapshot π_t, as IPO on its pairs.

  Args:
    policy, preference_fn, tau, num_samples: as everywhere.
    eta: η ≥ τ, one over the step size: h = Δ log π − (τ/η) Δ log μ − (1 − τ/η) Δ log π_t is to be (P − ½)/η.
    refresh_every: updates between snapshots.

  Source: Zhang et al. (2024), arXiv:2407.00617.
  """
  _check_positive('tau', tau)
  if eta < tau:
    raise ValueError(f'eta must be at least tau: got eta = {eta}, tau = {tau}.')
  anchor = {'reference': tau / eta, 'past': 1 - tau / eta}
  return _ipo(policy, preference_fn, mixture.PAST, eta, num_samples, anchor, refresh_every)


def _ipo(policy, preference_fn, player, tau, num_samples, anchor=mixture.REFERENCE, refresh=None):
  _check_positive('tau', tau)
  judge = pairwise.against_each_other(preference_fn)
  loss = functools.partial(losses.squared_difference_loss, tau=tau)
  return pairwise.make_algorithm(policy, [player] * 2, judge, anchor, loss, num_samples, refresh=refresh)


def egpo(
  policy: Policy, preference_fn: PreferenceFn, *, tau: float, num_samples: int = 1
) -> Algorithm:
  """Extragradient preference optimisation: a half-step against itself, then the step against the half-step's policy.

  Both start from the same parameters and optimizer state. Source: Zhou, Fazel, Du (2025), arXiv:2503.08942.
  """
  _check_positive('tau', tau)
  loss = functools.partial(losses.squared_difference_loss, tau=tau)
  judge = pairwise.against_opponent(preference_fn, num_samples)

  def make(opponent: MixtureWeights) -> Algorithm:
    players = [mixture.ONLINE, mixture.ONLINE, opponent]
    return pairwise.make_algorithm(policy, players, judge, mixture.REFERENCE, loss, num_samples)

  return make(mixture.HALF)._replace(half_step=make(mixture.ONLINE).sample)


def sppo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  eta: float,
  refresh_every: int,
  num_samples: int = 1,
) -> Algorithm:
  """Self-play preference optimisation: log π/π_t is to be η (P(y ≻ π_t) − ½). Without regularisation towards μ.

  Source: Wu et al. (2024), arXiv:2405.00675.
  """
  _check_positive('eta', eta)
  loss = functools.partial(losses.squared_payoff_loss, eta=eta)
  return _from_snapshot(policy, preference_fn, loss, refresh_every, num_samples)


def dno(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  eta: float,
  refresh_every: int,
  num_samples: int = 1,
) -> Algorithm:
  """Direct Nash optimisation: log-odds η Δ log(π/π_t) are to be Δ P(y ≻ π_t), by cross-entropy.

  With few samples the label σ(Δ r̂) is slightly biased towards 1/2. Source: Rosset et al. (2024), arXiv:2404.03715.
  """
  _check_positive('eta', eta)

  def loss(log_ratio, payoff):
    label = jax.nn.sigmoid(payoff[:, 0] - payoff[:, 1])
    return losses.logistic_difference_loss(log_ratio, label, scale=eta)

  return _from_snapshot(policy, preference_fn, loss, refresh_every, num_samples)


def _from_snapshot(policy, preference_fn, loss, refresh_every, num_samples) -> Algorithm:
  judge = pairwise.against_opponent(preference_fn, num_samples)
  players, anchor = [mixture.PAST] * 3, mixture.PAST
  return pairwise.make_algorithm(policy, players, judge, anchor, loss, num_samples, refresh=refresh_every)


def dpo(policy: Policy, *, tau: float) -> Algorithm:
  """Direct preference optimisation on comparisons as they were read; the offline baseline. τ is its paper's β.

  Source: Rafailov et al. (2023), arXiv:2305.18290.
  """
  _check_positive('tau', tau)

  def sample(params: PolicyParams, batch: Comparison, rng: PRNGKey) -> Pair:
    del rng
    pair = batch.prompts, batch.response, batch.alternative
    reference = pairwise.pair_logp(policy, params.reference, *pair)
    payoff = jnp.stack([batch.preference, 1 - batch.preference], axis=-1)
    return Pair(*pair, None, reference, reference, payoff)

  def loss(params: Params, batch: Pair) -> Losses:
    pair = pairwise.pair_logp(policy, params, batch.prompts, batch.response, batch.alternative)
    return losses.logistic_difference_loss(pair - batch.anchor_logp, batch.payoff[:, 0], scale=tau)

  plays = frozenset({'reference'})
  return Algorithm(policy.init, sample, _as_sampled, loss, plays, reads=Comparison)


def leave_one_out(payoff: Float[Array, 'N'], group: int) -> Float[Array, 'N']:
  """Payoff less the mean of the others in its group of consecutive rows: a baseline that its own sample cannot move.

  Unbiased, and of lower variance than a constant. A group of one has no others: its payoff is returned as it is.
  """
  if group == 1:
    return payoff
  rows = payoff.reshape(-1, group)
  others = (jnp.sum(rows, axis=-1, keepdims=True) - rows) / (group - 1)
  return (rows - others).reshape(-1)


def _logp_of_sets(policy, params, names, prompts, tokens) -> dict[str, Float[Array, 'N T']]:
  """Log-probs of responses under several parameter sets."""
  return {name: policy.log_prob(getattr(params, name), prompts, tokens) for name in sorted(names)}


def _as_read(params: PolicyParams, batch, rng: PRNGKey):
  """Supervised methods learn from the batch as it was read."""
  del params, rng
  return batch


def _as_sampled(batch):
  return batch


def _check_tau(tau: float) -> None:
  if tau < 0:
    raise ValueError(f'tau must be at least 0, got {tau}.')


def _check_positive(name: str, value: float) -> None:
  if not value > 0:
    raise ValueError(f'{name} must be positive, got {value}.')
