"""Chat templates of Hugging Face's models: what a template puts around a user's words."""

import json
import pathlib

import jinja2.sandbox

_PLACEHOLDER = 'WORDS-OF-THE-USER'


def frame(directory: pathlib.Path, system: str | None = None) -> tuple[str, str]:
  """What stands before and after the user's words, up to where the assistant begins.

  Args:
    directory: a model's, with chat_template.jinja or tokenizer_config.json.
    system: the system's turn; None: what the template itself says.

  Raises:
    ValueError: there is no template, it refuses, or it leaves out the user's words.
  """
  settings = {}
  if (directory / 'tokenizer_config.json').is_file():
    settings = json.loads((directory / 'tokenizer_config.json').read_text(encoding='utf-8'))
  template = settings.get('chat_template')
  if (directory / 'chat_template.jinja').is_file():
    template = (directory / 'chat_template.jinja').read_text(encoding='utf-8')
  if not template:
    raise ValueError(f'{directory} has no chat template: set chat = False.')
  turns = [] if system is None else [{'role': 'system', 'content': system}]
  turns.append({'role': 'user', 'content': _PLACEHOLDER})
  special = {key: _token(settings.get(key)) for key in ('bos_token', 'eos_token')}
  before, found, after = _render(template, turns, special).partition(_PLACEHOLDER)
  if not found:
    raise ValueError(f"{directory}: the chat template leaves out the user's words.")
  return before, after


def _render(template: str, turns: list[dict[str, str]], special: dict[str, str]) -> str:
  # A template is foreign code: it runs where it can reach nothing.
  sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  sandbox.globals['raise_exception'] = _refuse
  program = sandbox.from_string(template)
  return program.render(messages=turns, add_generation_prompt=True, **special)


def _token(value) -> str:
  return value.get('content', '') if isinstance(value, dict) else value or ''


def _refuse(message: str):
  raise ValueError(f'The chat template refuses: {message}')
