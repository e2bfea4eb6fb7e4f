"""Vocabularies: seqio's, and a closed list of words for the built-in corpus. Ids 0 pad, 1 EOS, 2 unknown."""

import os
from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf

from nlhf_jax import preference_model, reward_model


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
