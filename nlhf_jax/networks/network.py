"""What policies and raters ask of a network, and the functions made of it.

`hidden_and_head` is a pass over complete responses, whose logits need not all be in memory at once; a `Decoder` writes
responses token by token.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import axes, matmul
from nlhf_jax.networks import cache as kv_cache
from nlhf_jax.types import PAD, Params


@runtime_checkable
class StepFn(Protocol):
  """One token of each of L = B · lanes responses, the lanes of a prompt side by side."""

  def __call__(
    self,
    params: Params,
    encoded: Any,
    cache: Any,
    tokens: Int[Array, 'L'],
    positions: Int[Array, 'L'] | None,
    /,
  ) -> tuple[Float[Array, 'L V'], Any]:
    """Logits of the next token, and the cache after it.

    Args:
      params: as `Decoder.weights` makes them.
      encoded: as `Decoder.encode` makes it.
      cache: of the tokens before these.
      tokens: the last of each response; PAD where it begins.
      positions: of these in their responses; None: all lanes began together.
    """
    ...


class Decoder(NamedTuple):
  """A network as pure functions that write responses token by token."""

  # (params, L) -> parameters, as steps of L lanes read them.
  weights: Callable[[Params, int], Params]
  # What responses read of prompts: a pytree whose leaves have B rows.
  encode: Callable[[Params, Int[Array, 'B S']], Any]
  # (params, encoded, L, length) -> an empty cache of L responses, with capacity for `length` tokens of each.
  empty: Callable[[Params, Any, int, int], Any]
  step: StepFn
  # (cache, length) -> the same cache with capacity for more tokens; None: it does not grow.
  grow: Callable[[Any, int], Any] | None = None


@runtime_checkable
class Sizes(Protocol):
  """What every network's configuration says."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def dtype(self) -> Any:
    """Of activations."""
    ...

  @property
  def other_ends(self) -> tuple[int, ...]:
    """Tokens besides EOS that end a response of a model from elsewhere; policies count them as EOS."""
    ...


@runtime_checkable
class Network(Protocol):
  """A Linen module: `encode` reads B prompts, `decode` predicts N = B·k responses, of which each k consecutive share one.

  Arguments have T5X's names. Methods run in `apply`, but for `incremental`.
  """

  @property
  def config(self) -> Sizes: ...

  def init(self, rngs: jax.Array, *args: Any, **kwargs: Any) -> Any:
    """Linen's: random variables."""
    ...

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """Linen's: runs a method with these variables."""
    ...

  def encode(self, encoder_input_tokens: Int[Array, 'B S'], *, enable_dropout: bool = False) -> Any:
    """What a pass over responses reads of the prompts."""
    ...

  def precompute(self, encoded: Any) -> Any:
    """What `decode` takes in place of `encoded`, with all that steps of decoding should not compute again."""
    ...

  def decode_hidden(
    self,
    encoded: Any,
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    *,
    decoder_positions: Int[Array, 'N T'] | None = None,
    enable_dropout: bool = False,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'N T _']:
    """What logits are made of.

    Args:
      encoded: what `encode` or `precompute` gave.
      encoder_input_tokens: the prompts.
      decoder_input_tokens: the responses, moved right by one.
      decoder_target_tokens: what is to be predicted; PAD where nothing.
      decoder_positions: of the inputs in their responses; None: all rows began together.
      enable_dropout: off where a policy or a rater calls.
      decode: whether the inputs are the next positions, those before them being in the collection `cache`.
      max_decode_length: capacity of the cache, which the first such call makes.
    """
    ...

  def logits(self, hidden: Float[Array, '*b _']) -> Float[Array, '*b V']:
    """Of the next token, from what `decode_hidden` gave; float32."""
    ...

  def decode(self, *args: Any, **kwargs: Any) -> Float[Array, 'N T V']:
    """The logits of `decode_hidden`, whose arguments it takes."""
    ...

  def incremental(self) -> Decoder:
    """The network as functions that decode token by token; of a module that is not bound."""
    ...


def hidden_and_head(
  network: Network,
  params: Params,
  prompt_tokens: Int[Array, 'B S'],
  inputs: Int[Array, 'N T'],
  targets: Int[Array, 'N T'],
) -> tuple[Float[Array, 'N T _'], Callable[[Float[Array, '*b _']], Float[Array, '*b V']]]:
  """A network's pass up to what its logits are made of, and the function that makes them.

  Args:
    network: without dropout here.
    params: its parameters.
    prompt_tokens: what the encoder reads.
    inputs: what the decoder reads.
    targets: what it is to predict; PAD where nothing.
  """
  apply = functools.partial(network.apply, {'params': params})
  encoded = apply(prompt_tokens, method='encode', enable_dropout=False)
  arguments = encoded, prompt_tokens, inputs, targets
  hidden = apply(*arguments, method='decode_hidden', enable_dropout=False)
  return hidden, functools.partial(apply, method='logits')


