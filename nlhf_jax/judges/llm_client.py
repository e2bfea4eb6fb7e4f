"""Calls of a server that speaks OpenAI's chat/completions: retries, time limits, a budget, and a cache.

The key comes from an environment variable and goes into one header; what a server sends back is rid of it before
anything else sees it.
"""

import asyncio
import collections
import dataclasses
import email.utils
import functools
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nlhf_jax.judges import llm_answers, llm_cache, llm_settings
from nlhf_jax.judges.llm_answers import Answer
from nlhf_jax.judges.llm_settings import Budget, Server

Sleep = Callable[[float], Awaitable[Any]]

# Seconds: of the first wait between two tries, of the longest, and of the longest that a server may ask for.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
_LONGEST_RETRY_AFTER = 300.0
# A server echoes a key at times; a shorter one, such as EMPTY, is no secret, and may be a word of an answer.
_SHORTEST_SECRET = 8


@dataclasses.dataclass
class Spending:
  """What has been spent."""

  num_calls: int = 0
  num_tokens: int = 0
  # Answers that the cache had.
  num_cached: int = 0


class CallError(Exception):
  """One question has no answer."""

  def __init__(self, kind: str, message: str, *, retry: bool = False, retry_after: float = 0.0):
    """Of a kind that is counted; `retry`: another try may succeed, after `retry_after` seconds."""
    super().__init__(message)
    self.kind, self.retry, self.retry_after = kind, retry, retry_after


class StoppedError(ValueError):
  """No question will have an answer: the budget is spent, or the server refuses the key or the model."""


