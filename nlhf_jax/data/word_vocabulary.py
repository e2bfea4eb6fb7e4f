"""A vocabulary of words between blanks, from a closed list: that of the built-in posts."""

from collections.abc import Iterable, Sequence

import seqio
import tensorflow as tf

from nlhf_jax.types import EOS


class WordVocabulary(seqio.Vocabulary):
  """Words of a list from id 3 on, 2 for any other."""

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
    return EOS

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
