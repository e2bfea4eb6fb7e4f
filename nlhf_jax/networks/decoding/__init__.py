"""Drawing responses token by token: over lanes side by side, or over fewer slots with continuous batching."""

from nlhf_jax.networks.decoding.truncation import Sampling, validate

__all__ = ['Sampling', 'validate']
