"""Public formats of votes: what each calls its fields, and the votes of a row.

A schema makes votes (`votes.table`) of a row as its publisher wrote it: none where a judgement failed, several where
several voted. It is told from a file's first row by the fields that only it has; `votes.preflib` has the one format
that is no table.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax.votes import table
from nlhf_jax.votes.table import FieldError, Row


class Schema(NamedTuple):
  """A public format."""

  # A row is of this format if it has all of these.
  fields: tuple[str, ...]
  votes: Callable[[Row], list[Row]]


def votes_of(schema: Schema, row: Row) -> list[Row]:
  """The votes of one row, each with all fields of the table.

  Raises:
    FieldError: a field is missing or malformed.
  """
  for field in schema.fields:
    if row.get(field) is None and field not in _MAY_BE_NULL:
      raise FieldError(f'field {field!r} is missing')
  return [table.checked(vote) for vote in schema.votes(row)]


def detect(row: Row) -> str:
  """The name of the first schema whose fields the row has.

  Raises:
    FieldError: there is none.
  """
  if 'verdict' in row or 'probability' in row:
    return 'votes'
  for name, schema in SCHEMAS.items():
    if schema.fields and all(field in row for field in schema.fields):
      return name
  raise FieldError(
    f'the fields {", ".join(sorted(map(str, row)))} are of no format of votes that is known: {", ".join(SCHEMAS)}'
  )


def text(row: Mapping[str, Any], field: str) -> str:
  """A text that is there and is not blank.

  Raises:
    FieldError: it is not.
  """
  value = row.get(field)
  if value is None:
    raise FieldError(f'field {field!r} is missing')
  if not isinstance(value, str):
    raise FieldError(f'field {field!r} must be a string, got {type(value).__name__}')
  if not value.strip():
    raise FieldError(f'field {field!r} is empty')
  return table.encodable(value, field)


def tldr_prompt(subreddit: str | None, title: str, post: str) -> str:
  """The prompt of Stiennon et al. (2020), table 2; news have no subreddit."""
  begins = f'SUBREDDIT: r/{subreddit}\n\n' if subreddit else ''
  return f'{begins}TITLE: {title}{_POST}{post}{_TLDR}'


def tldr_parts(prompt: str) -> tuple[str, str, str] | None:
  """What stands before the post, the post, and what stands after; None: another kind of prompt."""
  if not prompt.startswith(('SUBREDDIT: r/', 'TITLE: ')) or not prompt.endswith(_TLDR):
    return None
  before, found, post = prompt.removesuffix(_TLDR).partition(_POST)
  return (before + _POST, post, _TLDR) if found else None


_POST, _TLDR = '\n\nPOST: ', '\n\nTL;DR:'


def _number(row: Mapping[str, Any], field: str) -> float:
  value = row.get(field)
  try:
    number = float(value)  # type: ignore[arg-type]
  except (TypeError, ValueError):
    number = math.nan
  if isinstance(value, bool) or not math.isfinite(number):
    raise FieldError(f'field {field!r} must be a number, got {value!r}')
  return number


def _one_of(row: Mapping[str, Any], field: str, values: Mapping[Any, Any]) -> Any:
  value = row.get(field)
  if isinstance(value, (list, dict)) or value not in values:
    raise FieldError(f'field {field!r} must be one of {", ".join(map(str, values))}, got {value!r}')
  return values[value]


def _list(row: Mapping[str, Any], field: str) -> list:
  if not isinstance(row.get(field), list):
    raise FieldError(f'field {field!r} must be a list, got {type(row.get(field)).__name__}')
  return row[field]


def _name(row: Mapping[str, Any], *fields: str) -> str | None:
  """The first of them that is there, as a string."""
  for field in fields:
    if row.get(field) is not None:
      return str(row[field])
  return None


def _signed(value: float) -> str:
  """Of strengths below zero where the first is better."""
  return 'tie' if value == 0 else 'a' if value < 0 else 'b'


def _own(row: Row) -> list[Row]:
  """The table's own rows; in a CSV numbers are texts."""
  numbers = ('probability', 'time', 'seed', 'weight')
  return [row | {name: _number(row, name) for name in numbers if isinstance(row.get(name), str)}]


_WINNERS = {
  'model_a': 'a',
  'model_b': 'b',
  'tie': 'tie',
  'tie (bothbad)': 'both_bad',
  'both_bad': 'both_bad',
}


