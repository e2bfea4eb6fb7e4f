"""What a server of OpenAI's chat/completions sends: an answer, with log-probs of its tokens where it gives them, or an error."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

# Only the end of an answer can hold the verdict.
_NUM_POSITIONS = 32


class Position(NamedTuple):
  """A token of an answer, and what might have stood in its place."""

  token: str
  # Tokens, and their log-probs in nats.
  choices: tuple[tuple[str, float], ...]


class Answer(NamedTuple):
  """What a model answered."""

  text: str
  # Of its last tokens; empty where the server gives no log-probs.
  positions: tuple[Position, ...]
  # Of question and answer.
  num_tokens: int
  # Seconds since 1970.
  time: float


def from_completion(text: str, estimate: int) -> Answer:
  """The first choice of a chat completion; no text where it has none, as of a refusal.

  Args:
    text: JSON.
    estimate: the number of tokens, where the server does not count them.

  Raises:
    ValueError: it is no chat completion.
  """
  try:
    row = json.loads(text)
    choice = row['choices'][0]
    content = choice['message'].get('content') or ''
    num_tokens = (row.get('usage') or {}).get('total_tokens')
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    raise ValueError('This is no chat completion.') from None
  if not isinstance(content, str):
    raise ValueError(f'The content must be text, got {type(content).__name__}.')
  if isinstance(num_tokens, bool) or not isinstance(num_tokens, int) or num_tokens < 0:
    num_tokens = estimate
  return Answer(content, _positions(choice.get('logprobs')), num_tokens, time.time())


def error_message(text: str) -> str:
  """What a server says of an error: OpenAI's field, or all of it."""
  try:
    error = json.loads(text)['error']
    return str(error['message'] if isinstance(error, dict) else error)
  except (ValueError, LookupError, TypeError, RecursionError):
    return text


def _positions(log_probs: Any) -> tuple[Position, ...]:
  """Of OpenAI's field; nothing where it is none, or malformed."""
  try:
    content = (log_probs or {}).get('content') or []
    return tuple(Position(str(x['token']), _choices(x)) for x in content[-_NUM_POSITIONS:])
  except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
    return ()


def _choices(entry: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
  """A token and its alternatives, without those of no probability."""
  every = [entry, *(entry.get('top_logprobs') or [])]
  found = [(str(x['token']), float(x['logprob'])) for x in every]
  return tuple((token, value) for token, value in found if math.isfinite(value))
