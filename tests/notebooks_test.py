"""Notebooks run from top to bottom."""

import json
import pathlib
import re

import jax
import matplotlib
import numpy as np
import pytest

from nlhf_jax.formats import hf
from nlhf_jax.personalisation import theory

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / 'launch' / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, capsys, request):
  matplotlib.use('Agg')
  settings = _SETTINGS[path.stem](request) if path.stem in _SETTINGS else {}
  scope = {}
  for name, source in _code(path, settings):
    exec(compile(source, name, 'exec'), scope)
  _CHECKS[path.stem](capsys.readouterr().out, scope)


def _code(path, settings):
  """Code cells by name, without magics, and with other values of the settings, each of which is assigned once."""
  cells = json.loads(path.read_text(encoding='utf-8'))['cells']
  code = {
    f'{path.name}[{number}]': re.sub(r'^%.*$', '', ''.join(cell['source']), flags=re.MULTILINE)
    for number, cell in enumerate(cells)
    if cell['cell_type'] == 'code'
  }
  for name, value in settings.items():
    pattern = re.compile(rf'^{name} = .*$', re.MULTILINE)
    (place,) = [number for number, source in code.items() if pattern.search(source)]
    code[place] = pattern.sub(lambda _, line=f'{name} = {value!r}': line, code[place])
  return code.items()


def _language_model_settings(request):
  return {
    'MODEL_DIR': str(request.getfixturevalue('chat_model')),
    'EXPORT_DIR': str(request.getfixturevalue('tmp_path') / 'exported'),
    'NUM_STEPS': 4,
    'BATCH_SIZE': 2,
    'NUM_SAMPLES': 2,
    'MAX_LENGTH': 6,
    'LEARNING_RATE': 1e-2,
    'NUM_ANSWERS': 1,
  }


def _check_games(printed, scope):
  assert 'lottery [0.383 0.383 0.233]' in printed
  mixture = float(printed.split('mixture against pi* at tau/(1-b):')[1].split()[0])
  assert mixture < 1e-9


def _check_votes(printed, scope):
  assert 'new: never lost' in printed
  worth = float(printed.split('worth of 100 tokens:')[1].split()[0])
  assert 0.4 < worth < 0.8  # Below the .8 of each voter: tastes differ.
  voted, held = (
    float(printed.split(f'rock over paper, {how}:')[1].split()[0])
    for how in ('as voted', 'at the same length')
  )
  assert voted > held + 60
  assert 'beats all others: None' in printed


def _check_preference_models(printed, scope):
  assert 'beats all others: None' in printed
  log_loss, correlation, worst = (
    scope[name] for name in ('log_loss', 'cyclic_correlation', 'worst_case')
  )
  tables = {name: table.astype(np.float64) for name, table in scope['tables'].items()}
  line = tables.pop('reward')
  floor, best_line = log_loss(scope['truth']), log_loss(scope['best_line'])
  assert log_loss(line) > best_line - 1e-5
  for name, table in tables.items():
    assert floor < log_loss(table) < (floor + best_line) / 2, name
    assert correlation(table) > max(correlation(line), 0) + 0.3, name
    assert worst(table, 0.01) > worst(line, 0.01) + 0.02, name
  for name, table in scope['tables'].items():
    # A judge that reads pairs has the two orders in two places of a batch, which a processor may round differently.
    rounding = np.finfo(np.float32).eps if name == 'pairwise' else 0
    np.testing.assert_allclose(table + table.T, 1, rtol=0, atol=rounding, err_msg=name)


def _check_language_model(printed, scope):
  cycle = [float(line.split(': ')[1]) for line in printed.splitlines() if ' over answer ' in line]
  assert len(cycle) == 3
  assert min(cycle) > 0.55
  step, p, kl = np.array(scope['curve']).T
  np.testing.assert_array_equal(step, np.arange(1, 5))
  assert np.all((p > 0) & (p < 1))
  assert kl[0] == pytest.approx(0, abs=1e-4)  # Adapters change nothing before the first update.
  assert kl[-1] != 0
  rates = scope['rates']
  assert rates.low[0, 1] < rates.mean[0, 1] < rates.high[0, 1]
  exported = hf.load(scope['EXPORT_DIR'], scope['trained'])
  changed = jax.tree.map(lambda x, y: bool(np.any(x != y)), exported, scope['weights'])
  assert any(jax.tree.leaves(changed))
  jax.tree.map(np.testing.assert_array_equal, exported, scope['trained'])
  assert (pathlib.Path(scope['EXPORT_DIR']) / 'tokenizer.json').is_file()


