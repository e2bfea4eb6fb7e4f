"""The command line: a user's mistake is one line with a remedy, and leaves nothing behind."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import types

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from nlhf_jax.cli import gin_config, main
from nlhf_jax.formats import hf, t5x
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.runtime import processes, run_directory
from nlhf_jax.training import diagnosis
from tests.formats import golden_models
from tests.judges.llm_stub import Stub, longer

SFT = '--experiment=builtin/sft'
MD = '--experiment=builtin/nash_md_pg'
EVALUATION = '--gin_file=configs/experiments/builtin/evaluation.gin'
SMALL = (
  '--gin.CORPUS=@corpora.headlines()',
  '--gin.corpora.headlines.num_train=40',
  '--gin.corpora.headlines.num_test=12',
  '--gin.BATCH_SIZE=8',
  '--gin.optimizers.warmup_linear.warmup_steps=0',
  '--gin.sizes.network.num_layers=1',
  '--gin.sizes.network.emb_dim=16',
  '--gin.sizes.network.mlp_dim=16',
)
AVERAGED = (
  "--gin.experiment.Experiment.sets={'average': @parameter_sets.average()}",
  '--gin.parameter_sets.average.decay=0.5',
)


def run(capsys, *argv):
  status = main.main(list(argv))
  return status, capsys.readouterr()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A directory of short runs: SFT, a judge, and one policy."""
  root = tmp_path_factory.mktemp('runs')
  for stage in ('sft', 'preference', 'nash_md_pg'):
    averaged = AVERAGED if stage == 'nash_md_pg' else []
    named = f'--experiment=builtin/{stage}'
    argv = ['train', named, f'--run_dir={root / stage}', '--gin.NUM_STEPS=2', *averaged, *SMALL]
    assert main.main(argv) == 0
  return root


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([SFT, '--data_dir=/nowhere'], 'No directory /nowhere: name the data with --data_dir.'),
    ([SFT, '--gin.NUM_STEP=3'], 'No macro NUM_STEP in these gin files. Did you mean NUM_STEPS?'),
    ([SFT, '--gin.algorithms.sfd.x=3'], 'Did you mean sft?'),
    ([SFT, '--gin.decoding.Sampling.top=3'], "doesn't have a parameter named 'top'"),
    ([MD, '--gin.algorithms.nash_md_pg.beta=1.5'], 'must be a number from 0 to 1, got 1.5'),
    ([MD, '--gin.TAU=0.1'], 'No checkpoint in'),
    (['--experiment=builtin/nash_md'], "has no run 'nash_md': its stages are sft, preference"),
    (['--experiment=building/sft'], 'No experiment building'),
    (['--gin_file=configs/none.gin'], 'configs/none.gin'),
    ([], 'No configuration: name an experiment with --experiment'),
  ],
)
def test_mistake_is_one_line_and_leaves_nothing(argv, message, capsys, tmp_path):
  status, output = run(capsys, 'train', f'--run_dir={tmp_path / "run"}', *argv)
  (line,) = [x for x in output.err.splitlines() if x.startswith('nlhf')]
  assert status == 2
  assert message in line
  assert not (tmp_path / 'run').exists()


def test_beta_outside_the_unit_interval_leaves_no_run(runs, capsys):
  status, output = run(
    capsys,
    'train',
    MD,
    f'--run_dir={runs / "bad"}',
    '--gin.algorithms.nash_md_pg.beta=1.5',
    '--gin.NUM_STEPS=2',
    *SMALL,
  )
  assert status == 2
  assert 'nash_md_pg.beta must be a number from 0 to 1, got 1.5' in output.err
  assert 'see --gin.algorithms.nash_md_pg.beta.' in output.err
  assert not (runs / 'bad').exists()


def test_tracker_that_is_not_installed(capsys, tmp_path, monkeypatch):
  """Bound by its name alone; refused in one line before anything is written."""
  there = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: None if name == 'trackio' else there(name)
  )
  argv = ['train', SFT, f'--run_dir={tmp_path / "run"}', *SMALL]
  argv += ['--gin.experiment.Experiment.writers=(@trackers.trackio(),)']
  status, output = run(capsys, *argv, "--gin.trackers.trackio.project='p'")
  (line,) = [x for x in output.err.splitlines() if x.startswith('nlhf')]
  assert status == 2
  assert "pip install 'nlhf_jax[trackio]'" in line
  assert not (tmp_path / 'run').exists()


