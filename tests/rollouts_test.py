"""A Nash-MD step of small models is what it was when it was recorded, whatever was made faster since."""

import numpy as np
import pytest

from nlhf_jax.networks import decoding, layers
from nlhf_jax.networks.layers import Execution
from tests.golden import make_rollouts


def check(family, found):
  """The same tokens; numbers to the rounding of sums in another order."""
  with np.load(make_rollouts.GOLDEN / 'rollouts' / f'{family}.npz', allow_pickle=False) as golden:
    np.testing.assert_array_equal(found['tokens'], golden['tokens'])
    assert set(found) == set(golden)
    for name in golden:
      np.testing.assert_allclose(found[name], golden[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize('family', make_rollouts.FAMILIES)
def test_a_step_is_the_recorded_one(family):
  check(family, make_rollouts.step(family))


@pytest.mark.parametrize(
  'how', [Execution(scan=True), Execution(True, 'layers'), Execution(False, 'dots')]
)
@pytest.mark.parametrize('family', ['t5_1_1', 'qwen2_5'])
def test_layers_scanned_or_computed_again_change_nothing(family, how):
  check(family, make_rollouts.step(family, how))


@pytest.mark.parametrize('family', ['t5_1_1', 'llama'])
def test_logits_in_parts_and_prompts_in_turns_change_nothing(family):
  """Parts of two positions, the last one of one; two of three prompts at a time."""
  check(family, make_rollouts.step(family, max_logits=2 * 6 * 24, num_slots=2))


@pytest.mark.parametrize('family', ['t5_1_1', 'qwen2_5'])
def test_kernels_laid_output_major_change_nothing(family, monkeypatch):
  used = []
  original = layers.output_major
  monkeypatch.setattr(decoding, '_LARGE', 0)
  monkeypatch.setattr(layers, 'output_major', lambda w, x: used.append(w.shape) or original(w, x))
  check(family, make_rollouts.step(family))
  assert len(used) > 10


def test_an_unknown_rematerialisation_is_refused():
  with pytest.raises(ValueError, match="remat must be one of none, layers, dots, got 'all'"):
    make_rollouts.step('llama', Execution(remat='all'))


@pytest.mark.parametrize('family', ['t5_1_1', 'mistral'])
def test_caches_that_grow_change_nothing(family, monkeypatch):
  monkeypatch.setattr(decoding, 'stages', lambda length: [2, 5, length])
  check(family, make_rollouts.step(family))


def test_caches_double_up_to_the_length_that_is_asked_for():
  assert [decoding.stages(n) for n in (1, 128, 129, 512)] == [
    [1],
    [128],
    [65, 129],
    [128, 256, 512],
  ]
