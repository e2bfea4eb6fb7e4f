"""Aggregations side by side on one game of several voters: a readable table, and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from rich import table as rich_table

from nlhf_jax import untrusted
from nlhf_jax.games import aggregation
from nlhf_jax.games.aggregation import PopulationGame, Standing

# Alternatives, and voters, in a printed table.
_NUM_SHOWN = 20


class Study(NamedTuple):
  """Policies of several aggregations."""

  voters: tuple[str, ...]
  labels: tuple[str, ...]
  game: PopulationGame
  # By aggregation; one for each voter where it is personalised.
  policies: dict[str, Float[np.ndarray, '*U Y']]
  standings: dict[str, Standing]


def run(
  voters: Sequence[str],
  labels: Sequence[str],
  game: PopulationGame,
  names: Sequence[str],
  **settings: float | None,
) -> Study:
  """Solves the game by each aggregation. Raises as `aggregation.aggregate`, whose settings these are."""
  policies = {name: aggregation.aggregate(name, game, **settings) for name in names}  # type: ignore[arg-type]
  standings = {name: aggregation.standing(game, policy) for name, policy in policies.items()}
  return Study(tuple(voters), tuple(labels), game, policies, standings)


def tables(study: Study) -> list[rich_table.Table]:
  """What each aggregation is to the worst-off voter, to their mean and to every voter; and the policies."""
  title = (
    f'{len(study.voters)} voters, {len(study.labels)} alternatives, τ = {float(study.game.tau):g}'
  )
  summary = rich_table.Table(title=title)
  for column in (
    'aggregation', 'worst-off voter', 'min P_u(π ≻ y)', 'worst P_u(π ≻ μ)', 'mean: min P(π ≻ y)', 'mean: P(π ≻ μ)',
  ):  # fmt: skip
    summary.add_column(
      column, justify='left' if column in ('aggregation', 'worst-off voter') else 'right'
    )
  for name, one in study.standings.items():
    worst = int(np.argmin(one.worst_case))
    numbers = one.worst_case[worst], one.win_rate.min(), one.mean_worst_case, one.mean_win_rate
    summary.add_row(name, untrusted.as_text(study.voters[worst]), *(f'{x:.4f}' for x in numbers))
  return [summary, _policies(study)]


def _policies(study: Study) -> rich_table.Table:
  columns: dict[str, np.ndarray] = {'μ': np.asarray(study.game.reference)}
  for name, policy in study.policies.items():
    if policy.ndim == 1:
      columns[name] = policy
    else:
      shown = zip(study.voters[:_NUM_SHOWN], policy, strict=False)
      columns |= {f'{name}: {voter}': own for voter, own in shown}
  first = next(iter(study.policies.values()))
  order = np.argsort(-first.reshape(-1, len(study.labels)).mean(axis=0), kind='stable')[:_NUM_SHOWN]
  result = rich_table.Table(title='Policies')
  result.add_column('alternative')
  for column in columns:
    result.add_column(untrusted.as_text(column), justify='right')
  for i in order:
    result.add_row(untrusted.as_text(study.labels[i]), *(f'{p[i]:.4f}' for p in columns.values()))
  return result


def to_json(study: Study) -> dict[str, Any]:
  """Every aggregation's policy and standing."""
  by_name: Mapping[str, Any] = {
    name: {'policy': policy.tolist()} | _fields(study.standings[name])
    for name, policy in study.policies.items()
  }
  return {
    'voters': list(study.voters),
    'weights': np.asarray(study.game.weights).tolist(),
    'labels': list(study.labels),
    'tau': float(study.game.tau),
    'reference': np.asarray(study.game.reference).tolist(),
    'aggregations': by_name,
  }


def _fields(standing: Standing) -> dict[str, Any]:
  return {k: x.tolist() if isinstance(x, np.ndarray) else x for k, x in standing._asdict().items()}
