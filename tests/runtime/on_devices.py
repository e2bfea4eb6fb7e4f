"""Two steps of Nash-MD on each of several meshes of eight simulated devices, for partitioning_test.py: differences, as JSON.

python on_devices.py FAMILY DATAxFSDPxTENSOR [DATAxFSDPxTENSOR …]
"""

import json
import os
import sys

os.environ['XLA_FLAGS'] = (
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true'
)

import jax
import numpy as np
import optax

from nlhf_jax import algorithms
from nlhf_jax.models import policy, preference_model, rater
from nlhf_jax.networks import axes, decoding
from nlhf_jax.planning import hlo, programs
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import loop, parameter_sets
from nlhf_jax.types import Prompts
from tests import compilations, tiny

VOCAB, EMBED, LENGTH, HEADS = 88, 32, 7, 4
# Besides the reference.
SETS = {'average': parameter_sets.average(0.9), 'ring': parameter_sets.ring(2, 1)}
SIZES = {'vocab_size': VOCAB, 'emb_dim': EMBED, 'num_heads': HEADS, 'head_dim': 8, 'mlp_dim': 48}
NETWORKS = {
  't5': tiny.t5_network(**SIZES),
  't5_pointer': tiny.t5_network(**SIZES, pointer=True, separators=(3, 5, 7)),
  'llama': tiny.llama_network(**SIZES, num_kv_heads=2, logits_via_embedding=True),
}


def batches():
  """Two batches of eight prompts."""
  for number in range(2):
    rng = np.random.default_rng(number)
    tokens = rng.integers(2, VOCAB, (8, 10)).astype(np.int32)
    tokens[np.arange(10) >= rng.integers(3, 11, (8, 1))] = 0
    yield Prompts(tokens, np.arange(8, dtype=np.int32))


class Setting:
  """What is trained, and what it starts from."""

  def __init__(self, network):
    self.policy = policy.from_network(network, decoding.Sampling(max_length=LENGTH))
    pieces = (2,), (3,), (4,), (5,)
    self.judge = preference_model.from_rater(rater.in_encoder(network, pieces))
    init = jax.jit(self.policy.init)
    self.start, self.weights = (
      jax.tree.map(np.asarray, init(jax.random.PRNGKey(n))) for n in (1, 2)
    )
    # Tied embeddings of this size would leave but one token likely.
    for params in (self.start, self.weights):
      params['token_embedder']['embedding'] = 0.1 * params['token_embedder']['embedding']
    # Factored moments, whose shapes are not the parameters', and momentum; steps in proportion to the gradient, so that
    # rounding stays rounding.
    self.optimizer = optax.chain(
      optax.scale_by_factored_rms(min_dim_size_to_factor=8, epsilon=1.0), optax.sgd(2.0, 0.9)
    )

  def method(self, weights):
    """Nash-MD-PG with the judge of these weights."""
    judge = preference_model.preference_fn(self.judge, weights)
    method = algorithms.nash_md_pg(self.policy, judge, tau=0.1, beta=0.3, num_samples=2)
    return parameter_sets.extend(method, SETS)

  def state(self, start, shardings=None):
    """The first state."""
    given = {'reference': start}
    return loop.init_state(
      self.method(self.weights), self.optimizer, 0, online=start, given=given, shardings=shardings
    )

  def shardings(self, layout):
    """Of a state."""
    shapes = jax.eval_shape(self.state, self.start)
    return layout.state_shardings(shapes, self.policy.axes())

  def train(self, layout=None, num_microbatches=1):
    """The last state, the metrics of each step, and the responses that the last policy draws.

    On a mesh the update is compiled ahead; `num_updates` are its programs.
    """
    start, weights, shardings = self.start, self.weights, None
    if layout is not None:
      shardings = self.shardings(layout)
      start = partitioning.put(start, shardings.params.online)
      weights = partitioning.put(weights, layout.param_shardings(weights, self.judge.axes()))
    rows = []
    with compilations.counted('update') as compiled:
      state = loop.train(
        self.method(weights),
        self.optimizer,
        self.state(start, shardings),
        batches(),
        loop.Hooks(lambda step, means: rows.append(means), lambda *_: None),
        num_steps=2,
        num_microbatches=num_microbatches,
        compiles_ahead=layout is not None,
        log_every=1,
        layout=layout,
      )
    self.num_updates = len(compiled)
    rows = [{k: v for k, v in row.items() if 'second' not in k} for row in rows]
    prompts = next(batches()) if layout is None else layout.shard_rows(next(batches()))
    tokens = jax.jit(self.policy.sample)(state.params.online, prompts, jax.random.PRNGKey(3)).tokens
    return state, rows, np.asarray(tokens)

  def compiled(self, layout):
    """The programs of a step."""
    shardings = self.shardings(layout)
    state = partitioning.with_shardings(jax.eval_shape(self.state, self.start), shardings)
    prompts = next(batches())
    prompts = partitioning.with_shardings(prompts, jax.tree.map(lambda _: layout.rows, prompts))
    method = self.method(self.weights)
    return programs.compile_step(method, self.optimizer, state, prompts, layout=layout)


def compare(setting, single, layout, **options):
  """The largest differences to the run on one device, `single`."""
  state, rows, tokens = setting.train(layout, **options)
  gap = lambda a, b: float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())
  pairs = zip(jax.tree.leaves(single[0]), jax.tree.leaves(state), strict=True)
  kernel = state.params.sets['average']['decoder']['layers_0']['mlp']['wi_0']['kernel']
  return {
    'state': max(gap(a, b) for a, b in pairs),
    'metrics': max(abs(a[k] - b[k]) for a, b in zip(single[1], rows, strict=True) for k in a),
    'moved': min(map(gap, *map(jax.tree.leaves, (setting.start, state.params.online)))),
    'tokens': int((single[2] != tokens).sum()),
    'updates': setting.num_updates,
    'shard': kernel.addressable_shards[0].data.size / kernel.size,
  }


def collectives(setting, layout):
  """What devices send in each phase: kind, axes, shapes, bytes, times."""
  phases = setting.compiled(layout).phases
  return {
    name: [list(x) for x in hlo.work(program.as_text(), layout.mesh.shape, LENGTH).collectives]
    for name, program in phases.items()
  }


def main(family, *meshes):
  """Prints the differences of each mesh."""
  setting = Setting(NETWORKS[family])
  single = setting.train()
  found = {}
  for mesh in meshes:
    sizes = [int(n) for n in mesh.split('x')]
    devices = jax.devices()[: int(np.prod(sizes))]
    layout = partitioning.Layout(partitioning.make_mesh(partitioning.Devices(*sizes), devices))
    with layout.active():
      found[mesh] = compare(setting, single, layout)
      found[mesh]['logits'] = axes.size_on_device((16, LENGTH, VOCAB), 'batch', None, 'vocab')
      if mesh == '2x2x2':
        found['microbatches'] = compare(setting, single, layout, num_microbatches=2)
        found['collectives'] = collectives(setting, layout)
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
