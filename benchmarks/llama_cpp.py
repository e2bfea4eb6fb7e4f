"""A token of SmolLM2: llama.cpp's, one response at a time, and ours, for one lane and for several; in turns, in one run.

  python benchmarks/llama_cpp.py --gguf_file SmolLM2.gguf --model MODEL --output out.json

MODEL is what `nlhf import --gguf_file` made of that file. llama-cpp-python compiles llama.cpp for this processor, in an
environment of its own (benchmarks/.venv-llama-cpp), and writes the weights anew in float32 and float16, its cache in the same.
Ours draws each token; llama.cpp's time is that of its logits alone.
"""

# isort: off
import setting as settings
# isort: on

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import environments
import numpy as np
import training_speed
from rich import console, table

_PEER = 'llama-cpp-python==0.3.36'
# What runs there: argv is the file, the types, the number of threads, of prompt and of response tokens.
_THEIRS = """
import ctypes, json, pathlib, sys, time
import llama_cpp
source, threads, prompt, response = sys.argv[1], *map(int, sys.argv[2:5])
result = {}
for name, kind in {'float32': 0, 'float16': 1}.items():
  path = pathlib.Path(sys.argv[5], f'{name}.gguf')
  if not path.exists():
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = kind, True
    assert llama_cpp.llama_model_quantize(source.encode(), str(path).encode(), ctypes.byref(params)) == 0
  options = dict(n_ctx=prompt + response + 1, n_threads=threads, n_threads_batch=threads, verbose=False)
  options |= {'type_k': 0, 'type_v': 0} if kind == 0 else {}
  model = llama_cpp.Llama(str(path), n_batch=prompt, **options)
  tokens = [2 + (7 * n) % 40000 for n in range(prompt)]
  found = []
  for _ in range(4):
    model.reset()
    start = time.perf_counter()
    model.eval(tokens)
    read = time.perf_counter()
    for n in range(response):
      model.eval([2 + n])
    found.append((read - start, (time.perf_counter() - read) / response))
  result[name] = {'prompt': min(x for x, _ in found[1:]), 'token': min(x for _, x in found[1:])}
print(json.dumps(result))
"""


def theirs(args: argparse.Namespace, scratch: str) -> dict[str, dict[str, float]]:
  """Type of the weights -> seconds of the prompt and of a token."""
  python = environments.python_of('.venv-llama-cpp', [_PEER])
  numbers = map(str, (args.threads, args.prompt, args.response))
  command = [python, '-I', '-c', _THEIRS, args.gguf_file, *numbers, scratch]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  """Measures in turns, prints and writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--gguf_file', required=True)
  add('--model', required=True, help='what nlhf import made of it')
  add('--prompt', type=int, default=256)
  add('--response', type=int, default=64)
  add('--lanes', type=int, nargs='+', default=[1, 8, 32])
  add('--threads', type=int, default=2, help="llama.cpp's")
  add('--rounds', type=int, default=3)
  add('--output', required=True)
  args = parser.parse_args()
  setting = settings.Setting(
    'smollm2_135m', 'float32', max(args.lanes), args.prompt, args.response, model=args.model
  )
  rounds = []
  with tempfile.TemporaryDirectory() as scratch:
    for _ in range(args.rounds):
      found = {f'llama.cpp, {name}': x['token'] for name, x in theirs(args, scratch).items()}
      found |= {
        f'ours, {n} lanes': training_speed.token(training_speed.lanes(setting, n), args.response)
        / n
        for n in args.lanes
      }
      rounds.append(found)
      print(found, file=sys.stderr, flush=True)
  bandwidth = settings.limits('float32')['bytes_per_second']
  shown = table.Table(title=f'{bandwidth / 1e9:.1f} GB/s')
  for column in ('', 'ms a token of a response', 'tokens a second'):
    shown.add_column(column, justify='right')
  for name in rounds[0]:
    median = float(np.median([x[name] for x in rounds]))
    shown.add_row(name, f'{1e3 * median:.2f}', f'{1 / median:.0f}')
  console.Console().print(shown)
  result = {'setting': vars(args), 'bytes_per_second': bandwidth, 'rounds': rounds}
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
