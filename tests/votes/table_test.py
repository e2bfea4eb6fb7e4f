"""The schema of votes: what it refuses, and its columns."""

import math

import numpy as np
import pytest

from nlhf_jax.votes import table

VOTE = {'a': 'm', 'b': 'n', 'verdict': 'a'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'a': None}, "field 'a' is missing"),
    ({'b': 3}, "field 'b' must be a string, got int"),
    ({'b': 'm'}, "fields 'a' and 'b' are both 'm'"),
    ({'verdict': 'A'}, "field 'verdict' must be one of a, b, tie, both_bad, got 'A'"),
    ({'verdict': None}, "one of the fields 'verdict' and 'probability'"),
    ({'probability': 0.5}, "one of the fields 'verdict' and 'probability'"),
    ({'verdict': None, 'probability': 1.2}, r'within \[0, 1\], got 1.2'),
    ({'verdict': None, 'probability': float('nan')}, 'must be a finite number, got nan'),
    ({'order': 'first'}, "field 'order' must be one of ab, ba"),
    ({'weight': -1}, "field 'weight' must be 0 or more"),
    ({'time': '2024'}, "field 'time' must be a finite number"),
    ({'x': {'tokens': None}}, "field 'x.tokens' must be a finite number"),
    ({'x': [1]}, "field 'x' must be numbers by name"),
    ({'response_a': 'text'}, "field 'response_b' is missing"),
    ({'prompt': 'half \ud83d'}, 'half of a character'),
    ({'winner': 'm'}, "field 'winner' is none of a vote"),
  ],
)
def test_refused(changes, message):
  with pytest.raises(table.FieldError, match=message):
    table.checked(VOTE | changes)


@pytest.mark.parametrize('voter', ['', ' \t\n', '\u3000', math.nan, np.float32('nan'), None])
def test_who_is_blank_is_unknown(voter):
  """Or all who are unknown would be one voter, the most productive of all."""
  votes = table.columns(table.checked(VOTE | {'voter': x}) for x in (voter, 'u', voter, ' u'))
  assert votes.voter.tolist() == [table.UNKNOWN, 0, table.UNKNOWN, 1]
  assert votes.voters == ('u', ' u')


@pytest.mark.parametrize('field', ['a', 'prompt', 'response_a', 'judge', 'split'])
def test_nan_is_no_name(field):
  with pytest.raises(table.FieldError, match=f"field '{field}' must be a string, got float"):
    table.checked(VOTE | {'response_a': 'A', 'response_b': 'B', field: math.nan})


def test_columns():
  votes = table.columns(
    table.checked(row)
    for row in [
      VOTE | {'voter': 'u', 'order': 'ab', 'x': {'tokens': 3}, 'judge': 'gpt'},
      {'a': 'n', 'b': 'o', 'probability': 0.25, 'weight': 2, 'order': 'ba', 'x': {'tokens': -1}},
      {'a': 'o', 'b': 'm', 'verdict': 'tie', 'voter': 'u', 'x': {'tokens': 0}},
    ]
  )
  assert votes.labels == ('m', 'n', 'o')
  np.testing.assert_array_equal(votes.verdict, [[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 1, 0]])
  assert votes.voter.tolist() == [0, table.UNKNOWN, 0]
  assert votes.order.tolist() == [1, -1, 0]
  assert votes.counts.tolist() == [1, 2, 1]
  assert (votes.x_names, votes.x.ravel().tolist()) == (('tokens',), [3, -1, 0])
  assert votes.judges == ('gpt', '')
  np.testing.assert_array_equal(table.wins(votes), [[0, 1, 0.5], [0, 0, 0.5], [0.5, 1.5, 0]])


def test_what_cannot_be_ranked():
  with pytest.raises(ValueError, match='There are no votes'):
    table.columns([])
  with pytest.raises(ValueError, match='fields a and b are needed'):
    table.columns([table.checked({'response_a': 'x', 'response_b': 'y', 'verdict': 'a'})])
  with pytest.raises(ValueError, match=r"has the features \[\], the first vote \['tokens'\]"):
    table.columns([table.checked(VOTE | {'x': {'tokens': 1}}), table.checked(VOTE)])