def _arena(row: Row) -> list[Row]:
  """Chatbot Arena and FastChat: 33k, 100k and 140k votes, and MT-Bench's human ones."""
  vote = {
    'a': text(row, 'model_a'),
    'b': text(row, 'model_b'),
    'verdict': _one_of(row, 'winner', _WINNERS),
    'voter': _name(row, 'evaluation_session_id', 'judge_hash', 'judge'),
    'judge': 'human',
    'prompt': _name(row, 'question_id'),
    'time': _number(row, 'tstamp') if row.get('tstamp') is not None else None,
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
  return sum(_number({field: part}, field) for part in parts if part is not None)


def _arena_55k(row: Row) -> list[Row]:
  shares = [_number(row, f'winner_{who}') for who in ('model_a', 'model_b', 'tie')]
  if sorted(shares) != [0, 0, 1]:
    raise FieldError(
      f'one of winner_model_a, winner_model_b and winner_tie must be 1, got {shares}'
    )
  verdict = ('a', 'b', 'tie')[shares.index(1)]
  responses = {f'response_{side}': _name(row, f'response_{side}') for side in 'ab'}
  names = {'a': text(row, 'model_a'), 'b': text(row, 'model_b')}
  return [
    {'prompt': _name(row, 'prompt'), 'verdict': verdict, 'judge': 'human'} | names | responses
  ]


def _alpaca_eval(row: Row) -> list[Row]:
  """1: the first is better, 2: the second, between: 1 + P(second), 0: equal outputs, −1 or null: failed."""
  if row.get('preference') in (None, -1) or row['preference'] != row['preference']:
    return []
  preference = _number(row, 'preference')
  if preference != 0 and not 1 <= preference <= 2:
    raise FieldError(f"field 'preference' must be 0 or in [1, 2], got {preference!r}")
  verdict = {0.0: 'tie', 1.0: 'a', 1.5: 'tie', 2.0: 'b'}.get(preference)
  vote: Row = {'verdict': verdict} if verdict else {'probability': 2 - preference}
  names = {'a': _name(row, 'generator_1'), 'b': _name(row, 'generator_2')}
  named = all(names.values()) and names['a'] != names['b']
  responses = {'response_a': text(row, 'output_1'), 'response_b': text(row, 'output_2')}
  vote |= responses | (names if named else {})
  return [vote | {'prompt': text(row, 'instruction'), 'judge': _name(row, 'annotator')}]


_SCORES = {
  f'{x}{sign}{y}': sign
  for (x, y), signs in (
    (('A', 'B'), ('>>', '>', '=', '<', '<<')),
    (('B', 'A'), ('>>', '>', '=', '<', '<<')),
  )
  for sign in signs
}


def _arena_hard(row: Row) -> list[Row]:
  """A model against the baseline, twice: shown second, then first. A strong verdict is one vote, as a weak one."""
  found = []
  for number, game in enumerate(_list(row, 'games')):
    if not isinstance(game, dict):
      raise FieldError(f'field games.{number} must be an object, got {game!r}')
    if game.get('score') is None:
      continue
    score = str(game['score'])
    sign = _one_of({f'games.{number}.score': score}, f'games.{number}.score', _SCORES)
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
        'judge': _name(row, 'judge'),
        'prompt': _name(row, 'question_id', 'uid'),
      }
    )
  return found


def _mt_bench(row: Row) -> list[Row]:
  """A model's two judgements of a pair, the second with the answers exchanged."""
  winners = {'model_1': 'a', 'model_2': 'b', 'tie': 'tie', 'error': None}
  judge = row.get('judge')
  judge = '/'.join(map(str, judge)) if isinstance(judge, list) else _name(row, 'judge')
  turn = f' turn {row["turn"]}' if row.get('turn') is not None else ''
  found = []
  for field, order in (('g1_winner', 'ab'), ('g2_winner', 'ba')):
    verdict = _one_of(row, field, winners)
    if verdict is not None:
      names = {'a': text(row, 'model_1'), 'b': text(row, 'model_2')}
      prompt = f'{row.get("question_id")}{turn}'
      found.append(names | {'verdict': verdict, 'order': order, 'judge': judge, 'prompt': prompt})
  return found


