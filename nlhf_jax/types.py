"""What passes between rooms: named tuples of arrays, and of pure functions.

Axes: B prompts, S prompt tokens, N responses (N = B·k: rows i·k … i·k + k − 1 answer prompt i), T response tokens,
V vocabulary, Y enumerated responses (tabular).

Symbols: x prompt, y response, y' alternative, π_θ policy, μ reference, P(y ≻ y'|x) preference in [0, 1]. Log-probs
are in nats. In every vocabulary token 0 is padding, and what decoders start from, and token 1 ends a response. Batches that
were read hold arrays of NumPy until the loop shards them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PAD = 0
EOS = 1

# A pytree of arrays.
Params = Any
PRNGKey = jax.Array
# A batch, and what is made of it: Prompts, Demonstration, Comparison, Pair or Scored.
Batch = Any


class Prompts(NamedTuple):
  """A batch of prompts x."""

  # PAD after the end.
  tokens: Int[Array, 'B S']
  # Number of the example in its task: the row of exact tables; −1 where there is none.
  index: Int[Array, 'B']  # type: ignore[assignment]


class Rollout(NamedTuple):
  """Responses, sampled or read, k to a prompt."""

  # PAD after EOS.
  tokens: Int[Array, 'N T']
  # True up to and including EOS.
  mask: Bool[Array, 'N T']
  # Under the distribution that it was sampled from; 0 after EOS. None: it was read.
  token_logp: Float[Array, 'N T'] | None = None


class Demonstration(NamedTuple):
  """A prompt and a response to imitate."""

  prompts: Prompts
  response: Rollout


class Comparison(NamedTuple):
  """Two responses to one prompt, and how they compare."""

  prompts: Prompts
  # y
  response: Rollout
  # y'
  alternative: Rollout
  # P(y ≻ y'|x), or the share of votes for y; NaN: the judge gave no vote; None: not judged yet.
  preference: Float[Array, 'N'] | None = None
  # log μ(y_t|x, y_<t) of the response.
  reference_token_logp: Float[Array, 'N T'] | None = None
  # The same of the anchor, what the KL is measured against; None: it is μ.
  anchor_token_logp: Float[Array, 'N T'] | None = None
  # Share of the pairs behind the preference that have no vote; None: all have one, as far as is known.
  votes_missing: Float[Array, 'N'] | None = None
  # P of y over each of the m alternatives that the preference is the mean of, for those who read rollouts; None: of one alone.
  pair_preference: Float[Array, 'N m'] | None = None
  # log μ(y') less the log-prob of whoever drew y', where y' stands for samples of μ; None: it does not, or μ drew it.
  alternative_log_weight: Float[Array, 'N'] | None = None
  # The preference less its baseline; None: the loss has one of its own.
  advantage: Float[Array, 'N'] | None = None
  # Whose vote the preference is, by number; −1: not known. None: it is nobody's, such as a share of votes.
  voter: Int[Array, 'N'] | None = None
  # log μ(y'_t|x, y, y'_<t) of an alternative that was written in sight of the response; None: it was not.
  alternative_reference_token_logp: Float[Array, 'N T'] | None = None


class Pair(NamedTuple):
  """Two responses to one prompt, what their probabilities are measured against, and what each is worth."""

  prompts: Prompts
  # y
  response: Rollout
  # y'
  alternative: Rollout
  # y'', whom both are judged against; None: each other.
  opponent: Rollout | None
  # log μ of y and of y'.
  reference_logp: Float[Array, 'N 2']
  # Log-probs, under the anchor, of y and of y'.
  anchor_logp: Float[Array, 'N 2']
  # In [0, 1], of y and of y', or of y and of each of the m alternatives that it is paired with; NaN: the judge gave no vote;
  # None: not judged yet.
  payoff: Float[Array, 'N *m 2'] | None = None
  # Share of these pairs that lack a payoff; None: none does, as far as is known.
  votes_missing: Float[Array, 'N'] | None = None


class Scored(NamedTuple):
  """One response to a prompt, and its reward."""

  prompts: Prompts
  response: Rollout
  # r(x, y); None: not scored yet.
  reward: Float[Array, 'N'] | None = None
  reference_token_logp: Float[Array, 'N T'] | None = None
  # The reward less its baseline.
  advantage: Float[Array, 'N'] | None = None
  # 1 where there is no reward; None: all are there.
  votes_missing: Float[Array, 'N'] | None = None


class PolicyParams(NamedTuple):
  """The parameter sets of one run; a method plays mixtures of their policies."""

  # θ: differentiated.
  online: Params
  # The others by name, as `Algorithm.sets` declares them: 'reference' is μ, 'average' θ̄, 'snapshot' π_t.
  sets: Mapping[str, Params] = {}
  # Frozen weights beneath adapters: the sets above are then adapters, and a frozen reference is the base without any.
  # None: there are no adapters.
  base: Params | None = None

  def named(self, name: str) -> Params:
    """One of the sets; 'ring.2' is the third member of the ring.

    Raises:
      KeyError, IndexError: there is no such set, or no such member.
    """
    if name == 'online':
      return self.online
    name, _, member = name.partition('.')
    return self.sets[name][int(member)] if member else self.sets[name]


class ParameterSet(NamedTuple):
  """A parameter set besides θ, as data: where it starts, how it moves, whether it is saved (`training.parameter_sets`)."""

  # (the set, θ after the update, updates done) -> the set; traced. None: it never moves.
  move: Callable[[Params, Params, Int[Array, '']], Params] | None = None
  # θ at the start of the run -> the set. None: the run is given the set, as it is given μ.
  start: Callable[[Params], Params] | None = None
  # Whether checkpoints hold it; a set that is given and never moves another run holds.
  saved: bool = True
  # Whether it lives within a step alone: θ after an update that is then forgotten.
  half_step: bool = False


class Adapted(NamedTuple):
  """Weights with adapters on them: what a model of `lora.adapt` takes for its parameters."""

  base: Params
  # None: they are off.
  adapters: Params | None


class VoterNames(NamedTuple):
  """Who votes, by the numbers that comparisons have."""

  names: tuple[str, ...] = ()
  # How many of them, the first, voted in training.
  num_training: int = 0


# Votes do not say who voted.
NO_VOTERS = VoterNames()


class TrainState(NamedTuple):
  """All that a resumed run needs, apart from its configuration."""

  # Updates done.
  step: Int[Array, '']
  params: PolicyParams
  opt_state: Any
  rng: PRNGKey


class Enumeration(NamedTuple):
  """All responses of a task where they are few enough to play every one, and annotators' scores of them."""

  responses: Int[np.ndarray, 'B Y T']
  # Higher is better; −inf: no response to this prompt.
  scores: Float[np.ndarray, 'B K Y']


