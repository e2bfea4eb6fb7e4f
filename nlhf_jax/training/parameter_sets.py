"""Parameter sets besides θ, as data: μ, θ̄, snapshots. A method names those that it plays, one `move` serves all trainers.

| set                    | starts at | after the n-th update                        |
|------------------------|-----------|----------------------------------------------|
| frozen()               | given     | stays                                        |
| reference(reset_every) | given     | becomes θ where n is a multiple, or stays    |
| average(decay)         | θ         | κ θ̄ + (1 − κ) θ                              |
| snapshot(every, at)    | θ         | becomes θ where n ≡ at, modulo `every`       |
| ring(size, every)      | θ         | the newest of `size` snapshots comes first   |
| half_step()            | θ         | lives within a step: an update, then undone  |
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from nlhf_jax.arguments import Count, CountOrZero, Decay
from nlhf_jax.types import Algorithm, ParameterSet, Params

Sets = Mapping[str, ParameterSet]


def frozen() -> ParameterSet:
  """Weights that the run is given, and that another run holds."""
  return ParameterSet(saved=False)


def reference(reset_every: Count | None = None) -> ParameterSet:
  """μ. With `reset_every` it is a magnet: it becomes θ after every n-th update.

  Of a method that stops at π*_τ, stages around the last stage's policy end at a Nash equilibrium of the game without
  regularisation: π_{n+1} ∝ π_n exp(P(y ≻ π_{n+1})/τ). Another method stops at its own fixed point around it; SPPO and DNO,
  which are not held to μ, do not change.

  Args:
    reset_every: updates between two resets; None: μ is frozen.

  Raises:
    ValueError: it is no positive number.

  Source: Liu et al. (2024), arXiv:2410.23223 (COMAL); Wang et al. (2024), arXiv:2410.16714 (MPO).
  """
  if reset_every is None:
    return frozen()
  return ParameterSet(_every('reset_every', reset_every))


def average(decay: Decay) -> ParameterSet:
  """θ̄ ← κ θ̄ + (1 − κ) θ.

  Args:
    decay: κ in [0, 1).

  Raises:
    ValueError: κ is outside.
  """
  if not 0 <= decay < 1:
    raise ValueError(f'decay must be in [0, 1), got {decay}.')
  return ParameterSet(
    lambda kept, online, step: optax.incremental_update(online, kept, 1 - decay), _same
  )


def snapshot(every: Count, at: CountOrZero = 0) -> ParameterSet:
  """π_t: θ as it was after the last multiple of `every` updates, or the last update number at, at + every …

  Raises:
    ValueError: `every` is no positive number, or `at` is outside [0, every).
  """
  move = _every('every', every, at)
  if not 0 <= at < every:
    raise ValueError(f'at must be in [0, {every}), got {at}.')
  return ParameterSet(move, _same)


def ring(size: Count, every: Count) -> ParameterSet:
  """The last snapshots, newest first; a mixture names its members 'NAME.0', 'NAME.1' …

  Args:
    size: how many are kept.
    every: updates between two of them.

  Raises:
    ValueError: either is no positive number.

  Source: Wu et al. (2025), arXiv:2509.23102 (MNPO).
  """
  _check_positive('size', size)
  _check_positive('every', every)

  def move(kept, online, step):
    return jax.lax.cond(step % every == 0, lambda: (online, *kept[:-1]), lambda: tuple(kept))

  return ParameterSet(move, lambda online: (online,) * size)


def half_step() -> ParameterSet:
  """θ after an update that the step then takes back: what the step's own opponents play.

  Source: Zhou, Fazel, Du (2025), arXiv:2503.08942 (EGPO).
  """
  return ParameterSet(start=_same, saved=False, half_step=True)


def extend(algorithm: Algorithm, sets: Sets | None) -> Algorithm:
  """The method with more parameter sets, or with others in place of its own: an average to evaluate, a magnet for μ."""
  sets = {**algorithm.sets, **(sets or {})}
  moves = 'reference' in sets and sets['reference'].move is not None
  # Round a reference that moves there is no one fixed point.
  return algorithm._replace(sets=sets, fixed_point=None if moves else algorithm.fixed_point)


def start(sets: Sets, online: Params, given: Mapping[str, Params]) -> dict[str, Params]:
  """The sets before the first update; no two share an array, since an update donates them.

  Args:
    sets: what they are.
    online: θ at the start.
    given: those that the run is given; one that moves and is not given starts at θ.
  """
  kept = {name: x for name, x in sets.items() if not x.half_step}
  result = {}
  for name, x in kept.items():
    if x.start is not None:
      result[name] = jax.tree.map(jnp.copy, x.start(online))
    elif x.move is not None:
      result[name] = jax.tree.map(jnp.copy, given.get(name, online))
    elif name in given:
      result[name] = given[name]
  return result


def move(
  sets: Sets, params: Mapping[str, Params], online: Params, step: Int[Array, '']
) -> dict[str, Params]:
  """The sets that move, after an update; traced.

  Args:
    sets: what they are.
    params: as they were before; those that do not move may be missing.
    online: θ after the update.
    step: updates done, this one included.
  """
  return {name: sets[name].move(params[name], online, step) for name in moving(sets)}


def moving(sets: Sets) -> list[str]:
  """Those that move, in order of their names."""
  return sorted(name for name, x in sets.items() if x.move is not None)


def saved(sets: Sets) -> list[str]:
  """Those that checkpoints hold, in order of their names."""
  return sorted(name for name, x in sets.items() if x.saved)


def half_step_name(sets: Sets) -> str | None:
  """The set that lives within a step; None: the method takes one update a step."""
  return next((name for name, x in sets.items() if x.half_step), None)


def _same(online: Params) -> Params:
  return online


def _every(name: str, updates: int, at: int = 0):
  _check_positive(name, updates)

  def move(kept, online, step):
    return jax.lax.cond(step % updates == at, lambda: online, lambda: kept)

  return move


def _check_positive(name: str, value: int) -> None:
  if value < 1:
    raise ValueError(f'{name} must be at least 1, got {value}.')
