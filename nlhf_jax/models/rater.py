"""A network as a rater: it reads a prompt and some responses in a template, and a head gives one number, or a vector.

A rater is a template (`data.prompts` has two), a layout, which says what the encoder and what the decoder reads, and a
head. Preference and reward model are a few lines on it.

Source: Munos et al. (2024), arXiv:2312.00886, appendix (rater and reward prompt).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.arguments import Count, CountOrZero, Positive
from nlhf_jax.networks import axes, parameters
from nlhf_jax.networks.network import Network, hidden_and_head
from nlhf_jax.types import EOS, PAD, Params, PRNGKey, Prompts, Template


@runtime_checkable
class Render(Protocol):
  """What raters read for a response, where that is not the response itself."""

  def __call__(self, prompts: Prompts, responses: Int[Array, 'N T']) -> Int[Array, 'N R']: ...


@runtime_checkable
class ScoreFn(Protocol):
  """What the head makes of each row; a row has the responses that the template takes, rendered."""

  def __call__(
    self, params: Params, prompts: Prompts, *responses: Int[Array, 'N R']
  ) -> Float[Array, 'N *features']: ...


@runtime_checkable
class HeadScoreFn(Protocol):
  """One number for each row, or a vector, from what the network ends with."""

  def __call__(
    self,
    params: Params | None,
    hidden: Float[Array, 'N E'],
    to_logits: Callable[[Float[Array, 'N T E']], Float[Array, 'N T V']],
  ) -> Float[Array, 'N *features']: ...


class Head(NamedTuple):
  """How a number, or a vector, is made of the hidden state after the last token."""

  # (its parameters, or None, hidden state, the network's own output layer) -> scores.
  score: HeadScoreFn
  # (rng, E) -> its parameters. None: it has none.
  init: Callable[[PRNGKey, int], Params] | None = None
  # (its parameters, hidden state before the first token of a response) -> numbers that stand behind the vector, alike for all
  # responses to a prompt. None: there are none.
  gate: Callable[[Params, Float[Array, 'N E']], Float[Array, 'N gates']] | None = None


class Rater(NamedTuple):
  """A scorer of one or more responses to one prompt."""

  # The network's parameters, or {'network': …, 'head': …} where the head has some of its own.
  init: Callable[[PRNGKey], Params]
  # Takes what `render` gives.
  score: ScoreFn
  # Logical axes of its parameters, as a policy's.
  axes: Callable[[], Any]
  render: Render
  num_responses: int


def as_written(prompts: Prompts, responses: Int[Array, 'N T']) -> Int[Array, 'N T']:
  """Raters read the response itself."""
  del prompts
  return responses


def vocabulary_row(token_id: CountOrZero = EOS) -> Head:
  """The logit of one entry of the vocabulary, so that a pre-trained network needs no new weights."""
  return Head(lambda params, hidden, to_logits: to_logits(hidden[:, None])[:, 0, token_id])


EOS_LOGIT = vocabulary_row()


def answer_logits(first_id: CountOrZero, second_id: CountOrZero) -> Head:
  """Log-odds of two answers, such as the letters that a template asks for: an untrained rater is then an LLM judge.

  Args:
    first_id: the token that says that the first response is better.
    second_id: the one that says that the second is.
  """

  def score(params, hidden, to_logits):
    logits = to_logits(hidden[:, None])[:, 0]
    return logits[:, first_id] - logits[:, second_id]

  return Head(score)


def linear(num_features: Count | None = None, scale: Positive = 1.0) -> Head:
  """A linear map of the hidden state, with weights of its own: to a vector, or (None) to one number.

  Args:
    num_features: of the vector.
    scale: standard deviation of the scores of a hidden state of unit variance, before training.
  """

  def init(rng: PRNGKey, size: int) -> Params:
    shape = (size,) if num_features is None else (size, num_features)
    return {'kernel': jax.random.normal(rng, shape) * scale / jnp.sqrt(size)}

  return Head(lambda params, hidden, to_logits: hidden @ params['kernel'], init)


class Frame(NamedTuple):
  """What a prompt has around its words, such as a chat template's; a template that has its own takes the words alone."""

  # Tokens.
  before: CountOrZero = 0
  after: CountOrZero = 0


NO_FRAME = Frame()


def gated_linear(num_features: Count, num_gates: Count, scale: Positive = 1.0) -> Head:
  """`linear`, and behind the vector the weights that the prompt gives its parts: λ = k softmax(W h_x), with mean 1.

  h_x is the state before the response: of a decoder-only network after the prompt's last token, of an encoder-decoder after
  the start token.

  Args:
    num_features: of the vector, without λ.
    num_gates: k.
    scale: of `linear`; W h_x has standard deviation 1 before training.
  """
  vector = linear(num_features, scale)

  def init(rng: PRNGKey, size: int) -> Params:
    rng, gate_rng = jax.random.split(rng)
    weights = jax.random.normal(gate_rng, (size, num_gates)) / jnp.sqrt(size)
    return vector.init(rng, size) | {'gate': weights}

  def gate(params: Params, hidden: Array) -> Array:
    return num_gates * jax.nn.softmax(hidden @ params['gate'], axis=-1)

  return Head(vector.score, init, gate)


