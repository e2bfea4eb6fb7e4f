"""Public formats of votes: what each calls its fields, and the votes of a row.

A schema makes votes (`votes.table`) of a row as its publisher wrote it: none where a judgement failed, several where
several voted. It is told from a file's first row by the fields that only it has; `votes.preflib` has the one format
that is no table. Formats of named models are in `votes.model_schemas`, those of texts in `votes.text_schemas`.
"""

from collections.abc import Callable
from typing import NamedTuple

from nlhf_jax.votes import fields, model_schemas, table, text_schemas
from nlhf_jax.votes.table import FieldError, Row

# What readers of other rows share.
text, tldr_prompt, tldr_parts = fields.text, text_schemas.tldr_prompt, text_schemas.tldr_parts


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


def _own(row: Row) -> list[Row]:
  """The table's own rows; in a CSV numbers are texts.

  A row of training (`training.traces`) says in `rollout` what else was known, and stays where the judge gave no vote.
  """
  if 'rollout' in row:
    row = {name: value for name, value in row.items() if name != 'rollout'}
    if row.get('probability') is None and row.get('verdict') is None:
      return []
  numbers = ('probability', 'time', 'seed', 'weight')
  return [
    row | {name: fields.number_of(row, name) for name in numbers if isinstance(row.get(name), str)}
  ]


# AlpacaEval's, where no one answered.
_MAY_BE_NULL = ('preference',)
# The first whose fields a row has.
SCHEMAS: dict[str, Schema] = {
  'arena': Schema(('model_a', 'model_b', 'winner'), model_schemas.arena),
  'arena_55k': Schema(('model_a', 'model_b', 'winner_model_a', 'winner_model_b', 'winner_tie'), model_schemas.arena_55k),
  'alpaca_eval': Schema(('instruction', 'output_1', 'output_2', 'preference'), model_schemas.alpaca_eval),
  'arena_hard': Schema(('model', 'games'), model_schemas.arena_hard),
  'mt_bench': Schema(('model_1', 'model_2', 'g1_winner', 'g2_winner'), model_schemas.mt_bench),
  'openai': Schema(('info', 'summaries', 'choice'), text_schemas.openai),
  'shp': Schema(('history', 'human_ref_A', 'human_ref_B', 'labels'), text_schemas.shp),
  'pku_saferlhf': Schema(('prompt', 'response_0', 'response_1', 'better_response_id', 'safer_response_id'), text_schemas.pku_saferlhf),
  'helpsteer2': Schema(('prompt', 'response_1', 'response_2', 'preference_strength'), text_schemas.helpsteer2),
  'helpsteer3': Schema(('context', 'response1', 'response2', 'overall_preference'), text_schemas.helpsteer3),
  'nectar': Schema(('prompt', 'answers'), text_schemas.nectar),
  'chosen_rejected': Schema(('prompt', 'chosen', 'rejected'), text_schemas.chosen_rejected),
  'hh_rlhf': Schema(('chosen', 'rejected'), text_schemas.hh_rlhf),
  'votes': Schema((), _own),
}  # fmt: skip
