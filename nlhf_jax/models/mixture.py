"""The geometric mixture π_θ^{1−β} μ^β, token by token, and several players decoded in one loop.

A player is a mixture of parameter sets, {'online': 1 − β, 'reference': β}; a plain policy is a mixture of one. Each
set keeps a cache of its own, over the lanes of just those players that use it: the reference's keys and values are
never the policy's. Lanes are laid out [B, players, k], so that all lanes of a prompt share its prefill.

Source: Munos et al. (2024), arXiv:2312.00886, section 7: log π̃^β(y_t|·) = (1−β) log π_θ + β log μ + C per token.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import decoding
from nlhf_jax.types import MixtureWeights, PolicyParams, PRNGKey, Prompts, Rollout

ONLINE: MixtureWeights = {'online': 1.0}
EMA: MixtureWeights = {'ema': 1.0}
REFERENCE: MixtureWeights = {'reference': 1.0}
PAST: MixtureWeights = {'past': 1.0}
HALF: MixtureWeights = {'half': 1.0}


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
  return sum(w * x for w, x in zip(weights, logits, strict=True))


class _Table(NamedTuple):
  """Who plays with which parameter set: {set: [player, …]}, and how many lanes a player has per prompt."""

  players: tuple[MixtureWeights, ...]
  num_samples: int
  users: dict[str, list[int]]


def play(
  decoder: decoding.Decoder,
  sampling: decoding.Sampling,
  params: PolicyParams,
  players: Sequence[MixtureWeights],
  prompts: Prompts,
  rng: PRNGKey,
  num_samples: int = 1,
) -> tuple[Rollout, ...]:
  """Draws responses of every player to every prompt in one decoding loop.

  Each parameter set runs once per step, on the lanes of all players that use it.

  Args:
    decoder: the network's functions.
    sampling: temperature, truncation and length; applied to the mixture, after mixing.
    params: parameter sets, by the names that the players use.
    players: mixtures to play; static.
    prompts: B prompts.
    rng: key of this call; lanes split it.
    num_samples: responses k of each player to each prompt.

  Returns:
    One rollout per player, of N = B·k rows.
  """
  _check_players(players, params)
  users: dict[str, list[int]] = {}
  for number, player in enumerate(players):
    for name in player:
      users.setdefault(name, []).append(number)
  table = _Table(tuple(players), num_samples, users)
  encoded = {name: decoder.encode(getattr(params, name), prompts.tokens) for name in users}
  num_prompts, num_lanes = prompts.tokens.shape[0], len(players) * num_samples
  in_turns = 0 < sampling.num_slots < num_prompts
  seats = sampling.num_slots if in_turns else num_prompts

  room = sampling.max_length
  if decoder.grow is not None and not in_turns:
    room = decoding.stages(room)[0]
  weights, caches = {}, {}
  for name, numbers in users.items():
    lanes = seats * len(numbers) * num_samples
    weights[name] = decoder.weights(getattr(params, name), lanes)
    reads = jax.tree.map(lambda x: x[:seats], encoded[name])
    caches[name] = decoder.empty(weights[name], reads, lanes, room)

  def step(
    encoded: dict[str, Any],
    caches: dict[str, Any],
    tokens: Int[Array, 'L'],
    positions: Int[Array, 'L'] | None,
  ) -> tuple[Float[Array, 'L V'], dict[str, Any]]:
    logits, new = {}, {}
    for name, numbers in users.items():
      own = lambda x, numbers=numbers: x if x is None else _lanes_of(table, x, numbers)
      inputs = encoded[name], caches[name], own(tokens), own(positions)
      logits[name], new[name] = decoder.step(weights[name], *inputs)
    return _combine(table, logits), new

  if in_turns:
    rollout = decoding.sample_with_slots(step, encoded, caches, num_lanes, rng, sampling)
  else:
    together = lambda caches, tokens: step(encoded, caches, tokens, None)
    grow = decoder.grow and (lambda caches, n: {k: decoder.grow(x, n) for k, x in caches.items()})
    rollout = decoding.sample(together, caches, num_prompts * num_lanes, rng, sampling, grow)
  return tuple(
    jax.tree.map(lambda x, number=number: _lanes_of(table, x, [number]), rollout)
    for number in range(len(players))
  )


def _combine(table: _Table, logits: dict[str, Float[Array, 'lanes V']]) -> Float[Array, 'L V']:
  """Mixes the networks' logits, each over its own lanes, into the logits of all lanes."""
  k = table.num_samples
  by_set = {
    name: x.reshape(-1, len(table.users[name]), k, x.shape[-1]) for name, x in logits.items()
  }
  mixed = [
    mix_logits(
      [by_set[name][:, table.users[name].index(number)] for name in player], list(player.values())
    )
    for number, player in enumerate(table.players)
  ]
  stacked = jnp.stack(mixed, axis=1)  # [B, players, k, V]
  return stacked.reshape(-1, stacked.shape[-1])


def _lanes_of(table: _Table, x: Array, numbers: list[int]) -> Array:
  """The rows of some players."""
  lanes = x.reshape(-1, len(table.players), table.num_samples, *x.shape[1:])
  return lanes[:, jnp.array(numbers)].reshape(-1, *x.shape[1:])


def _check_players(players: Sequence[MixtureWeights], params: PolicyParams) -> None:
  for player in players:
    if not math.isclose(sum(player.values()), 1.0) or min(player.values()) <= 0:
      raise ValueError(f'A player needs positive weights that add up to 1, got {player}.')
    for name in player:
      if getattr(params, name, None) is None:
        raise ValueError(f'MixtureWeights {player} needs the parameter set {name!r}, which this run lacks.')
