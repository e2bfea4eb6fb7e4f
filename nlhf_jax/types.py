"""What passes between rooms: named tuples of arrays, and of pure functions.

Axes: B prompts, S prompt tokens, N responses (N = B·k: rows i·k … i·k + k − 1 answer prompt i), T response tokens,
V vocabulary, Y enumerated responses (tabular).

Symbols: x prompt, y response, y' alternative, π_θ policy, μ reference, P(y ≻ y'|x) preference in [0, 1]. Log-probs
are in nats. Token 0 is padding, and T5's start of decoding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

Params = Any  # A pytree of arrays.
PRNGKey = jax.Array


class Prompts(NamedTuple):
  """A batch of prompts x."""

  tokens: Int[Array, 'B S']  # 0 after the end.
  index: Int[
    Array, 'B'
  ]  # Number of the example in its task: the row of exact tables; −1 where there is none.


class Rollout(NamedTuple):
  """Responses, sampled or read, k to a prompt."""

  tokens: Int[Array, 'N T']  # 0 after EOS.
  mask: Bool[Array, 'N T']  # True up to and including EOS.
  token_logp: Float[Array, 'N T'] | None = (
    None  # Under the distribution that sampled it; 0 after EOS. None: read.
  )


class Demonstration(NamedTuple):
  """A prompt and a response to imitate."""

  prompts: Prompts
  response: Rollout


class Comparison(NamedTuple):
  """Two responses to one prompt, and how they compare."""

  prompts: Prompts
  response: Rollout  # y
  alternative: Rollout  # y'
  preference: Float[Array, 'N'] | None = (
    None  # P(y ≻ y'|x), or the share of votes for y; None: not judged yet.
  )
  reference_token_logp: Float[Array, 'N T'] | None = None  # log μ(y_t|x, y_<t) of the response.
  anchor_token_logp: Float[Array, 'N T'] | None = (
    None  # Of what the KL is measured against; None: μ.
  )


class Contrast(NamedTuple):
  """Two responses to one prompt, what their probabilities are measured against, and what each is worth."""

  prompts: Prompts
  response: Rollout  # y
  alternative: Rollout  # y'
  opponent: Rollout | None  # y'', whom both are judged against; None: each other.
  reference_logp: Float[Array, 'N 2']  # log μ of y and of y'.
  anchor_logp: Float[Array, 'N 2']  # Log-probs, under the anchor, of y and of y'.
  payoff: Float[Array, 'N 2'] | None = None  # In [0, 1], of y and of y'; None: not judged yet.


class Scored(NamedTuple):
  """One response to a prompt, and its reward."""

  prompts: Prompts
  response: Rollout
  reward: Float[Array, 'N'] | None = None  # r(x, y); None: not judged yet.
  reference_token_logp: Float[Array, 'N T'] | None = None
  payoff: Float[Array, 'N'] | None = None  # Reward less baseline.


class PolicyParams(NamedTuple):
  """The parameter sets of one run; a method plays mixtures of their policies."""

  online: Params  # θ: differentiated.
  ema: Params | None  # θ̄: exponential moving average of θ. None: not kept.
  reference: Params | None  # μ: frozen. None: the method has no reference.
  past: Params | None = (
    None  # π_t: θ as it was at the last refresh. None: the method looks at none.
  )
  half: Params | None = None  # θ after this step's half-step; not kept between steps.
  # Frozen weights beneath adapters: the sets above are then adapters, and the reference is the base without any.
  # None: there are no adapters.
  base: Params | None = None


class Adapted(NamedTuple):
  """Weights with adapters on them: what a model of `lora.adapt` takes for its parameters."""

  base: Params
  adapters: Params | None  # None: they are off.


class TrainState(NamedTuple):
  """All that a resumed run needs, apart from its configuration."""

  step: Int[Array, '']
  params: PolicyParams
  opt_state: Any
  rng: PRNGKey


class Enumeration(NamedTuple):
  """All responses of a task where they are few enough to play every one, and annotators' scores of them."""

  responses: Int[Array, 'Y T']  # The same for every prompt.
  scores: Float[Array, 'B K Y']  # Higher is better; −inf: no response to this prompt.


class Losses(NamedTuple):
  """A loss as a weighted mean over the batch, so that N microbatches add up to one batch: Σ value / Σ weight."""

  value: Float[Array, 'M']  # Per row.
  weight: Float[Array, 'M']  # Per row, ≥ 0; must not depend on the parameters.
  metrics: dict[str, Float[Array, 'M']]  # Per row; reported as plain means.


# P(y ≻ y'|x) for N pairs of responses to B prompts, in [0, 1]. Arguments: prompts, y [N, T], y' [N, T]. A learned
# model, a reward difference, an exact table, a rule or an external judge. It compiles itself, or runs on the host.
PreferenceFn = Callable[[Prompts, Int[Array, 'N T'], Int[Array, 'N T']], Float[Array, 'N']]

# r(x, y) for N responses to B prompts. Arguments: prompts, y [N, T].
RewardFn = Callable[[Prompts, Int[Array, 'N T']], Float[Array, 'N']]

# A player of the game: the weight of each parameter set in a geometric mixture. {'online': 1 − β, 'reference': β}
# is π_θ^{1−β} μ^β. Weights are positive and add up to 1.
Player = dict[str, float]


class Policy(NamedTuple):
  """π_θ(y|x) as pure functions."""

  init: Callable[[PRNGKey], Params]
  log_prob: Callable[
    [Params, Prompts, Int[Array, 'N T']], Float[Array, 'N T']
  ]  # Per token; 0 after EOS.
  sample: Callable[..., Rollout]  # (params, prompts, rng, num_samples=1)
  play: Callable[
    ..., tuple[Rollout, ...]
  ]  # (policy_params, players, prompts, rng, num_samples=1), in one loop.
  # Whether samples are drawn from the whole distribution, so that their `token_logp` is what `log_prob` would say.
  whole: bool = True
  # Names of the axes of its parameters: () -> a tree like that of `init` (`networks.axes`). None: they are never cut.
  axes: Callable[[], Any] | None = None


class Algorithm(NamedTuple):
  """A method: three functions that the training loop calls, and times, in this order; and what else it asks of it."""

  init: Callable[[PRNGKey], Params]
  sample: Callable[[PolicyParams, Any, PRNGKey], Any]  # Batch in, rollouts out. Compiled.
  judge: Callable[[Any], Any]  # Fills in the preference; may run on the host.
  loss: Callable[[Params, Any], Losses]  # Differentiated in its first argument. Compiled.
  plays: frozenset[str] = frozenset()  # Parameter sets besides 'online' that it needs.
  # Before each update, another one on these rollouts, from the same parameters and optimizer state: it makes the set
  # 'half', for `sample` to play, and is then forgotten. None: there is but one update.
  half_step: Callable[[PolicyParams, Any, PRNGKey], Any] | None = None
  refresh_every: int | None = None  # Updates between two moves of the set 'past' to θ.
  reads: type = Prompts  # What its batches are: Prompts, Demonstration or Comparison.
