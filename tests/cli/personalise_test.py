"""`nlhf personalise`, as a user calls it."""

import json

import numpy as np
import pytest

from nlhf_jax.cli import described, main, personalise
from nlhf_jax.data import noted_tables
from nlhf_jax.judges import noted_headlines
from nlhf_jax.personalisation import editor
from nlhf_jax.runtime import checkpoints
from tests.personalisation import tiny_shopping


def run(capsys, *argv):
  status = main.main(['personalise', *map(str, argv)])
  return status, capsys.readouterr()


def test_benchmark_writes_results_and_a_page(capsys, tmp_path):
  """Names are what a stranger may have written: the page shows them as text."""
  directory = tiny_shopping.write(tmp_path / '<b>data', ['<script>alert(1)</script>', '$x$'], 4)
  out = tmp_path / 'out'
  status, shown = run(
    capsys, f'--benchmark={directory}', f'--output-dir={out}', '--num_passes=2', '--agents', 'constant', 'both', 'oracle',
  )  # fmt: skip
  assert status == 0, shown.err
  found = json.loads((out / 'results.json').read_text())
  assert list(found['agents']) == ['constant', 'both', 'oracle']
  assert found['agents']['oracle']['success']['4']['mean'] == 1
  both = found['agents']['both']
  assert len(both['pass_errors']['1']) == 2
  # Two products of four tasks, twice.
  assert len(both['cumulative_errors_after']) == 16
  low, mean, high = (both['success']['2'][x] for x in ('low', 'mean', 'high'))
  assert low <= mean <= high
  (row,) = [
    x
    for x in found['differences']
    if (x['agent'], x['less'], x['phase']) == ('both', 'constant', 4)
  ]
  constant = found['agents']['constant']['success']['4']['mean']
  assert row['mean'] == pytest.approx(both['success']['4']['mean'] - constant)
  page = (out / 'personalisation.html').read_text()
  assert '<b>data' not in page
  assert 'Simulated users and structured feedback' in page
  assert page.count('data:image/svg+xml') == 3
  assert '41.3 ±.8' in page
  assert 'always D' in shown.out


def test_twin_writes_results_and_a_page(capsys, tmp_path):
  out = tmp_path / 'out'
  status, shown = run(
    capsys, '--twin', f'--output_dir={out}', '--num_rounds=40', '--num_switches=2', '--num_runs=3', '--agents', 'none', 'both',
  )  # fmt: skip
  assert status == 0, shown.err
  found = json.loads((out / 'results.json').read_text())
  assert [x['label'] for x in found['worlds']] == ['no switch', 'one slot', 'all slots']
  assert [x['bounds']['slot_switches'] for x in found['worlds']] == [0, 2, 12]
  for x in found['worlds']:
    assert x['agents']['both']['errors']['mean'] <= x['bounds']['both']
  assert [x['num_rounds'] for x in found['sweep']] == [10, 20, 40, 80]
  assert found['curves']['none']['round'][-1] == 40
  assert (out / 'personalisation.html').read_text().count('data:image/svg+xml') == 2


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    (['--benchmark=nowhere'], 'No directory nowhere'),
    (['--benchmark=nowhere', '--num_slots=3'], '--num_slots goes with --twin: leave it out'),
    (['--twin', '--num_passes=3'], '--num_passes goes with --benchmark: leave it out'),
    (
      ['--twin', '--num_switches=600'],
      'num_switches = 600 is more than 500, a quarter of num_rounds',
    ),
    (['--twin', '--num_switches=3000'], 'num_switches = 3000 is more than num_rounds = 2000'),
    (['--twin', '--num_answers=1'], '--num_answers must be a whole number of at least 2, got 1.'),
    (['--twin', '--noise=1.5'], '--noise must be a number from 0 to 1, got 1.5.'),
    (['--twin', '--num_runs=0'], '--num_runs must be a whole number of at least 1, got 0.'),
    (['--twin', '--agents', 'constant'], "No agent 'constant'"),
    (['--benchmark=nowhere', '--agents', 'bot'], "No agent 'bot'. Did you mean both?"),
  ],
)
def test_mistake_is_one_line(argv, message, capsys, tmp_path):
  status, shown = run(capsys, *argv, f'--output_dir={tmp_path / "out"}')
  assert status == 2
  assert message in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1
  assert not (tmp_path / 'out').exists()


