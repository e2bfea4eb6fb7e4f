"""LLMs as judges: models behind an OpenAI-compatible server compare texts, each pair in both orders.

What a model answers is a letter; where the server gives log-probs, P(first ≻ second) comes from those of the letters.
A malformed answer, or none, is a failed judgement and no vote.
"""

import asyncio
import collections
import concurrent.futures
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax.judges import llm_cache, llm_client, llm_prompts, llm_settings
from nlhf_jax.judges.text import Decode, decode_rows
from nlhf_jax.types import PreferenceFn

# Fields of a request.
PARAMETERS = {'temperature': 0, 'max_tokens': 16, 'logprobs': True, 'top_logprobs': 20}
ORDERS = ('ab', 'ba')


class TextPair(NamedTuple):
  """Two responses to one prompt."""

  prompt: str
  a: str
  b: str


class Question(NamedTuple):
  """A pair, put to one model in one order."""

  pair: TextPair
  model: str
  # 'ab': a is shown first; 'ba': b is.
  order: str = 'ab'


class Judgement(NamedTuple):
  """What came of a question."""

  question: Question
  # P(a ≻ b); None: the judgement failed.
  preference: float | None
  # Whether the preference comes from log-probs; else it is 1, 0 or 1/2.
  from_log_probs: bool = False
  # Kind of failure, to count, and what happened.
  failure: str | None = None
  message: str = ''
  # Of the answer, in seconds since 1970.
  time: float | None = None


class FailureLimit(NamedTuple):
  """When a run stops because too much fails."""

  # Of the last judgements.
  max_share: float = 0.1
  # Of fewer judgements, any share may fail.
  min_judgements: int = 20
  # How many are the last ones: a long run need not fail as long before it stops.
  window: int = 1000


class Panel:
  """One or several models behind a server, with a template, a budget and a cache."""

  def __init__(
    self,
    models: Sequence[str],
    template: str | llm_prompts.PromptTemplate = 'chat',
    *,
    server: llm_settings.Server = llm_settings.Server(),  # noqa: B008
    parameters: Mapping[str, Any] = PARAMETERS,
    budget: llm_settings.Budget = llm_settings.Budget(),  # noqa: B008
    cache_dir: str | pathlib.Path | None = None,
    failures: FailureLimit = FailureLimit(),  # noqa: B008
    sleep: llm_client.Sleep = asyncio.sleep,
  ):
    """A panel; nothing is asked or written yet.

    Args:
      models: names, each a judge of its own.
      template: a name or a file (`llm_prompts.load`), or the template.
      server: where they are.
      parameters: further fields of the requests. Servers differ in how many `top_logprobs` they give.
      budget: of all that this panel is ever asked.
      cache_dir: a directory for answers; None: they are kept in memory.
      failures: when to stop; counted over all that this panel is ever asked.
      sleep: what waits between tries.

    Raises:
      FileNotFoundError: there is no such template.
      ValueError: a setting makes no sense.
    """
    if not models or len(set(models)) < len(models):
      raise ValueError(f'models must be one or several different names, got {list(models)}.')
    if not 0 <= failures.max_share <= 1:
      raise ValueError(f'max_share must be within [0, 1], got {failures.max_share}.')
    if failures.window < 1:
      raise ValueError(f'window must be at least 1, got {failures.window}.')
    llm_settings.validate(server)
    llm_settings.validate_parameters(parameters)
    self.models = tuple(models)
    self.template = llm_prompts.load(template) if isinstance(template, str) else template
    self.parameters = dict(parameters)
    self.spending = llm_client.Spending()
    self._server, self._budget, self._sleep = server, budget, sleep
    self._counts = _Counts(failures)
    self._cache = llm_cache.AnswerCache(cache_dir)

  def questions(self, pairs: Iterable[TextPair], orders: Sequence[str] = ORDERS) -> list[Question]:
    """Every pair in every order to every model; those of one pair follow each other."""
    return [Question(pair, m, order) for pair in pairs for m in self.models for order in orders]

  def judge(
    self,
    questions: Sequence[Question],
    on_judgement: Callable[[Judgement], None] = lambda judgement: None,
    num_before: int = 0,
  ) -> list[Judgement]:
    """Asks all questions, several at a time.

    Args:
      questions: as of `questions`.
      on_judgement: called with each judgement, failed ones too, as soon as it is there.
      num_before: judgements that succeeded in an earlier run; the share of failures is of these too. Zero but for the first
        call.

    Returns:
      A judgement for each question, in their order.

    Raises:
      ValueError: the budget is spent, too many judgements fail, or the server refuses the key or the model. Calls under way
        are waited for before, and their judgements are passed to `on_judgement`.
      OSError: `on_judgement` could not write; the same holds.
    """
    self._counts.add_successes(num_before)
    return _run(self._judge(questions, on_judgement))

  def judge_pairs(self, pairs: Sequence[TextPair]) -> list[tuple[Judgement, ...]]:
    """The judgements of each pair, by every model in both orders. Raises as `judge` does."""
    found = self.judge(self.questions(pairs))
    size = len(self.models) * len(ORDERS)
    return [tuple(found[i : i + size]) for i in range(0, len(found), size)]

  @property
  def num_failed(self) -> collections.Counter[str]:
    """Failed judgements by kind, of all that this panel was ever asked."""
    return collections.Counter(self._counts.failed)

  async def _judge(self, questions, on_judgement) -> list[Judgement]:
    self._cache.prepare()
    results: list[Judgement | None] = [None] * len(questions)
    numbered = enumerate(questions)
    stops: list[ValueError | OSError] = []
    client = llm_client.Client(self._server, self._budget, self.spending, self._cache, self._sleep)

    async def work() -> None:
      for number, question in numbered:
        if stops:
          return
        try:
          results[number] = await self._ask(client, question)
          on_judgement(results[number])
          self._counts.add(results[number])
        except (ValueError, OSError) as error:
          stops.append(error)
          client.stop()

    async with client:
      await asyncio.gather(*(work() for _ in range(min(self._server.concurrency, len(questions)))))
    if stops:
      raise stops[0]
    return results

  async def _ask(self, client: llm_client.Client, question: Question) -> Judgement:
    pair = question.pair
    shown = (pair.a, pair.b) if question.order == 'ab' else (pair.b, pair.a)
    try:
      text = self.template.fill(pair.prompt, *shown)
      answer = await client.ask(question.model, text, self.parameters)
    except llm_client.CallError as error:
      return Judgement(question, None, failure=error.kind, message=str(error))
    reading = llm_prompts.read_answer(answer, self.template.answers)
    if reading is None:
      expected = ', '.join(self.template.answers)
      message = f'{answer.text[:60]!r} is none of {expected}'
      return Judgement(question, None, failure='malformed answer', message=message)
    for_a = reading.preference if question.order == 'ab' else 1 - reading.preference
    return Judgement(question, for_a, reading.from_log_probs, time=answer.time)


