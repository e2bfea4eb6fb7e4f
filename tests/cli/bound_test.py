"""Bindings that are refused before anything runs, each in one line with its place; and gin files that cannot be read."""

import pytest

from nlhf_jax import arguments
from nlhf_jax.cli import bound, experiments, gin_config
from nlhf_jax.evaluation import tournament
from nlhf_jax.training.experiment import Experiment


def configure(files, *bindings):
  layers = [gin_config.Layer(files), gin_config.Layer([], bindings)]
  return gin_config.configure(Experiment, gin_config.Source(layers))


def refusal(files, *bindings) -> str:
  with pytest.raises(ValueError) as caught:
    configure(files, *bindings)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize(
  ('binding', 'says'),
  [
    ('BATCH_SIZE=0', 'batch_size must be a whole number of at least 1, got 0: see --gin.BATCH_SIZE'),
    ("BATCH_SIZE='8'", "got '8'"),
    ('BATCH_SIZE=8.0', 'got 8.0'),
    ('NUM_STEPS=2.5', 'num_steps must be a whole number of at least 1, got 2.5'),
    ('NUM_STEPS=0', 'got 0'),
    ('NUM_STEPS=True', 'got True'),
    ('experiment.Experiment.seed=2**40', 'Expected newline: experiment.Experiment.seed=2**40'),
    ('experiment.Experiment.seed=1099511627776', 'from 0 to 2**32 - 1, got 1099511627776'),
    ('checkpoints.Keep.last=0', 'checkpoints.Keep.last must be a whole number of at least 1 or None'),
    ('optimizers.warmup_linear.peak=-1.0', 'peak must be a number greater than 0, got -1.0'),
    ('experiment.Experiment.save_every=1.5', 'save_every must be'),
    ("experiment.Experiment.reference_dtype='int8'", "'float32' or 'bfloat16' or 'float16' or None"),
    ("experiment.Experiment.reference_on_host='yes'", 'must be True or False'),
    ('experiment.Experiment.optimizer=@checkpoints.Keep()', 'must be a GradientTransformation, got @checkpoints.Keep()'),
    ('experiment.Experiment.optimizer=@optimizers.adamw', '@optimizers.adamw() is its result'),
    ('experiment.Experiment.feedback=@optimizers.adamw()', 'got @optimizers.adamw(), a GradientTransformation'),
    ('TASK=@corpora.headlines()', 'must be a Task or a Stream, got @corpora.headlines()'),
    ('experiment.Experiment.model=3', 'must be a Policy or a PreferenceModel or a RewardModel, got 3'),
  ],
)  # fmt: skip
def test_wrong_values_are_refused(binding, says):
  stage = experiments.stage('builtin/nash_md_pg')
  found = refusal([*stage.files], *stage.bindings, binding)
  assert says in found


def test_the_place_is_the_line_that_wins(tmp_path):
  stage = experiments.stage('builtin/nash_md_pg')
  file = tmp_path / 'mine.gin'
  file.write_text(f"include '{stage.files[0]}'\n\nNUM_STEPS = 10\nNUM_STEPS = 0\n")
  files = [*stage.files[1:], file]
  assert refusal(files, *stage.bindings).endswith(f'see {file}, line 4, or set --gin.NUM_STEPS.')


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    (b'A = (3\n', 'line 1: ( is never closed'),
    (b'\nA = 3\0\n', 'line 2: holds a NUL'),
    (b'A = 1\n# \xff\n', 'line 2: 0xff is no UTF-8'),
    (b'A 3\n', "line 1: Couldn't parse statement"),
    (b'A = three\n', "line 1: Failed to parse token 'three': A = three"),
    (b"A = 'a\n", 'line 1: Unable to parse value'),
    (b"include 'nothing.gin'\n", 'line 1'),
    (b'', 'Something must be set'),
  ],
)
def test_files_that_cannot_be_read(tmp_path, text, says):
  file = tmp_path / 'wrong.gin'
  file.write_bytes(text)
  found = refusal([file])
  assert says in found
  assert not text or 'wrong.gin' in found


def test_flags_over_a_kept_configuration_are_compared_too():
  """As `nlhf sample --run_dir` has them."""
  stage = experiments.stage('builtin/sft')
  kept = configure([*stage.files], *stage.bindings).text
  with pytest.raises(
    ValueError, match=r'temperature must be a number of at least 0, got -1\.0: see'
  ):
    gin_config.from_text(Experiment, kept, ['decoding.Sampling.temperature=-1.0'])


def test_flags_that_reach_nothing_are_named():
  """Through macros of macros, and in scopes."""
  stage = experiments.stage('builtin/nash_md_pg')
  read = (
    'NETWORK=@sizes.network()',
    'pipeline.batches.seed=3',
    'TAU=0.3',
    'sizes.network.emb_dim=16',
  )
  idle = 'corpora.generated_extracts.num_train=3', 'fresh/pipeline.batches.seed=2'
  layers = [gin_config.Layer(stage.files, stage.bindings), gin_config.Layer([], read + idle)]
  assert gin_config.configure(Experiment, gin_config.Source(layers)).unread == idle


def test_a_binding_that_is_never_closed():
  stage = experiments.stage('builtin/nash_md_pg')
  assert '( is never closed' in refusal([*stage.files], *stage.bindings, 'TAU=(0.3')


def test_a_byte_order_mark_is_passed_over(tmp_path):
  file = tmp_path / 'marked.gin'
  file.write_bytes(b'\xef\xbb\xbfA = 1\n')
  assert 'Something must be set' in refusal([file])


@pytest.mark.parametrize(
  'name', ['builtin', 'aggregation', 'annotators', 'heads', 'smollm2', 'obstacles']
)
def test_numbers_that_files_bind_have_a_range(name):
  """A plain `int` or `float` would let anything pass."""
  directory = experiments.locate(name)
  for stage in experiments.stages(directory):
    if stage.command != 'train':
      continue
    source = gin_config.Source(
      [gin_config.Layer(stage.files, stage.bindings)],
      if_asked=[f"{macro}='.'" for macro in ('DATA_DIR', 'MODEL_DIR', 'RUNS', 'VOCABULARY_FILE')],
    )
    gin_config.read(source)
    for argument in bound.reaching(Experiment):
      hint = arguments.hints(bound.function(argument.selector)).get(argument.parameter)
      assert not {int, float} & {*arguments.members(hint)}, argument.name


def beneath_the_judge(judge, *bindings):
  """Fields of the judge of an evaluation."""
  files = [experiments.evaluation('builtin'), gin_config.ROOT / 'configs' / 'judges' / judge]
  layers = [gin_config.Layer(files), gin_config.Layer([], bindings)]
  configured = gin_config.configure(tournament.Evaluation, gin_config.Source(layers))
  return bound.beneath(configured.fields, 'tournament.Evaluation.judge')


@pytest.mark.parametrize(
  ('judge', 'given', 'other'),
  [
    ('llm.gin', ["llm.Panel.models=('A',)"], "llm.Panel.models=('B',)"),
    ('rule.gin', [], 'vocabularies.text_judge.function=@rules.coverage'),
  ],
)
def test_a_judge_is_told_by_all_that_is_bound_beneath_it(judge, given, other):
  """Its name and its reference stay; what does not reach it is no part of it."""
  found = beneath_the_judge(judge, *given)
  changed = beneath_the_judge(judge, *given, other)
  differing = [name for name in found if found[name] != changed[name]]
  assert found.keys() == changed.keys() and differing == [other.partition('=')[0]]
  assert found == beneath_the_judge(judge, *given, 'tournament.Evaluation.seed=7')