def test_a_policy_that_never_read_notes_is_refused(capsys, tmp_path):
  """Its words would mean something else, and nothing would say so."""
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.gin').write_text('TAU = 0.1\n')
  (tmp_path / 'run' / 'run.json').write_text('{}')
  status, shown = run(capsys, f'--run_dir={tmp_path / "run"}', f'--output-dir={tmp_path / "out"}')
  assert status == 2
  assert 'was not trained on prompts with notes: name a run of --experiment=personal' in shown.err
  assert not (tmp_path / 'out').exists()


@pytest.fixture
def noted_run(tmp_path, monkeypatch):
  """Makes a run's directory whose checkpoint says how its corpus was made; days that are served are noted down."""
  served = []

  def tables(contestant, num_days, *, seed):
    served.append((num_days, seed))
    return editor.Tables(
      np.zeros((num_days, len(editor.STATES), 3), np.float32),
      np.zeros((num_days, len(noted_headlines.people()), 3), np.float32),
    )

  def make(fields):
    directory = tmp_path / 'run'
    directory.mkdir()
    (directory / 'config.gin').write_text('CORPUS = @corpora.noted_headlines()')
    (directory / 'run.json').write_text('{}')
    fields = {f'corpora.noted_headlines.{name}': x for name, x in fields.items()}
    monkeypatch.setattr(checkpoints, 'read_metadata', lambda _: {'fields': fields})
    monkeypatch.setattr(described, 'contestant', lambda run: None)
    monkeypatch.setattr(noted_tables, 'of_policy', tables)
    return directory, served

  return make


@pytest.mark.parametrize(
  ('fields', 'flags', 'message'),
  [
    ({'num_unseen': 0}, [], 'everybody votes (num_unseen = 0)'),
    ({}, ['--num_days=401'], '--num_days=401 is more than the 400 days that'),
    ({'num_test': 100}, [], '--num_days=120 is more than the 100 days that'),
  ],
)
def test_a_run_that_knows_whom_or_what_it_is_served_is_refused(
  fields, flags, message, noted_run, capsys, tmp_path
):
  """Before any table is made; its results would be those of training."""
  directory, served = noted_run(fields)
  status, shown = run(capsys, f'--run_dir={directory}', f'--output_dir={tmp_path / "out"}', *flags)
  assert status == 2 and not served
  assert message in shown.err and str(directory) in shown.err
  assert len([x for x in shown.err.splitlines() if x.startswith('nlhf')]) == 1
  assert 'Traceback' not in shown.err


def test_without_lives_is_one_line(noted_run, capsys, tmp_path):
  directory, _ = noted_run({})
  status, shown = run(
    capsys, f'--run_dir={directory}', f'--output_dir={tmp_path / "out"}', '--num_lives=0'
  )
  assert status == 2 and 'num_lives' in shown.err and len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(('fields', 'seed'), [({}, 0), ({'seed': 7, 'num_test': 60}, 7)])
def test_days_are_those_that_the_run_held_out(fields, seed, noted_run, capsys, tmp_path):
  directory, served = noted_run(fields)
  status, shown = run(
    capsys, f'--run_dir={directory}', f'--output_dir={tmp_path / "out"}', '--num_days=60', '--agents', 'none',
    '--num_lives=1', '--seed=5',
  )  # fmt: skip
  assert status == 0, shown.err
  assert served == [(60, seed)]


def test_the_corpus_of_training_is_the_one_without_a_scope():
  fields = {f'{x}corpora.noted_headlines.seed': n for n, x in enumerate(('train/', '', 'test/'))}
  assert personalise._of_corpus(fields, 'seed') == 1
  assert personalise._of_corpus({}, 'num_test') == 400


def test_who_is_unseen_is_the_runs_choice():
  """Or people would be served as strangers whom it was trained on."""
  assert personalise.num_unseen({'train/corpora.noted_headlines.num_unseen': 3}) == 3
  assert personalise.num_unseen({'corpora.headlines.seed': 1}) == noted_headlines.NUM_UNSEEN
