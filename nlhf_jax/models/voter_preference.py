"""P_u(y ≻ y'|x): who votes is part of the model.

A rater of one response gives a vector (s, φ), a reward that all voters share and D features; voter u has a taste w_u:

  r_u(x, y) = s(x, y) + w_u·φ(x, y),   P_u(y ≻ y'|x) = σ(r_u(x, y) − r_u(x, y')).

Each voter ranks responses by a reward of its own; the population's preference, the mean of P_u over the known voters, holds cycles
all the same. With a prior w_u ~ N(0, 1/λ), which counts once for each voter whatever its number of votes, a voter with few votes
stays near the others. A voter who was not known in training is fitted without it: `differences` are what `votes.tastes` takes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import losses
from nlhf_jax.arguments import Count, CountOrZero, NonNegative, Positive
from nlhf_jax.models import general_preference, preference_model
from nlhf_jax.models.preference_model import PreferenceModel
from nlhf_jax.models.rater import Rater
from nlhf_jax.types import Comparison, Losses, Params, PreferenceFn, PRNGKey, VoterNames

# The table of tastes among a model's parameters.
VOTERS = 'voters'


class Prior(NamedTuple):
  """−log of w_u ~ N(0, 1/λ) of all voters, as part of a loss per vote."""

  # N: training votes of all voters together, over which the prior is spread.
  num_votes: Positive
  # λ: ½λ‖w_u‖² nats for each voter, once in all N votes.
  strength: NonNegative = 1.0


def from_rater(
  rater: Rater, num_voters: Count, num_features: Count, scale: Positive = 0.3
) -> PreferenceModel:
  """The population's model, which tells its voters apart as well.

  Args:
    rater: of one response, whose head gives 1 + num_features numbers, such as `rater.linear(9)`.
    num_voters: U, those who voted in training (`pipeline.voters`); voters of other numbers are unknown.
    num_features: D.
    scale: standard deviation of tastes before training; with 0 none would ever learn to differ.

  Raises:
    ValueError: there is no voter, or no feature; or the rater's template takes more than one response.
  """
  if num_voters < 1 or num_features < 1:
    raise ValueError(
      f'num_voters and num_features must be at least 1, got {num_voters} and {num_features}.'
    )
  with_tastes = _with_tastes(rater, num_voters, num_features, scale)

  def rewards(params, *args):
    """r_u of each group of responses, [B, k, U]."""
    vectors = general_preference.embed(with_tastes, params, *args)
    return [x[..., :1] + x[..., 1:] @ params[VOTERS].T for x in vectors]

  def voters(params, *args):
    first, second = rewards(params, *args)
    return (first - second).reshape(-1, num_voters)

  def voter_table(params, prompts, responses, alternatives=None):
    groups = [responses] if alternatives is None else [responses, alternatives]
    found = rewards(params, prompts, *groups)
    return found[0][:, :, None] - found[-1][:, None]

  def features(params, *args):
    first, second = general_preference.embed(with_tastes, params, *args)
    return (first - second).reshape(-1, 1 + num_features)

  def scores(params, *args):
    logit = population(voters(params, *args))
    return logit, -logit

  table = lambda *args: population(voter_table(*args))
  if rater.num_responses != 1:
    raise ValueError(
      f'Voters have tastes for one response at a time, but the template of the rater takes {rater.num_responses}: give it one of '
      'three pieces, such as prompts.reward_template.'
    )
  return PreferenceModel(
    with_tastes.init,
    scores,
    with_tastes.axes,
    table,
    rater.render,
    voters,
    features,
    voter_table,
    tastes=lambda params: params[VOTERS],
  )


def population(log_odds: Float[Array, '*rows U']) -> Float[Array, '*rows']:
  """Log-odds of the mean of P_u, from those of each voter; swapped, their negative."""
  return general_preference.mixed_tastes(log_odds, jnp.zeros_like(log_odds))


def _with_tastes(rater: Rater, num_voters: int, num_features: int, scale: float) -> Rater:
  """The rater, with the table of tastes [U, D] among its parameters."""

  def init(rng: PRNGKey) -> Params:
    rater_rng, voter_rng = jax.random.split(rng)
    tastes = scale * jax.random.normal(voter_rng, (num_voters, num_features))
    return {**rater.init(rater_rng), VOTERS: tastes}

  def score(params, prompts, *responses):
    own = {name: part for name, part in params.items() if name != VOTERS}
    vector = rater.score(own, prompts, *responses)
    if vector.shape[1:] != (1 + num_features,):
      raise ValueError(
        f'Of num_features = {num_features} the rater must give 1 more, the shared reward, got {vector.shape[1:]}: give it the head '
        f'rater.linear({1 + num_features}).'
      )
    return vector

  def axes():
    return {**rater.axes(), VOTERS: (None, None)}

  return rater._replace(init=init, score=score, axes=axes)


def loss(model: PreferenceModel, params: Params, comparison: Comparison, prior: Prior) -> Losses:
  """Cross-entropy of each vote under its voter's P_u, and its share of the prior: −log P_u(vote) + ½λ Σ_u‖w_u‖² / N.

  The sum over all N votes is the posterior's: a voter with few votes is held by as much prior as one with many. A vote of an
  unknown voter, or a share of votes, is compared with the population's preference.
  """
  check(model)
  own, of_all = log_odds(model, params, comparison)
  result = losses.pairwise_loss(own, comparison.preference)
  penalty = 0.5 * prior.strength * jnp.sum(jnp.square(model.tastes(params))) / prior.num_votes
  others = losses.pairwise_loss(of_all, comparison.preference).metrics
  metrics = result.metrics | {f'population_{name}': x for name, x in others.items()}
  return result._replace(value=result.value + penalty, metrics=metrics)


def log_odds(
  model: PreferenceModel, params: Params, comparison: Comparison
) -> tuple[Float[Array, 'N'], Float[Array, 'N']]:
  """Of y over y', under the one who votes and under the population, who also stands in for unknown voters."""
  pair = comparison.response.tokens, comparison.alternative.tokens
  difference = model.voters(params, comparison.prompts, *pair)
  of_all = population(difference)
  known, number = _known(comparison, difference.shape[-1])
  own = jnp.take_along_axis(difference, number[:, None], axis=-1)[:, 0]
  return jnp.where(known, own, of_all), of_all


