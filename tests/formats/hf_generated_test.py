"""What decoder-only models write greedily is what `transformers` writes; and in bfloat16 they err no more than its own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.formats import hf
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding
from nlhf_jax.types import Prompts
from tests.formats import golden_models
from tests.formats.golden_models import DECODERS, GOLDEN


def _greedy(family: str, prompts: np.ndarray, length: int) -> np.ndarray:
  """In the model's own ids, 0 after an end."""
  network, params = golden_models.load(GOLDEN / 'hf' / family)
  moved = hf.moved_ids(network.config)
  theirs, ours = np.arange(24), np.arange(24)
  theirs[list(moved)], ours[list(moved.values())] = list(moved.values()), list(moved)
  tokens = jnp.asarray(np.where(prompts > 0, ours[prompts], 0).astype(np.int32))
  sample = policy.from_network(network, decoding.Sampling(length, temperature=0)).sample
  inputs = Prompts(tokens, jnp.arange(len(prompts)))
  rollout = jax.jit(lambda *args: sample(*args))(params, inputs, jax.random.key(0))
  return np.where(rollout.mask, theirs[np.asarray(rollout.tokens)], 0)


@pytest.mark.parametrize('family', DECODERS)
def test_recorded_texts(family):
  """Token for token, and to the same ends."""
  with np.load(GOLDEN / 'hf' / family / 'generated.npz', allow_pickle=False) as golden:
    found = _greedy(family, golden['prompts'], golden['greedy'].shape[1])
    np.testing.assert_array_equal(found, golden['greedy'])


@pytest.mark.parametrize('family', DECODERS)
def test_live_texts(family):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  golden = golden_models.script('make_hf_generated')
  seed = int(np.random.default_rng().integers(2**31))
  prompts, texts = golden.make_texts(golden.load(family), seed)
  np.testing.assert_array_equal(_greedy(family, prompts, texts.shape[1]), texts)


class Distances(NamedTuple):
  """Differences of logits."""

  # Ours in bfloat16 and theirs in bfloat16, from theirs in float32; and of the two from each other.
  ours: np.ndarray
  theirs: np.ndarray
  apart: np.ndarray


def distances(family: str) -> Distances:
  """On the inputs of logits.npz."""
  directory = GOLDEN / 'hf' / family
  network = hf.network(directory, dtype='bfloat16')
  params = hf.load(directory, golden_models.shapes(network))
  with (
    np.load(directory / 'logits.npz', allow_pickle=False) as golden,
    np.load(directory / 'generated.npz', allow_pickle=False) as generated,
  ):
    exact, theirs = golden['logits'], generated['bfloat16']
    ours = golden_models.logits(network, params, golden['prompts'], golden['responses'])
  return Distances(ours - exact, theirs - exact, ours - theirs)


@pytest.mark.parametrize('family', DECODERS)
def test_bfloat16_is_as_close_to_float32_as_theirs(family):
  """Both round at other places, so that neither is the other's truth: float32 is.

  By the root of the mean square, since the largest of some hundred errors of this kind is a matter of chance.
  """
  found = distances(family)
  ours, theirs = (np.sqrt(np.mean(np.square(x))) for x in (found.ours, found.theirs))
  # It is not computed in float32 either.
  assert 1e-4 < ours <= 2 * theirs
