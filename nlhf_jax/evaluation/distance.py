"""How far a policy is from where theory says it should end, while it trains: on prompts it learns from, and on others.

The curves tell apart what a table of trained policies cannot: a policy that has not got there yet, one that overshot, one
that got there on its training prompts alone.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from nlhf_jax.arguments import Count, NonNegative
from nlhf_jax.evaluation import exact
from nlhf_jax.types import Batch, Enumeration, FixedPoint, Params, Policy, Prompts

# Split -> the policy beside its fixed point.
Distances = dict[str, exact.Exact]


class Measured(NamedTuple):
  """What a policy in training is measured on."""

  # Split → its prompts, such as 'train' and 'held_out'; metrics bear its name.
  prompts: Mapping[str, Callable[[], Prompts]]
  # All responses to them.
  enumeration: Callable[[Prompts], Enumeration]
  # Of the regularised game whose duality gap is taken.
  tau: NonNegative
  # Steps; a multiple of the run's log_every.
  every: Count = 50
  # Where the policy should end; None: where the run's method stops.
  fixed_point: FixedPoint | None = None
  # start -> batches of prompts without end, where there are such (`training.diagnosis`).
  fresh_batches: Callable[..., Iterator[Batch]] | None = None


def make_measure(
  measured: Measured, policy: Policy, reference: Params, fixed_point: FixedPoint | None
) -> Callable[[Params], Distances]:
  """Parameters → the policy against all responses, beside its fixed point.

  The prompts are read at once, their games and fixed points are made at the first measurement: until then training need not wait.

  Args:
    measured: the prompts.
    policy: π.
    reference: the parameters of μ, which must last until then.
    fixed_point: of the method.
  """
  point = measured.fixed_point or fixed_point
  score = exact.enumerator(policy)
  read = {split: load() for split, load in measured.prompts.items()}
  parts = {split: (prompts, *measured.enumeration(prompts)) for split, prompts in read.items()}
  games: dict[str, list[exact.PromptGame]] = {}
  # Until the games are made.
  kept = [reference]

  def measure(params):
    if kept:
      for split, (prompts, responses, scores) in parts.items():
        log_probs = score(kept[0], prompts, responses)
        games[split] = exact.make_games(scores, log_probs, [point])
      kept.clear()
    found = {}
    for split, (prompts, responses, _) in parts.items():
      log_probs = score(params, prompts, responses)[None]
      found[split] = exact.evaluate(log_probs, games[split], measured.tau, [point])
    return found

  return measure


def metrics(distances: Distances) -> dict[str, float]:
  """Means over the prompts, by the names that metrics.jsonl has."""
  names = ['duality_gap', 'worst_case']
  result = {}
  for split, found in distances.items():
    for name in [*names, 'total_variation', 'kl_to_fixed_point']:
      mean = float(getattr(found, name).mean())
      if name in names or mean == mean:  # NaN: the method has no fixed point.
        result[f'{split}_{name}'] = mean
  return result