def in_encoder(
  network: Network,
  template: Template,
  *,
  head: Head = EOS_LOGIT,
  render: Render = as_written,
  frame: Frame = NO_FRAME,
) -> Rater:
  """The paper's layout: the encoder reads the filled template, the decoder its start token alone.

  Args:
    network: whose last hidden state the head scores.
    template: the pieces around the text and each of the responses.
    head: from hidden state to score.
    render: turns responses into what raters read.
    frame: taken off the prompts.

  Raises:
    ValueError: the template takes no response, or the head cannot read this network or this layout.
  """
  if head.gate is not None:
    raise ValueError(
      'A head with a gate reads the prompt before the response, but in_encoder reads both at once: take in_decoder.'
    )

  def score(params, prompts, *responses):
    rows = responses[0].shape[0]
    text = jnp.repeat(_words(prompts, frame), rows // prompts.tokens.shape[0], axis=0)
    tokens = join(_fill(template, text, responses))
    return _score_last(network, head, params, tokens, jnp.zeros((rows, 0), jnp.int32))

  return _make(network, template, head, render, score)


def in_decoder(
  network: Network,
  template: Template,
  *,
  head: Head = EOS_LOGIT,
  render: Render = as_written,
  frame: Frame = NO_FRAME,
) -> Rater:
  """A cheaper layout: the encoder reads the text, once for all responses and orders; the decoder reads the rest.

  Both together read what the encoder of `in_encoder` reads. Arguments and errors as there.
  """

  def score(params, prompts, *responses):
    before, text, *rest = _fill(template, _words(prompts, frame), responses)
    return _score_last(network, head, params, join([before, text]), join(rest))

  return _make(network, template, head, render, score)


def _make(
  network: Network, template: Template, head: Head, render: Render, score: ScoreFn
) -> Rater:
  num_responses = len(template) - 2
  if num_responses < 1:
    raise ValueError(
      f'A template has a piece before the text, one before each response and one at the end, got {len(template)}: '
      'take one of data.prompts.'
    )
  init, names = parameters.init(network), functools.partial(axes.logical_axes, network)
  if head.init is not None:
    if getattr(network.config, 'pointer', False):
      raise ValueError(
        'A head with weights of its own reads no pointer: set T5Config.pointer = False.'
      )
    init, names = _with_head(network, head, init, names)
  return Rater(init, score, names, render, num_responses)


def _with_head(network: Network, head: Head, init, names):
  """Initialisation and logical axes of a network and a head that has parameters, which are never sharded."""
  size = functools.cache(functools.partial(_num_features, network))

  def init_both(rng):
    network_rng, head_rng = jax.random.split(rng)
    return {'network': init(network_rng), 'head': head.init(head_rng, size())}

  def names_of_both():
    shapes = jax.eval_shape(lambda: head.init(jax.random.PRNGKey(0), size()))
    return {'network': names(), 'head': jax.tree.map(lambda x: (None,) * x.ndim, shapes)}

  return init_both, names_of_both


def _num_features(network: Network) -> int:
  """Of a hidden state, which a network's configuration need not say."""
  one = jnp.ones((1, 1), jnp.int32)
  read = lambda params: hidden_and_head(network, params, one, one, one)[0]
  return jax.eval_shape(read, axes.shapes(network)).shape[-1]


def _score_last(
  network: Network,
  head: Head,
  params: Params,
  encoder_tokens: Int[Array, 'B S'],
  decoder_tokens: Int[Array, 'N T'],
) -> Float[Array, 'N *features']:
  """The head's score of the hidden state after the decoder has read all its tokens."""
  weights, own = (params, None) if head.init is None else (params['network'], params['head'])
  inputs = jnp.pad(decoder_tokens, [(0, 0), (1, 0)], constant_values=PAD)  # The start token.
  targets = jnp.ones_like(inputs)
  hidden, to_logits = hidden_and_head(network, weights, encoder_tokens, inputs, targets)
  last = jnp.sum(decoder_tokens != PAD, axis=-1)
  at_end = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  scores = head.score(own, at_end, to_logits)
  if head.gate is None:
    return scores
  return jnp.concatenate([scores, head.gate(own, hidden[:, 0])], axis=-1)


def _words(prompts: Prompts, frame: Frame) -> Int[Array, 'B S']:
  """Prompts without their frames, PAD in their place."""
  tokens = prompts.tokens
  place = jnp.arange(tokens.shape[1])
  end = jnp.sum(tokens != PAD, axis=1, keepdims=True) - frame.after
  return jnp.where((place >= frame.before) & (place < end), tokens, PAD)


def _fill(
  template: Template, text: Int[Array, 'rows S'], responses: tuple[Int[Array, 'N _'], ...]
) -> list[Int[Array, '_ _']]:
  """Pieces, text and responses in their order, still apart, the responses without EOS."""
  texts = [text, *(jnp.where(x == EOS, PAD, x) for x in responses)]
  result = []
  for piece, tokens in zip(template, [*texts, None], strict=True):
    rows = (texts[-1] if tokens is None else tokens).shape[0]
    result.append(jnp.broadcast_to(jnp.array(piece, jnp.int32), (rows, len(piece))))
    if tokens is not None:
      result.append(tokens)
  return result


def join(pieces: list[Int[Array, 'N _']]) -> Int[Array, 'N T']:
  """One row of tokens for each, without the gaps that padding leaves between the pieces."""
  tokens = jnp.concatenate(pieces, axis=-1)
  order = jnp.argsort(tokens == PAD, axis=-1, stable=True)
  return jnp.take_along_axis(tokens, order, axis=-1)
