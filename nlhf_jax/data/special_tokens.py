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
    if self._special is None:
      return self.encode(render(contents))
    begin, end = _unused(contents)
    originals = list(self._names)
    hide = lambda found: f'{begin}{originals.index(found[0])}{end}'
    rendered = render([self._special.sub(hide, text) for text in contents])
    rendered = self._special.sub(lambda found: self._names[found[0]], rendered)
    show = lambda found: originals[int(found[1])]
    return self.encode(re.sub(f'{begin}(\\d+){end}', show, rendered))


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
