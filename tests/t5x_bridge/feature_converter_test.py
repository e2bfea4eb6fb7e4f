"""What T5X's trainer gets of our tasks."""

import numpy as np
import pytest
import seqio

from nlhf_jax.data import tasks, vocabularies
from nlhf_jax.t5x_bridge import feature_converter

ROWS = {
  'prompts': {'index': 3, 'prompt': 'ab'},
  'demonstrations': {'index': 3, 'prompt': 'ab', 'response': 'cde'},
  'comparisons': {
    'index': 3,
    'prompt': 'ab',
    'response': 'c',
    'alternative': 'de',
    'preference': 0.25,
  },
}


def read(kind, lengths, **options):
  task = tasks.from_rows(kind, {'train': lambda: iter([ROWS[kind]])}, vocabularies.byte())
  dataset = seqio.get_dataset(
    mixture_or_task_name=task,
    task_feature_lengths=lengths,
    dataset_split='train',
    shuffle=False,
    feature_converter=feature_converter.FeatureConverter(**{'pack': False} | options),
  )
  return next(dataset.as_numpy_iterator())


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('prompts', {'decoder_input_tokens': [0, 0, 0]}),
    (
      # 'cde' and EOS are one token too many.
      'demonstrations',
      {
        'decoder_target_tokens': [102, 103, 104],
        'decoder_input_tokens': [0, 102, 103],
        'decoder_loss_weights': [1, 1, 1],
      },
    ),
    (
      'comparisons',
      {
        'decoder_target_tokens': [102, 1, 0],
        'decoder_input_tokens': [0, 102, 1],
        'decoder_loss_weights': [1, 1, 0],
        'alternative_tokens': [103, 104, 1],
        'preference': 0.25,
      },
    ),
  ],
)
def test_features_follow_the_task(kind, expected):
  found = read(kind, {'inputs': 4, 'targets': 3})
  expected = expected | {'encoder_input_tokens': [100, 101, 0, 0], 'index': 3}
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)


def test_packing_and_missing_lengths_are_refused():
  with pytest.raises(ValueError, match='cannot be packed'):
    read('prompts', {'inputs': 4, 'targets': 3}, pack=True)
  with pytest.raises(ValueError, match="lacks 'targets'"):
    read('prompts', {'inputs': 4})
