"""A network module of T5X's, in place of ours: `NETWORK = @network.T5XModule()` in a gin file.

T5X's decoders take one row for each prompt, need a call of their own to make their cache, and compute the keys and
values of the encoder's output at every step: what is missing is added here, what is slow stays slow.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.networks import network, t5


class T5XModule(nn.Module):
  """The `Network` of a module with T5X's `encode` and `decode`; the parameter tree is the module's.

  Like ours, the decoder's batch may be a multiple k of the encoder's: its rows i·k … i·k + k − 1 then read prompt i.
  """

  # Such as t5x.examples.t5.network.Transformer.
  module: nn.Module

  def setup(self):
    nn.share_scope(self, self.module)

  @property
  def config(self):
    """The module's sizes."""
    return self.module.config

  def encode(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    enable_dropout: bool = True,
  ) -> Float[Array, 'B S E']:
    """What the decoder reads of prompts."""
    return self.module.encode(
      encoder_input_tokens, encoder_segment_ids, enable_dropout=enable_dropout
    )

  def precompute(self, encoded: Float[Array, 'B S E']) -> Float[Array, 'B S E']:
    """The same: T5X's decoders take the encoder's output itself."""
    return encoded

  def logits(self, hidden: Float[Array, '*b V']) -> Float[Array, '*b V']:
    """The same: `decode_hidden` gives logits."""
    return hidden

  def decode(self, *args: Any, **kwargs: Any) -> Float[Array, 'N T V']:
    """Logits of each target; arguments as those of `decode_hidden`."""
    return self.logits(self.decode_hidden(*args, **kwargs))

  @nn.nowrap
  def incremental(self) -> network.Decoder:
    """A decoder whose cache does not grow, and whose lanes all begin together."""
    decoder = network.cached_decoder(self, takes_layouts=False)

    def step(params, encoded, cache, tokens, positions=None):
      if positions is not None:
        raise ValueError('A network of T5X decodes all lanes side by side: set num_slots = 0.')
      return decoder.step(params, encoded, cache, tokens, None)

    return decoder._replace(step=step, grow=None)

  def decode_hidden(
    self,
    encoded: Float[Array, 'B S E'],
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    decoder_segment_ids: Int[Array, 'N T'] | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
    enable_dropout: bool = True,
    decode: bool = False,
    max_decode_length: int | None = None,
  ) -> Float[Array, 'N T V']:
    """Logits of each target, since T5X's decoders return nothing else.

    The first call with decode=True and `max_decode_length` makes the cache, and decodes.

    Raises:
      ValueError: N is no multiple of B.
    """
    network.check_rows(decoder_input_tokens, encoder_input_tokens)
    rows = decoder_input_tokens.shape[0]
    lanes = rows // encoder_input_tokens.shape[0]
    each = lambda x: None if x is None else jnp.repeat(x, lanes, axis=0)
    prompts = each(encoded), each(encoder_input_tokens)
    if decode and max_decode_length is not None and not self.variables.get('cache'):
      positions = jnp.ones((rows, max_decode_length), jnp.int32)
      self.module.decode(*prompts, positions, positions, enable_dropout=False, decode=True)
    return self.module.decode(
      *prompts,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=each(encoder_segment_ids),
      decoder_segment_ids=decoder_segment_ids,
      decoder_positions=decoder_positions,
      enable_dropout=enable_dropout,
      decode=decode,
      max_decode_length=max_decode_length,
    )

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'B S'],
    decoder_input_tokens: Int[Array, 'N T'],
    decoder_target_tokens: Int[Array, 'N T'],
    encoder_segment_ids: Int[Array, 'B S'] | None = None,
    decoder_segment_ids: Int[Array, 'N T'] | None = None,
    encoder_positions: Int[Array, 'B S'] | None = None,
    decoder_positions: Int[Array, 'N T'] | None = None,
    *,
    enable_dropout: bool = True,
    decode: bool = False,
  ) -> Float[Array, 'N T V']:
    """Logits of every target, given the targets before it."""
    del encoder_positions
    encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout)
    return self.decode(
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids,
      decoder_segment_ids,
      decoder_positions,
      enable_dropout,
      decode,
    )


def in_place_of(network: t5.Transformer) -> T5XModule:
  """T5X's own T5 1.1 in the sizes of one of ours; they share a parameter tree. Needs T5X.

  Raises:
    ValueError: ours has what T5X's network lacks.
  """
  from t5x.examples.t5 import network as t5x_network

  network.config.check_published("T5X's network")
  ours = dataclasses.asdict(network.config)
  names = {field.name for field in dataclasses.fields(t5x_network.T5Config)}
  config = t5x_network.T5Config(**{name: x for name, x in ours.items() if name in names})
  return T5XModule(t5x_network.Transformer(config))
