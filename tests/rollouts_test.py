"""A Nash-MD step of small models is what it was when it was recorded, whatever was changed since."""

import numpy as np
import pytest

from nlhf_jax.networks import matmul
from nlhf_jax.networks.cpu import few_rows
from nlhf_jax.networks.decoding import loop
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
def test_recorded_step(family):
  check(family, make_rollouts.step(family))


@pytest.mark.parametrize(
  'execution', [Execution(scan=True), Execution(True, 'layers'), Execution(False, 'dots')]
)
@pytest.mark.parametrize('family', ['t5_1_1', 'qwen2_5'])
def test_scanned_and_rematerialised_layers(family, execution):
  check(family, make_rollouts.step(family, execution))


@pytest.mark.parametrize('family', ['t5_1_1', 'llama'])
def test_logits_in_chunks_and_prompts_in_slots(family):
  """Chunks of two positions, the last one of one; two of three prompts at a time."""
  check(family, make_rollouts.step(family, max_logits=2 * 6 * 24, num_slots=2))


@pytest.mark.parametrize('kernel', [True, False])
@pytest.mark.parametrize('family', ['t5_1_1', 'qwen2_5'])
def test_layouts_for_few_rows(family, kernel, monkeypatch):
  used = []
  module, name = (few_rows, 'multiply') if kernel else (matmul, 'output_major')
  original = getattr(module, name)
  monkeypatch.setattr(matmul, 'worth_a_copy', lambda size: True)
  monkeypatch.setattr(few_rows, 'available', lambda: kernel)
  monkeypatch.setattr(module, name, lambda *args: used.append(args) or original(*args))
  check(family, make_rollouts.step(family))
  assert len(used) > 10


def test_unknown_rematerialisation():
  with pytest.raises(ValueError, match="remat must be one of none, layers, dots, got 'all'"):
    make_rollouts.step('llama', Execution(remat='all'))


@pytest.mark.parametrize('family', ['t5_1_1', 'mistral'])
def test_growing_caches(family, monkeypatch):
  monkeypatch.setattr(loop, 'stages', lambda length: [2, 5, length])
  check(family, make_rollouts.step(family))
