"""A network of ours as an LLM judge, without a server: P(y ≻ y'|x) from its log-probs of the answers' letters.

With letters ℓ that say y ≻ y' to the degree p(ℓ) ∈ {1, 0, 1/2}: P(first ≻ second) = Σ_ℓ π(ℓ|question) p(ℓ) / Σ_ℓ π(ℓ|question),
and P(y ≻ y'|x) is the mean over both orders, so that P(y ≻ y'|x) + P(y' ≻ y|x) = 1.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.judges.llm_prompts import PREFERENCES, PromptTemplate
from nlhf_jax.judges.text import Decode, decode_rows
from nlhf_jax.types import LogProbFn, Params, PreferenceFn, Prompts

Encode = Callable[[str], Sequence[int]]


def from_log_prob(
  log_prob: LogProbFn,
  params: Params,
  template: PromptTemplate,
  *,
  encode: Encode,
  encode_answer: Encode,
  decode_prompt: Decode,
  decode_response: Decode,
  batch_size: int = 32,
) -> PreferenceFn:
  """A policy's network as a judge of tokens, which may be those of another vocabulary.

  Args:
    log_prob: of a policy (`Policy.log_prob`), at its temperature.
    params: its parameters.
    template: what is asked (`llm_prompts.load`).
    encode: a question's text to the tokens of a prompt, in the frame that the model was trained with.
    encode_answer: an answer to its token, as it stands first in a response.
    decode_prompt: tokens of a prompt that is judged to its text.
    decode_response: the same of a response.
    batch_size: questions at a time.

  Raises:
    ValueError: an answer is not one token, or two answers are the same one.
  """
  ids = _answer_ids(template.answers, encode_answer)
  score = jax.jit(lambda params, tokens: _first_wins(log_prob, params, tokens, ids))

  def judge(prompts, response, alternative):
    texts = decode_rows(decode_prompt, prompts.tokens)
    first, second = (decode_rows(decode_response, x) for x in (response, alternative))
    per_prompt = len(first) // len(texts)
    orders = [(first, second), (second, first)]
    questions = [
      template.fill(texts[i // per_prompt], *pair)
      for order in orders
      for i, pair in enumerate(zip(*order, strict=True))
    ]
    tokens = _pad([list(encode(question)) for question in questions], batch_size)
    parts = np.split(tokens, len(tokens) // batch_size)
    shares = np.concatenate([np.asarray(score(params, part)) for part in parts])
    ab, ba = shares[: len(questions)].reshape(2, -1)
    return 0.5 + (ab - ba) / 2

  return judge


def _answer_ids(answers: Sequence[str], encode: Encode) -> Int[np.ndarray, 'L']:
  rows = [list(encode(answer)) for answer in answers]
  for answer, row in zip(answers, rows, strict=True):
    if len(row) != 1:
      raise ValueError(
        f'The answer {answer!r} is {len(row)} tokens: give the template answers that are one token each.'
      )
  ids = [row[0] for row in rows]
  if len(set(ids)) < len(ids):
    raise ValueError(
      f'The answers {", ".join(answers)} are the tokens {ids}: give the template answers of different tokens.'
    )
  return np.array(ids, np.int32)


def _first_wins(
  log_prob: LogProbFn,
  params: Params,
  tokens: Int[Array, 'B S'],
  answer_ids: Int[np.ndarray, 'L'],
) -> Float[Array, 'B']:
  """P(first ≻ second): each answer is scored as a response of one token to each question."""
  rows = tokens.shape[0]
  prompts = Prompts(tokens, jnp.full(rows, -1, jnp.int32))
  responses = jnp.tile(jnp.asarray(answer_ids), rows)[:, None]
  of_answers = log_prob(params, prompts, responses).reshape(rows, -1)
  preferences = jnp.array(PREFERENCES[: len(answer_ids)])
  return jax.nn.softmax(of_answers, axis=-1) @ preferences


def _pad(rows: Sequence[Sequence[int]], batch_size: int) -> Int[np.ndarray, 'B S']:
  """One array of full batches; its width is a power of two, so that few programs are compiled."""
  width = 1 << max(len(row) - 1 for row in rows).bit_length()
  result = np.zeros((-(-len(rows) // batch_size) * batch_size, width), np.int32)
  for number, row in enumerate(rows):
    result[number, : len(row)] = row
  result[len(rows) :] = result[0]
  return result
