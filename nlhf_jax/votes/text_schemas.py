"""Formats that compare texts, for training: pairs of summaries, answers and conversations, most without names of models."""

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from nlhf_jax.votes import table
from nlhf_jax.votes.fields import list_of, name_of, number_of, one_of, signed, text, voter_of
from nlhf_jax.votes.table import FieldError, Row


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


def chosen_rejected(row: Row) -> list[Row]:
  """Texts or messages, of which the first was chosen; UltraFeedback's scores, or `preference`, say how surely."""
  before, responses = zip(*(_ending(row, field) for field in ('chosen', 'rejected')), strict=True)
  prompt = _prompt(before[0]) if before[0] else {}
  if row.get('prompt') is not None:
    prompt |= _prompt(row['prompt'])
  if not prompt:
    raise FieldError("field 'prompt' is missing, and 'chosen' holds no message before the last")
  return [_pair(prompt, responses, _certainty(row))]


def _certainty(row: Row) -> float:
  """P(chosen ≻ rejected)."""
  if row.get('preference') is not None:
    return number_of(row, 'preference')
  scores = row.get('score_chosen'), row.get('score_rejected')
  if None not in scores and number_of(row, 'score_chosen') == number_of(row, 'score_rejected'):
    return 0.5
  return 1.0


def _pair(prompt: str | Row, responses: Sequence[str], preference: float, **others) -> Row:
  """Two responses without names, of which the first is preferred so surely; equal ones are a tie."""
  if responses[0] == responses[1]:
    preference = 0.5
  named = {0.0: 'b', 0.5: 'tie', 1.0: 'a'}.get(preference)
  said = {'verdict': named} if named else {'probability': preference}
  texts = {'response_a': responses[0], 'response_b': responses[1]}
  asked = {'prompt': prompt} if isinstance(prompt, str) else prompt
  return {'judge': 'human'} | asked | said | texts | others


def _ending(row: Row, field: str) -> tuple[list[Any] | None, str]:
  """The messages before the last, if the field holds any, and the last one's text."""
  value = row.get(field)
  if isinstance(value, str):
    return None, text(row, field)
  messages = list_of(row, field)
  if not messages or not all(isinstance(message, dict) for message in messages):
    raise FieldError(f'field {field!r} must be a text or a list of messages')
  return messages[:-1], text(messages[-1], 'content')


def _prompt(value: Any) -> Row:
  """A text, or messages: a user's one as its text, others as a transcript and as they are."""
  if isinstance(value, str):
    return {'prompt': table.encodable(value, 'prompt')}
  messages = table.messages_of(value, 'prompt')
  if [message['role'] for message in messages] == ['user']:
    return {'prompt': messages[0]['content']}
  turns = (f'{message["role"].capitalize()}: {message["content"]}' for message in messages)
  return {'prompt': '\n\n'.join(turns), 'messages': messages}


_ASSISTANT = '\n\nAssistant:'
_ROLES = {'Human': 'user', 'Assistant': 'assistant'}


def hh_rlhf(row: Row) -> list[Row]:
  """Transcripts with the same beginning, up to the last "Assistant:" that both have; or messages."""
  if isinstance(row['chosen'], list):
    return chosen_rejected(row)
  chosen, rejected = text(row, 'chosen'), text(row, 'rejected')
  shared = 0
  for mark in _ends(chosen):
    if rejected.startswith(chosen[:mark]):
      shared = mark
  if not shared:
    raise FieldError("fields 'chosen' and 'rejected' share no beginning that ends in 'Assistant:'")
  responses = [transcript[shared:].strip() for transcript in (chosen, rejected)]
  prompt = {'prompt': chosen[:shared].strip(), 'messages': _turns(chosen[:shared])}
  return [_pair(prompt, responses, 1.0)]


def _turns(transcript: str) -> list[Row] | None:
  """The messages of a transcript, those of one who goes on in one; None: it does not begin with a turn."""
  before, *parts = re.split(r'(?:^|\n\n)(Human|Assistant):', transcript)
  messages: list[Row] = []
  for role, content in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
    if messages and messages[-1]['role'] == _ROLES[role]:
      messages[-1]['content'] += f'\n\n{content}'.rstrip()
    elif content:
      messages.append({'role': _ROLES[role], 'content': content})
  return messages if messages and not before.strip() else None


