"""Flags that are numbers: every one has a range, and what is outside is one line with the flag, the range and the number."""

import argparse

import pytest

from nlhf_jax import arguments
from nlhf_jax.cli import flags, main

PARSER = flags.make_parser()
(COMMANDS,) = (x.choices for x in PARSER._actions if isinstance(x, argparse._SubParsersAction))


@pytest.mark.parametrize('command', COMMANDS)
def test_every_number_has_a_range_and_its_default_is_in_it(command):
  parser = COMMANDS[command]
  ranges = parser.get_default('ranges') or {}
  assert set(ranges) == {x.dest for x in parser._actions if x.type in (int, float)}
  for name, hint in ranges.items():
    value = parser.get_default(name)
    for number in value if isinstance(value, list) else [value]:
      assert number is None or arguments.fits(hint, number), name


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (
      'rank --votes v.jsonl --num_simulations=-3',
      '--num_simulations must be a whole number of at least 0, got -3.',
    ),
    ('rank --votes v.jsonl --num-simulations=-1', '--num_simulations must be a whole'),
    (
      'rank --votes v.jsonl --num_resamples=0',
      '--num_resamples must be a whole number of at least 1',
    ),
    (
      'rank --votes v.jsonl --seed=-1',
      '--seed must be a whole number from 0 to 2**32 - 1, got -1.',
    ),
    ('voters --votes v.jsonl --max_voters=-1', '--max_voters must be a whole number of at least 1'),
    ('voters --votes v.jsonl --num_folds=1', '--num_folds must be a whole number of at least 2'),
    ('solve --game cyclic --eta=nan', '--eta must be a number greater than 0, got nan.'),
    ('sample --num_samples=0', '--num_samples must be a whole number of at least 1, got 0.'),
    (
      'exploit --experiment=builtin/rlhf --run_dirs r --output_dir o --seeds 0 -1',
      '--seeds must be a whole number from 0 to 2**32 - 1, got -1.',
    ),
    (
      'train --run_dir r --process_index=-1',
      '--process_index must be a whole number of at least 0',
    ),
    ('judge --model m --output v.jsonl --max_calls=0', '--max_calls must be a whole number of at'),
    ('judge --model m --output v.jsonl --timeout=inf', '--timeout must be a number greater than 0'),
  ],
)
def test_number_out_of_range_is_one_line(argv, message, capsys, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert main.main(argv.split()) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'nlhf {argv.split()[0]}: {message}') and error.count('\n') == 1
  assert not list(tmp_path.iterdir())
