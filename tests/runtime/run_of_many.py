"""One process of a small run, for processes_test.py: Nash-MD against a preference model, with averaged weights.

python run_of_many.py RUN_DIR NUM_STEPS SAVE_EVERY [COORDINATOR COUNT INDEX [DATA FSDP TENSOR]]
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import algorithms, experiments, policy
from nlhf_jax import preference_model as pm
from nlhf_jax.networks import decoding, t5
from nlhf_jax.runtime import checkpoints, partitioning, processes
from nlhf_jax.training import optimizers
from nlhf_jax.types import Prompts

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
  judge = experiments.trained_preference(pm.in_encoder(NETWORK, PROMPT), fixed(1))
  return experiments.Experiment(
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


def main(run_dir, num_steps, save_every, coordinator=None, count=None, index=None, *mesh) -> int:
  if coordinator:
    processes.join(coordinator, int(count), int(index))
  devices = partitioning.Devices(*map(int, mesh)) if mesh else partitioning.Devices()
  one = experiment(int(num_steps), int(save_every), devices)
  try:
    state = experiments.train(one, pathlib.Path(run_dir), 'a configuration')
  except RuntimeError as error:
    print(f'an exchange failed: {error}', file=sys.stderr, flush=True)
    processes.leave(3)
  prompts = Prompts(jnp.arange(2, 14, dtype=jnp.int32).reshape(2, 6), jnp.zeros(2, jnp.int32))
  params = processes.whole(state.params.online)
  sample = jax.jit(one.model.sample)(params, prompts, jax.random.PRNGKey(0))
  if processes.first():
    print('samples', np.asarray(sample.tokens).tolist(), 'step', int(state.step))
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
