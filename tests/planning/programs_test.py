"""Memory of a step by its compiled programs, beside what its arrays take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.planning import programs
from nlhf_jax.training import loop
from nlhf_jax.types import Prompts


@pytest.mark.parametrize('on_host', [False, True])
def test_memory_of_all_that_a_step_holds(on_host, tiny_policy, tiny_params):
  """All sets, the optimizer's state and the judge's weights, to the byte; nothing is run."""
  weights = jnp.linspace(0.0, 1.0, 1000)
  length = lambda tokens: jnp.sum(tokens > 0, axis=-1)
  on_device = jax.jit(lambda w, y: w[length(y)])
  judge = (
    (lambda x, y, _: np.asarray(y)[:, 0] * 0.5)
    if on_host
    else lambda x, y, _: on_device(weights, y)
  )
  method = algorithms.nash_ema_pg(tiny_policy, judge, tau=0.1, decay=0.9, num_samples=2)
  optimizer = optax.adam(1e-3)
  make = lambda online, reference: loop.init_state(
    method, optimizer, 0, online=online, given={'reference': reference}
  )
  state = jax.eval_shape(make, *tiny_params)
  batch = Prompts(np.full((4, 5), 2, np.int32), np.arange(4, dtype=np.int32))
  needed = programs.memory(programs.compile_step(method, optimizer, state, batch))
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert needed['state'] == size(make(*tiny_params))
  assert needed['judge_weights'] == (0 if on_host else weights.nbytes)
  assert needed['update'] > size(tiny_params[0])  # The gradient at least.
  lasting = sum(needed[name] for name in ('state', 'judge_weights', 'batch'))
  assert needed['peak'] == lasting + max(needed[name] for name in ('sample', 'score', 'update'))
