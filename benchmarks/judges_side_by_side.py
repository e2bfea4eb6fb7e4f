"""Judges of the built-in electorate that differ in their heads, trained for the same number of seconds, on the same votes.

  python benchmarks/judges_side_by_side.py --output_dir runs/heads --seconds 60 --seeds 0 1 2

Trains SFT, whose network all judges start from, if it is not there; times a step of each judge; then trains each for as many steps
as fill the seconds, and compares them on held-out votes: accuracy and log-loss, and their paired differences from the first judge,
with 95 % intervals over prompts. The seconds that training took are told too. Alone on the machine, or the seconds mean little.
"""

import argparse
import json
import pathlib
import statistics

from rich import console, table

from nlhf_jax.cli import gin_config
from nlhf_jax.cli import main as cli
from nlhf_jax.evaluation import judge_accuracy
from nlhf_jax.runtime import metrics, run_directory
from nlhf_jax.training import resolve, weights
from nlhf_jax.training.experiment import Experiment

JUDGES = ('pair', 'gpm', 'hrc', 'tastes', 'bradley_terry')
# Of a run that is timed; the first report of them has the time of compiling in it.
NUM_TIMED, LOG_EVERY = 60, 10
_PHASES = ('sample_seconds', 'score_seconds', 'update_seconds')


def train(run_dir: pathlib.Path, stage: str, *bindings: str) -> None:
  argv = ['train', f'--experiment=heads/{stage}', f'--run_dir={run_dir}']
  status = cli.main([*argv, *(f'--gin.{x}' for x in bindings)])
  # A run that was asked to end has no judge.json, and no error.
  if status or (stage != 'sft' and not (run_dir / 'judge.json').is_file()):
    raise SystemExit(f'{run_dir} was not trained to its end.')


def step_seconds(run_dir: pathlib.Path) -> list[float]:
  """Of a step, as each report of a run has it."""
  rows = metrics.read_rows(run_dir / metrics.METRICS)
  return [sum(row[name] for name in _PHASES) for row in rows if _PHASES[0] in row]


def plan(
  runs: pathlib.Path, names: list[str], seconds: float, bindings: list[str]
) -> dict[str, int]:
  """Steps of each judge that fill the seconds."""
  steps = {}
  for name in names:
    short = [f'NUM_STEPS={NUM_TIMED}', f'experiment.Experiment.log_every={LOG_EVERY}']
    train(runs / f'timed_{name}', name, *short, *bindings)
    step = statistics.median(step_seconds(runs / f'timed_{name}')[1:])
    steps[name] = max(1, round(seconds / step))
  return steps


def load(run_dir: pathlib.Path):
  """The judge of a run, and the votes that it is tested on."""
  text = run_directory.read_config(run_dir)
  experiment = gin_config.from_text(Experiment, text).value
  params = weights.trained_params(experiment, run_dir)
  return resolve.judge_of(experiment.model, params), experiment.held_out


def show(rows: list[dict]) -> None:
  shown = table.Table(title='held-out votes')
  for name in (
    'judge',
    'steps',
    'seconds',
    'accuracy',
    'above the first',
    'log-loss',
    'above the first',
  ):
    shown.add_column(name, justify='right')
  interval = lambda x: f'{x["mean"]:.3f} [{x["low"]:.3f}, {x["high"]:.3f}]'
  for row in rows:
    scores = [interval(row[s + m]) for s in ('accuracy', 'log_loss') for m in ('', '_above_first')]
    shown.add_row(row['judge'], str(row['steps']), f'{row["seconds"]:.1f}', *scores)
  console.Console(width=140).print(shown)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--output_dir', required=True)
  parser.add_argument('--seconds', type=float, default=60, help='of training, each')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0])
  parser.add_argument('--judges', nargs='+', default=JUDGES, choices=JUDGES)
  parser.add_argument('--gin', nargs='*', default=[], help='NAME=VALUE, of all runs')
  args = parser.parse_args()
  cli.keep_compiled()
  runs = pathlib.Path(args.output_dir)
  train(runs / 'sft', 'sft', *args.gin)
  steps = plan(runs, args.judges, args.seconds, args.gin)
  judges, took = {}, {}
  for name in args.judges:
    own = [runs / f'{name}_{seed}' for seed in args.seeds]
    for seed, run_dir in zip(args.seeds, own, strict=True):
      seeds = [f'SEED={seed}', f'experiment.network_from.seed={seed}']
      train(run_dir, name, f'NUM_STEPS={steps[name]}', *seeds, *args.gin)
    took[name] = statistics.mean(statistics.mean(step_seconds(x)[1:] or [0]) for x in own)
    loaded = [load(run_dir) for run_dir in own]
    judges[name], held_out = [judge for judge, _ in loaded], loaded[0][1]
  found = judge_accuracy.compare(judges, held_out())
  rows = [
    {'judge': name, 'steps': steps[name], 'seconds': took[name] * steps[name], **scores}
    for name, scores in found.items()
  ]
  show(rows)
  (runs / 'side_by_side.json').write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