def _chosen_rejected(row: Row) -> list[Row]:
  """Texts or messages, of which the first was chosen; UltraFeedback's scores, or `preference`, say how surely."""
  prompts, responses = zip(
    *(_conversation(row, field) for field in ('chosen', 'rejected')), strict=True
  )
  prompt = _messages_as_text(row['prompt']) if row.get('prompt') is not None else prompts[0]
  if prompt is None:
    raise FieldError("field 'prompt' is missing, and 'chosen' holds no message before the last")
  return [_pair(prompt, responses, _certainty(row))]


def _certainty(row: Row) -> float:
  """P(chosen ≻ rejected)."""
  if row.get('preference') is not None:
    return _number(row, 'preference')
  scores = row.get('score_chosen'), row.get('score_rejected')
  if None not in scores and _number(row, 'score_chosen') == _number(row, 'score_rejected'):
    return 0.5
  return 1.0


def _pair(prompt: str, responses: Sequence[str], preference: float, **others) -> Row:
  """Two responses without names, of which the first is preferred so surely; equal ones are a tie."""
  if responses[0] == responses[1]:
    preference = 0.5
  named = {0.0: 'b', 0.5: 'tie', 1.0: 'a'}.get(preference)
  said = {'verdict': named} if named else {'probability': preference}
  texts = {'response_a': responses[0], 'response_b': responses[1]}
  return {'prompt': prompt, 'judge': 'human'} | said | texts | others


def _conversation(row: Row, field: str) -> tuple[str | None, str]:
  """What stands before the last message, and that."""
  value = row.get(field)
  if isinstance(value, str):
    return None, text(row, field)
  messages = _list(row, field)
  if not messages or not all(isinstance(message, dict) for message in messages):
    raise FieldError(f'field {field!r} must be a text or a list of messages')
  before = _messages_as_text(messages[:-1]) if len(messages) > 1 else None
  return before, text(messages[-1], 'content')


def _messages_as_text(messages: Any) -> str:
  """One message as it is; several as a transcript."""
  if isinstance(messages, str):
    return table.encodable(messages, 'prompt')
  if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
    raise FieldError("field 'prompt' must be a text or a list of messages")
  if len(messages) == 1:
    return text(messages[0], 'content')
  return '\n\n'.join(f'{text(m, "role").capitalize()}: {text(m, "content")}' for m in messages)


_ASSISTANT = '\n\nAssistant:'


def _hh_rlhf(row: Row) -> list[Row]:
  """Transcripts with the same beginning, up to the last "Assistant:" that both have; or messages."""
  if isinstance(row['chosen'], list):
    return _chosen_rejected(row)
  chosen, rejected = text(row, 'chosen'), text(row, 'rejected')
  shared = 0
  for mark in _ends(chosen):
    if rejected.startswith(chosen[:mark]):
      shared = mark
  if not shared:
    raise FieldError("fields 'chosen' and 'rejected' share no beginning that ends in 'Assistant:'")
  responses = [transcript[shared:].strip() for transcript in (chosen, rejected)]
  return [_pair(chosen[:shared].strip(), responses, 1.0)]


def _ends(transcript: str) -> list[int]:
  parts = transcript.split(_ASSISTANT)[:-1]
  return list(itertools.accumulate(len(part) + len(_ASSISTANT) for part in parts))


def _shp(row: Row) -> list[Row]:
  preference = _one_of(row, 'labels', {1: 1.0, 0: 0.0})
  responses = text(row, 'human_ref_A'), text(row, 'human_ref_B')
  return [_pair(text(row, 'history'), responses, preference)]


def _pku_saferlhf(row: Row) -> list[Row]:
  """Two judges: who is better, and who is safer."""
  responses = text(row, 'response_0'), text(row, 'response_1')
  names = [_name(row, f'response_{k}_source') for k in (0, 1)]
  named = dict(zip('ab', names, strict=True)) if all(names) and names[0] != names[1] else {}
  return [
    _pair(text(row, 'prompt'), responses, _one_of(row, field, {0: 1.0, 1: 0.0}), **named)
    | {'judge': judge}
    for field, judge in (('better_response_id', 'better'), ('safer_response_id', 'safer'))
  ]


_FIRST_BETTER = {'a': 1.0, 'tie': 0.5, 'b': 0.0}


def _helpsteer2(row: Row) -> list[Row]:
  preference = _FIRST_BETTER[_signed(_number(row, 'preference_strength'))]
  responses = text(row, 'response_1'), text(row, 'response_2')
  split = _name(row, 'split')
  return [_pair(text(row, 'prompt'), responses, preference, split=split)]


