"""Speed of decoding, judging, updating, and of a whole Nash-MD step: beside the machine's limits, and beside the peers.

  python benchmarks/training_speed.py --size test --output out.json
  python benchmarks/training_speed.py --size test --peers --output out.json

Limits are measured in the same run: bytes that must move over the bandwidth of a large copy, operations over the rate of
a large matrix product. Peers (Hugging Face `generate`, and TRL's NashMDTrainer, the last release that has it) run on the
same weights, which are exported to them, in an environment of their own (benchmarks/.venv-training).
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import venv

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console, table

from nlhf_jax import algorithms, mixture, policy, reward_model
from nlhf_jax.networks import decoding, llama, t5
from nlhf_jax.runtime import hf
from nlhf_jax.training import loop
from nlhf_jax.types import PolicyParams, Prompts

PEERS = (
  'torch==2.13.0',
  'transformers==5.23.0',
  'trl==1.13.0',
  'requests',
)  # TRL imports it undeclared.
SIZES = {
  'test': llama.LlamaConfig(
    8192, emb_dim=256, num_heads=8, num_kv_heads=4, num_layers=8, head_dim=32, mlp_dim=1024
  ),
  'smollm2_135m': llama.LlamaConfig(49152, rope_base=1e5, logits_via_embedding=True),
  'llama_1_5b': llama.LlamaConfig(
    32128, emb_dim=2048, num_heads=32, num_kv_heads=8, num_layers=24, head_dim=64, mlp_dim=8192
  ),
  't5_test': t5.T5Config(
    8192, emb_dim=256, num_heads=8, head_dim=32, mlp_dim=1024, mlp_activations=('gelu', 'linear')
  ),
  't5_base': t5.T5Config(
    32128,
    emb_dim=768,
    num_heads=12,
    num_encoder_layers=12,
    num_decoder_layers=12,
    mlp_activations=('gelu', 'linear'),
  ),
  't5_xl': t5.T5Config(
    32128,
    emb_dim=2048,
    num_heads=32,
    num_encoder_layers=24,
    num_decoder_layers=24,
    mlp_dim=5120,
    mlp_activations=('gelu', 'linear'),
  ),
}
TAU, BETA = 0.02, 0.125


def seconds(work, repeats: int = 3) -> float:
  """The shortest of several runs, after one that compiles."""
  jax.block_until_ready(work())
  best = float('inf')
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(work())
    best = min(best, time.perf_counter() - start)
  return best


def limits(dtype) -> dict[str, float]:
  """Bytes per second of reading a large array, and operations per second of a large matrix product."""
  large = jnp.ones((2**28,), jnp.float32)  # 1 GiB.
  square = jnp.ones((3072, 3072), dtype)
  total, multiply = jax.jit(jnp.sum), jax.jit(jnp.matmul)
  return {
    'bytes_per_second': large.nbytes / seconds(lambda: total(large)),
    'operations_per_second': 2 * 3072**3 / seconds(lambda: multiply(square, square)),
  }


class Setting:
  """A network, two parameter sets, and prompts."""

  def __init__(self, size: str, dtype: str, batch: int, prompt: int, response: int):
    config = SIZES[size]
    self.config = type(config)(**{**vars(config), 'dtype': dtype})
    make = t5.Transformer if isinstance(config, t5.T5Config) else llama.Transformer
    self.network, self.response = make(self.config), response
    self.policy = policy.from_network(self.network, decoding.Sampling(max_length=response))
    init = jax.jit(self.policy.init)
    self.params, self.reference = init(jax.random.PRNGKey(0)), init(jax.random.PRNGKey(1))
    tokens = np.random.default_rng(0).integers(2, config.vocab_size, (batch, prompt))
    self.prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
    rater = reward_model.RewardPrompt((2, 3, 4), (5, 6), (7,))
    self.judge = reward_model.in_decoder(self.network, rater)
    self.judge_params = init(jax.random.PRNGKey(2))
    self.num_params = sum(x.size for x in jax.tree.leaves(self.params))
    words = self.params['token_embedder']['embedding'].size
    # Operations of a token come from the matrices that it is multiplied with: all but a lookup of its embedding.
    self.matrix_params = self.num_params - (0 if self._tied() else words)

  def _tied(self) -> bool:
    return self.config.logits_via_embedding

  @property
  def sets(self) -> PolicyParams:
    return PolicyParams(self.params, None, self.reference)

  @functools.cached_property
  def preference_fn(self):
    return reward_model.bradley_terry(reward_model.reward_fn(self.judge, self.judge_params))

  def method(self):
    return algorithms.nash_md_pg(self.policy, self.preference_fn, tau=TAU, beta=BETA)


def decode(setting: Setting, machine) -> dict:
  """One policy; the pair of self-play; the mixture; the pair of Nash-MD. Seconds, and the limit of one policy."""
  one, pair = mixture.ONLINE, mixture.between(BETA)
  result = {}
  for name, players in {
    'policy': [one],
    'self-play pair': [one, one],
    'mixture': [pair],
    'Nash-MD pair': [one, pair],
  }.items():
    play = jax.jit(
      lambda sets, rng, players=players: setting.policy.play(sets, players, setting.prompts, rng)
    )
    result[name] = seconds(functools.partial(play, setting.sets, jax.random.PRNGKey(0)))
  # Prefill is apart: the same call with a single token.
  short = policy.from_network(setting.network, decoding.Sampling(max_length=1))
  first = jax.jit(lambda sets, rng: short.play(sets, [one], setting.prompts, rng))
  result['prefill'] = seconds(lambda: first(setting.sets, jax.random.PRNGKey(0)))
  steps = setting.response - 1
  result['token'] = (result['policy'] - result['prefill']) / steps
  moved = _bytes_per_token(setting)
  result['limit of a token'] = moved / machine['bytes_per_second']
  return result


def _bytes_per_token(setting: Setting) -> float:
  """Weights as they are kept, and the cache, read once for each token of all lanes; half of the response on average."""
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  itemsize = jnp.dtype(cfg.dtype).itemsize
  if isinstance(cfg, t5.T5Config):
    decoder = jax.tree.leaves(setting.params['decoder'])
    weights, heads, num_layers = (
      sum(x.nbytes for x in decoder),
      cfg.num_heads,
      cfg.num_decoder_layers,
    )
  else:
    weights, heads, num_layers = 4 * setting.matrix_params, cfg.num_kv_heads, cfg.num_layers
  cache = 2 * num_layers * heads * cfg.head_dim * batch * (prompt + setting.response) * itemsize
  return weights + cache


def step(setting: Setting, machine) -> dict:
  """A whole Nash-MD step through the training loop, and its parts."""
  optimizer = optax.adamw(1e-5)
  method = setting.method()
  state = loop.init_state(method, optimizer, 0, online=setting.params, reference=setting.reference)
  steps = loop._Steps(method, optimizer, 1, None)
  parts: list[dict] = []

  def work():
    nonlocal state
    clock = loop._Clock()
    state, _, metrics = steps(state, setting.prompts, clock)
    parts.append(clock.seconds)
    return metrics

  whole = seconds(work)
  best = {name: min(part[name] for part in parts[1:]) for name in parts[0]}
  batch, prompt = setting.prompts.tokens.shape
  # Forward and backward, of prompt and response.
  operations = 6 * setting.matrix_params * batch * (prompt + setting.response)
  return {
    'step': whole,
    **best,
    'limit of update': operations / machine['operations_per_second'],
  }


def peers(setting: Setting, generate_only: bool) -> dict:
  """The same weights and prompts, in the peers' hands."""
  here = pathlib.Path(__file__).parent
  environment = here / '.venv-training'
  python = environment / 'bin' / 'python'
  if not python.exists():
    venv.create(environment, with_pip=True)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *PEERS], check=True)
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    for name, params in {
      'policy': setting.params,
      'reference': setting.reference,
      'judge': setting.judge_params,
    }.items():
      hf.save(params, setting.config, root / name)
    np.save(root / 'prompts.npy', np.asarray(setting.prompts.tokens))
    command = [python, here / 'training_peers.py', root, str(setting.response)]
    subprocess.run(
      [*command, *(['--generate_only'] if generate_only else [])], check=True, stdout=sys.stderr
    )
    return json.loads((root / 'out.json').read_text())


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--size', choices=SIZES, default='test')
  parser.add_argument(
    '--dtype', choices=('float32', 'bfloat16'), default='float32', help='of activations'
  )
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--prompt', type=int, default=256)
  parser.add_argument('--response', type=int, default=32)
  parser.add_argument('--peers', action='store_true', help='beside Hugging Face, and TRL')
  parser.add_argument('--generate_only', action='store_true', help='of the peers, no TRL')
  parser.add_argument('--output', required=True)
  args = parser.parse_args()
  setting = Setting(args.size, args.dtype, args.batch, args.prompt, args.response)
  machine = limits(setting.config.dtype)
  result = {
    'setting': vars(args) | {'parameters': setting.num_params, 'device': str(jax.devices()[0])},
    'machine': machine,
    'decode': decode(setting, machine),
    'step': step(setting, machine),
  }
  if args.peers:
    result['peers'] = peers(setting, args.generate_only)
  show(result)
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


