"""π_θ(y|x) as a tuple of pure functions."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.arguments import Count
from nlhf_jax.models import mixture
from nlhf_jax.networks import axes, decoding, parameters
from nlhf_jax.networks.network import Decoder, Network, hidden_and_head, map_in_chunks
from nlhf_jax.types import EOS, PAD, Params, Policy, PolicyParams, Prompts, Rollout

# A logit.
_NEVER = -1e10


def from_network(
  network: Network, sampling: decoding.Sampling, max_logits: Count = 2**28
) -> Policy:
  """The policy of a network: `encode` reads the prompt, `decode` writes the response.

  Args:
    network: a Linen module.
    sampling: how responses are drawn. `log_prob` is taken at its temperature, so that samples and log-probs belong
      to one distribution; top-k and top-p truncate the samples alone, so leave them off where a gradient is taken.
    max_logits: `log_prob` makes at most this many of them at once on a device, those of one position at least; what it
      then makes in chunks it makes again for a gradient.

  Raises:
    ValueError: a setting of `sampling` makes no sense.
  """
  decoding.validate(sampling)
  other_ends = network.config.other_ends
  decoder = _of_responses(network.incremental(), other_ends, sampling.temperature)

  def log_prob(params: Params, prompts: Prompts, tokens: Int[Array, 'N T']) -> Float[Array, 'N T']:
    inputs = shift_right(tokens)
    hidden, head = hidden_and_head(network, params, prompts.tokens, inputs, tokens)
    temperature = sampling.temperature or 1.0  # Greedy: as at 1.
    of_position = (tokens.shape[0], network.config.vocab_size)
    return map_in_chunks(
      lambda hidden, tokens: token_log_probs(head(hidden), tokens, temperature, other_ends),
      hidden,
      tokens,
      max(1, max_logits // axes.size_on_device(of_position, 'batch', 'vocab')),
    )

  def play(params, mixtures, prompts, rng, num_samples=1):
    return mixture.play(decoder, sampling, params, mixtures, prompts, rng, num_samples)

  def sample(params, prompts, rng, num_samples=1):
    """Of one parameter set, without an opponent."""
    (rollout,) = play(PolicyParams(params), [mixture.ONLINE], prompts, rng, num_samples)
    return rollout

  return Policy(
    init=parameters.init(network),
    log_prob=log_prob,
    sample=sample,
    play=play,
    untruncated=not sampling.top_k and sampling.top_p == 1,
    axes=functools.partial(axes.logical_axes, network),
  )


def shift_right(tokens: Int[Array, 'N T']) -> Int[Array, 'N T']:
  """Decoder inputs that predict `tokens`: PAD, then all but the last."""
  return jnp.pad(tokens, [(0, 0), (1, 0)], constant_values=PAD)[:, :-1]


def token_log_probs(
  logits: Float[Array, 'N T V'],
  tokens: Int[Array, 'N T'],
  temperature: float | int,
  other_ends: tuple[int, ...] = (),
) -> Float[Array, 'N T']:
  """log softmax(logits / temperature) at `tokens`, in nats; 0 on padding. EOS has the probability of all ends."""
  logits = _in_responses(logits.astype(jnp.float32), other_ends, temperature) / temperature
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return jnp.where(tokens != PAD, chosen - jax.nn.logsumexp(logits, axis=-1), 0)


def as_rollout(tokens: Int[Array, 'N T']) -> Rollout:
  """Responses that were read, not sampled: padding follows EOS, so the mask is where tokens are."""
  return Rollout(tokens, tokens != PAD, None)


def _in_responses(
  logits: Float[Array, '*lanes V'], other_ends: tuple[int, ...], temperature: float | int
) -> Float[Array, '*lanes V']:
  """Logits of what a response may hold: no PAD, which could not be told from padding, and one end for all.

  EOS gets the logit that has the probability of all ends at this temperature; at 0, the greatest of theirs.
  """
  logits = logits.at[..., PAD].set(_NEVER)
  if not other_ends:
    return logits
  ends = logits[..., (EOS, *other_ends)]
  if temperature:
    end = temperature * jax.nn.logsumexp(ends / temperature, axis=-1)
  else:
    end = jnp.max(ends, axis=-1)
  return logits.at[..., other_ends].set(_NEVER).at[..., EOS].set(end)


def _of_responses(
  decoder: Decoder, other_ends: tuple[int, ...], temperature: float | int
) -> Decoder:
  def step(*args):
    logits, cache = decoder.step(*args)
    return _in_responses(logits, other_ends, temperature), cache

  return decoder._replace(step=step)
