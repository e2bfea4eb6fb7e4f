"""Raters of chat models: what they are asked comes from a template file, in the turns of the chat that they were trained on.

| rater          | reads                                                             | its head, before training                    |
|----------------|-------------------------------------------------------------------|----------------------------------------------|
| `question`     | a question about a prompt and two responses, as LLM judges are asked | log-odds of the answers: it is the LLM judge |
| `conversation` | the prompt and one response, as its own turn                       | a linear map of random weights               |
"""

import pathlib

from nlhf_jax.data import vocabularies
from nlhf_jax.data.hf_vocabulary import HuggingFaceVocabulary
from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.judges import llm_prompts
from nlhf_jax.models import rater
from nlhf_jax.networks.network import Network
from nlhf_jax.types import EOS, Template

# A response as the assistant's turn, up to its end.
CONVERSATION: Template = ((), (), (EOS,))


def question(
  network: Network,
  vocabulary: Vocabulary,
  template: str | pathlib.Path = 'summary',
  head: rater.Head | None = None,
  system: str | None = None,
) -> rater.Rater:
  """A rater of two responses that answers a question.

  Args:
    network: a chat model's.
    vocabulary: of prompts and responses; with a chat template, the question is its user's turn.
    template: one of `judges.llm_prompts.names()`, or a file with {prompt}, {first} and {second} in this order, whose first line
      may name its answers. Its pieces are encoded by themselves: let a line break stand before each text, over which
      tokens do not reach.
    head: None: log-odds of the first two answers. Or `rater.linear()`, `rater.vocabulary_row(…)`.
    system: the system's turn of the question; None: what the chat template itself says.

  Raises:
    FileNotFoundError: there is no such template.
    ValueError: it lacks a text, or has them in another order; its answers are not one token each, or the same one.
  """
  asked = llm_prompts.load(template)
  words = vocabularies.for_prompts(vocabulary)
  if isinstance(words, HuggingFaceVocabulary):
    pieces = words.encode_question(lambda texts: asked.fill(*texts), 3, system)
    frame = rater.Frame(*words.frame())
  else:
    pieces, frame = _plain_pieces(asked, words), rater.NO_FRAME
  if head is None:
    head = rater.answer_logits(*_answer_ids(asked, vocabulary))
  return rater.in_decoder(network, pieces, head=head, frame=frame)


def conversation(network: Network, head: rater.Head) -> rater.Rater:
  """A rater of one response: the prompt in its frame, the response as its own turn, and the head reads the end of that.

  Args:
    network: a chat model's.
    head: such as `rater.linear()`; or `rater.linear(n)`, of `general_preference`.
  """
  return rater.in_decoder(network, CONVERSATION, head=head)


def _plain_pieces(asked: llm_prompts.PromptTemplate, vocabulary: Vocabulary) -> Template:
  """Of a vocabulary that has no turns."""
  if asked.pieces[1::2] != ('prompt', 'first', 'second'):
    raise ValueError(
      f'The template {asked.name} has its texts in the order {", ".join(asked.pieces[1::2])}: it must have prompt, first and '
      'second once each, in this order.'
    )
  return tuple(tuple(vocabulary.encode(piece)) for piece in asked.pieces[::2])


def _answer_ids(asked: llm_prompts.PromptTemplate, vocabulary: Vocabulary) -> tuple[int, int]:
  rows = [list(vocabulary.encode(answer)) for answer in asked.answers[:2]]
  if any(len(row) != 1 for row in rows) or rows[0] == rows[1]:
    raise ValueError(
      f'The answers {" and ".join(asked.answers[:2])} of the template {asked.name} are the tokens {rows[0]} and {rows[1]}: give '
      'it answers that are one token each, or the rater a head.'
    )
  return rows[0][0], rows[1][0]
