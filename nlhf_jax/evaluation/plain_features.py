"""A judge without a network: a linear Bradley-Terry model on plain features of the text, which a network has to beat.

Features of a response: tokens, their logarithm, different tokens, the share of them that the prompt has, where in the prompt
these come first and on average, and how often it has each of the tokens that occur most in responses.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import special

from nlhf_jax.models.rater import Render
from nlhf_jax.types import PAD, Comparison, Prompts

# Tokens that are counted.
_NUM_TOKENS = 64
_RIDGE = 1e-3
# The longest step of a fit that has settled.
_TOLERANCE = 1e-8


class LinearModel(NamedTuple):
  """log P(y ≻ y'|x)/P(y' ≻ y|x) = w·(φ(x, y) − φ(x, y')), features scaled."""

  weights: Float[np.ndarray, 'D']
  scale: Float[np.ndarray, 'D']
  counted: Int[np.ndarray, 'tokens']
  render: Render

  def preference(self, comparison: Comparison) -> Float[np.ndarray, 'N']:
    """P(y ≻ y'|x) of each comparison."""
    return special.expit(
      _differences(comparison, self.counted, self.render) / self.scale @ self.weights
    )


def fit(comparisons: Iterable[Comparison], render: Render, max_steps: int = 50) -> LinearModel:
  """The least cross-entropy with a small ridge, by Newton's method.

  Args:
    comparisons: batches of training data.
    render: turns responses into what raters read.
    max_steps: of Newton's method; a fit that has not settled by then is warned of.
  """
  batches = list(comparisons)
  sides = [(x.prompts, side.tokens) for x in batches for side in (x.response, x.alternative)]
  tokens = np.concatenate([_read(render, *side).ravel() for side in sides])
  counts = np.bincount(tokens[tokens != PAD])
  counted = np.argsort(-counts, kind='stable')[:_NUM_TOKENS]
  x = np.concatenate([_differences(batch, counted, render) for batch in batches])
  votes = np.concatenate([np.asarray(batch.preference, np.float64) for batch in batches])
  scale = np.sqrt(np.mean(x**2, axis=0)) + 1e-6
  x, weights = x / scale, np.zeros(x.shape[1])
  for _ in range(max_steps):
    predicted = special.expit(x @ weights)
    gradient = x.T @ (predicted - votes) / len(x) + _RIDGE * weights
    curvature = predicted * (1 - predicted) / len(x)
    step = np.linalg.solve(x.T * curvature @ x + _RIDGE * np.eye(weights.size), gradient)
    weights = weights - step
    last = float(np.abs(step).max())
    if last < _TOLERANCE:
      break
  else:
    logging.warning(
      'The linear model on plain features has not settled: its last of %d steps was %.1g long, where %.0g would do.',
      *(max_steps, last, _TOLERANCE),
    )
  return LinearModel(weights, scale, counted, render)


def _read(render: Render, prompts: Prompts, tokens) -> Int[np.ndarray, 'N R']:
  return np.asarray(render(prompts, jnp.asarray(tokens)))


def _differences(comparison: Comparison, counted, render: Render) -> Float[np.ndarray, 'N D']:
  """φ(x, y) − φ(x, y')."""
  first, second = (
    _features(comparison.prompts, _read(render, comparison.prompts, side.tokens), counted)
    for side in (comparison.response, comparison.alternative)
  )
  return first - second


def _features(
  prompts: Prompts, tokens: Int[np.ndarray, 'N R'], counted
) -> Float[np.ndarray, 'N D']:
  """φ(x, y)."""
  texts = np.asarray(prompts.tokens)
  texts = np.repeat(texts, len(tokens) // len(texts), axis=0)
  real = tokens != PAD
  length = real.sum(axis=-1)
  equal = (tokens[:, :, None] == texts[:, None]) & real[:, :, None]
  shared = equal.any(axis=-1)
  place = np.where(shared, equal.argmax(axis=-1) / texts.shape[-1], 0)
  number = np.maximum(shared.sum(axis=-1), 1)
  first = np.where(shared, place, 1).min(axis=-1)
  different = np.array([np.unique(row[row != PAD]).size for row in tokens])
  occurrences = np.stack([(tokens == token).sum(axis=-1) for token in counted], axis=-1)
  plain = [
    length,
    np.log1p(length),
    different,
    shared.sum(axis=-1) / np.maximum(length, 1),
    place.sum(axis=-1) / number,
    first,
  ]
  return np.concatenate([np.stack(plain, axis=-1), occurrences], axis=-1).astype(np.float64)
