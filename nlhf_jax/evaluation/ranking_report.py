"""A ranking in words, as a table, as JSON and as a page. Labels are untrusted text: the template escapes everything."""

import pathlib
from typing import Any

import matplotlib.figure
import numpy as np
import rich.table

from nlhf_jax import untrusted
from nlhf_jax.evaluation import report
from nlhf_jax.runtime import atomic
from nlhf_jax.votes import agreement, bradley_terry, certainty, ranking, reliability

MEAN = 1500
# Alternatives on a page's heat map.
_NUM_IN_MAP = 40
_NUM_CYCLES = 5
# Voters in the table, the least reliable first.
_NUM_VOTERS = 10


def sentences(found: ranking.Ranking) -> list[str]:
  """What can be said for sure, and what cannot."""
  result = []
  if found.scores is not None:
    result += [*_order(found, found.scores), *_not_identified(found, found.scores)]
  result.append(_majorities(found))
  result += _lottery(found)
  if found.cyclic_shares is not None:
    result += _cycles(found)
  if found.voters:
    result.append(_voters(found))
  # Labels stand within them.
  return [untrusted.printable(sentence) for sentence in result]


def _order(found: ranking.Ranking, scores: certainty.Scores) -> list[str]:
  size = len(found.labels)
  top = np.flatnonzero(scores.best_rank == 1)
  if size > 1 and np.all(scores.best_rank == 1) and np.all(scores.worst_rank == size):
    first = f'Not enough votes: no one is surely above any other of the {size}.'
  elif len(top) == 1:
    first = f'{found.labels[top[0]]} is first.'
  else:
    first = f'Tied for first: {_listed(found.labels, top)}; the votes do not tell who is.'
  more = _votes_to_tell(found, scores, top)
  return [f'{first} {more}' if more else first]


def _votes_to_tell(found: ranking.Ranking, scores: certainty.Scores, top) -> str | None:
  """How many more votes would tell the two best apart, if they are as far apart as they seem."""
  finite = [i for i in top if np.isfinite(scores.score[i])]
  finite.sort(key=lambda i: -scores.score[i])
  if len(top) < 2 or len(finite) < 2 or not np.isfinite(scores.error[finite[0], finite[1]]):
    return None
  one, other = finite[:2]
  difference = scores.score[one] - scores.score[other]
  if difference < 1e-6:
    return None
  times = (scores.critical * scores.error[one, other] / difference) ** 2
  total = float(np.sum(found.wins))
  if times <= 1:
    return None
  more = _rounded(total * (times - 1))
  return f'To tell {found.labels[one]} from {found.labels[other]} would take about {more} more votes like these.'


def _rounded(number: float) -> str:
  digits = max(0, int(np.floor(np.log10(max(number, 1)))) - 1)
  return f'{round(number / 10**digits) * 10**digits:,}'


def _not_identified(found: ranking.Ranking, scores: certainty.Scores) -> list[str]:
  result = []
  parts = [np.flatnonzero(scores.component == c) for c in range(scores.component.max() + 1)]
  if len(parts) > 1:
    groups = '; '.join('{' + _listed(found.labels, part) + '}' for part in parts)
    result.append(
      f'{len(parts)} groups never met, and nothing is known between them: {groups}. Scores are of each by itself.'
    )
  for i in np.flatnonzero(~np.isfinite(scores.score)):
    name = found.labels[i]
    if scores.score[i] > 0:
      said = f'never lost: at least {_elo(scores.low[i], relative=True)} points from the mean of the others, no upper end'
    elif scores.score[i] < 0:
      said = f'never won: at most {_elo(scores.high[i], relative=True)} points from the mean of the others, no lower end'
    else:
      said = 'its score is not identified'
    result.append(f'{name}: {said}.')
  return result


def _majorities(found: ranking.Ranking) -> str:
  winner = found.condorcet_winner
  who = 'No one beats all others' if winner is None else f'{found.labels[winner]} beats all others'
  cyclic = found.num_cyclic_triples
  text = f'{who}; {cyclic} cyclic triple{"" if cyclic == 1 else "s"} of majorities'
  if found.smith_set is None:
    missing = int(np.isnan(found.preference).sum()) // 2
    return f'{text}, with {missing} pair{"" if missing == 1 else "s"} that never met.'
  return f'{text}; Smith set of {int(found.smith_set.sum())}.'


def _lottery(found: ranking.Ranking) -> list[str]:
  if found.lottery_is_unique is None:
    return ['Pairs are missing: of the maximal lottery, Borda and Copeland only bounds are known.']
  if found.lottery_is_unique:
    return []
  return [
    'The maximal lottery is not unique: the one shown is one of many that no alternative beats.'
  ]


