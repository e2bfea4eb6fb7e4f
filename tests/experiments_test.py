"""Every configuration parses, resolves, and takes one step."""

import pathlib

import pytest

from nlhf_jax import main

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / 'configs' / 'experiments'
PARTS = ('models', 'run', 'comparisons', 'fine_tuning', 'evaluation')
QUICK = ('--gin.NUM_STEPS=1', '--gin.WARMUP_STEPS=0', '--gin.BATCH_SIZE=2')
SHALLOW = '--gin.NUM_LAYERS=1'


def stages(name):
  listed = EXPERIMENTS / name / 'stages.txt'
  if listed.is_file():
    return listed.read_text().split()
  return sorted(p.stem for p in (EXPERIMENTS / name).glob('*.gin') if p.stem not in PARTS)


@pytest.fixture
def flags(test_data, few_abstracts, chat_model):
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  real = lambda path: [f'--data_dir={path}', f"--gin.VOCABULARY_FILE='{vocabulary}'"]
  small = ['--gin.summaries.builtin.num_train=40', '--gin.summaries.builtin.num_test=8', SHALLOW]
  return {
    'builtin': small,
    'follow_ups': small,
    'scitldr': [*real(few_abstracts), SHALLOW],
    'squality': [*real(test_data / 'squality'), '--gin.RESPONSE_LENGTH=32', SHALLOW],
    'smollm2': [
      f'--data_dir={few_abstracts}',
      f"--gin.MODEL_DIR='{chat_model}'",
      '--gin.NUM_HELD_OUT=4',
    ],
  }


@pytest.mark.parametrize('name', sorted(p.name for p in EXPERIMENTS.iterdir()))
def test_every_stage_takes_a_step(name, flags, tmp_path):
  """In order, each on what the ones before it left."""
  for stage in stages(name):
    gin_file = f'--gin_file=configs/experiments/{name}/{stage}.gin'
    assert (
      main.main(['train', gin_file, f'--run_dir={tmp_path / stage}', *QUICK, *flags[name]]) == 0
    ), stage
  written = {path.name for path in tmp_path.iterdir()}
  assert written == set(stages(name))


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
