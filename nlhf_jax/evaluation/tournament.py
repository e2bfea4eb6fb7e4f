"""Trained policies against each other: win rates under a judge, and exact play where responses can be enumerated."""

import collections
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.arguments import Count, CountOrZero, NonNegative, Seed
from nlhf_jax.evaluation import exact, report, win_rates
from nlhf_jax.evaluation.contestants import Contestant, as_text, draw
from nlhf_jax.runtime import atomic, progress, run_lock
from nlhf_jax.types import Enumeration, FixedPoint, PreferenceFn, Prompts
from nlhf_jax.votes import files
from nlhf_jax.votes.table import FieldError, Row

Advance = Callable[[int], None]

_VOTES = 'votes.jsonl'
# Of a comparison's votes. Those of people and of `nlhf judge` have a time, collected ones a split, rollouts have `rollout`.
_FIELDS = ('prompt', 'a', 'b', 'probability', 'order', 'judge', 'response_a', 'response_b', 'seed')


class Evaluation(NamedTuple):
  """What policies are compared on."""

  # Held-out prompts.
  prompts: Callable[[], Prompts]
  # A PreferenceFn; a description may have what becomes one (`training.experiment.FeedbackSource`), as in training.
  judge: PreferenceFn | Any
  judge_name: str
  # Text to tokens.
  encode: Callable[[str], Sequence[int]]
  # Tokens to text.
  decode: Callable[[Sequence[int]], str]
  # Responses of each contestant to each prompt.
  num_samples: Count = 4
  seed: Seed = 0
  # Prompts to a call of a policy or of the judge.
  batch_size: Count = 50
  enumeration: Callable[[Prompts], Enumeration] | None = None
  # Prompts that the policies were trained on: exact play shows whether they learnt them by heart.
  train_prompts: Callable[[], Prompts] | None = None
  # Of the regularised game whose duality gap is reported.
  tau: NonNegative = 0.05
  # A label: worst cases are compared with this contestant's.
  baseline: str | None = None
  # A label: this contestant is μ; None: the first one is.
  reference: str | None = None
  # Exact play has Nash-MD's fixed points at these β too.
  betas: tuple[float, ...] = ()
  # Prompts whose responses the report shows.
  num_shown: CountOrZero = 8


class Played(NamedTuple):
  """A tournament."""

  rates: win_rates.WinRates
  prompts: Prompts
  # By label, k to a prompt.
  responses: dict[str, Int[np.ndarray, 'N T']]


def compare(
  evaluation: Evaluation, contestants: Mapping[str, Contestant], output_dir: pathlib.Path
) -> Played:
  """Plays every pair, and writes votes.jsonl, win_rates.csv, win_rates.json, exact.json, samples.jsonl and report.html.

  Args:
    evaluation: prompts and judge.
    contestants: by label.
    output_dir: where the tables go; made if need be.

  Returns:
    What was played.

  Raises:
    ValueError: the judge is no PreferenceFn, or has answered outside [0, 1]; the reference does not play; votes.jsonl holds votes that
      are of no comparison.
    OSError: another process writes to the directory, or to votes.jsonl; it has been removed, or cannot be written to.
  """
  if not callable(evaluation.judge):
    raise ValueError(
      f'A tournament asks a PreferenceFn, got {type(evaluation.judge).__name__}: resolve it first.'
    )
  check_reference(evaluation, list(contestants))
  with run_lock.held(output_dir), run_lock.file_held(output_dir / _VOTES):
    check_replaceable(output_dir)
    return _play(evaluation, contestants, output_dir)


