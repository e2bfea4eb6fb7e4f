"""Speed of decoding, scoring, updating, and of a complete Nash-MD step: beside the machine's limits, and beside the peers.

  python benchmarks/training_speed.py --size test --peers --output out.json
  python benchmarks/training_speed.py --size smollm2_135m --parts decode scaling --output out.json

Limits are measured in the same run: bytes that must move over the bandwidth of reading a large array, operations over the
rate of a large matrix product. Peers (Hugging Face `generate`, and TRL's NashMDTrainer, the last release that has it) run
on the same weights, which are exported to them, in an environment of their own (benchmarks/.venv-training). Needs JAX and
Flax alone; on an accelerator use --dtype bfloat16 and the sizes t5_xl and llama_1_5b.
"""

# isort: off
import setting as settings
# isort: on

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import environments
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from rich import console, table

from nlhf_jax.formats import hf
from nlhf_jax.models import mixture, policy
from nlhf_jax.networks import decoding
from nlhf_jax.training import loop, steps
from nlhf_jax.types import Prompts

# TRL imports requests undeclared.
PEERS = ('torch==2.13.0', 'transformers==5.23.0', 'trl==1.13.0', 'requests')
MIXTURES = {
  'policy': [mixture.ONLINE],
  'self-play pair': [mixture.ONLINE] * 2,
  'mixture': [mixture.between(settings.BETA)],
  'Nash-MD pair': [mixture.ONLINE, mixture.between(settings.BETA)],
}


def player(setting: settings.Setting, mixtures, response: int) -> functools.partial:
  """The compiled function that draws responses of this length, with its arguments."""
  model = setting.policy_of_length(response)
  play = jax.jit(lambda sets, prompts, rng: model.play(sets, mixtures, prompts, rng))
  return functools.partial(play, setting.sets, setting.prompts, jax.random.PRNGKey(0))


def _play(setting: settings.Setting, mixtures, response: int) -> float:
  return settings.seconds(player(setting, mixtures, response))


def policy_alone(setting: settings.Setting, machine) -> dict:
  """Seconds of one policy, and its limit."""
  result = {'policy': _play(setting, MIXTURES['policy'], setting.response)}
  # The prompt's pass and the first token.
  result['prefill'] = _play(setting, MIXTURES['policy'], 1)
  result['token'] = (result['policy'] - result['prefill']) / (setting.response - 1)
  result['limit of a token'] = settings.bytes_per_token(setting) / machine['bytes_per_second']
  return result


def decode(setting: settings.Setting, machine) -> dict:
  """One policy and its limit; the pair of self-play; the mixture; the pair of Nash-MD. Seconds."""
  others = {name: x for name, x in MIXTURES.items() if name != 'policy'}
  played = {name: _play(setting, x, setting.response) for name, x in others.items()}
  return policy_alone(setting, machine) | played


def token(setting: settings.Setting, response: int) -> float:
  """Seconds of a token of all lanes, of responses of this length."""
  complete, first = (_play(setting, MIXTURES['policy'], n) for n in (response, 1))
  return (complete - first) / (response - 1)


def lanes(setting: settings.Setting, number: int) -> settings.Setting:
  """The same with this number of prompts, over and over."""
  rows = np.arange(number) % len(setting.prompts.tokens)
  return setting.with_prompts(
    Prompts(setting.prompts.tokens[rows], jnp.arange(number, dtype=jnp.int32))
  )


def scaling(setting: settings.Setting, machine) -> dict:
  """Seconds of a token: of short and long responses, and of more lanes."""
  del machine
  result = {}

  for response in (64, 512):
    result[f'token of {response}'] = token(setting, response)
  for batch in (1, 2, 4, 8, 16, 32):
    result[f'{batch} lanes'] = token(lanes(setting, batch), 33)
  return result


