"""What will run on an accelerator runs here, tiny: every part, and what happens to those that fail or are ended."""

import importlib
import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

from nlhf_jax.cli import main

BENCHMARKS = pathlib.Path(__file__).parent.parent.parent / 'benchmarks'
FLAGS = {'dtype': 'float32', 'frozen_dtype': 'bfloat16', 'batch': 2, 'prompt': 8, 'response': 33}
FLAGS |= {'remat': 'layers', 'scan': False, 'model': None}
FIELDS = {'part', 'size', 'status', 'error', 'setting', 'device', 'probe', 'measured', 'memory'}
BLOCK = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'seqio'{more}]))\n"


@pytest.fixture
def accelerator(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  return importlib.import_module('accelerator')


@pytest.fixture
def report(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  return importlib.import_module('accelerator_report')


@pytest.fixture
def compile_once(monkeypatch):
  """Processes import this repository; programs that they compile are kept, as they are not where compiling is measured."""
  monkeypatch.setenv('PYTHONPATH', str(BENCHMARKS.parent))
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'true')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')


def run(code: str, *argv: str) -> None:
  subprocess.run([sys.executable, '-c', code, *argv], check=True, cwd=BENCHMARKS)


def test_parts_without_seqio_and_gin(tmp_path, compile_once):
  """Shares are finite and below 1.5, files complete; memory that does not suffice is called that."""
  parts = ['tiny.device', 'tiny.judge', 'tiny.step']
  parts += ['t5_tiny.decode', 't5_tiny.update', 't5_tiny.pair']
  code = BLOCK.format(more=", 'gin', 'tensorboardX', 'orbax'") + textwrap.dedent("""
    import os; os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    import json, pathlib, sys
    sys.path.insert(0, '.')
    import accelerator_parts
    directory, parts, flags = sys.argv[1:]
    for name in parts.split():
      size, part = name.split('.')
      path = pathlib.Path(directory) / f'{name}.json'
      accelerator_parts.run(part, size, path, json.loads(flags))
    try:
      huge = {'batch': 10**9, 'prompt': 10**9}
      path = pathlib.Path(directory) / 'huge.json'
      accelerator_parts.run('decode', 'tiny', path, json.loads(flags) | huge)
    except MemoryError:
      pass
    """)
  run(code, str(tmp_path), ' '.join(parts), json.dumps(FLAGS))
  measured = []
  for name in parts:
    found = json.loads((tmp_path / f'{name}.json').read_text())
    assert set(found) >= FIELDS
    assert found['status'] == 'complete'
    assert found['device']['platform'] == 'cpu'
    assert found['probe']['bytes_per_second'] > 1e8
    assert found['probe']['operations_per_second'] > 1e8
    measured += [(name, row) for row in found['measured']]
  shares = {f'{name}.{row["name"]}': row['share'] for name, row in measured if 'share' in row}
  assert {x.split('.')[2] for x in shares} == {
    *('prefill', 'token', 'singles', 'pairs', 'update', 'score')
  }
  assert all(0 < share <= 1.5 for share in shares.values()), shares
  for name, row in measured:
    assert row['seconds']['median'] > 0, name
  compiled = {row['name'] for _, row in measured if row.get('compile_seconds', 0) > 0}
  assert compiled == {'prefill', 'response', 'singles', 'step', 'update', 'pairs'}
  huge = json.loads((tmp_path / 'huge.json').read_text())
  assert (huge['status'], huge['measured']) == ('failed', [])
  assert huge['error'].startswith('out of memory: ')


def test_a_part_that_fails_ends_no_other(tmp_path, compile_once):
  """By the command itself: one line for it, in its file and in the table; given again, neither is repeated."""
  command = [sys.executable, str(BENCHMARKS / 'accelerator.py'), f'--output_dir={tmp_path}']
  command += ['--parts', 'decode', '--size', 'unheard_of', 'tiny', '--dtype', 'float32']
  command += ['--batch', '2', '--prompt', '8', '--response', '17']
  first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  assert "unheard_of decode: failed: KeyError: 'unheard_of'" in first
  assert 'tiny decode: complete' in first
  assert "| decode | failed: KeyError: 'unheard_of' |" in (tmp_path / 'summary.md').read_text()
  assert '| decode | token |' in first
  second = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  assert second.splitlines()[:2] == [
    'unheard_of decode: there already',
    'tiny decode: there already',
  ]


def test_compiled_side_by_side_and_then_measured(tmp_path, compile_once, monkeypatch):
  """Programs are kept where both find them."""
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  command = [sys.executable, str(BENCHMARKS / 'accelerator.py'), f'--output_dir={tmp_path}']
  command += [
    '--parts',
    'decode',
    'judge',
    '--size',
    'tiny',
    '--dtype',
    'float32',
    '--compile_first',
  ]
  command += ['--batch', '2', '--prompt', '8', '--response', '3']
  printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  assert printed.startswith('tiny: 2 parts compiled side by side\ntiny decode: complete')
  for directory in (tmp_path, tmp_path / 'compiled'):
    for part in ('decode', 'judge'):
      found = json.loads((directory / f'tiny.{part}.json').read_text())
      assert (found['status'], found['error']) == ('complete', None)
  assert list((tmp_path / 'compiled' / 'programs').glob('jit_sample*'))


def _child(path, more: str) -> list[str]:
  """A process that begins a part, has measured something, and goes on with other code."""
  code = (
    f'import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n'
    'import os, pathlib, time, accelerator_report\n'
    f"told = accelerator_report.Report(pathlib.Path({str(path)!r}), 'decode', 'tiny', {{}})\n"
    f"told.add({{'name': 'prefill', 'seconds': {{'median': 1.0}}}})\n{more}"
  )
  return [sys.executable, '-c', code]


@pytest.mark.parametrize(
  ('more', 'limit', 'status', 'error'),
  [
    ('time.sleep(100)', 8, 'time limit', 'ended after 8 s'),
    ('os.kill(os.getpid(), 9)', 60, 'failed', 'killed by SIGKILL'),
    ("sys.exit('no such thing')", 60, 'failed', 'status 1: no such thing'),
    ("told.fail(RuntimeError('RESOURCE_EXHAUSTED: 80\\\\nGB'))", 60, 'failed', 'out of memory: '),
    ("told.write(status='complete')", 60, 'complete', ''),
  ],
)
def test_how_a_part_ended(more, limit, status, error, accelerator, tmp_path):
  """What it had measured stays."""
  path = tmp_path / 'tiny.decode.json'
  found = accelerator.run_part(_child(path, more), path, ('decode', 'tiny'), limit, 1.0)
  assert found == json.loads(path.read_text())
  assert found['status'] == status
  assert (found['error'] or '').startswith(error)
  assert '\n' not in (found['error'] or '')
  assert [row['name'] for row in found['measured']] == ['prefill']


def test_a_process_that_cannot_start(accelerator, tmp_path):
  path = tmp_path / 'tiny.step.json'
  command = [sys.executable, '-c', 'import nothing_of_this_name']
  found = accelerator.run_part(command, path, ('step', 'tiny'), 60, 1.0)
  assert "No module named 'nothing_of_this_name'" in found['error']
  assert 'nothing_of_this_name' in accelerator.summarise(tmp_path)


@pytest.mark.parametrize(
  ('status', 'part', 'again', 'done'),
  [
    ('complete', 'step', False, True),
    ('complete', 'step', True, True),
    # The command itself was killed.
    ('running', 'step', False, False),
    ('failed', 'step', False, True),
    ('failed', 'step', True, False),
    ('time limit', 'step', False, True),
    ('time limit', 'stage sft', False, False),
  ],
)
def test_what_is_measured_again(status, part, again, done, accelerator, tmp_path):
  path = tmp_path / 'a.json'
  assert not accelerator.is_done(path, again)
  path.write_text(json.dumps({'status': status, 'part': part}))
  assert accelerator.is_done(path, again) == done


def test_stage_from_token_files(few_abstracts, chat_model, tmp_path, compile_once):
  """A run that `nlhf tokenize` wrote, trained where seqio is not installed; its steps and their times."""
  tokens = tmp_path / 'tokens'
  argv = ['tokenize', '--experiment=smollm2/sft', f'--data_dir={few_abstracts}']
  argv += [f"--gin.MODEL_DIR='{chat_model}'", f'--output_dir={tokens}', '--gin.PROMPT_LENGTH=80']
  argv += ['--gin.RESPONSE_LENGTH=160', '--gin.written.scitldr.validation_share=0.3']
  assert main.main(argv) == 0
  flags = {'tokens': str(tokens), 'model': str(chat_model), 'train_flags': ['--gin.NUM_STEPS=3']}
  flags['train_flags'] += ['--gin.BATCH_SIZE=2', '--gin.optimizers.warmup_linear.warmup_steps=0']
  code = BLOCK.format(more='') + textwrap.dedent("""
    import os; os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    import json, pathlib, sys
    sys.path.insert(0, '.')
    import accelerator_stage
    accelerator_stage.run('sft', pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
    """)
  path = tmp_path / 'stage.sft.json'
  run(code, str(path), json.dumps(flags))
  found = json.loads(path.read_text())
  assert set(found) >= FIELDS
  assert (found['status'], found['part']) == ('complete', 'stage sft')
  rows = {row['name']: row for row in found['measured']}
  assert rows['update']['seconds']['median'] > 0
  assert (rows['steps']['done'], rows['steps']['num_steps']) == (3, 3)
  assert rows['steps']['compile_seconds'] > 0
