"""One process of a small run, for processes_test.py: Nash-MD against a preference model, with averaged weights.

python run_of_many.py KIND RUN_DIR NUM_STEPS SAVE_EVERY [COORDINATOR COUNT INDEX [DATA FSDP TENSOR]]

KIND: policy; by_rule: the same, judged by a rule on the host; adapters: these alone are trained; judge: a preference model,
tested on held-out votes.
"""

import itertools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import algorithms
from nlhf_jax.models import lora, policy
from nlhf_jax.models import preference_model as pm
from nlhf_jax.networks import decoding, t5
from nlhf_jax.runtime import checkpoints, partitioning, processes
from nlhf_jax.training import experiment, optimizers
from nlhf_jax.types import Adapted, Comparison, Prompts

NETWORK = t5.Transformer(
  t5.T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=32,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.0,
  )
)


def batches(start: int):
  """Batch n is a function of n; what was read is written down, to be looked at."""
  number = start
  while True:
    rng = np.random.default_rng(number)
    yield Prompts(rng.integers(2, 24, (8, 6)).astype(np.int32), np.full(8, number, np.int32))
    number += 1


def fixed(seed: int):
  """Start: the parameters of a seed."""
  return lambda like, runs: jax.jit(pm.in_encoder(NETWORK, PROMPT).init)(jax.random.PRNGKey(seed))


PROMPT = pm.RaterPrompt((2,), (3,), (4,), (5,))


def experiment(num_steps: int, save_every: int, devices=partitioning.Devices()):  # noqa: B008
  model = policy.from_network(NETWORK, decoding.Sampling(max_length=5))
  method = lambda *needs: algorithms.nash_md_pg(*needs, tau=0.1, beta=0.3, num_samples=2)
  judge = experiment.trained_preference(pm.in_encoder(NETWORK, PROMPT), fixed(1))
  return experiment.Experiment(
    model,
    method,
    batches,
    optimizers.adafactor(1e-2),
    num_steps,
    feedback=judge,
    start_from=fixed(0),
    ema_decay=0.9,
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


def of_kind(kind: str, *args) -> experiment.Experiment:
  one = experiment(*args)
  if kind == 'by_rule':
    return one._replace(feedback=experiment.exact_preference(by_rule))
  if kind == 'adapters':
    return one._replace(adapters=lora.Lora(rank=2))
  if kind == 'judge':
    model = pm.in_encoder(NETWORK, PROMPT)
    held_out = lambda: next(comparisons(1000))
    return one._replace(
      model=model,
      algorithm=algorithms.preference,
      batches=comparisons,
      feedback=None,
      start_from=None,
      held_out=held_out,
    )
  return one


def outcome(one: experiment.Experiment, run_dir: pathlib.Path, state) -> str:
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


def main(
  kind, run_dir, num_steps, save_every, coordinator=None, count=None, index=None, *mesh
) -> int:
  if coordinator:
    processes.join(coordinator, int(count), int(index))
  devices = partitioning.Devices(*map(int, mesh)) if mesh else partitioning.Devices()
  one, run_dir = of_kind(kind, int(num_steps), int(save_every), devices), pathlib.Path(run_dir)
  try:
    state = experiment.train(one, run_dir, 'a configuration')
  except RuntimeError as error:
    print(f'an exchange failed: {error}', file=sys.stderr, flush=True)
    processes.abort(3)
  found = outcome(one, run_dir, state) if processes.is_primary() or one.held_out is None else ''
  if processes.is_primary():
    print(f'outcome {found} step {int(state.step)}')
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
