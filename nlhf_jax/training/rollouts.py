"""Rollouts of which one part is judged while the next is sampled: for judges that run on the host, or behind an API.

A batch of prompts is split into parts, every n-th prompt to each, as `steps.accumulate` splits it. All parts are sampled with the
same parameters, so that the rollout is as much on-policy as one that is sampled at once; each has a key of its own.
"""

import math
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.runtime import partitioning, processes
from nlhf_jax.types import Algorithm, Batch, PRNGKey, Prompts


@runtime_checkable
class Lap(Protocol):
  """Counts the time until a result is there for a phase, as `steps.Clock.lap`."""

  def __call__(self, phase: str, result: Any) -> None: ...


def check_method(algorithm: Algorithm, num_parts: int) -> None:
  """Checks that a method's rollouts may come in parts.

  Raises:
    ValueError: they may not, or `num_parts` is no positive number.
  """
  if num_parts < 1:
    raise ValueError(f'num_rollout_parts must be at least 1, got {num_parts}.')
  if num_parts == 1:
    return
  if not algorithm.mixtures:
    why = 'this method samples nothing'
  elif algorithm.scores_jointly:
    why = 'the baseline of rewards spans the batch where num_samples is 1'
  elif not processes.is_single_process():
    why = 'of several processes each would judge at another time'
  else:
    return
  raise ValueError(
    f'num_rollout_parts must be 1, got {num_parts}, since {why}: set num_rollout_parts to 1.'
  )


def check_prompts(
  prompts: Prompts, num_parts: int, layout: partitioning.Layout | None = None
) -> None:
  """Checks that a batch of prompts divides into parts, and each part over the mesh.

  Raises:
    ValueError: it does not.
  """
  if num_parts == 1:
    return
  size = prompts.tokens.shape[0]
  groups = 1 if layout is None else math.prod(layout.mesh.shape[x] for x in partitioning.ROWS)
  if size % (num_parts * groups):
    over = f', each over {groups} groups of devices (data x fsdp)' if groups > 1 else ''
    raise ValueError(
      f'A batch of {size} prompts does not divide into num_rollout_parts = {num_parts} parts{over}: make batch_size a '
      f'multiple of {num_parts * groups}.'
    )


def overlapped(
  sample: Callable[[Batch, PRNGKey], Batch],
  score: Callable[[Batch], Batch],
  prompts: Prompts,
  rng: PRNGKey,
  *,
  num_parts: int,
  place: Callable[[Batch], Batch] = jax.device_put,
  lap: Lap = lambda phase, result: None,
) -> Batch:
  """Samples a batch part by part; each is scored while the next is sampled.

  One thread scores, one part after another, so that a judge is never asked by two at a time. It has the part's arrays on the
  host: what little it computes with JAX does not queue up behind sampling.

  Args:
    sample: prompts and a key to a rollout.
    score: fills in preferences or rewards.
    prompts: of the batch.
    rng: split into one key for each part.
    num_parts: divides the number of prompts.
    place: moves rows to the devices.
    lap: told of sampling ('sample') and of what is waited for beyond it ('score').

  Returns:
    The rollout, its rows in the order of the prompts.

  Raises:
    Whatever `score` raises, as soon as the part that is sampled then is there. The part that is scored at that time, as
    after an interrupt, is waited for; no other is begun.
  """
  parts = [
    jax.tree.map(lambda x, i=i: np.asarray(x)[i::num_parts], prompts) for i in range(num_parts)
  ]
  scored: list[futures.Future] = []
  with futures.ThreadPoolExecutor(max_workers=1) as judge:
    try:
      for part, key in zip(parts, jax.random.split(rng, num_parts), strict=True):
        rollout = sample(place(part), key)
        lap('sample', rollout)
        for one in scored:
          if one.done():
            one.result()  # Raises.
        scored.append(judge.submit(_score_on_host, score, jax.device_get(rollout)))
      joined = place(join([one.result() for one in scored]))
    except BaseException:
      judge.shutdown(wait=False, cancel_futures=True)
      raise
  lap('score', joined)
  return joined


def join(parts: Sequence[Batch]) -> Batch:
  """The batch whose every n-th prompt, with its rows, is in each of n parts. On the host."""
  size = parts[0].prompts.tokens.shape[0]
  missing = [getattr(part, 'votes_missing', None) for part in parts]
  if any(x is not None for x in missing):
    none = np.zeros(parts[0].response.tokens.shape[0], np.float32)
    parts = [
      part._replace(votes_missing=none if x is None else x)
      for part, x in zip(parts, missing, strict=True)
    ]

  def interleave(*rows):
    by_prompt = [np.asarray(x).reshape(size, -1, *x.shape[1:]) for x in rows]
    return np.stack(by_prompt, axis=1).reshape(-1, *rows[0].shape[1:])

  return jax.tree.map(interleave, *parts)


def _score_on_host(score: Callable[[Batch], Batch], rollout: Batch) -> Batch:
  with jax.default_device(_host_device()):
    return jax.device_get(score(jax.tree.map(jnp.asarray, rollout)))


def _host_device() -> jax.Device | None:
  """None: JAX was told to do without it."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None
