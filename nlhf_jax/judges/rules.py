"""Judges that are rules on text: P(first ≻ second | prompt) is 1, 1/2 or 0, or a share of several rules' votes.

`judges.text.from_text` makes a `PreferenceFn` of one, `data.vocabularies.text_judge` does so for a vocabulary. Under each
rule P(y ≻ y') + P(y' ≻ y) = 1, and an empty response loses to any other.
"""

import re
from collections.abc import Callable, Sequence

from nlhf_jax.judges.text import TextPreference


def shorter(prompt: str, first: str, second: str) -> float:
  """The response of fewer words wins."""
  return _higher(lambda text: -len(_words(text)), first, second)


def coverage(prompt: str, first: str, second: str) -> float:
  """The response that keeps more of the prompt's different words wins."""
  wanted = set(_words(prompt))
  return _higher(lambda text: len(wanted & set(_words(text))), first, second)


def precision(prompt: str, first: str, second: str) -> float:
  """The response wins a larger share of whose words, each counted as often as it stands, are the prompt's."""
  wanted = set(_words(prompt))

  def score(text: str) -> float:
    words = _words(text)
    return sum(word in wanted for word in words) / max(len(words), 1)

  return _higher(score, first, second)


def contains(phrase: str) -> TextPreference:
  """The rule by which a response with this phrase, in upper or lower case, beats one without it.

  Raises:
    ValueError: the phrase is empty.
  """
  if not phrase:
    raise ValueError("phrase must not be empty, got ''.")
  has_phrase = lambda text: phrase.lower() in text.lower()
  return lambda prompt, first, second: _higher(has_phrase, first, second)


def votes(rules: Sequence[TextPreference]) -> TextPreference:
  """The mean of several rules, each an equal voter. Majorities of three rules can cycle where none of them does.

  Raises:
    ValueError: there are no rules.
  """
  if not rules:
    raise ValueError('rules must name at least one voter, got none.')
  return lambda *texts: sum(float(rule(*texts)) for rule in rules) / len(rules)


def _higher(score: Callable[[str], float], first: str, second: str) -> float:
  """1 where `first` scores higher, 1/2 where both score alike; an empty text scores lowest."""
  a, b = (score(text) if text.strip() else float('-inf') for text in (first, second))
  return 0.5 + 0.5 * (a > b) - 0.5 * (a < b)


def _words(text: str) -> list[str]:
  return re.findall(r'\w+', text.lower())