def _cycles(found: ranking.Ranking) -> list[str]:
  shares, size = found.cyclic_shares, len(found.labels)
  cyclic = shares.curl + shares.harmonic
  beyond = 'more than' if cyclic > shares.chance_at_most else 'no more than'
  result = [
    f'{cyclic:.1%} of what tells alternatives apart is no score: {beyond} chance makes of {size} scores '
    f'({shares.chance:.1%} in the mean; χ² {shares.pearson:,.0f} on {shares.degrees}, p = {_p(shares.p_value)}).'
  ]
  if found.skew is not None:
    result.append(
      f'A plane of circles beside the scores: likelihood ratio {found.skew.statistic:.1f}, p = {_p(found.skew.p_value)} '
      f'({found.skew.num_simulations} simulations).'
    )
  for cycle in found.significant_cycles[:_NUM_CYCLES]:
    names = [found.labels[i] for i in cycle.members]
    counts = ', '.join(f'{won:g}:{lost:g}' for won, lost in cycle.votes)
    result.append(
      f'A cycle that chance does not explain: {" > ".join([*names, names[0]])} ({counts}; p = {_p(cycle.p_value)}).'
    )
  if len(found.significant_cycles) > _NUM_CYCLES:
    result.append(f'And {len(found.significant_cycles) - _NUM_CYCLES} more such cycles.')
  return result


def _voters(found: ranking.Ranking) -> str:
  every = len(found.voters)
  kinds = {kind: [x.name for x in found.voters if x.flag == kind] for kind in ('coin', 'against')}
  parts = [
    f'{len(names)} vote{"s" if len(names) == 1 else ""} {said} ({_listed(names, range(len(names)))})'
    for said, names in (('like a coin', kinds['coin']), ('against the others', kinds['against']))
    if names
  ]
  who = f'Of {every} voters with {reliability.MIN_VOTES} or more decisive votes'
  if not parts:
    return f'{who} none votes like a coin, or against the others.'
  return f'{who} {" and ".join(parts)}; {reliability.LEVEL:.0%} of those flagged are flagged wrongly, in the mean.'


def _p(value: float) -> str:
  return f'{value:.3f}' if value >= 0.001 else f'{value:.0e}'


def _listed(labels, chosen) -> str:
  names = [labels[i] for i in chosen]
  return (
    ', '.join(names) if len(names) <= 8 else f'{", ".join(names[:7])} and {len(names) - 7} more'
  )


def order(found: ranking.Ranking) -> list[int]:
  """Alternatives from first to last: by score, or by lottery and Borda where there is none."""
  if found.scores is not None:
    score = np.where(np.isnan(found.scores.score), -1e300, found.scores.score)
    bound = np.where(score > 0, found.scores.low, found.scores.high)
    return sorted(
      range(len(score)), key=lambda i: (found.scores.component[i], -score[i], -bound[i])
    )
  lottery, borda = (np.nan_to_num(found.orders[name].high) for name in ('maximal_lottery', 'borda'))
  return sorted(range(len(borda)), key=lambda i: (-lottery[i], -borda[i]))


def table(found: ranking.Ranking) -> rich.table.Table:
  """One row for each alternative."""
  result = rich.table.Table()
  columns = _columns(found)
  for name in columns:
    result.add_column(name, justify='left' if name == 'alternative' else 'right')
  for i in order(found):
    result.add_row(*(untrusted.as_text(cells[i]) for cells in columns.values()))
  return result


def _columns(found: ranking.Ranking) -> dict[str, list[str]]:
  """Texts by column and alternative."""
  every = range(len(found.labels))
  result = {}
  if found.scores is not None:
    best, worst = found.scores.best_rank.tolist(), found.scores.worst_rank.tolist()
    result['rank'] = [_range(best[i], worst[i]) for i in every]
  result['alternative'] = list(found.labels)
  if found.scores is not None:
    result['Elo'] = [_score(found.scores, i) for i in every]
    if found.plain is not None:
      result['Elo, nothing held constant'] = [_score(found.plain, i) for i in every]
    result['won : lost'] = [
      f'{_count(found.wins[i].sum())} : {_count(found.wins[:, i].sum())}' for i in every
    ]
  for name, interval in found.orders.items():
    digits, title = (0, 'Elo') if name == 'elo' else (3, name.replace('_', ' '))
    result[title] = [_interval(interval, i, digits) for i in every]
  return result


