"""Who answers: a policy and its parameters, and what it draws."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from nlhf_jax.types import EOS, FixedPoint, Params, Policy, Prompts


class Contestant(NamedTuple):
  """A policy and its parameters."""

  policy: Policy
  params: Params
  # Of the method that trained it, if it has one.
  fixed_point: FixedPoint | None = None


def draw(
  contestant: Contestant,
  prompts: Prompts,
  num_samples: int,
  seed: int,
  batch_size: int,
  stream: int = 0,
) -> Int[np.ndarray, 'N T']:
  """Its responses, k to a prompt.

  Args:
    contestant: who answers.
    prompts: what.
    num_samples: k.
    seed: of the draws.
    batch_size: prompts at a time.
    stream: a number of its own for each of those whose responses are compared: they would else be drawn by the same random
      numbers, and a policy's rate against another be that of coupled responses, not of independent ones.
  """
  draw_batch = sampler(contestant, num_samples, seed, stream)
  parts = enumerate(batches(prompts, batch_size))
  return np.concatenate([draw_batch(part, number) for number, part in parts])


def sampler(
  contestant: Contestant, num_samples: int, seed: int, stream: int = 0
) -> Callable[[Prompts, int], Int[np.ndarray, 'N T']]:
  """Prompts, and the number of their batch → what `draw` gives for that batch."""
  sample = jax.jit(contestant.policy.sample, static_argnames='num_samples')

  def draw_batch(prompts: Prompts, number: int) -> Int[np.ndarray, 'N T']:
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), stream), number)
    return np.asarray(sample(contestant.params, prompts, rng, num_samples=num_samples).tokens)

  return draw_batch


def batches(prompts: Prompts, size: int) -> Iterator[Prompts]:
  """`size` prompts at a time, in their order."""
  for start in range(0, prompts.tokens.shape[0], size):
    rows = slice(start, start + size)
    yield Prompts(prompts.tokens[rows], prompts.index[rows])


def as_text(decode: Callable[[Sequence[int]], str], tokens: Int[np.ndarray, 'T']) -> str:
  """Without padding and EOS."""
  return decode([int(token) for token in tokens if token > EOS])
