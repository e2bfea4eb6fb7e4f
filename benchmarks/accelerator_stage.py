"""One stage of an experiment from token files, for `accelerator.py`: `nlhf train` in this process, with its times.

A stage that is asked to end (SIGTERM) saves and ends, and goes on where it stopped when it is started again. Needs gin-config
and tensorboardX, and neither seqio nor TensorFlow.
"""

# isort: off
import accelerator_parts
# isort: on

import json
import pathlib
import sys
from typing import Any

import accelerator_report
import timing

from nlhf_jax.cli import main
from nlhf_jax.runtime import metrics

_NUM_STEPS = 'experiment.Experiment.num_steps'


def run(name: str, path: pathlib.Path, flags: dict[str, Any]) -> None:
  """Trains as far as time allows, and writes how."""
  told = accelerator_report.Report(path, f'stage {name}', 'experiment', flags)
  try:
    told.write(device=accelerator_parts.describe())
    spent = accelerator_parts.count_compiling()
    tokens, run_dir = pathlib.Path(flags['tokens']), path.parent / 'runs' / name
    argv = ['train', f'--gin_file={tokens / name}.gin', f'--data_dir={tokens}', '--traceback']
    argv += [f'--run_dir={run_dir}', *flags['train_flags']]
    argv += [f'--gin.MODEL_DIR={flags["model"]!r}'] if flags['model'] else []
    main.main(argv)
    peak = {'peak_bytes': accelerator_parts.peak_bytes(), 'after_probe_bytes': None}
    for row in _phases(run_dir):
      told.add(row, memory=peak)
    done, of = _steps(run_dir)
    steps = {'name': 'steps', 'text': f'{done} of {of}', 'done': done, 'num_steps': of}
    told.add(steps | accelerator_parts.compile_seconds(spent))
    if done < of:
      told.write(status=accelerator_report.LIMIT, error='it goes on when it is started again')
    else:
      told.write(status=accelerator_report.COMPLETE)
  except Exception as error:
    told.fail(error)
    raise


def _phases(run_dir: pathlib.Path) -> list[dict[str, Any]]:
  """Seconds a step of each phase, from the log; its first line includes compiling."""
  rows = metrics.read_rows(run_dir / 'metrics.jsonl')
  found = []
  for phase in ('sample', 'score', 'update'):
    seconds = [row[f'{phase}_seconds'] for row in rows[1:] or rows if f'{phase}_seconds' in row]
    if seconds:
      found.append({'name': phase, 'seconds': timing.spread(seconds)})
  return found


def _steps(run_dir: pathlib.Path) -> tuple[int, int]:
  """Those that are logged, and those of the run."""
  rows = metrics.read_rows(run_dir / 'metrics.jsonl')
  fields = json.loads((run_dir / 'run.json').read_text(encoding='utf-8'))['fields']
  return rows[-1]['step'] if rows else 0, fields[_NUM_STEPS]


if __name__ == '__main__':
  name, _, path, flags = sys.argv[1:]
  run(name, pathlib.Path(path), json.loads(flags))
