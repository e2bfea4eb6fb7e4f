"""Rollouts and warnings of runs, as the report shows them: read from what `training.traces` and the run's warnings left.

The page holds the newest rollouts of each run as JSON, and a script (rollouts.js) that shows them. Texts are untrusted:
the JSON has no character that could end its element, the script makes text nodes of it alone, and the page's policy allows
no script but this one, by its hash.
"""

import base64
import hashlib
import importlib.resources
import itertools
import pathlib
from collections.abc import Iterable
from typing import Any

import markupsafe

from nlhf_jax.runtime import metrics

# Pairs of a run on the page, characters of a text, and characters of all of them; the rest is in votes.jsonl.
NUM_SHOWN = 200
MAX_TEXT = 6000
MAX_PAGE = 8_000_000


def run_dirs(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Runs by name: those in the directory, and the directory itself where it is one."""
  found = [directory] if (directory / metrics.METRICS).is_file() else []
  found += sorted(path.parent for path in directory.glob(f'*/{metrics.METRICS}'))
  return {path.resolve().name: path for path in found}


def warnings(runs: dict[str, pathlib.Path]) -> list[dict[str, str]]:
  """Run and text of each, as they came."""
  return [
    {'run': name, 'text': row['text']}
    for name, path in runs.items()
    for row in metrics.read_rows(path / metrics.WARNINGS)
  ]


def newest(runs: dict[str, pathlib.Path]) -> list[dict[str, Any]]:
  """The newest rollouts of each run that has some, the oldest first, and how many are left out."""
  found = {}
  for name, path in runs.items():
    rows = [row for row in metrics.read_rows(path / 'votes.jsonl') if 'rollout' in row]
    if rows:
      # A stable sort: within a step, as they were written.
      found[name] = sorted(rows, key=lambda row: row['rollout']['step'])
  result = []
  for name, rows in found.items():
    shown = [_shown(row) for row in rows[-NUM_SHOWN:]]
    sizes = itertools.accumulate(map(_size, reversed(shown)))
    number = sum(size <= MAX_PAGE // len(found) for size in sizes)
    shown = shown[len(shown) - number :]
    result.append({'name': name, 'left_out': len(rows) - number, 'rows': shown})
  return result


def _size(shown: dict[str, Any]) -> int:
  return len(shown['prompt']) + sum(map(len, shown['responses']))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
  known = row['rollout']
  texts = [row['prompt'], *(row[x] for x in ('response_a', 'response_b') if x in row)]
  return {
    'step': known['step'],
    'prompt': texts[0][:MAX_TEXT],
    'responses': [text[:MAX_TEXT] for text in texts[1:]],
    'hidden': [max(0, len(text) - MAX_TEXT) for text in texts],
    'drawn_by': known['drawn_by'],
    'p': row.get('probability'),
    'mean': known.get('preference'),
    'opponents': known.get('opponents', 0),
    'reward': known.get('reward'),
    'log_ratio': known['log_ratio'],
    'tokens': known['tokens'],
    'ended': known['ended'],
  }


def script() -> markupsafe.Markup:
  """What shows them; it is ours, and not escaped."""
  file = importlib.resources.files('nlhf_jax.evaluation') / 'rollouts.js'
  return markupsafe.Markup(file.read_text(encoding='utf-8'))


def content_policy(scripts: Iterable[str]) -> str:
  """A page's policy: nothing is fetched, and no script runs but these."""
  hashes = [
    f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    for text in scripts
  ]
  allowed = ' '.join(hashes) or "'none'"
  return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