def _range(best: int, worst: int) -> str:
  return str(best) if best == worst else f'{best}–{worst}'


def _count(number: float) -> str:
  return f'{number:,.0f}' if number == int(number) else f'{number:,.1f}'


def _elo(nats: float, relative: bool = False) -> str:
  points = bradley_terry.ELO * nats
  return f'{points:+,.0f}' if relative else f'{MEAN + points:,.0f}'


def _score(scores: certainty.Scores, i: int) -> str:
  low, high = scores.low[i], scores.high[i]
  if np.isfinite(low) and np.isfinite(high):
    return f'{_elo(scores.score[i])} [{_elo(low)}, {_elo(high)}]'
  if np.isfinite(low):
    return f'≥ {_elo(low)}'
  return f'≤ {_elo(high)}' if np.isfinite(high) else 'not identified'


def _interval(interval: ranking.Interval, i: int, digits: int) -> str:
  value, low, high = (f'{part[i]:.{digits}f}' for part in interval)
  if low == high:
    return low
  return f'[{low}, {high}]' if np.isnan(interval.value[i]) else f'{value} [{low}, {high}]'


def judges_table(found: ranking.Ranking) -> rich.table.Table | None:
  """One row for each judge; None where votes do not tell judges apart and no order is known."""
  known = [(judge.first_wins, judge.own_agreement) for judge in found.judges]
  if len(found.judges) < 2 and np.isnan(known).all():
    return None
  result = rich.table.Table(title='Judges')
  for name in (
    'judge',
    'votes',
    'ties',
    'both bad',
    'first shown wins',
    'agrees with others',
    'with itself',
  ):
    result.add_column(name, justify='left' if name == 'judge' else 'right')
  for judge in found.judges:
    first = first_wins(judge)
    with_others = share_of(judge.agreement, judge.num_compared)
    with_itself = share_of(judge.own_agreement, judge.num_own)
    numbers = f'{judge.num_votes:,.0f}', f'{judge.tie_share:.3f}', f'{judge.both_bad_share:.3f}'
    result.add_row(
      untrusted.as_text(judge.name or 'not named'), *numbers, first, with_others, with_itself
    )
  return result


def first_wins(judge: agreement.Judge) -> str:
  """How often who was shown first wins, with its interval."""
  if np.isnan(judge.first_wins):
    return '–'
  return f'{judge.first_wins:.3f} [{judge.first_wins_low:.3f}, {judge.first_wins_high:.3f}]'


def share_of(share: float, number: int) -> str:
  """A share of a number of comparisons; a dash where there are none."""
  return '–' if np.isnan(share) else f'{share:.3f} of {number:,}'


def voters_columns(found: ranking.Ranking) -> dict[str, list[str]]:
  """Texts by column of the least reliable voters, those flagged first."""
  shown = found.voters[:_NUM_VOTERS]
  return {
    'voter': [x.name for x in shown],
    'decisive votes': [f'{x.num_votes:,}' for x in shown],
    'as the others': [f'{x.accuracy:.3f} [{x.low:.3f}, {x.high:.3f}]' for x in shown],
    'foretold': [f'{x.expected:.3f}' for x in shown],
    'log-loss': [f'{x.log_loss:.3f}' for x in shown],
    'p, as the others': [_p(x.p_others) for x in shown],
    'p, a coin': [_p(x.p_chance) for x in shown],
    'votes like': [{'coin': 'a coin', 'against': 'against all'}.get(x.flag, '') for x in shown],
  }


def _voters_rows(found: ranking.Ranking) -> dict[str, list] | None:
  columns = voters_columns(found)
  rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
  return {'columns': list(columns), 'rows': rows} if rows else None


def voters_table(found: ranking.Ranking) -> rich.table.Table | None:
  """One row for each of the least reliable voters; None where no voter has enough votes."""
  if not found.voters:
    return None
  columns = voters_columns(found)
  result = rich.table.Table(title='Least reliable voters')
  for name in columns:
    result.add_column(name, justify='left' if name == 'voter' else 'right')
  for cells in zip(*columns.values(), strict=True):
    result.add_row(*map(untrusted.as_text, cells))
  return result


