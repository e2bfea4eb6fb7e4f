"""Every configuration parses, resolves, and takes one step."""

import json
import pathlib

import pytest

from nlhf_jax.cli import experiments, main
from nlhf_jax.networks import sizes

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / 'configs' / 'experiments'
NAMES = sorted(path.parent.name for path in EXPERIMENTS.glob('*/stages.txt'))
# These differ from nash_md_1 and nash_ema_1 in a number alone.
TWINS = {*(f'nash_md_{n}' for n in range(2, 7)), 'nash_ema_2'}
QUICK = (
  '--gin.NUM_STEPS=1',
  '--gin.BATCH_SIZE=2',
  '--gin.optimizers.warmup_linear.warmup_steps=0',
  '--gin.experiment.Experiment.num_microbatches=1',
)
SHALLOW = '--gin.sizes.network.num_layers=1'


@pytest.fixture
def flags(test_data, few_abstracts, chat_model):
  """Of every experiment: its data, and networks in a size for tests."""
  vocabulary = test_data / 'vocab' / 'scitldr_unigram_4k' / 'sentencepiece.model'
  real = lambda path: [f'--data_dir={path}', f"--gin.VOCABULARY_FILE='{vocabulary}'"]
  small = ['--gin.corpora.headlines.num_train=40', '--gin.corpora.headlines.num_test=8', SHALLOW]
  tldr = [f"--gin.COMPARISONS_DIR='{test_data / 'squality'}'", '--gin.PROMPT_LENGTH=64']
  t5 = ['--gin.PRETRAINED_POLICY=None', '--gin.PRETRAINED_JUDGE=None']
  t5 += ["--gin.sizes.network.name='t5_1_1_tiny'", "--gin.judge/sizes.network.name='t5_1_1_tiny'"]
  t5 += [SHALLOW, '--gin.sizes.network.emb_dim=16', '--gin.sizes.network.mlp_dim=32']
  model = f"--gin.MODEL_DIR='{chat_model}'"
  in_bytes = ['--gin.RESPONSE_LENGTH=160', '--gin.written.scitldr.validation_share=0.3']
  return {
    'builtin': small,
    'annotators/sft': small,
    'annotators/': [*small, '--gin.NUM_VOTERS=4', '--gin.corpora.voter_comparisons.num_unseen=2'],
    'follow_ups': small,
    'heads': small,
    'aggregation': small,
    # Agents see 60 days each.
    'personal': [
      '--gin.corpora.noted_headlines.num_train=40',
      '--gin.corpora.noted_headlines.num_test=60',
      SHALLOW,
    ],
    'extracts': [
      '--gin.corpora.generated_extracts.num_train=40',
      '--gin.corpora.generated_extracts.num_test=8',
      SHALLOW,
    ],
    'obstacles': [
      '--gin.corpora.generated_extracts.num_train=40',
      '--gin.corpora.generated_extracts.num_test=8',
      SHALLOW,
    ],
    'scitldr': [*real(few_abstracts), SHALLOW],
    'squality': [*real(test_data / 'squality'), '--gin.RESPONSE_LENGTH=32', SHALLOW],
    'tldr': [*real(few_abstracts), *tldr, *t5],
    'scale/t5_xxl': [*real(few_abstracts), *tldr, *t5],
    'scale/llama_7b': [f'--data_dir={few_abstracts}', model, *tldr],
    'smollm2': [*in_bytes, f'--data_dir={few_abstracts}', model],
  }


@pytest.mark.parametrize('name', NAMES)
def test_step_of_every_stage(name, flags, tmp_path):
  """In order, each on what the ones before it left."""
  stages = [s for s in experiments.stages(EXPERIMENTS / name) if s.name not in TWINS]
  for stage in stages:
    own = next(f for start, f in flags.items() if f'{name}/{stage.name}'.startswith(start))
    command = [stage.command, *(QUICK if stage.command == 'train' else ())]
    place = [f'--experiment={name}/{stage.name}', f'--run_dir={tmp_path / stage.name}']
    assert main.main([*command, *place, *own]) == 0, stage.name
  written = {path.name for path in tmp_path.iterdir()}
  assert written == {stage.name for stage in stages}
  if name == 'tldr':
    _compare(tmp_path, flags[name])
  if name == 'personal':
    _serve(tmp_path / 'policy', tmp_path / 'served')


def _serve(run, out):
  """Agents go by the policy of one step; the oracle too, so nobody is right always."""
  agents = ['--agents', 'none', 'ours', 'oracle']
  sizes = ['--num_days=60', '--num_lives=1']
  assert main.main(['personalise', f'--run_dir={run}', f'--output_dir={out}', *sizes, *agents]) == 0
  found = json.loads((out / 'results.json').read_text())
  assert set(found['changes']) == {'one', 'all'} and found['num_lives'] == 6
  assert 0 <= found['changes']['all']['agents']['oracle']['success']['4']['mean'] < 1
  assert 'Errors since all tastes have changed' in (out / 'personalisation.html').read_text()


