"""What is asked of a vocabulary, and one of words. Neither needs seqio, whose vocabularies are of this kind too.

seqio imports TensorFlow, which takes four seconds: what generates its own texts starts without them.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from nlhf_jax.types import EOS, PAD

if TYPE_CHECKING:
  import tensorflow as tf


@runtime_checkable
class Vocabulary(Protocol):
  """Text to tokens and back; padding is 0 and the end 1.

  Optional are `for_prompts`, the vocabulary that prompts are encoded with, `encode_prompt`, which shortens them its own way, and
  `encode_tf` and `decode_tf`, which seqio's tasks need.
  """

  @property
  def pad_id(self) -> int:
    """0."""
    ...

  @property
  def eos_id(self) -> int | None:
    """1."""
    ...

  @property
  def unk_id(self) -> int | None:
    """What stands for a word that is not in it."""
    ...

  @property
  def vocab_size(self) -> int:
    """Tokens, `extra_ids` included."""
    ...

  @property
  def extra_ids(self) -> int:
    """Tokens at the end that no text has."""
    ...

  def encode(self, s: str) -> Sequence[int]:
    """A text's tokens, without EOS."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """The text up to the first EOS."""
    ...


class WordVocabulary:
  """Words between blanks: those of a closed list from id 3 on, 2 for any other."""

  pad_id, eos_id, unk_id, bos_id, extra_ids = PAD, EOS, 2, None, 0

  def __init__(self, words: Iterable[str]):
    self._words = ('<pad>', '</s>', '<unk>', *words)
    if len(set(self._words)) != len(self._words):
      raise ValueError('A word stands twice in the vocabulary.')
    self._ids = {word: number for number, word in enumerate(self._words)}

  @property
  def vocab_size(self) -> int:
    """Padding, EOS and the unknown word included."""
    return len(self._words)

  def encode(self, s: str) -> list[int]:
    """A number for each word."""
    return [self._ids.get(word, self.unk_id) for word in s.split()]

  def decode(self, ids: Iterable[int]) -> str:
    """The words up to the first EOS, itself included; an id beyond the list is the unknown word."""
    known = [i if i < len(self._words) else self.unk_id for i in ids]
    end = known.index(self.eos_id) + 1 if self.eos_id in known else None
    return ' '.join(self._words[i] for i in known[:end])

  def encode_tf(self, s: 'tf.Tensor') -> 'tf.Tensor':
    """The same in TensorFlow, for seqio's own pipelines."""
    import tensorflow as tf

    keys, values = tf.constant(self._words), tf.range(len(self._words))
    entries = tf.lookup.KeyValueTensorInitializer(keys, values)
    table = tf.lookup.StaticHashTable(entries, default_value=self.unk_id)
    return table.lookup(tf.strings.split(s))

  def decode_tf(self, ids: 'tf.Tensor') -> 'tf.Tensor':
    """The same in TensorFlow, but for padding after EOS, which is kept; of several texts one for each row."""
    import tensorflow as tf

    known = tf.where(ids < len(self._words), ids, self.unk_id)
    after_end = tf.cumsum(tf.cast(known == self.eos_id, tf.int32), exclusive=True, axis=-1) > 0
    kept = tf.where(after_end, self.pad_id, known)
    return tf.strings.reduce_join(tf.gather(tf.constant(self._words), kept), axis=-1, separator=' ')

  def __eq__(self, other) -> bool:
    return isinstance(other, WordVocabulary) and self._words == other._words

  def __hash__(self) -> int:
    return hash(self._words)
