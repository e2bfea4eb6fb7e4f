"""From a judge of text to a judge of tokens: a rule, or any other function of strings, becomes a `PreferenceFn`.

A judge that fails, or answers anything but a number in [0, 1], gives no vote: an error, never a tie.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Int

from nlhf_jax.types import EOS, PreferenceFn

# Token ids, without padding and EOS, to text.
Decode = Callable[[Sequence[int]], str]


@runtime_checkable
class TextPreference(Protocol):
  """P(first ≻ second | prompt) in [0, 1], of texts."""

  def __call__(self, prompt: str, first: str, second: str) -> float: ...


def from_text(
  function: TextPreference, decode_prompt: Decode, decode_response: Decode
) -> PreferenceFn:
  """A function of texts as a judge of tokens; runs on the host, one pair after another.

  Args:
    function: (prompt, first, second) -> P(first ≻ second).
    decode_prompt: tokens of a prompt to its text.
    decode_response: the same of a response.

  Returns:
    A judge that raises ValueError, with the pair's number in the batch, where the function fails or answers anything
    but a number in [0, 1].
  """

  def judge(prompts, response, alternative):
    texts = decode_rows(decode_prompt, prompts.tokens)
    first, second = (decode_rows(decode_response, x) for x in (response, alternative))
    per_prompt = len(first) // len(texts)
    votes = [
      _vote(function, number, (texts[number // per_prompt], *pair))
      for number, pair in enumerate(zip(first, second, strict=True))
    ]
    return np.array(votes, np.float32)

  return judge


def decode_rows(decode: Decode, tokens: Int[Array, 'N T'] | Int[np.ndarray, 'N T']) -> list[str]:
  """The text of each row, without padding and EOS."""
  return [decode(row[row > EOS].tolist()) for row in np.asarray(tokens)]


def _vote(function: TextPreference, number: int, texts: tuple[str, str, str]) -> float:
  try:
    answer = function(*texts)
    preference = float(answer)
  except Exception as error:
    raise ValueError(
      f'The judge failed on pair {number} of the batch, so there is no vote: {error!r}. Make it answer a number in '
      f'[0, 1] for {_abridged(texts)}.'
    ) from error
  if not 0 <= preference <= 1:
    raise ValueError(
      f'The judge answered {answer!r} on pair {number} of the batch, which is no vote: make it answer a number in '
      f'[0, 1], the probability that the first response is better, for {_abridged(texts)}.'
    )
  return preference


def _abridged(texts: tuple[str, str, str]) -> str:
  shown = [text if len(text) <= 60 else f'{text[:60]} …' for text in texts]
  return 'prompt {!r}, first {!r}, second {!r}'.format(*shown)
