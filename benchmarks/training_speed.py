"""Speed of decoding, judging, updating, and of a whole Nash-MD step: beside the machine's limits, and beside the peers.

  python benchmarks/training_speed.py --size test --peers --output out.json
  python benchmarks/training_speed.py --size smollm2_135m --parts decode scaling --output out.json

Limits are measured in the same run: bytes that must move over the bandwidth of reading a large array, operations over the
rate of a large matrix product. Peers (Hugging Face `generate`, and TRL's NashMDTrainer, the last release that has it) run
on the same weights, which are exported to them, in an environment of their own (benchmarks/.venv-training). Needs JAX and
Flax alone; on an accelerator use --dtype bfloat16 and the sizes t5_xl and llama_1_5b.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import venv

# As the command line does: 2 MiB pages, which a process must ask for before it starts.
if sys.platform == 'linux' and 'glibc.malloc.hugetlb' not in os.environ.get('GLIBC_TUNABLES', ''):
  os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console, table

from nlhf_jax import algorithms
from nlhf_jax.formats import hf
from nlhf_jax.models import mixture, policy, reward_model
from nlhf_jax.networks import decoding, layers, llama, t5
from nlhf_jax.training import loop
from nlhf_jax.types import PolicyParams, Prompts

PEERS = (
  'torch==2.13.0',
  'transformers==5.23.0',
  'trl==1.13.0',
  'requests',
)  # TRL imports it undeclared.
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
TAU, BETA = 0.02, 0.125
PLAYERS = {
  'policy': [mixture.ONLINE],
  'self-play pair': [mixture.ONLINE] * 2,
  'mixture': [mixture.between(BETA)],
  'Nash-MD pair': [mixture.ONLINE, mixture.between(BETA)],
}


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
    'bytes_per_second': large.nbytes / seconds(lambda: total(large), 5),
    'operations_per_second': 2 * 3072**3 / seconds(lambda: multiply(square, square), 5),
  }


class Setting:
  """A network, two parameter sets, and prompts."""

  def __init__(self, size: str, dtype: str, batch: int, prompt: int, response: int, **execution):
    how = layers.Execution(**execution)
    self.config = dataclasses.replace(SIZES[size], dtype=dtype, execution=how)
    self.is_t5 = isinstance(self.config, t5.T5Config)
    self.network = (t5 if self.is_t5 else llama).Transformer(self.config)
    self.response = response
    self.policy = self.policy_of(response)
    init = jax.jit(self.policy.init)
    self.params, self.reference = init(jax.random.PRNGKey(0)), init(jax.random.PRNGKey(1))
    tokens = np.random.default_rng(0).integers(2, self.config.vocab_size, (batch, prompt))
    self.prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
    rater = reward_model.RewardPrompt((2, 3, 4), (5, 6), (7,))
    self.judge = reward_model.in_decoder(self.network, rater)
    self.judge_params = init(jax.random.PRNGKey(2))

  def policy_of(self, response: int):
    # No token ends a response: all have the length that was asked for.
    return policy.from_network(self.network, decoding.Sampling(response, eos_id=-1))

  def with_prompts(self, prompts: Prompts) -> 'Setting':
    other = object.__new__(Setting)
    other.__dict__ = self.__dict__ | {'prompts': prompts}
    return other

  @property
  def sets(self) -> PolicyParams:
    return PolicyParams(self.params, None, self.reference)

  @property
  def stack(self):
    """The weights that a token of a response is multiplied with, all but those of the output layer."""
    decoder = self.params['decoder']
    return {name: x for name, x in decoder.items() if name != 'logits_dense'}

  @functools.cached_property
  def preference_fn(self):
    return reward_model.bradley_terry(reward_model.reward_fn(self.judge, self.judge_params))

  def method(self):
    return algorithms.nash_md_pg(self.policy, self.preference_fn, tau=TAU, beta=BETA)


def _size(tree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _bytes_per_token(setting: Setting) -> float:
  """Weights and the cache in the type of activations, read once for a token of all lanes; half of the response on average."""
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  heads, num_layers = (
    (cfg.num_heads, cfg.num_decoder_layers) if setting.is_t5 else (cfg.num_kv_heads, cfg.num_layers)
  )
  attended = prompt + setting.response / 2
  cache = 2 * num_layers * heads * cfg.head_dim * batch * attended
  weights = _size(setting.stack) + cfg.vocab_size * cfg.emb_dim
  return (weights + cache) * jnp.dtype(cfg.dtype).itemsize


def _operations(setting: Setting) -> float:
  """Multiply-adds count two; those of one pass forwards over prompts and responses, attention's included."""
  cfg, (batch, prompt) = setting.config, setting.prompts.tokens.shape
  response = setting.response
  head = cfg.vocab_size * cfg.emb_dim
  if not setting.is_t5:
    per_token = _size(setting.stack)
    attended = prompt**2 / 2 + response * (prompt + response / 2)
    attention = 2 * cfg.num_layers * cfg.num_heads * cfg.head_dim * attended
    return 2 * batch * (per_token * (prompt + response) + head * response + attention)
  joined = cfg.num_heads * cfg.head_dim
  read = (
    2 * cfg.num_decoder_layers * cfg.emb_dim * joined
  )  # Keys and values of the encoder's output.
  on_prompt = _size(setting.params['encoder']) + read
  on_response = _size(setting.stack) - read + head
  attention = 2 * joined * (cfg.num_encoder_layers * prompt**2)
  attention += 2 * joined * cfg.num_decoder_layers * response * (prompt + response / 2)
  return 2 * batch * (on_prompt * prompt + on_response * response + attention)


