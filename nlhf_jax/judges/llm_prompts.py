"""What an LLM judge is asked, and what its answer says: templates of text, and a strict reading of answers.

A template is a file with {prompt}, {first} and {second}, where the texts are inserted as they are. Its first line may
name its answers, `answers: A B C`: the first response is better, the second is, and, where there is a third, both are
equally good. Without that line they are A and B.
"""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from nlhf_jax import untrusted
from nlhf_jax.judges.llm_answers import Answer, Position

_DIRECTORY = pathlib.Path(__file__).parent / 'templates'
_FIELDS = ('prompt', 'first', 'second')
# What an answer may hold beside the letter.
_LABELS = frozenset(
  ['answer', 'better', 'choice', 'final', 'is', 'my', 'preferred', 'response', 'summary', 'the', 'verdict']
)  # fmt: skip
# A last line that ends an explanation must have one of them.
_MARKERS = frozenset(['answer', 'choice', 'preferred', 'verdict'])
# P(first ≻ second) of each answer, in the order of the template.
PREFERENCES = (1.0, 0.0, 0.5)


class PromptTemplate(NamedTuple):
  """A question that takes a prompt and two responses."""

  name: str
  # Text and, in every second place, the field that is inserted.
  pieces: tuple[str, ...]
  # Of the first, of the second, and of both alike if there are three.
  answers: tuple[str, ...] = ('A', 'B')

  def fill(self, prompt: str, first: str, second: str) -> str:
    """The question. Braces in the texts are text."""
    texts = dict(zip(_FIELDS, (prompt, first, second), strict=True))
    return ''.join(texts[x] if i % 2 else x for i, x in enumerate(self.pieces))


class Reading(NamedTuple):
  """What an answer says."""

  # P(first ≻ second).
  preference: float
  # Whether it comes from log-probs of the answers; else it is 1, 0 or 1/2.
  from_log_probs: bool


def names() -> list[str]:
  """Of the templates that the package brings."""
  return sorted(path.stem for path in _DIRECTORY.glob('*.txt'))


def load(name: str | pathlib.Path) -> PromptTemplate:
  """A template.

  Args:
    name: one of `names()`, or a file.

  Raises:
    FileNotFoundError: there is neither.
    ValueError: the template lacks a field, or its answers are not two or three different words.
  """
  path = _DIRECTORY / f'{name}.txt' if str(name) in names() else pathlib.Path(name)
  if not path.is_file():
    raise FileNotFoundError(
      f'No template {str(name)!r}: name a file, or one of {", ".join(names())}.'
    )
  try:
    return parse(path.stem, untrusted.decode(path.read_bytes()))
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def parse(name: str, text: str) -> PromptTemplate:
  """A template from a file's text.

  Raises:
    ValueError: as of `load`.
  """
  answers = ('A', 'B')
  if header := re.match(r'answers:(.*)\n', text):
    answers, text = tuple(header[1].split()), text[header.end() :]
  if len(set(answers)) != len(answers) or len(answers) not in (2, 3):
    raise ValueError(f'a template has two or three different answers, got {" ".join(answers)!r}.')
  for answer in answers:
    if _words(answer) != [answer] or answer.lower() in _LABELS:
      raise ValueError(f'{answer!r} is no answer: take one letter, number or word.')
  pieces = tuple(re.split(rf'\{{({"|".join(_FIELDS)})\}}', text.removesuffix('\n')))
  for field in _FIELDS:
    if field not in pieces[1::2]:
      raise ValueError(f'the template has no {{{field}}}: write it where the text goes.')
  return PromptTemplate(name, pieces, answers)


def read_answer(answer: Answer, answers: Sequence[str]) -> Reading | None:
  """What the answer says; None: it is malformed, and no vote.

  The text must be an answer and nothing else (`A`, `(A)`, `The answer is A.`), or end with a line such as `Answer: A`.
  Where there are log-probs of the answer's token, the preference is Σ p(answer) P(first ≻ second | answer) / Σ p(answer).
  """
  number = _answer_in(answer.text, answers)
  if number is None:
    return None
  for position in reversed(answer.positions):
    if _words(position.token) == [answers[number]]:
      shares = _shares(position, answers)
      if shares is not None:
        value = sum(share * p for share, p in zip(shares, PREFERENCES, strict=False))
        return Reading(min(value, 1.0), True)
      break
  return Reading(PREFERENCES[number], False)


def _shares(position: Position, answers: Sequence[str]) -> list[float] | None:
  """The probability of each answer among the answers."""
  found = [0.0] * len(answers)
  for token, log_prob in dict(position.choices).items():
    words = _words(token)
    if len(words) == 1 and words[0] in answers:
      found[answers.index(words[0])] += math.exp(min(log_prob, 0.0))
  total = sum(found)
  return [share / total for share in found] if total > 0 else None


def _answer_in(text: str, answers: Sequence[str]) -> int | None:
  text = text.rpartition('</think>')[2].strip()
  number = _only_answer(text, answers)
  if number is None and text:
    last = text.splitlines()[-1]
    if _MARKERS & {word.lower() for word in _words(last)}:
      number = _only_answer(last, answers)
  return number


def _only_answer(text: str, answers: Sequence[str]) -> int | None:
  """The number of the one answer in a text that has nothing else but labels."""
  words = _words(text)
  found = [word for word in words if word in answers]
  if len(found) != 1 or any(w not in answers and w.lower() not in _LABELS for w in words):
    return None
  return list(answers).index(found[0])


def _words(text: str) -> list[str]:
  return re.findall(r'[^\W_]+', text)
