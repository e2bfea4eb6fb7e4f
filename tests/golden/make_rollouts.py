"""Records a Nash-MD step of small models: what is drawn, how it is judged, its loss and gradient.

  python tests/golden/make_rollouts.py

Speed-ups must leave all of it as it was: `tests/rollouts_test.py` compares.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax import algorithms
from nlhf_jax.formats import hf
from nlhf_jax.models import policy, preference_model, rater
from nlhf_jax.networks import decoding, layers
from nlhf_jax.training import steps
from nlhf_jax.types import PAD, PolicyParams, Prompts

GOLDEN = pathlib.Path(__file__).parent
# Of golden/hf.
FAMILIES = ('t5_1_1', 't5_1_0', 'llama', 'qwen2_5', 'mistral')
TEMPLATE = ((2, 3), (4,), (5,), (6,))


def step(
  family: str,
  execution: layers.Execution = layers.PLAIN,
  max_logits: int = 2**28,
  num_slots: int = 0,
) -> dict[str, np.ndarray]:
  """One step of Nash-MD: three prompts of unequal length, two pairs to each, up to nine tokens.

  Args:
    family: a model of golden/hf.
    execution: of its layers.
    max_logits: of the policy.
    num_slots: of its sampling.
  """
  network = hf.network(GOLDEN / 'hf' / family)
  network = type(network)(dataclasses.replace(network.config, execution=execution))
  sampling = decoding.Sampling(max_length=9, num_slots=num_slots)
  model = policy.from_network(network, sampling, max_logits)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  online = hf.load(GOLDEN / 'hf' / family, shapes)
  reference = jax.tree.map(lambda x: 1.3 * x, online)
  judge = preference_model.from_rater(rater.in_decoder(network, TEMPLATE))
  judge_params = jax.tree.map(lambda x: 0.8 * x, online)
  preference_fn = preference_model.preference_fn(judge, judge_params)
  method = algorithms.nash_md_pg(
    model, preference_fn, tau=0.1, beta=0.3, num_samples=2, all_pairs=False
  )
  tokens = np.random.default_rng(0).integers(2, 24, (3, 7)).astype(np.int32)
  tokens[1, 3:], tokens[2, 1:] = PAD, PAD
  prompts = Prompts(jnp.asarray(tokens), jnp.arange(3, dtype=jnp.int32))
  sets = PolicyParams(online, {'reference': reference})
  rollout = method.score(jax.jit(method.sample)(sets, prompts, jax.random.PRNGKey(0)))
  gradient, metrics = steps.accumulate(method.loss, online, rollout, 1)
  return {
    'tokens': np.stack([rollout.response.tokens, rollout.alternative.tokens]),
    'token_logp': np.stack([rollout.response.token_logp, rollout.alternative.token_logp]),
    'reference_token_logp': np.asarray(rollout.reference_token_logp),
    'preference': np.asarray(rollout.preference),
    'loss': np.asarray(metrics['loss']),
    'gradient_norm': np.asarray(optax.global_norm(gradient)),
  }


if __name__ == '__main__':
  for name in FAMILIES:
    np.savez_compressed(GOLDEN / 'rollouts' / f'{name}.npz', **step(name))
