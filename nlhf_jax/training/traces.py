"""Rollouts that are kept to be read: a few of every n-th step, as a file of votes (votes.jsonl in the run's directory).

A line is a vote of the project's own schema (`votes.table`): who drew the two responses (a, b), prompt, responses, and
P(a ≻ b) as `probability`, null where the judge gave no vote. What else training knew is in its field `rollout`:

| field       | what                                                                                                   |
|-------------|--------------------------------------------------------------------------------------------------------|
| step        | updates done with it                                                                                   |
| drawn_by    | who drew each response, as weights of parameter sets; a and b say the same where the two differ          |
| preference  | what the update saw: the mean of P over all `opponents` of the response                                |
| reward      | in place of P where the method learns from rewards                                                     |
| log_ratio   | log π/μ in nats, π who drew the response; null where the method does not ask for it                     |
| tokens      | length of each, with its end                                                                           |
| ended       | whether it ended by itself; false: it was cut at the limit                                             |

Where one vote is the mean over several opponents and the pairs' own are not kept (EGPO, SPPO, DNO of several samples),
`probability` is null too. Rows come from a rollout that is there already: nothing is sampled, judged or compiled for them.
"""

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nlhf_jax.arguments import Count
from nlhf_jax.runtime import metrics
from nlhf_jax.types import (
  EOS,
  Algorithm,
  Batch,
  Comparison,
  MixtureWeights,
  Pair,
  Rollout,
  Scored,
)
from nlhf_jax.votes.table import Row

FILE = 'votes.jsonl'


class Traces(NamedTuple):
  """Which rollouts are kept, and how tokens become text."""

  # Tokens to text, of prompts and responses; None: their ids are kept as a text.
  decode: Callable[[Sequence[int]], str] | None = None
  # Steps. The first step is kept too: what the policy wrote before it learnt anything.
  every: Count = 50
  # The first ones of the batch.
  num_prompts: Count = 4
  # Pairs of responses to each, as far as there are some.
  num_pairs: Count = 2


def check(traces: Traces) -> None:
  """Raises ValueError where a number is below 1."""
  for name in ('every', 'num_prompts', 'num_pairs'):
    if getattr(traces, name) < 1:
      raise ValueError(f'Traces.{name} must be at least 1, got {getattr(traces, name)}.')


def is_traced(traces: Traces | None, algorithm: Algorithm, step: int) -> bool:
  """Whether a step's rollouts are kept; those of methods that read their responses never are: the data have them."""
  return bool(traces and algorithm.mixtures) and (step == 1 or step % traces.every == 0)


def votes(traces: Traces, algorithm: Algorithm, rollout: Batch, step: int) -> list[Row]:
  """The lines of one step.

  Args:
    traces: how many, and the decoder.
    algorithm: that sampled the rollout.
    rollout: scored; of one that is sharded, this process's first rows are taken, and no other process is asked.
    step: updates done.
  """
  few = first_prompts(rollout, traces.num_prompts)
  decode = traces.decode or (lambda tokens: ' '.join(map(str, tokens)))
  return [_vote(side, few, step, decode) for side in _sides(few, algorithm, traces.num_pairs)]