def _compare(runs, flags):
  """TL;DR's policies are judged by a run's preference model, on posts of another split."""
  argv = ['win-rates', '--gin_file=configs/experiments/tldr/evaluation.gin', *flags]
  argv += [f'--output_dir={runs}', "--gin.pipeline.load_split.split='valid'"]
  argv += ['--gin.pipeline.load_split.limit=4']
  argv += ['--run_dirs', f'SFT={runs / "sft"}', f'MD1={runs / "nash_md_1"}']
  assert main.main(argv) == 0
  assert (runs / 'win_rates.csv').is_file()


@pytest.mark.parametrize('stage', sorted(TWINS))
def test_twins_resolve(stage, flags, tmp_path, capsys):
  """Far enough to look for the run that they start from."""
  argv = ['train', f'--experiment=tldr/{stage}', *flags['tldr']]
  assert main.main([*argv, f'--run_dir={tmp_path / stage}']) == 2
  assert str(tmp_path / 'preference') in capsys.readouterr().err


@pytest.mark.parametrize('name', [name for name in sizes.NAMES if name.startswith('t5')])
def test_published_networks_resolve(name, tmp_path, capsys):
  argv = ['train', '--experiment=builtin/sft', f"--gin.sizes.network.name='{name}'", '--dry_run']
  small = ['--gin.corpora.headlines.num_train=40', '--gin.corpora.headlines.num_test=8']
  small += ['--gin.BATCH_SIZE=2', '--gin.layers.Execution.scan=True']
  assert main.main([*argv, f'--run_dir={tmp_path / "run"}', *small]) == 0
  assert '"parameters"' in capsys.readouterr().out


OWN = {
  'magnet_reset': ['TAU=0.1', 'algorithms.magnet_reset.reset_every=5'],
  'mnpo': ['TAU=0.1', 'algorithms.mnpo.eta=0.5', 'algorithms.mnpo.refresh_every=5'],
  'onpo': ['algorithms.onpo.eta=1.0', 'algorithms.onpo.refresh_every=5'],
  'rspo': ['TAU=0.3', 'algorithms.rspo.eta=1.0', 'algorithms.rspo.refresh_every=5'],
  'self_play': ['TAU=0.1', 'algorithms.self_play.deviation=0.1'],
  'stackelberg': [
    'TAU=0.1',
    'algorithms.stackelberg.tau_follower=0.1',
    "prompts.second_turn.piece='Second'",
  ],
}


@pytest.mark.parametrize('name', OWN)
def test_methods_of_no_experiment_resolve(name, tmp_path, capsys):
  """On the headlines; compiled, and not run."""
  files = ('configs/experiments/builtin/fine_tuning.gin', f'configs/algorithms/{name}.gin')
  argv = ['train', *(f'--gin_file={file}' for file in files), '--dry_run', SHALLOW, *QUICK]
  argv += ['--gin.corpora.headlines.num_train=40', '--gin.corpora.headlines.num_test=8']
  argv += [f'--gin.{binding}' for binding in OWN[name]]
  assert main.main([*argv, '--gin.NUM_SAMPLES=2', f'--run_dir={tmp_path / "run"}']) == 0
  assert '"parameters"' in capsys.readouterr().out


def test_files_that_nothing_includes():
  """A configuration is a stage's, or another includes it, or a head says how to use it."""
  files = {p.relative_to(ROOT).as_posix(): p.read_text() for p in ROOT.glob('configs/**/*.gin')}
  stages = {
    (file if file.is_absolute() else ROOT / file).resolve()
    for name in NAMES
    for stage in experiments.stages(EXPERIMENTS / name)
    for file in stage.files
  }
  for name, text in files.items():
    included = any(f"include '{name}'" in other for other in files.values())
    used = included or (ROOT / name).resolve() in stages or 'nlhf' in text or 't5x.train' in text
    assert used or name.endswith('evaluation.gin'), name


def test_macros_of_a_run_are_few(flags):
  """A macro is there where two bindings must agree, or another file fills a slot."""
  import gin

  stage = experiments.stage('tldr/nash_md_1')
  bindings = [*stage.bindings, "DATA_DIR='.'", "VOCABULARY_FILE='.'"]
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(
    [str(f) for f in stage.files], bindings, finalize_config=False
  )
  macros = {scope for scope, selector in gin.config._CONFIG if selector == 'gin.macro'}
  gin.clear_config()
  assert len(macros) <= 25, sorted(macros)
