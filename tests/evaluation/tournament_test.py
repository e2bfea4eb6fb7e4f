"""A tournament of tabular policies over three responses of one token: its files, by hand."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.evaluation import exact, tournament
from nlhf_jax.runtime import run_lock
from nlhf_jax.types import EOS, Enumeration, FixedPoint, Policy, Prompts, Rollout
from nlhf_jax.votes import readers, table

RESPONSES = np.array([[2, EOS], [3, EOS], [4, EOS]], np.int32)
TEXTS = ('a', 'b', 'c')
PROMPTS = Prompts(
  np.array([[2, 3, 0], [4, 0, 0], [3, 3, 4]], np.int32), np.arange(3, dtype=np.int32)
)


def encode(text):
  return [2 + TEXTS.index(letter) for letter in text]


def decode(tokens):
  return ''.join(TEXTS[token - 2] for token in tokens)


def log_prob(params, prompts, tokens):
  """Parameters are logits [prompts, responses], by a prompt's number."""
  logits = jax.nn.log_softmax(params)[prompts.index]
  lanes = tokens.shape[0] // logits.shape[0]
  picked = jnp.take_along_axis(jnp.repeat(logits, lanes, axis=0), tokens[:, :1] - 2, axis=-1)
  return jnp.concatenate([picked, jnp.zeros_like(picked)], axis=-1)


def sample(params, prompts, rng, num_samples=1):
  logits = jnp.repeat(params[prompts.index], num_samples, axis=0)
  tokens = jnp.asarray(RESPONSES)[jax.random.categorical(rng, logits)]
  return Rollout(tokens, tokens > 0)


POLICY = Policy(init=None, log_prob=log_prob, sample=sample, play=None)


def contestant(logits) -> tournament.Contestant:
  return tournament.Contestant(POLICY, jnp.asarray(logits, jnp.float32))


def always(*responses) -> tournament.Contestant:
  """One response to each prompt, for sure."""
  return contestant([[0.0 if n == r else -1e9 for n in range(3)] for r in responses])


UNIFORM = contestant(np.zeros((3, 3)))


def later_letter(prompts, response, alternative):
  """Prefers the later letter, for sure, but on prompt 0 by 0.6."""
  order = np.sign(np.asarray(response)[:, 0] - np.asarray(alternative)[:, 0])
  lanes = len(order) // len(prompts.index)
  return 0.5 + np.where(np.repeat(prompts.index, lanes) == 0, 0.1, 0.5) * order


def evaluation(**changes) -> tournament.Evaluation:
  settings = {'judge': later_letter, 'judge_name': 'rule', 'num_samples': 2, 'batch_size': 2}
  settings |= {'prompts': lambda: PROMPTS, 'encode': encode, 'decode': decode}
  return tournament.Evaluation(**settings | changes)


def enumeration(prompts):
  """One annotator, who prefers later letters."""
  assert prompts is PROMPTS
  every = np.tile(RESPONSES, (3, 1, 1))
  return Enumeration(every, np.tile(np.array([0.0, 1.0, 2.0]), (3, 1, 1)))


