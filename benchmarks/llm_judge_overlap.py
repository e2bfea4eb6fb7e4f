"""Nash-MD with a judge behind an API: a step beside its decoding by itself and its judging by itself, with rollouts in parts.

  python benchmarks/llm_judge_overlap.py --output out.json

A stub on loopback, in a process of its own, answers every question after 50 ms; the panel asks 16 at a time. Its cache is emptied
before each step, and temperature 1 draws responses that differ, so that each question is really asked. The judge's work on this
machine (requests, JSON) takes time from decoding too, as it would elsewhere. Needs JAX, Flax and httpx.
"""

# isort: off
import setting as settings
# isort: on

import argparse
import asyncio
import json
import multiprocessing
import pathlib
import statistics
import time

import optax
from rich import console
from rich import table as rich_table

from nlhf_jax import algorithms
from nlhf_jax.judges import llm, llm_cache, llm_settings
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding, t5
from nlhf_jax.training import loop, steps

LATENCY, CONCURRENCY = 0.05, 16
settings.SIZES['t5_small_test'] = t5.T5Config(
  1024,
  emb_dim=128,
  num_heads=4,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=32,
  mlp_dim=512,
)
CONTENT = json.dumps(
  {'choices': [{'message': {'content': 'A'}}], 'usage': {'total_tokens': 9}}
).encode()
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % len(CONTENT) + CONTENT


def serve(port) -> None:
  """Answers A to everything, late."""

  async def handle(reader, writer):
    try:
      while True:
        head = await reader.readuntil(b'\r\n\r\n')
        length = int(head.lower().split(b'content-length:')[1].split(b'\r\n')[0])
        await reader.readexactly(length)
        await asyncio.sleep(LATENCY)
        writer.write(ANSWER)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
      writer.close()

  async def run():
    server = await asyncio.start_server(handle, '127.0.0.1', 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

  asyncio.run(run())


class Judge:
  """A panel that remembers nothing from one batch to the next."""

  def __init__(self, port: int):
    self._panel = llm.Panel(
      ['stub'],
      server=llm_settings.Server(f'http://127.0.0.1:{port}/v1', concurrency=CONCURRENCY),
      parameters={'max_tokens': 1},
    )
    decode = lambda ids: ' '.join(map(str, ids))
    self._judge = llm.from_panel(self._panel, decode, decode)

  def __call__(self, prompts, response, alternative):
    self._panel._cache = llm_cache.AnswerCache()
    return self._judge(prompts, response, alternative)

  @property
  def num_calls(self) -> int:
    """Asked so far."""
    return self._panel.spending.num_calls


def measure(setting, judge, args, num_parts: int) -> dict[str, float]:
  """Medians over steps of the loop's own times, after one that compiles."""
  pi = policy.from_network(setting.network, decoding.Sampling(args.response))
  method = algorithms.nash_md_pg(
    pi,
    judge,
    tau=settings.TAU,
    beta=settings.BETA,
    num_samples=args.num_samples,
    all_pairs=args.all_pairs,
  )
  optimizer = optax.adafactor(1e-4)
  given = {'reference': setting.reference}
  state = loop.init_state(method, optimizer, 0, online=setting.params, given=given)
  step = steps.Steps(method, optimizer, num_rollout_parts=num_parts)
  seconds, calls = [], []
  for _ in range(args.repeats + 1):
    clock, before, start = steps.Clock(), judge.num_calls, time.perf_counter()
    state, *_ = step(state, setting.prompts, clock)
    seconds.append({**clock.seconds, 'step': time.perf_counter() - start})
    calls.append(judge.num_calls - before)
  names = seconds[0]
  found = {name: statistics.median(x[name] for x in seconds[1:]) for name in names}
  return found | {'calls': statistics.median(calls[1:])}


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='t5_small_test')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--prompt', type=int, default=32)
  parser.add_argument('--response', type=int, default=32)
  parser.add_argument('--num_samples', type=int, default=2)
  parser.add_argument('--all_pairs', action='store_true')
  parser.add_argument('--num_parts', type=int, nargs='+', default=[4, 8])
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--output')
  args = parser.parse_args()
  receive, send = multiprocessing.Pipe(duplex=False)
  server = multiprocessing.get_context('spawn').Process(target=serve, args=(send,), daemon=True)
  server.start()
  judge = Judge(receive.recv())
  setting = settings.Setting(args.size, 'float32', args.batch, args.prompt, args.response)
  rows = {number: measure(setting, judge, args, number) for number in [1, *args.num_parts]}
  server.terminate()
  alone = rows[1]
  longest = max(alone['sample'], alone['score'])
  shown = rich_table.Table(
    'parts',
    'decoding, s',
    'waiting for the judge, s',
    'update, s',
    'step, s',
    'step / max',
    'less update',
    title=f'{alone["calls"]:.0f} questions a step; max: the longer of decoding and judging in one part',
  )
  for number, row in rows.items():
    row |= {
      'ratio': row['step'] / longest,
      'without_update': (row['step'] - row['update']) / longest,
    }
    names = ('sample', 'score', 'update', 'step', 'ratio', 'without_update')
    shown.add_row(str(number), *(f'{row[name]:.2f}' for name in names))
  console.Console(width=120).print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(
      json.dumps({'settings': vars(args), 'parts': rows}, indent=2) + '\n'
    )


if __name__ == '__main__':
  main()