def _ends(transcript: str) -> list[int]:
  parts = transcript.split(_ASSISTANT)[:-1]
  return list(itertools.accumulate(len(part) + len(_ASSISTANT) for part in parts))


def shp(row: Row) -> list[Row]:
  """Stanford Human Preferences: two comments on a post."""
  preference = one_of(row, 'labels', {1: 1.0, 0: 0.0})
  responses = text(row, 'human_ref_A'), text(row, 'human_ref_B')
  return [_pair(text(row, 'history'), responses, preference)]


def pku_saferlhf(row: Row) -> list[Row]:
  """Two judges: who is better, and who is safer."""
  responses = text(row, 'response_0'), text(row, 'response_1')
  names = [name_of(row, f'response_{k}_source') for k in (0, 1)]
  named = dict(zip('ab', names, strict=True)) if all(names) and names[0] != names[1] else {}
  return [
    _pair(text(row, 'prompt'), responses, one_of(row, field, {0: 1.0, 1: 0.0}), **named)
    | {'judge': judge}
    for field, judge in (('better_response_id', 'better'), ('safer_response_id', 'safer'))
  ]


_FIRST_BETTER = {'a': 1.0, 'tie': 0.5, 'b': 0.0}


def helpsteer2(row: Row) -> list[Row]:
  """The sign of a strength, below zero where the first is better."""
  preference = _FIRST_BETTER[signed(number_of(row, 'preference_strength'))]
  responses = text(row, 'response_1'), text(row, 'response_2')
  split = name_of(row, 'split')
  return [_pair(text(row, 'prompt'), responses, preference, split=split)]


def helpsteer3(row: Row) -> list[Row]:
  """A vote for each annotator; the overall one where they are not told apart."""
  responses = text(row, 'response1'), text(row, 'response2')
  prompt = _prompt(row.get('context'))
  overall = number_of(row, 'overall_preference')
  each = list_of(row, 'individual_preference') if row.get('individual_preference') else []
  scores = [number_of(one if isinstance(one, dict) else {}, 'score') for one in each] or [overall]
  return [_pair(prompt, responses, _FIRST_BETTER[signed(score)]) for score in scores]


def nectar(row: Row) -> list[Row]:
  """All pairs of a ranking, by one voter."""
  answers = list_of(row, 'answers')
  if not all(isinstance(answer, dict) for answer in answers):
    raise FieldError("field 'answers' must be a list of objects")
  found = []
  for first, second in itertools.combinations(answers, 2):
    ranks = number_of(first, 'rank'), number_of(second, 'rank')
    preference = _FIRST_BETTER[signed(ranks[0] - ranks[1])]
    names = {'a': text(first, 'model'), 'b': text(second, 'model')}
    names = names if names['a'] != names['b'] else {}
    responses = text(first, 'answer'), text(second, 'answer')
    found.append(_pair(text(row, 'prompt'), responses, preference, **names))
  voter = _voter_of_ranking(row)
  return [vote | {'judge': 'gpt-4', 'voter': voter} for vote in found]


def _voter_of_ranking(row: Row) -> str:
  return f'ranking {table.stable_hash(json.dumps(row, sort_keys=True, default=str)):016x}'


def openai(row: Row) -> list[Row]:
  """OpenAI's `comparisons` of summaries, as published and as the hub has them, with null for what does not apply."""
  summaries = list_of(row, 'summaries')
  if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
    raise FieldError("field 'summaries' must be a list of two")
  preference = one_of(row, 'choice', {0: 1.0, 1: 0.0})
  responses = [text(summary, 'text').strip() for summary in summaries]
  names = [name_of(summary, 'policy') for summary in summaries]
  named = dict(zip('ab', names, strict=True)) if all(names) and names[0] != names[1] else {}
  others = {'voter': voter_of(row, 'worker'), 'split': name_of(row, 'split')}
  return [_pair(_post(row), responses, preference, **named, **others)]


def _post(row: Row) -> str:
  info = row.get('info')
  if not isinstance(info, dict):
    raise FieldError("field 'info' must be an object")
  if info.get('article') is not None:
    return tldr_prompt(None, text(info, 'title'), text(info, 'article'))
  return tldr_prompt(text(info, 'subreddit'), text(info, 'title'), text(info, 'post'))