def test_files_of_win_rates_and_samples(tmp_path):
  """Three prompts in batches of two: what each contestant earns on every prompt is known."""
  contestants = {'a': always(0, 0, 0), 'b, <c>': always(1, 2, 2), 'same': always(0, 0, 0)}
  tournament.compare(evaluation(num_shown=2), contestants, tmp_path / 'new' / 'directory')
  found = tmp_path / 'new' / 'directory'
  rows = list(csv.reader((found / 'win_rates.csv').open()))
  assert rows[0] == ['i_beats_j', 'a', 'b, <c>', 'same']
  rate = (0.4 + 0 + 0) / 3
  expected = [[0.5, rate, 0.5], [1 - rate, 0.5, 1 - rate], [0.5, rate, 0.5]]
  np.testing.assert_allclose([[float(x) for x in row[1:]] for row in rows[1:]], expected, atol=1e-6)
  rates = json.loads((found / 'win_rates.json').read_text())
  assert (rates['judge'], rates['num_prompts'], rates['labels'][1]) == ('rule', 3, 'b, <c>')
  samples = [json.loads(line) for line in (found / 'samples.jsonl').read_text().splitlines()]
  assert [row['prompt'] for row in samples] == ['ab', 'c']
  texts = [{label: x['text'] for label, x in row['responses'].items()} for row in samples]
  assert texts == [{'a': 'a', 'b, <c>': letter, 'same': 'a'} for letter in 'bc']
  shares = [[x['preference'] for x in row['responses'].values()] for row in samples]
  # The mean over the two others, on this prompt.
  np.testing.assert_allclose(shares, [[0.45, 0.6, 0.45], [0.25, 1.0, 0.25]])
  assert 'b, &lt;c&gt;' in (found / 'report.html').read_text()
  assert not (found / 'exact.json').exists()
  votes = list(readers.votes(found / 'votes.jsonl'))
  assert {vote['order'] for vote in votes} == {'ab', 'ba'}
  assert {vote['judge'] for vote in votes} == {'rule'}
  assert not list(found.glob('*.partial'))
  made = table.columns(votes)
  wins = table.wins(made)
  shares = wins / np.where(wins + wins.T > 0, wins + wins.T, 1) + 0.5 * np.eye(3)
  np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_draws_are_independent(tmp_path):
  """Of contestants, batches and prompts: equal policies do not answer alike."""
  prompts = Prompts(np.full((4, 1), 2, np.int32), np.zeros(4, np.int32))
  seen = []

  def judge(prompts, response, alternative):
    seen.append((np.asarray(response), np.asarray(alternative)))
    return np.full(len(response), 0.5)

  settings = evaluation(prompts=lambda: prompts, judge=judge, num_samples=20)
  tournament.compare(settings, {'one': UNIFORM, 'other': UNIFORM}, tmp_path)
  for response, alternative in seen:
    assert 0.1 < np.mean(response[:, 0] == alternative[:, 0]) < 0.6
  assert (seen[0][0] != seen[1][0]).any()
  assert (seen[0][0][:20] != seen[0][0][20:]).any()


def test_rate_is_that_of_independent_responses(tmp_path):
  """Nobody beats rock, paper, scissors at a third each, of which random numbers in common would make .483 against this policy."""
  cycle = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
  judge = lambda prompts, y, other: cycle[np.asarray(y)[:, 0] - 2, np.asarray(other)[:, 0] - 2]
  policy = contestant(np.log([[0.13, 0.53, 0.34]] * 3))
  settings = evaluation(judge=judge, num_samples=20000)
  played = tournament.compare(settings, {'uniform': UNIFORM, 'other': policy}, tmp_path)
  np.testing.assert_allclose(played.rates.mean, 0.5, atol=0.006)


def test_exact_play(tmp_path):
  """Worst cases against the last letter; KL to the contestant that is named as μ; a fixed point, by its equation."""
  contestants = {'last': always(2, 2, 2), 'uniform': UNIFORM, 'first': always(0, 0, 0)}
  settings = evaluation(
    enumeration=enumeration, tau=0.2, reference='uniform', baseline='uniform', betas=(1.0,)
  )
  tournament.compare(settings, contestants, tmp_path)
  found = json.loads((tmp_path / 'exact.json').read_text())
  assert found['labels'] == ['last', 'uniform', 'first', 'exact beta 1']
  assert (found['tau'], found['baseline'], found['all']['num_prompts']) == (0.2, 'uniform', 3)
  # β = 1: the reply to μ, softmax(log μ + P(y ≻ μ)/τ).
  reply = special.softmax(np.array([1 / 6, 1 / 2, 5 / 6]) / 0.2)
  worst = [0.5, 1 / 6, 0.0, 0.5 * reply[2]]
  columns = {name: found['all'][name]['mean'] for name in ('worst_case', 'kl', 'preference')}
  np.testing.assert_allclose(columns['worst_case'], worst, atol=1e-5)
  nats = np.sum(reply * np.log(3 * reply))
  np.testing.assert_allclose(columns['kl'], [np.log(3), 0, np.log(3), nats], atol=1e-5)
  np.testing.assert_allclose(columns['preference'][0][:3], [0.5, 5 / 6, 1.0], atol=1e-5)
  difference = found['all']['worst_case_difference']['mean']
  np.testing.assert_allclose(difference, np.array(worst) - 1 / 6, atol=1e-5)


