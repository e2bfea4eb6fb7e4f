"""Resolved fields, flags and experiments by name; what gin makes of files is gin's."""

import re

import pytest

from nlhf_jax.cli import experiments, gin_config
from nlhf_jax.training.experiment import Experiment


def configure(name: str, *bindings: str) -> gin_config.Configured:
  stage = experiments.stage(name)
  layers = [gin_config.Layer(stage.files, stage.bindings), gin_config.Layer([], bindings)]
  source = gin_config.Source(layers)
  return gin_config.configure(Experiment, source)


def test_fields_have_values_in_place_of_macros():
  fields = configure('builtin/nash_md_pg', 'TAU=0.07').fields
  assert fields['algorithms.nash_md_pg.tau'] == 0.07
  assert fields['experiment.Experiment.num_steps'] == fields['optimizers.warmup_linear.num_steps']
  assert fields['experiment.Experiment.feedback'] == '@experiment.trained_preference()'
  assert fields['experiment.trained_preference.run'] == 'preference'
  assert not any('%' in str(value) for value in fields.values())


def test_fields_are_those_that_can_reach_the_experiment():
  """What other stages bind is no part of a run: it may change without refusing to resume."""
  before = configure('builtin/nash_md_pg').fields
  unused = configure('builtin/nash_md_pg', "experiment.trained_reward.run='elsewhere'").fields
  assert before == unused
  assert before != configure('builtin/nash_md_pg', "experiment.trained_preference.run='x'").fields


def test_fields_of_scopes():
  found = configure('obstacles/preference').fields
  assert found['preference_model.from_rater.rater'] == '@pair/rater.in_decoder()'
  assert found['pair/rater.in_decoder.template'] == '@pair/prompts.preference_template()'


@pytest.mark.parametrize(
  ('message', 'flag'),
  [
    ('beta must be in [0, 1], got 2.', '--gin.algorithms.nash_md_pg.beta'),
    (
      'make the batch size a multiple of num_microbatches',
      '--gin.experiment.Experiment.num_microbatches',
    ),
    ('num_steps must be positive', '--gin.NUM_STEPS'),
  ],
)
def test_errors_name_the_flag_of_an_argument(message, flag):
  with (
    pytest.raises(ValueError, match=r'\(Set by') as caught,
    gin_config.naming_flags(configure('builtin/nash_md_pg')),
  ):
    raise ValueError(message)
  assert flag in str(caught.value)


def test_errors_without_an_argument_stay_as_they_are():
  with (
    pytest.raises(ValueError, match=r'^No checkpoint here\.$'),
    gin_config.naming_flags(configure('builtin/sft')),
  ):
    raise ValueError('No checkpoint here.')


def test_stages_of_an_experiment():
  """A line names files and bindings; without a file it is RUN.gin."""
  names = [stage.name for stage in experiments.stages(experiments.locate('tldr'))]
  assert names[:3] == ['sft', 'preference', 'reward'] and len(names) == 14
  stage = experiments.stage('tldr/nash_md_3')
  assert [file.name for file in stage.files] == ['nash_md_pg.gin']
  assert stage.bindings == ('algorithms.nash_md_pg.beta=0.375',)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('contestants', 'sft SFT\n# beside\nnash Nash\nsft:average SFT\n', "4: the label 'SFT' stands"),
    ('contestants', 'sft SFT\n\nnash\n', "3: 'nash' has no label: write"),
    ('stages', 'sft\npreference\nsft TAU=1\n', "3: the run 'sft' stands"),
    ('stages', 'sft\ncollect sft\n', "2: the run 'sft' stands"),
    ('stages', 'sft\npreference "x\n', '2: No closing quotation: write RUN'),
  ],
)
def test_line_that_would_be_lost_is_refused(name, text, message, tmp_path):
  path = tmp_path / f'{name}.txt'
  path.write_text(text)
  with pytest.raises(ValueError, match=re.escape(f'{path}:{message}')):
    getattr(experiments, name)(tmp_path)


def test_unknown_experiment_lists_those_that_there_are():
  with pytest.raises(
    FileNotFoundError, match='known are aggregation, annotators, builtin, extracts'
  ):
    experiments.locate('nothing')


def test_files_of_the_user_win_over_bindings_of_a_stage(tmp_path):
  """Stage files, stage bindings, the user's files, the user's bindings: the later wins."""
  (tmp_path / 'mine.gin').write_text('TAU = 0.4\nBATCH_SIZE = 8\n')
  stage = experiments.stage('builtin/rlhf')
  layers = [
    gin_config.Layer(stage.files, stage.bindings),
    gin_config.Layer([tmp_path / 'mine.gin'], ['BATCH_SIZE = 4']),
  ]
  fields = gin_config.configure(Experiment, gin_config.Source(layers)).fields
  assert fields['algorithms.rlhf.tau'] == 0.4
  assert fields['pipeline.batches.batch_size'] == 4