def _helpsteer3(row: Row) -> list[Row]:
  """A vote for each annotator; the overall one where they are not told apart."""
  responses = text(row, 'response1'), text(row, 'response2')
  prompt = _messages_as_text(row.get('context'))
  overall = _number(row, 'overall_preference')
  each = _list(row, 'individual_preference') if row.get('individual_preference') else []
  scores = [_number(one if isinstance(one, dict) else {}, 'score') for one in each] or [overall]
  return [_pair(prompt, responses, _FIRST_BETTER[_signed(score)]) for score in scores]


def _nectar(row: Row) -> list[Row]:
  """All pairs of a ranking, by one voter."""
  answers = _list(row, 'answers')
  if not all(isinstance(answer, dict) for answer in answers):
    raise FieldError("field 'answers' must be a list of objects")
  found = []
  for first, second in itertools.combinations(answers, 2):
    ranks = _number(first, 'rank'), _number(second, 'rank')
    preference = _FIRST_BETTER[_signed(ranks[0] - ranks[1])]
    names = {'a': text(first, 'model'), 'b': text(second, 'model')}
    names = names if names['a'] != names['b'] else {}
    responses = text(first, 'answer'), text(second, 'answer')
    found.append(_pair(text(row, 'prompt'), responses, preference, **names))
  voter = _voter_of_ranking(row)
  return [vote | {'judge': 'gpt-4', 'voter': voter} for vote in found]


def _voter_of_ranking(row: Row) -> str:
  return f'ranking {table.stable_hash(json.dumps(row, sort_keys=True, default=str)):016x}'


def _openai(row: Row) -> list[Row]:
  """OpenAI's `comparisons` of summaries, as published and as the hub has them, with null for what does not apply."""
  summaries = _list(row, 'summaries')
  if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
    raise FieldError("field 'summaries' must be a list of two")
  preference = _one_of(row, 'choice', {0: 1.0, 1: 0.0})
  responses = [text(summary, 'text').strip() for summary in summaries]
  names = [_name(summary, 'policy') for summary in summaries]
  named = dict(zip('ab', names, strict=True)) if all(names) and names[0] != names[1] else {}
  others = {'voter': _name(row, 'worker'), 'split': _name(row, 'split')}
  return [_pair(_post(row), responses, preference, **named, **others)]


def _post(row: Row) -> str:
  info = row.get('info')
  if not isinstance(info, dict):
    raise FieldError("field 'info' must be an object")
  if info.get('article') is not None:
    return tldr_prompt(None, text(info, 'title'), text(info, 'article'))
  return tldr_prompt(text(info, 'subreddit'), text(info, 'title'), text(info, 'post'))


# AlpacaEval's, where no one answered.
_MAY_BE_NULL = ('preference',)
# The first whose fields a row has.
SCHEMAS: dict[str, Schema] = {
  'arena': Schema(('model_a', 'model_b', 'winner'), _arena),
  'arena_55k': Schema(('model_a', 'model_b', 'winner_model_a', 'winner_model_b', 'winner_tie'), _arena_55k),
  'alpaca_eval': Schema(('instruction', 'output_1', 'output_2', 'preference'), _alpaca_eval),
  'arena_hard': Schema(('model', 'games'), _arena_hard),
  'mt_bench': Schema(('model_1', 'model_2', 'g1_winner', 'g2_winner'), _mt_bench),
  'openai': Schema(('info', 'summaries', 'choice'), _openai),
  'shp': Schema(('history', 'human_ref_A', 'human_ref_B', 'labels'), _shp),
  'pku_saferlhf': Schema(('prompt', 'response_0', 'response_1', 'better_response_id', 'safer_response_id'), _pku_saferlhf),
  'helpsteer2': Schema(('prompt', 'response_1', 'response_2', 'preference_strength'), _helpsteer2),
  'helpsteer3': Schema(('context', 'response1', 'response2', 'overall_preference'), _helpsteer3),
  'nectar': Schema(('prompt', 'answers'), _nectar),
  'chosen_rejected': Schema(('prompt', 'chosen', 'rejected'), _chosen_rejected),
  'hh_rlhf': Schema(('chosen', 'rejected'), _hh_rlhf),
  'votes': Schema((), _own),
}  # fmt: skip