def share(setting: settings.Setting, machine) -> dict:
  """A token of 1, 8 and 32 lanes beside the bandwidth, measured in turns: both vary on a machine that others use."""
  del machine
  result = {}
  for number in (1, 8, 32):
    some = lanes(setting, number)
    least, found = settings.bytes_per_token(some), []
    play, first = (player(some, MIXTURES['policy'], n) for n in (setting.response, 1))
    for _ in range(6):
      bandwidth = settings.bandwidth()
      seconds = _once(play) - _once(first)
      found.append((seconds / (setting.response - 1), bandwidth))
    found = found[1:]  # In the first round they were compiled.
    shares = [least / bandwidth / seconds for seconds, bandwidth in found]
    result[f'{number} lanes'] = {
      'token': timing.spread([x[0] for x in found]),
      'bytes_per_second': timing.spread([x[1] for x in found]),
      'share': timing.spread(shares),
    }
  return result


def _once(work) -> float:
  start = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - start


def slots(setting: settings.Setting, machine) -> dict:
  """Responses of very different lengths: all side by side, and by continuous batching over a quarter of the slots."""
  del machine
  batch, prompt = 64, 64
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, setting.config.vocab_size, (batch, prompt))
  prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.arange(batch, dtype=jnp.int32))
  # Every fortieth token or so ends a response.
  network = settings.Ending(setting.network, 1 / 40)
  lengths, result = [], {}
  for name, num_slots in {'side by side': 0, 'slots': batch // 4}.items():
    model = policy.from_network(network, decoding.Sampling(256, num_slots=num_slots))
    play = jax.jit(
      lambda sets, rng, model=model: model.play(sets, MIXTURES['policy'], prompts, rng)
    )
    result[name] = settings.seconds(lambda play=play: play(setting.sets, jax.random.PRNGKey(0)))
    (rollout,) = play(setting.sets, jax.random.PRNGKey(0))
    lengths.append(np.asarray(rollout.mask).sum(-1))
  same = float(np.mean(lengths[0] == lengths[1]))
  return result | {
    'mean length': float(lengths[0].mean()),
    'longest': int(lengths[0].max()),
    'responses of one length in both': same,
  }


def nash_md(setting: settings.Setting):
  """Nash-MD's steps, the method, and the state that it starts from."""
  optimizer, method = optax.adamw(1e-5), setting.method()
  given = {'reference': setting.reference}
  state = loop.init_state(method, optimizer, 0, online=setting.params, given=given)
  return steps.Steps(method, optimizer), method, state


def step(setting: settings.Setting, machine) -> dict:
  """A complete Nash-MD step through the training loop, and its parts."""
  run, _, state = nash_md(setting)
  parts: list[dict] = []

  def work():
    nonlocal state
    clock = steps.Clock()
    state, _, metrics = run(state, setting.prompts, clock)
    parts.append(clock.seconds)
    return metrics

  start = time.perf_counter()
  jax.block_until_ready(work())
  first = time.perf_counter() - start
  complete = settings.seconds(work)
  best = {name: min(part[name] for part in parts[1:]) for name in parts[0]}
  limit = 3 * settings.operations(setting) / machine['operations_per_second']
  return {'step': complete, 'first step, compiling': first, **best, 'limit of update': limit}


def peers(setting: settings.Setting, python: str | None, generate_only: bool) -> dict:
  """The same weights and prompts, in the peers' hands."""
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    sets = {'policy': setting.params, 'reference': setting.reference, 'judge': setting.judge_params}
    for name, params in sets.items():
      hf.save(params, setting.config, root / name)
    np.save(root / 'prompts.npy', np.asarray(setting.prompts.tokens))
    script = pathlib.Path(__file__).with_name('training_peers.py')
    dtype = setting.config.dtype
    command = [
      python or environments.python_of('.venv-training', PEERS),
      script,
      root,
      str(setting.response),
      dtype,
    ]
    command += ['--generate_only'] if generate_only else []
    ended, found = subprocess.run(command, stdout=sys.stderr).returncode, root / 'out.json'
    result = json.loads(found.read_text()) if found.exists() else {}
    if ended:
      print(
        f'The peers ended with status {ended}; what they had measured is kept.', file=sys.stderr
      )
    return result


PARTS = {
  'policy': policy_alone,
  'decode': decode,
  'scaling': scaling,
  'share': share,
  'slots': slots,
  'step': step,
}


def arguments(description: str) -> argparse.ArgumentParser:
  """A parser of the flags that choose a setting."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--size', choices=settings.SIZES, default='test')
  add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of activations')
  add('--batch', type=int, default=8)
  add('--prompt', type=int, default=256)
  add('--response', type=int, default=32)
  add('--scan', action='store_true', help='one compiled layer for all in training')
  add('--remat', default='none', help='none, layers or dots')
  add('--output', required=True)
  return parser


def make(args: argparse.Namespace) -> settings.Setting:
  """The setting that the flags choose."""
  sizes = args.size, args.dtype, args.batch, args.prompt, args.response
  execution = {'scan': args.scan, 'remat': args.remat}
  return settings.Setting(*sizes, frozen_dtype=args.dtype, **execution)


def main() -> None:
  """Measures the chosen parts, prints and writes."""
  parser = arguments(__doc__)
  add = parser.add_argument
  add('--parts', nargs='+', choices=PARTS, default=['decode', 'step'])
  add('--peers', action='store_true', help='beside Hugging Face, and TRL')
  add('--peers_python', help='which has them; None: one is made')
  add('--generate_only', action='store_true', help='of the peers, no TRL')
  args = parser.parse_args()
  setting = make(args)
  machine = settings.limits(setting.config.dtype)
  about = {'parameters': settings.num_weights(setting.params), 'device': str(jax.devices()[0])}
  result = {'setting': vars(args) | about, 'machine': machine}
  result |= {part: PARTS[part](setting, machine) for part in args.parts}
  output = pathlib.Path(args.output)
  output.write_text(json.dumps(result, indent=1) + '\n')
  if args.peers:
    result['peers'] = peers(setting, args.peers_python, args.generate_only)
    output.write_text(json.dumps(result, indent=1) + '\n')
  show(result)


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

  if decoded := result.get('decode') or result.get('policy'):
    limit = decoded['limit of a token']
    row('a token', decoded['token'], 'its limit', limit, limit / decoded['token'])
    for name in [x for x in MIXTURES if x in decoded and x != 'policy']:
      row(name, decoded[name], 'one policy', decoded['policy'], decoded[name] / decoded['policy'])
  if scaled := result.get('scaling'):
    short, long = scaled['token of 64'], scaled['token of 512']
    row('a token of 512', long, 'a token of 64', short, long / short)
    for name, value in scaled.items():
      if 'lanes' in name:
        row(f'a token, {name}', value, '1 lane', scaled['1 lanes'], value / scaled['1 lanes'])
  for name, one in result.get('share', {}).items():
    middle = {key: value['median'] for key, value in one.items()}
    limit = middle['share'] * middle['token']
    row(f'a token, {name}', middle['token'], 'its limit, in turns', limit, middle['share'])
  if batched := result.get('slots'):
    a, b = batched['slots'], batched['side by side']
    row('64 prompts in 16 slots', a, 'side by side', b, b / a)
  if complete := result.get('step'):
    limit = complete['limit of update']
    row('update', complete['update'], 'its limit', limit, limit / complete['update'])
    for name in ('sample', 'score'):
      row(
        name, complete[name], 'complete step', complete['step'], complete[name] / complete['step']
      )
    compiling = complete['first step, compiling']
    row('first step', compiling, 'complete step', complete['step'], compiling / complete['step'])
  others = dict(result.get('peers', {}))
  first = others.pop('first token', None)
  for name, other in others.items():
    if 'generate' not in name:
      if complete:
        row('complete step', complete['step'], name, other, other / complete['step'])
      continue
    if not decoded or first is None:
      continue
    row('one policy', decoded['policy'], name, other, other / decoded['policy'])
    token = (other - first) / (setting['response'] - 1)
    row('a token', decoded['token'], f'{name}, a token', token, token / decoded['token'])
  console.Console(width=120).print(shown)


if __name__ == '__main__':
  main()