def map_in_chunks(
  function: Callable[[Array, Array], Array],
  hidden: Float[Array, 'N T E'],
  tokens: Int[Array, 'N T'],
  length: int,
) -> Float[Array, 'N T']:
  """function(hidden, tokens) in chunks of `length` positions, one after another.

  Each is computed again for its gradient.
  """
  size = tokens.shape[1]
  if length >= size:
    return function(hidden, tokens)
  number = -(-size // length)

  def chunks(x):
    x = jnp.pad(x, [(0, 0), (0, number * length - size), *[(0, 0)] * (x.ndim - 2)])
    return jnp.moveaxis(x.reshape(x.shape[0], number, length, *x.shape[2:]), 1, 0)

  recomputed = jax.checkpoint(lambda chunk: function(*chunk))
  result = jax.lax.map(recomputed, (chunks(hidden), chunks(tokens)))  # [number, N, length]
  return jnp.moveaxis(result, 0, 1).reshape(tokens.shape[0], -1)[:, :size]


def cached_decoder(network: Network, takes_layouts: bool = True) -> Decoder:
  """The decoder of a network that keeps keys and values as `networks.cache` does.

  Args:
    network: not bound.
    takes_layouts: whether its layers in `decoder` are `layers.Dense` and its `token_embedder`, where there is no
      `logits_dense`, is the output layer too, a `layers.Embed`; these take weights in another layout.
  """

  def encode(params: Params, prompt_tokens: Int[Array, 'B S']):
    apply = functools.partial(network.apply, {'params': params})
    encoded = apply(prompt_tokens, method='encode', enable_dropout=False)
    return apply(encoded, method='precompute'), prompt_tokens

  def step(params, encoded, cache, tokens: Int[Array, 'L'], positions=None, length=None):
    logits, changed = network.apply(
      {'params': params, 'cache': cache},
      *encoded,
      tokens[:, None],
      tokens[:, None],
      decoder_positions=None if positions is None else positions[:, None],
      enable_dropout=False,
      decode=True,
      max_decode_length=length or kv_cache.capacity(cache),
      mutable=['cache'],
      method='decode',
    )
    return logits[:, 0], changed['cache']

  def empty(params, encoded, num_lanes: int, length: int):
    first = jnp.full(num_lanes, PAD, jnp.int32)
    begin = lambda params, encoded, first: step(params, encoded, {}, first, length=length)
    return kv_cache.make(begin, params, encoded, first)

  def weights(params: Params, num_lanes: int) -> Params:
    few = takes_layouts and matmul.few_rows_on_cpu(num_lanes, network.config.dtype)
    return _weights_of_steps(network, params, few)

  return Decoder(weights, encode, empty, step, kv_cache.grow)


def _weights_of_steps(network: Network, params: Params, for_few_rows: bool) -> Params:
  """In the type of activations, which a cast in the loop would make of them at each step.

  On a mesh they are gathered along `embed` once for all steps.
  """
  result = {}
  names = flax.traverse_util.flatten_dict(axes.logical_axes(network)) if axes.has_mesh() else {}
  tied = for_few_rows and 'logits_dense' not in params['decoder']
  for path, x in flax.traverse_util.flatten_dict(params).items():
    if path[-1] in ('kernel', 'embedding', 'bias') and path[-2] != 'logits_dense':
      x = x.astype(network.config.dtype)
    if axes.has_mesh():
      x = axes.gather(x, names[path])
    large = for_few_rows and matmul.worth_a_copy(x.size)
    if large and path == ('token_embedder', 'embedding') and tied:
      result[*path[:-1], 'for_few_rows'] = matmul.for_few_rows(x.T)
    if large and path[-1] == 'kernel' and path[0] == 'decoder':
      path, x = (*path[:-1], 'for_few_rows'), matmul.for_few_rows(x)
    result[path] = x
  return flax.traverse_util.unflatten_dict(result)


def check_rows(responses: Int[Array, 'N T'], prompts: Int[Array, 'B S']) -> None:
  """Raises ValueError where the decoder's rows are no multiple of the prompts."""
  if responses.shape[0] % prompts.shape[0]:
    raise ValueError(
      f'{responses.shape[0]} decoder rows for {prompts.shape[0]} prompts: '
      'give each prompt the same number of rows.'
    )
