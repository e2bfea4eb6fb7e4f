"""Every configuration parses, resolves, and takes one step."""

import pathlib

import pytest

from nlhf_jax.cli import main

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / 'configs' / 'experiments'
PARTS = ('models', 'run', 'comparisons', 'fine_tuning', 'evaluation', 't5_xxl', 'llama_7b')
# These differ from nash_md_1 and nash_ema_1 in a number alone.
TWINS = {*(f'nash_md_{n}' for n in range(2, 7)), 'nash_ema_2'}
QUICK = (
  '--gin.NUM_STEPS=1',
  '--gin.WARMUP_STEPS=0',
  '--gin.BATCH_SIZE=2',
  '--gin.NUM_MICROBATCHES=1',
)
TINY = {'EMB_DIM': 16, 'NUM_HEADS': 2, 'NUM_LAYERS': 1, 'HEAD_DIM': 8, 'MLP_DIM': 32}
SHALLOW = '--gin.NUM_LAYERS=1'


def stages(name):
  """In an order in which they can be run: policies come after what they need."""
  listed = EXPERIMENTS / name / 'stages.txt'
  if listed.is_file():
    return listed.read_text().split()
  found = (p.stem for p in (EXPERIMENTS / name).glob('*.gin') if p.stem not in PARTS)
  return sorted(found, key=lambda stage: ('nash' in stage, stage))


@pytest.fixture
def flags(test_data, few_abstracts, chat_model):
  """Of every experiment: its data, and networks in a size for tests."""
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  real = lambda path: [f'--data_dir={path}', f"--gin.VOCABULARY_FILE='{vocabulary}'"]
  small = ['--gin.summaries.builtin.num_train=40', '--gin.summaries.builtin.num_test=8', SHALLOW]
  tldr = [f"--gin.COMPARISONS_DIR='{test_data / 'squality'}'", '--gin.PROMPT_LENGTH=64']
  tldr += ['--gin.PRETRAINED_POLICY=None', '--gin.PRETRAINED_JUDGE=None']
  for name, size in TINY.items():
    tldr += [f'--gin.{name}={size}', f'--gin.JUDGE_{name}={size}']
  return {
    'builtin': small,
    'follow_ups': small,
    'scitldr': [*real(few_abstracts), SHALLOW],
    'squality': [*real(test_data / 'squality'), '--gin.RESPONSE_LENGTH=32', SHALLOW],
    'tldr': [*real(few_abstracts), *tldr],
    'scale/t5_xxl': [*real(few_abstracts), *tldr],
    'scale/llama_7b': [
      f'--data_dir={few_abstracts}',
      f"--gin.MODEL_DIR='{chat_model}'",
      *tldr[:1],
    ],
    'smollm2': [
      f'--data_dir={few_abstracts}',
      f"--gin.MODEL_DIR='{chat_model}'",
      '--gin.NUM_HELD_OUT=4',
    ],
  }


@pytest.mark.parametrize('name', sorted(p.name for p in EXPERIMENTS.iterdir()))
def test_every_stage_takes_a_step(name, flags, tmp_path):
  """In order, each on what the ones before it left."""
  steps = [stage for stage in stages(name) if stage not in TWINS]
  for stage in steps:
    gin_file = f'--gin_file=configs/experiments/{name}/{stage}.gin'
    own = next(f for start, f in flags.items() if f'{name}/{stage}'.startswith(start))
    argv = ['train', gin_file, f'--run_dir={tmp_path / stage}', *QUICK, *own]
    assert main.main(argv) == 0, stage
  written = {path.name for path in tmp_path.iterdir()}
  assert written == set(steps)
  if name == 'tldr':
    _compare(tmp_path, flags[name])


def _compare(runs, flags):
  """TL;DR's policies are judged by a run's preference model, on posts of the test split."""
  argv = ['win-rates', '--gin_file=configs/experiments/tldr/evaluation.gin', *flags]
  argv += [f'--output_dir={runs / "compared"}', f"--gin.JUDGE_RUN='{runs / 'preference'}'"]
  argv += ["--gin.pipeline.load_split.split='valid'"]
  argv += ['--run_dirs', f'SFT={runs / "sft"}', f'MD1={runs / "nash_md_1"}', '--gin.NUM_HELD_OUT=4']
  assert main.main(argv) == 0
  assert (runs / 'compared' / 'win_rates.csv').is_file()


@pytest.mark.parametrize('stage', sorted(TWINS))
def test_twins_resolve(stage, flags, tmp_path, capsys):
  """Far enough to look for the run that they start from."""
  argv = ['train', f'--gin_file=configs/experiments/tldr/{stage}.gin', *flags['tldr']]
  assert main.main([*argv, f'--run_dir={tmp_path / stage}']) == 2
  assert str(tmp_path / 'preference') in capsys.readouterr().err


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'configs' / 'networks').glob('t5_1_1_*.gin')), ids=lambda p: p.stem
)
def test_every_network_resolves(path, tmp_path, capsys):
  argv = [
    'train',
    '--gin_file=configs/experiments/builtin/sft.gin',
    f'--gin_file={path}',
    '--dry_run',
  ]
  small = ['--gin.summaries.builtin.num_train=40', '--gin.summaries.builtin.num_test=8']
  small += ['--gin.BATCH_SIZE=2', '--gin.SCAN_LAYERS=True']
  assert main.main([*argv, f'--run_dir={tmp_path / "run"}', *small]) == 0
  assert '"parameters"' in capsys.readouterr().out
