"""A Nash-MD step of small models is what it was when it was recorded, whatever was made faster since."""

import numpy as np
import pytest

from tests.golden import make_rollouts


@pytest.mark.parametrize('family', make_rollouts.FAMILIES)
def test_a_step_is_the_recorded_one(family):
  """The same tokens; numbers to the rounding of sums in another order."""
  found = make_rollouts.step(family)
  with np.load(make_rollouts.GOLDEN / 'rollouts' / f'{family}.npz', allow_pickle=False) as golden:
    np.testing.assert_array_equal(found['tokens'], golden['tokens'])
    assert set(found) == set(golden)
    for name in golden:
      np.testing.assert_allclose(found[name], golden[name], rtol=2e-4, atol=2e-5, err_msg=name)
