"""Host memory of reading a model of several files, beyond the arrays themselves, against its largest file.

  python benchmarks/import_memory.py --model DIR --max_shard_mb 200

Splits the model anew, then reads it in a process of its own, whose resident set is looked at every two milliseconds.
"""

import argparse
import json
import multiprocessing
import pathlib
import tempfile
import threading
import time

import jax
import jax.numpy as jnp

from nlhf_jax.formats import hf
from nlhf_jax.networks import parameters


def shapes(directory: pathlib.Path):
  """Of the model's arrays."""
  return jax.eval_shape(parameters.init(hf.network(directory)), jax.random.key(0))


def resident() -> int:
  """Bytes of this process's resident set, of Linux."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmRSS:')[1].split()[0]) * 1024


def measure(directory: pathlib.Path, answers) -> None:
  """Puts the bytes of the arrays, and of memory at the peak, into a queue."""
  like = shapes(directory)
  jnp.zeros(1).block_until_ready()
  start, peak, reading = resident(), [0], threading.Event()

  def watch():
    while not reading.is_set():
      peak[0] = max(peak[0], resident())
      time.sleep(0.002)

  watcher = threading.Thread(target=watch)
  watcher.start()
  params = jax.block_until_ready(hf.load(directory, like))
  reading.set()
  watcher.join()
  answers.put((sum(x.nbytes for x in jax.tree.leaves(params)), peak[0] - start))


def main() -> None:
  """Splits the model, measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--model', required=True, type=pathlib.Path)
  parser.add_argument('--max_shard_mb', type=float, default=200)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    directory = pathlib.Path(scratch) / 'model'
    limit = int(args.max_shard_mb * 1e6)
    params = hf.load(args.model, shapes(args.model))
    hf.save(params, hf.read_config(args.model), directory, max_shard_bytes=limit)
    context = multiprocessing.get_context('spawn')
    answers = context.Queue()
    process = context.Process(target=measure, args=(directory, answers))
    process.start()
    size, peak = answers.get()
    process.join()
    largest = max(file.stat().st_size for file in directory.glob('*.safetensors'))
  result = {'arrays_mb': size / 1e6, 'largest_shard_mb': largest / 1e6, 'peak_mb': peak / 1e6}
  print(
    json.dumps(result | {'beyond_arrays_over_largest_shard': (peak - size) / largest}, indent=2)
  )


if __name__ == '__main__':
  main()
