"""A rater for little data: a response is the set of its tokens, each with what the prompt tells of it.

v(x, y) = Σ_{w in y, once each} g(e_w, φ(w, x)) + W h(x, y)

g is a small network with an embedding e_w of the token and its place in the prompt φ: how often it occurs there, in how many
segments (such as sentences behind markers), where it comes first, and the mean embedding of the segment that it first comes in;
beside what is known of the token itself, such as its frequency. h are lengths of the response. A transformer must learn all this
from votes before it can learn a taste; on a few thousand texts it does not get that far.

Source: Zaheer et al. (2017), arXiv:1703.06114 (sums over the elements of a set).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax.arguments import Count, NonNegative
from nlhf_jax.models.rater import Rater, Render, as_written
from nlhf_jax.types import EOS, Params, PRNGKey, Prompts

# Lengths of a response: tokens, their logarithm, different ones, those that several segments share, their places.
_NUM_LENGTHS = 5
# What the prompt tells of a token.
_NUM_PLACES = 5
# Of a sum over some dozens of tokens, so that scores start at about 1.
_SCALE = 0.2


def rater(
  token_features: Float[np.ndarray, 'V F'],
  num_features: Count | None = 16,
  *,
  min_frequency: NonNegative = 0.5,
  embedding_size: Count = 8,
  hidden_size: Count = 64,
  separators: tuple[int, ...] = (),
  render: Render = as_written,
) -> Rater:
  """A rater of one response, which gives a vector.

  Args:
    token_features: what is known of each token, its frequency in [0, 1] first (`data.corpora.token_features`).
    num_features: of the vector; None: one number, such as a reward.
    min_frequency: the tokens from this on have an embedding of their own, the rarer ones share one.
    embedding_size: of a token, and of a segment.
    hidden_size: of g.
    separators: tokens before which the prompt is cut into segments.
    render: turns responses into what raters read.
  """

  width = 1 if num_features is None else num_features
  frequent = token_features[:, 0] >= min_frequency
  num_own = int(frequent.sum())
  # Of each token; the last embedding is shared.
  own = jnp.asarray(np.where(frequent, np.cumsum(frequent) - 1, num_own), jnp.int32)
  features_of = jnp.asarray(token_features, jnp.float32)

  sizes = _Sizes(num_own, embedding_size, token_features.shape[1], hidden_size, width)
  init = functools.partial(_init, sizes)

  def score(params: Params, prompts: Prompts, *responses: Int[Array, 'N R']):
    (tokens,) = responses
    text, size = prompts.tokens, prompts.tokens.shape[0]
    of_text = _places(text, separators)
    context = _segment_means(params['segment'][own[text]], of_text['segment'], of_text['word'])
    rows = tokens.reshape(size, -1, tokens.shape[-1])
    counted = _first_occurrences(rows)
    known, take = _look_up(rows, text, of_text['word'])
    found = {name: take(of_text[name]) for name in ('count', 'num_segments', 'first')}
    context = jnp.where(known[..., None], take(context), 0)
    parts = [params['token'][own[rows]], context, _describe(found, known), features_of[rows]]
    features = jnp.concatenate(parts, axis=-1)
    hidden = jax.nn.gelu(features @ params['hidden']['kernel'] + params['hidden']['bias'])
    of_tokens = jnp.sum(jnp.where(counted[..., None], hidden @ params['output'], 0), axis=2)
    vectors = _SCALE * of_tokens + _lengths(rows, counted, found) @ params['lengths']
    shape = () if num_features is None else (num_features,)
    return vectors.reshape(tokens.shape[0], *shape)

  def axes():
    shapes = jax.eval_shape(init, jax.random.PRNGKey(0))
    return jax.tree.map(lambda x: (None,) * x.ndim, shapes)

  return Rater(init, score, axes, render, num_responses=1)


class _Sizes(NamedTuple):
  num_own: int
  embedding: int
  features: int
  hidden: int
  width: int


def _init(sizes: _Sizes, rng: PRNGKey) -> Params:
  rngs = jax.random.split(rng, 5)
  normal = lambda key, *shape, scale=1.0: scale * jax.random.normal(key, shape)
  size = 2 * sizes.embedding + _NUM_PLACES + sizes.features
  return {
    'token': normal(rngs[0], sizes.num_own + 1, sizes.embedding, scale=0.1),
    'segment': normal(rngs[1], sizes.num_own + 1, sizes.embedding, scale=0.3),
    'hidden': {
      'kernel': normal(rngs[2], size, sizes.hidden, scale=size**-0.5),
      'bias': jnp.zeros(sizes.hidden),
    },
    'output': normal(rngs[3], sizes.hidden, sizes.width, scale=sizes.hidden**-0.5),
    'lengths': normal(rngs[4], _NUM_LENGTHS, sizes.width, scale=0.3),
  }


def _look_up(
  rows: Int[Array, 'B k R'], text: Int[Array, 'B S'], word: Bool[Array, 'B S']
) -> tuple[Bool[Array, 'B k R'], Callable[[Array], Array]]:
  """Whether the prompt has each token, and what takes a value of the prompt's tokens [B, S] to where each first comes."""
  equal = (rows[..., None] == text[:, None, None]) & word[:, None, None]
  at = jnp.argmax(equal, axis=-1)
  return jnp.any(equal, axis=-1), lambda x: jax.vmap(lambda values, places: values[places])(x, at)


