"""Summaries in free text of SciTLDR's abstracts, for pre-trained models, judged by the same electorate.

Its annotators score any text as they score extracts: by the key facts (content words of the human summary) and topics
(content words that sentences of the abstract share) that it names, and by its length.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import seqio
from jaxtyping import Float

from nlhf_jax.arguments import Count, Decay, Seed
from nlhf_jax.data import tasks, vocabularies
from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.judges import extracts, posts, text
from nlhf_jax.types import PreferenceFn
from nlhf_jax.votes import readers


class Abstracts(NamedTuple):
  """Abstracts with their human summaries; the number of one is the `index` of its prompt."""

  posts: list[posts.Post]
  prompts: list[str]
  summaries: list[str]
  # Name of a split → its numbers.
  splits: dict[str, list[int]]
  vocabulary: Vocabulary
  # Of comparisons.
  seed: Seed


def scitldr(
  data_dir: str,
  vocabulary: Vocabulary,
  num_sentences: Count | None = None,
  validation_share: Decay = 0.1,
  seed: Seed = 0,
) -> Abstracts:
  """train.jsonl and valid.jsonl of the `tldr_3_filtered` schema; a prompt is a title, and how an abstract begins.

  Args:
    data_dir: holds both files; train.jsonl gives the splits train and validation, valid.jsonl gives test.
    vocabulary: of prompts and responses.
    num_sentences: of the abstract, that stand in its prompt; None: all. Annotators know the abstract as a whole.
    validation_share: of train.jsonl, told by a hash of the abstract's name.
    seed: of comparisons.
  """
  result = Abstracts([], [], [], {'train': [], 'validation': [], 'test': []}, vocabulary, seed)
  shares = {'train': 1 - validation_share, 'validation': validation_share}
  for file in ('train.jsonl', 'valid.jsonl'):
    for row in readers.demonstrations(pathlib.Path(data_dir) / file, readers.tldr):
      for post in posts.from_rows([row]):
        split = readers.hash_split(post.id, shares) if file == 'train.jsonl' else 'test'
        result.splits[split].append(len(result.posts))
        beginning = ' '.join(post.sentences[:num_sentences])
        result.posts.append(post)
        result.prompts.append(f'Title: {row["title"]}\n\nAbstract: {beginning}')
        result.summaries.append(row['response'])
  return result


def demonstrations(abstracts: Abstracts, max_tokens: Count | None = None) -> seqio.Task:
  """The human summaries.

  Args:
    abstracts: what they summarise.
    max_tokens: summaries that have more, with EOS, are left out: who imitates one that was cut learns never to end.
  """

  def rows(number):
    summary = abstracts.summaries[number]
    if max_tokens is None or len(abstracts.vocabulary.encode(summary)) < max_tokens:
      yield {'response': summary}

  return _task(abstracts, 'demonstrations', rows)


def prompts(abstracts: Abstracts) -> seqio.Task:
  """The abstracts alone."""
  return _task(abstracts, 'prompts', lambda number: [{}])


def comparisons(abstracts: Abstracts, per_post: Count = 4) -> seqio.Task:
  """Pairs of different texts, human summaries and random extracts of one to three sentences, with their shares of votes."""

  def rows(number):
    rng = np.random.default_rng([abstracts.seed, number])
    sentences = abstracts.posts[number].sentences
    for _ in range(per_post):
      first = second = _candidate(rng, sentences, abstracts.summaries[number])
      while second == first:
        second = _candidate(rng, sentences, abstracts.summaries[number])
      share = preference(abstracts.posts[number], first, second)
      yield {'response': first, 'alternative': second, 'preference': share}

  return _task(abstracts, 'comparisons', rows)


def judge(abstracts: Abstracts) -> PreferenceFn:
  """The electorate itself; runs on the host."""

  def prefer(prompts, response, alternative):
    index = np.repeat(np.asarray(prompts.index), len(response) // len(prompts.index))
    first, second = (
      text.decode_rows(abstracts.vocabulary.decode, x) for x in (response, alternative)
    )
    shares = [
      preference(abstracts.posts[n], *pair) for n, *pair in zip(index, first, second, strict=True)
    ]
    return np.array(shares, np.float32)

  return prefer


def encoder(abstracts: Abstracts) -> Callable[[str], Sequence[int]]:
  """A prompt's words to tokens."""
  return vocabularies.encoder(abstracts.vocabulary)


def decoder(abstracts: Abstracts) -> Callable[[Sequence[int]], str]:
  """Tokens to text, without the frame that prompts have."""
  return vocabularies.decoder(abstracts.vocabulary)


def preference(post: posts.Post, first: str, second: str) -> float:
  """Share of the annotators that like `first` better; a tie is half a vote."""
  a, b = scores(post, first), scores(post, second)
  return float(np.mean(0.5 + 0.5 * (a > b) - 0.5 * (a < b)))


def scores(post: posts.Post, summary: str) -> Float[np.ndarray, 'K']:
  """Every annotator's score of a text, as in the table of `extracts`; −inf for an empty one."""
  if not summary.strip():
    return np.full(len(extracts.ANNOTATORS), -np.inf, np.float32)
  named, words = posts.content_words(summary), posts.length(summary)
  facts, topics = (len(named & frozenset().union(*items)) for items in (post.facts, post.topics))
  return np.array([facts - 0.1 * words, facts - words, topics - 0.1 * words], np.float32)


def _candidate(rng: np.random.Generator, sentences: Sequence[str], summary: str) -> str:
  if rng.random() < 0.25:
    return summary
  size = rng.integers(1, min(extracts.MAX_SELECTED, len(sentences)) + 1)
  chosen = np.sort(rng.permutation(len(sentences))[:size])
  return ' '.join(sentences[number] for number in chosen)


def _task(
  abstracts: Abstracts, view: str, make_rows: Callable[[int], Iterable[readers.Row]]
) -> seqio.Task:
  def rows(split):
    for number in abstracts.splits[split]:
      for row in make_rows(number):
        yield {'index': number, 'prompt': abstracts.prompts[number]} | row

  by_split = {split: functools.partial(rows, split) for split in abstracts.splits}
  return tasks.from_rows(f'scitldr_written_{view}', by_split, abstracts.vocabulary)
