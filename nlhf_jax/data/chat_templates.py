"""Chat templates of Hugging Face's models: what a template puts around the texts of a conversation."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2.sandbox

# Of a conversation: each has a role ('system', 'user', 'assistant') and a content.
Messages = Sequence[Mapping[str, str]]

_PLACEHOLDER = 'WORDS-OF-MESSAGE-{}-END'


class ChatTemplate(NamedTuple):
  """A model's template."""

  # Jinja's.
  source: str
  # The system's turn of conversations that have none of their own; None: what the template itself says.
  system: str | None
  # Texts that it may put in, such as bos_token.
  special: Mapping[str, str]
  # Whose it is.
  directory: pathlib.Path

  def frame(self) -> tuple[str, str]:
    """What stands before and after the words of a user who begins, up to where the assistant does. Raises as `parts` does."""
    parts = self.parts([{'role': 'user', 'content': ''}])
    place = parts.index(0)
    return ''.join(map(str, parts[:place])), ''.join(map(str, parts[place + 1 :]))

  def parts(self, messages: Messages) -> list[str | int]:
    """What a conversation becomes, up to where the assistant begins: the template's texts, and numbers of messages.

    Raises:
      ValueError: the template refuses, or leaves out a message.
    """
    given = [] if self.system is None or _has_system(messages) else [self.system]
    turns = [{'role': 'system', 'content': text} for text in given]
    turns += [
      {'role': message['role'], 'content': _PLACEHOLDER.format(number)}
      for number, message in enumerate(messages)
    ]
    pieces = re.split(_PLACEHOLDER.format(r'(\d+)'), _render(self.source, turns, self.special))
    numbers = list(map(int, pieces[1::2]))
    for number, message in enumerate(messages):
      if numbers.count(number) != 1:
        times = 'repeats' if number in numbers else 'leaves out'
        raise ValueError(
          f"{self.directory}: the chat template {times} the {message['role']}'s words."
        )
    pieces[1::2] = numbers
    return [piece for piece in pieces if piece != '']


def load(directory: pathlib.Path, system: str | None = None) -> ChatTemplate:
  """The template of a model.

  Args:
    directory: a model's, with chat_template.jinja or tokenizer_config.json.
    system: the system's turn; None: what the template itself says.

  Raises:
    ValueError: there is no template.
  """
  settings = {}
  if (directory / 'tokenizer_config.json').is_file():
    settings = json.loads((directory / 'tokenizer_config.json').read_text(encoding='utf-8'))
  template = settings.get('chat_template')
  if (directory / 'chat_template.jinja').is_file():
    template = (directory / 'chat_template.jinja').read_text(encoding='utf-8')
  if not template:
    raise ValueError(f'{directory} has no chat template: set chat = False.')
  special = {key: _token(settings.get(key)) for key in ('bos_token', 'eos_token')}
  return ChatTemplate(template, system, special, directory)


def _has_system(messages: Messages) -> bool:
  return any(message['role'] == 'system' for message in messages)


def _render(template: str, turns: list[dict[str, str]], special: Mapping[str, str]) -> str:
  # A template is foreign code: it runs where it can reach nothing.
  sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  sandbox.globals['raise_exception'] = _refuse
  program = sandbox.from_string(template)
  return program.render(messages=turns, add_generation_prompt=True, **special)


def _token(value) -> str:
  return value.get('content', '') if isinstance(value, dict) else value or ''


def _refuse(message: str):
  raise ValueError(f'The chat template refuses: {message}')
