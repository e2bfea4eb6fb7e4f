"""Rollouts that are kept: what each line says is what the rollout has, for methods of every kind."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.training import loop, steps, traces
from nlhf_jax.types import EOS, PAD
from nlhf_jax.votes import readers, schemas

K = 3
WORDS = ['', '', 'storm', 'flood', 'harbour', 'today']
KEPT = traces.Traces(lambda tokens: ' '.join(WORDS[token] for token in tokens), num_prompts=2)


def judge(prompts, y, other):
  """By the first and the last token: no two different responses are worth the same, and P(y ≻ y) is ½."""
  worth = lambda x: 0.3 * x[:, 0] + 0.01 * x.sum(-1)
  return jax.nn.sigmoid(worth(y) - worth(other))


def silent(prompts, y, other):
  """No vote where y begins with 2 or 3."""
  return jnp.where(y[:, 0] < 4, jnp.nan, judge(prompts, y, other))


def rollout_of(method, tiny_policy, tiny_params, tiny_prompts):
  algorithm = method(tiny_policy)
  state = loop.init_state(
    algorithm, optimizer(), 0, online=tiny_params[0], given={'reference': tiny_params[1]}
  )
  step = steps.Steps(algorithm, optimizer())
  params = step.played(state.params)
  rollout = step.sample(params, tiny_prompts, jax.random.PRNGKey(3))
  return algorithm, algorithm.score(rollout), params


def optimizer():
  return optax.sgd(0.1)


METHODS = {
  'nash_md_pg': lambda p: algorithms.nash_md_pg(p, judge, tau=0.1, beta=0.25, num_samples=K),
  'one_sample': lambda p: algorithms.nash_md_pg(p, judge, tau=0.1, beta=0.25),
  'single_pairs': lambda p: algorithms.best_response(
    p, judge, tau=0.1, num_samples=K, all_pairs=False
  ),
  'self_play': lambda p: algorithms.self_play(p, judge, tau=0.1, num_samples=K),
  'online_ipo': lambda p: algorithms.online_ipo(p, judge, tau=0.1, num_samples=K),
  'ipo_md': lambda p: algorithms.ipo_md(
    p, judge, tau=0.1, beta=0.25, num_samples=K, all_pairs=False
  ),
  'egpo': lambda p: algorithms.egpo(p, judge, tau=0.1),
}


def encode(text):
  return [WORDS.index(word) for word in text.split()]


@pytest.mark.parametrize('name', METHODS)
def test_probability_is_that_of_the_pair_shown(name, tiny_policy, tiny_params, tiny_prompts):
  """The judge says it again of the words; log-ratios are those of one pass; lengths and ends are the words'."""
  algorithm, rollout, params = rollout_of(METHODS[name], tiny_policy, tiny_params, tiny_prompts)
  rows = traces.votes(KEPT, algorithm, rollout, 7)
  size = len(tiny_prompts.tokens)
  k = len(rollout.response.tokens) // size
  assert len(rows) == size * (1 if k == 1 or name == 'self_play' else 2)
  for row in rows:
    known = row['rollout']
    index = ([encode(row['prompt'])] == [[3, 4, 5, 2, 2]] and [0]) or [1]
    prompts = jax.tree.map(lambda x, i=index: x[jnp.array(i)], tiny_prompts)
    pair = []
    for text, length, ended in zip(
      (row['response_a'], row['response_b']), known['tokens'], known['ended'], strict=True
    ):
      tokens = encode(text) + [EOS] * ended
      assert len(tokens) == length
      assert ended or length == 3
      pair.append(jnp.array([tokens + [PAD] * (3 - length)]))
    assert row['probability'] == pytest.approx(float(judge(prompts, *pair)[0]), abs=1e-5)
    assert known['step'] == 7
    for tokens, ratio, drawn_by in zip(pair, known['log_ratio'], known['drawn_by'], strict=True):
      if ratio is not None and drawn_by == 'online':
        logp = [
          tiny_policy.log_prob(params.named(x), prompts, tokens).sum()
          for x in ('online', 'reference')
        ]
        assert ratio == pytest.approx(float(logp[0] - logp[1]), abs=1e-4)
  assert any(x is not None for x in rows[0]['rollout']['log_ratio'])
  # Different pairs, not one again and again.
  texts = {(row['response_a'], row['response_b'], row['prompt']) for row in rows}
  assert len(texts) > size / 2


def test_mean_over_all_opponents_stands_beside_it(tiny_policy, tiny_params, tiny_prompts):
  """What the update saw is what it is logged as; among each other a response is no opponent of its own."""
  for name, opponents in (('nash_md_pg', K), ('self_play', K - 1), ('single_pairs', 1)):
    algorithm, rollout, _ = rollout_of(METHODS[name], tiny_policy, tiny_params, tiny_prompts)
    row = traces.votes(KEPT, algorithm, rollout, 1)[0]
    assert row['rollout']['opponents'] == opponents
    assert row['rollout']['preference'] == pytest.approx(float(rollout.preference[0]), abs=1e-6)
    alone = opponents == 1
    assert (row['rollout']['preference'] == row['probability']) == alone


def test_players_are_named(tiny_policy, tiny_params, tiny_prompts):
  names = {}
  for name in ('nash_md_pg', 'self_play', 'egpo'):
    algorithm, rollout, _ = rollout_of(METHODS[name], tiny_policy, tiny_params, tiny_prompts)
    row = traces.votes(KEPT, algorithm, rollout, 1)[0]
    names[name] = (row.get('a'), row.get('b'), row['rollout']['drawn_by'])
  mixed = 'online^0.75 reference^0.25'
  assert names['nash_md_pg'] == ('online', mixed, ['online', mixed])
  # A vote compares two: of one and the same nothing is to be ranked.
  assert names['self_play'] == (None, None, ['online', 'online'])
  assert names['egpo'][:2] == ('online', 'half_step')


