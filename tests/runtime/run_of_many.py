"""One process of a small run, for processes_test.py: Nash-MD against a preference model, with averaged weights.

python run_of_many.py KIND RUN_DIR NUM_STEPS SAVE_EVERY [COORDINATOR COUNT INDEX [DATA FSDP TENSOR]]

KIND: policy: trained by Adafactor; sgd: the same by SGD; by_rule: by SGD, judged by a rule on the host; adapters: the
same, and these alone are trained; judge: a preference model, trained by SGD and tested on held-out votes.

Steps of SGD are in proportion to the gradient, so that rounding stays rounding: such runs can be compared from one number
of processes to another. The first step of Adafactor goes by the sign of each entry of the gradient, and that of the least
one depends on the order in which a machine adds up: such runs can only be compared with what was to be the same to the bit.
"""

import itertools
import json
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax import algorithms
from nlhf_jax.models import lora, policy, rater
from nlhf_jax.models import preference_model as pm
from nlhf_jax.networks import decoding
from nlhf_jax.runtime import checkpoints, partitioning, processes
from nlhf_jax.training import optimizers, parameter_sets, traces
from nlhf_jax.training import run as runs
from nlhf_jax.training.experiment import Experiment, trained_preference
from nlhf_jax.types import Adapted, Comparison, Prompts
from tests import tiny

NETWORK = tiny.t5_network(vocab_size=24, emb_dim=16, head_dim=8, mlp_dim=32)


def batches(start: int):
  """Batch n is a function of n."""
  number = start
  while True:
    rng = np.random.default_rng(number)
    yield Prompts(rng.integers(2, 24, (8, 6)).astype(np.int32), np.full(8, number, np.int32))
    number += 1


JUDGE = pm.from_rater(rater.in_encoder(NETWORK, ((2,), (3,), (4,), (5,))))


def fixed(seed: int, **times: float):
  """Start: the parameters of a seed, some of them enlarged; by a part of their names."""

  def enlarged(path, x):
    name = jax.tree_util.keystr(path)
    return x * math.prod(by for part, by in times.items() if part in name)

  params = lambda: jax.jit(JUDGE.init)(jax.random.PRNGKey(seed))
  return lambda like, runs: jax.tree_util.tree_map_with_path(enlarged, params())


# A judge that tells responses apart. As it is drawn P is 1/2 to 1e-3, and rounding alone is 6e-5 of a payoff.
DECIDED = fixed(1, rel_embedding=10.0, logits_dense=10.0)


def experiment(
  num_steps: int,
  save_every: int,
  devices=partitioning.Devices(),  # noqa: B008
) -> Experiment:
  model = policy.from_network(NETWORK, decoding.Sampling(max_length=5))
  method = lambda *needs: algorithms.nash_md_pg(*needs, tau=0.1, beta=0.3, num_samples=2)
  return Experiment(
    model,
    method,
    batches,
    optimizers.adafactor(1e-2),
    num_steps,
    feedback=trained_preference(JUDGE, DECIDED),
    start_from=fixed(0),
    sets={'average': parameter_sets.average(0.9)},
    # As many prompts as a process has of a batch on each of the meshes.
    traced=traces.Traces(every=3, num_prompts=2),
    log_every=3,
    save_every=save_every,
    devices=devices,
    keep=checkpoints.Keep(last=3),
  )


def by_rule(prompts, y, alternative):
  """P(y ≻ y'|x) of a rater who adds up tokens; in NumPy, so it cannot be compiled."""
  return 1 / (1 + np.exp(-0.1 * (np.asarray(y) - np.asarray(alternative)).sum(axis=-1)))


def comparisons(start: int):
  for number in itertools.count(start):
    rng = np.random.default_rng(number)
    prompts = Prompts(rng.integers(2, 24, (8, 6)).astype(np.int32), np.arange(8, dtype=np.int32))
    y, alternative = rng.integers(2, 24, (2, 8, 5)).astype(np.int32)
    preference = by_rule(prompts, y, alternative).astype(np.float32)
    yield Comparison(prompts, policy.as_rollout(y), policy.as_rollout(alternative), preference)


def of_kind(kind: str, *args) -> Experiment:
  one = experiment(*args)
  if kind == 'policy':
    return one
  one = one._replace(optimizer=optax.sgd(0.3 if kind == 'judge' else 0.1, momentum=0.9))
  if kind == 'sgd':
    return one
  if kind == 'judge':
    held_out = lambda: next(comparisons(1000))
    return one._replace(
      model=JUDGE,
      algorithm=algorithms.preference,
      batches=comparisons,
      feedback=None,
      start_from=fixed(1, rel_embedding=10.0),
      held_out=held_out,
    )
  one = one._replace(feedback=by_rule)
  return one if kind == 'by_rule' else one._replace(adapters=lora.Lora(rank=2, alpha=8.0))


def outcome(one: Experiment, run_dir: pathlib.Path, state) -> str:
  """Samples of the policy, or what the test of the judge found."""
  if one.held_out is not None:
    found = json.loads((run_dir / 'judge.json').read_text())
    return json.dumps([found['log_loss'], found['position_bias'], found['accuracy']['mean']])
  prompts = Prompts(jnp.arange(2, 14, dtype=jnp.int32).reshape(2, 6), jnp.zeros(2, jnp.int32))
  params = processes.gather(state.params.online)
  if one.adapters is not None:
    params = lora.merge(one.adapters, Adapted(processes.gather(state.params.base), params))
  sample = jax.jit(one.model.sample)(params, prompts, jax.random.PRNGKey(0))
  return json.dumps(np.asarray(sample.tokens).tolist())


def write_trained(state, path: pathlib.Path) -> None:
  """Writes the parameters and their average."""
  trained = {'online': state.params.online, 'average': state.params.sets['average']}
  leaves = jax.tree_util.tree_leaves_with_path(processes.gather(trained))
  if processes.is_primary():
    np.savez(
      path, **{jax.tree_util.keystr(key, simple=True, separator='.'): x for key, x in leaves}
    )


def main(
  kind, run_dir, num_steps, save_every, coordinator=None, count=None, index=None, *mesh
) -> int:
  if coordinator:
    processes.join(coordinator, int(count), int(index))
  devices = partitioning.Devices(*map(int, mesh)) if mesh else partitioning.Devices()
  one, run_dir = of_kind(kind, int(num_steps), int(save_every), devices), pathlib.Path(run_dir)
  try:
    state = runs.train(one, run_dir, {'kind': kind})
  except RuntimeError as error:
    print(f'an exchange failed: {error}', file=sys.stderr, flush=True)
    processes.abort(3)
  except OSError as error:
    print(f'refused: {error}', file=sys.stderr, flush=True)
    processes.abort(2)
    return 2
  write_trained(state, run_dir / 'trained.npz')
  found = outcome(one, run_dir, state) if processes.is_primary() or one.held_out is None else ''
  if processes.is_primary():
    print(f'outcome {found} step {int(state.step)}')
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