def first_prompts(rollout: Batch, number: int) -> Batch:
  """The first prompts that this process holds with all their rows, at most `number`, on the host."""
  size = rollout.prompts.tokens.shape[0]
  # Rows are taken on the host: a slice on the device would be a program to compile for each shape.
  here = jax.device_get(jax.tree.map(_first_shard, rollout))
  per_prompt = jax.tree.map(lambda x: x.shape[0] // size, rollout)
  held = jax.tree.map(lambda x, k: x.shape[0] // k, here, per_prompt)
  number = min(number, *jax.tree.leaves(held))
  return jax.tree.map(lambda x, k: x[: number * k], here, per_prompt)


def _first_shard(x: Any) -> Any:
  """What stands first of an array's shards that are here; arrays of one rollout are sharded by the same rows."""
  if not isinstance(x, jax.Array):
    return x
  return min(x.addressable_shards, key=lambda shard: shard.index[0].start or 0).data


class _Side(NamedTuple):
  """A response, and the one beside it."""

  # Row of the prompt, of the first response, and of the second in its rollout.
  prompt: int
  row: int
  other: int
  # The rollout that holds the second; None: there is none.
  against: Rollout | None
  drawn_by: tuple[MixtureWeights, ...]
  probability: float | None
  learnt: dict[str, Any]


def _sides(few: Batch, algorithm: Algorithm, num_pairs: int) -> Iterator[_Side]:
  """Which responses stand beside each other, and what is known of the pair."""
  size = few.prompts.tokens.shape[0]
  k = few.response.tokens.shape[0] // size
  # Where the k responses are each other's opponents, or there are none, the next one stands beside each.
  among = len(algorithm.mixtures) == 1
  for prompt in range(size):
    for n in range(min(num_pairs, max(1, k // 2) if among else k)):
      first, second = (2 * n, 2 * n + 1) if among else (n, n)
      row = prompt * k + first
      if isinstance(few, Scored):
        yield _of_rewards(few, algorithm, prompt, row, second < k)
      elif isinstance(few, Comparison):
        against = few.response if among else few.alternative
        yield _of_preference(few, algorithm, (prompt, row, prompt * k + second), second, against)
      else:
        yield _of_payoffs(few, algorithm, (prompt, row, prompt * k + second), second)


def _of_rewards(few: Scored, algorithm: Algorithm, prompt: int, row: int, paired: bool) -> _Side:
  """The next response stands beside it, where there is one; no judge has compared them."""
  rows = [row, row + 1] if paired else [row]
  token_logp, reference = few.response.token_logp, few.reference_token_logp
  ratios = [_finite(np.sum(token_logp[r]) - np.sum(reference[r])) for r in rows]
  learnt = {'reward': [_finite(few.reward[r]) for r in rows], 'log_ratio': ratios}
  against = few.response if paired else None
  return _Side(prompt, row, row + 1, against, algorithm.mixtures * len(rows), None, learnt)


def _of_preference(
  few: Comparison,
  algorithm: Algorithm,
  rows: tuple[int, int, int],
  second: int,
  against: Rollout,
) -> _Side:
  """A policy gradient's: the alternative's log-ratio is known where it is one of the k responses itself."""
  _, row, other = rows
  ratio = lambda r: _finite(
    np.sum(few.response.token_logp[r]) - np.sum(few.reference_token_logp[r])
  )
  among = against is few.response
  table = few.pair_preference
  one = few.preference[row] if table is None else table[row, second]
  opponents = 1 if table is None else table.shape[1] - among
  learnt: dict[str, Any] = {'preference': _finite(few.preference[row]), 'opponents': opponents}
  learnt['log_ratio'] = [ratio(row), ratio(other) if among else None]
  mixtures = (algorithm.mixtures[0], algorithm.mixtures[-1])
  return _Side(*rows, against, mixtures, _finite(one), learnt)


def _of_payoffs(few: Pair, algorithm: Algorithm, rows: tuple[int, int, int], second: int) -> _Side:
  """A pairwise method's: y beside y', or beside y'' where that is whom the judge compared it with."""
  _, row, other = rows
  payoff = few.payoff[row, :, 0]
  logp = lambda rollout, r, n: _finite(np.sum(rollout.token_logp[r]) - few.reference_logp[r, n])
  if few.opponent is None:
    one, opponents = float(payoff[second if len(payoff) > 1 else 0]), len(payoff)
    against, by = few.alternative, algorithm.mixtures[1]
    ratios = [logp(few.response, row, 0), logp(few.alternative, other, 1)]
  else:
    opponents = len(few.opponent.tokens) // len(few.prompts.tokens)
    one = float(payoff[0]) if opponents == 1 else math.nan
    against, by = few.opponent, algorithm.mixtures[2]
    ratios = [logp(few.response, row, 0), None]
  known = payoff[~np.isnan(payoff)]
  mean = _finite(known.mean()) if known.size else None
  learnt = {'preference': mean, 'opponents': opponents, 'log_ratio': ratios}
  return _Side(*rows, against, (algorithm.mixtures[0], by), _finite(one), learnt)


def _vote(side: _Side, few: Batch, step: int, decode: Callable[[Sequence[int]], str]) -> Row:
  sides = [(few.response, side.row)]
  if side.against is not None:
    sides.append((side.against, side.other))
  text = lambda tokens: _encodable(decode(tokens[tokens > EOS].tolist()))
  names = [mixture_name(weights) for weights in side.drawn_by]
  vote: Row = {'prompt': text(few.prompts.tokens[side.prompt])}
  if len(set(names)) > 1:
    vote |= {'a': names[0], 'b': names[1]}
  for name, (rollout, row) in zip(('response_a', 'response_b'), sides, strict=False):
    vote[name] = text(rollout.tokens[row])
  lengths = [int(np.sum(rollout.mask[row])) for rollout, row in sides]
  ends = [
    bool(n and rollout.tokens[row, n - 1] == EOS)
    for (rollout, row), n in zip(sides, lengths, strict=True)
  ]
  known = {'step': step, 'drawn_by': names} | side.learnt | {'tokens': lengths, 'ended': ends}
  return vote | {'probability': side.probability, 'rollout': known}


def mixture_name(weights: MixtureWeights) -> str:
  """Who drew: 'online', or 'online^0.875 reference^0.125', a geometric mixture."""
  if len(weights) == 1:
    return next(iter(weights))
  return ' '.join(f'{name}^{weight:.4g}' for name, weight in weights.items())


def _finite(value: Any) -> float | None:
  """To a millionth, which is more than anyone reads; null where there is no number."""
  return round(float(value), 6) + 0.0 if math.isfinite(value) else None


def _encodable(text: str) -> str:
  """Without halves of characters, which no file can hold."""
  return text.encode('utf-8', 'replace').decode()


class Writer:
  """Appends to a run's votes.jsonl. A resumed run first drops what it will write again; votes of others stay."""

  def __init__(self, run_dir: pathlib.Path, *, resume_step: int = 0):
    """Opens the file, once there is something to write.

    Args:
      run_dir: must exist.
      resume_step: lines of later steps are dropped.
    """
    self._path = run_dir / FILE
    metrics.drop_later(self._path, resume_step, lambda row: row.get('rollout', {}).get('step', 0))

  def append(self, rows: Sequence[Row]) -> None:
    """Writes the rows of a step."""
    metrics.append_rows(self._path, rows)
