"""The one tiny network of the tests, in both families; each test changes what it is about, as with `vocab_size=11`."""

import dataclasses
from typing import Any

import jax

from nlhf_jax.networks import llama, network, t5

T5 = t5.T5Config(
  vocab_size=6,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=16,
  mlp_activations=('gelu', 'linear'),
  dropout_rate=0.0,
)
LLAMA = llama.LlamaConfig(
  vocab_size=6, emb_dim=8, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=4, mlp_dim=16
)


def t5_network(**changes: Any) -> t5.Transformer:
  """With some fields of `T5` changed."""
  return t5.Transformer(dataclasses.replace(T5, **changes))


def llama_network(**changes: Any) -> llama.Transformer:
  """With some fields of `LLAMA` changed."""
  return llama.Transformer(dataclasses.replace(LLAMA, **changes))


def compiled_step(decoder: network.Decoder, params, prompt_tokens, lanes: int, length: int):
  """A compiled step (cache, tokens) -> (logits, cache) after some prompts, and an empty cache.

  Args:
    decoder: a network's functions.
    params: its weights.
    prompt_tokens: the prompts.
    lanes: responses to each.
    length: capacity of the cache.
  """
  num_lanes = prompt_tokens.shape[0] * lanes
  weights = decoder.weights(params, num_lanes)
  encoded = jax.jit(decoder.encode)(params, prompt_tokens)
  step = jax.jit(lambda cache, tokens: decoder.step(weights, encoded, cache, tokens, None))
  return step, decoder.empty(weights, encoded, num_lanes, length)
