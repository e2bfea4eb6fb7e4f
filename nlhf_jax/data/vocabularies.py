"""Vocabularies: seqio's, Hugging Face's, and a closed list of words for the built-in corpus. Ids 0 pad, 1 EOS."""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jinja2.sandbox
import numpy as np
import seqio
import tensorflow as tf
import tokenizers

from nlhf_jax.models import preference_model
from nlhf_jax.models import reward_model
from nlhf_jax.formats import hf
from nlhf_jax.formats import hf_models


def sentencepiece(path: str, extra_ids: int = 0) -> seqio.SentencePieceVocabulary:
  """A SentencePiece model, with `extra_ids` sentinels at the end as in T5.

  Raises:
    FileNotFoundError: there is no such file.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'No vocabulary {path}: name a sentencepiece.model file with --gin.VOCABULARY_FILE.'
    )
  return seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)


def byte(extra_ids: int = 0) -> seqio.ByteVocabulary:
  """UTF-8 bytes, offset by 3."""
  return seqio.ByteVocabulary(extra_ids=extra_ids)


class WordVocabulary(seqio.Vocabulary):
  """Words between blanks, from a closed list; any other word is unknown."""

  def __init__(self, words: Iterable[str]):
    super().__init__(extra_ids=0)
    self._words = ('<pad>', '</s>', '<unk>', *words)
    if len(set(self._words)) != len(self._words):
      raise ValueError('A word stands twice in the vocabulary.')
    self._ids = {word: number for number, word in enumerate(self._words)}

  @property
  def bos_id(self) -> int | None:
    return None

  @property
  def eos_id(self) -> int:
    return 1

  @property
  def unk_id(self) -> int:
    return 2

  @property
  def _base_vocab_size(self) -> int:
    return len(self._words)

  def _encode(self, s: str) -> list[int]:
    return [self._ids.get(word, self.unk_id) for word in s.split()]

  def _decode(self, ids: Sequence[int]) -> str:
    return ' '.join(self._words[i] for i in ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    keys, values = tf.constant(self._words), tf.range(len(self._words))
    entries = tf.lookup.KeyValueTensorInitializer(keys, values)
    table = tf.lookup.StaticHashTable(entries, default_value=self.unk_id)
    return table.lookup(tf.strings.split(s))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.strings.reduce_join(tf.gather(tf.constant(self._words), ids), axis=-1, separator=' ')

  def __eq__(self, other) -> bool:
    return isinstance(other, WordVocabulary) and self._words == other._words

  def __hash__(self) -> int:
    return hash(self._words)


class HuggingFaceVocabulary(seqio.Vocabulary):
  """A tokenizer.json, with 0 for padding and 1 for the end, whatever ids it uses itself.

  Text is text: '<|im_end|>' in a prompt is encoded as letters, and cannot end a turn of the chat.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, ids: tuple[int, int], frame: tuple[str, str]):
    """Made by `hugging_face`.

    Args:
      tokenizer: theirs.
      ids: of padding and end, in theirs.
      frame: what stands before and after each text, special tokens included.
    """
    super().__init__(extra_ids=0)
    self._tokenizer = tokenizer
    size = max(
      tokenizer.get_vocab_size(), 1 + max(ids)
    )  # An id that no text uses may lie beyond it.
    self._words = list(range(size))  # Our id → theirs.
    for ours, theirs in hf_models.moved_ids(*ids).items():
      self._words[ours] = theirs
    self._ids = {theirs: ours for ours, theirs in enumerate(self._words)}
    self._frame, self._key = frame, (tokenizer.to_str(), ids, frame)
    self.for_prompts = self

  @property
  def bos_id(self) -> int | None:
    return None

  @property
  def eos_id(self) -> int:
    return 1

  @property
  def unk_id(self) -> int:
    return (
      self.eos_id
    )  # Bytes are words too: nothing is unknown. An id beyond the list ends the text.

  @property
  def _base_vocab_size(self) -> int:
    return len(self._words)

  def _encode(self, s: str) -> list[int]:
    before, after = (self._special(piece) for piece in self._frame)
    self._tokenizer.encode_special_tokens = True
    return [*before, *self._ours(s), *after]

  def _special(self, piece: str) -> list[int]:
    self._tokenizer.encode_special_tokens = False
    return self._ours(piece)

  def _ours(self, text: str) -> list[int]:
    return [self._ids[i] for i in self._tokenizer.encode(text, add_special_tokens=False).ids]

  def decode(self, ids: Iterable[int]) -> str:
    """The text, without its frame: a prompt's words."""
    if not any(self._frame):
      return super().decode(ids)
    return self._decode(list(ids))  # A frame may hold ends of turns: the text goes on after them.

  def _decode(self, ids: Sequence[int]) -> str:
    before, after = (self._kept(self._special(piece)) for piece in self._frame)
    kept = self._kept(ids)
    if kept[: len(before)] == before:
      kept = kept[len(before) :]
    if after and kept[-len(after) :] == after:
      kept = kept[: -len(after)]
    return self._tokenizer.decode([self._words[i] for i in kept], skip_special_tokens=False)

  def _kept(self, ids: Iterable[int]) -> list[int]:
    return [i for i in ids if self.eos_id < i < len(self._words)]

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(
      text: bytes | np.ndarray,
    ) -> np.ndarray:  # Bytes within a dataset, an array of them outside.
      text = text.item() if isinstance(text, np.ndarray) else text
      return np.array(self._encode(text.decode()), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(lambda x: self._decode(x.tolist()), [ids], tf.string)

  def __eq__(self, other) -> bool:
    return isinstance(other, HuggingFaceVocabulary) and self._key == other._key

  def __hash__(self) -> int:
    return hash(self._key)


@functools.cache
def hugging_face(
  model: str, ids: hf.Ids = hf.AS_GIVEN, chat: bool = False, system: str | None = None
) -> HuggingFaceVocabulary:
  """The tokenizer of a model.

  Args:
    model: a directory that holds tokenizer.json, or a repository on the hub.
    ids: padding and end; the same as the network's.
    chat: put each prompt into the model's chat template, as the user's turn, before the assistant's.
    system: the system's turn of that; None: what the template itself says.

  Raises:
    FileNotFoundError: there is no tokenizer.json.
    ValueError: the id of padding is a word that text uses; there is no chat template.
  """
  directory = hf.locate(model)
  path = directory / 'tokenizer.json'
  if not path.is_file():
    raise FileNotFoundError(f'No {path}: name the directory of a model with --gin.MODEL.')
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  config = hf.read_config(directory, ids=ids)
  special = getattr(config, 'pad_id', 0), getattr(config, 'eos_id', 1)
  pad = tokenizer.id_to_token(special[0])
  if not (tokenizer.get_added_tokens_decoder().get(special[0]) or pad in (None, '<pad>', '<unk>')):
    raise ValueError(
      f'{path}: id {special[0]}, which is to mean padding, is the word {pad!r}: name one that text never uses, such '
      'as a reserved token, with --gin.PAD_ID.'
    )
  vocabulary = HuggingFaceVocabulary(tokenizer, special, ('', ''))
  frame = _chat_frame(directory, system) if chat else (_start_of_text(tokenizer, special), '')
  vocabulary.for_prompts = HuggingFaceVocabulary(tokenizer, special, frame)
  return vocabulary


def _start_of_text(tokenizer: tokenizers.Tokenizer, special: tuple[int, int]) -> str:
  """What the tokenizer itself puts before a text, such as '<s>'."""
  added = tokenizer.encode('', add_special_tokens=True)
  return ''.join(
    token for token, i in zip(added.tokens, added.ids, strict=True) if i not in special
  )


def _chat_frame(directory: pathlib.Path, system: str | None) -> tuple[str, str]:
  """What a model's chat template puts before and after a user's words."""
  settings = {}
  if (directory / 'tokenizer_config.json').is_file():
    settings = json.loads((directory / 'tokenizer_config.json').read_text(encoding='utf-8'))
  template = settings.get('chat_template')
  if (directory / 'chat_template.jinja').is_file():
    template = (directory / 'chat_template.jinja').read_text(encoding='utf-8')
  if not template:
    raise ValueError(f'{directory} has no chat template: set chat = False.')
  words = 'WORDS-OF-THE-USER'
  turns = [] if system is None else [{'role': 'system', 'content': system}]
  turns.append({'role': 'user', 'content': words})
  named = {key: _token(settings.get(key)) for key in ('bos_token', 'eos_token')}
  # A template is somebody's program: it runs where it can reach nothing.
  sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  sandbox.globals['raise_exception'] = _refuse
  text = sandbox.from_string(template).render(messages=turns, add_generation_prompt=True, **named)
  before, found, after = text.partition(words)
  if not found:
    raise ValueError(f"{directory}: the chat template leaves out the user's words.")
  return before, after


def _token(value) -> str:
  return value.get('content', '') if isinstance(value, dict) else value or ''


def _refuse(message: str):
  raise ValueError(f'The chat template refuses: {message}')


def marker_ids(vocabulary: seqio.Vocabulary, num_markers: int) -> tuple[int, ...]:
  """Tokens that mark sentences: T5's sentinels, or the words <s1>, <s2> … of a word list.

  Raises:
    ValueError: the vocabulary has too few.
  """
  if isinstance(vocabulary, WordVocabulary):
    ids = [vocabulary.encode(f'<s{n}>')[0] for n in range(1, num_markers + 1)]
    if vocabulary.unk_id in ids:
      raise ValueError(f'The word list lacks one of <s1> … <s{num_markers}>.')
    return tuple(ids)
  if vocabulary.extra_ids < num_markers:
    raise ValueError(
      f'The vocabulary has {vocabulary.extra_ids} sentinels, {num_markers} are needed: set extra_ids to 100.'
    )
  return tuple(vocabulary.vocab_size - 1 - n for n in range(num_markers))


def encoder(vocabulary: seqio.Vocabulary) -> Callable[[str], Sequence[int]]:
  """A prompt's words to tokens."""
  return getattr(vocabulary, 'for_prompts', vocabulary).encode


def decoder(vocabulary: seqio.Vocabulary) -> Callable[[Sequence[int]], str]:
  """Tokens to text, without the frame that prompts have."""
  return getattr(vocabulary, 'for_prompts', vocabulary).decode


def rater_prompt(
  vocabulary: seqio.Vocabulary, pieces: Sequence[str] = preference_model.RATER_PROMPT
) -> preference_model.RaterPrompt:
  """The rater prompt in tokens."""
  return preference_model.RaterPrompt(*(tuple(vocabulary.encode(piece)) for piece in pieces))


def reward_prompt(
  vocabulary: seqio.Vocabulary, pieces: Sequence[str] = reward_model.REWARD_PROMPT
) -> reward_model.RewardPrompt:
  """The reward prompt in tokens."""
  return reward_model.RewardPrompt(*(tuple(vocabulary.encode(piece)) for piece in pieces))
