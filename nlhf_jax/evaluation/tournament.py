"""Trained policies against each other: win rates under a judge, and exact play where responses can be enumerated."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.evaluation import exact, report, win_rates
from nlhf_jax.runtime import progress
from nlhf_jax.types import Enumeration, Params, Policy, PreferenceFn, Prompts


class Evaluation(NamedTuple):
  """What policies are compared on."""

  prompts: Callable[[], Prompts]  # Held-out prompts.
  judge: PreferenceFn
  judge_name: str
  encode: Callable[[str], Sequence[int]]  # Text to tokens.
  decode: Callable[[Sequence[int]], str]  # Tokens to text.
  num_samples: int = 4  # Responses of each player to each prompt.
  seed: int = 0
  batch_size: int = 50  # Prompts.
  enumeration: Callable[[Prompts], Enumeration] | None = None
  tau: float = 0.05  # Of the regularised game whose duality gap is reported.
  baseline: str | None = None  # A label: worst cases are compared with this player's.
  reference: str | None = None  # A label: this player is μ.
  betas: tuple[float, ...] = ()  # Exact play has Nash-MD's fixed points at these β too.
  num_shown: int = 8  # Prompts whose responses the report shows.


class Contestant(NamedTuple):
  policy: Policy
  params: Params


def compare(
  evaluation: Evaluation, players: Mapping[str, Contestant], output_dir: pathlib.Path
) -> None:
  """Plays every pair, and writes win_rates.csv, win_rates.json, exact.json, samples.jsonl and report.html.

  Args:
    evaluation: prompts and judge.
    players: label → policy and parameters.
    output_dir: where the tables go; made if need be.
  """
  prompts = evaluation.prompts()
  labels = list(players)
  num_pairs = len(labels) * (len(labels) - 1) // 2
  with progress.bar('responses', len(labels)) as advance:
    responses = [_respond(evaluation, player, prompts, advance) for player in players.values()]
  with progress.bar('win rates', num_pairs) as advance:
    per_prompt = win_rates.judge_all(
      evaluation.judge, prompts, responses, batch_size=evaluation.batch_size, advance=advance
    )
  output_dir.mkdir(parents=True, exist_ok=True)
  rates = win_rates.summarise(per_prompt, labels, evaluation.judge_name)
  win_rates.write(output_dir, rates)
  if evaluation.enumeration is not None:
    exact.write(output_dir, _play_exactly(evaluation, players, prompts))
  _write_samples(evaluation, labels, prompts, responses, per_prompt, output_dir)
  report.from_run_dir(output_dir)


def _respond(evaluation: Evaluation, player: Contestant, prompts: Prompts, advance):
  """Responses [N, T] of one player, k to a prompt. Players share keys, not draws."""
  sample = jax.jit(player.policy.sample, static_argnames='num_samples')
  parts = []
  for number, part in enumerate(_parts(evaluation, prompts)):
    rng = jax.random.fold_in(jax.random.PRNGKey(evaluation.seed), number)
    rollout = sample(player.params, part, rng, num_samples=evaluation.num_samples)
    parts.append(np.asarray(rollout.tokens))
  advance(1)
  return np.concatenate(parts)


def _play_exactly(evaluation: Evaluation, players: Mapping[str, Contestant], prompts: Prompts):
  enumeration = evaluation.enumeration(prompts)
  with progress.bar('exact play', len(players)) as advance:
    log_probs = np.stack(
      [
        enumerate_log_probs(evaluation, player, prompts, enumeration.responses, advance)
        for player in players.values()
      ]
    )
  reference = log_probs[list(players).index(evaluation.reference or next(iter(players)))]
  labels = [*players, *(f'exact BETA {beta:g}' for beta in evaluation.betas)]
  fixed = [
    exact.fixed_points(enumeration.scores, reference, evaluation.tau, beta)[None]
    for beta in evaluation.betas
  ]
  log_probs = np.concatenate([log_probs, *fixed])
  result = exact.evaluate(log_probs, enumeration.scores, reference, evaluation.tau)
  baseline = evaluation.baseline if evaluation.baseline in labels else None
  return exact.table(result, labels, baseline) | {'tau': evaluation.tau}


def enumerate_log_probs(
  evaluation: Evaluation,
  player: Contestant,
  prompts: Prompts,
  responses: Int[np.ndarray, 'Y T'],
  advance: Callable[[int], None] = lambda steps: None,
) -> Float[np.ndarray, 'B Y']:
  """log π(y|x) of every response to every prompt, in nats."""

  @jax.jit
  def score(params, part: Prompts):
    size = part.tokens.shape[0]
    tokens = jnp.tile(jnp.asarray(responses), (size, 1))
    logp = player.policy.log_prob(params, part, tokens)
    return logp.sum(axis=-1).reshape(size, -1)

  rows = [np.asarray(score(player.params, part)) for part in _parts(evaluation, prompts)]
  advance(1)
  return np.concatenate(rows)


def _parts(evaluation: Evaluation, prompts: Prompts):
  for start in range(0, prompts.tokens.shape[0], evaluation.batch_size):
    rows = slice(start, start + evaluation.batch_size)
    yield Prompts(prompts.tokens[rows], prompts.index[rows])


def _write_samples(evaluation, labels, prompts, responses, per_prompt, output_dir) -> None:
  """samples.jsonl: a prompt, every player's first response, and its mean preference over the other players."""
  others = max(len(labels) - 1, 1)
  with (output_dir / 'samples.jsonl').open('w') as file:
    for row in range(min(evaluation.num_shown, prompts.tokens.shape[0])):
      shown = {}
      for number, label in enumerate(labels):
        tokens = responses[number][row * evaluation.num_samples]
        rate = (per_prompt[row, number].sum() - 0.5) / others
        shown[label] = {'text': _text(evaluation, tokens), 'preference': rate}
      line = {'prompt': _text(evaluation, prompts.tokens[row]), 'responses': shown}
      file.write(json.dumps(line) + '\n')