class _Counts:
  """Failures by kind, and what came of the last judgements."""

  def __init__(self, limit: FailureLimit):
    self.failed: collections.Counter[str] = collections.Counter()
    self._limit = limit
    # Kinds of failure; None: it succeeded.
    self._last: collections.deque[str | None] = collections.deque(maxlen=limit.window)
    self._messages: dict[str, str] = {}

  def add_successes(self, number: int) -> None:
    self._last.extend([None] * min(number, self._limit.window))

  def add(self, judgement: Judgement) -> None:
    """Raises ValueError where too many have failed."""
    self._last.append(judgement.failure)
    if judgement.failure is None:
      return
    self.failed[judgement.failure] += 1
    self._messages[judgement.failure] = judgement.message
    failed = collections.Counter(kind for kind in self._last if kind is not None)
    number, total = failed.total(), len(self._last)
    enough = total >= min(max(self._limit.min_judgements, 1), self._limit.window)
    if enough and number > self._limit.max_share * total:
      kind, count = failed.most_common(1)[0]
      raise ValueError(
        f'{number} of {total} judgements failed, more than {self._limit.max_share:.0%}; most often ({count}) by '
        f'{kind}: {self._messages[kind]}.'
      )


def mean_preference(judgements: Sequence[Judgement]) -> float:
  """P(a ≻ b) over the orders and models that judged one pair.

  Raises:
    ValueError: one of them failed.
  """
  for judgement in judgements:
    if judgement.preference is None:
      question = judgement.question
      raise ValueError(
        f'{question.model} failed in order {question.order} by {judgement.failure}: {judgement.message}'
      )
  return sum(x.preference for x in judgements) / len(judgements)


def from_panel(panel: Panel, decode_prompt: Decode, decode_response: Decode) -> PreferenceFn:
  """A panel as a judge of tokens: P(y ≻ y'|x) is the mean of its models' in both orders; runs on the host.

  All pairs of a batch are asked at a time, equal pairs once. Equal responses are as good as each other, unasked.

  Args:
    panel: who judges.
    decode_prompt: tokens of a prompt to its text.
    decode_response: the same of a response.

  Returns:
    A judge that answers NaN, which is no vote, on a pair that any model failed on in any order: one order by itself would
    favour whoever is shown first. It raises ValueError as `Panel.judge` does, where too much fails.
  """

  def judge(prompts, response, alternative):
    texts = decode_rows(decode_prompt, prompts.tokens)
    first, second = (decode_rows(decode_response, x) for x in (response, alternative))
    per_prompt = len(first) // len(texts)
    pairs = [
      TextPair(texts[i // per_prompt], *pair)
      for i, pair in enumerate(zip(first, second, strict=True))
    ]
    different = list(dict.fromkeys(pair for pair in pairs if pair.a != pair.b))
    found = dict(zip(different, panel.judge_pairs(different), strict=True))
    return np.array([_vote(found.get(pair)) for pair in pairs], np.float32)

  return judge


def _vote(judgements: Sequence[Judgement] | None) -> float:
  if judgements is None:  # Of equal responses.
    return 0.5
  failed = any(judgement.failure is not None for judgement in judgements)
  return math.nan if failed else mean_preference(judgements)


def _run(coroutine):
  """The result of a coroutine, within a running event loop (of a notebook) too."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return asyncio.run(coroutine)
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(asyncio.run, coroutine).result()