def test_vocabulary_that_does_not_match_is_named(runs, capsys):
  bad = f'--run_dir={runs / "bad"}'
  larger = '--gin.sizes.network.vocab_size=50'
  status, output = run(capsys, 'train', MD, bad, larger, '--gin.NUM_STEPS=2', *SMALL)
  assert status == 2
  assert '(72, 16), the network expects (50, 16): the vocabularies differ' in output.err
  assert '--gin.sizes.network.vocab_size' in output.err
  assert not (runs / 'bad').exists()


def test_directory_of_another_configuration_is_refused(runs, capsys):
  argv = ['train', SFT, f'--run_dir={runs / "sft"}', '--gin.NUM_STEPS=3', *SMALL]
  status, output = run(capsys, *argv)
  assert status == 2
  assert 'holds a run of another configuration' in output.err
  assert 'Experiment.num_steps' in output.err


@pytest.mark.parametrize('stage', ['sft', 'preference'])
def test_finished_run_is_not_run_again(stage, runs):
  """Nothing in its directory is touched; a judge is not tested again."""
  before = {path: path.stat().st_mtime_ns for path in (runs / stage).rglob('*')}
  argv = ['train', f'--experiment=builtin/{stage}', f'--run_dir={runs / stage}']
  argv += ['--gin.NUM_STEPS=2', *SMALL]
  assert main.main(argv) == 0
  assert {path: path.stat().st_mtime_ns for path in (runs / stage).rglob('*')} == before


def test_method_without_its_reference_is_refused(runs, capsys):
  argv = ['train', MD, f'--run_dir={runs / "bad"}', '--gin.NUM_STEPS=2']
  argv += ['--gin.experiment.Experiment.start_from=None']
  status, output = run(capsys, *argv, *SMALL)
  assert status == 2
  assert 'needs a reference: set start_from to the run to start from' in output.err
  assert '(Set by --gin.experiment.Experiment.start_from.)' in output.err
  assert not (runs / 'bad').exists()


def test_report_in_place_of_a_link_is_one_line(capsys, tmp_path):
  """A stranger's directory says where nothing is written."""
  theirs, run_dir = tmp_path / 'theirs', tmp_path / 'run'
  theirs.write_text('theirs')
  run_dir.mkdir()
  (run_dir / 'metrics.jsonl').write_text('{"step": 1, "loss": 1.0, "entropy": 2.0}\n')
  (run_dir / 'report.html').symlink_to(theirs)
  status, output = run(capsys, 'report', f'--run_dir={run_dir}')
  assert (status, output.out, output.err.count('\n')) == (2, '', 1)
  assert f'{run_dir}/report.html is a link to {theirs}, outside of' in output.err
  assert theirs.read_text() == 'theirs' and (run_dir / 'report.html').is_symlink()
  (run_dir / 'report.html').unlink()
  assert run(capsys, 'report', f'--run_dir={run_dir}')[0] == 0


def test_win_rates_report_and_samples_of_runs(runs, capsys, tmp_path):
  flags = [
    EVALUATION,
    *(f for f in SMALL if 'corpora' in f),
    '--gin.tournament.Evaluation.baseline=None',
  ]
  labelled = [
    f'SFT={runs / "sft"}',
    f'MD={runs / "nash_md_pg"}',
    f'MD*={runs / "nash_md_pg"}:average',
  ]
  argv = ['win-rates', *flags, f'--output_dir={tmp_path}', '--run_dirs', *labelled]
  status, output = run(capsys, *argv)
  assert status == 0, output.err
  assert 'P(row ≻ column)' in output.out
  rates = json.loads((tmp_path / 'win_rates.json').read_text())
  assert rates['labels'] == ['SFT', 'MD', 'MD*']
  exact = json.loads((tmp_path / 'exact.json').read_text())
  # The sampled rate agrees with the exact one: same policies, same judge.
  assert rates['mean'][1][0] == pytest.approx(exact['all']['preference']['mean'][1][0], abs=0.15)
  kl = exact['all']['kl']['mean']
  assert kl[0] == pytest.approx(0, abs=1e-9)
  assert 0 < kl[2] < kl[1]  # The average has gone less far.
  assert (tmp_path / 'report.html').is_file()
  assert main.main(['report', f'--run_dir={tmp_path}']) == 0
  argv = [
    'sample',
    *flags,
    f'--run_dir={runs / "sft"}',
    '--prompt=<s1> harbour flood',
    '--num_samples=3',
  ]
  status, output = run(capsys, *argv)
  answer = json.loads(output.out.splitlines()[-1])
  assert answer['prompt'] == '<s1> harbour flood'
  assert len(answer['responses']) == 3