def _check_whose_preference(printed, scope):
  _check_one_policy_for_all(printed, scope)
  _check_who_disagrees(scope)
  _check_agents(printed, scope)


def _check_one_policy_for_all(printed, scope):
  worst, at_most = re.search(
    r'worst-off of maximin (\S+), of any policy at most (\S+)', printed
  ).groups()
  assert worst == at_most
  sure_of, objective, over_mu = (scope[name] for name in ('sure_of', 'objective', 'over_mu'))
  assert all(sure_of['maximin'] > x + 0.05 for name, x in sure_of.items() if name != 'maximin')
  assert all(objective['maximin'] > x + 0.05 for name, x in objective.items() if name != 'maximin')
  assert all(
    over_mu['egalitarian'] > x + 0.05 for name, x in over_mu.items() if name != 'egalitarian'
  )
  assert scope['halves'] < 1e-9  # What a reader who ranks is sure of is half her favourite's.
  standings = scope['standings']
  assert standings[0.0, 'mean'].mean_worst_case == pytest.approx(0.5)
  np.testing.assert_allclose(standings[0.0, 'personalised'].worst_case, 0.5)
  np.testing.assert_allclose(standings[0.0, 'mean'].worst_case, [0.5, 0.5, 0], atol=1e-9)


def _check_who_disagrees(scope):
  np.testing.assert_array_equal(scope['correlation'].argmax(axis=1), np.arange(3))
  assert scope['told_apart'].min() > 0.7
  np.testing.assert_allclose(scope['disagreement'], scope['true_parts'], atol=0.1)
  assert sum(scope['true_parts']) == pytest.approx(1)
  by_em, isotropic = scope['curves']['tastes by EM'], scope['curves']['isotropic']
  accuracy = [one['accuracy'] for one in by_em]
  assert accuracy[0]['gain']['mean'] < 0.01  # Without a vote nothing is known.
  assert accuracy[-1]['gain']['low'] > 0.02
  assert accuracy[-1]['own']['high'] < scope['ceiling']['accuracy']
  assert accuracy[-1]['own']['mean'] > isotropic[-1]['accuracy']['own']['mean'] + 0.01
  log_loss = [one['log_loss']['own']['mean'] for one in by_em]
  assert log_loss[0] > log_loss[2] > log_loss[-1] > scope['ceiling']['log_loss']


def _check_agents(printed, scope):
  errors = {key: outcome.error.sum(axis=1) for key, outcome in scope['outcomes'].items()}
  asked = {key: outcome.questions.sum() for key, outcome in scope['outcomes'].items()}
  for label, world in scope['worlds'].items():
    switches = world.num_switches * (world.num_slots if world.switch == 'all' else 1)
    finds = world.num_answers >= world.num_values  # One question finds a value.
    assert errors[label, 'corrections'].max() <= switches + world.num_slots
    assert errors[label, 'both'].max() <= switches + (0 if finds else world.num_slots)
    assert asked[label, 'corrections'] == 0
  one, all_six, many_values = scope['worlds']
  for label in (one, all_six):
    world = scope['worlds'][label]
    sizes = world.num_switches, world.num_slots, world.num_values
    stale = theory.stale_errors(world.num_rounds, *sizes, all_slots=label == all_six)
    assert errors[label, 'questions'].mean() == pytest.approx(stale, rel=0.25)
  assert errors[all_six, 'doubt'].mean() < errors[all_six, 'both'].mean() / 3
  assert errors[many_values, 'doubt'].mean() > errors[many_values, 'both'].mean() * 2
  assert errors[many_values, 'ours'].mean() < errors[many_values, 'both'].mean() * 1.2
  assert '0.969\nas published: 0.492' in printed


_SETTINGS = {
  'preference_models': lambda request: {'NUM_STEPS': 150},
  'language_model': _language_model_settings,
  'whose_preference': lambda request: {'NUM_UNSEEN': 60, 'NUM_RUNS': 10, 'NUM_ROUNDS': 500},
}
_CHECKS = {
  'games': _check_games,
  'votes': _check_votes,
  'preference_models': _check_preference_models,
  'language_model': _check_language_model,
  'whose_preference': _check_whose_preference,
}
