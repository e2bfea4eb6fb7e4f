"""Pure losses: they see log-probs, logits and preferences, never parameters.

A loss returns one value per row; the training loop adds rows up and divides by their weights. Symbols: π_θ policy,
μ reference, P preference in [0, 1], τ strength of the KL regularisation in preference units per nat.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nlhf_jax.arguments import NonNegative, Positive
from nlhf_jax.types import Losses


def cross_entropy_loss(token_logp: Float[Array, 'N T'], mask: Bool[Array, 'N T']) -> Losses:
  """Maximum likelihood of a response: −Σ_t log π_θ(y_t|x, y_<t), averaged over tokens.

  Args:
    token_logp: log-probs of the response's tokens, in nats; differentiated.
    mask: True where a token counts.
  """
  value = -jnp.sum(token_logp * mask, axis=-1)
  num_tokens = jnp.sum(mask, axis=-1).astype(value.dtype)
  return Losses(value, num_tokens, {'nats_per_token': value / jnp.maximum(num_tokens, 1)})


def pairwise_loss(logit: Float[Array, 'N'], preference: Float[Array, 'N']) -> Losses:
  """Cross-entropy of a pairwise judgement: −p log σ(z) − (1 − p) log σ(−z).

  With z a preference model's logit this is NLHF's −E log P(y_w ≻ y_l|x); with z = r(x, y) − r(x, y') it is
  Bradley-Terry. Soft labels are for voters who disagree.

  Args:
    logit: z, the log-odds that y is preferred; differentiated.
    preference: p, the share of votes for y, in [0, 1].

  Source: Munos et al. (2024), arXiv:2312.00886, section 3.1 (rewards) and 3.2 (preferences).
  """
  value = -preference * jax.nn.log_sigmoid(logit) - (1 - preference) * jax.nn.log_sigmoid(-logit)
  # A tie is neither right nor wrong: it counts half.
  right = 0.5 + 0.5 * jnp.sign(logit) * jnp.sign(preference - 0.5)
  return Losses(value, jnp.ones_like(value), {'log_loss': value, 'accuracy': right})


@runtime_checkable
class Reuse(Protocol):
  """What is maximised on responses of an earlier policy, per token; at that policy its gradient is the usual one."""

  def __call__(
    self,
    log_ratio: Float[Array, 'N T'],
    token_logp: Float[Array, 'N T'],
    token_advantage: Float[Array, 'N T'],
  ) -> Float[Array, 'N T']: ...


def exact_ratio() -> Reuse:
  """Each response counts π_θ(y|x)/π_b(y|x), π_b who drew it: unbiased, of a variance that grows with length and distance."""

  def terms(log_ratio, token_logp, token_advantage):
    weight = jnp.exp(jnp.sum(log_ratio, axis=-1, keepdims=True))
    return jax.lax.stop_gradient(weight) * token_advantage * token_logp

  return terms


def clipped_ratio(epsilon: Positive = 0.2) -> Reuse:
  """PPO's min(ρ A, clip(ρ, 1 ± ε) A) of each token: biased, and a trust region, since no token gains from going further.

  Args:
    epsilon: ε > 0.

  Raises:
    ValueError: ε is not positive.

  Source: Schulman et al. (2017), arXiv:1707.06347, eq. 7.
  """
  if not epsilon > 0:
    raise ValueError(f'epsilon must be positive, got {epsilon}.')

  def terms(log_ratio, token_logp, token_advantage):
    del token_logp
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
    return jnp.minimum(ratio * token_advantage, clipped * token_advantage)

  return terms


def policy_gradient_loss(
  token_logp: Float[Array, 'N T'],
  anchor_token_logp: Float[Array, 'N T'],
  advantage: Float[Array, 'N'],
  mask: Bool[Array, 'N T'],
  *,
  tau: NonNegative,
  group: int = 1,
  behaviour_token_logp: Float[Array, 'N T'] | None = None,
  reuse: Reuse | None = None,
  counted: Bool[Array, 'N'] | None = None,
) -> Losses:
  """Score-function loss of the regularised game.

  Its gradient is an unbiased estimate of −∇_θ E_{y ~ π_θ}[advantage(y) − τ log(π_θ(y)/π_a(y))], with π_a the anchor, which
  is μ for most methods. With the advantage P(y ≻ y'|x) − 1/2 and y' ~ π' it ascends P(π_θ ≻ π') − τ KL(π_θ ‖ π_a), and the
  choice of π' names the algorithm. With R(x, y) less a baseline it is RLHF. A token answers for the KL of itself and of what
  follows (reward-to-go): tokens before it cannot depend on it, so leaving them out costs no bias and saves variance. The
  mean of the same over the other responses to the prompt is its baseline: at the fixed point, where the advantage less
  τ log(π_θ/π_a) is one constant, little variance is left.

  Args:
    token_logp: log π_θ(y_t|x, y_<t) in nats; differentiated.
    anchor_token_logp: log π_a(y_t|x, y_<t) in nats, up to a constant; held constant.
    advantage: payoff of the complete response less a baseline that does not depend on it; held constant.
    mask: True up to and including EOS.
    tau: τ ≥ 0, in units of payoff per nat.
    group: consecutive rows that answer one prompt.
    behaviour_token_logp: log-probs of the policy that drew the responses, where that is not π_θ itself any more.
    reuse: what makes up for that; None: π_θ drew them.
    counted: rows that count, here and in the baselines of others; None: all do. The advantage of the rest must be finite.

  Source: Munos et al. (2024), arXiv:2312.00886, eq. 13 (preference) and eq. 16 (reward).
  """
  log_ratio = jnp.where(mask, token_logp - anchor_token_logp, 0)
  if counted is not None:
    log_ratio = jnp.where(counted[:, None], log_ratio, 0)
  kl_to_go = leave_one_out(jnp.cumsum(log_ratio[:, ::-1], axis=-1)[:, ::-1], group, counted)
  token_advantage = jax.lax.stop_gradient(advantage[:, None] - tau * kl_to_go)
  if reuse is None:
    terms = token_advantage * token_logp
  else:
    log_ratio = jnp.where(mask, token_logp - behaviour_token_logp, 0)
    terms = reuse(log_ratio, token_logp, token_advantage)
  value = -jnp.sum(jnp.where(mask, terms, 0), axis=-1)
  entropy = -jnp.sum(jnp.where(mask, token_logp, 0), axis=-1)
  result = Losses(value, jnp.ones_like(value), {'entropy': entropy})
  return result if counted is None else weigh(result, counted)


def weigh(result: Losses, counted: Bool[Array, 'M']) -> Losses:
  """The loss over some of the rows: the others weigh nothing. Their inputs must be finite. Metrics stay as they are."""
  keep = lambda x: jnp.where(counted, x, 0)
  return result._replace(value=keep(result.value), weight=keep(result.weight))


def leave_one_out(
  payoff: Float[Array, 'N *features'], group: int, counted: Bool[Array, 'N'] | None = None
) -> Float[Array, 'N *features']:
  """The payoff less the mean of the others in a group of consecutive rows: a baseline that its own sample cannot move.

  Unbiased where others' payoffs do not depend on the row itself, and of lower variance than with a constant. A group of one
  has no others: its payoff is returned as it is.

  Args:
    payoff: of each row, finite.
    group: rows in a group.
    counted: the others whose mean is taken; None: all. Where none of them counts it is the mean of all: the payoff of a row
      that does not count is what a row is compared with that has no others.
  """
  if group == 1:
    return payoff
  rows = payoff.reshape(-1, group, *payoff.shape[1:])
  others = (jnp.sum(rows, axis=1, keepdims=True) - rows) / (group - 1)
  if counted is not None:
    share = counted.reshape(*rows.shape[:2], *(1,) * (rows.ndim - 2)).astype(rows.dtype)
    number, among = (jnp.sum(x, axis=1, keepdims=True) - x for x in (share, rows * share))
    others = jnp.where(number > 0, among / jnp.maximum(number, 1), others)
  return (rows - others).reshape(payoff.shape)


def hardest_preference(
  preference: Float[Array, 'B k m U'], log_weight: Float[Array, 'B m U'], *, tau: float
) -> tuple[Float[Array, 'B k'], Float[Array, 'B k']]:
  """Payoffs against the annotators and opponents that are hardest for the policy, and their baselines.

  Response i is judged by σ(u, j) ∝ exp(log_weight(u, j) − P̄_u(j)/τ), P̄_u(j) the mean of P_u(y_l ≻ y'_j) over the other
  responses l ≠ i: what the mirror step of σ ends in, estimated. Its payoff is E_σ P_u(y_i ≻ y'_j), the baseline E_σ P̄_u(j).
  Neither σ nor the baseline depends on y_i, so that a bias is σ's alone: of O(1/k + 1/m), and greater the smaller τ is. The
  baseline is too low, for σ is where the others happen to do badly: by as much for every y_i, which no gradient has.

  Args:
    preference: P_u(y_i ≻ y'_j); NaN: no vote, which does not count.
    log_weight: log w_u, and log μ(y'_j) less the log-prob of whoever drew y'_j; up to a constant.
    tau: τ' > 0, in preference units per nat.

  Returns:
    Both; NaN where no vote on a response, and on another of its prompt, is.
  """
  voted = ~jnp.isnan(preference)
  p = jnp.where(voted, preference, 0)
  number = jnp.sum(voted, axis=1, keepdims=True) - voted
  others = (jnp.sum(p, axis=1, keepdims=True) - p) / jnp.maximum(number, 1)
  logits = jnp.where(voted & (number > 0), log_weight[:, None] - others / tau, -jnp.inf)
  top = jnp.max(logits, axis=(2, 3), keepdims=True)
  sigma = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
  total = jnp.sum(sigma, axis=(2, 3))
  expected = lambda x: jnp.where(
    total > 0, jnp.sum(sigma * x, axis=(2, 3)) / jnp.where(total > 0, total, 1), jnp.nan
  )
  return expected(p), expected(others)


def divide_by_deviation(
  advantage: Float[Array, 'N'],
  payoff: Float[Array, 'N'],
  group: int,
  epsilon: float,
  counted: Bool[Array, 'N'] | None = None,
) -> Float[Array, 'N']:
  """The advantage over the standard deviation of the group's payoffs, plus ε: what GRPO does.

  It moves the fixed point, since what it divides by depends on the row itself, and is not what the KL is divided by. In groups of
  two, judged against each other, the advantage is the sign of P(y ≻ y') − ½: self-play ends at the equilibrium of the majority
  game at τ/2. In large groups it ends at π*_t, t = τ(σ + ε), with σ the standard deviation of P(y ≻ π) over y ~ π: as
  responses come to be worth the same, the KL counts for less and less.

  Args:
    advantage: of each row.
    payoff: the same, before a baseline is taken off; finite.
    group: consecutive rows that answer one prompt; at least 2.
    epsilon: ε > 0, in units of payoff.
    counted: rows whose payoffs have a deviation; None: all. A group with fewer than two keeps its advantages over ε.

  Source: Shao et al. (2024), arXiv:2402.03300 (GRPO), for a reward.
  """
  rows = payoff.reshape(-1, group)
  weight = (
    jnp.ones_like(rows) if counted is None else counted.reshape(rows.shape).astype(rows.dtype)
  )
  number = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1)
  centred = rows - jnp.sum(rows * weight, axis=1, keepdims=True) / number
  variance = jnp.sum(jnp.square(centred) * weight, axis=1, keepdims=True) / number
  return (advantage.reshape(rows.shape) / (jnp.sqrt(variance) + epsilon)).reshape(-1)


def kl_to_reference(
  token_logp: Float[Array, 'N T'],
  reference_token_logp: Float[Array, 'N T'],
  mask: Bool[Array, 'N T'],
) -> Float[Array, 'N']:
  """log(π_θ(y|x)/μ(y|x)) in nats: of samples of π_θ, unbiased estimates of KL(π_θ‖μ)."""
  return jnp.sum(jnp.where(mask, token_logp - reference_token_logp, 0), axis=-1)


def squared_difference_loss(
  log_ratio: Float[Array, 'N 2'], payoff: Float[Array, 'N 2'], *, tau: float
) -> Losses:
  """(Δ log-ratio − Δ payoff/τ)²: the log-ratio of y less that of y' is to be their difference in payoff.

  With payoffs (P(y ≻ y'), 1/2) it is IPO's E[(h(y⁺, y⁻) − 1/(2τ))²] after the vote is averaged out, up to a constant.

  Args:
    log_ratio: log π_θ − log anchor, of y and of y', in nats; differentiated.
    payoff: of both, in [0, 1].
    tau: τ > 0, in units of payoff per nat.

  Source: Azar et al. (2023), arXiv:2310.12036, eq. 17.
  """
  value = jnp.square(_difference(log_ratio) - _difference(payoff) / tau)
  return Losses(value, jnp.ones_like(value), {})


def squared_payoff_loss(
  log_ratio: Float[Array, 'N 2'], payoff: Float[Array, 'N 2'], *, eta: float
) -> Losses:
  """½ Σ_{y, y'} (log-ratio − η (payoff − ½))²: SPPO, each response by itself.

  Args:
    log_ratio: log π_θ − log π_t, of y and of y', in nats; differentiated.
    payoff: P(y ≻ π_t) and P(y' ≻ π_t).
    eta: η > 0, in nats per unit of payoff.

  Source: Wu et al. (2024), arXiv:2405.00675, eq. 4.5.
  """
  value = 0.5 * jnp.sum(jnp.square(log_ratio - eta * (payoff - 0.5)), axis=-1)
  return Losses(value, jnp.ones_like(value), {})


def forward_kl_loss(
  log_ratio: Float[Array, 'N 2'], payoff: Float[Array, 'N 2'], *, tau: float, eta: float
) -> Losses:
  """(log-ratio of y − η (P(y ≻ π_t) − ½))² − 2ητ log-ratio of y', with y ~ π_t and y' ~ μ: RSPO under KL(μ‖π).

  The second term is 2ητ KL(μ‖π) up to a constant, by samples of μ.

  Args:
    log_ratio: log π_θ − log π_t, of y and of y', in nats; differentiated.
    payoff: P(y ≻ π_t); that of y' is not read.
    tau: τ > 0, in units of payoff per nat.
    eta: η > 0, in nats per unit of payoff.

  Source: Tang et al. (2025), arXiv:2503.00030: SPPO's square, and a regulariser; how the two are scaled is ours.
  """
  fit = jnp.square(log_ratio[:, 0] - eta * (payoff[:, 0] - 0.5))
  value = fit - 2 * eta * tau * log_ratio[:, 1]
  return Losses(value, jnp.ones_like(value), {})


def logistic_difference_loss(
  log_ratio: Float[Array, 'N 2'], preference: Float[Array, 'N'], *, scale: float
) -> Losses:
  """Cross-entropy of `scale` · Δ log-ratio as log-odds that y is preferred: DPO, and DNO's step.

  Args:
    log_ratio: log π_θ − log anchor, of y and of y', in nats; differentiated.
    preference: the label, in [0, 1].
    scale: > 0.

  Source: Rafailov et al. (2023), arXiv:2305.18290, eq. 7; Rosset et al. (2024), arXiv:2404.03715, algorithm 1.
  """
  return pairwise_loss(scale * _difference(log_ratio), preference)


def _difference(pair: Float[Array, 'N 2']) -> Float[Array, 'N']:
  return pair[:, 0] - pair[:, 1]
