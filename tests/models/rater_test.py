"""Raters: a filled template, read in either layout, scored by a head."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import preference_model, rater, reward_model
from nlhf_jax.networks.network import hidden_and_head
from nlhf_jax.types import Prompts
from tests.tiny import t5_network

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
  return t5_network(vocab_size=VOCAB)


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


@functools.partial(jax.jit, static_argnums=0)
def _pass(network, params, encoder_tokens, inputs):
  hidden, to_logits = hidden_and_head(
    network, params, encoder_tokens, inputs, jnp.ones_like(inputs)
  )
  return hidden[0, -1], to_logits(hidden)[0, -1]


def _passes(network, params, layout):
  """Last hidden state and logits of each row alone: its template filled by hand, without any padding."""
  results = []
  for row, responses in enumerate(RESPONSES):
    first, second, *rest = TEMPLATE
    before, after = [*first, *PROMPTS[row // 2]], [*second]
    for response, piece in zip(responses, rest, strict=True):
      after += [*response, *piece]
    read, written = (before + after, []) if layout == 'encoder' else (before, after)
    results.append(_pass(network, params, jnp.array([read]), jnp.array([[0, *written]])))
  return tuple(np.stack(column) for column in zip(*results, strict=True))


def _score(model, params, prompts, responses):
  return jax.jit(model.score)(params, prompts, *responses)


@pytest.fixture(scope='module')
def in_decoder_by_hand(network, params):
  return _passes(network, params, 'decoder')


def test_in_encoder_scores_the_filled_template(network, params, prompts, responses):
  found = _score(rater.in_encoder(network, TEMPLATE), params, prompts, responses)
  _, logits = _passes(network, params, 'encoder')
  np.testing.assert_allclose(found, logits[:, 1], atol=1e-5)
  assert np.std(found) > 1e-3


def test_in_decoder_scores_the_filled_template(
  network, params, prompts, responses, in_decoder_by_hand
):
  found = _score(rater.in_decoder(network, TEMPLATE), params, prompts, responses)
  np.testing.assert_allclose(found, in_decoder_by_hand[1][:, 1], atol=1e-5)
  assert np.std(found) > 1e-3


def test_vocabulary_row_is_the_logit_of_its_token(
  network, params, prompts, responses, in_decoder_by_hand
):
  model = rater.in_decoder(network, TEMPLATE, head=rater.vocabulary_row(5))
  found = _score(model, params, prompts, responses)
  np.testing.assert_allclose(found, in_decoder_by_hand[1][:, 5], atol=1e-5)


def _linear_head():
  init = lambda rng, features: {'kernel': jax.random.normal(rng, (features,))}
  return rater.Head(lambda params, hidden, to_logits: hidden @ params['kernel'], init)


def test_linear_head_reads_the_last_hidden_state(
  network, params, prompts, responses, in_decoder_by_hand
):
  model = rater.in_decoder(network, TEMPLATE, head=_linear_head())
  kernel = jnp.linspace(-1, 1, 8)
  both = {'network': params, 'head': {'kernel': kernel}}
  found = _score(model, both, prompts, responses)
  np.testing.assert_allclose(found, in_decoder_by_hand[0] @ kernel, atol=1e-5)


def test_head_parameters_stand_beside_the_networks(network, prompts, responses):
  """A kernel of the hidden state's size; both are trained."""
  model = rater.in_decoder(network, TEMPLATE, head=_linear_head())
  params = jax.jit(model.init)(jax.random.PRNGKey(1))
  assert set(params) == {'network', 'head'}
  assert params['head']['kernel'].shape == (8,)
  total = lambda params: model.score(params, prompts, *responses).sum()
  gradient = jax.jit(jax.grad(total))(params)
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