def show(result: dict) -> None:
  """The table: seconds, and ratios of the same run."""
  setting, machine = result['setting'], result['machine']
  title = (
    f'{setting["size"]}, {setting["parameters"] / 1e6:.1f} M parameters, {setting["batch"]} prompts of '
    f'{setting["prompt"]}, responses of {setting["response"]}; {machine["bytes_per_second"] / 1e9:.1f} GB/s, '
    f'{machine["operations_per_second"] / 1e9:.0f} GFLOP/s'
  )
  shown = table.Table(title=title)
  for column in ('what', 'seconds', 'beside', 'seconds', 'ratio'):
    shown.add_column(column)

  def row(what, ours, name, other, ratio):
    shown.add_row(what, f'{ours:.4f}', name, f'{other:.4f}', f'{ratio:.2f}')

  decoded, whole = result['decode'], result['step']
  row(
    'a token',
    decoded['token'],
    'its limit',
    decoded['limit of a token'],
    decoded['limit of a token'] / decoded['token'],
  )
  for name in ('self-play pair', 'mixture', 'Nash-MD pair'):
    row(name, decoded[name], 'one policy', decoded['policy'], decoded[name] / decoded['policy'])
  row(
    'update',
    whole['update'],
    'its limit',
    whole['limit of update'],
    whole['limit of update'] / whole['update'],
  )
  row('sample', whole['sample'], 'whole step', whole['step'], whole['sample'] / whole['step'])
  row('judge', whole['judge'], 'whole step', whole['step'], whole['judge'] / whole['step'])
  for name, other in result.get('peers', {}).items():
    ours = decoded['policy'] if 'generate' in name else whole['step']
    what = 'one policy' if 'generate' in name else 'whole step'
    row(what, ours, name, other, other / ours)
  console.Console().print(shown)


if __name__ == '__main__':
  main()
