"""What agents learnt of one person's taste: tables for a terminal, and a page with curves; from results.json alone.

Names of users and agents are untrusted text: the template escapes everything.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.ticker
import rich.table

from nlhf_jax import untrusted
from nlhf_jax.evaluation import report
from nlhf_jax.runtime import atomic

# Success rates in %, phases 2 and 4, of agents that are LLMs and read and write text (Liang et al. 2026, arXiv:2602.16173).
PUBLISHED = {
  'no memory': ('27.8 ±.2', '27.0 ±.4'),
  'questions only': ('34.4 ±.5', '56.0 ±.7'),
  'corrections only': ('38.9 ±.5', '66.9 ±.8'),
  'both (PAHF)': ('41.3 ±.8', '70.3 ±1.1'),
}
# What the results say and what they do not.
CAVEAT = (
  'Simulated users and structured feedback: answers to questions and corrections are symbols by rule, not sentences. Nothing here is '
  'a claim about language, and the published agents, who read and write it, have the harder task.'
)


def tables(results: dict[str, Any]) -> list[rich.table.Table]:
  """For a terminal."""
  found = []
  for title, columns, rows in _tables(results):
    table = rich.table.Table(title=title)
    for number, column in enumerate(columns):
      table.add_column(column, justify='right' if number else 'left')
    for row in rows:
      table.add_row(*map(untrusted.as_text, row))
    found.append(table)
  return found


def write_page(results: dict[str, Any], source: str, path: pathlib.Path) -> None:
  """One self-contained page.

  Args:
    results: as `personalisation.summary` makes them.
    source: what they are of.
    path: of the page.
  """
  page = report.render(
    'personalisation.html',
    source=source,
    caveat=CAVEAT,
    tables=[{'title': t, 'columns': c, 'rows': r} for t, c, r in _tables(results)],
    pictures=_KINDS[results['kind']].pictures(results),
    published=PUBLISHED if results['kind'] == 'shopping' else None,
  )
  atomic.write_text(path, page)


def _tables(results: dict[str, Any]):
  return _KINDS[results['kind']].tables(results)


def _shopping_tables(results: dict[str, Any]):
  """(title, columns, rows) each."""
  agents = results['agents']
  users = f'{results["num_users"]} users, 95 % half-width over users'
  columns = [
    'agent',
    'phase 2',
    'phase 4',
    *(f'{k}, phase {p}' for p in (1, 3) for k in ('asked', 'corrected')),
    'notes',
  ]
  rows = []
  for x in agents.values():
    cells = [_percent(x['success'].get(p)) for p in '24']
    for phase in '13':
      shares = x['feedback'].get(phase, {})
      cells += [_percent(shares.get(kind)) for kind in ('pre', 'post')]
    rows.append([x['title'], *cells, f'{x["num_notes"]:.0f}'])
  yield (
    f'Success in %, and share of learning tasks with each kind of feedback; {users}',
    columns,
    rows,
  )
  passes = range(results['num_passes'])
  columns = ['agent', *(f'phase {p}, pass {t + 1}' for p in (1, 3) for t in passes)]
  rows = []
  for x in agents.values():
    errors = x['average_cumulative_errors']
    rows.append(
      [x['title'], *(_percent(errors[p][t] if p in errors else None) for p in '13' for t in passes)]
    )
  yield f'ACPE: mean error of passes so far in %; {users}', columns, rows
  tests = {2: 'phase 2', 4: 'phase 4'}
  yield from _difference_table(agents, results['differences'], tests, 'user by user', users)


def _difference_table(agents, differences, phases: dict[int, str], paired: str, whose: str):
  """One table, if any agents are compared: success less that of another in some phases, by number and name."""
  pairs: dict[tuple[str, str], dict[int, Any]] = {(x['agent'], x['less']): {} for x in differences}
  for x in differences:
    pairs[x['agent'], x['less']][x['phase']] = x
  rows = [
    [agents[a]['title'], agents[b]['title'], *(_percent(found.get(phase)) for phase in phases)]
    for (a, b), found in pairs.items()
  ]
  if rows:
    title = f'Success less that of another agent, {paired}, in points; {whose}'
    yield title, ['agent', 'less', *phases.values()], rows


def _headline_tables(results: dict[str, Any]):
  lives = (
    f'{results["num_lives"]} lives of {results["num_users"]} people, 95 % half-width over people'
  )
  for change, found in results['changes'].items():
    columns = ['agent', 'learning, 1', 'test, 2', 'learning, 3', 'test, 4']
    columns += [f'{k}, phase {p}' for p in (1, 3) for k in ('asked', 'corrected')]
    rows = []
    for x in found['agents'].values():
      cells = []
      for learning, test in (('1', '2'), ('3', '4')):
        errors = x['pass_errors'][learning][0]
        cells += [_percent(_complement(errors)), _percent(x['success'][test])]
      for phase in '13':
        cells += [_percent(x['feedback'][phase][kind]) for kind in ('pre', 'post')]
      rows.append([x['title'], *cells])
    changed = 'one taste has changed' if change == 'one' else 'all tastes have changed'
    yield (
      f'Favourite headlines picked in %, before and after {changed}, and days with each kind of feedback; {lives}',
      columns,
      rows,
    )
    phases = {1: 'learning, 1', 2: 'test, 2', 3: 'learning, 3', 4: 'test, 4'}
    whose = f'before and after {changed}; {lives}'
    agents = found['agents']
    yield from _difference_table(agents, found['differences'], phases, 'person by person', whose)


def _complement(interval: dict[str, Any]) -> dict[str, Any]:
  """Of a share, the rest."""
  low, high = interval['high'], interval['low']
  return {
    'mean': 1 - interval['mean'],
    'low': None if low is None else 1 - low,
    'high': None if high is None else 1 - high,
  }


def _headline_pictures(results: dict[str, Any]) -> list[dict[str, str]]:
  pictures = []
  for change, found in results['changes'].items():
    lines = {}
    for x in found['agents'].values():
      after = x['cumulative_errors_after']
      lines[x['title']] = (range(1, len(after) + 1), after)
    changed = 'one taste has changed' if change == 'one' else 'all tastes have changed'
    title = f'Errors since {changed}, mean over people'
    pictures.append({'title': title, 'image': _plot(lines, 'day of phase 3', 'errors', 5)})
  return pictures


def _twin_tables(results: dict[str, Any]):
  titles, worlds = results['titles'], results['worlds']
  runs = f'{results["num_runs"]} runs, 95 % half-width over runs'
  world = worlds[1]['world']
  switches = [f' ({n} times)' if (n := x['world']['num_switches']) else '' for x in worlds]
  names = [x['label'] + how_often for x, how_often in zip(worlds, switches, strict=True)]
  columns = ['agent', *(f'{kind}, {name}' for name in names for kind in ('errors', 'questions'))]
  rows = []
  for name, title in titles.items():
    found = [x['agents'][name] for x in worlds]
    rows.append([title, *(_number(x[kind]) for x in found for kind in ('errors', 'questions'))])
  for kind in ('corrections', 'both'):
    if all(x['bounds'] for x in worlds):
      cells = [y for x in worlds for y in (f'≤ {x["bounds"][kind]:.1f}', '')]
      rows.append([f'bound: {kind}', *cells])
  shape = (
    f'{world["num_slots"]} slots of {world["num_values"]} values; {world["num_answers"]} answers to a question, at most '
    f'{world["num_questions"]} a round; noise {world["noise"]:g}; {world["fresh_share"]:g} of rounds about what comes up once'
  )
  yield f'Errors and questions in {world["num_rounds"]} rounds: {shape}; {runs}', columns, rows
  columns = ['agent', *(f'{x["num_rounds"]} rounds' for x in results['sweep'])]
  rows = [
    [title, *(_number(x['agents'][name]['errors']) for x in results['sweep'])]
    for name, title in titles.items()
  ]
  yield (
    f'Errors by number of rounds, with {world["num_switches"]} switches of one slot; {runs}',
    columns,
    rows,
  )


def _shopping_pictures(results: dict[str, Any]) -> list[dict[str, str]]:
  pictures = []
  for phase in '13':
    lines = {
      x['title']: (range(1, len(errors) + 1), errors)
      for x in results['agents'].values()
      if (errors := x['pass_errors'].get(phase))
    }
    if lines:
      title = f'Error of each pass, phase {phase}' + (
        ' (tastes have changed)' if phase == '3' else ''
      )
      pictures.append({'title': title, 'image': _plot(lines, 'pass', 'error', 1)})
  lines = {
    x['title']: (range(1, len(errors) + 1), errors)
    for x in results['agents'].values()
    if (errors := x['cumulative_errors_after'])
  }
  if lines:
    title = 'Errors since tastes have changed, mean over users'
    pictures.append(
      {'title': title, 'image': _plot(lines, 'task of phase 3, over all passes', 'errors', 45)}
    )
  return pictures


def _twin_pictures(results: dict[str, Any]) -> list[dict[str, str]]:
  titles = results['titles']
  curves = {
    titles[n]: (x['round'], [{'mean': y} for y in x['errors']])
    for n, x in results['curves'].items()
  }
  sweep = {
    title: (
      [x['num_rounds'] for x in results['sweep']],
      [x['agents'][name]['errors'] for x in results['sweep']],
    )
    for name, title in titles.items()
  }
  return [
    {
      'title': f'Errors so far, {results["worlds"][1]["world"]["num_switches"]} switches of one slot',
      'image': _plot(curves, 'round', 'errors', None, is_log=True),
    },
    {
      'title': 'Errors by number of rounds',
      'image': _plot(sweep, 'rounds', 'errors', None, is_log=True),
    },
  ]


def _plot(lines, x_label: str, y_label: str, tick: int | None, *, is_log: bool = False) -> str:
  """Curves with their intervals as shades. Many lie on each other, so each has a marker of its own where there are few points."""
  figure = matplotlib.figure.Figure(figsize=(6.4, 3.8), layout='constrained')
  axes = figure.subplots()
  for number, (title, (at, values)) in enumerate(lines.items()):
    at, style = list(at), 'osD^vPX*hp'[number % 10]
    mean = [x['mean'] for x in values]
    marker = style if len(at) < 10 else ''
    dashes = ('-', '--', '-.', ':')[number // 3 % 4]
    axes.plot(
      at,
      mean,
      dashes,
      label=title.replace('$', r'\$'),
      color=f'C{number % 10}',
      linewidth=1.4,
      marker=marker,
      markersize=4,
    )
    if all(x.get('low') is not None for x in values):
      low, high = [x['low'] for x in values], [x['high'] for x in values]
      axes.fill_between(at, low, high, color=f'C{number % 10}', alpha=0.15, linewidth=0)
  if is_log:
    axes.set_yscale('symlog', linthresh=1)
  if tick:
    axes.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(tick))
  axes.set_ylim(bottom=0)
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(alpha=0.25)
  axes.spines[['top', 'right']].set_visible(False)
  figure.legend(loc='outside right upper', frameon=False, fontsize=8)
  return report.data_uri(figure, 'svg', 'image/svg+xml', metadata={'Date': None})


def _percent(x: dict[str, Any] | None) -> str:
  if x is None:
    return '–'
  half = '' if x['low'] is None else f' ±{50 * (x["high"] - x["low"]):.1f}'
  return f'{100 * x["mean"]:.1f}{half}'


def _number(x: dict[str, Any]) -> str:
  half = '' if x['low'] is None else f' ±{(x["high"] - x["low"]) / 2:.1f}'
  return f'{x["mean"]:.1f}{half}'


class _Kind(NamedTuple):
  """How results of one kind are shown."""

  tables: Callable[[dict[str, Any]], Any]
  pictures: Callable[[dict[str, Any]], list[dict[str, str]]]


_KINDS = {
  'shopping': _Kind(_shopping_tables, _shopping_pictures),
  'twin': _Kind(_twin_tables, _twin_pictures),
  'headlines': _Kind(_headline_tables, _headline_pictures),
}
