"""Variance of a policy gradient, and what a step takes: single pairs and all pairs, few responses and many.

  nlhf demo --run_dir=runs/demo
  python benchmarks/estimators.py --run_dir runs/demo/nash_md_pg --start sft --output out.json

Of one batch of prompts and fixed parameters the gradient is estimated many times; its variance is the mean square distance
from the mean of all, in units of the mean's square. What counts is variance times seconds: how long it takes to the same noise.
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import console, table

from nlhf_jax.cli import gin_config
from nlhf_jax.runtime import run_directory
from nlhf_jax.training import loop, resolve, steps, weights
from nlhf_jax.training.experiment import Experiment

# Responses to a prompt, and whether each is judged against all alternatives.
SETTINGS = [(1, False), (4, False), (4, True), (16, False), (16, True), (64, False), (64, True)]


def gradients(algorithm, state, batch, number: int) -> np.ndarray:
  """Estimates as rows: of other samples each, for the same prompts."""
  sample = jax.jit(algorithm.sample)

  @jax.jit
  def gradient(online, rollout):
    found, _ = steps.accumulate(algorithm.loss, online, rollout, 1)
    return jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(found)])

  rows = []
  for n in range(number):
    rollout = algorithm.score(sample(state.params, batch, jax.random.PRNGKey(n)))
    rows.append(np.asarray(gradient(state.params.online, rollout)))
  return np.stack(rows)


def measure(experiment: Experiment, runs: pathlib.Path, online, num_samples, all_pairs, number):
  """Variance, and seconds of each phase of a step."""
  method = functools.partial(experiment.algorithm, num_samples=num_samples, all_pairs=all_pairs)
  experiment = experiment._replace(algorithm=method)
  algorithm = resolve.build_algorithm(experiment, resolve.bind_feedback(experiment.feedback, runs))
  reference = weights.load_params(experiment.model, experiment.start_from, runs)
  optimizer = optax.sgd(0.0)
  state = loop.init_state(algorithm, optimizer, 0, online=online, given={'reference': reference})
  batch = next(experiment.batches(start=0))
  rows = gradients(algorithm, state, batch, number)
  mean = rows.mean(axis=0)
  step, phases = steps.Steps(algorithm, optimizer), []
  for _ in range(12):
    clock = steps.Clock()
    state, *_ = step(state, batch, clock)
    phases.append(clock.seconds)
  seconds = {name: float(np.median([x[name] for x in phases[2:]])) for name in phases[0]}
  total = sum(seconds.values())
  variance = float(np.mean(np.sum((rows - mean) ** 2, axis=1)) * number / (number - 1))
  return {
    'responses': num_samples,
    'all_pairs': all_pairs,
    'variance': variance,
    'seconds': seconds | {'step': total},
    'variance_seconds': variance * total,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--run_dir', required=True, help='of a policy gradient method')
  parser.add_argument('--start', help='the run beside it whose policy is taken; default: its own')
  parser.add_argument('--estimates', type=int, default=48)
  parser.add_argument('--output', help='a file for the same in JSON')
  args = parser.parse_args()
  run_dir = pathlib.Path(args.run_dir)
  text = run_directory.read_config(run_dir)
  experiment = gin_config.from_text(Experiment, text).value
  source = run_dir.parent / args.start if args.start else run_dir
  online = weights.load_params(experiment.model, source.name, run_dir.parent)
  rows = [
    measure(experiment, run_dir.parent, online, k, all_pairs, args.estimates)
    for k, all_pairs in SETTINGS
  ]
  shown = table.Table(title='in units of the first row')
  for name in ('responses', 'pairs', 'variance', 'seconds of a step', 'variance × seconds'):
    shown.add_column(name, justify='right')
  first = rows[0]
  for row in rows:
    pairs = row['responses'] ** (2 if row['all_pairs'] else 1)
    shown.add_row(
      str(row['responses']),
      str(pairs),
      f'{row["variance"] / first["variance"]:.3f}',
      f'{row["seconds"]["step"]:.3f}',
      f'{row["variance_seconds"] / first["variance_seconds"]:.3f}',
    )
  console.Console(width=120).print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(rows, indent=2) + '\n')


if __name__ == '__main__':
  main()
