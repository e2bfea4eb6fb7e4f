"""seqio's feature converter for T5X: what our tasks hold, padded, under the names that T5X knows."""

from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from nlhf_jax.types import PAD


class FeatureConverter(seqio.FeatureConverter):
  """Prompts, demonstrations and comparisons alike; what a batch holds follows the task's features.

  Task feature → feature of the model: `inputs` → `encoder_input_tokens`; `targets` → `decoder_target_tokens`,
  `decoder_loss_weights` and `decoder_input_tokens`; `alternative` → `alternative_tokens`, as long as the targets;
  `preference` and `index` as they are. T5X takes the length of responses from `decoder_input_tokens`, so that prompts
  alone have them too, all padding.
  """

  # Empty, since features differ from task to task: seqio's checks of them are off.
  TASK_FEATURES: ClassVar[dict] = {}
  MODEL_FEATURES: ClassVar[dict] = {}
  PACKING_FEATURE_DTYPES: ClassVar[dict] = {}

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts a dataset.

    Args:
      ds: examples of a task of `data.tasks`.
      task_feature_lengths: of `inputs` and `targets`, in tokens; longer ones lose their end.

    Raises:
      ValueError: packing was asked for, or a length is missing.
    """
    if self.pack:
      raise ValueError('Prompts and comparisons cannot be packed: set DatasetConfig.pack = False.')
    for name in ('inputs', 'targets'):
      if name not in task_feature_lengths:
        raise ValueError(f'task_feature_lengths lacks {name!r}: {dict(task_feature_lengths)}.')
    return self._convert_features(ds, task_feature_lengths)

  def _convert_features(self, ds, task_feature_lengths):
    prompt_length, length = task_feature_lengths['inputs'], task_feature_lengths['targets']

    def convert(example):
      features = {
        'encoder_input_tokens': _pad(example['inputs'], prompt_length),
        'decoder_input_tokens': tf.fill((length,), PAD),
      }
      if 'targets' in example:
        response = _pad(example['targets'], length)
        features |= {
          'decoder_target_tokens': response,
          'decoder_input_tokens': tf.concat([[self.bos_id], response[:-1]], axis=0),
          'decoder_loss_weights': tf.cast(response != PAD, tf.int32),
        }
      if 'alternative' in example:
        features['alternative_tokens'] = _pad(example['alternative'], length)
      return features | {name: example[name] for name in ('preference', 'index') if name in example}

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(self, task_feature_lengths):
    """Never asked for here: raises NotImplementedError."""
    raise NotImplementedError('Lengths follow from `task_feature_lengths` and the task alone.')


def _pad(tokens: tf.Tensor, length: int) -> tf.Tensor:
  tokens = tf.cast(tokens[:length], tf.int32)
  missing = length - tf.shape(tokens)[0]
  return tf.ensure_shape(tf.pad(tokens, [[0, missing]], constant_values=PAD), (length,))
