"""Vocabularies, all with 0 for padding and 1 for EOS, and what text becomes in one of them.

A vocabulary may have `for_prompts`, another that puts a frame around a prompt, such as a chat template.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Bool

from nlhf_jax import untrusted
from nlhf_jax.arguments import Count, CountOrZero
from nlhf_jax.data import chat_templates, special_tokens
from nlhf_jax.data.vocabulary import Vocabulary, WordVocabulary
from nlhf_jax.formats import hf, hf_directory
from nlhf_jax.judges import llm, text
from nlhf_jax.types import EOS, PAD, PreferenceFn


def sentencepiece(path: str, extra_ids: CountOrZero = 0) -> Vocabulary:
  """A SentencePiece model, with `extra_ids` sentinels at the end as in T5.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged.
  """
  import seqio

  if not os.path.isfile(path):
    raise FileNotFoundError(f'No vocabulary {path}: name a sentencepiece.model file as its path.')
  vocabulary = seqio.SentencePieceVocabulary(path, extra_ids=extra_ids)
  try:
    vocabulary.tokenizer  # noqa: B018  Which reads the file.
  except Exception as error:
    problem = untrusted.message(str(error))
    raise ValueError(
      f'{path} is no model of SentencePiece ({problem}): download it again.'
    ) from None
  return vocabulary


def byte(extra_ids: CountOrZero = 0) -> Vocabulary:
  """UTF-8 bytes, offset by 3."""
  import seqio

  return seqio.ByteVocabulary(extra_ids=extra_ids)


@functools.cache
def hugging_face(
  model: str, ids: hf.Ids = hf.AS_GIVEN, chat: bool = False, system: str | None = None
) -> Vocabulary:
  """The tokenizer of a model.

  Args:
    model: a directory that holds tokenizer.json, or hf://OWNER/NAME@REVISION on the hub; an adapter without one has its base's.
    ids: padding and end; the same as the network's.
    chat: put each prompt into the model's chat template, as the user's turn, before the assistant's.
    system: the system's turn of that; None: what the template itself says.

  Raises:
    FileNotFoundError: there is no tokenizer.json.
    ValueError: the id of padding is a word that text uses; there is no chat template.
  """
  from nlhf_jax.data.hf_vocabulary import HuggingFaceVocabulary

  directory = hf_directory.find(model).tokenizer
  path = directory / 'tokenizer.json'
  if not path.is_file():
    raise FileNotFoundError(f'No {path}: name the directory of a model, or download it again.')
  config = hf.read_config(model, ids=ids)
  tokenizer = _read_tokenizer(path)
  special = getattr(config, 'pad_id', PAD), getattr(config, 'eos_id', EOS)
  largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
  if largest >= config.vocab_size:
    raise ValueError(
      f'{path}: {tokenizer.id_to_token(largest)!r} has id {largest}, but config.json says that the model has embeddings of 0 '
      f'to {config.vocab_size - 1}: take the tokenizer that belongs to it.'
    )
  pad = tokenizer.id_to_token(special[0])
  if not (tokenizer.get_added_tokens_decoder().get(special[0]) or pad in (None, '<pad>', '<unk>')):
    raise ValueError(
      f'{path}: id {special[0]}, which is to mean padding, is the word {pad!r}: give one that text never uses, such '
      'as a reserved token, as ids.pad.'
    )
  make = functools.partial(
    HuggingFaceVocabulary, tokenizer, special_tokens.Unspellable(tokenizer), special
  )
  vocabulary = make()
  if chat:
    template = chat_templates.load(directory, system)
    vocabulary.for_prompts = make(template=template)
  else:
    vocabulary.for_prompts = make(_bos(tokenizer, special))
  return vocabulary


def _read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json, and has it encode a text, which shows whether its parts know each other."""
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode('A text, 2 times.', add_special_tokens=True)
    return tokenizer
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # Nothing more special; a panic of Rust is no Exception.
    problem = untrusted.message(str(error))
    raise ValueError(f'{path} is no tokenizer ({problem}): download it again.') from None


def _bos(tokenizer: tokenizers.Tokenizer, special: tuple[int, int]) -> list[int]:
  """What the tokenizer itself puts before a text, such as '<s>'."""
  return [i for i in tokenizer.encode('', add_special_tokens=True).ids if i not in special]


def check(vocabulary: Vocabulary) -> None:
  """Raises ValueError where a vocabulary has not 0 for padding and 1 for EOS, which policies and raters rely on."""
  found = vocabulary.pad_id, vocabulary.eos_id
  if found != (PAD, EOS):
    raise ValueError(
      f'The vocabulary pads with {found[0]} and ends with {found[1]}, where {PAD} and {EOS} are needed: build it with '
      f'pad_id={PAD} and eos_id={EOS}, or read a tokenizer.json, whose ids are moved, with vocabularies.hugging_face.'
    )