def _text(evaluation: Evaluation, tokens: np.ndarray) -> str:
  """Without padding and EOS."""
  return evaluation.decode([int(token) for token in tokens if token > 1])


def sample(
  evaluation: Evaluation,
  player: Contestant,
  texts: Sequence[str],
  *,
  num_samples: int,
  seed: int,
) -> list[tuple[str, list[str]]]:
  """Responses to prompts given as text, or to the held-out prompts where there are none.

  Args:
    evaluation: how text becomes tokens and back, and the held-out prompts.
    player: who answers.
    texts: prompts; empty: the held-out ones, as many as a report shows.
    num_samples: responses to a prompt.
    seed: of the draws.
  """
  prompts = evaluation.prompts()
  if texts:
    prompts = _encode_all(texts, evaluation.encode, prompts.tokens.shape[1])
  else:
    prompts = Prompts(prompts.tokens[: evaluation.num_shown], prompts.index[: evaluation.num_shown])
  rng = jax.random.PRNGKey(seed)
  draw = jax.jit(player.policy.sample, static_argnames='num_samples')
  tokens = np.asarray(draw(player.params, prompts, rng, num_samples=num_samples).tokens)
  answers = tokens.reshape(len(prompts.tokens), num_samples, -1)
  return [
    (_text(evaluation, prompt), [_text(evaluation, row) for row in rows])
    for prompt, rows in zip(prompts.tokens, answers, strict=True)
  ]


def _encode_all(texts: Sequence[str], encode, length: int) -> Prompts:
  tokens = np.zeros((len(texts), length), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    ids = list(encode(text))
    if len(ids) > length:
      raise ValueError(f'A prompt has {len(ids)} tokens, at most {length} fit: {text[:60]!r} …')
    row[: len(ids)] = ids
  return Prompts(tokens, np.full(len(texts), -1, np.int32))
