"""Hugging Face's tokenizers as seqio vocabularies."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf
import tokenizers

from nlhf_jax.data import chat_templates
from nlhf_jax.formats import hf_models
from nlhf_jax.types import EOS


class HuggingFaceVocabulary(seqio.Vocabulary):
  """A tokenizer.json, with 0 for padding and 1 for the end, whatever ids it uses itself.

  Text is text: '<|im_end|>' in a prompt is encoded as letters, and cannot end a turn of the chat.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    ids: tuple[int, int],
    frame: tuple[str, str],
    template: chat_templates.ChatTemplate | None = None,
  ):
    """Made by `vocabularies.hugging_face`.

    Args:
      tokenizer: theirs.
      ids: of padding and end, in theirs.
      frame: what stands before and after each text, special tokens included.
      template: what conversations go through; its frame is `frame`.
    """
    super().__init__(extra_ids=0)
    self._tokenizer = tokenizer
    # An id that no text uses may be beyond the list.
    size = max(tokenizer.get_vocab_size(), 1 + max(ids))
    self._theirs = list(range(size))
    for ours, theirs in hf_models.moved_ids(*ids).items():
      self._theirs[ours] = theirs
    self._ours = {theirs: ours for ours, theirs in enumerate(self._theirs)}
    self._frame, self._template = frame, template
    self._key = tokenizer.to_str(), ids, frame
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

    What stands around texts is kept. They lose their ends: first all but the last, the oldest first, then the last, then
    the system's.

    Args:
      prompt: its text.
      messages: its turns, where it is a conversation; without a chat template its text is read.
      max_length: in tokens; None: it may have any.

    Raises:
      ValueError: the chat template refuses, or does not fit into `max_length` by itself.
    """
    parts: list[str | int]
    if messages is None or self._template is None:
      messages, parts = [{'role': 'user', 'content': prompt}], [self._frame[0], 0, self._frame[1]]
    else:
      parts = self._template.parts(messages)
    tokens = [
      self._encode_words(messages[part]['content'])
      if isinstance(part, int)
      else self._encode_special(part)
      for part in parts
    ]
    excess = 0 if max_length is None else sum(map(len, tokens)) - max_length
    if excess > 0:
      _shorten(tokens, parts, messages, excess)
    return list(itertools.chain.from_iterable(tokens)), excess > 0

  def _encode(self, s: str) -> list[int]:
    return self.encode_prompt(s)[0]

  def _encode_words(self, text: str) -> list[int]:
    self._tokenizer.encode_special_tokens = True
    return self._encode_text(text)

  def _encode_special(self, piece: str) -> list[int]:
    self._tokenizer.encode_special_tokens = False
    return self._encode_text(piece)

  def _encode_text(self, text: str) -> list[int]:
    return [self._ours[i] for i in self._tokenizer.encode(text, add_special_tokens=False).ids]

  def decode(self, ids: Iterable[int]) -> str:
    """The text, without its frame: a prompt's words."""
    if not any(self._frame):
      return super().decode(ids)
    return self._decode(list(ids))  # A frame may hold ends of turns: the text goes on after them.

  def _decode(self, ids: Sequence[int]) -> str:
    before, after = (self._without_special(self._encode_special(piece)) for piece in self._frame)
    kept = self._without_special(ids)
    if kept[: len(before)] == before:
      kept = kept[len(before) :]
    if after and kept[-len(after) :] == after:
      kept = kept[: -len(after)]
    return self._tokenizer.decode([self._theirs[i] for i in kept], skip_special_tokens=False)

  def _without_special(self, ids: Iterable[int]) -> list[int]:
    return [i for i in ids if EOS < i < len(self._theirs)]

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


def _shorten(
  tokens: list[list[int]],
  parts: Sequence[str | int],
  messages: chat_templates.Messages,
  excess: int,
) -> None:
  """Takes as many tokens off the ends of messages."""
  system = {n for n, message in enumerate(messages) if message['role'] == 'system'}
  places = {part: place for place, part in enumerate(parts) if isinstance(part, int)}
  for number in sorted(places, key=lambda n: (n in system, n)):
    lost = min(excess, len(tokens[places[number]]))
    del tokens[places[number]][len(tokens[places[number]]) - lost :]
    excess -= lost
  if excess:
    raise ValueError(
      f'What the chat template itself says is {excess} tokens longer than a prompt may be: raise prompt_length.'
    )