def test_exact_play_without_regularisation(tmp_path):
  """A policy trained at τ = 0 has no fixed point that could be named; all else is there."""
  trained = UNIFORM._replace(fixed_point=FixedPoint(0.0, 0.0))
  settings = evaluation(enumeration=enumeration, tau=0.2, reference='other')
  tournament.compare(settings, {'trained': trained, 'other': UNIFORM}, tmp_path)
  found = json.loads((tmp_path / 'exact.json').read_text())['all']
  np.testing.assert_allclose(found['worst_case']['mean'], 1 / 6, atol=1e-5)


def test_first_contestant_is_the_reference(tmp_path):
  settings = evaluation(enumeration=enumeration, baseline='absent')
  tournament.compare(settings, {'last': always(2, 2, 2), 'uniform': UNIFORM}, tmp_path)
  found = json.loads((tmp_path / 'exact.json').read_text())
  assert found['all']['kl']['mean'][0] == pytest.approx(0, abs=1e-6)
  assert found['all']['kl']['mean'][1] > 1
  assert found['baseline'] is None


def test_log_probs_of_every_response():
  logits = np.random.default_rng(0).normal(size=(3, 3))
  one = contestant(logits)
  score = exact.enumerator(one.policy, batch_size=2)
  found = score(one.params, PROMPTS, np.tile(RESPONSES, (3, 1, 1)))
  np.testing.assert_allclose(found, special.log_softmax(logits, axis=-1), atol=1e-6)


def test_error_of_a_judge_that_is_not_resolved(tmp_path):
  """A description, such as a feedback source, is no judge yet; nothing is written."""
  settings = evaluation(judge=('preference', 'run'))
  with pytest.raises(ValueError, match='asks a PreferenceFn, got tuple: resolve it first'):
    tournament.compare(settings, {'uniform': UNIFORM}, tmp_path / 'none')
  assert not (tmp_path / 'none').exists()


def test_samples_of_held_out_prompts():
  found = tournament.sample(evaluation(num_shown=2), always(0, 2, 1), [], num_samples=2, seed=0)
  assert found == [('ab', ['a', 'a']), ('c', ['c', 'c'])]


def test_samples_of_texts():
  found = tournament.sample(evaluation(), UNIFORM, ['b', 'acc'], num_samples=30, seed=1)
  assert [prompt for prompt, _ in found] == ['b', 'acc']
  assert all({*answers} == {*TEXTS} and len(answers) == 30 for _, answers in found)
  other = tournament.sample(evaluation(), UNIFORM, ['b', 'acc'], num_samples=30, seed=2)
  assert other != found
  with pytest.raises(ValueError, match="A prompt has 4 tokens, at most 3 fit: 'abca'"):
    tournament.sample(evaluation(), UNIFORM, ['abca'], num_samples=1, seed=0)


def test_missing_votes_are_counted_and_no_rows(tmp_path):
  """The judge never answers on prompt 1: neither win rates nor votes have it, and the page says so."""

  def judge(prompts, response, alternative):
    lanes = len(response) // len(prompts.index)
    p = later_letter(prompts, response, alternative)
    return np.where(np.repeat(prompts.index, lanes) == 1, np.nan, p)

  tournament.compare(
    evaluation(judge=judge), {'a': always(0, 0, 0), 'b': always(1, 2, 2)}, tmp_path
  )
  rates = json.loads((tmp_path / 'win_rates.json').read_text())
  assert rates['num_missing'] == 2
  assert rates['mean'][0][1] == pytest.approx(0.4 / 2)
  assert len(list(readers.votes(tmp_path / 'votes.jsonl'))) == 2 * 2 * 2
  samples = [json.loads(line) for line in (tmp_path / 'samples.jsonl').read_text().splitlines()]
  assert samples[1]['responses']['a']['preference'] is None
  page = (tmp_path / 'report.html').read_text()
  assert 'no vote' in page
  assert 'Left out: 2 pairs' in page


