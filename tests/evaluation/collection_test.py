"""Votes on what policies write: tabular policies over three responses, a judge whose answers are known."""

import os
import shutil

import numpy as np
import pytest

from nlhf_jax.data import tasks, vocabularies
from nlhf_jax.evaluation import collection
from nlhf_jax.runtime import run_lock
from nlhf_jax.votes import readers
from tests.evaluation.tournament_test import PROMPTS, UNIFORM, always, decode, later_letter


def collected(tmp_path, contestants=(UNIFORM,), weights=None, **changes):
  settings = {'runs': ['a'], 'prompts': {'train': lambda: PROMPTS}, 'judge': later_letter}
  settings |= {'judge_name': 'rule', 'decode': decode, 'num_samples': 8, 'batch_size': 2}
  wanted = collection.Collection(**settings | changes)
  written = collection.collect(wanted, contestants, tmp_path, {'seed': wanted.seed}, judge=weights)
  return written, {split: list(readers.votes(tmp_path / f'{split}.jsonl')) for split in written}


def test_votes_are_the_judges_on_pairs_of_different_responses(tmp_path):
  written, votes = collected(tmp_path)
  assert written == {'train': len(votes['train'])}
  for vote in votes['train']:
    assert vote['response_a'] != vote['response_b']
    margin = 0.1 if vote['prompt'] == 'ab' else 0.5
    expected = 0.5 + margin * (1 if vote['response_a'] > vote['response_b'] else -1)
    assert vote['probability'] == pytest.approx(expected)
    assert (vote['judge'], vote['split']) == ('rule', 'train')
  # Of 28 pairs of 8 draws over three responses most differ; every prompt has votes, in either order.
  assert {vote['prompt'] for vote in votes['train']} == {'ab', 'c', 'bbc'}
  assert {vote['response_a'] > vote['response_b'] for vote in votes['train']} == {True, False}


def test_number_of_pairs_and_equal_responses(tmp_path):
  _, votes = collected(tmp_path / 'few', num_pairs=2)
  count = lambda prompt: sum(vote['prompt'] == prompt for vote in votes['train'])
  assert [count(prompt) for prompt in ('ab', 'c', 'bbc')] == [2, 2, 2]
  written, _ = collected(tmp_path / 'same', contestants=(always(0, 1, 2),))
  assert written == {'train': 0}


def test_responses_of_several_policies_meet(tmp_path):
  """Each gives one, so that all pairs are between them."""
  two = (always(0, 0, 0), always(2, 1, 0))
  _, votes = collected(tmp_path, two, num_samples=1)
  pairs = {vote['prompt']: {vote['response_a'], vote['response_b']} for vote in votes['train']}
  assert pairs == {'ab': {'a', 'c'}, 'c': {'a', 'b'}}


def test_files_that_are_there_are_kept_and_training_reads_them(tmp_path):
  prompts = {'train': lambda: PROMPTS, 'test': lambda: PROMPTS}
  collected(tmp_path)
  before = (tmp_path / 'train.jsonl').read_text()
  written, _ = collected(tmp_path, prompts=prompts)
  assert list(written) == ['test']
  assert (tmp_path / 'train.jsonl').read_text() == before
  (tmp_path / 'test.jsonl').unlink()
  task = tasks.collected(str(tmp_path.parent), tmp_path.name, vocabularies.byte())
  rows = list(task.get_dataset(split='train', shuffle=False).as_numpy_iterator())
  assert len(rows) == before.count('\n')
  assert all(0 <= row['preference'] <= 1 for row in rows)


def test_pairs_without_a_vote_are_left_out(tmp_path):
  def sometimes(prompts, response, alternative):
    answers = later_letter(prompts, response, alternative)
    return np.where(np.asarray(response)[:, 0] == 2, np.nan, answers)

  _, votes = collected(tmp_path, judge=sometimes)
  assert {vote['response_a'] for vote in votes['train']} == {'b', 'c'}


def test_what_is_no_collection_is_refused(tmp_path):
  with pytest.raises(ValueError, match='resolve it first'):
    collected(tmp_path, judge='learned')
  with pytest.raises(ValueError, match='num_samples to 2'):
    collected(tmp_path, num_samples=1)
  with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
    collected(tmp_path, judge=lambda prompts, a, b: np.full(len(a), 1.5))
  with pytest.raises(FileNotFoundError, match='nlhf collect'):
    tasks.collected(str(tmp_path), 'none', vocabularies.byte())
  assert not list(tmp_path.glob('*.jsonl'))