def _play(
  evaluation: Evaluation, contestants: Mapping[str, Contestant], output_dir: pathlib.Path
) -> Played:
  labels, prompts = list(contestants), evaluation.prompts()
  num_pairs = len(labels) * (len(labels) - 1) // 2
  with progress.bar('responses', len(labels)) as advance:
    players = enumerate(contestants.values())
    responses = [_respond(evaluation, one, prompts, stream, advance) for stream, one in players]
  missing: collections.Counter[tuple[str, str]] = collections.Counter()
  votes = atomic.replaced(output_dir / _VOTES, encoding='utf-8')
  with progress.bar('win rates', num_pairs) as advance, votes as file:
    per_prompt = win_rates.judge_all(
      evaluation.judge,
      prompts,
      responses,
      batch_size=evaluation.batch_size,
      observe=_recorder(evaluation, labels, prompts, responses, file, missing),
      advance=advance,
    )
  # Of an earlier comparison they would be shown beside this one.
  for name in ('exact.json', 'samples.jsonl', 'exploitability.json', 'report.html'):
    (output_dir / name).unlink(missing_ok=True)
  rates = win_rates.summarise(per_prompt, labels, evaluation.judge_name, missing.total())
  win_rates.write(output_dir, rates)
  if evaluation.enumeration is not None:
    found = _play_exactly(evaluation, contestants, prompts)
    if evaluation.train_prompts is not None:
      seen = _play_exactly(evaluation, contestants, evaluation.train_prompts())
      found['train'] = seen['all']
    exact.write(output_dir, found)
  rows = _samples(evaluation, labels, prompts, responses, per_prompt)
  lines = [json.dumps(row) + '\n' for row in rows]
  atomic.write_text(output_dir / 'samples.jsonl', ''.join(lines))
  report.from_run_dir(output_dir)
  return Played(rates, prompts, dict(zip(labels, responses, strict=True)))


def check_replaceable(output_dir: pathlib.Path) -> None:
  """Raises ValueError where a comparison would replace votes that others have written to its votes.jsonl."""
  path = output_dir / _VOTES
  if path.exists():
    for _ in files.read(path, _check_own):
      pass


def _check_own(row: Row) -> None:
  if set(row) != set(_FIELDS):
    raise FieldError(
      'no vote of an earlier comparison, which this one would replace: move the file, or name another directory'
    )


def check_reference(evaluation: Evaluation, labels: Sequence[str]) -> None:
  """Raises ValueError where exact play needs a contestant that is none of these."""
  if evaluation.enumeration is not None and evaluation.reference not in (None, *labels):
    raise ValueError(
      f'Exact play measures against the reference {evaluation.reference!r}, which is none of {", ".join(labels)}: give a run that '
      'label, or set tournament.Evaluation.reference to one of these.'
    )


