"""What the benchmarks of training measure: a network of some size, two parameter sets, prompts, a reward model as judge.

Needs JAX and Flax alone. Import it before JAX.
"""

import argparse
import dataclasses
import functools
import os
import sys

# As the command line does: 2 MiB pages, which a process must ask for before it starts.
if sys.platform == 'linux' and 'glibc.malloc.hugetlb' not in os.environ.get('GLIBC_TUNABLES', ''):
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

import jax
import jax.numpy as jnp
import numpy as np
import timing

from nlhf_jax import algorithms
from nlhf_jax.models import policy, rater, reward_model
from nlhf_jax.networks import decoding, layers, llama, t5
from nlhf_jax.networks.network import Decoder, Network
from nlhf_jax.types import EOS, Algorithm, Policy, PolicyParams, Prompts

TAU, BETA = 0.02, 0.125
_GELU = ('gelu', 'linear')
SIZES = {
  'test': llama.LlamaConfig(
    8192, emb_dim=256, num_heads=8, num_kv_heads=4, num_layers=8, head_dim=32, mlp_dim=1024
  ),
  'smollm2_135m': llama.LlamaConfig(49152, rope_base=1e5, logits_via_embedding=True),
  'llama_1_5b': llama.LlamaConfig(
    32128, emb_dim=2048, num_heads=32, num_kv_heads=8, num_layers=24, head_dim=64, mlp_dim=8192
  ),
  't5_test': t5.T5Config(
    8192, emb_dim=256, num_heads=8, head_dim=32, mlp_dim=1024, mlp_activations=_GELU
  ),
  't5_base': t5.T5Config(
    32128,
    emb_dim=768,
    num_heads=12,
    num_encoder_layers=12,
    num_decoder_layers=12,
    mlp_activations=_GELU,
  ),
  't5_xl': t5.T5Config(
    32128,
    emb_dim=2048,
    num_heads=32,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=5120,
    mlp_activations=_GELU,
  ),
}

# The shortest of several runs, results included.
seconds = functools.partial(timing.seconds, wait=jax.block_until_ready)


def limits(dtype) -> dict[str, float]:
  """Bytes per second of reading a large array, and operations per second of a large matrix product."""
  large = jnp.ones((2**28,), jnp.float32)  # 1 GiB.
  square = jnp.ones((3072, 3072), dtype)
  total, multiply = jax.jit(jnp.sum), jax.jit(jnp.matmul)
  return {
    'bytes_per_second': large.nbytes / seconds(lambda: total(large), 5),
    'operations_per_second': 2 * 3072**3 / seconds(lambda: multiply(square, square), 5),
  }


class Ending:
  """A network whose responses end with some probability at each token; 0: all have the full length."""

  def __init__(self, network: Network, probability: float):
    self._network, self._probability = network, probability

  def __getattr__(self, name):
    return getattr(self._network, name)

  def incremental(self) -> Decoder:
    """The network's decoder, with another logit of EOS."""
    decoder, p = self._network.incremental(), self._probability

    def step(*args):
      logits, cache = decoder.step(*args)
      others = jax.nn.logsumexp(logits.at[:, EOS].set(-jnp.inf), axis=-1)
      # Finite, so that a mixture's weighted logits are.
      end = others + np.log(p / (1 - p)) if p else -1e9
      return logits.at[:, EOS].set(end), cache

    return decoder._replace(step=step)


