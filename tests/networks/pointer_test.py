"""The pointer and sums of sentences against loops in NumPy; tests/networks/{t5,network}_test.py have them inside of T5."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from nlhf_jax.formats import hf_models
from nlhf_jax.models import rater
from nlhf_jax.networks import pointer, sizes
from nlhf_jax.types import PAD
from tests import tiny

SIZE, VOCAB = 4, 9
PROMPTS = jnp.array([[3, 4, 3, 6, PAD], [7, 8, 5, 5, 5]])
# Two responses to each prompt.
INPUTS = jnp.array([[PAD, 3, 4], [PAD, 5, 6], [PAD, 5, 7], [PAD, 3, 8]])
MASK = (PROMPTS != PAD)[:, None, None]


@pytest.fixture(scope='module')
def bound():
  """A pointer with random weights, encoded prompts and hidden states."""
  keys = jax.random.split(jax.random.key(0), 3)
  encoded = jax.random.normal(keys[0], (*PROMPTS.shape, SIZE))
  hidden = 2 * jax.random.normal(keys[1], (*INPUTS.shape, SIZE))
  module = pointer.Pointer(SIZE)

  def call(module):
    source = module.source(encoded)
    return module.read(source, PROMPTS, INPUTS, MASK), _logits(module, source, hidden)

  params = jax.jit(lambda key: module.init(key, method=call)['params'])(keys[2])
  return module.bind({'params': params}), encoded, hidden


def _logits(module, source, hidden):
  return module.logits(source, PROMPTS, hidden, MASK, VOCAB)


def test_pointer_logits(bound):
  """log Σ exp(score) over the places of a token; what a prompt lacks, and padding, has no chance."""
  module, encoded, hidden = bound
  found = np.asarray(_logits(module, module.source(encoded), hidden))
  query, key = np.asarray(module.query(hidden)), np.asarray(module.key(encoded))
  for row, t in np.ndindex(*INPUTS.shape):
    scores = key[row // 2] @ query[row, t] / SIZE**0.5
    for token in range(VOCAB):
      places = np.flatnonzero((np.asarray(PROMPTS[row // 2]) == token) & (token != PAD))
      if places.size:
        expected = np.log(np.exp(scores[places]).sum())
        np.testing.assert_allclose(found[row, t, token], expected, rtol=1e-5, atol=1e-5)
      else:
        assert found[row, t, token] < -1e9


def test_selective_read(bound):
  """The mean of what stands where the prompt has the input."""
  module, encoded, _ = bound
  source = module.source(encoded)
  found = np.asarray(module.read(source, PROMPTS, INPUTS, MASK))
  for row, t in np.ndindex(*INPUTS.shape):
    token = int(INPUTS[row, t])
    places = np.flatnonzero((np.asarray(PROMPTS[row // 2]) == token) & (token != PAD))
    expected = np.asarray(source.value)[row // 2, places].sum(axis=0) / max(places.size, 1)
    np.testing.assert_allclose(found[row, t], expected, atol=1e-6)


def test_gradient_of_the_pointer(bound):
  """Finite also where a token's scores lie far below the highest."""
  module, encoded, hidden = bound
  source = module.source(encoded)
  mean = lambda hidden: jnp.mean(jnp.tanh(_logits(module, source, jnp.asarray(hidden))))
  jax.test_util.check_grads(mean, (hidden,), order=1, modes=['rev'], rtol=2e-2)
  assert np.isfinite(jax.grad(mean)(300 * hidden)).all()


def test_sums_of_sentences():
  """A separator gets the sum of what stands before the next one, through the weights; all else stays."""
  x = jax.random.normal(jax.random.key(1), (*PROMPTS.shape, SIZE))
  module = pointer.Gather((3, 7), SIZE)
  params = jax.jit(module.init)(jax.random.key(2), x, PROMPTS, MASK)['params']
  added = module.apply({'params': params}, x, PROMPTS, MASK) - x
  expected = np.zeros(x.shape, np.float32)
  for row, place, inside in [(0, 0, [1]), (0, 2, [3]), (1, 0, [1, 2, 3, 4])]:
    expected[row, place] = x[row, inside].sum(axis=0) @ params['gather']['kernel']
  np.testing.assert_allclose(added, expected, atol=1e-5)


@pytest.mark.parametrize('changes', [{'pointer': True}, {'separators': (3, 7)}], ids=str)
def test_no_export_of_what_others_lack(changes):
  config = sizes.config('t5_1_1_tiny', **changes)
  with pytest.raises(ValueError, match='T5 of Hugging Face has no pointer'):
    hf_models.config_to_json(config)


def test_no_linear_head_on_a_pointer():
  """What the prompt lacks has a logit of −1e10: nothing to be multiplied with."""
  network, template = tiny.t5_network(pointer=True), ((2,), (3,), (4,))
  with pytest.raises(ValueError, match='reads no pointer'):
    rater.in_decoder(network, template, head=rater.linear())