@pytest.mark.parametrize('k', [1, K])
def test_rewards_in_place_of_preferences(k, tiny_policy, tiny_params, tiny_prompts):
  reward = lambda prompts, y: y.sum(-1).astype(jnp.float32)
  method = lambda p: algorithms.rlhf(p, reward, tau=0.1, num_samples=k)
  algorithm, rollout, _ = rollout_of(method, tiny_policy, tiny_params, tiny_prompts)
  row = traces.votes(KEPT, algorithm, rollout, 1)[0]
  assert row['probability'] is None
  texts = [row[name] for name in ('response_a', 'response_b') if name in row]
  assert len(texts) == len(row['rollout']['reward']) == min(k, 2)
  for text, value, ended in zip(
    texts, row['rollout']['reward'], row['rollout']['ended'], strict=True
  ):
    assert sum(encode(text)) + EOS * ended == value


def test_file_is_one_of_votes(tiny_policy, tiny_params, tiny_prompts, tmp_path):
  """Readers take the votes, and leave out pairs without one."""
  method = lambda p: algorithms.nash_md_pg(p, silent, tau=0.1, beta=0.25, num_samples=K)
  algorithm, rollout, _ = rollout_of(method, tiny_policy, tiny_params, tiny_prompts)
  kept = KEPT._replace(num_pairs=K)
  rows = traces.votes(kept, algorithm, rollout, 1)
  traces.Writer(tmp_path).append(rows)
  votes = list(readers.votes(tmp_path / 'votes.jsonl'))
  missing = [row['probability'] is None for row in rows]
  assert 0 < sum(missing) < len(rows)
  assert len(votes) == len(rows) - sum(missing)
  assert {vote['a'] for vote in votes} == {'online'}
  assert len(list(readers.comparisons(tmp_path / 'votes.jsonl'))) == len(votes)
  with pytest.raises(schemas.FieldError, match='verdict'):
    schemas.votes_of(schemas.SCHEMAS['votes'], {'a': 'x', 'b': 'y', 'probability': None})


def test_ids_without_a_decoder(tiny_policy, tiny_params, tiny_prompts):
  algorithm, rollout, _ = rollout_of(METHODS['nash_md_pg'], tiny_policy, tiny_params, tiny_prompts)
  row = traces.votes(traces.Traces(), algorithm, rollout, 1)[0]
  assert row['prompt'] == '3 4 5 2 2'
  expected = [int(x) for x in rollout.response.tokens[0] if x > EOS]
  assert [int(x) for x in row['response_a'].split()] == expected


def test_resumed_run_drops_later_lines(tmp_path):
  """Of rollouts; what others have put there stays."""
  line = lambda step: {'response_a': 'x', 'probability': 0.5, 'rollout': {'step': step}}
  theirs = {'a': 'x', 'b': 'y', 'verdict': 'a'}
  traces.Writer(tmp_path).append([line(1), line(50), theirs, line(100)])
  with (tmp_path / 'votes.jsonl').open('a') as file:
    file.write('{"trunca')
  traces.Writer(tmp_path, resume_step=60).append([line(100)])
  rows = [json.loads(x) for x in (tmp_path / 'votes.jsonl').read_text().splitlines()]
  assert rows == [line(1), line(50), theirs, line(100)]


def test_steps_that_are_kept(tiny_policy):
  algorithm = METHODS['nash_md_pg'](tiny_policy)
  every = functools.partial(traces.is_traced, KEPT._replace(every=20), algorithm)
  assert [step for step in range(1, 62) if every(step)] == [1, 20, 40, 60]
  assert not traces.is_traced(None, algorithm, 20)
  read = algorithms.dpo(tiny_policy, tau=0.1)
  assert not traces.is_traced(KEPT, read, 20)
  with pytest.raises(ValueError, match='every must be at least 1, got 0'):
    traces.check(KEPT._replace(every=0))


def test_halves_of_characters():
  """A decoder may make them of bytes; no file can hold them."""
  assert json.dumps(traces._encodable('a\ud800b')) == '"a?b"'


ON_A_MESH = """
import jax.numpy as jnp
import numpy as np
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import traces
from nlhf_jax.types import Comparison, Prompts, Rollout

layout = partitioning.Layout(partitioning.make_mesh(partitioning.Devices(2, 1, 2)))
tokens = np.arange(8 * 3 * 4).reshape(24, 4)
rollout = Rollout(tokens, tokens > -1, tokens * 1.0)
prompts = Prompts(np.arange(16).reshape(8, 2), np.arange(8))
batch = layout.shard_rows(Comparison(prompts, rollout, rollout))
# A judge on the host has given all rows to one device.
batch = batch._replace(preference=jnp.arange(24))
for wanted, number in ((3, 3), (6, 4)):  # A device has four prompts.
  few = traces.first_prompts(batch, wanted)
  assert few.prompts.tokens.shape == (number, 2)
  assert (few.response.tokens == tokens[: 3 * number]).all()
  assert (few.preference == np.arange(3 * number)).all()
"""


def test_first_rows_of_a_mesh():
  """Of arrays that are sharded by rows, and of one that is not."""
  simulated = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  subprocess.run([sys.executable, '-c', ON_A_MESH], check=True, env=os.environ | simulated)