class Setting:
  """A network, two parameter sets, prompts and a judge."""

  def __init__(self, size: str, dtype: str, batch: int, prompt: int, response: int, **execution):
    execution = layers.Execution(**execution)
    self.config = dataclasses.replace(SIZES[size], dtype=dtype, execution=execution)
    self.is_t5 = isinstance(self.config, t5.T5Config)
    self.network = (t5 if self.is_t5 else llama).Transformer(self.config)
    self.response = response
    self.policy = self.policy_of_length(response)
    init = jax.jit(self.policy.init)
    self.params, self.reference = init(jax.random.PRNGKey(0)), init(jax.random.PRNGKey(1))
    tokens = np.random.default_rng(0).integers(2, self.config.vocab_size, (batch, prompt))
    self.prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
    template = (2, 3, 4), (5, 6), (7,)
    self.judge = reward_model.from_rater(rater.in_decoder(self.network, template))
    self.judge_params = init(jax.random.PRNGKey(2))

  def policy_of_length(self, response: int) -> Policy:
    """The policy whose responses all have this length."""
    return policy.from_network(Ending(self.network, 0.0), decoding.Sampling(response))

  def with_prompts(self, prompts: Prompts) -> 'Setting':
    """The same for other prompts."""
    other = object.__new__(Setting)
    other.__dict__ = self.__dict__ | {'prompts': prompts}
    return other

  @property
  def sets(self) -> PolicyParams:
    """What is played."""
    return PolicyParams(self.params, {'reference': self.reference})

  @property
  def stack(self):
    """The weights that a token of a response is multiplied with, all but those of the output layer."""
    decoder = self.params['decoder']
    return {name: x for name, x in decoder.items() if name != 'logits_dense'}

  @functools.cached_property
  def preference_fn(self):
    """The judge."""
    return reward_model.bradley_terry(reward_model.reward_fn(self.judge, self.judge_params))

  def method(self) -> Algorithm:
    """Nash-MD-PG."""
    return algorithms.nash_md_pg(self.policy, self.preference_fn, tau=TAU, beta=BETA)


def num_weights(tree) -> int:
  """In all arrays of a tree."""
  return sum(x.size for x in jax.tree.leaves(tree))


def bytes_per_token(setting: Setting) -> float:
  """Weights and the cache in the type of activations, read once for a token of all lanes; half of the response on average."""
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  heads, num_layers = (
    (cfg.num_heads, cfg.num_decoder_layers) if setting.is_t5 else (cfg.num_kv_heads, cfg.num_layers)
  )
  attended = prompt + setting.response / 2
  cache = 2 * num_layers * heads * cfg.head_dim * batch * attended
  weights = num_weights(setting.stack) + cfg.vocab_size * cfg.emb_dim
  return (weights + cache) * jnp.dtype(cfg.dtype).itemsize


def operations(setting: Setting) -> float:
  """Multiply-adds count two; those of one pass forwards over prompts and responses, attention's included."""
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  response = setting.response
  head = cfg.vocab_size * cfg.emb_dim
  if not setting.is_t5:
    per_token = num_weights(setting.stack)
    attended = prompt**2 / 2 + response * (prompt + response / 2)
    attention = 2 * cfg.num_layers * cfg.num_heads * cfg.head_dim * attended
    return 2 * batch * (per_token * (prompt + response) + head * response + attention)
  joined = cfg.num_heads * cfg.head_dim
  # Keys and values of the encoder's output.
  cross = 2 * cfg.num_decoder_layers * cfg.emb_dim * joined
  on_prompt = num_weights(setting.params['encoder']) + cross
  on_response = num_weights(setting.stack) - cross + head
  attention = 2 * joined * (cfg.num_encoder_layers * prompt**2)
  attention += 2 * joined * cfg.num_decoder_layers * response * (prompt + response / 2)
  return 2 * batch * (on_prompt * prompt + on_response * response + attention)


def arguments(description: str) -> argparse.ArgumentParser:
  """A parser of the flags that choose a setting."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--size', choices=SIZES, default='test')
  add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of activations')
  add('--batch', type=int, default=8)
  add('--prompt', type=int, default=256)
  add('--response', type=int, default=32)
  add('--scan', action='store_true', help='one compiled layer for all in training')
  add('--remat', default='none', help='none, layers or dots')
  add('--output', required=True)
  return parser


def make(args: argparse.Namespace) -> Setting:
  """The setting that the flags choose."""
  sizes = args.size, args.dtype, args.batch, args.prompt, args.response
  return Setting(*sizes, scan=args.scan, remat=args.remat)
