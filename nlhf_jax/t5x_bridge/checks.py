"""What T5X's trainer cannot run, refused before it starts. Imports no T5X.

T5X makes, shards and saves the parameters of a module. Our models may have others beside their network's: a head's, voters' tastes.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.networks import axes, parameters
from nlhf_jax.types import Algorithm, Prompts

_REMEDY = 'train it with `nlhf train`'


def check_model(model: Any, module: axes.HasInit) -> None:
  """Raises ValueError where a model has weights besides its network's.

  Args:
    model: a policy, preference model or reward model.
    module: its network.
  """
  rng = jax.random.PRNGKey(0)
  found, known = (jax.eval_shape(init, rng) for init in (model.init, parameters.init(module)))
  own = sorted(found.keys() - known.keys() - {'network'})
  if own:
    raise ValueError(
      f'T5X keeps the weights of a network alone, but this {type(model).__name__} has others ({", ".join(own)}): {_REMEDY}.'
    )


def check_feedback(
  algorithm: Callable[..., Algorithm],
  feedback: Callable[..., Any],
  judge_module: axes.HasInit,
) -> None:
  """Asks a judge or a reward once, for shapes alone.

  Args:
    algorithm: that takes it.
    feedback: from `params` to it.
    judge_module: its network.

  Raises:
    ValueError: it has weights besides its network's.
  """
  is_reward = 'reward_fn' in inspect.signature(algorithm).parameters
  tokens = jnp.ones((1, 2), jnp.int32)
  asked = [Prompts(tokens, jnp.zeros(1, jnp.int32)), tokens] + [tokens] * (not is_reward)
  params = jax.eval_shape(parameters.init(judge_module), jax.random.PRNGKey(0))
  try:
    jax.eval_shape(lambda params: feedback(params=params)(*asked), params)
  except KeyError as error:
    raise ValueError(
      f'T5X keeps the weights of a network alone, but this judge or reward model asks for others ({error}): give it a head without, '
      'or train with `nlhf train`.'
    ) from error


def check_annotators(algorithm: Algorithm, judge: Any) -> None:
  """Raises ValueError where a method takes annotators, and the judge does not tell any apart."""
  point = algorithm.fixed_point
  takes_annotators = point is not None and point.tau_opponent is not None
  if takes_annotators and getattr(judge, 'annotators', None) is None:
    raise ValueError(
      f'This method takes annotators apart, which no judge of a network alone does under T5X: {_REMEDY}.'
    )