def _describe(found: dict[str, Array], known: Bool[Array, 'B k R']) -> Float[Array, 'B k R places']:
  """What the prompt tells of each token."""
  segments = jnp.maximum(found['num_segments'], 1)
  place = [
    jnp.log(jnp.maximum(found['count'], 1)),
    jnp.log(segments),
    segments > 1,
    found['first'],
    known,
  ]
  return jnp.stack([x.astype(jnp.float32) for x in place], axis=-1)


def _lengths(
  rows: Int[Array, 'B k R'], counted: Bool[Array, 'B k R'], found: dict[str, Array]
) -> Float[Array, 'B k lengths']:
  """Of each response, in units in which they are about 1."""
  total = lambda x: jnp.sum(jnp.where(counted, x, 0), axis=-1)
  length = jnp.sum(rows > EOS, axis=-1)
  lengths = [
    length / 20,
    jnp.log1p(length),
    total(1.0) / 20,
    total(found['num_segments'] > 1) / 10,
    total(found['first']) / 10,
  ]
  return jnp.stack(lengths, axis=-1)


def _first_occurrences(rows: Int[Array, 'B k R']) -> Bool[Array, 'B k R']:
  """True where a token is none of padding and EOS and has not come before in its row."""
  size = rows.shape[-1]
  before = jnp.arange(size)[:, None] > jnp.arange(size)
  again = jnp.any((rows[..., None] == rows[..., None, :]) & before, axis=-1)
  return (rows > EOS) & ~again


def _places(text: Int[Array, 'B S'], separators: tuple[int, ...]) -> dict[str, Array]:
  """Of every token of a prompt: whether it is a word, its segment, its count, the number of segments with it, its first place."""
  separator = jnp.isin(text, jnp.array(separators, jnp.int32))
  word = (text > EOS) & ~separator
  segment = jnp.cumsum(separator, axis=-1)
  equal = (text[:, :, None] == text[:, None]) & word[:, :, None] & word[:, None]
  size = text.shape[-1]
  before = jnp.arange(size)[:, None] > jnp.arange(size)
  same = segment[:, :, None] == segment[:, None]
  first_of_segment = word & ~jnp.any(equal & same & before, axis=-1)
  return {
    'word': word,
    'segment': segment,
    'count': jnp.sum(equal, axis=-1),
    'num_segments': jnp.sum(equal & first_of_segment[:, None], axis=-1),
    'first': jnp.argmax(equal, axis=-1) / size,
  }


def _segment_means(
  embedded: Float[Array, 'B S E'], segment: Int[Array, 'B S'], word: Bool[Array, 'B S']
) -> Float[Array, 'B S E']:
  """Of every token, the mean embedding of the words of its segment."""
  same = (segment[:, :, None] == segment[:, None]) & word[:, None]
  weights = same / jnp.maximum(jnp.sum(same, axis=-1, keepdims=True), 1)
  return weights @ embedded