def test_second_writer_is_refused(tmp_path):
  """While a judge answers, a second comparison in the same directory ends, and harms nothing."""
  contestants = {'a': always(0, 0, 0), 'b': always(1, 1, 1)}
  refused = []

  def judge(prompts, response, alternative):
    if not refused:
      with pytest.raises(run_lock.InUseError, match='out is in use') as caught:
        tournament.compare(evaluation(), contestants, tmp_path / 'out')
      refused.append(caught.value)
    return later_letter(prompts, response, alternative)

  tournament.compare(evaluation(judge=judge), contestants, tmp_path / 'out')
  assert refused and len(list(readers.votes(tmp_path / 'out' / 'votes.jsonl'))) == 12
  names = 'report.html', 'samples.jsonl', 'votes.jsonl', 'win_rates.csv', 'win_rates.json'
  assert tuple(sorted(path.name for path in (tmp_path / 'out').iterdir())) == names


OTHERS = {
  'annotate': {
    'verdict': 'a',
    'voter': 'Ada',
    'judge': 'human',
    'order': 'ab',
    'time': 1.0,
    'seed': 0,
  },
  'judge': {'verdict': 'a', 'judge': 'm', 'order': 'ab', 'time': 1.0},
  'judge with log-probs': {'probability': 0.7, 'judge': 'rule', 'order': 'ab', 'time': 1.0},
  'rollout': {'probability': 0.7, 'seed': 0, 'rollout': {'step': 1}},
  'import': {'verdict': 'b'},
}


@pytest.mark.parametrize('other', OTHERS)
def test_votes_of_others_are_not_replaced(other, tmp_path):
  """Whoever has appended one to the file of a comparison; before anything is drawn."""
  contestants = {'a': always(0, 0, 0), 'b': always(1, 2, 2)}
  tournament.compare(evaluation(), contestants, tmp_path)
  path = tmp_path / 'votes.jsonl'
  texts = {'prompt': 'p', 'a': 'a', 'b': 'b', 'response_a': 'x', 'response_b': 'y'}
  with path.open('a') as file:
    file.write(json.dumps(texts | OTHERS[other]) + '\n')
  before = {x.name: x.read_bytes() for x in tmp_path.iterdir()}
  number = before['votes.jsonl'].count(b'\n')

  def prompts():
    raise AssertionError

  message = (
    rf'votes\.jsonl:{number}: no vote of an earlier comparison.*: move the file, or name another'
  )
  with pytest.raises(ValueError, match=message):
    tournament.compare(evaluation(prompts=prompts), contestants, tmp_path)
  assert {x.name: x.read_bytes() for x in tmp_path.iterdir()} == before


def test_votes_of_earlier_comparisons_are_replaced(tmp_path):
  """By another judge, of other contestants and another seed too."""
  tournament.compare(evaluation(), {'a': always(0, 0, 0), 'b': always(1, 2, 2)}, tmp_path)
  changed = evaluation(judge_name='another', seed=3)
  tournament.compare(changed, {'c': always(0, 0, 0), 'b': always(1, 2, 2)}, tmp_path)
  votes = list(readers.votes(tmp_path / 'votes.jsonl'))
  assert {(x['judge'], x['seed'], x['a']) for x in votes} == {('another', 3, 'c')}


def test_votes_that_are_just_written_to_are_not_replaced(tmp_path):
  path = tmp_path / 'votes.jsonl'
  with (
    run_lock.file_held(path),
    pytest.raises(run_lock.InUseError, match=r'votes\.jsonl is in use'),
  ):
    tournament.compare(evaluation(), {'a': UNIFORM, 'b': UNIFORM}, tmp_path)
  assert not list(tmp_path.iterdir())