class Losses(NamedTuple):
  """A loss as a weighted mean over the batch, so that N microbatches add up to one batch: Σ value / Σ weight."""

  # Per row.
  value: Float[Array, 'M']
  # Per row, ≥ 0; must not depend on the parameters.
  weight: Float[Array, 'M']
  # Per row; reported as plain means.
  metrics: dict[str, Float[Array, 'M']]
  # Rows that have a metric, by its name; all, where it is not named: the mean is over these.
  counted: Mapping[str, Bool[Array, 'M']] = {}


# A prompt for raters in token ids, without EOS: the pieces around the text and each of the responses that they read.
Template = tuple[tuple[int, ...], ...]

# Who plays: the weight of each parameter set in a geometric mixture. {'online': 1 − β, 'reference': β}
# is π_θ^{1−β} μ^β. Weights are positive and add up to 1.
MixtureWeights = Mapping[str, float]


@runtime_checkable
class PreferenceFn(Protocol):
  """A judge: P(y ≻ y'|x) in [0, 1].

  A learned model, a reward difference, an exact table, a rule or an external judge. It compiles itself, or runs on the
  host. NaN is no vote on that pair: training gives it no weight, and evaluation leaves it out.
  """

  def __call__(
    self, prompts: Prompts, response: Int[Array, 'N T'], alternative: Int[Array, 'N T']
  ) -> Float[Array, 'N']: ...


@runtime_checkable
class PreferenceTableFn(Protocol):
  """P(y ≻ y'|x) of each of a prompt's k responses against each of its m alternatives; None: against each other."""

  def __call__(
    self,
    prompts: Prompts,
    responses: Int[Array, 'N T'],
    alternatives: Int[Array, 'M T'] | None = None,
  ) -> Float[Array, 'B k m']: ...


@runtime_checkable
class AnnotatorTableFn(Protocol):
  """P_u(y ≻ y'|x) of each annotator u, of the pairs of a `PreferenceTableFn`; NaN: she gave no vote on that pair."""

  def __call__(
    self,
    prompts: Prompts,
    responses: Int[Array, 'N T'],
    alternatives: Int[Array, 'M T'] | None = None,
  ) -> Float[Array, 'B k m U']: ...


