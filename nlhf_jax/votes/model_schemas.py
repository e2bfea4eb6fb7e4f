"""Formats that compare named models, for rankings: Chatbot Arena, AlpacaEval, Arena-Hard and MT-Bench."""

from typing import Any

from nlhf_jax.votes.fields import list_of, name_of, number_of, one_of, text, voter_of
from nlhf_jax.votes.table import FieldError, Row

_WINNERS = {
  'model_a': 'a',
  'model_b': 'b',
  'tie': 'tie',
  'tie (bothbad)': 'both_bad',
  'both_bad': 'both_bad',
}


def arena(row: Row) -> list[Row]:
  """Chatbot Arena and FastChat: 33k, 100k and 140k votes, and MT-Bench's human ones."""
  vote = {
    'a': text(row, 'model_a'),
    'b': text(row, 'model_b'),
    'verdict': one_of(row, 'winner', _WINNERS),
    'voter': voter_of(row, 'evaluation_session_id', 'judge_hash', 'judge'),
    'judge': 'human',
    'prompt': name_of(row, 'question_id'),
    'time': number_of(row, 'tstamp') if row.get('tstamp') is not None else None,
  }
  if isinstance(row.get('conv_metadata'), dict):
    vote['x'] = _style(row['conv_metadata'])
  return [vote]


def _style(metadata: Row) -> dict[str, float]:
  """a's less b's tokens, headers, list items and bold words."""
  fields = {'tokens': 'sum_assistant_{}_tokens'} | {
    name: f'{field}_{{}}'
    for name, field in (
      ('headers', 'header_count'),
      ('lists', 'list_count'),
      ('bold', 'bold_count'),
    )
  }
  number = lambda field: _total(metadata.get(field), f'conv_metadata.{field}')
  return {name: number(f.format('a')) - number(f.format('b')) for name, f in fields.items()}


def _total(value: Any, field: str) -> float:
  parts = list(value.values()) if isinstance(value, dict) else [value]
  return sum(number_of({field: part}, field) for part in parts if part is not None)


def arena_55k(row: Row) -> list[Row]:
  """Chatbot Arena as a competition had it: one column for each outcome."""
  shares = [number_of(row, f'winner_{who}') for who in ('model_a', 'model_b', 'tie')]
  if sorted(shares) != [0, 0, 1]:
    raise FieldError(
      f'one of winner_model_a, winner_model_b and winner_tie must be 1, got {shares}'
    )
  verdict = ('a', 'b', 'tie')[shares.index(1)]
  responses = {f'response_{side}': name_of(row, f'response_{side}') for side in 'ab'}
  names = {'a': text(row, 'model_a'), 'b': text(row, 'model_b')}
  return [
    {'prompt': name_of(row, 'prompt'), 'verdict': verdict, 'judge': 'human'} | names | responses
  ]


def alpaca_eval(row: Row) -> list[Row]:
  """1: the first is better, 2: the second, between: 1 + P(second), 0: equal outputs, −1 or null: failed."""
  if row.get('preference') in (None, -1) or row['preference'] != row['preference']:
    return []
  preference = number_of(row, 'preference')
  if preference != 0 and not 1 <= preference <= 2:
    raise FieldError(f"field 'preference' must be 0 or in [1, 2], got {preference!r}")
  verdict = {0.0: 'tie', 1.0: 'a', 1.5: 'tie', 2.0: 'b'}.get(preference)
  vote: Row = {'verdict': verdict} if verdict else {'probability': 2 - preference}
  names = {'a': name_of(row, 'generator_1'), 'b': name_of(row, 'generator_2')}
  named = all(names.values()) and names['a'] != names['b']
  responses = {'response_a': text(row, 'output_1'), 'response_b': text(row, 'output_2')}
  vote |= responses | (names if named else {})
  return [vote | {'prompt': text(row, 'instruction'), 'judge': name_of(row, 'annotator')}]


_SCORES = {
  f'{x}{sign}{y}': sign
  for (x, y), signs in (
    (('A', 'B'), ('>>', '>', '=', '<', '<<')),
    (('B', 'A'), ('>>', '>', '=', '<', '<<')),
  )
  for sign in signs
}


def arena_hard(row: Row) -> list[Row]:
  """A model against the baseline, twice: shown second, then first. A strong verdict is one vote, as a weak one."""
  found = []
  for number, game in enumerate(list_of(row, 'games')):
    if not isinstance(game, dict):
      raise FieldError(f'field games.{number} must be an object, got {game!r}')
    if game.get('score') is None:
      continue
    score = str(game['score'])
    sign = one_of({f'games.{number}.score': score}, f'games.{number}.score', _SCORES)
    better = 'tie' if '=' in score else score[0] if '>' in sign else score[-1]
    shown_first = 'baseline' if number == 0 else 'model'
    verdict = (
      'tie' if better == 'tie' else 'a' if (better == 'A') == (shown_first == 'model') else 'b'
    )
    found.append(
      {
        'a': text(row, 'model'),
        'b': 'baseline',
        'verdict': verdict,
        'order': 'ba' if shown_first == 'baseline' else 'ab',
        'judge': name_of(row, 'judge'),
        'prompt': name_of(row, 'question_id', 'uid'),
      }
    )
  return found


def mt_bench(row: Row) -> list[Row]:
  """A model's two judgements of a pair, the second with the answers exchanged."""
  winners = {'model_1': 'a', 'model_2': 'b', 'tie': 'tie', 'error': None}
  judge = row.get('judge')
  judge = '/'.join(map(str, judge)) if isinstance(judge, list) else name_of(row, 'judge')
  question, turn = name_of(row, 'question_id'), name_of(row, 'turn')
  prompt = f'{question} turn {turn}' if question and turn else question
  found = []
  for field, order in (('g1_winner', 'ab'), ('g2_winner', 'ba')):
    verdict = one_of(row, field, winners)
    if verdict is not None:
      names = {'a': text(row, 'model_1'), 'b': text(row, 'model_2')}
      found.append(names | {'verdict': verdict, 'order': order, 'judge': judge, 'prompt': prompt})
  return found
