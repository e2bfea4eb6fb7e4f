"""What a program does, counted: products by hand, loops by their iterations, groups in every notation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.planning import hlo


@pytest.mark.parametrize(
  ('text', 'groups'),
  [
    ('replica_groups={{0,1},{2,3}}, x', [[0, 1], [2, 3]]),
    ('replica_groups={}, x', [[0, 1, 2, 3]]),
    ('replica_groups=[2,2]<=[4], x', [[0, 1], [2, 3]]),
    ('replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}', [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=2] {'a','c'}, x", [[0, 1, 2, 3]]),
  ],
)
def test_notations_of_replica_groups(text, groups):
  np.testing.assert_array_equal(hlo.replica_groups(text, 4), groups)


def test_error_of_an_unknown_notation():
  with pytest.raises(ValueError, match='Unknown replica groups'):
    hlo.replica_groups("replica_groups=mesh['a'=4] {'a':(1)2}", 4)


def counted(function, *args, loop_length=1):
  text = jax.jit(function).lower(*args).compile().as_text()
  return hlo.work(text, {'data': 1}, loop_length)


def test_operations_of_loops():
  x, w = jnp.ones((3, 5)), jnp.ones((5, 5))
  once = 2 * 3 * 5 * 5
  assert counted(lambda x, w: x @ w, x, w).operations == once
  scanned = lambda x, w: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=11)[0]
  assert counted(scanned, x, w).operations == 11 * once


def test_operations_of_loops_that_may_end_early():
  """As many iterations as are given; each reads what the loop carries: here x, w and a counter, or more."""
  x, w = jnp.ones((3, 5)), jnp.ones((5, 5))

  def early(x, w):
    return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: jnp.tanh(x @ w) + x, x)

  found = counted(early, x, w, loop_length=7)
  assert found.operations == 7 * 2 * 3 * 5 * 5
  assert found.carried >= 7 * x.nbytes
  assert found.collectives == []


@pytest.mark.parametrize(
  ('line', 'kind', 'axes', 'sent'),
  [
    ('%a = f32[8]{0} all-reduce(%x), replica_groups=[2,2]<=[4]', 'all-reduce', ('tensor',), 32.0),
    ('%a = bf16[8]{0} all-gather(%x), replica_groups=[1,4]<=[4], dimensions={0}', 'all-gather', ('data', 'tensor'), 12.0),
    ('%a = f32[8]{0} reduce-scatter(%x), replica_groups={{0,2},{1,3}}, dimensions={0}', 'reduce-scatter', ('data',), 32.0),
    ('%a = (f32[4]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,2]<=[4], x', 'all-gather', ('tensor',), 16.0),
    ('%a = f32[8]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}', 'collective-permute', ('tensor',), 32.0),
  ],
)  # fmt: skip
def test_bytes_sent(line, kind, axes, sent):
  """Bytes by hand, for a ring: all-reduce 2 (n−1)/n of the array, all-gather (n−1)/n of the result."""
  text = f'ENTRY %main (x: f32[8]) -> f32[8] {{\n  {line}\n}}\n'
  (found,) = hlo.work(text, {'data': 2, 'tensor': 2}, 1).collectives
  assert (found.kind, found.axes, found.bytes_sent) == (kind, axes, sent)
  assert hlo.by_kind_and_axes([found]) == {(kind, ' x '.join(axes)): sent}
