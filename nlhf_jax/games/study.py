"""Solvers side by side on one game: results, a readable table, JSON and convergence curves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np
from jaxtyping import Float
from rich import table as rich_table

from nlhf_jax import untrusted
from nlhf_jax.games import game as games
from nlhf_jax.games import solve
from nlhf_jax.games.game import PreferenceGame
from nlhf_jax.games.solvers import PayoffFn, Solver, exact

# Alternatives in a printed table.
_NUM_SHOWN = 20
# Points of a curve.
_NUM_RECORDS = 500


class Result(NamedTuple):
  """What one solver found."""

  policy: Float[np.ndarray, 'Y']
  # min_y P(π ≻ y): what it is sure of; 1/2 for a Nash equilibrium.
  value: float
  # Of the game at its τ.
  duality_gap: float
  # KL(π*‖π) in nats; NaN where there is no single π*.
  kl_to_nash: float
  # To the policy.
  best_response: Float[np.ndarray, 'Y']
  curve: solve.Curve


class Study(NamedTuple):
  """Solvers' results on one game, beside its equilibrium."""

  labels: tuple[str, ...]
  game: PreferenceGame
  # π*_τ; a maximal lottery where τ = 0.
  nash: Float[np.ndarray, 'Y']
  nash_is_unique: bool
  results: dict[str, Result]


def run(
  labels: Sequence[str],
  game: PreferenceGame,
  algorithms: Mapping[str, Solver],
  num_steps: int,
  *,
  payoff: PayoffFn = exact,
  seed: int = 0,
  advance: Callable[[int], None] = lambda steps: None,
) -> Study:
  """Runs every solver on the game, beside the exact equilibrium. Raises as `solve.run`."""
  for solver in algorithms.values():
    with jax.enable_x64(True):
      solve.check_step_size(solver, game)
  if game.tau > 0:
    nash, unique = solve.regularised_nash(game), True
  else:
    nash, _, unique = solve.maximal_lottery(game.preference)
  results = {}
  for name, solver in algorithms.items():
    policy, curve = solve.run(
      solver,
      game,
      num_steps,
      num_records=_NUM_RECORDS,
      payoff=payoff,
      seed=seed,
      nash=nash if unique else None,
      advance=advance,
    )
    results[name] = _result(game, policy, curve)
  return Study(tuple(labels), game, nash, unique, results)


def _result(game: PreferenceGame, policy: Float[np.ndarray, 'Y'], curve: solve.Curve) -> Result:
  with jax.enable_x64(True):
    return Result(
      policy,
      float(games.worst_case(game, policy)),
      float(curve.duality_gap[-1]),
      float(curve.kl_to_nash[-1]),
      np.asarray(games.best_response(game, policy)),
      curve,
    )


def tables(study: Study) -> list[rich_table.Table]:
  """How close every solver came, and the policies: alternatives by what π* gives them."""
  summary = rich_table.Table(title=_title(study))
  for column in ('algorithm', 'steps', 'duality gap', 'KL(π*‖π)', 'min P(π ≻ y)', 'beaten by'):
    left = column in ('algorithm', 'beaten by')
    summary.add_column(column, justify='left' if left else 'right')
  for name, result in study.results.items():
    summary.add_row(
      name,
      str(int(result.curve.step[-1])),
      f'{max(result.duality_gap, 0):.3g}',
      '–' if np.isnan(result.kl_to_nash) else f'{max(result.kl_to_nash, 0):.3g}',
      f'{result.value:.4f}',
      untrusted.as_text(_strongest_opponents(study, result)),
    )
  return [summary, _policies(study)]


def _strongest_opponents(study: Study, result: Result) -> str:
  """The three alternatives that beat a policy most, and by how much."""
  against = study.game.preference @ result.policy
  worst = [i for i in np.argsort(-against, kind='stable')[:3] if against[i] > 0.5 + 1e-9]
  return ', '.join(f'{study.labels[i]} {against[i]:.3f}' for i in worst) or 'no one'


def _policies(study: Study) -> rich_table.Table:
  order = np.argsort(-study.nash, kind='stable')[:_NUM_SHOWN]
  title = 'Policies'
  if len(study.nash) > len(order):
    title += f': {len(order)} of {len(study.nash)} alternatives'
  shown = rich_table.Table(title=title)
  shown.add_column('alternative')
  for column in ('μ', 'π*', *study.results):
    shown.add_column(column, justify='right')
  policies = (study.game.reference, study.nash, *(r.policy for r in study.results.values()))
  for i in order:
    shown.add_row(untrusted.as_text(study.labels[i]), *(f'{p[i]:.4f}' for p in policies))
  return shown


def _title(study: Study) -> str:
  if study.game.tau > 0:
    return f'{len(study.labels)} alternatives, τ = {float(study.game.tau):g}'
  unique = 'one equilibrium' if study.nash_is_unique else 'several equilibria'
  return f'{len(study.labels)} alternatives, no regularisation, {unique}'


def to_json(study: Study) -> dict[str, Any]:
  """The first solver's result on top, every solver's under `algorithms`; NaN becomes null."""
  by_name = {name: _fields(study, result) for name, result in study.results.items()}
  first = next(iter(by_name))
  return {
    'labels': list(study.labels),
    'tau': float(study.game.tau),
    'reference': study.game.reference.tolist(),
    'nash': study.nash.tolist(),
    'nash_is_unique': study.nash_is_unique,
    'algorithm': first,
    **by_name[first],
    'algorithms': by_name,
  }


def _fields(study: Study, result: Result) -> dict[str, Any]:
  beaten_by = [
    label
    for label, p in zip(study.labels, study.game.preference @ result.policy, strict=True)
    if p > 0.5 + 1e-9
  ]
  curve = {
    'step': result.curve.step.tolist(),
    'duality_gap': _finite(result.curve.duality_gap),
    'kl_to_nash': _finite(result.curve.kl_to_nash),
  }
  return {
    'policy': result.policy.tolist(),
    'value': result.value,
    'duality_gap': result.duality_gap,
    'kl_to_nash': _finite([result.kl_to_nash])[0],
    'best_response': result.best_response.tolist(),
    'beaten_by': beaten_by,
    'curve': curve,
  }


def _finite(values) -> list[float | None]:
  return [float(x) if np.isfinite(x) else None for x in values]


def plot(study: Study) -> matplotlib.figure.Figure:
  """Duality gap, and KL to the equilibrium where there is one, against steps, on logarithmic axes."""
  shown = ['duality gap'] + ['KL(π*‖π), nats'] * study.nash_is_unique
  figure = matplotlib.figure.Figure(figsize=(5.5 * len(shown), 4), layout='constrained')
  for axes, what in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
    for name, result in study.results.items():
      values = result.curve.duality_gap if what == 'duality gap' else result.curve.kl_to_nash
      # Rounding leaves nothing to see below 1e-16.
      axes.plot(np.maximum(result.curve.step, 1), np.maximum(values, 1e-16), label=name)
    axes.set(xscale='log', yscale='log', xlabel='steps', ylabel=what)
    axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figure.suptitle(_title(study))
  return figure
