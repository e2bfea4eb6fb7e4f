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
| blackwell_pg  | μ, and u ~ the annotators | P_u of each | μ exp(E_σ P_u(y ≻ k)/τ), σ(u, k) the hardest for the policy  |
| stackelberg   | π_θ, who has read y       | preference  | μ exp(V/τ), V(y) = min_ω P(y ≻ ω) + τ_F KL(ω‖μ), y' ~ ω(·|y) |

Pairwise: the log-ratio of y less that of y' is to be what their payoffs say.

| method        | y, y' ~                   | judged against     | log-ratios to | fixed point                           |
|---------------|---------------------------|--------------------|---------------|---------------------------------------|
| online_ipo    | π_θ                       | each other         | μ             | π*_τ                                  |
| ipo_md        | π_θ^{1−β} μ^β, per token  | each other         | μ             | that of nash_md_pg                    |
| egpo          | π_θ                       | π of a half-step   | μ             | π*_τ                                  |
| inpo          | π_t, a snapshot           | each other         | μ and π_t     | π*_τ                                  |
| sppo          | π_t                       | π_t                | π_t           | a stage: near π_t exp(η P(y ≻ π_t))   |
| dno           | π_t                       | π_t                | π_t           | a stage: π_t exp(P(y ≻ π_t)/η)        |
| mnpo          | a ring of snapshots' mean | each other         | μ and the ring| π*_τ                                  |
| onpo          | π_t                       | each other         | w_t           | Nash at τ = 0; stages w_t exp(2ηq_t)  |
| magnet_reset  | π_θ                       | each other         | a μ that moves| Nash at τ = 0; stages π*_τ around μ   |
| rspo          | π_t, and y' ~ μ           | π_t                | π_t           | μ/(1 − (P(y ≻ π) − ½)/τ)              |
| dpo           | the data                  | each other's votes | μ             | μ exp(r/τ), r Bradley-Terry's         |

Supervised: sft imitates demonstrations, preference and reward learn P and r from comparisons.

A method names its parameter sets (`training.parameter_sets`), who draws its responses, and what its KL is measured against.
With `reference(reset_every)` in place of a frozen μ it runs in stages, each around the policy of the last; those of a method
that stops at π*_τ end at an equilibrium of the game without regularisation.

On trees of tokens the per-token mixture of nash_md_pg and ipo_md is not the mixture of complete responses; their fixed
point is that of the game played with the per-token one.

