"""Rankings from votes beside those of choix, evalica, leaderbot and arena-rank: the same scores, and the time of each.

  python benchmarks/votes_speed.py --data chatbotarena_20240814.json --output out.json

The file is the one of Chatbot Arena in the wheel of leaderbot 0.4.3 (models, X pairs, Y counts). Peers are installed from the package index into
environments of their own (benchmarks/.venv-votes, benchmarks/.venv-arena-rank), since arena-rank pins its jax.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import environments
import numpy as np
from rich import console
from rich import table as rich_table
from timing import seconds

from nlhf_jax.votes import bradley_terry, certainty, resampling, table
from nlhf_jax.votes.likelihood import Model

PEERS = {
  'choix': ('.venv-votes', ('choix==0.4.1', 'evalica==0.4.2', 'leaderbot==0.4.3')),
  'evalica': ('.venv-votes', ('choix==0.4.1', 'evalica==0.4.2', 'leaderbot==0.4.3')),
  'leaderbot': ('.venv-votes', ('choix==0.4.1', 'evalica==0.4.2', 'leaderbot==0.4.3')),
  'arena_rank': ('.venv-arena-rank', ('arena-rank==0.1.1',)),
}
DECISIVE = Model('drop', 'drop')
DAVIDSON = Model('davidson', 'drop')
NUM_VOTERS = 20_000


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', required=True)
  parser.add_argument('--output')
  parser.add_argument('--peers', nargs='*', default=list(PEERS))
  args = parser.parse_args()
  content = json.loads(pathlib.Path(args.data).read_text())
  pairs, counts = np.array(content['X']), np.array(content['Y'], float)
  votes = _votes(content['models'], pairs, counts)
  ours = _ours(votes)
  found = {'nlhf_jax': {name: value for name, value in ours.items() if name.endswith('_seconds')}}
  with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / 'votes.npz'
    np.savez(file, models=np.array(content['models']), i=pairs[:, 0], j=pairs[:, 1], counts=counts)
    for peer in args.peers:
      found[peer] = _compared(_peer(peer, file), ours)
  shown = rich_table.Table()
  rows = sorted({row for each in found.values() for row in each})
  for name in ('', *found):
    shown.add_column(name, justify='right')
  for row in rows:
    shown.add_row(row, *(f'{each[row]:.3g}' if row in each else '–' for each in found.values()))
  console.Console().print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(found, indent=2) + '\n')


def _votes(models, pairs, counts) -> table.Votes:
  a, b = (np.repeat(side, 4) for side in pairs.T)
  return table.from_counts(a, b, np.tile(np.eye(4), (len(pairs), 1)), counts.ravel(), models)


def _ours(votes: table.Votes) -> dict[str, Any]:
  decisive, davidson = (bradley_terry.fit(votes, model) for model in (DECISIVE, DAVIDSON))
  size = len(votes.labels)
  cast = _with_voters(votes)
  resample = lambda: resampling.resample(cast, DAVIDSON, num_resamples=1000)
  return {
    'bradley_terry': decisive.scores,
    'half_width': 1.959964 * np.sqrt(np.diag(decisive.covariance)[:size]),
    'davidson': davidson.scores,
    'log_nu': davidson.others['log_nu'],
    'bradley_terry_seconds': seconds(lambda: bradley_terry.fit(votes, DECISIVE)),
    'davidson_seconds': seconds(lambda: bradley_terry.fit(votes, DAVIDSON)),
    'with_ranks_seconds': seconds(lambda: certainty.scores(votes), 1),
    'thousand_resamples_of_voters_seconds': seconds(resample, 1),
  }


def _with_voters(votes: table.Votes) -> table.Votes:
  """Every vote as a row, given to one of the voters at random: the file does not say whose they were."""
  each = np.repeat(np.arange(len(votes.a)), votes.counts.astype(int))
  voter = np.random.default_rng(0).integers(NUM_VOTERS, size=len(each)).astype(np.int32)
  rows = table.select(votes, each)
  return rows._replace(counts=np.ones(len(each)), voter=voter)


def _peer(name: str, votes: pathlib.Path) -> dict[str, Any]:
  here = pathlib.Path(__file__).parent
  directory, packages = PEERS[name]
  python = environments.python_of(directory, packages)
  output = votes.with_name(f'{name}.json')
  subprocess.run([python, here / 'votes_peers.py', name, votes, output], check=True, cwd=here)
  return json.loads(output.read_text())


def _compared(peer: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
  """The largest difference in each quantity, in nats, and times."""
  result = {}
  for name, value in peer.items():
    if name.endswith('_seconds'):
      result[name] = value
    else:
      result[f'{name}_differs_by'] = float(np.max(np.abs(np.array(value) - ours[name])))
  return result


if __name__ == '__main__':
  sys.exit(main())
