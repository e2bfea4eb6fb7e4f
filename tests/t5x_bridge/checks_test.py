"""What T5X cannot run is refused in one line; T5X itself is not needed for it."""

import functools

import pytest

from nlhf_jax import algorithms
from nlhf_jax.models import (
  general_preference,
  policy,
  preference_model,
  rater,
  reward_model,
  voter_preference,
)
from nlhf_jax.networks import decoding
from nlhf_jax.t5x_bridge import checks
from nlhf_jax.types import AllPairsJudge
from tests.conftest import tiny_network

NETWORK = tiny_network()
POLICY = policy.from_network(NETWORK, decoding.Sampling(max_length=3))
ONE, TWO = ((2,), (3,), (4,)), ((2,), (3,), (4,), (5,))
PAIRS = preference_model.from_rater(rater.in_encoder(NETWORK, TWO))
REWARD = reward_model.from_rater(rater.in_encoder(NETWORK, ONE))


def vectors(size):
  return rater.in_decoder(NETWORK, ONE, head=rater.linear(size))


WITH_OTHERS = {
  'head': (general_preference.from_rater(vectors(2), general_preference.skew_blocks), 'head'),
  'tastes': (voter_preference.from_rater(vectors(3), 4, 2), 'head, voters'),
}


@pytest.mark.parametrize('name', WITH_OTHERS)
def test_models_with_weights_besides_their_networks(name):
  model, own = WITH_OTHERS[name]
  with pytest.raises(ValueError, match=rf'PreferenceModel has others \({own}\): train it with'):
    checks.check_model(model, NETWORK)
  judge = functools.partial(preference_model.preference_fn, model)
  method = functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.3)
  with pytest.raises(ValueError, match=r'asks for others \(.(network|voters).\): give it a head'):
    checks.check_feedback(method, judge, NETWORK)


def test_a_reward_with_a_head_of_its_own():
  model = reward_model.from_rater(rater.in_encoder(NETWORK, ONE, head=rater.linear()))
  reward = functools.partial(reward_model.reward_fn, model)
  with pytest.raises(ValueError, match='asks for others'):
    checks.check_feedback(functools.partial(algorithms.rlhf, tau=0.1), reward, NETWORK)


@pytest.mark.parametrize('model', [POLICY, PAIRS, REWARD], ids=['policy', 'pairs', 'reward'])
def test_models_of_a_network_alone(model):
  checks.check_model(model, NETWORK)


def test_feedback_of_a_network_alone():
  judge = functools.partial(preference_model.preference_fn, PAIRS)
  checks.check_feedback(functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.3), judge, NETWORK)
  reward = functools.partial(reward_model.reward_fn, REWARD)
  checks.check_feedback(functools.partial(algorithms.rlhf, tau=0.1), reward, NETWORK)


def test_maximin_needs_annotators():
  judge = preference_model.preference_fn(PAIRS, None)
  apart = AllPairsJudge(judge, None, lambda *args: None)
  make = functools.partial(algorithms.blackwell_pg, POLICY, tau=0.1)
  with pytest.raises(ValueError, match='takes annotators apart, which no judge of a network alone'):
    checks.check_annotators(make(judge), judge)
  checks.check_annotators(make(apart), apart)
  checks.check_annotators(algorithms.sft(POLICY), None)