Source: Munos et al. (2024), arXiv:2312.00886, sections 6 and 7; of each of the others, below.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax import losses, pairwise, policy_gradient, two_turns
from nlhf_jax.arguments import Count, Decay, NonNegative, Positive, Share
from nlhf_jax.models import mixture, preference_model, reward_model
from nlhf_jax.models import voter_preference as voter_preferences
from nlhf_jax.training import parameter_sets
from nlhf_jax.types import (
  Algorithm,
  Batch,
  Comparison,
  Demonstration,
  FixedPoint,
  Losses,
  MixtureWeights,
  Pair,
  ParameterSet,
  Params,
  Policy,
  PolicyParams,
  PreferenceFn,
  PRNGKey,
  RewardFn,
  SecondTurn,
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


def voter_preference(
  model: preference_model.PreferenceModel, *, prior: voter_preferences.Prior
) -> Algorithm:
  """Learns P_u(y ≻ y'|x) from votes that say whose they are."""
  loss = lambda params, batch: voter_preferences.loss(model, params, batch, prior)
  return Algorithm(model.init, _as_read, _as_sampled, loss, reads=Comparison)


def reward(model: reward_model.RewardModel) -> Algorithm:
  """Learns the Bradley-Terry reward r(x, y) from comparisons."""
  loss = functools.partial(reward_model.loss, model)
  return Algorithm(model.init, _as_read, _as_sampled, loss, reads=Comparison)


def rlhf(
  policy: Policy,
  reward_fn: RewardFn,
  *,
  tau: NonNegative,
  num_samples: Count = 1,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """KL-regularised policy gradient on a scalar reward."""
  return policy_gradient.on_reward(policy, reward_fn, tau, num_samples, reuse=reuse)


def self_play(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: NonNegative,
  num_samples: Count = 1,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
  deviation: Positive | None = None,
) -> Algorithm:
  """The policy against itself: y' ~ π_θ. Nash-MD-PG with β = 0; with groups, num_samples = k > 1, SPO (arXiv:2401.04056).

  With `deviation` (ε > 0) advantages are divided by the group's standard deviation plus ε, "Nash-GRPO", and it stops elsewhere:
  `losses.divide_by_deviation`.
  """
  return policy_gradient.on_preference(
    policy,
    preference_fn,
    mixture.ONLINE,
    tau,
    num_samples,
    all_pairs=all_pairs,
    reuse=reuse,
    deviation=deviation,
    fixed_point=FixedPoint(tau, 0.0) if deviation is None else None,
  )


def nash_md_pg(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: NonNegative,
  beta: Share,
  num_samples: Count = 1,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """The policy against its geometric mixture with the reference: y' ~ π_θ^{1−β} μ^β, per token."""
  return policy_gradient.on_preference(
    policy,
    preference_fn,
    mixture.between(beta),
    tau,
    num_samples,
    all_pairs=all_pairs,
    reuse=reuse,
    fixed_point=FixedPoint(tau, beta),
  )


def nash_ema_pg(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: NonNegative,
  decay: Decay,
  num_samples: Count = 1,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """The policy against its past: y' ~ π_θ̄, θ̄ the exponential moving average of θ with decay κ."""
  sets = {'average': parameter_sets.average(decay)}
  return policy_gradient.on_preference(
    policy,
    preference_fn,
    mixture.AVERAGE,
    tau,
    num_samples,
    sets,
    all_pairs=all_pairs,
    reuse=reuse,
    fixed_point=FixedPoint(tau, 0.0),
  )


def best_response(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: NonNegative,
  num_samples: Count = 1,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """The policy against the reference: y' ~ μ. Nash-MD-PG with β = 1."""
  return policy_gradient.on_preference(
    policy,
    preference_fn,
    mixture.REFERENCE,
    tau,
    num_samples,
    all_pairs=all_pairs,
    reuse=reuse,
    fixed_point=FixedPoint(tau, 1.0),
  )


def nash_mp(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  eta: Positive,
  decay: Decay,
  num_samples: Count = 1,
  all_pairs: bool = True,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """Nash Mirror Prox: against averaged weights θ̄, which the policy is held close to with strength τ/η.

  Args:
    policy, preference_fn, tau, num_samples, all_pairs, reuse: as everywhere.
    eta: η > 0, the step size of the proximal step; the larger, the looser the hold on π_θ̄.
    decay: κ of the average, in [0, 1).

  Source: Tiapkin et al. (2025), arXiv:2505.19731, practical version.
  """
  _check_positive('tau', tau)
  _check_positive('eta', eta)
  hold = tau / eta
  # τ log(π/μ) + (τ/η) log(π/π_θ̄) is (τ + τ/η) times the log-ratio to a geometric mixture of the two.
  anchor = {'reference': tau / (tau + hold), 'average': hold / (tau + hold)}
  sets = {'average': parameter_sets.average(decay)}
  return policy_gradient.on_preference(
    policy,
    preference_fn,
    mixture.AVERAGE,
    tau + hold,
    num_samples,
    sets,
    anchor,
    all_pairs=all_pairs,
    reuse=reuse,
    fixed_point=FixedPoint(tau, 0.0),
  )


def blackwell_pg(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: NonNegative,
  tau_opponent: Positive | None = None,
  beta: Share = 0.0,
  annotator_weights: Sequence[float] | None = None,
  num_samples: Count = 16,
  reuse: losses.Reuse | None = None,
) -> Algorithm:
  """Maximin over annotators: the policy against annotators and opponents (u, y') ~ σ, the hardest for it within τ' KL.

  σ(u, k) ∝ w_u μ(k) exp(−P_u(π_θ ≻ k)/τ') is estimated from the k responses and k opponents of a prompt. With few of them it
  is biased: a prompt's hardest pair is seldom among them, and the mean over a few responses looks harder than it is.

  Args:
    policy, tau, reuse: as everywhere.
    preference_fn: a judge who keeps its annotators apart (`judges.annotators`).
    tau_opponent: τ' > 0; None: τ. Towards 0 the worst annotator against the best opponent alone, towards ∞ best_response.
    beta: who draws opponents, π_θ^{1−β} μ^β; they are weighed by what they are to μ whatever it is.
    annotator_weights: w > 0 of each; None: all alike.
    num_samples: at least 2.

  Source: Bhatia et al. (2020), arXiv:2105.01850 (Blackwell winners); with entropy, arXiv:2602.19041, whose training
  method is another; this one is policy gradient on the soft minimum.
  """
  tau_opponent = tau if tau_opponent is None else tau_opponent
  _check_positive('tau_opponent', tau_opponent)
  return policy_gradient.on_annotators(
    policy,
    preference_fn,
    tau,
    tau_opponent,
    num_samples,
    beta=beta,
    weights=annotator_weights,
    reuse=reuse,
  )


def online_ipo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """IPO on pairs of the policy's own. Source: Calandriello et al. (2024), arXiv:2403.08635."""
  result = _ipo(policy, preference_fn, mixture.ONLINE, tau, num_samples, all_pairs)
  return result._replace(fixed_point=FixedPoint(tau, 0.0))


def ipo_md(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  beta: Share,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """IPO on pairs of the mixture π_θ^{1−β} μ^β. Source: Calandriello et al. (2024), arXiv:2403.08635, section 4."""
  result = _ipo(policy, preference_fn, mixture.between(beta), tau, num_samples, all_pairs)
  return result._replace(fixed_point=FixedPoint(tau, beta))


def inpo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  eta: Positive,
  refresh_every: Count,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Iterative Nash policy optimisation: a mirror step from a snapshot π_t, as IPO on its pairs.

  Args:
    policy, preference_fn, tau, num_samples, all_pairs: as everywhere.
    eta: η ≥ τ, one over the step size: h = Δ log π − (τ/η) Δ log μ − (1 − τ/η) Δ log π_t is to be (P − ½)/η.
    refresh_every: updates between snapshots.

  Source: Zhang et al. (2024), arXiv:2407.00617.
  """
  _check_eta(eta, tau)
  anchor = {'reference': tau / eta, 'snapshot': 1 - tau / eta}
  sets = {'snapshot': parameter_sets.snapshot(refresh_every)}
  result = _ipo(policy, preference_fn, mixture.SNAPSHOT, eta, num_samples, all_pairs, sets, anchor)
  return result._replace(fixed_point=FixedPoint(tau, 0.0))


def mnpo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  eta: Positive,
  size: Count,
  refresh_every: Count,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Multiplayer Nash policy optimisation, time-dependent: INPO from, and against, a ring of snapshots.

  Built with equal weights λ_j = (1 − λ_μ)/n on the n snapshots and λ_μ = τ/η > 0 on μ, without which it spirals outward; the
  squared distance; and opponents that are the ring's geometric mean, per token, where the paper has each by itself.

  Args:
    policy, preference_fn, tau, num_samples, all_pairs: as everywhere.
    eta: η ≥ τ: Δ log π − λ_μ Δ log μ − Σ_j λ_j Δ log π_{t−j} is to be (P − ½)/η. The paper's η is one over it.
    size: n, snapshots in the ring; 1: INPO.
    refresh_every: updates between snapshots.

  Source: Wu et al. (2025), arXiv:2509.23102.
  """
  _check_eta(eta, tau)
  ring = {f'ring.{j}': 1 / size for j in range(size)}
  anchor = {'reference': tau / eta} | {j: (1 - tau / eta) * share for j, share in ring.items()}
  sets = {'ring': parameter_sets.ring(size, refresh_every)}
  result = _ipo(policy, preference_fn, ring, eta, num_samples, all_pairs, sets, anchor)
  return result._replace(fixed_point=FixedPoint(tau, 0.0))


def onpo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  eta: Positive,
  refresh_every: Count,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Optimistic Nash policy optimisation: two fits to pairs of π_t, first of the centre w, then of π from it. No μ.

  (Δ log w_{t+1} − Δ log w_t − η (P − ½))², then (Δ log π_{t+1} − Δ log w_{t+1} − η (P − ½))². Both are one loss on one sampler:
  θ is w through the first `refresh_every` updates of a stage, π through the second. Let a run end on a multiple of twice
  as many.

  Args:
    policy, preference_fn, num_samples, all_pairs: as everywhere.
    eta: η > 0, in nats per unit of payoff.
    refresh_every: updates of each fit. Pairs are drawn anew for each, from the same π_t.

  Source: arXiv:2502.16852.
  """
  _check_positive('eta', eta)
  sets = {
    'centre': parameter_sets.snapshot(2 * refresh_every, at=refresh_every),
    'snapshot': parameter_sets.snapshot(2 * refresh_every),
  }
  anchor, play = {'centre': 1.0}, mixture.SNAPSHOT
  return _ipo(policy, preference_fn, play, 1 / eta, num_samples, all_pairs, sets, anchor)


def magnet_reset(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  reset_every: Count,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Online IPO in stages, each around the policy of the last: towards a Nash equilibrium without regularisation.

  COMAL has INPO within its stages, MPO mirror descent; online IPO stops at the same π*_τ. Of the other methods: `sets` of an
  experiment, and `parameter_sets.reference(reset_every)`.

  Source: Liu et al. (2024), arXiv:2410.23223 (COMAL); Wang et al. (2024), arXiv:2410.16714 (MPO).
  """
  stage = online_ipo(policy, preference_fn, tau=tau, num_samples=num_samples, all_pairs=all_pairs)
  return parameter_sets.extend(stage, {'reference': parameter_sets.reference(reset_every)})


def _ipo(
  policy: Policy,
  preference_fn: PreferenceFn,
  drawn_from: MixtureWeights,
  tau: float,
  num_samples: int,
  all_pairs: bool,
  sets: Mapping[str, ParameterSet] | None = None,
  anchor: MixtureWeights = mixture.REFERENCE,
) -> Algorithm:
  _check_positive('tau', tau)
  payoff_fn = pairwise.against_each_other(preference_fn, all_pairs)
  loss = functools.partial(losses.squared_difference_loss, tau=tau)
  mixtures = (drawn_from, drawn_from)
  return pairwise.make_algorithm(
    policy, mixtures, payoff_fn, anchor, loss, num_samples, sets, all_pairs=all_pairs
  )


def egpo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Extragradient preference optimisation: a half-step against itself, then the step against the half-step's policy.

  Both start from the same parameters and optimizer state. Source: Zhou, Fazel, Du (2025), arXiv:2503.08942.
  """
  _check_positive('tau', tau)
  loss = functools.partial(losses.squared_difference_loss, tau=tau)
  payoff_fn = pairwise.against_opponent(preference_fn, all_pairs)
  mixtures = (mixture.ONLINE, mixture.ONLINE, mixture.HALF_STEP)
  sets = {'half_step': parameter_sets.half_step()}
  result = pairwise.make_algorithm(
    policy,
    mixtures,
    payoff_fn,
    mixture.REFERENCE,
    loss,
    num_samples,
    sets,
    all_pairs=all_pairs,
  )
  return result._replace(fixed_point=FixedPoint(tau, 0.0))


def sppo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  eta: Positive,
  refresh_every: Count,
  num_samples: Count = 1,
) -> Algorithm:
  """Self-play preference optimisation: log π/π_t is to be η (P(y ≻ π_t) − ½). Without regularisation towards μ.

  Each response answers for itself alone, so that there is nothing to be had from all pairs.

  Source: Wu et al. (2024), arXiv:2405.00675.
  """
  _check_positive('eta', eta)
  loss = functools.partial(losses.squared_payoff_loss, eta=eta)
  return _from_snapshot(policy, preference_fn, loss, refresh_every, num_samples, all_pairs=False)


def dno(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  eta: Positive,
  refresh_every: Count,
  num_samples: Count = 1,
  all_pairs: bool = True,
) -> Algorithm:
  """Direct Nash optimisation: log-odds η Δ log(π/π_t) are to be Δ P(y ≻ π_t), by cross-entropy.

  With few samples the label σ(Δ r̂) is slightly biased towards 1/2. Source: Rosset et al. (2024), arXiv:2404.03715.
  """
  _check_positive('eta', eta)

  def loss(log_ratio: Float[Array, 'N 2'], payoff: Float[Array, 'N 2']) -> Losses:
    label = jax.nn.sigmoid(payoff[:, 0] - payoff[:, 1])
    return losses.logistic_difference_loss(log_ratio, label, scale=eta)

  return _from_snapshot(policy, preference_fn, loss, refresh_every, num_samples, all_pairs)


def _from_snapshot(
  policy: Policy,
  preference_fn: PreferenceFn,
  loss: pairwise.PairLoss,
  refresh_every: int,
  num_samples: int,
  all_pairs: bool,
) -> Algorithm:
  payoff_fn = pairwise.against_opponent(preference_fn, all_pairs)
  mixtures, anchor = (mixture.SNAPSHOT,) * 3, mixture.SNAPSHOT
  sets = {'snapshot': parameter_sets.snapshot(refresh_every)}
  return pairwise.make_algorithm(
    policy, mixtures, payoff_fn, anchor, loss, num_samples, sets, all_pairs=all_pairs
  )


def rspo(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  tau: Positive,
  eta: Positive,
  refresh_every: Count,
  num_samples: Count = 1,
) -> Algorithm:
  """Regularised self-play: SPPO's square, and 2ητ KL(μ‖π), so that nothing which μ says dies out. Needs samples of μ.

  Where it settles it is the Nash equilibrium under the forward KL, μ/(1 − (P(y ≻ π) − ½)/τ). With KL(π‖μ) that would be π*_τ, which
  others find.

  Source: Tang et al. (2025), arXiv:2503.00030; the loss as it is remembered, not checked against its text.
  """
  _check_positive('tau', tau)
  _check_positive('eta', eta)
  loss = functools.partial(losses.forward_kl_loss, tau=tau, eta=eta)
  payoff_fn = pairwise.response_against_opponent(preference_fn)
  mixtures = (mixture.SNAPSHOT, mixture.REFERENCE, mixture.SNAPSHOT)
  sets = {'snapshot': parameter_sets.snapshot(refresh_every)}
  return pairwise.make_algorithm(
    policy, mixtures, payoff_fn, mixture.SNAPSHOT, loss, num_samples, sets
  )


def stackelberg(
  policy: Policy,
  preference_fn: PreferenceFn,
  *,
  second_turn: SecondTurn,
  tau: NonNegative,
  tau_follower: Positive,
  follower_weight: float = 5.0,
  num_samples: Count = 1,
) -> Algorithm:
  """A leader, and a follower who reads its response before it answers: one network, two prompts.

  max_π min_ω E[P(y ≻ y') + τ_F KL(ω‖ω_ref)] − τ KL(π‖μ), y' ~ ω(·|x, y); ω_ref is μ at the second prompt. Policy gradients of both,
  the follower's weighted so that it keeps up.

  Args:
    policy, preference_fn, tau, num_samples: as everywhere; the k responses to a prompt are answered once each.
    second_turn: of `models.second_turn`.
    tau_follower: τ_F > 0: the smaller, the more V(y) is what y is worth against the worst answer.
    follower_weight: of the follower's loss.

  Source: arXiv:2512.16626; the game as notes on it have it, both gradients derived.
  """
  for name, value in [
    ('tau', tau),
    ('tau_follower', tau_follower),
    ('follower_weight', follower_weight),
  ]:
    _check_positive(name, value)
  return two_turns.make_algorithm(
    policy, preference_fn, second_turn, tau, tau_follower, follower_weight, num_samples
  )


def dpo(policy: Policy, *, tau: Positive) -> Algorithm:
  """Direct preference optimisation on comparisons as they were read; the offline baseline. τ is its paper's β.

  Source: Rafailov et al. (2023), arXiv:2305.18290.
  """
  _check_positive('tau', tau)

  def sample(params: PolicyParams, batch: Comparison, rng: PRNGKey) -> Pair:
    del rng
    responses = batch.prompts, batch.response, batch.alternative
    reference_logp = pairwise.pair_logp(policy, params.named('reference'), *responses)
    payoff = jnp.stack([batch.preference, 1 - batch.preference], axis=-1)
    return Pair(*responses, None, reference_logp, reference_logp, payoff)

  def loss(params: Params, batch: Pair) -> Losses:
    logp = pairwise.pair_logp(policy, params, batch.prompts, batch.response, batch.alternative)
    return losses.logistic_difference_loss(logp - batch.anchor_logp, batch.payoff[:, 0], scale=tau)

  sets = {'reference': parameter_sets.reference()}
  return Algorithm(
    policy.init,
    sample,
    _as_sampled,
    loss,
    sets,
    reads=Comparison,
    anchor=mixture.REFERENCE,
    fixed_point=FixedPoint(tau, None),
  )


def _as_read(params: PolicyParams, batch: Batch, rng: PRNGKey) -> Batch:
  """Supervised methods learn from the batch as it was read."""
  del params, rng
  return batch


def _as_sampled(batch: Batch) -> Batch:
  return batch


def _check_positive(name: str, value: float) -> None:
  if not value > 0:
    raise ValueError(f'{name} must be positive, got {value}.')


def _check_eta(eta: float, tau: float) -> None:
  _check_positive('tau', tau)
  if eta < tau:
    raise ValueError(f'eta must be at least tau: got eta = {eta}, tau = {tau}.')
