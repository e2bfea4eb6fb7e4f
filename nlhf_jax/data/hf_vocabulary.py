"""Hugging Face's tokenizers as seqio vocabularies."""

import bisect
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import seqio
import tensorflow as tf
import tokenizers

from nlhf_jax.data import chat_templates, special_tokens
from nlhf_jax.formats import hf_layout
from nlhf_jax.types import EOS

# Text, or tokens.
S = TypeVar('S', str, list[int])
# Two words that have no beginning and no end in common.
_UNLIKE = ('a', '1')


class HuggingFaceVocabulary(seqio.Vocabulary):
  """A tokenizer.json, with 0 for padding and 1 for the end, whatever ids it uses itself.

  Text is text: '<|im_end|>' in a prompt is encoded as letters, and cannot end a turn of the chat.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    unspellable: special_tokens.Unspellable,
    ids: tuple[int, int],
    before: Sequence[int] = (),
    template: chat_templates.ChatTemplate | None = None,
  ):
    """Made by `vocabularies.hugging_face`.

    Args:
      tokenizer: theirs.
      unspellable: its twin.
      ids: of padding and end, in theirs.
      before: their ids that stand before every text, such as that of '<s>'.
      template: in its place, what a text goes through as a user's words.
    """
    super().__init__(extra_ids=0)
    self._tokenizer = tokenizer
    self._unspellable = unspellable
    # An id that no text uses may be beyond the list.
    size = max(tokenizer.get_vocab_size(), 1 + max(ids))
    self._theirs = list(range(size))
    for ours, theirs in hf_layout.moved_ids(*ids).items():
      self._theirs[ours] = theirs
    self._ours = {theirs: ours for ours, theirs in enumerate(self._theirs)}
    self._before, self._template = tuple(before), template
    self._key = tokenizer.to_str(), ids, self._before, template
    self.for_prompts = self

  @property
  def bos_id(self) -> int | None:
    return None

  @property
  def eos_id(self) -> int:
    return EOS

  @property
  def unk_id(self) -> int:
    """Bytes are tokens too, so nothing is unknown; an id beyond the list ends the text."""
    return EOS

  @property
  def _base_vocab_size(self) -> int:
    return len(self._theirs)

  def encode_prompt(
    self,
    prompt: str,
    messages: chat_templates.Messages | None = None,
    max_length: int | None = None,
  ) -> tuple[list[int], bool]:
    """A prompt's tokens, and whether it had to be shortened.

    A chat template's own words are kept. Texts lose their ends: first all but the last, the oldest first, then the last, then
    the system's.

    Args:
      prompt: its text.
      messages: its turns, where it is a conversation; without a chat template its text is read.
      max_length: in tokens; None: it may have any.

    Raises:
      ValueError: the chat template refuses, or does not fit into `max_length` by itself.
    """
    if self._template is None:
      theirs = [*self._before, *self._unspellable.encode(prompt)]
      is_long = max_length is not None and len(theirs) > max_length
      return self._to_ours(theirs[:max_length]), is_long
    turns = [{'role': 'user', 'content': prompt}] if messages is None else list(messages)
    theirs = self._encode_turns(turns)
    is_long = max_length is not None and len(theirs) > max_length
    if is_long:
      theirs = self._encode_turns(self._shortened(turns, max_length))
    return self._to_ours(theirs), is_long

  def encode_question(
    self, fill: Callable[[Sequence[str]], str], num_texts: int, system: str | None
  ) -> tuple[tuple[int, ...], ...]:
    """What stands before, between and after texts in a prompt that is made of them.

    Args:
      fill: texts -> a user's words.
      num_texts: how many.
      system: of the chat template, in place of the one of prompts.

    Raises:
      ValueError: the chat template refuses, or `fill` has not each text once, in their order.
    """

    def render(texts):
      words = fill(texts)
      if self._template is None:
        return words
      return self._template._replace(system=system).render([{'role': 'user', 'content': words}])

    before = self._before if self._template is None else ()
    first, *rest = (self._to_ours(x) for x in self._unspellable.encode_pieces(render, num_texts))
    return (*self._to_ours(before), *first), *map(tuple, rest)

  def frame(self) -> tuple[int, int]:
    """How many tokens stand before and after a prompt's words."""
    before, after = _shared_ends(*map(self._encode, _UNLIKE))
    return len(before), len(after)

  def model_ids(self, ids: Iterable[int]) -> list[int]:
    """What the model itself calls these tokens."""
    return [self._theirs[i] for i in ids]

  def _encode(self, s: str) -> list[int]:
    return self.encode_prompt(s)[0]

  def _to_ours(self, theirs: Iterable[int]) -> list[int]:
    return [self._ours[i] for i in theirs]

  def _encode_turns(self, turns: chat_templates.Messages) -> list[int]:
    """Of a conversation, theirs."""
    roles = [turn['role'] for turn in turns]

    def render(contents):
      pairs = zip(roles, contents, strict=True)
      return self._template.render([{'role': role, 'content': text} for role, text in pairs])

    return self._unspellable.encode_rendered(render, [turn['content'] for turn in turns])

  def _shortened(self, turns: list, max_length: int) -> list:
    """The turns with the longest contents that fit."""
    fits = lambda turns: len(self._encode_turns(turns)) <= max_length
    ends_at = lambda number, size: [
      *turns[:number],
      {**turns[number], 'content': turns[number]['content'][:size]},
      *turns[number + 1 :],
    ]
    order = sorted(range(len(turns)), key=lambda n: (turns[n]['role'] == 'system', n))
    for number in order:
      if fits(ends_at(number, 0)):
        too_long = range(1, len(turns[number]['content']) + 1)
        size = bisect.bisect(too_long, 0, key=lambda size: not fits(ends_at(number, size)))
        return ends_at(number, size)
      turns = ends_at(number, 0)
    raise ValueError(
      f'What the chat template itself says has {len(self._encode_turns(turns))} tokens, but a prompt may have {max_length}: '
      'raise prompt_length.'
    )

  def decode(self, ids: Iterable[int]) -> str:
    """The text, without what the template puts around it: a prompt's words."""
    if self._template is None:
      return super().decode(ids)
    return self._decode(
      list(ids)
    )  # A template may hold ends of turns: the text goes on after them.

  def _decode(self, ids: Sequence[int]) -> str:
    before, after = self._around
    return self._text(ids).removeprefix(before).removesuffix(after)

  @functools.cached_property
  def _around(self) -> tuple[str, str]:
    """What stands before and after every text when it is decoded."""
    return _shared_ends(*(self._text(self._encode(words)) for words in _UNLIKE))

  def _text(self, ids: Iterable[int]) -> str:
    kept = self.model_ids(i for i in ids if EOS < i < len(self._theirs))
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    ids = tf.numpy_function(self._encode_bytes, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
    """Bytes within a dataset, an array of them outside."""
    text = text.item() if isinstance(text, np.ndarray) else text
    return np.array(self._encode(text.decode()), np.int32)

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(lambda x: self._decode(x.tolist()), [ids], tf.string)

  def __eq__(self, other) -> bool:
    return isinstance(other, HuggingFaceVocabulary) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


def _shared_ends(one: S, other: S) -> tuple[S, S]:
  """What both begin with, and what both end with after that."""
  before = _shared_beginning(one, other)
  rest = (x[len(before) :][::-1] for x in (one, other))
  return before, _shared_beginning(*rest)[::-1]


def _shared_beginning(one: S, other: S) -> S:
  same = (a == b for a, b in zip(one, other, strict=False))
  return one[: sum(itertools.takewhile(bool, same))]
