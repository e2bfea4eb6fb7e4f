"""One self-contained page about a directory of runs, and the same tables for a terminal.

Reads what the tournament and the runs left: win_rates.json, exact.json, samples.jsonl; of each run, metrics.jsonl, warnings.jsonl,
votes.jsonl and judge.json. The directory may be a run itself.
What is missing is left out, and a note tells so. Responses are untrusted text: the template escapes everything.
"""

import base64
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2
import matplotlib
import matplotlib.figure
import rich.console
import rich.table
import rich.text

from nlhf_jax import untrusted
from nlhf_jax.evaluation import rollouts
from nlhf_jax.runtime import atomic, checkpoint_files, metrics
from nlhf_jax.votes import files

matplotlib.use('Agg')

_CURVES = {
  'preference': 'P(y ≻ y′) against the alternative',
  'kl_to_reference': 'KL to the reference, nats',
  'entropy': 'entropy of a response, nats',
  'reward': 'reward',
  'nats_per_token': 'nats per token',
  'log_loss': 'log-loss of votes, nats',
  'response_length': 'response length, tokens',
}
# Measured on prompts of each split (`evaluation.distance`).
_DISTANCES = {
  'duality_gap': 'duality gap',
  'worst_case': 'worst case min P(π ≻ y)',
  'total_variation': 'total variation to its fixed point',
}
_ALL_PAIRS = {
  'log_loss': 'log-loss',
  'entropy_of_votes': 'its floor',
  'bradley_terry': 'best reward’s',
  'cyclic_share_of_judge': 'cyclic share',
  'cyclic_share': 'votes’',
  'cyclic_correlation': 'correlation',
  'cyclic_slope': 'slope',
}
_EXACT = {
  'worst_case': 'worst case min P(π ≻ y)',
  'worst_case_of_fixed_point': 'its fixed point’s',
  'worst_case_difference': 'worst case less baseline’s',
  'duality_gap': 'duality gap',
  'duality_gap_of_fixed_point': 'its fixed point’s',
  'total_variation': 'total variation to its fixed point',
  'kl': 'KL(π‖μ), nats',
  'worst_off_case': 'worst-off annotator: min P(π ≻ y)',
  'worst_off_win_rate': 'P(π ≻ μ)',
}
_SUBSETS = {
  'all': 'prompts in all',
  'no_condorcet_winner': 'prompts where no response is unbeaten',
  'train': 'prompts of the training data',
}


def from_run_dir(directory: pathlib.Path) -> pathlib.Path:
  """Writes report.html into the directory and returns its path.

  Raises:
    FileNotFoundError: there is no such directory.
    ValueError: a file in it is damaged.
  """
  if not directory.is_dir():
    raise FileNotFoundError(
      f'No directory {directory}: name one that `nlhf demo` or `nlhf win-rates` wrote.'
    )
  try:
    page = _page(directory)
  except (AttributeError, LookupError, TypeError, jinja2.UndefinedError) as error:
    problem = untrusted.message(f'{type(error).__name__}: {error}')
    raise ValueError(
      f'A file in {directory} is not as this version writes it ({problem}): write it anew, or move it elsewhere.'
    ) from error
  path = directory / 'report.html'
  atomic.write_text(path, page)
  return path


def _page(directory: pathlib.Path) -> str:
  runs, script = rollouts.run_dirs(directory), rollouts.script()
  return render(
    'report.html',
    policy=rollouts.content_policy([script]),
    warnings=rollouts.warnings(runs),
    rollouts=rollouts.newest(runs),
    script=script,
    name=directory.resolve().name,
    versions=_versions(),
    rates=_read_json(directory / 'win_rates.json'),
    exact=_read_json(directory / 'exact.json'),
    exact_columns=_EXACT,
    subsets=_SUBSETS,
    judges=_judges(runs),
    all_pairs_columns=_ALL_PAIRS,
    curves=_curves(runs),
    samples=_samples(directory / 'samples.jsonl'),
    exploitability=_read_json(directory / 'exploitability.json'),
  )