def to_json(found: ranking.Ranking, source: str) -> dict[str, Any]:
  """Everything as plain numbers: scores in Elo points, null where there is none."""
  result = {
    'source': source,
    'labels': list(found.labels),
    'sentences': sentences(found),
    'condorcet_winner': None
    if found.condorcet_winner is None
    else found.labels[found.condorcet_winner],
    'smith_set': None
    if found.smith_set is None
    else [found.labels[i] for i in np.flatnonzero(found.smith_set)],
    'num_cyclic_triples': found.num_cyclic_triples,
    'lottery_is_unique': found.lottery_is_unique,
    'orders': {name: _plain(interval._asdict()) for name, interval in found.orders.items()},
  }
  if found.scores is None:
    return result
  elo = lambda nats: MEAN + bradley_terry.ELO * nats
  scores = found.scores
  return result | {
    'scores': _plain(
      {
        'elo': elo(scores.score),
        'low': elo(scores.low),
        'high': elo(scores.high),
        'best_rank': scores.best_rank,
        'worst_rank': scores.worst_rank,
        'component': scores.component,
        'group': found.fit.group,
      }
    ),
    'likelihood': _plain(found.fit.others) | {'nats_per_vote': found.fit.loss},
    'cyclic_shares': None if found.cyclic_shares is None else found.cyclic_shares._asdict(),
    'cycles': [
      {'members': [found.labels[i] for i in cycle.members], 'votes': cycle.votes, 'p_value': cycle.p_value}
      for cycle in found.significant_cycles
    ],
    'skew_test': None if found.skew is None else found.skew._asdict(),
    'judges': [_plain(judge._asdict()) for judge in found.judges],
    'voters': {
      'num_voters': len(found.voters),
      'num_flagged': sum(bool(x.flag) for x in found.voters),
      'least_reliable': [
        _plain(x._asdict()) for n, x in enumerate(found.voters) if x.flag or n < _NUM_VOTERS
      ],
    },
  }  # fmt: skip


def _plain(value: Any) -> Any:
  """Lists and numbers; null in place of what is not finite."""
  if isinstance(value, dict):
    return {key: _plain(part) for key, part in value.items()}
  if isinstance(value, (np.ndarray, list, tuple)):
    return [_plain(part) for part in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not np.isfinite(value) else value


def write_page(found: ranking.Ranking, source: str, path: pathlib.Path) -> None:
  """One self-contained page; where there is a link, the file that it leads to is replaced."""
  columns = _columns(found)
  page = report.render(
    'ranking.html',
    source=source,
    sentences=sentences(found),
    columns=list(columns),
    rows=[[cells[i] for cells in columns.values()] for i in order(found)],
    scores=_scores_plot(found),
    matrix=_matrix(found),
    judges=found.judges if judges_table(found) is not None else (),
    voters=_voters_rows(found),
  )
  atomic.write_text(path, page, follow=True)


def _scores_plot(found: ranking.Ranking) -> str | None:
  """Scores with their intervals as a picture; an arrow where an end is at infinity."""
  if found.scores is None:
    return None
  shown = order(found)
  low, high = (MEAN + bradley_terry.ELO * part for part in (found.scores.low, found.scores.high))
  known = np.concatenate([low[np.isfinite(low)], high[np.isfinite(high)], [MEAN]])
  margin = 0.08 * max(np.ptp(known), 50)
  left, right = known.min() - margin, known.max() + margin
  figure = matplotlib.figure.Figure(figsize=(8, 0.6 + 0.26 * len(shown)), layout='constrained')
  axes = figure.subplots()
  for place, i in enumerate(shown):
    ends = max(low[i], left), min(high[i], right)
    axes.plot(ends, [place, place], color='#0072b2', linewidth=2)
    if np.isfinite(found.scores.score[i]):
      axes.plot([MEAN + bradley_terry.ELO * found.scores.score[i]], [place], 'o', color='#0072b2')
    for end, limit, mark in ((high[i], right, '>'), (low[i], left, '<')):
      if not np.isfinite(end):
        axes.plot([limit], [place], mark, color='#0072b2')
  axes.set_yticks(
    range(len(shown)), [untrusted.printable(found.labels[i]).replace('$', r'\$') for i in shown]
  )
  axes.set_xlim(left, right)
  axes.set_ylim(len(shown) - 0.5, -0.5)
  axes.set_xlabel('Elo, 95 % interval')
  axes.grid(axis='x', alpha=0.3)
  return report.data_uri(figure, 'png', 'image/png', dpi=120)


def _matrix(found: ranking.Ranking) -> dict[str, Any]:
  """The shares of the first few against each other."""
  shown = order(found)[:_NUM_IN_MAP]
  return {
    'labels': [found.labels[i] for i in shown],
    'shares': [
      [None if np.isnan(p := found.preference[i, j]) else float(p) for j in shown] for i in shown
    ],
    'left_out': len(found.labels) - len(shown),
  }
