"""What it takes to judge all pairs of K responses to a prompt: by a model that reads pairs, and by a vector of each response.

  python benchmarks/preference_heads.py --size test t5_test --output out.json

Both are the same network with the same weights and the same pieces around the texts, in one process, turn by turn; ratios are
those of each turn. The pair model reads each pair of different responses once, in both orders, K (K − 1) passes over two responses;
"table" is what it takes where nobody tells it so, 2 K² passes. The head has a reward and eight blocks that the prompt weighs, K passes
over one.
"""

# isort: off
import setting as settings
# isort: on

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing
from rich import console, table

from nlhf_jax.judges import tables
from nlhf_jax.models import general_preference, preference_model, rater
from nlhf_jax.types import EOS, Prompts

NUM_BLOCKS = 8


def head_judge(setting: settings.Setting):
  """The judge of vectors, on the network and the weights of the pair judge."""
  head = rater.gated_linear(2 * NUM_BLOCKS + 1, NUM_BLOCKS)
  reader = rater.in_decoder(setting.network, settings.TEMPLATE, head=head)
  pair_fn = functools.partial(general_preference.reward_and_skew, gated=True)
  own = head.init(jax.random.PRNGKey(3), setting.config.emb_dim)
  params = {'network': setting.judge_params, 'head': own}
  return preference_model.preference_fn(general_preference.from_rater(reader, pair_fn), params)


def make_responses(setting: settings.Setting, number: int) -> jax.Array:
  """Of full length, with EOS."""
  shape = setting.prompts.tokens.shape[0] * number, setting.response
  tokens = np.random.default_rng(1).integers(2, setting.config.vocab_size, shape)
  tokens[:, -1] = EOS
  return jnp.asarray(tokens, jnp.int32)


def each_pair_once(judge, prompts: Prompts, responses: jax.Array) -> jax.Array:
  """P of the pairs i < j alone, [B, K (K − 1)/2]."""
  by_prompt = responses.reshape(prompts.tokens.shape[0], -1, responses.shape[-1])
  i, j = np.triu_indices(by_prompt.shape[1], 1)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return judge(prompts, flat(by_prompt[:, i]), flat(by_prompt[:, j]))


def _seconds(work) -> float:
  start = time.perf_counter()
  jax.block_until_ready(work())
  return time.perf_counter() - start


def measure(setting: settings.Setting, number: int, repeats: int) -> dict:
  """Seconds of each way to judge, turn by turn."""
  prompts, responses = setting.prompts, make_responses(setting, number)
  head, pair = head_judge(setting), setting.pair_preference_fn
  ways = {
    'head': lambda: tables.preference_table(head, prompts, responses),
    'pair': lambda: each_pair_once(pair, prompts, responses),
    'pair, table': lambda: tables.preference_table(pair, prompts, responses),
  }
  found = np.asarray(jax.block_until_ready(ways['head']()))
  if not np.array_equal(found + found.swapaxes(1, 2), np.ones_like(found)):
    raise AssertionError('The table of the head is not antisymmetric.')
  for work in ways.values():
    jax.block_until_ready(work())
  turns = [{name: _seconds(work) for name, work in ways.items()} for _ in range(repeats)]
  seconds = {name: [x[name] for x in turns] for name in ways}
  ratios = {name: [x[name] / x['head'] for x in turns] for name in ways if name != 'head'}
  return {
    'seconds': {name: timing.spread(x) for name, x in seconds.items()},
    'times the head': {name: timing.spread(x) for name, x in ratios.items()},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', nargs='+', default=['test', 't5_test'], choices=settings.SIZES)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--batch', type=int, default=1, help='prompts')
  parser.add_argument('--prompt', type=int, default=256, help='tokens')
  parser.add_argument('--response', type=int, default=32, help='tokens')
  parser.add_argument('--responses', type=int, default=16, help='K')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--output', help='a file for the same in JSON')
  args = parser.parse_args()
  rows = []
  shown = table.Table(title=f'all pairs of {args.responses} responses')
  for name in ('network', 'judge', 'seconds', 'from', 'to', 'times the head', 'from', 'to'):
    shown.add_column(name, justify='right')
  for size in args.size:
    setting = settings.Setting(size, args.dtype, args.batch, args.prompt, args.response)
    found = measure(setting, args.responses, args.repeats)
    rows.append({'size': size, 'setting': vars(args), **found})
    for name, seconds in found['seconds'].items():
      ratio = found['times the head'].get(name)
      cells = [f'{seconds[x]:.4f}' for x in ('median', 'low', 'high')]
      cells += [f'{ratio[x]:.1f}' for x in ('median', 'low', 'high')] if ratio else [''] * 3
      shown.add_row(size, name, *cells)
  console.Console(width=120).print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
