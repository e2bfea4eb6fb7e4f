"""π_θ(y|x) as a tuple of pure functions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.models import mixture
from nlhf_jax.networks import axes
from nlhf_jax.networks import decoding
from nlhf_jax.networks import network
from nlhf_jax.types import Params, Policy, PolicyParams, PRNGKey, Prompts, Rollout


def from_network(
  network: nn.Module, sampling: decoding.Sampling, max_logits: int = 2**28
) -> Policy:
  """The policy of a network: `encode` reads the prompt, `decode` writes the response.

  Args:
    network: a Linen module with T5X's `encode` and `decode`.
    sampling: how responses are drawn. `log_prob` is taken at its temperature, so that samples and log-probs belong
      to one distribution; top-k and top-p truncate the samples alone, so leave them off where a gradient is taken.
    max_logits: `log_prob` makes at most so many of them at once on a device, those of one position at least; what it
      then makes in parts it makes again for a gradient.
  """
  decoding.validate(sampling)
  decoder = _never_padding(decoding.of_network(network))

  def log_prob(params: Params, prompts: Prompts, tokens: Int[Array, 'N T']) -> Float[Array, 'N T']:
    hidden, to_logits = hidden_and_head(network, params, prompts.tokens, shift_right(tokens), tokens)
    temperature = sampling.temperature or 1.0  # Greedy: as at 1.
    of_position = (tokens.shape[0], network.config.vocab_size)
    return map_in_chunks(
      lambda hidden, tokens: token_log_probs(to_logits(hidden), tokens, temperature),
      hidden,
      tokens,
      max(1, max_logits // axes.size_on_device(of_position, 'batch', 'vocab')),
    )

  def play(params, players, prompts, rng, num_samples=1):
    return mixture.play(decoder, sampling, params, players, prompts, rng, num_samples)

  whole = not sampling.top_k and sampling.top_p == 1
  sample = functools.partial(_sample_alone, play)
  names_of_axes = functools.partial(axes.logical_axes, network)
  return Policy(axes.init(network), log_prob, sample, play, whole, names_of_axes)


def _sample_alone(play, params: Params, prompts: Prompts, rng: PRNGKey, num_samples: int = 1):
  """Samples of one parameter set, without an opponent."""
  sets = PolicyParams(online=params, ema=None, reference=None)
  (rollout,) = play(sets, [mixture.ONLINE], prompts, rng, num_samples)
  return rollout


def shift_right(tokens: Int[Array, 'N T']) -> Int[Array, 'N T']:
  """Decoder inputs that predict `tokens`: a start token 0, then all but the last."""
  return jnp.pad(tokens, [(0, 0), (1, 0)])[:, :-1]


def token_log_probs(
  logits: Float[Array, 'N T V'], tokens: Int[Array, 'N T'], temperature: float
) -> Float[Array, 'N T']:
  """log softmax(logits / temperature) at `tokens`, in nats; 0 on padding."""
  logits = _forbid_padding(logits.astype(jnp.float32)) / temperature
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return jnp.where(tokens > 0, chosen - jax.nn.logsumexp(logits, axis=-1), 0)


def _forbid_padding(logits: Float[Array, '*lanes V']) -> Float[Array, '*lanes V']:
  """Takes token 0 out of the distribution: in a response it could not be told from padding."""
  return logits.at[..., 0].set(-1e10)


def _never_padding(decoder: decoding.Decoder) -> decoding.Decoder:
  def step(*args):
    logits, cache = decoder.step(*args)
    return _forbid_padding(logits), cache

  return decoder._replace(step=step)


def as_rollout(tokens: Int[Array, 'N T']) -> Rollout:
  """Responses that were read, not sampled: padding follows EOS, so the mask is where tokens are."""
  return Rollout(tokens, tokens > 0, None)