def render(template: str, **context: Any) -> str:
  """A page of this room; what it shows is escaped, and no script runs but those that `policy` names."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('nlhf_jax.evaluation', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  context.setdefault('policy', rollouts.content_policy(()))
  environment.filters |= {'heat': _heat, 'number': _number, 'budget': budget_line}
  return environment.get_template(template).render(**context)


def data_uri(figure: matplotlib.figure.Figure, kind: str, mime: str, **settings: Any) -> str:
  """A figure as an image within a page.

  Args:
    figure: what is drawn.
    kind: 'svg' or 'png'.
    mime: its type, such as 'image/png'.
    **settings: further ones of `savefig`.
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format=kind, **settings)
  return f'data:{mime};base64,' + base64.b64encode(buffer.getvalue()).decode()


def print_tables(directory: pathlib.Path) -> None:
  """The win-rate matrix and the exact table, on the terminal."""
  out = console()
  for table in _tables(directory):
    out.print(table)
  out.print(untrusted.as_text(f'Report: {directory / "report.html"}'))


def print_exploitability(directory: pathlib.Path) -> None:
  """The table of `nlhf exploit`, on the terminal."""
  result = _read_json(directory / 'exploitability.json')
  title = (
    f'P(exploiter ≻ policy) by {result["judge"]}, {result["num_prompts"]} prompts, 95 % half-width'
  )
  caption = untrusted.as_text(budget_line(result['budget']), 'table.caption')
  table = rich.table.Table(title=_title(title), caption=caption)
  is_exact = any('exact' in row for row in result['policies'].values())
  columns = ['KL to μ', 'best of n', 'exploiter', 'its KL', f'regularised, τ = {result["tau"]:g}']
  for name in ['', *columns, *(['share of exact worst case'] if is_exact else [])]:
    table.add_column(name, justify='right')
  for label, row in result['policies'].items():
    for number, one in enumerate(row['exploiters']):
      first = number == 0
      cells = [_cell(**row['kl']), _cell(**row['best_of_n'])] if first else ['', '']
      cells += [_cell(**one['preference']), _number(one['kl']), _number(one['regularised'])]
      cells += [_number(one['exact']['share_found'])] if is_exact else []
      table.add_row(untrusted.as_text(label) if first else '', *cells)
  console().print(table)


def budget_line(budget: dict[str, Any]) -> str:
  """How hard exploiters were looked for."""
  return (
    f'{budget["num_steps"]} steps of {budget["stage"]} from {budget["start"]}, τ = {budget["tau"]:g}, {budget["num_opponents"]} draws of '
    f'the policy to a response; best of {budget["best_of"]}'
  )


def _title(text: str) -> rich.text.Text:
  return untrusted.as_text(text, 'table.title')


def console() -> rich.console.Console:
  """The terminal; where there is none, wide enough for a table."""
  return rich.console.Console(width=None if rich.console.Console().is_terminal else 120)


def _tables(directory: pathlib.Path):
  rates = _read_json(directory / 'win_rates.json')
  if rates:
    title = f'P(row ≻ column) by {rates["judge"]}, {rates["num_prompts"]} prompts, 95 % half-width'
    missing = rates.get('num_missing')
    caption = f'left out: {missing} pairs of responses without a vote' if missing else None
    table = rich.table.Table(title=_title(title), caption=caption)
    for label in ('', *rates['labels']):
      table.add_column(untrusted.as_text(label), justify='right')
    for i, label in enumerate(rates['labels']):
      cells = [
        _cell(rates['mean'][i][j], rates['low'][i][j], rates['high'][i][j])
        for j in range(len(rates['labels']))
      ]
      cells[i] = '·'
      table.add_row(untrusted.as_text(label), *cells)
    yield table
  exact = _read_json(directory / 'exact.json') or {}
  for subset, name in _SUBSETS.items():
    if len(exact.get(subset, ())) > 1:
      yield _exact_table(exact, subset, f'Exact, {exact[subset]["num_prompts"]} {name}')