def _recorder(
  evaluation: Evaluation,
  labels: Sequence[str],
  prompts: Prompts,
  responses: Sequence[Int[np.ndarray, 'N T']],
  file: TextIO,
  missing: collections.Counter[tuple[str, str]],
) -> win_rates.Observe:
  """Writes each answer of the judge as a vote, one for each order; counts the pairs that have none."""
  asked = [_text(evaluation, row) for row in prompts.tokens]
  answered = [[_text(evaluation, row) for row in rows] for rows in responses]

  def observe(i, j, forward, backward):
    missing[labels[i], labels[j]] += int(np.isnan(forward).sum())
    for order, p in (('ab', forward), ('ba', 1 - backward)):
      for lane, probability in enumerate(p.ravel().tolist()):
        if math.isnan(probability):
          continue
        prompt, pair = asked[lane // evaluation.num_samples], (labels[i], labels[j])
        texts = answered[i][lane], answered[j][lane]
        vote = (prompt, *pair, probability, order, evaluation.judge_name, *texts, evaluation.seed)
        file.write(json.dumps(dict(zip(_FIELDS, vote, strict=True))) + '\n')

  return observe


def _respond(
  evaluation: Evaluation, contestant: Contestant, prompts: Prompts, stream: int, advance: Advance
) -> Int[np.ndarray, 'N T']:
  k, seed, size = evaluation.num_samples, evaluation.seed, evaluation.batch_size
  tokens = draw(contestant, prompts, k, seed, size, stream)
  advance(1)
  return tokens


def _play_exactly(
  evaluation: Evaluation, contestants: Mapping[str, Contestant], prompts: Prompts
) -> dict[str, Any]:
  """The contents of exact.json."""
  enumeration, tau = evaluation.enumeration(prompts), evaluation.tau
  with progress.bar('exact play', len(contestants)) as advance:
    log_probs = []
    for one in contestants.values():
      score = exact.enumerator(one.policy, evaluation.batch_size)
      log_probs.append(score(one.params, prompts, enumeration.responses))
      advance(1)
  reference = log_probs[list(contestants).index(evaluation.reference or next(iter(contestants)))]
  ideal = [FixedPoint(tau, beta) for beta in evaluation.betas if tau > 0]
  points = [*(one.fixed_point for one in contestants.values()), *ideal]
  prompt_games = exact.make_games(enumeration.scores, reference, points)
  fixed = [exact.fixed_points(prompt_games, point) for point in ideal]
  labels = [*contestants, *(f'exact beta {point.beta:g}' for point in ideal)]
  result = exact.evaluate(np.stack([*log_probs, *fixed]), prompt_games, tau, points)
  baseline = evaluation.baseline if evaluation.baseline in labels else None
  return exact.table(result, labels, baseline) | {'tau': tau}


def sample(
  evaluation: Evaluation,
  contestant: Contestant,
  texts: Sequence[str],
  *,
  num_samples: Count,
  seed: Seed,
) -> list[tuple[str, list[str]]]:
  """Responses to prompts given as text, or to the held-out prompts where there are none.

  Args:
    evaluation: how text becomes tokens and back, and the held-out prompts.
    contestant: who answers.
    texts: prompts; empty: the held-out ones, as many as a report shows.
    num_samples: responses to a prompt.
    seed: of the draws.

  Raises:
    ValueError: a text is longer than the held-out prompts may be.
  """
  prompts = evaluation.prompts()
  if texts:
    prompts = _encode_all(texts, evaluation.encode, prompts.tokens.shape[1])
  else:
    prompts = Prompts(prompts.tokens[: evaluation.num_shown], prompts.index[: evaluation.num_shown])
  tokens = draw(contestant, prompts, num_samples, seed, evaluation.batch_size)
  answers = tokens.reshape(len(prompts.tokens), num_samples, -1)
  return [
    (_text(evaluation, prompt), [_text(evaluation, row) for row in rows])
    for prompt, rows in zip(prompts.tokens, answers, strict=True)
  ]


def _samples(
  evaluation: Evaluation,
  labels: Sequence[str],
  prompts: Prompts,
  responses: Sequence[Int[np.ndarray, 'N T']],
  per_prompt: Float[np.ndarray, 'B contestants contestants'],
) -> Iterator[dict[str, Any]]:
  """A prompt, every contestant's first response, and its mean preference over the others, None where no vote is."""
  for row in range(min(evaluation.num_shown, prompts.tokens.shape[0])):
    shown = {}
    for number, label in enumerate(labels):
      text = _text(evaluation, responses[number][row * evaluation.num_samples])
      others = np.delete(per_prompt[row, number], number)
      known = others[~np.isnan(others)]
      preference = float(known.mean()) if known.size else None
      shown[label] = {'text': text, 'preference': preference}
    yield {'prompt': _text(evaluation, prompts.tokens[row]), 'responses': shown}


def _text(evaluation: Evaluation, tokens: Int[np.ndarray, 'T']) -> str:
  return as_text(evaluation.decode, tokens)


def _encode_all(
  texts: Sequence[str], encode: Callable[[str], Sequence[int]], length: int
) -> Prompts:
  tokens = np.zeros((len(texts), length), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    ids = list(encode(text))
    if len(ids) > length:
      raise ValueError(f'A prompt has {len(ids)} tokens, at most {length} fit: {text[:60]!r} …')
    row[: len(ids)] = ids
  return Prompts(tokens, np.full(len(texts), -1, np.int32))
