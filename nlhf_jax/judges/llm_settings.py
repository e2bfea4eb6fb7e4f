"""Where LLM judges are, with which key, and what may be spent on them."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero, Positive

# Fields of a request that are not the caller's to set: who is asked what, and how the answer comes.
_RESERVED = ('model', 'messages', 'stream', 'n')
_HOST = r'(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]]+)'


class Server(NamedTuple):
  """Where models are asked, and how patiently."""

  base_url: str = 'https://api.openai.com/v1'
  # The environment variable that holds the key; where it is not set, none is sent.
  key_variable: str = 'OPENAI_API_KEY'
  # Calls at a time.
  concurrency: Count = 8
  # Seconds for one call.
  timeout: Positive = 60.0
  # Of a call that met a rate limit, an error of the server, no connection or no answer in time.
  num_retries: CountOrZero = 5


class Budget(NamedTuple):
  """What may be spent; None: no limit."""

  # Requests, retries among them.
  max_calls: Count | None = None
  # Of questions and answers, as the server counts them; one for every three characters where it does not.
  max_tokens_total: Count | None = None


def validate(server: Server) -> None:
  """Checks a server's settings.

  Raises:
    ValueError: names the setting.
  """
  if not re.fullmatch(rf'https?://{_HOST}(:\d+)?(/[^\s?#@]*)?', server.base_url):
    raise ValueError(
      'base_url must be http:// or https://, a host and a path such as /v1, without a password or a query, got '
      f'{re.sub(r"//.*@|[?#].*", "…", server.base_url)!r}.'
    )
  if not re.fullmatch(r'[A-Za-z_]\w*', server.key_variable):
    # Not shown: it may be the key itself.
    raise ValueError('key_variable must be the name of an environment variable, and is none.')
  if server.concurrency < 1:
    raise ValueError(f'concurrency must be at least 1, got {server.concurrency}.')
  if not 0 < server.timeout < math.inf:
    raise ValueError(f'timeout must be a positive number of seconds, got {server.timeout}.')
  if server.num_retries < 0:
    raise ValueError(f'num_retries must be 0 or more, got {server.num_retries}.')


def validate_parameters(parameters: Mapping[str, Any]) -> None:
  """Checks further fields of the requests.

  Raises:
    ValueError: one of them would ask another model, another question, or for another kind of answer.
  """
  for name in _RESERVED:
    if name in parameters:
      raise ValueError(
        f'parameters must not have {name!r}, got {untrusted.quoted(parameters[name])}: models are named by themselves, and an answer '
        'is one message in one piece. Leave it out.'
      )


def read_key(variable: str) -> str:
  """The key in an environment variable; empty where it is not set.

  Raises:
    ValueError: no header can hold it; the message does not show it.
  """
  key = os.environ.get(variable, '').strip()
  if not re.fullmatch(r'[\x21-\x7e]*', key):
    raise ValueError(f'The key in {variable} holds spaces or characters that no header can hold.')
  return key