def test_flags_of_sample_reach_the_policy(runs, capsys, caplog):
  """Greedily, all responses to a prompt are the same; a flag that reaches neither policy nor evaluation is named."""
  argv = ['sample', '--experiment=builtin', f'--run_dir={runs / "sft"}', '--prompt=harbour flood']
  greedy = '--gin.decoding.Sampling.temperature=0.0', '--gin.algorithms.rlhf.tau=0.3'
  answers = []
  for flags in ([], greedy):
    _, output = run(capsys, *argv, '--num_samples=8', *flags)
    answers.append(set(json.loads(output.out.splitlines()[-1])['responses']))
    assert ('--gin.algorithms.rlhf.tau says nothing here' in caplog.text) == bool(flags)
  assert len(answers[0]) > len(answers[1]) == 1


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--experiment=heads'], 'heads has no evaluation.gin: name one of another with --gin_file.'),
    (['--experiment=head'], 'No experiment head'),
    ([], 'No configuration: name an experiment with --experiment'),
  ],
)
def test_sample_without_an_evaluation(argv, message, runs, capsys):
  status, output = run(capsys, 'sample', *argv, f'--run_dir={runs / "sft"}', '--prompt=flood')
  assert status == 2 and message in output.err and output.err.count('\n') == 1


def test_labels_are_checked_before_anything_is_loaded(capsys, tmp_path):
  argv = ['win-rates', EVALUATION, f'--output_dir={tmp_path / "out"}', '--run_dirs', 'MU=/nowhere']
  status, output = run(capsys, *argv)
  assert status == 2
  assert "measures against the reference 'SFT', which is none of MU" in output.err
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'\n \n', 'holds no prompt: write one a line'),
    (b'a\nb\xff\n', 'prompts.txt:2: not UTF-8 (byte 0xff at column 2)'),
    (None, 'No file'),
  ],
)
def test_prompts_that_cannot_be_read(content, message, runs, capsys, tmp_path):
  path = tmp_path / 'prompts.txt'
  if content is not None:
    path.write_bytes(content)
  status, output = run(
    capsys, 'sample', EVALUATION, f'--run_dir={runs / "sft"}', f'--prompts_file={path}'
  )
  assert status == 2 and message in output.err and output.err.count('\n') == 1


def test_every_line_of_a_prompts_file_is_a_prompt(tmp_path):
  """A heading, or a tag, begins with the sign that comments of our own files begin with."""
  path = tmp_path / 'prompts.txt'
  path.write_bytes('\ufeff# a heading\n\n  indented\n'.encode())
  assert main._read_prompts(path) == ['# a heading', '  indented']


