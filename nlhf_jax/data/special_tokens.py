"""Special tokens that no text can spell: a prompt that quotes '<|im_end|>' holds letters, and cannot end a turn.

A tokenizer looks for its special tokens before anything else, and what it does to a text depends on where they stand. So a
rendered conversation has to be encoded as one text, with the template's special tokens in it and the user's as letters.
To tell them apart, the tokenizer's own are given names that nobody knows.
"""

import itertools
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers

# Of characters that mean nothing.
_PRIVATE = range(0xE000, 0xF900)


class Unspellable:
  """A tokenizer's twin that encodes the same, with secret names for its special tokens."""

  def __init__(self, tokenizer: tokenizers.Tokenizer):
    """Makes the twin; it neither shortens nor pads."""
    description = json.loads(tokenizer.to_str())
    secret = secrets.token_hex(8)
    self._names = {
      token['content']: f'<{secret}{token["id"]}>'
      for token in description['added_tokens']
      if token['special']
    }
    _rename(description, self._names)
    description |= {'truncation': None, 'padding': None}
    self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
    # As the tokenizer does: the first that begins, and of these the longest.
    names = sorted(self._names, key=len, reverse=True)
    self._special = re.compile('|'.join(map(re.escape, names))) if names else None

  def encode(self, text: str) -> list[int]:
    """Ids of a text in which nothing is special."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_rendered(
    self, render: Callable[[Sequence[str]], str], contents: Sequence[str]
  ) -> list[int]:
    """Ids of what a template makes of texts: its special tokens are special, theirs are letters.

    Args:
      render: makes one text of the contents, which it may trim.
      contents: texts that may hold anything.
    """
    return self.encode(self._rendered(render, contents))

  def encode_pieces(
    self, render: Callable[[Sequence[str]], str], num_texts: int
  ) -> tuple[tuple[int, ...], ...]:
    """Ids of what a template puts before, between and after texts, each as it stands within a text.

    Args:
      render: makes one text of as many as there are; it must keep their order.
      num_texts: how many.

    Raises:
      ValueError: it leaves a text out, or has one twice.
    """
    marks = [chr(place) for place in itertools.islice(_PRIVATE, num_texts)]
    rendered = self._rendered(render, marks)
    found = re.findall(f'[{"".join(marks)}]', rendered)
    if found != marks:
      raise ValueError(
        f'The template has its {num_texts} texts in the order {[marks.index(mark) + 1 for mark in found]}: it must have each '
        'once, in their order.'
      )
    first, *rest = re.split(f'[{"".join(marks)}]', rendered)
    return tuple(self.encode(first)), *(tuple(self._encode_within(x)) for x in rest)

  def _rendered(self, render: Callable[[Sequence[str]], str], contents: Sequence[str]) -> str:
    """As this twin spells it."""
    if self._special is None:
      return render(contents)
    begin, end = _unused(contents)
    originals = list(self._names)
    hide = lambda found: f'{begin}{originals.index(found[0])}{end}'
    rendered = render([self._special.sub(hide, text) for text in contents])
    rendered = self._special.sub(lambda found: self._names[found[0]], rendered)
    show = lambda found: originals[int(found[1])]
    return re.sub(f'{begin}(\\d+){end}', show, rendered)

  def _encode_within(self, text: str) -> list[int]:
    """Ids of a text that something stands before: some tokenizers put a blank before what comes first."""
    mark = chr(_PRIVATE[-1])
    before, both = self.encode(mark), self.encode(mark + text)
    return both[len(before) :] if both[: len(before)] == before else self.encode(text)


def _unused(texts: Sequence[str]) -> tuple[str, str]:
  """Two characters that no text holds."""
  used = set().union(*texts)
  begin, end = itertools.islice((c for c in map(chr, _PRIVATE) if c not in used), 2)
  return begin, end


def _rename(description: dict[str, Any], names: Mapping[str, str]) -> None:
  """Gives tokens other names wherever a tokenizer.json has them."""
  rename = lambda name: names.get(name, name)
  for token in description['added_tokens']:
    token['content'] = rename(token['content'])
  model = description['model']
  if isinstance(model['vocab'], dict):
    model['vocab'] = {rename(name): number for name, number in model['vocab'].items()}
  else:
    model['vocab'] = [[rename(name), score] for name, score in model['vocab']]
  if isinstance(model.get('unk_token'), str):
    model['unk_token'] = rename(model['unk_token'])
