"""Flags of responses: the same of `nlhf annotate` and `nlhf judge`."""

import json

import pytest

from nlhf_jax.cli import flags, responses
from nlhf_jax.votes.responses import Pair


@pytest.mark.parametrize(
  'command', [['annotate', '--output=v.jsonl'], ['judge', '--output=v.jsonl', '--model=m']]
)
def test_responses_of_files_and_of_runs_are_compared_together(tmp_path, command):
  run = tmp_path / 'run'
  run.mkdir()
  sample = {'prompt': 'p', 'responses': {'sft': {'text': 's', 'preference': 0.5}}}
  (run / 'samples.jsonl').write_text(json.dumps(sample))
  (tmp_path / 'one').write_text(json.dumps({'prompt': 'p', 'response': 'n'}))
  named = [f'--responses=nash={tmp_path / "one"}', f'--run_dirs={run}']
  expected = [Pair('p', 'nash', 'sft', 'n', 's')]
  assert responses.pairs(flags.parse([*command, *named])) == expected
  with pytest.raises(ValueError, match='name responses with --responses or --run_dirs'):
    responses.pairs(flags.parse(command))
