"""Chat templates of Hugging Face's models: a conversation as one text, by the rules of `transformers`' own renderer."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax import untrusted
from nlhf_jax.data import template_sandbox
from nlhf_jax.formats import hf, hf_directory

# Of a conversation: each has a role ('system', 'user', 'assistant') and a content.
Messages = Sequence[Mapping[str, str]]

_FILE, _SETTINGS, _MAP = 'chat_template.jinja', 'tokenizer_config.json', 'special_tokens_map.json'
_DEFAULT = 'default'


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

  def render(self, messages: Messages) -> str:
    """The text of a conversation, up to where the assistant begins.

    Raises:
      ValueError: the template refuses, or is none.
    """
    own = any(message['role'] == 'system' for message in messages)
    first = [] if own or self.system is None else [{'role': 'system', 'content': self.system}]
    turns = [*first, *({key: m[key] for key in ('role', 'content')} for m in messages)]
    try:
      return template_sandbox.render(
        self.source, messages=turns, add_generation_prompt=True, **self.special
      )
    except Exception as error:  # A template is foreign code, and may divide by zero.
      text = untrusted.message(str(error))
      raise ValueError(
        f'{self.directory}: the chat template fails ({type(error).__name__}: {text}): correct {_FILE} or {_SETTINGS}, or set '
        'chat = False.'
      ) from error


def load(directory: pathlib.Path, system: str | None = None) -> ChatTemplate:
  """The template of a model; of several, the one named 'default'.

  Args:
    directory: a model's, with chat_template.jinja or tokenizer_config.json.
    system: the system's turn; None: what the template itself says.

  Raises:
    ValueError: there is no template, or it leaves out the user's words.
  """
  settings, special = (hf_directory.read_json(directory / name) for name in (_SETTINGS, _MAP))
  source = settings.get('chat_template')
  if (directory / _FILE).is_file():
    source = untrusted.read_text(directory / _FILE)
  if isinstance(source, list):
    named = _named(directory, source)
    if _DEFAULT not in named:
      raise ValueError(
        f'{directory} has chat templates {", ".join(map(repr, named))}, and none named {_DEFAULT!r}: write the one to use into '
        f'{_FILE}.'
      )
    source = named[_DEFAULT]
  if not source:
    raise ValueError(f'{directory} has no chat template: set chat = False.')
  if not isinstance(source, str):
    raise ValueError(
      f'{directory / _SETTINGS} has chat_template = {source!r}, which is no template: correct it, or set chat = False.'
    )
  tokens = {
    key: hf.token_text(value)
    for key, value in (special | settings).items()
    if key.endswith('_token')
  }
  tokens = {key: text for key, text in tokens.items() if text is not None}
  template = ChatTemplate(source, system, tokens, directory)
  words = 'WORDS-OF-THE-USER'
  if words not in template.render([{'role': 'user', 'content': words}]):
    raise ValueError(f"{directory}: the chat template leaves out the user's words.")
  return template


def _named(directory: pathlib.Path, templates: Sequence[Any]) -> dict[str, Any]:
  try:
    return {each['name']: each['template'] for each in templates}
  except (KeyError, TypeError):
    raise ValueError(
      f'{directory / _SETTINGS} has a list as chat_template that is not of names and templates: correct it, or set chat = False.'
    ) from None
