"""What is known of voters in words and as tables. Names are untrusted text."""

from typing import Any

import rich.table

from nlhf_jax import untrusted


def sentences(found: dict[str, Any]) -> list[str]:
  """What can be said of voters in general; `found` is of `voter_accuracy`."""
  result = [_who_disagrees(found['disagreement'])]
  for what, key in ((f'{found["num_known"]:,} known voters', 'known'), *_few(found)):
    part = found['known'] if key == 'known' else found['unseen'][key]
    if part is None:
      continue
    accuracy = part['accuracy']
    result.append(
      f'Of {what}, {_share(accuracy["own"])} of further votes are foretold, where the population foretells '
      f'{_share(accuracy["population"])}: a gain of {_share(accuracy["gain"])}.'
    )
  if found['num_unseen'] == 0:
    most = max(map(int, found['unseen']))
    result.append(f'No voter has more than {most} votes: nothing is said of unseen ones.')
  for number, taste in enumerate(found['tastes'], start=1):
    if taste['share'] >= 0.01:
      named = ', '.join(f'{name} ({value:+.2f})' for name, value in taste['features'].items())
      result.append(f'Taste {number}, {taste["share"]:.0%} of how voters differ: {named}.')
  return [untrusted.printable(sentence) for sentence in result]


def _few(found: dict[str, Any]) -> list[tuple[str, str]]:
  """The last of the sizes."""
  most = max(found['unseen'], key=int)
  return [(f'{found["num_unseen"]:,} unseen voters after {most} votes of each', most)]


def _who_disagrees(parts: dict[str, Any]) -> str:
  share = parts.get('share_of_voters')
  whole = max(parts['voters'] + parts['noise'], 1e-12)
  of_voters = f'{parts["voters"] / whole:.3f}' if share is None else _share(share)
  return (
    f'Of what votes could differ by, {parts["agreed"]:.3f} is settled by what voters have in common; of the rest, {of_voters} is who '
    'votes, and what remains is noise.'
  )


def _share(interval: dict[str, Any]) -> str:
  if interval['low'] is None:
    return f'{interval["mean"]:.3f}'
  return f'{interval["mean"]:.3f} [{interval["low"]:.3f}, {interval["high"]:.3f}]'


def _narrow(text: str) -> str:
  return text.replace('0.', '.').replace('-', '−')


def accuracy_table(found: dict[str, Any]) -> rich.table.Table:
  """Known voters, and unseen ones after each number of votes, beside the population."""
  result = rich.table.Table(title='How well votes are foretold, 95 % intervals over voters')
  for name in ('voters', 'accuracy', 'population', 'log-loss', 'population', 'gain in nats'):
    result.add_column(name, justify='left' if name == 'voters' else 'right')
  rows = [('known', found['known'])]
  rows += [(f'unseen, {size} votes', part) for size, part in found['unseen'].items()]
  for name, part in rows:
    if part is not None:
      accuracy, loss = part['accuracy'], part['log_loss']
      cells = [
        accuracy['own'],
        accuracy['population'],
        loss['own'],
        loss['population'],
        loss['gain'],
      ]
      result.add_row(name, *(untrusted.as_text(_narrow(_share(cell))) for cell in cells))
  return result


def calibration_table(found: dict[str, Any]) -> rich.table.Table:
  """What was foretold, and what came."""
  result = rich.table.Table(title='Calibration')
  for name in ('voters', 'votes', 'foretold', 'came'):
    result.add_column(name, justify='left' if name == 'voters' else 'right')
  for name, part in found['calibration'].items():
    for one in part['bins']:
      cells = f'{one["number"]:,}', f'{one["foretold"]:.3f}', f'{one["votes"]:.3f}'
      result.add_row(name.replace('_', ' '), *cells)
  return result
