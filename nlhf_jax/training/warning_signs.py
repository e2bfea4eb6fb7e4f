"""Signs in a run's metrics that something is wrong, each told once, in one line: what is seen, since when, why, what to do.

A sign is a pure function of the first line of metrics and of the last few; it must hold in each of these, so that one odd
batch is no sign. What is normal for a method is none: the demo's runs have no warnings.

How far a policy can be from μ: a fixed point π ∝ μ exp(A/τ) has, for payoffs A(y) = P(y ≻ π') in [0, 1],
τ KL(π‖μ) = E_π[A] − τ log E_μ[exp(A/τ)] ≤ E_π[A] − E_μ[A], by Jensen. At a Nash equilibrium (β = 0) the first is
P(π ≻ π) = ½, so that KL ≤ (½ − P(μ ≻ π))/τ ≤ 1/(2τ); against μ (β = 1) the second is ½, with the same end; in between no
more is known than 1/τ. And since KL(π‖μ) = ∫_0^{1/τ} λ Var_λ(A) dλ over the tilts between the two, and a payoff's
variance is at most ¼, KL ≤ 1/(8τ²) too, which is less where τ > ¼. All hold of each prompt, and so of the mean. Against
annotators who are hardest for π no more is known than in between.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from nlhf_jax.types import Algorithm, FixedPoint, Policy

Row = Mapping[str, float | int | None]


class Thresholds(NamedTuple):
  """Where a metric becomes a sign, and why there."""

  # Lines of metrics in a row that must agree.
  lines: int = 3
  # Share of responses cut at the limit. Beyond a tenth the mean payoff is no longer that of responses which end.
  cut: float = 0.1
  # Of the entropy of a response at the start. At a tenth, e^H responses to a prompt have become e^{H/10}: one, mostly.
  entropy: float = 0.1
  # Nats; a policy that starts below has none to lose.
  least_entropy: float = 0.5
  # Times the length at the start, or one over it. Judges have learnt on lengths of the data, and few go as far as this.
  length: float = 2.0
  # Mean P this close to 0 or 1: the advantage is one constant, to this, and its gradient noise.
  preference: float = 0.02
  # Share of pairs without a vote. Those that a judge fails on are no random part: beyond a fifth, the rest is another task.
  votes_missing: float = 0.2


class Method(NamedTuple):
  """What signs depend on besides metrics."""

  # Whether responses are drawn, or read.
  samples: bool
  # Nats that the policy's KL to μ cannot exceed where its method stops; None: not known.
  max_kl: float | None
  # Whether samples are of another distribution than the one that is differentiated.
  truncated: bool


class Sign(NamedTuple):
  """A warning."""

  name: str
  # Updates done when it was seen.
  step: int
  # One line.
  text: str


def method_of(algorithm: Algorithm, model: object) -> Method:
  """What signs need to know of a method."""
  samples = bool(algorithm.mixtures)
  truncated = samples and isinstance(model, Policy) and not model.untruncated
  return Method(samples, max_kl(algorithm.fixed_point), truncated)


def max_kl(point: FixedPoint | None) -> float | None:
  """The greatest KL(π‖μ) of a fixed point, in nats, whatever the preference is; None: rewards have no greatest one."""
  if point is None or point.beta is None or not point.tau > 0:
    return None
  known = point.beta in (0, 1) and point.tau_opponent is None
  difference = 0.5 if known else 1.0
  return min(difference / point.tau, 1 / (8 * point.tau**2))


def at_start(method: Method) -> list[Sign]:
  """Signs that need no metrics."""
  if not method.truncated:
    return []
  text = (
    'step 0: top_k or top_p truncates what is sampled in training (Policy.untruncated is False), while log_prob is that of '
    'the untruncated policy: the gradient is not that of the policy which is judged. Leave top_k at 0 and top_p at 1, and '
    'truncate where you sample from the trained policy.'
  )
  return [Sign('truncated_sampling', 0, text)]


def find(
  first: Row,
  last: Sequence[Row],
  method: Method,
  thresholds: Thresholds = Thresholds(),  # noqa: B008
) -> list[Sign]:
  """The signs in a run's metrics.

  Args:
    first: the first line of metrics: means over the first steps.
    last: the newest lines, the latest at the end; fewer than `thresholds.lines` show nothing.
    method: what they depend on.
    thresholds: where a metric becomes a sign.
  """
  last = last[-thresholds.lines :]
  if len(last) < thresholds.lines:
    return []
  found = []
  for name, describe in _SIGNS.items():
    texts = [describe(first, row, method, thresholds) for row in last]
    if all(texts):
      step = int(last[-1]['step'])
      found.append(Sign(name, step, f'step {step}: {texts[-1]}'))
  return found


class Watch:
  """Looks at each line of metrics as it comes, and tells each sign once."""

  def __init__(self, method: Method, rows: Sequence[Row] = (), known: Sequence[str] = ()):
    """Begins, or goes on.

    Args:
      method: what signs depend on.
      rows: lines that a resumed run has written.
      known: names of the signs that were told.
    """
    self._method, self._known = method, set(known)
    self._first, self._last = (rows[0] if rows else None), list(rows[-Thresholds().lines :])

  def start(self) -> list[Sign]:
    """The new signs before the first step."""
    return self._new(at_start(self._method))

  def look(self, step: int, values: Mapping[str, float]) -> list[Sign]:
    """The new signs of a line of metrics."""
    row = {'step': step} | {k: x if math.isfinite(x) else None for k, x in values.items()}
    self._first = self._first or row
    self._last = [*self._last, row][-Thresholds().lines :]
    return self._new(find(self._first, self._last, self._method))

  def _new(self, signs: Sequence[Sign]) -> list[Sign]:
    new = [sign for sign in signs if sign.name not in self._known]
    self._known |= {sign.name for sign in new}
    return new


def tell(signs: Sequence[Sign], text: Callable[[int, str, str], None]) -> None:
  """Logs signs, and hands them to a writer's `text`."""
  for sign in signs:
    logging.warning('%s', sign.text)
    text(sign.step, sign.name, sign.text)