def test_stopped_collection_goes_on(tmp_path):
  """Batches that are there are neither drawn nor judged again, and all is as if it had not been stopped."""
  collected(tmp_path / 'whole')
  judged = []

  def stopping(prompts, response, alternative):
    judged.append(prompts.index.tolist())
    if len(judged) == 2:
      raise KeyboardInterrupt
    return later_letter(prompts, response, alternative)

  with pytest.raises(KeyboardInterrupt):
    collected(tmp_path / 'stopped', judge=stopping)
  assert not (tmp_path / 'stopped/train.jsonl').exists()
  collected(tmp_path / 'stopped', judge=stopping)
  assert judged == [[0, 1], [2], [2]]
  read = lambda name: (tmp_path / name / 'train.jsonl').read_text()
  assert read('stopped') == read('whole')
  assert not list((tmp_path / 'stopped').glob('*.parts'))


def test_other_policies_and_settings_are_refused(tmp_path):
  collected(tmp_path)
  with pytest.raises(ValueError, match='seed'):
    collected(tmp_path, seed=1)
  with pytest.raises(ValueError, match=r'collection\.policies'):
    collected(tmp_path, contestants=(always(0, 1, 2),))


def test_collection_that_failed_before_its_first_batch_gives_way(tmp_path):
  """What was wrong is set right, and the directory is the corrected one's; from its first batch on it is kept."""
  calls = []

  def failing(prompts, response, alternative):
    calls.append(1)
    if len(calls) == 3:
      raise ValueError('The judge is gone.')
    return np.full(len(response), 1.5 if len(calls) == 1 else 0.5)

  with pytest.raises(ValueError, match=r'outside \[0, 1\]'):
    collected(tmp_path, judge=failing, seed=1)
  assert (tmp_path / 'config.gin').exists()
  with pytest.raises(ValueError, match='gone'):
    collected(tmp_path, judge=failing)
  with pytest.raises(ValueError, match='seed was 0, now 1'):
    collected(tmp_path, seed=1)
  written, _ = collected(tmp_path)
  assert written['train'] and not list(tmp_path.glob('*.parts'))


def test_a_judge_that_was_trained_anew(tmp_path):
  """Votes of two judges are not mixed; a directory that does not say who judged goes on."""
  prompts = {'train': lambda: PROMPTS, 'test': lambda: PROMPTS}
  first, other = ({'from': 'preference', 'fingerprint': x} for x in 'ab')
  collected(tmp_path / 'new', weights=first)
  with pytest.raises(ValueError, match=r'collection\.judge was .*"a".*, now .*"b"'):
    collected(tmp_path / 'new', weights=other, prompts=prompts)
  collected(tmp_path / 'old')
  for directory, judge in (('new', first), ('old', other)):
    written, _ = collected(tmp_path / directory, weights=judge, prompts=prompts)
    assert list(written) == ['test']


def test_parts_that_are_a_link_are_refused(tmp_path):
  (tmp_path / 'theirs').mkdir()
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'train.parts').symlink_to(tmp_path / 'theirs')
  with pytest.raises(OSError, match=r'train\.parts is a link to .*theirs, outside'):
    collected(tmp_path / 'out')
  assert not list((tmp_path / 'theirs').iterdir())


def test_second_writer_is_refused(tmp_path):
  with (
    run_lock.held(tmp_path),
    pytest.raises(run_lock.InUseError, match=f'{tmp_path} is in use: process {os.getpid()} on'),
  ):
    collected(tmp_path)
  assert not list(tmp_path.iterdir())


def test_directory_that_is_removed_is_not_made_again(tmp_path):
  def judge(prompts, response, alternative):
    shutil.rmtree(tmp_path / 'votes', ignore_errors=True)
    return later_letter(prompts, response, alternative)

  with pytest.raises(FileNotFoundError, match='votes has been removed, moved or replaced'):
    collected(tmp_path / 'votes', judge=judge)
  assert not list(tmp_path.iterdir())