class Client:
  """Asks one server, within one event loop: `async with Client(…) as client`."""

  def __init__(
    self,
    server: Server,
    budget: Budget,
    spending: Spending,
    cache: llm_cache.AnswerCache,
    sleep: Sleep = asyncio.sleep,
  ):
    """Reads the key.

    Args:
      server: who is asked.
      budget: what `spending` may reach.
      spending: counted up.
      cache: of answers.
      sleep: what waits between tries.

    Raises:
      ValueError: a setting of the server makes no sense, or there is no httpx.
    """
    try:
      import httpx
      import httpx_aiohttp
    except ModuleNotFoundError:
      raise ValueError("LLM judges need one more package: pip install 'nlhf_jax[judge]'.") from None
    llm_settings.validate(server)
    self._key = llm_settings.read_key(server.key_variable)
    self._server, self._budget, self._spending, self._cache = server, budget, spending, cache
    headers = {'Authorization': f'Bearer {self._key}'} if self._key else {}
    limits = httpx.Limits(max_connections=server.concurrency)
    self._httpx = httpx
    # A call costs aiohttp a quarter of the time that it costs httpx, which policies need to decode meanwhile.
    self._http = httpx_aiohttp.HttpxAiohttpClient(
      headers={'Content-Type': 'application/json', **headers},
      timeout=None,
      limits=limits,
      verify=_certificates(httpx),
    )
    self._url = server.base_url.rstrip('/') + '/chat/completions'
    self._sleep = sleep
    self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
    self._changed = asyncio.Condition()
    self._reserved = 0  # Tokens of calls under way.
    self._resume_at = 0.0  # Until then, the server wants no calls.
    self._waits: set[asyncio.Future] = set()
    self._stopped = False

  async def __aenter__(self) -> 'Client':
    return self

  async def __aexit__(self, *error) -> None:
    await self._http.aclose()

  def stop(self) -> None:
    """Ends waits between tries; calls under way may end."""
    self._stopped = True
    for wait in self._waits:
      wait.cancel()

  async def ask(self, model: str, text: str, parameters: Mapping[str, Any]) -> Answer:
    """A model's answer to a message, from the cache if it has it.

    Args:
      model: its name.
      text: the message.
      parameters: further fields of the request, such as temperature.

    Raises:
      CallError: there is no answer after all tries.
      StoppedError: there is no use in asking on.
    """
    key = llm_cache.content_key(model, text, parameters)
    async with self._locks[key]:
      answer = self._cache.get(key)
      if answer is None:
        answer = await self._try(model, text, parameters)
        self._cache.put(key, answer)
      else:
        self._spending.num_cached += 1
    return answer

  async def _try(self, model: str, text: str, parameters: Mapping[str, Any]) -> Answer:
    body = {'model': model, 'messages': [{'role': 'user', 'content': text}]}
    body = {**parameters, **body}
    for number in range(self._server.num_retries + 1):
      await self._until_resumed()
      try:
        return await self._call(body, self._estimate(text, parameters))
      except CallError as error:
        if not error.retry or number == self._server.num_retries:
          raise
        if error.retry_after:
          self._resume_at = max(self._resume_at, time.monotonic() + error.retry_after)
        else:
          await self._wait(backoff(number))
    raise AssertionError

  def _estimate(self, text: str, parameters: Mapping[str, Any]) -> int:
    """Tokens of a call, from above for most languages."""
    limits = (parameters.get(name) for name in ('max_tokens', 'max_completion_tokens'))
    return len(text) // 3 + sum(limit for limit in limits if isinstance(limit, int))

  async def _until_resumed(self) -> None:
    delay = self._resume_at - time.monotonic()
    if delay > 0:
      await self._wait(delay * (1 + 0.1 * random.random()))

  async def _wait(self, seconds: float) -> None:
    self._check_running()
    wait = asyncio.ensure_future(self._sleep(seconds))
    self._waits.add(wait)
    try:
      await wait
    except asyncio.CancelledError:
      self._check_running()
      raise
    finally:
      self._waits.discard(wait)

  def _check_running(self) -> None:
    if self._stopped:
      raise StoppedError('The run has stopped.')

  async def _call(self, body: dict[str, Any], estimate: int) -> Answer:
    await self._reserve(estimate)
    try:
      answer = self._answer(await self._post(body), estimate)
      self._spending.num_tokens += answer.num_tokens
    except CallError as error:
      if error.kind == 'timeout':  # The server may have counted it.
        self._spending.num_tokens += estimate
      raise
    finally:
      async with self._changed:
        self._reserved -= estimate
        self._changed.notify_all()
    return answer

  async def _reserve(self, estimate: int) -> None:
    """Waits where calls under way may leave enough of the budget."""
    limit = math.inf if self._budget.max_tokens_total is None else self._budget.max_tokens_total
    fits = lambda: self._spending.num_tokens + self._reserved + estimate <= limit
    async with self._changed:
      await self._changed.wait_for(lambda: fits() or not self._reserved)
      self._check_running()
      spent = self._spending
      if self._budget.max_calls is not None and spent.num_calls >= self._budget.max_calls:
        raise StoppedError(
          f'The budget of {self._budget.max_calls} calls is spent: raise max_calls to go on.'
        )
      if not fits():
        raise StoppedError(
          f'The budget of {limit} tokens is spent but for {limit - spent.num_tokens}, and the next call may take '
          f'{estimate}: raise max_tokens_total to go on.'
        )
      self._reserved += estimate
      spent.num_calls += 1

  async def _post(self, body: dict[str, Any]) -> str:
    """The text of a successful response."""
    try:
      async with asyncio.timeout(self._server.timeout):
        response = await self._http.post(self._url, content=json.dumps(body).encode())
    except TimeoutError:
      message = f'no answer within {self._server.timeout:g} s'
      raise CallError('timeout', message, retry=True) from None
    except (self._httpx.RequestError, self._httpx.InvalidURL) as error:
      message = self._clean(f'{type(error).__name__}: {error}')
      raise CallError('connection', message, retry=True) from None
    if response.status_code != 200:
      message = llm_answers.error_message(response.text)
      raise self._refusal(response.status_code, message, response.headers)
    return response.text

  def _refusal(self, status: int, message: str, headers: Mapping[str, str]) -> Exception:
    message = f'{self._url} answers {status}: {self._clean(message)}'
    if status == 401:
      return StoppedError(
        f'{message}. Set {self._server.key_variable} to a key that the server takes.'
      )
    if status == 404:
      return StoppedError(f'{message}. Check the base URL and the names of models.')
    if status not in (408, 429) and status < 500:
      return CallError(f'refused ({status})', message)
    kind = 'rate limit' if status == 429 else f'server error ({status})'
    wait = retry_after(headers.get('Retry-After'), time.time())
    if wait > _LONGEST_RETRY_AFTER:
      return CallError(kind, f'{message}; the server wants {wait:.0f} s of rest')
    return CallError(kind, message, retry=True, retry_after=wait)

  def _answer(self, text: str, estimate: int) -> Answer:
    try:
      answer = llm_answers.from_completion(text, estimate)
    except ValueError:
      message = f'no chat completion: {self._clean(text)}'
      raise CallError('no completion', message, retry=True) from None
    cleaned = self._redacted(answer.text)
    # Its tokens may hold the key in pieces.
    return answer if cleaned == answer.text else answer._replace(text=cleaned, positions=())

  def _redacted(self, text: str) -> str:
    return text.replace(self._key, '[key]') if len(self._key) >= _SHORTEST_SECRET else text

  def _clean(self, text: str) -> str:
    """One short line, without the key."""
    text = ' '.join(self._redacted(text).split())
    return text if len(text) <= 200 else f'{text[:200]} …'


@functools.cache
def _certificates(httpx):
  """Whom to trust; reading them takes longer than an answer."""
  return httpx.create_ssl_context()


def backoff(number: int) -> float:
  """Seconds before another try, after the `number`-th (from 0): doubled each time, less up to a half at random."""
  return min(_FIRST_WAIT * 2.0 ** min(number, 30), _LONGEST_WAIT) * (1 - 0.5 * random.random())


def retry_after(header: str | None, now: float) -> float:
  """Seconds that a Retry-After header asks for, as a number or a date; 0 where it says nothing."""
  try:
    wait = float(header)
  except (TypeError, ValueError):
    try:
      wait = email.utils.parsedate_to_datetime(header).timestamp() - now
    except (TypeError, ValueError, OverflowError):
      return 0.0
  return max(wait, 0.0) if math.isfinite(wait) else 0.0