# Data are NumPy's, samples are JAX's.
Responses = Int[Array, 'N T'] | Int[np.ndarray, 'N T']


class AllPairsJudge(NamedTuple):
  """A judge who compares all of a prompt's responses for less than the price of the pairs."""

  pairs: PreferenceFn
  table: PreferenceTableFn
  # The preferences of those it speaks for, apart (`judges.annotators`); None: it speaks for itself.
  annotators: AnnotatorTableFn | None = None

  def __call__(
    self, prompts: Prompts, response: Responses, alternative: Responses
  ) -> Float[Array, 'N']:
    """A `PreferenceFn`."""
    return self.pairs(prompts, response, alternative)  # type: ignore[arg-type]


@runtime_checkable
class RewardFn(Protocol):
  """r(x, y)."""

  def __call__(self, prompts: Prompts, response: Int[Array, 'N T']) -> Float[Array, 'N']: ...


@runtime_checkable
class SecondTurn(Protocol):
  """A prompt for each response: what is read by who answers in sight of it. `models.second_turn` has one."""

  def __call__(self, prompts: Prompts, responses: Int[Array, 'N T']) -> Prompts: ...


@runtime_checkable
class LogProbFn(Protocol):
  """log π(y_t|x, y_<t) per token; 0 after EOS."""

  def __call__(
    self, params: Params, prompts: Prompts, tokens: Int[Array, 'N T']
  ) -> Float[Array, 'N T']: ...


@runtime_checkable
class SampleFn(Protocol):
  """Draws `num_samples` responses to each prompt."""

  def __call__(
    self, params: Params, prompts: Prompts, rng: PRNGKey, num_samples: int = 1
  ) -> Rollout: ...


@runtime_checkable
class PlayFn(Protocol):
  """Draws the responses of several mixtures of parameter sets in one loop, `num_samples` of each to each prompt."""

  def __call__(
    self,
    params: PolicyParams,
    mixtures: Sequence[MixtureWeights],
    prompts: Prompts,
    rng: PRNGKey,
    num_samples: int = 1,
  ) -> tuple[Rollout, ...]: ...


class Policy(NamedTuple):
  """π_θ(y|x) as pure functions."""

  init: Callable[[PRNGKey], Params]
  log_prob: LogProbFn
  sample: SampleFn
  play: PlayFn
  # Whether samples are drawn from the untruncated distribution, so that their `token_logp` is what `log_prob` would say.
  untruncated: bool = True
  # Logical axes of its parameters: () -> a tree like that of `init` (`networks.axes`). None: they are never sharded.
  axes: Callable[[], Any] | None = None


class FixedPoint(NamedTuple):
  """Where a method stops, could it be any policy: π ∝ μ exp(payoff/τ)."""

  tau: float
  # The payoff is P(y ≻ π^{1−β} μ^β): β = 0 is the Nash equilibrium π*_τ, β = 1 the best response to μ. None: it is the
  # Bradley-Terry reward.
  beta: float | None
  # τ': the payoff is E_σ P_u(y ≻ k) over annotators u and responses k, σ ∝ w_u μ(k) exp(−P_u(π ≻ k)/τ')
  # (`games.aggregation`). None: it is that of the annotators' mean.
  tau_opponent: float | None = None
  # w; None: all alike.
  annotator_weights: tuple[float, ...] | None = None


class Algorithm(NamedTuple):
  """A method: three functions that the training loop calls, and times, in this order; and what else it asks of it."""

  init: Callable[[PRNGKey], Params]
  # Batch in, rollouts out. Compiled.
  sample: Callable[[PolicyParams, Batch, PRNGKey], Batch]
  # Fills in preferences or rewards; may run on the host.
  score: Callable[[Batch], Batch]
  # Differentiated in its first argument. Compiled.
  loss: Callable[[Params, Batch], Losses]
  # Parameter sets besides θ.
  sets: Mapping[str, ParameterSet] = {}
  # What its batches are: Prompts, Demonstration or Comparison.
  reads: type = Prompts
  # Who draws y, y' and, if there is a third, y''. Empty: responses are read.
  mixtures: tuple[MixtureWeights, ...] = ()
  # What log-ratios and KLs are measured against. None: nothing.
  anchor: MixtureWeights | None = None
  # Whether a rollout may be trained on after θ has moved.
  reusable: bool = False
  # Whether `score` looks at all prompts of a batch at a time, so that it may not be given parts of it.
  scores_jointly: bool = False
  # None: it stops nowhere, or where no formula says.
  fixed_point: FixedPoint | None = None