def test_prompts_end_with_their_line_alone(tmp_path):
  """Texts from the web and from PDF hold separators that Python takes for ends of lines too."""
  path = tmp_path / 'prompts.txt'
  prompts = ['one\u2028two', 'three\x85four', 'five\x0csix\x0b\x1c', 'seven\reight', 'nine ']
  for end in ('\n', '\r\n'):
    path.write_bytes(end.join([*prompts, '\t', '']).encode())
    assert main._read_prompts(path) == prompts


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--to=t5x', '--dtype=bfloat16'], '--dtype says nothing with --to=t5x'),
    (['--to=peft', '--dtype=float32'], '--dtype says nothing with --to=peft'),
    (['--to=t5x', '--base_model=m'], '--base_model says nothing with --to=t5x'),
  ],
)
def test_flags_that_mean_nothing(flags, message, runs, capsys, tmp_path):
  argv = ['export', f'--run_dir={runs / "sft"}', f'--output_dir={tmp_path / "out"}', *flags]
  status, output = run(capsys, *argv)
  assert status == 2 and message in output.err and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('error', 'status', 'message'),
  [
    (KeyError('tau'), 1, "a fault of nlhf_jax, not yours: KeyError: 'tau' (--traceback shows"),
    (AssertionError(), 1, 'a fault of nlhf_jax, not yours: AssertionError'),
    (RecursionError('deep'), 1, 'a fault of nlhf_jax, not yours: RecursionError: deep'),
    (MemoryError(), 3, 'out of memory: take a smaller batch (BATCH_SIZE)'),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 8 GB'), 3, 'out of memory'),
    (MemoryError('on the GPU'), 3, 'what a run needs. (on the GPU)'),
    (
      jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 8 GB, GPU_0_bfc'),
      3,
      'Other processes may hold',
    ),
    (jax.errors.JaxRuntimeError('INTERNAL: 3'), 1, 'a fault of nlhf_jax, not yours: JaxRuntime'),
    (jax.errors.JaxRuntimeError('INTERNAL: CUDA error: 700'), 3, 'the device has failed'),
    (RuntimeError("Unable to initialize backend 'cuda': 46"), 3, 'XLA_PYTHON_CLIENT_MEM_FRACTION'),
    (RuntimeError('cuda, of our own'), 1, 'a fault of nlhf_jax, not yours: RuntimeError'),
    (ModuleNotFoundError('No module', name='wandb'), 2, 'the package wandb is not installed'),
    (ModuleNotFoundError('No module', name='gin'), 2, 'the package gin-config is not installed'),
    (ModuleNotFoundError('No module', name='nlhf_jax.x'), 1, 'a fault of nlhf_jax'),
    (KeyboardInterrupt(), 130, 'interrupted; runs and collections go on'),
  ],
)
def test_whatever_ends_a_command_is_one_line(error, status, message, capsys, monkeypatch):
  def fail(args):
    raise error

  monkeypatch.setitem(main._COMMANDS, 'report', fail)
  found, output = run(capsys, 'report', '--run_dir=x')
  assert found == status
  assert output.err.startswith('nlhf report: ') and output.err.count('\n') == 1
  assert message in output.err
  with pytest.raises(type(error)):
    run(capsys, 'report', '--run_dir=x', '--traceback')


def test_traceback_of_the_process_itself(capsys, monkeypatch):
  """It does not wait for threads, such as one that compiles: it is printed, and the process ends as always."""
  ended = []
  monkeypatch.setattr(processes, 'end_despite_threads', ended.append)
  monkeypatch.setattr(processes, 'remember_interrupts', lambda: None)
  monkeypatch.setattr(sys, 'argv', ['nlhf', 'report', '--run_dir=/nowhere', '--traceback'])
  assert main.main() == 2 and ended == [2]
  printed = capsys.readouterr().err
  assert 'Traceback' in printed and printed.splitlines()[-1].startswith('nlhf report: ')


