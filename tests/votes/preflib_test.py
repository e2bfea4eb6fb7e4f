"""PrefLib's ballots."""

import pytest

from nlhf_jax.votes import readers

NAMES = (
  '# FILE NAME: 1.toi\n# ALTERNATIVE NAME 1: x\n# ALTERNATIVE NAME 2: y\n# ALTERNATIVE NAME 3: z\n'
)


def test_ballots(tmp_path):
  """Each voter of a ballot votes; who is not on it is not compared."""
  path = tmp_path / 'votes.toi'
  path.write_text(f'{NAMES}2: 1,{{2,3}}\n1: 3,1\n')
  votes = list(readers.votes(path))
  said = [(vote['a'], vote['b'], vote['verdict']) for vote in votes]
  assert said == [('x', 'y', 'a'), ('x', 'z', 'a'), ('y', 'z', 'tie')] * 2 + [('z', 'x', 'a')]
  assert len({vote['voter'] for vote in votes}) == 3


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('2: 1,4', 'candidate 4 has no line'),
    ('2: 1,{2,1}', 'a candidate is on the ballot twice'),
    ('two: 1,2', 'expected "count: 1,2,'),
    ('2: 1;2', 'expected "count: 1,2,'),
  ],
)
def test_malformed_ballot(tmp_path, line, message):
  path = tmp_path / 'votes.soi'
  path.write_text(f'{NAMES}{line}\n')
  with pytest.raises(ValueError, match=rf'votes\.soi:5: {message}'):
    list(readers.votes(path))