def for_prompts(vocabulary: Vocabulary) -> Vocabulary:
  """The vocabulary of prompts: itself where it puts no frame around them."""
  return getattr(vocabulary, 'for_prompts', vocabulary)


def encode_prompt(
  vocabulary: Vocabulary,
  prompt: str,
  messages: chat_templates.Messages | None = None,
  max_length: Count | None = None,
) -> tuple[list[int], bool]:
  """A prompt's tokens, and whether it is longer than `max_length`.

  Then a plain prompt keeps its beginning. Of a chat template nothing is lost, so that the assistant still has its turn: the
  texts within it are shortened (`HuggingFaceVocabulary.encode_messages`).

  Args:
    vocabulary: of the prompt; one with a chat template takes messages.
    prompt: its text, which all others read.
    messages: its turns, where it is a conversation.
    max_length: in tokens.
  """
  vocabulary = for_prompts(vocabulary)
  if hasattr(vocabulary, 'encode_prompt'):
    return vocabulary.encode_prompt(prompt, messages, max_length)
  tokens = list(vocabulary.encode(prompt))
  return tokens[:max_length], max_length is not None and len(tokens) > max_length


def encoder(vocabulary: Vocabulary) -> Callable[[str], Sequence[int]]:
  """A prompt's words to tokens."""
  return for_prompts(vocabulary).encode


def decoder(vocabulary: Vocabulary) -> Callable[[Sequence[int]], str]:
  """Tokens to text, without the frame that prompts have."""
  return for_prompts(vocabulary).decode


def text_judge(
  function: text.TextPreference, vocabulary: Vocabulary, render: Callable | None = None
) -> PreferenceFn:
  """A judge that reads text, such as one of `judges.rules`, for policies of a vocabulary; runs on the host.

  Args:
    function: (prompt, first, second) -> P(first ≻ second), in [0, 1].
    vocabulary: of prompts and responses.
    render: what judges read for a response, as raters do, where that is not the response itself.
  """
  return _reading(text.from_text(function, decoder(vocabulary), vocabulary.decode), render)


def panel_judge(
  panel: llm.Panel, vocabulary: Vocabulary, render: Callable | None = None
) -> PreferenceFn:
  """LLMs behind a server as a judge for policies of a vocabulary; a batch's pairs are asked at a time, in both orders.

  Args:
    panel: who judges.
    vocabulary: of prompts and responses.
    render: what judges read for a response, as raters do, where that is not the response itself.
  """
  return _reading(llm.from_panel(panel, decoder(vocabulary), vocabulary.decode), render)


def _reading(judge: PreferenceFn, render: Callable | None) -> PreferenceFn:
  if render is None:
    return judge

  def read_rendered(prompts, response, alternative):
    on_device = jax.tree.map(jnp.asarray, prompts)
    rendered = [render(on_device, jnp.asarray(x)) for x in (response, alternative)]
    return judge(prompts, *rendered)

  return read_rendered


def starts_word(vocabulary: Vocabulary) -> Bool[np.ndarray, 'V']:
  """Of every token, whether a word begins with it: of SentencePiece's what its pieces say; elsewhere a token is a word."""
  result = np.ones(vocabulary.vocab_size, bool)
  if hasattr(vocabulary, 'sentencepiece_model_file'):
    pieces = vocabulary.tokenizer  # type: ignore[attr-defined]
    for number in range(pieces.vocab_size()):
      result[number] = pieces.IdToPiece(number).startswith('▁')
  return result


def marker_ids(vocabulary: Vocabulary, num_markers: int) -> tuple[int, ...]:
  """Tokens that mark sentences: T5's sentinels, or the words <s1>, <s2> … of a word list.

  Raises:
    ValueError: the vocabulary has too few.
  """
  if isinstance(vocabulary, WordVocabulary):
    ids = [vocabulary.encode(f'<s{n}>')[0] for n in range(1, num_markers + 1)]
    if vocabulary.unk_id in ids:
      raise ValueError(f'The word list lacks one of <s1> … <s{num_markers}>.')
    return tuple(ids)
  if vocabulary.extra_ids < num_markers:
    raise ValueError(
      f'The vocabulary has {vocabulary.extra_ids} sentinels, {num_markers} are needed: set extra_ids to 100.'
    )
  return tuple(vocabulary.vocab_size - 1 - n for n in range(num_markers))