def test_checkout_without_what_it_needs(tmp_path):
  """Of what is imported before anything else, too."""
  (tmp_path / 'gin').mkdir()
  (tmp_path / 'gin' / '__init__.py').write_text('raise ModuleNotFoundError("No gin", name="gin")')
  found = subprocess.run(
    [sys.executable, '-m', 'nlhf_jax', '--help'],
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 1 and found.stdout == ''
  assert found.stderr.startswith('nlhf: the package of gin is not installed: install nlhf_jax with')
  assert found.stderr.count('\n') == 1


def test_set_that_a_run_lacks_is_named(runs, capsys):
  status, output = run(capsys, 'sample', EVALUATION, f'--run_dir={runs / "sft"}:average')
  assert status == 2
  assert "holds no parameter set 'average': name one of ['online']" in output.err


@pytest.mark.parametrize(
  ('binding', 'tolerance'), [('on_host=True', 0), ("dtype='bfloat16'", 0.05)]
)
def test_reference_kept_elsewhere_is_the_same(binding, tolerance, runs, capsys):
  """Metrics of two steps; and what was so kept can be gone on from."""
  run_dir = runs / f'reference_{binding.partition("=")[0]}'
  flags = [f'--gin.experiment.Experiment.reference_{binding}']
  flags += [*AVERAGED, '--gin.NUM_STEPS=2', *SMALL]
  for _ in range(2):
    status, output = run(capsys, 'train', MD, f'--run_dir={run_dir}', *flags)
    assert status == 0, output.err
  rows = [
    json.loads((directory / 'metrics.jsonl').read_text().splitlines()[-1])
    for directory in (run_dir, runs / 'nash_md_pg')
  ]
  for name in ('loss', 'kl_to_reference', 'preference', 'gradient_norm'):
    assert rows[0][name] == pytest.approx(rows[1][name], abs=tolerance, rel=tolerance), name


def test_judge_is_no_contestant(runs, capsys, tmp_path):
  argv = [
    'win-rates',
    EVALUATION,
    f'--output_dir={tmp_path}',
    '--run_dirs',
    f'SFT={runs / "preference"}',
  ]
  status, output = run(capsys, *argv)
  assert status == 2
  assert 'holds no policy but a judge' in output.err


def test_dry_run_trains_nothing(capsys, tmp_path):
  argv = ['train', SFT, f'--run_dir={tmp_path / "run"}', '--dry_run', '--gin.NUM_STEPS=2', *SMALL]
  status, output = run(capsys, *argv)
  assert status == 0
  assert json.loads(output.out[output.out.index('{') :])['parameters'] > 0
  assert not (tmp_path / 'run').exists()


def test_configurations_are_found_from_anywhere(capsys, tmp_path, monkeypatch, caplog):
  """Also where the repository lies on the path of modules, and `configs` could be taken for a package."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(gin_config.ROOT)
  argv = ['train', SFT, '--run_dir=run', '--dry_run', '--gin.NUM_STEPS=2', *SMALL]
  status, output = run(capsys, *argv)
  assert status == 0, output.err
  assert 'Path not found' not in caplog.text


def test_runs_are_exported(runs, capsys, tmp_path):
  """The same weights in two other formats; what a run does not have is refused."""
  status, _ = run(capsys, 'export', f'--run_dir={runs / "sft"}', f'--output_dir={tmp_path / "hf"}')
  assert status == 0
  network = hf.network(tmp_path / 'hf')
  like = jax.eval_shape(policy.from_network(network, decoding.Sampling(4)).init, jax.random.key(0))
  params = hf.load(tmp_path / 'hf', like)
  to = lambda kind: (
    'export',
    f'--run_dir={runs / "sft"}',
    f'--output_dir={tmp_path}',
    f'--to={kind}',
  )
  status, _ = run(capsys, *to('t5x'))
  assert status == 0
  jax.tree.map(np.testing.assert_array_equal, t5x.load(tmp_path / 'checkpoint_2', like), params)
  status, output = run(capsys, *to('peft'))
  assert status == 2
  assert 'trained no adapters: export it with --to=hf' in output.err
  status, output = run(
    capsys, 'export', f'--run_dir={runs / "preference"}', f'--output_dir={tmp_path / "judge"}'
  )
  assert status == 2 and 'a judge whose head has weights of its own' in output.err
  assert not (tmp_path / 'judge').exists()


def test_pretrained_model_answers_is_tuned_and_exported(
  few_abstracts, chat_model, capsys, tmp_path
):
  """Through its chat template; adapters alone are saved, and leave merged or by themselves."""
  files = [f'--gin_file=configs/experiments/smollm2/{name}.gin' for name in ('sft', 'evaluation')]
  flags = [f'--data_dir={few_abstracts}', f"--gin.MODEL_DIR='{chat_model}'"]
  flags += ['--gin.RESPONSE_LENGTH=160']
  status, output = run(capsys, 'sample', *files, *flags, '--prompt=Why?', '--num_samples=2')
  assert status == 0
  (line,) = map(json.loads, output.out.splitlines())
  assert (line['prompt'], len(line['responses'])) == ('Why?', 2)
  flags += ['--gin.NUM_STEPS=1', '--gin.BATCH_SIZE=2']
  flags += ['--gin.optimizers.warmup_linear.warmup_steps=0']
  tuned = f'--run_dir={tmp_path / "sft"}'
  assert main.main(['train', files[0], *flags, tuned]) == 0
  base = f'--base_model={chat_model}'
  for kind in ('hf', 'peft'):
    where = f'--output_dir={tmp_path / kind}'
    assert run(capsys, 'export', tuned, where, f'--to={kind}', base)[0] == 0
  assert (tmp_path / 'hf/tokenizer.json').is_file()
  described = json.loads((tmp_path / 'peft/adapter_config.json').read_text())
  assert described['base_model_name_or_path'] == str(chat_model)
  assert 'model.layers.0.self_attn.q_proj' in described['target_modules']
  factors = safetensors.numpy.load_file(tmp_path / 'peft/adapter_model.safetensors')
  at = lambda factor: f'base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight'
  before = safetensors.numpy.load_file(chat_model / 'model.safetensors')
  after = safetensors.numpy.load_file(tmp_path / 'hf/model.safetensors')
  name = 'model.layers.0.self_attn.q_proj.weight'
  change = 2.0 * factors[at('B')] @ factors[at('A')]  # α/r of the experiment.
  np.testing.assert_allclose(after[name] - before[name], change, atol=1e-6)
  assert run(capsys, 'export', tuned, f'--output_dir={tmp_path}', '--to=t5x')[0] == 2
  # The adapter's directory is a model too: its base with the adapter.
  for path, x in flax.traverse_util.flatten_dict(golden_models.load(tmp_path / 'hf')[1]).items():
    found = flax.traverse_util.flatten_dict(golden_models.load(tmp_path / 'peft')[1])[path]
    np.testing.assert_allclose(found, x, atol=1e-6, err_msg='/'.join(path))
  flags[1] = f"--gin.MODEL_DIR='{tmp_path / 'peft'}'"
  status, output = run(capsys, 'sample', *files, *flags[:2], '--prompt=Why?')
  assert status == 0, output.err
  where = f'--output_dir={tmp_path / "again"}'
  base = f'--base_model={tmp_path / "peft"}'
  status, output = run(capsys, 'export', tuned, where, '--to=peft', base)
  assert status == 2
  assert 'is an adapter itself, which was merged' in output.err


def test_reference_bound_on_the_command_line(runs, capsys, tmp_path):
  """A judge, and a magnet, that no gin file has named; modules are found by their last name."""
  argv = ['train', MD, f'--run_dir={runs / "exact"}', '--gin.NUM_STEPS=2', *SMALL]
  argv += [
    '--gin.JUDGE=@vocabularies.text_judge()',
    '--gin.vocabularies.text_judge.function=@rules.shorter',
  ]
  argv += ['--gin.vocabularies.text_judge.vocabulary=%VOCABULARY']
  argv += ["--gin.experiment.Experiment.sets={'reference': @parameter_sets.reference()}"]
  argv += ['--gin.parameter_sets.reference.reset_every=1']
  status, output = run(capsys, *argv)
  assert status == 0, output.err
  fields = json.loads((runs / 'exact' / 'run.json').read_text())['fields']
  assert fields['parameter_sets.reference.reset_every'] == 1
  assert fields['experiment.Experiment.feedback'] == '@vocabularies.text_judge()'
  rows = [json.loads(x) for x in (runs / 'exact' / 'metrics.jsonl').read_text().splitlines()]
  assert rows[-1]['preference'] >= 0.0
  # The reference has moved, so it is saved.
  names = [p.name for p in (runs / 'exact' / 'checkpoints' / '2').rglob('*reference*')]
  sample = ['sample', EVALUATION, f'--run_dir={runs / "exact"}:reference', '--prompt=<s1> harbour']
  status, output = run(capsys, *sample, *(f for f in SMALL if 'corpora' in f))
  assert status == 0, (output.err, names)


@pytest.fixture
def llm_stub():
  """A server that prefers longer responses."""
  with Stub(longer) as stub:
    yield stub


@pytest.mark.parametrize('judge', ['electorate', 'preference_model', 'rule', 'llm'])
def test_judge_of_a_gin_file_in_training_and_evaluation(judge, runs, capsys, llm_stub):
  """One file binds it for both."""
  bound = [f'--gin_file=configs/judges/{judge}.gin']
  if judge == 'llm':
    bound += ["--gin.llm.Panel.models=('stub',)", '--gin.llm.Panel.cache_dir=None']
    bound += [f"--gin.llm_settings.Server.base_url='{llm_stub.url}'"]
  run_dir = runs / f'judged_by_{judge}'
  argv = ['train', MD, *bound, f'--run_dir={run_dir}', '--gin.NUM_STEPS=1', *SMALL]
  status, output = run(capsys, *argv)
  assert status == 0, output.err
  calls = llm_stub.calls
  assert (calls > 0) == (judge == 'llm')
  flags = [EVALUATION, *bound, *(f for f in SMALL if 'corpora' in f)]
  flags += [
    '--gin.sizes.network.num_layers=1',
    '--gin.sizes.network.emb_dim=16',
    '--gin.sizes.network.mlp_dim=16',
  ]
  flags += [
    '--gin.tournament.Evaluation.baseline=None',
    '--gin.tournament.Evaluation.enumeration=None',
  ]
  argv = [
    'win-rates',
    *flags,
    f'--output_dir={runs}',
    '--run_dirs',
    f'SFT={runs / "sft"}',
    f'MD={run_dir}',
  ]
  status, output = run(capsys, *argv)
  assert status == 0, output.err
  assert json.loads((runs / 'win_rates.json').read_text())['judge'].split()[0] in (
    'electorate',
    'preference',
    'shorter',
    'LLM',
  )
  assert (llm_stub.calls > calls) == (judge == 'llm')


@pytest.mark.parametrize(
  'argv',
  [
    ['demo', '--run_dir={}'],
    ['win-rates', EVALUATION, '--output_dir={}', '--run_dirs', '{}/none'],
    ['exploit', '--experiment=builtin/rlhf', '--output_dir={}', '--run_dirs', '{}/none'],
  ],
)
def test_votes_of_others_are_found_before_anything_is_trained(argv, capsys, tmp_path):
  path = tmp_path / 'votes.jsonl'
  path.write_text('{"a": "x", "b": "y", "verdict": "a", "voter": "Ada"}\n')
  status, output = run(capsys, *(x.format(tmp_path) for x in argv))
  assert status == 2
  assert f'{path}:1: no vote of an earlier comparison, which this one would' in output.err
  assert list(tmp_path.iterdir()) == [path]


def test_stopped_diagnosis_says_how_to_go_on(capsys, monkeypatch, tmp_path):
  configured = types.SimpleNamespace(value=None, fields={}, text='')
  monkeypatch.setattr(run_directory, 'read_config', lambda run_dir: '')
  monkeypatch.setattr(gin_config, 'from_text', lambda *args: configured)
  monkeypatch.setattr(gin_config, 'naming_flags', lambda configured: contextlib.nullcontext())
  monkeypatch.setattr(diagnosis, 'diagnose', lambda *args: None)
  status, output = run(capsys, 'diagnose', f'--run_dir={tmp_path}')
  assert (status, output.out) == (0, f'Stopped: {tmp_path / "diagnosis"}; run again to go on.\n')


def test_run_of_version_0_1_is_refused_by_name(runs, capsys, tmp_path):
  """It has a configuration in names that have changed, and no run.json."""
  old = tmp_path / 'old'
  old.mkdir()
  (old / 'config.gin').write_text('import nlhf_jax.experiments\n')
  (old / 'checkpoints' / '3').mkdir(parents=True)
  for argv in (
    ['train', SFT, f'--run_dir={old}', *SMALL],
    ['sample', EVALUATION, f'--run_dir={old}'],
    ['export', f'--run_dir={old}', f'--output_dir={tmp_path / "out"}'],
  ):
    status, output = run(capsys, *argv)
    (line,) = [x for x in output.err.splitlines() if x.startswith('nlhf')]
    assert status == 2
    assert '0.1.0' in line and 'bb3ff7b' in line


# A command that fails and leaves a thread that waits for ever, as orbax's do when a save has failed.
LEAVES_A_THREAD = """
import sys, threading
from nlhf_jax.cli import main
def fail(args):
  threading.Thread(target=threading.Event().wait).start()
  raise OSError('Saving failed: see to it.')
main._COMMANDS['report'] = fail
sys.exit(main.main())
"""


def test_process_ends_though_a_thread_waits():
  environment = os.environ | {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  done = subprocess.run(
    [sys.executable, '-c', LEAVES_A_THREAD, 'report', '--run_dir=x'],
    capture_output=True,
    text=True,
    timeout=120,
    env=environment,
    check=False,
  )
  assert (done.returncode, done.stderr) == (2, 'nlhf report: Saving failed: see to it.\n')