def _play(setting: Setting, players, response: int) -> float:
  model = setting.policy_of(response)
  play = jax.jit(lambda sets, prompts, rng: model.play(sets, players, prompts, rng))
  return seconds(lambda: play(setting.sets, setting.prompts, jax.random.PRNGKey(0)))


def decode(setting: Setting, machine) -> dict:
  """One policy; the pair of self-play; the mixture; the pair of Nash-MD. Seconds, and the limit of one policy."""
  result = {name: _play(setting, players, setting.response) for name, players in PLAYERS.items()}
  # The prompt's pass and the first token.
  result['prefill'] = _play(setting, PLAYERS['policy'], 1)
  result['token'] = (result['policy'] - result['prefill']) / (setting.response - 1)
  result['limit of a token'] = _bytes_per_token(setting) / machine['bytes_per_second']
  return result


def scaling(setting: Setting, machine) -> dict:
  """Seconds of a token: of short and long responses, and of more lanes."""
  del machine
  result = {}

  def token(setting: Setting, response: int) -> float:
    whole, first = (_play(setting, PLAYERS['policy'], n) for n in (response, 1))
    return (whole - first) / (response - 1)

  for response in (64, 512):
    result[f'token of {response}'] = token(setting, response)
  for batch in (1, 2, 4, 8, 16, 32):
    rows = np.arange(batch) % len(setting.prompts.tokens)
    prompts = Prompts(setting.prompts.tokens[rows], jnp.arange(batch, dtype=jnp.int32))
    result[f'{batch} lanes'] = token(setting.with_prompts(prompts), 33)
  return result


