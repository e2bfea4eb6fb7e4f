"""Random values for every argument of every run of an experiment: each is taken, or refused in one line; nothing is left behind."""

import functools
import inspect

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_jax.cli import bound, experiments, flags, gin_config, main
from nlhf_jax.cli.described import configure_run
from nlhf_jax.training.experiment import Experiment

# Those whose data are built in; `extracts` has others, which are large.
EXPERIMENTS = ('builtin', 'heads', 'annotators', 'aggregation', 'follow_ups', 'personal')
STAGES = [
  f'{name}/{stage.name}'
  for name in EXPERIMENTS
  for stage in experiments.stages(experiments.locate(name))
]
SMALL = (
  '--gin.corpora.headlines.num_train=40',
  '--gin.corpora.headlines.num_test=12',
  '--gin.BATCH_SIZE=8',
  '--gin.sizes.network.num_layers=1',
  '--gin.sizes.network.emb_dim=16',
)
# As they are written in gin; sizes are small, for what is refused by memory alone would take it first.
VALUES = st.one_of(
  st.integers(-3, 2000).map(str),
  st.floats(-1e6, 1e6).map(repr),
  st.sampled_from(['1e400', '-1e400', '1e-300', '2e9', 'None', 'True', 'False', '[]', '{}', '()']),
  st.text(max_size=8).map(repr),
  st.lists(st.integers(-1, 3), max_size=3).map(repr),
  st.dictionaries(st.sampled_from('ab'), st.integers(0, 2), max_size=2).map(repr),
  st.sampled_from(['@optimizers.adamw()', '@checkpoints.Keep()', '@lora.Lora()', '%TAU', '%NONE']),
)


@functools.cache
def arguments(stage: str) -> list[str]:
  """Every argument of every function and class that a run's files name, bound or not."""
  configure_run(flags.parse(['train', f'--experiment={stage}', '--run_dir=none', *SMALL]))
  named = set()
  for argument in bound.reaching(Experiment):
    named.add(('/'.join(argument.scopes), argument.selector))
    for reference in bound._references(argument.bound):
      named.add(('/'.join(reference.scopes), reference.config_key[1]))
  return [
    '/'.join(filter(None, [scope, f'{bound._short(selector)}.{parameter.name}']))
    for scope, selector in sorted(named)
    if selector != 'gin.macro'
    for parameter in inspect.signature(bound.function(selector)).parameters.values()
    if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  ]


@st.composite
def bindings(draw) -> tuple[str, str]:
  stage = draw(st.sampled_from(STAGES))
  return stage, f'{draw(st.sampled_from(arguments(stage)))}={draw(VALUES)}'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


@settings(
  max_examples=80,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(bound_value=bindings())
def test_a_random_value(bound_value, root, capsys):
  stage, binding = bound_value
  capsys.readouterr()
  argv = ['train', f'--experiment={stage}', f'--run_dir={root / "run"}', '--dry_run', *SMALL]
  status = main.main([*argv, f'--gin.{binding}'])
  said = [x for x in capsys.readouterr().err.splitlines() if x.startswith('nlhf train:')]
  assert status in (0, 2), said
  assert len(said) == (status == 2)
  assert not list(root.iterdir())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
  text=st.text(st.characters(codec='utf-8'), max_size=80)
  | st.lists(
    st.sampled_from(['TAU', ' = ', '@', 'a.b', '\n', "'", '"""', '(', '}', '%', '1', '#', '\\', 'include ', 'import ', 'from ', '\x00']),
    max_size=12,
  ).map(''.join)
)  # fmt: skip
def test_a_random_gin_file(text, root):
  """Read, or refused in one line that names the file."""
  file = root / 'random.gin'
  file.write_text(text, encoding='utf-8')
  try:
    gin_config.read(gin_config.Source([gin_config.Layer([file])]))
  except ValueError as error:
    assert '\n' not in str(error)
  finally:
    file.unlink()
