"""Judges that are rules on text, by hand."""

import itertools

import pytest

from nlhf_jax.judges import rules

RULES = {
  'shorter': rules.shorter,
  'coverage': rules.coverage,
  'precision': rules.precision,
  'contains': rules.contains('fire'),
}
PROMPT = 'A fire broke out near the harbour; nobody was hurt.'
TEXTS = [
  '',
  ' ',
  'Fire!',
  'Fire, fire, fire.',
  'A fire near the harbour',
  'A storm',
  'Nobody slept.',
]


@pytest.mark.parametrize(
  ('rule', 'first', 'second', 'expected'),
  [
    ('shorter', 'one two', 'one two three', 1),
    ('shorter', 'a-b c', 'a b', 0),
    ('shorter', 'longword', 'x', 0.5),
    # fire; fire, harbour.
    ('coverage', 'Fire.', 'A HARBOUR', 0),
    ('coverage', 'harbour fire', 'fire harbour fire', 0.5),
    ('coverage', 'the fire and the storm', 'storm', 1),
    # 2/2 against 2/3, and 1/2 against 3/6.
    ('precision', 'fire harbour', 'fire harbour storm', 1),
    ('precision', 'fire storm', 'fire fire fire storm storm storm', 0.5),
    ('contains', 'All is on FIRE', 'All is well', 1),
    ('contains', 'fire', 'fire and fire', 0.5),
    ('contains', 'water', 'wildfires', 0),
  ],
)
def test_rule_by_hand(rule, first, second, expected):
  assert RULES[rule](PROMPT, first, second) == expected


@pytest.mark.parametrize('rule', RULES)
def test_both_orders_add_up_to_one(rule):
  for first, second in itertools.product(TEXTS, TEXTS):
    forward, backward = RULES[rule](PROMPT, first, second), RULES[rule](PROMPT, second, first)
    assert forward + backward == 1
    assert forward in (0, 0.5, 1)


@pytest.mark.parametrize('rule', RULES)
def test_empty_response_loses_to_any_other(rule):
  for other in TEXTS[2:]:
    assert RULES[rule](PROMPT, ' ', other) == 0
  assert RULES[rule](PROMPT, '', ' ') == 0.5


def test_votes_of_three_rules_cycle():
  """Each rule orders all texts on a line, and yet two of three prefer a to b, b to c, and c to a.

  | text | words | of the prompt | their share |
  |------|-------|---------------|-------------|
  | a    | 2     | 1             | 1/2         |
  | b    | 7     | 3             | 3/7         |
  | c    | 8     | 2             | 1           |
  """
  vote = rules.votes([rules.shorter, rules.coverage, rules.precision])
  a, b, c = 'fire storm', 'fire harbour nobody' + 4 * ' storm', 4 * 'fire harbour '
  for first, second in [(a, b), (b, c), (c, a)]:
    assert vote(PROMPT, first, second) == pytest.approx(2 / 3)
    assert vote(PROMPT, second, first) == pytest.approx(1 / 3)


def test_rules_without_a_phrase_or_a_voter_are_refused():
  with pytest.raises(ValueError, match='phrase must not be empty'):
    rules.contains('')
  with pytest.raises(ValueError, match='at least one voter'):
    rules.votes([])
