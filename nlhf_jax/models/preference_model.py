"""P(y ≻ y'|x), antisymmetric by construction.

A network scores an ordered pair with one output logit s(x, y, y'); the model is logit P = ½[s(x, y, y') − s(x, y', y)].
Both orders run in one batch. What the network itself makes of the order, its position bias, cancels here and is
reported by the loss. Unlike a reward difference it can hold a cycle.

Source: Munos et al. (2024), arXiv:2312.00886, section 3.2 and appendix (rater prompt).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nlhf_jax import losses
from nlhf_jax.networks import axes
from nlhf_jax.networks import network
from nlhf_jax.types import Comparison, Losses, Params, PreferenceFn, PRNGKey, Prompts

# The paper's prompt, in the pieces between which the text and the two summaries stand.
RATER_PROMPT = (
  'You are an expert summary rater. Given a piece of text and two of its possible summaries, output 1 or 2 to '
  'indicate which summary is better. Text - ',
  ', Summary 1 - ',
  ', Summary 2 - ',
  '. Preferred Summary -',
)


# What raters read for a response: (prompts, responses [N, T]) -> tokens [N, R].
Render = Callable[[Prompts, jax.Array], jax.Array]


def as_written(prompts: Prompts, responses: Int[Array, 'N T']) -> Int[Array, 'N T']:
  """Raters read the response itself."""
  del prompts
  return responses


class RaterPrompt(NamedTuple):
  """The pieces of the rater prompt as token ids, without EOS."""

  before_text: tuple[int, ...]
  before_first: tuple[int, ...]
  before_second: tuple[int, ...]
  after_second: tuple[int, ...]


class PreferenceModel(NamedTuple):
  """A scorer of ordered pairs: `scores` returns s(x, y, y') and s(x, y', y), each [N]."""

  init: Callable[[PRNGKey], Params]
  scores: Callable[..., tuple[jax.Array, jax.Array]]  # (params, prompts, y, y')
  axes: Callable[[], Any] | None = None  # Names of the axes of its parameters; as a policy's.


def in_encoder(
  network: nn.Module,
  prompt: RaterPrompt,
  *,
  render: Render = as_written,
  score_id: int = 1,
  eos_id: int = 1,
) -> PreferenceModel:
  """The paper's layout: the encoder reads the whole rater prompt, the decoder's first output is the score.

  Args:
    network: a Linen module with T5X's call signature.
    prompt: the tokens around text and summaries.
    render: turns responses into what raters read, where that is not the response itself.
    score_id: the vocabulary entry whose logit is s.
    eos_id: dropped from the responses.
  """

  def score(params, prompts, first, second):
    lanes = first.shape[0] // prompts.tokens.shape[0]
    pieces = _fill(prompt, jnp.repeat(prompts.tokens, lanes, axis=0), first, second, eos_id)
    tokens = move_padding_to_end(jnp.concatenate(pieces, axis=-1))
    return first_logit(network, params, tokens, score_id)

  return _model(network, score, render)


def in_decoder(
  network: nn.Module,
  prompt: RaterPrompt,
  *,
  render: Render = as_written,
  score_id: int = 1,
  eos_id: int = 1,
) -> PreferenceModel:
  """A cheaper layout: the encoder reads the text, once for all pairs and orders; the decoder reads the summaries.

  The token sequence is that of `in_encoder`, cut after the text. Arguments as there.
  """

  def score(params, prompts, first, second):
    before, text, *rest = _fill(prompt, prompts.tokens, first, second, eos_id)
    encoder_tokens = move_padding_to_end(jnp.concatenate([before, text], axis=-1))
    tokens = move_padding_to_end(jnp.concatenate(rest, axis=-1))
    return last_logit(network, params, encoder_tokens, tokens, score_id)

  return _model(network, score, render)


def _model(network: nn.Module, score: Callable[..., jax.Array], render: Render) -> PreferenceModel:
  def scores(params, prompts, response, alternative):
    """Both orders as lanes of one batch, [B, orders, k]."""
    num_prompts = prompts.tokens.shape[0]
    response, alternative = render(prompts, response), render(prompts, alternative)
    length = response.shape[-1]
    y, y2 = (x.reshape(num_prompts, -1, length) for x in (response, alternative))
    first, second = jnp.stack([y, y2], axis=1), jnp.stack([y2, y], axis=1)
    both = score(params, prompts, first.reshape(-1, length), second.reshape(-1, length))
    both = both.reshape(num_prompts, 2, -1)
    return both[:, 0].reshape(-1), both[:, 1].reshape(-1)

  return PreferenceModel(axes.init(network), scores, functools.partial(axes.logical_axes, network))


def logit(
  model: PreferenceModel,
  params: Params,
  prompts: Prompts,
  response: Int[Array, 'N T'],
  alternative: Int[Array, 'N T'],
) -> Float[Array, 'N']:
  """log P(y ≻ y'|x) − log P(y' ≻ y|x), to the bit the negative of the swapped pair's.

  Floating point could treat a pair differently in another place of the batch; so each pair is scored in one canonical
  order, and the sign put back. Equal responses get 0.
  """
  sign = _lexicographic_sign(response, alternative)
  swap = (sign < 0)[:, None]
  low = jnp.where(swap, alternative, response)
  high = jnp.where(swap, response, alternative)
  forward, backward = model.scores(params, prompts, low, high)
  return sign * 0.5 * (forward - backward)


def loss(model: PreferenceModel, params: Params, comparison: Comparison) -> Losses:
  """Pairwise cross-entropy of the antisymmetric model, and the raw position bias of its network."""
  forward, backward = model.scores(
    params, comparison.prompts, comparison.response.tokens, comparison.alternative.tokens
  )
  result = losses.pairwise_loss(0.5 * (forward - backward), comparison.preference)
  return result._replace(
    metrics=result.metrics | {'position_bias': position_bias(forward, backward)}
  )


def position_bias(forward: Float[Array, 'N'], backward: Float[Array, 'N']) -> Float[Array, 'N']:
  """How much the raw network favours whatever stands first: ½[σ(s(y, y')) + σ(s(y', y))] − ½, in [−½, ½]."""
  return 0.5 * (jax.nn.sigmoid(forward) + jax.nn.sigmoid(backward)) - 0.5


def preference_fn(model: PreferenceModel, params: Params) -> PreferenceFn:
  """The trained model as a judge; P(y ≻ y') + P(y' ≻ y) is 1 to the last bit."""
  compiled = jax.jit(lambda *args: exact_sigmoid(logit(model, *args)))
  return lambda prompts, response, alternative: compiled(params, prompts, response, alternative)


def exact_sigmoid(x: Float[Array, 'N']) -> Float[Array, 'N']:
  """σ(x) such that σ(x) + σ(−x) is 1 in floating point: the upper half is computed, the lower is 1 minus it."""
  upper = jax.nn.sigmoid(jnp.abs(x))
  return jnp.where(x >= 0, upper, 1 - upper)


def first_logit(
  network: nn.Module, params: Params, encoder_tokens: Int[Array, 'N S'], score_id: int
) -> Float[Array, 'N']:
  """The logit of `score_id` before the decoder has read anything."""
  nothing = jnp.zeros((encoder_tokens.shape[0], 0), jnp.int32)
  return last_logit(network, params, encoder_tokens, nothing, score_id)


def last_logit(
  network: nn.Module,
  params: Params,
  encoder_tokens: Int[Array, 'B S'],
  decoder_tokens: Int[Array, 'N T'],
  score_id: int,
) -> Float[Array, 'N']:
  """The logit of `score_id` after the decoder has read all its tokens (right-padded with 0)."""
  inputs = jnp.pad(decoder_tokens, [(0, 0), (1, 0)])  # The start token.
  hidden, to_logits = hidden_and_head(network, params, encoder_tokens, inputs, jnp.ones_like(inputs))
  last = jnp.sum(decoder_tokens > 0, axis=-1)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
  return to_logits(hidden)[:, 0, score_id]


def move_padding_to_end(tokens: Int[Array, 'N T']) -> Int[Array, 'N T']:
  """Closes the gaps that padding leaves between concatenated pieces; the order of tokens stays."""
  order = jnp.argsort(tokens == 0, axis=-1, stable=True)
  return jnp.take_along_axis(tokens, order, axis=-1)


def drop_eos(tokens: Int[Array, 'N T'], eos_id: int) -> Int[Array, 'N T']:
  return jnp.where(tokens == eos_id, 0, tokens)


def tile(piece: tuple[int, ...], num_rows: int) -> Int[Array, 'N T']:
  """A constant piece of prompt, repeated for every row."""
  return jnp.broadcast_to(jnp.array(piece, jnp.int32), (num_rows, len(piece)))


def _fill(
  prompt: RaterPrompt,
  text: Int[Array, 'B S'],
  first: Int[Array, 'N T'],
  second: Int[Array, 'N T'],
  eos_id: int,
) -> list[Int[Array, 'rows _']]:
  rows = first.shape[0]
  return [
    tile(prompt.before_text, text.shape[0]),
    text,
    tile(prompt.before_first, rows),
    drop_eos(first, eos_id),
    tile(prompt.before_second, rows),
    drop_eos(second, eos_id),
    tile(prompt.after_second, rows),
  ]


def _lexicographic_sign(a: Int[Array, 'N T'], b: Int[Array, 'N T']) -> Float[Array, 'N']:
  """+1 where a comes before b, −1 where after, 0 where they are equal."""
  difference: Bool[Array, 'N T'] = a != b
  first = jnp.argmax(difference, axis=-1)[:, None]
  at = lambda x: jnp.take_along_axis(x, first, axis=-1)[:, 0]
  return jnp.sign(at(b) - at(a)).astype(jnp.float32)
