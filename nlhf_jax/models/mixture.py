"""The geometric mixture π_θ^{1−β} μ^β, token by token, and several mixtures decoded in one loop.

A mixture is the weights of parameter sets, {'online': 1 − β, 'reference': β}; a plain policy is a mixture of one. Each
set keeps a cache of its own, over the lanes of just those mixtures that use it: the reference's keys and values are
never the policy's. Lanes are in the order [B, mixtures, k], so that all lanes of a prompt share its prefill.

Source: Munos et al. (2024), arXiv:2312.00886, section 7: log π̃^β(y_t|·) = (1−β) log π_θ + β log μ + C per token.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import decoding
from nlhf_jax.networks.decoding import loop, slots
from nlhf_jax.networks.network import Decoder
from nlhf_jax.types import MixtureWeights, PolicyParams, PRNGKey, Prompts, Rollout

ONLINE: MixtureWeights = {'online': 1.0}
REFERENCE: MixtureWeights = {'reference': 1.0}
AVERAGE: MixtureWeights = {'average': 1.0}
SNAPSHOT: MixtureWeights = {'snapshot': 1.0}
HALF_STEP: MixtureWeights = {'half_step': 1.0}


def between(beta: float) -> MixtureWeights:
  """π_θ^{1−β} μ^β. β = 0 is the policy itself, β = 1 the reference: neither then runs the other network.

  Raises:
    ValueError: β is outside [0, 1].
  """
  if not 0 <= beta <= 1:
    raise ValueError(f'beta must be in [0, 1] (0: self-play, 1: the reference alone), got {beta}.')
  return {name: w for name, w in [('online', 1.0 - beta), ('reference', float(beta))] if w > 0}


def mix_logits(
  logits: Sequence[Float[Array, '*lanes V']], weights: Sequence[float]
) -> Float[Array, '*lanes V']:
  """Logits of Π_m π_m^{w_m}, up to the constant that softmax removes."""
  return sum((w * x for w, x in zip(weights, logits, strict=True)), jnp.float32(0))


def play(
  decoder: Decoder,
  sampling: decoding.Sampling,
  params: PolicyParams,
  mixtures: Sequence[MixtureWeights],
  prompts: Prompts,
  rng: PRNGKey,
  num_samples: int = 1,
) -> tuple[Rollout, ...]:
  """Draws responses of every mixture to every prompt in one decoding loop.

  Each parameter set runs once per step, on the lanes of all mixtures that use it.

  Args:
    decoder: the network's functions.
    sampling: temperature, truncation and length; applied to the mixture, after mixing.
    params: parameter sets, by the names that the mixtures use.
    mixtures: static.
    prompts: B prompts.
    rng: key of this call; lanes split it.
    num_samples: responses k of each mixture to each prompt.

  Returns:
    One rollout per mixture, of N = B·k rows.

  Raises:
    ValueError: weights are not positive or do not add up to 1, or a parameter set is missing.
  """
  _check(mixtures, params)
  table = _Table(tuple(mixtures), num_samples)
  num_prompts, num_lanes = prompts.tokens.shape[0], len(mixtures) * num_samples
  queues = 0 < sampling.num_slots < num_prompts
  capacity = sampling.max_length
  if decoder.grow is not None and not queues:
    capacity = loop.stages(capacity)[0]
  num_slots = sampling.num_slots if queues else num_prompts
  step, encoded, caches = _prepare(decoder, table, params, prompts, num_slots, capacity)
  if queues:
    rollout = slots.sample(step, encoded, caches, num_lanes, rng, sampling)
  else:
    together = lambda caches, tokens: step(encoded, caches, tokens, None)
    grow = decoder.grow and (lambda caches, n: {k: decoder.grow(x, n) for k, x in caches.items()})
    rollout = loop.sample(together, caches, num_prompts * num_lanes, rng, sampling, grow)
  return tuple(
    jax.tree.map(lambda x, number=number: table.lanes(x, [number]), rollout)
    for number in range(len(mixtures))
  )


class _Table(NamedTuple):
  """Which mixtures use which parameter set; all lanes are [B, mixtures, k], those of a set [B, users, k]."""

  mixtures: tuple[MixtureWeights, ...]
  # k
  num_samples: int

  @property
  def users(self) -> dict[str, list[int]]:
    """The numbers of the mixtures that use each set."""
    result: dict[str, list[int]] = {}
    for number, weights in enumerate(self.mixtures):
      for name in weights:
        result.setdefault(name, []).append(number)
    return result

  def lanes(self, x: Array, numbers: list[int]) -> Array:
    """The rows of some mixtures."""
    rows = x.reshape(-1, len(self.mixtures), self.num_samples, *x.shape[1:])
    return rows[:, jnp.array(numbers)].reshape(-1, *x.shape[1:])

  def mix(self, logits: dict[str, Float[Array, 'lanes V']]) -> Float[Array, 'L V']:
    """Mixes the networks' logits, each over its own lanes, into the logits of all lanes."""
    users, k = self.users, self.num_samples
    by_set = {name: x.reshape(-1, len(users[name]), k, x.shape[-1]) for name, x in logits.items()}
    mixed = [
      mix_logits(
        [by_set[name][:, users[name].index(number)] for name in weights], list(weights.values())
      )
      for number, weights in enumerate(self.mixtures)
    ]
    stacked = jnp.stack(mixed, axis=1)  # [B, mixtures, k, V]
    return stacked.reshape(-1, stacked.shape[-1])


def _prepare(
  decoder: Decoder,
  table: _Table,
  params: PolicyParams,
  prompts: Prompts,
  num_slots: int,
  capacity: int,
) -> tuple[slots.Step, dict[str, Any], dict[str, Any]]:
  """A step of all lanes, what it reads of the prompts, and empty caches for `num_slots` prompts; by parameter set."""
  users = table.users
  encoded = {name: decoder.encode(params.named(name), prompts.tokens) for name in users}
  weights, caches = {}, {}
  for name, numbers in users.items():
    lanes = num_slots * len(numbers) * table.num_samples
    weights[name] = decoder.weights(params.named(name), lanes)
    own = jax.tree.map(lambda x: x[:num_slots], encoded[name])
    caches[name] = decoder.empty(weights[name], own, lanes, capacity)

  def step(
    encoded: dict[str, Any],
    caches: dict[str, Any],
    tokens: Int[Array, 'L'],
    positions: Int[Array, 'L'] | None,
  ) -> tuple[Float[Array, 'L V'], dict[str, Any]]:
    logits, new = {}, {}
    for name, numbers in users.items():
      own = lambda x, numbers=numbers: x if x is None else table.lanes(x, numbers)
      inputs = encoded[name], caches[name], own(tokens), own(positions)
      logits[name], new[name] = decoder.step(weights[name], *inputs)
    return table.mix(logits), new

  return step, encoded, caches


def _check(mixtures: Sequence[MixtureWeights], params: PolicyParams) -> None:
  for weights in mixtures:
    if not math.isclose(sum(weights.values()), 1.0) or min(weights.values()) <= 0:
      raise ValueError(f'A mixture needs positive weights that add up to 1, got {dict(weights)}.')
    for name in weights:
      if not _has(params, name):
        known = ', '.join(['online', *sorted(params.sets)])
        raise ValueError(
          f'Mixture {dict(weights)} needs the parameter set {name!r}; this run has {known}.'
        )


def _has(params: PolicyParams, name: str) -> bool:
  try:
    return params.named(name) is not None
  except (KeyError, IndexError):
    return False
