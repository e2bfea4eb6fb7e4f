"""Raters: a filled template, read in either layout, scored by a head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import preference_model, rater, reward_model
from nlhf_jax.networks.network import hidden_and_head
from nlhf_jax.types import Prompts
from tests.conftest import tiny_network

VOCAB = 14
TEMPLATE = ((7, 8), (9,), (10,), (), (11, 12))
PROMPTS = [[2, 3, 4, 5], [6]]
RESPONSES = [
  [[2, 3], [4], []],
  [[5, 5], [6], [2, 4]],
  [[3], [2, 2, 2], [4]],
  [[], [3], [5, 6]],
]


def _pad(rows, length):
  tokens = np.zeros((len(rows), length), np.int32)
  for row, ids in zip(tokens, rows, strict=True):
    row[: len(ids)] = ids
  return jnp.asarray(tokens)


@pytest.fixture(scope='module')
def network():
  return tiny_network(VOCAB)


@pytest.fixture(scope='module')
def params(network):
  return jax.jit(rater.in_encoder(network, TEMPLATE).init)(jax.random.PRNGKey(0))


@pytest.fixture(scope='module')
def prompts():
  return Prompts(_pad(PROMPTS, 6), jnp.arange(2))


@pytest.fixture(scope='module')
def responses():
  """Three responses to a row, two rows to a prompt, each with EOS."""
  columns = zip(*RESPONSES, strict=True)
  return [_pad([[*ids, 1] for ids in column], 5) for column in columns]


def _pass(network, params, encoder_tokens, decoder_tokens):
  """Last hidden state and logits of one row, given as lists, without any padding."""
  inputs = jnp.array([[0, *decoder_tokens]])
  hidden, to_logits = hidden_and_head(
    network, params, jnp.array([encoder_tokens]), inputs, jnp.ones_like(inputs)
  )
  return hidden[0, -1], to_logits(hidden)[0, -1]


def _parts(row):
  """The text with what precedes it, and what follows it, of one row of RESPONSES."""
  first, *rest = TEMPLATE
  after = [*rest[0]]
  for response, piece in zip(RESPONSES[row], rest[1:], strict=True):
    after += [*response, *piece]
  return [*first, *PROMPTS[row // 2]], after


def test_in_encoder_scores_the_filled_template(network, params, prompts, responses):
  """Against a pass of each row alone, its template filled by hand."""
  found = rater.in_encoder(network, TEMPLATE).score(params, prompts, *responses)
  for row, score in enumerate(found):
    before, after = _parts(row)
    assert score == pytest.approx(float(_pass(network, params, before + after, [])[1][1]), abs=1e-5)


def test_in_decoder_scores_the_filled_template(network, params, prompts, responses):
  found = rater.in_decoder(network, TEMPLATE).score(params, prompts, *responses)
  for row, score in enumerate(found):
    assert score == pytest.approx(float(_pass(network, params, *_parts(row))[1][1]), abs=1e-5)
  assert np.std(found) > 1e-3


def test_vocabulary_row_is_the_logit_of_its_token(network, params, prompts, responses):
  model = rater.in_decoder(network, TEMPLATE, head=rater.vocabulary_row(5))
  found = model.score(params, prompts, *responses)
  expected = [float(_pass(network, params, *_parts(row))[1][5]) for row in range(4)]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def _linear_head():
  init = lambda rng, features: {'kernel': jax.random.normal(rng, (features,))}
  return rater.Head(lambda params, hidden, to_logits: hidden @ params['kernel'], init)


def test_head_parameters_stand_beside_the_networks(network, prompts, responses):
  """A linear head: its kernel has the size of the hidden state, and both are trained."""
  model = rater.in_decoder(network, TEMPLATE, head=_linear_head())
  params = jax.jit(model.init)(jax.random.PRNGKey(1))
  assert set(params) == {'network', 'head'}
  found = model.score(params, prompts, *responses)
  for row, score in enumerate(found):
    hidden, _ = _pass(network, params['network'], *_parts(row))
    assert score == pytest.approx(float(hidden @ params['head']['kernel']), abs=1e-5)
  gradient = jax.grad(lambda p: model.score(p, prompts, *responses).sum())(params)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient['head']))
  assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient['network']))


@pytest.mark.parametrize('head', [rater.EOS_LOGIT, _linear_head()])
def test_axes_name_every_parameter(network, head):
  model = rater.in_encoder(network, TEMPLATE, head=head)
  shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
  ranks = jax.tree.map(len, model.axes(), is_leaf=lambda x: isinstance(x, tuple))
  assert ranks == jax.tree.map(lambda x: x.ndim, shapes)


def test_parameters_without_a_head_are_the_networks(network, params):
  """So that checkpoints of pre-trained networks can start a rater."""
  dummy = jnp.ones((1, 2), jnp.int32)
  variables = jax.eval_shape(lambda: network.init(jax.random.PRNGKey(0), dummy, dummy, dummy))
  assert jax.tree.structure(params) == jax.tree.structure(variables['params'])


def test_template_without_a_response_is_refused(network):
  with pytest.raises(ValueError, match='one before each response and one at the end, got 2'):
    rater.in_encoder(network, ((2,), (3,)))


def test_template_for_another_number_of_responses_is_refused(network):
  one, two = ((2,), (3,), (4,)), ((2,), (3,), (4,), (5,))
  with pytest.raises(ValueError, match=r'takes 1: .* four pieces'):
    preference_model.from_rater(rater.in_decoder(network, one))
  with pytest.raises(ValueError, match=r'takes 2: .* three pieces'):
    reward_model.from_rater(rater.in_decoder(network, two))