def _known(comparison: Comparison, num_voters: int):
  """Whether each vote's voter is known, and its number."""
  if comparison.voter is None:
    number = jnp.full(comparison.response.tokens.shape[0], -1)
  else:
    number = jnp.asarray(comparison.voter)
  known = (number >= 0) & (number < num_voters)
  return known, jnp.where(known, number, 0)


def differences(
  model: PreferenceModel, params: Params, comparison: Comparison
) -> tuple[Float[np.ndarray, 'N D'], Float[np.ndarray, 'N']]:
  """φ(x, y) − φ(x, y') and s(x, y) − s(x, y') of each pair: features and offset of `votes.tastes`."""
  check(model)
  pair = comparison.response.tokens, comparison.alternative.tokens
  found = np.asarray(model.features(params, comparison.prompts, *pair), np.float64)
  return found[:, 1:], found[:, 0]


def one_voter(model: PreferenceModel, voter: CountOrZero) -> PreferenceModel:
  """The preference of one known voter, for a policy to be trained on; as of any preference model, `experiment.trained_preference` binds it.

  Args:
    model: of `from_rater`.
    voter: its number, in the table of names that the run has kept (voters.json).

  Raises:
    ValueError: the model does not tell voters apart, or does not know this one.
  """
  check(model)
  size = _num_voters(model)
  if not 0 <= voter < size:
    raise ValueError(f'voter must be one of the {size} that the model knows, from 0, got {voter}.')

  def scores(params, *args):
    logit = model.voters(params, *args)[:, voter]
    return logit, -logit

  def table(params, *args):
    return model.voter_table(params, *args)[..., voter]

  return PreferenceModel(model.init, scores, model.axes, table, model.render)


def population_fn(model: PreferenceModel, params: Params) -> PreferenceFn:
  """The population as a judge: the mean of P_u over the known voters, who are its annotators."""
  return preference_model.preference_fn(model, params)


def check_number(model: PreferenceModel, voters: VoterNames) -> None:
  """Raises ValueError where the model's voters are not those who voted in training.

  Of too few the others would train the features and be taken for unseen; of too many, tastes at random would vote in the population.
  """
  check(model)
  size = _num_voters(model)
  if size != voters.num_training:
    raise ValueError(
      f'The model has {size} voters, but {voters.num_training} voted in training: set num_voters of voter_preference.from_rater to '
      f'that (NUM_VOTERS={voters.num_training}).'
    )


def _num_voters(model: PreferenceModel) -> int:
  return jax.eval_shape(model.init, jax.random.PRNGKey(0))[VOTERS].shape[0]


def check(model: PreferenceModel) -> None:
  """Raises ValueError where a model does not tell voters apart."""
  if model.voters is None:
    raise ValueError(
      'This preference model does not tell voters apart: make it with voter_preference.from_rater.'
    )
