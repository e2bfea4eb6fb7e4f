"""What it takes to start on a million votes: seconds to the first batch, and the memory of the process.

  python benchmarks/million_rows.py --vocabulary sentencepiece.model --output out.json

The file is made first, in the layout {prompt, chosen, rejected}, as JSONL and as Parquet: prompts of about 500 letters, every other of
them with two votes, responses of about 130. Each kind is read in a process of its own. Then batches are drawn, of one length and of several.
The peak counts pages of the temporary file too, which the system takes back when it needs them; what is the process's own does not.
"""

import argparse
import json
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time

import pyarrow
import pyarrow.parquet
from rich import console
from rich import table as rich_table

WORDS = [
  f'{a}{b}{c}' for a in ('ba', 'ne', 'so', 'ti') for b in 'lmnrst' for c in ('ado', 'en', 'i')
]


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--vocabulary', required=True)
  parser.add_argument('--num_rows', type=int, default=1_000_000)
  parser.add_argument('--output', type=pathlib.Path)
  parser.add_argument('--measure', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(measure(arguments.measure, arguments.vocabulary)))
    return
  with tempfile.TemporaryDirectory() as directory:
    files = write(pathlib.Path(directory), arguments.num_rows)
    found = {}
    for kind, path in files.items():
      command = [
        sys.executable,
        __file__,
        '--vocabulary',
        arguments.vocabulary,
        '--measure',
        str(path),
      ]
      done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
      found[kind] = json.loads(done.stdout) | {'gigabytes': path.stat().st_size / 1e9}
  table = rich_table.Table('', *found, title=f'{arguments.num_rows:,} votes')
  for name in next(iter(found.values())):
    table.add_row(name, *(f'{one[name]:.3g}' for one in found.values()))
  console.Console().print(table)
  if arguments.output:
    arguments.output.write_text(json.dumps(found, indent=2))


def write(directory: pathlib.Path, num_rows: int) -> dict[str, pathlib.Path]:
  """The same votes in both kinds of file."""
  rng = random.Random(0)
  text = lambda size: ' '.join(rng.choices(WORDS, k=size))
  files = {'JSONL': directory / 'votes.jsonl', 'Parquet': directory / 'votes.parquet'}
  schema = pyarrow.schema([(name, pyarrow.string()) for name in ('prompt', 'chosen', 'rejected')])
  with (
    files['JSONL'].open('w') as jsonl,
    pyarrow.parquet.ParquetWriter(files['Parquet'], schema) as parquet,
  ):
    prompt, waiting = '', []
    for number in range(num_rows):
      prompt = prompt if number % 3 == 1 else f'{number} {text(85)}'
      waiting.append({'prompt': prompt, 'chosen': text(22), 'rejected': text(22)})
      jsonl.write(json.dumps(waiting[-1]) + '\n')
      if len(waiting) == 50_000 or number == num_rows - 1:
        parquet.write_table(pyarrow.Table.from_pylist(waiting, schema))
        waiting = []
  return files


def measure(path: str, vocabulary_file: str) -> dict[str, float]:
  """Of one process that reads a file and draws batches."""
  started = time.perf_counter()
  from nlhf_jax.data import pipeline, tasks, vocabularies

  imported, before = time.perf_counter(), peak()
  task = tasks.comparisons(path, vocabularies.sentencepiece(vocabulary_file))
  sizes = {'batch_size': 32, 'prompt_length': 256, 'response_length': 64}
  batches = pipeline.batches(task, split='train', **sizes)
  next(batches)
  result = {'seconds to import': imported - started, 'GB after it, peak': before}
  result |= {
    'seconds to the first batch, from the start': time.perf_counter() - started,
    'seconds of computing among them': time.process_time(),
    'GB, peak': peak(),
    "GB, the process's own": own(),
  }
  began = time.perf_counter()
  for _ in range(100):
    next(batches)
  result['milliseconds of a batch of 32'] = (time.perf_counter() - began) * 10
  began = time.perf_counter()
  bucketed = pipeline.batches(
    task, split='train', num_prompt_lengths=4, num_response_lengths=2, **sizes
  )
  next(bucketed)
  result['seconds to the first batch of several lengths'] = time.perf_counter() - began
  return result | {'GB at the end, peak': peak(), "GB at the end, the process's own": own()}


def peak() -> float:
  """Most gigabytes that were ever resident."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def own() -> float:
  """Gigabytes that are of no file."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(r'RssAnon:\s+(\d+)', status)[1]) * 1024 / 1e9


if __name__ == '__main__':
  main()