# What a sign says of a line of metrics; None: nothing.
_Describe = Callable[[Row, Row, Method, Thresholds], str | None]


def _cut(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  ended = row.get('eos_rate')
  if ended is None or 1 - ended <= thresholds.cut:
    return None
  if not method.samples:
    return (
      f'{1 - ended:.0%} of the responses in the data are cut at response_length: a model of them does not learn how they end. '
      'Raise response_length, or leave long ones out.'
    )
  return (
    f'{1 - ended:.0%} of the responses are cut at max_length: the judge reads them unfinished, and their length is the '
    "limit's. Raise max_length and response_length, or start from a policy that was taught to end (SFT)."
  )


def _kl(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  kl = row.get('kl_to_reference')
  if kl is None or method.max_kl is None or kl <= method.max_kl:
    return None
  return (
    f'the KL to the reference is {kl:.3g} nats, and no fixed point of this method has more than {method.max_kl:.3g}, '
    'whatever the judge says: the regularisation does not hold the policy. Lower the learning rate or num_updates, raise '
    'num_samples, or raise tau.'
  )


def _entropy(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  start, now = first.get('entropy'), row.get('entropy')
  if start is None or now is None or start < thresholds.least_entropy:
    return None
  if now >= thresholds.entropy * start:
    return None
  return (
    f'the entropy of a response is {now:.3g} nats, {now / start:.0%} of the {start:.3g} at the start: samples of a prompt '
    'are nearly all the same, and have nothing to teach each other. Raise tau, or lower the learning rate; if this is the '
    'equilibrium you want, stop here.'
  )


def _length(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  start, now = first.get('response_length'), row.get('response_length')
  if not method.samples or not start or not now:
    return None
  if 1 / thresholds.length <= now / start <= thresholds.length:
    return None
  return (
    f'responses have {now:.3g} tokens, {now / start:.2g} times the {start:.3g} at the start: judges tend to prefer a length, '
    'and this one reads lengths that it may never have learnt on. Compare with win rates at equal length, have the judge see '
    'such lengths, or raise tau.'
  )


def _preference(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  p = row.get('preference')
  if p is None or thresholds.preference <= p <= 1 - thresholds.preference:
    return None
  return (
    f'the policy is preferred with probability {p:.3f}: every response is worth the same, and hardly a gradient is left. '
    'Look at the pairs in votes.jsonl; soften the judge, or play against a stronger opponent (beta nearer 0, self_play, '
    'nash_ema_pg).'
  )


def _votes_missing(first: Row, row: Row, method: Method, thresholds: Thresholds) -> str | None:
  share = row.get('votes_missing')
  if share is None or share <= thresholds.votes_missing:
    return None
  return (
    f'the judge gives no vote on {share:.0%} of the pairs: what it can judge is no random part, and the policy learns from '
    "that alone. Read the judge's errors, and give it more time, more retries or a simpler template."
  )


_SIGNS: dict[str, _Describe] = {
  'responses_cut': _cut,
  'kl_beyond_fixed_point': _kl,
  'entropy_collapse': _entropy,
  'length_drift': _length,
  'preference_stuck': _preference,
  'votes_missing': _votes_missing,
}
