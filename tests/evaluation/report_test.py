"""The report's text is escaped, and nothing is fetched."""

import json

import numpy as np
import pytest

from nlhf_jax.evaluation import report, win_rates


def test_escaping(tmp_path):
  attack = '<script>alert(1)</script>" onmouseover="x'
  row = {'prompt': attack, 'responses': {attack: {'text': attack, 'preference': 0.5}}}
  (tmp_path / 'samples.jsonl').write_text(json.dumps(row) + '\n')
  (tmp_path / attack.replace('/', '')).mkdir()
  (tmp_path / attack.replace('/', '') / 'metrics.jsonl').write_text(
    '{"step": 1, "loss": 1, "entropy": 2.0}\n'
  )
  per_prompt = np.full((4, 2, 2), 0.5)
  win_rates.write(tmp_path, win_rates.summarise(per_prompt, (attack, '[red]x'), attack))
  page = report.from_run_dir(tmp_path).read_text()
  assert '<script' not in page
  assert 'onmouseover="x' not in page
  assert '&lt;script&gt;' in page
  assert 'No exact.json here' in page
  assert 'http' not in page.replace('http-equiv', '')  # Nothing is fetched from anywhere.
  report.print_tables(tmp_path)


def test_error_of_a_missing_directory(tmp_path):
  with pytest.raises(FileNotFoundError, match='nlhf demo'):
    report.from_run_dir(tmp_path / 'none')
