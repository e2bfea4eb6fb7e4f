"""What the benchmarks of training measure: a network of some size, two parameter sets, prompts, a reward model as judge.

Needs JAX and Flax alone. Import it before JAX.
"""

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
from nlhf_jax.formats import hf
from nlhf_jax.models import policy, preference_model, rater, reward_model
from nlhf_jax.networks import decoding, layers, llama, t5
from nlhf_jax.networks.network import Decoder, Network
from nlhf_jax.types import EOS, Algorithm, Params, Policy, PolicyParams, Prompts

TAU, BETA = 0.02, 0.125
TEMPLATE = (2, 3, 4), (5, 6), (7,)
PAIR_TEMPLATE = *TEMPLATE, (8,)
_GELU = ('gelu', 'linear')
SIZES = {
  'tiny': llama.LlamaConfig(
    64, emb_dim=16, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=8, mlp_dim=32
  ),
  'test': llama.LlamaConfig(
    8192, emb_dim=256, num_heads=8, num_kv_heads=4, num_layers=8, head_dim=32, mlp_dim=1024
  ),
  'smollm2_135m': llama.LlamaConfig(49152, rope_base=1e5, logits_via_embedding=True),
  'llama_1_5b': llama.LlamaConfig(
    32128, emb_dim=2048, num_heads=32, num_kv_heads=8, num_layers=24, head_dim=64, mlp_dim=8192
  ),
  't5_tiny': t5.T5Config(
    64,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=8,
    mlp_dim=32,
    mlp_activations=_GELU,
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


_total = jax.jit(jnp.sum)


def bandwidth() -> float:
  """Bytes per second of reading a large array."""
  large = jnp.ones((2**28,), jnp.float32)  # 1 GiB.
  return large.nbytes / seconds(lambda: _total(large), 5)


def limits(dtype) -> dict[str, float]:
  """Bytes per second of reading a large array, and operations per second of a large matrix product."""
  square = jnp.ones((3072, 3072), dtype)
  multiply = jax.jit(jnp.matmul)
  return {
    'bytes_per_second': bandwidth(),
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
  """A network, parameter sets that are made when they are first asked for, prompts and judges."""

  def __init__(
    self,
    size: str,
    dtype: str,
    batch: int,
    prompt: int,
    response: int,
    *,
    frozen_dtype: str = 'float32',
    model: str | None = None,
    **execution,
  ):
    """Makes prompts, and no weights yet.

    Args:
      size: one of SIZES.
      dtype: of activations.
      batch, prompt, response: prompts, and tokens of each and of its response.
      frozen_dtype: of the weights of reference and judges.
      model: a Hugging Face directory, whose weights and sizes are taken in place of random ones.
      **execution: of the layers.
    """
    execution = layers.Execution(**execution)
    self.config = dataclasses.replace(SIZES[size], dtype=dtype, execution=execution)
    self.is_t5 = isinstance(self.config, t5.T5Config)
    self.network = (t5 if self.is_t5 else llama).Transformer(self.config)
    self._model, self._frozen_dtype = model, frozen_dtype
    if model is not None:
      self.network = hf.network(model, dtype, execution=execution)
      self.config = self.network.config
    self.response = response
    self.policy = self.policy_of_length(response)
    tokens = np.random.default_rng(0).integers(2, self.config.vocab_size, (batch, prompt))
    self.prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
    self.judge = reward_model.from_rater(rater.in_decoder(self.network, TEMPLATE))
    self.pair_judge = preference_model.from_rater(rater.in_decoder(self.network, PAIR_TEMPLATE))

  def _make(self, seed: int, dtype: str) -> Params:
    if self._model is not None:
      return _cast(hf.load(self._model, self.shapes), dtype)
    leaves, tree = jax.tree.flatten(self.shapes)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    made = [_random(key, x.shape, dtype) for key, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)

  @functools.cached_property
  def shapes(self) -> Params:
    """Of the weights."""
    return jax.eval_shape(self.policy.init, jax.random.PRNGKey(0))

  @functools.cached_property
  def params(self) -> Params:
    """What is trained."""
    return self._make(0, 'float32')

  @functools.cached_property
  def reference(self) -> Params:
    """μ."""
    return self._make(1, self._frozen_dtype)

  @functools.cached_property
  def judge_params(self) -> Params:
    """Of either judge."""
    return self._make(2, self._frozen_dtype)

  def policy_of_length(self, response: int) -> Policy:
    """The policy whose responses all have this length."""
    return policy.from_network(Ending(self.network, 0.0), decoding.Sampling(response))

  def with_prompts(self, prompts: Prompts) -> 'Setting':
    """The same for other prompts, with the same weights."""
    other = object.__new__(Setting)
    weights_made = {'params': self.params, 'reference': self.reference}
    other.__dict__ = self.__dict__ | weights_made | {'prompts': prompts}
    return other

  @property
  def sets(self) -> PolicyParams:
    """What is played."""
    return PolicyParams(self.params, {'reference': self.reference})

  @property
  def stack(self):
    """Shapes of the weights that a token of a response is multiplied with, all but those of the output layer."""
    decoder = self.shapes['decoder']
    return {name: x for name, x in decoder.items() if name != 'logits_dense'}

  @functools.cached_property
  def preference_fn(self):
    """The judge that scores single responses."""
    return reward_model.bradley_terry(reward_model.reward_fn(self.judge, self.judge_params))

  @functools.cached_property
  def pair_preference_fn(self):
    """The judge that reads pairs, in both orders."""
    return preference_model.preference_fn(self.pair_judge, self.judge_params)

  def method(self, preference_fn=None) -> Algorithm:
    """Nash-MD-PG, under the judge of single responses or another."""
    judge = preference_fn or self.preference_fn
    return algorithms.nash_md_pg(self.policy, judge, tau=TAU, beta=BETA)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _random(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
  """Weights that keep a size of 1 through a product, and scales of 1; a program for each shape, which all that have it share."""
  if len(shape) < 2:
    return jnp.ones(shape, dtype)
  return (jax.random.normal(key, shape) / np.sqrt(shape[0])).astype(dtype)


def _cast(params: Params, dtype: str) -> Params:
  return jax.tree.map(lambda x: x.astype(dtype), params)


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
  if setting.is_t5:  # Keys and values of the encoder's output are made once.
    weights -= 2 * num_layers * cfg.emb_dim * heads * cfg.head_dim
  return (weights + cache) * jnp.dtype(cfg.dtype).itemsize


def operations(
  setting: Setting, *, rows: int = 1, length: int | None = None, logits: int | None = None
) -> float:
  """Multiply-adds count two; those of one pass forwards over prompts and responses, attention's included.

  Args:
    setting: whose prompts they are.
    rows: responses to a prompt.
    length: of each; None: of the setting's.
    logits: positions of each that the output layer is applied to; None: all.
  """
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  length = setting.response if length is None else length
  head = cfg.vocab_size * cfg.emb_dim * rows * (length if logits is None else logits)
  if not setting.is_t5:
    per_token = num_weights(setting.stack)
    attended = prompt**2 / 2 + rows * length * (prompt + length / 2)
    attention = 2 * cfg.num_layers * cfg.num_heads * cfg.head_dim * attended
    return 2 * batch * (per_token * (prompt + rows * length) + head + attention)
  joined = cfg.num_heads * cfg.head_dim
  # Keys and values of the encoder's output.
  cross = 2 * cfg.num_decoder_layers * cfg.emb_dim * joined
  on_prompt = num_weights(setting.shapes['encoder']) + cross
  on_response = (num_weights(setting.stack) - cross) * rows * length
  attention = 2 * joined * (cfg.num_encoder_layers * prompt**2)
  attention += 2 * joined * cfg.num_decoder_layers * rows * length * (prompt + length / 2)
  return 2 * batch * (on_prompt * prompt + on_response + head + attention)