def _exact_table(exact: dict[str, Any], subset: str, title: str) -> rich.table.Table:
  columns = {key: name for key, name in _EXACT.items() if key in exact[subset]}
  table = rich.table.Table(title=_title(title))
  for name in ('', *columns.values()):
    table.add_column(name, justify='right')
  for i, label in enumerate(exact['labels']):
    values = [exact[subset][key] for key in columns]
    table.add_row(
      untrusted.as_text(label), *(_cell(v['mean'][i], v['low'][i], v['high'][i]) for v in values)
    )
  return table


def _cell(mean: float | None, low: float | None, high: float | None) -> str:
  if mean is None:
    return '·'
  return f'{_number(mean)} ±{(high - low) / 2:.3f}'


def _number(value: float | None) -> str:
  """Three decimals; no minus before a zero; a dot for what there is not."""
  if value is None:
    return '·'
  return f'{round(value, 3) + 0.0:.3f}'


def _heat(rate: float) -> str:
  """Background of a cell: blue above 1/2, orange below, white at it; told apart by colour-blind readers too."""
  strength = min(abs(rate - 0.5) / 0.25, 1.0)
  hue = '33, 102, 172' if rate > 0.5 else '217, 119, 6'
  return f'rgba({hue}, {0.75 * strength:.3f})'


def _read_json(path: pathlib.Path) -> Any:
  return untrusted.read_json(path) if path.is_file() else None


def _samples(path: pathlib.Path) -> list[dict[str, Any]]:
  return list(files.read(path, dict)) if path.is_file() else []


def _judges(runs: dict[str, pathlib.Path]) -> dict[str, Any]:
  found = {name: _read_json(path / 'judge.json') for name, path in runs.items()}
  return {name: judge for name, judge in found.items() if judge is not None}


def _versions() -> dict[str, str]:
  packages = 'jax', 'flax', 'optax', 'orbax-checkpoint'
  return {name: checkpoint_files.version_of(name) for name in packages}


def _curves(found: dict[str, pathlib.Path]) -> list[dict[str, str]]:
  """One picture for each metric that some run has."""
  runs = {name: metrics.read_rows(path / metrics.METRICS) for name, path in found.items()}
  # A run has one colour in every picture.
  colours = {name: f'C{number}' for number, name in enumerate(runs)}
  pictures = []
  for title, keys in _pictures():
    lines = {
      (name, style): [
        (int(row['step']), float(row[key])) for row in rows if row.get(key) is not None
      ]
      for name, rows in runs.items()
      for key, style in keys.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if lines:
      pictures.append({'title': title, 'svg': _plot(lines, colours)})
  return pictures


def _pictures() -> Iterator[tuple[str, dict[str, str]]]:
  """Title, and the metrics of a picture with the style of each one's lines."""
  for name, title in _DISTANCES.items():
    yield (
      f'{title}, held-out prompts (dashed: training prompts)',
      {
        f'held_out_{name}': '-',
        f'train_{name}': '--',
      },
    )
  for key, title in _CURVES.items():
    yield title, {key: '-'}


def _plot(lines: dict[tuple[str, str], list[tuple[int, float]]], colours: dict[str, str]) -> str:
  """Curves as an SVG in a data URL: an image cannot run script."""
  figure = matplotlib.figure.Figure(figsize=(5.2, 3.0), layout='constrained')
  axes = figure.subplots()
  for (name, style), points in lines.items():
    # What matplotlib reads as a formula is text here.
    label = untrusted.printable(name).replace('$', r'\$') if style == '-' else None
    axes.plot(*zip(*points, strict=True), style, label=label, color=colours[name], linewidth=1.4)
  axes.set_xlabel('step')
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, fontsize=8)
  return data_uri(figure, 'svg', 'image/svg+xml', metadata={'Date': None})