def turns(setting: Setting, machine) -> dict:
  """Responses of very different lengths: all side by side, and with a quarter of the seats."""
  del machine
  batch, prompt = 64, 64
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, setting.config.vocab_size, (batch, prompt))
  prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
  lengths, result = [], {}
  for name, seats in {'side by side': 0, 'in turns': batch // 4}.items():
    # Every fortieth token or so ends a response.
    decoder = _ending(decoding.of_network(setting.network), 1 / 40)
    sampling = decoding.Sampling(256, num_slots=seats)
    play = jax.jit(
      lambda sets, rng, sampling=sampling, decoder=decoder: mixture.play(
        decoder, sampling, sets, PLAYERS['policy'], prompts, rng
      )
    )
    result[name] = seconds(lambda play=play: play(setting.sets, jax.random.PRNGKey(0)))
    (rollout,) = play(setting.sets, jax.random.PRNGKey(0))
    lengths.append(np.asarray(rollout.mask).sum(-1))
  same = float(np.mean(lengths[0] == lengths[1]))
  return result | {
    'mean length': float(lengths[0].mean()),
    'longest': int(lengths[0].max()),
    'responses of one length in both': same,
  }


def _ending(decoder: decoding.Decoder, probability: float) -> decoding.Decoder:
  """A decoder whose responses end with some probability at each token."""

  def step(*args):
    logits, cache = decoder.step(*args)
    rest = jax.nn.logsumexp(logits.at[:, 1].set(-jnp.inf), axis=-1)
    return logits.at[:, 1].set(rest + np.log(probability / (1 - probability))), cache

  return decoder._replace(step=step)


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

  start = time.perf_counter()
  jax.block_until_ready(work())
  first = time.perf_counter() - start
  whole = seconds(work)
  best = {name: min(part[name] for part in parts[1:]) for name in parts[0]}
  limit = 3 * _operations(setting) / machine['operations_per_second']
  return {'step': whole, 'first step, compiling': first, **best, 'limit of update': limit}


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
    sets = {'policy': setting.params, 'reference': setting.reference, 'judge': setting.judge_params}
    for name, params in sets.items():
      hf.save(params, setting.config, root / name)
    np.save(root / 'prompts.npy', np.asarray(setting.prompts.tokens))
    command = [python, here / 'training_peers.py', root, str(setting.response)]
    command += ['--generate_only'] if generate_only else []
    subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads((root / 'out.json').read_text())


PARTS = {'decode': decode, 'scaling': scaling, 'turns': turns, 'step': step}


def arguments(description: str) -> argparse.ArgumentParser:
  """What says which setting is measured."""
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


def setting_of(args: argparse.Namespace) -> Setting:
  sizes = args.size, args.dtype, args.batch, args.prompt, args.response
  return Setting(*sizes, scan=args.scan, remat=args.remat)


def main() -> None:
  parser = arguments(__doc__)
  add = parser.add_argument
  add('--parts', nargs='+', choices=PARTS, default=['decode', 'step'])
  add('--peers', action='store_true', help='beside Hugging Face, and TRL')
  add('--generate_only', action='store_true', help='of the peers, no TRL')
  args = parser.parse_args()
  setting = setting_of(args)
  machine = limits(setting.config.dtype)
  about = {'parameters': _size(setting.params), 'device': str(jax.devices()[0])}
  result = {'setting': vars(args) | about, 'machine': machine}
  result |= {part: PARTS[part](setting, machine) for part in args.parts}
  if args.peers:
    result['peers'] = peers(setting, args.generate_only)
  show(result)
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


def show(result: dict) -> None:
  """The table: seconds, and ratios of the same run."""
  setting, machine = result['setting'], result['machine']
  title = (
    f'{setting["size"]}, {setting["parameters"] / 1e6:.1f} M parameters, {setting["batch"]} prompts of '
    f'{setting["prompt"]}, responses of {setting["response"]}, {setting["dtype"]}; '
    f'{machine["bytes_per_second"] / 1e9:.1f} GB/s, {machine["operations_per_second"] / 1e9:.0f} GFLOP/s'
  )
  shown = table.Table(title=title)
  for column in ('what', 'seconds', 'beside', 'seconds', 'ratio'):
    shown.add_column(column)

  def row(what, ours, name, other, ratio):
    shown.add_row(what, f'{ours:.4f}', name, f'{other:.4f}', f'{ratio:.2f}')

  if decoded := result.get('decode'):
    limit = decoded['limit of a token']
    row('a token', decoded['token'], 'its limit', limit, limit / decoded['token'])
    for name in ('self-play pair', 'mixture', 'Nash-MD pair'):
      row(name, decoded[name], 'one policy', decoded['policy'], decoded[name] / decoded['policy'])
  if scaled := result.get('scaling'):
    short, long = scaled['token of 64'], scaled['token of 512']
    row('a token of 512', long, 'a token of 64', short, long / short)
    for name, value in scaled.items():
      if 'lanes' in name:
        row(f'a token, {name}', value, '1 lane', scaled['1 lanes'], value / scaled['1 lanes'])
  if turns := result.get('turns'):
    a, b = turns['in turns'], turns['side by side']
    row('64 prompts in 16 seats', a, 'side by side', b, b / a)
  if whole := result.get('step'):
    limit = whole['limit of update']
    row('update', whole['update'], 'its limit', limit, limit / whole['update'])
    for name in ('sample', 'judge'):
      row(name, whole[name], 'whole step', whole['step'], whole[name] / whole['step'])
    compiling = whole['first step, compiling']
    row('first step', compiling, 'whole step', whole['step'], compiling / whole['step'])
  others = dict(result.get('peers', {}))
  first = others.pop('first token', None)
  for name, other in others.items():
    if 'generate' not in name:
      row('whole step', whole['step'], name, other, other / whole['step'])
      continue
    row('one policy', decoded['policy'], name, other, other / decoded['policy'])
    token = (other - first) / (setting['response'] - 1)
    row('a token', decoded['token'], f'{name}, a token', token, token / decoded['token'])
  console.Console(width=120).print(shown)


if __name__ == '__main__':
  main()
