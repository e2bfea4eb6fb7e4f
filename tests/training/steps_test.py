"""Programs that are compiled while others run: the same numbers, none compiled twice, and errors where they are heard."""

import contextlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import loop
from tests import compilations

ON_MESH = partitioning.Layout(partitioning.make_mesh(partitioning.Devices(), jax.devices()[:1]))
prefers_small = jax.jit(lambda x, y, other: jax.nn.sigmoid((other[:, 0] - y[:, 0]) * 1.0))


def counted(algorithm, traced):
  """The same method, which notes the threads that trace its loss."""

  def loss(*args):
    traced.append(threading.current_thread())
    return algorithm.loss(*args)

  return algorithm._replace(loss=loss)


def train(algorithm, params, prompts, layout, **options):
  """Parameters after two steps, and how many programs named `update` were compiled."""
  optimizer = optax.adam(0.01)
  with contextlib.nullcontext() if layout is None else layout.active():
    start = {'online': params[0], 'given': {'reference': params[1]}}
    state = loop.init_state(algorithm, optimizer, 0, **start)
    if layout is not None:
      state = partitioning.put(state, jax.tree.map(lambda _: layout.replicated, state))
    batches = iter([prompts] * 2)
    with compilations.counted('update') as compiled:
      run = loop.train(algorithm, optimizer, state, batches, num_steps=2, layout=layout, **options)
  return run.params.online, len(compiled)


@pytest.mark.parametrize('layout', [None, ON_MESH], ids=['device', 'mesh'])
@pytest.mark.parametrize(
  ('method', 'num_updates'),
  [(algorithms.self_play, 1), (algorithms.egpo, 2)],
  ids=['self_play', 'egpo with its half-step'],
)
def test_updates_that_are_compiled_ahead(
  method, num_updates, layout, tiny_policy, tiny_params, tiny_prompts
):
  found = {}
  for ahead in (False, True):
    traced = []
    algorithm = counted(method(tiny_policy, prefers_small, tau=0.1), traced)
    params, compiled = train(algorithm, tiny_params, tiny_prompts, layout, compiles_ahead=ahead)
    assert compiled == num_updates
    # Both updates are one function.
    assert [x is threading.main_thread() for x in traced] == [not ahead]
    found[ahead] = params
  jax.tree.map(np.testing.assert_array_equal, found[True], found[False])


def test_an_update_that_cannot_be_compiled(tiny_policy, tiny_params, tiny_prompts):
  """The thread's error is not the last word: the update's own call raises it."""
  algorithm = algorithms.self_play(tiny_policy, prefers_small, tau=0.1)

  def loss(params, batch):
    raise ValueError('no such loss')

  with pytest.raises(ValueError, match='no such loss'):
    train(algorithm._replace(loss=loss), tiny_params, tiny_prompts, None, compiles_ahead=True)


def test_a_judge_on_the_host_is_not_needed_ahead(tiny_policy, tiny_params, tiny_prompts):
  """It cannot be called with shapes: then nothing is compiled ahead, and training is as without."""
  asked = []

  def judge(prompts, response, other):
    asked.append(np.asarray(response))
    return jnp.full(len(response), 0.7)

  algorithm = algorithms.self_play(tiny_policy, judge, tau=0.1)
  found = [
    train(algorithm, tiny_params, tiny_prompts, None, compiles_ahead=ahead)[0]
    for ahead in (False, True)
  ]
  assert len(asked) == 4
  jax.tree.map(np.testing.assert_array_equal, *found)
