"""A run from token files is the run: where seqio and TensorFlow are not installed, too."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from nlhf_jax.cli import gin_config, main
from nlhf_jax.runtime import run_directory
from nlhf_jax.training import weights
from nlhf_jax.training.experiment import Experiment

QUICK = ['--gin.BATCH_SIZE=2', '--gin.optimizers.warmup_linear.warmup_steps=0']
QUICK += ['--gin.NUM_STEPS=3', '--gin.RESPONSES_PER_PROMPT=2', '--gin.PROMPT_LENGTH=80']
WITHOUT = (
  "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'seqio']))\n"
  'from nlhf_jax.cli import main\n'
  'sys.exit(main.main(sys.argv[1:]))'
)


def _params(run_dir):
  experiment = gin_config.from_text(Experiment, run_directory.read_config(run_dir)).value
  return weights.trained_params(experiment, run_dir, 'online')


def _write_votes(runs):
  """Eight prompts in training and four held out, two pairs each."""
  (runs / 'votes').mkdir()
  for split, size in {'train': 8, 'test': 4}.items():
    pairs = [('short', 'a longer one'), ('that is it', 'no')]
    rows = [
      {'prompt': f'{split} {n}' * n, 'response_a': a, 'response_b': b, 'probability': n / 8}
      for n in range(1, size + 1)
      for a, b in pairs
    ]
    (runs / 'votes' / f'{split}.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in rows))


def test_run_without_seqio(few_abstracts, chat_model, tmp_path):
  """A preference model of three steps: the same parameters, the same test of the judge."""
  _write_votes(tmp_path)
  flags = ['--experiment=smollm2/preference', f'--data_dir={few_abstracts}', *QUICK]
  flags += [f"--gin.MODEL_DIR='{chat_model}'"]
  assert main.main(['train', *flags, f'--run_dir={tmp_path / "ordinary"}']) == 0
  assert (
    main.main(
      ['tokenize', *flags, f'--output_dir={tmp_path / "written"}', f'--runs_dir={tmp_path}']
    )
    == 0
  )
  # Data move to another machine.
  tokens = (tmp_path / 'written').rename(tmp_path / 'tokens')
  argv = ['train', f'--gin_file={tokens / "preference.gin"}', f'--data_dir={tokens}']
  argv += [f'--run_dir={tmp_path / "from_tokens"}']
  subprocess.run([sys.executable, '-c', WITHOUT, *argv], check=True)
  params = [_params(tmp_path / run) for run in ('ordinary', 'from_tokens')]
  jax.tree.map(np.testing.assert_array_equal, *params)
  tests = [
    json.loads((tmp_path / x / 'judge.json').read_text()) for x in ('ordinary', 'from_tokens')
  ]
  assert tests[0] == tests[1]


@pytest.mark.parametrize(
  ('run', 'flag', 'message'),
  [
    (
      'builtin/preference',
      'corpora.headlines.num_train=40',
      'enumeration is @corpora.enumeration()',
    ),
    ('extracts/sft', 'corpora.generated_extracts.num_train=None', 'rows when they are asked for'),
  ],
)
def test_what_files_do_not_hold_is_refused(run, flag, message, tmp_path, capsys):
  argv = ['tokenize', f'--experiment={run}', f'--output_dir={tmp_path}', f'--gin.{flag}']
  assert main.main([*argv, '--gin.sizes.network.num_layers=1']) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_a_learned_judge_and_its_template_go_along(few_abstracts, chat_model, tmp_path):
  """Templates are tokens, and what the command line may set stays a macro."""
  argv = ['tokenize', '--experiment=smollm2/nash_md_pg', f'--data_dir={few_abstracts}']
  argv += [f"--gin.MODEL_DIR='{chat_model}'", f'--output_dir={tmp_path}', '--name=other']
  assert main.main(argv) == 0
  text = (tmp_path / 'other.gin').read_text()
  assert 'nlhf_jax.data import token_files' in text
  assert text.count('nlhf_jax.data') == 1
  read = gin_config.from_text(Experiment, text, ['NUM_STEPS = 17', "DATA_DIR = 'elsewhere'"])
  assert read.value.num_steps == 17
  with pytest.raises(FileNotFoundError, match=r'elsewhere/other_batches\.npz'):
    next(read.value.batches())
