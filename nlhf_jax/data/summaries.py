"""Extractive summaries judged by the electorate, as seqio tasks: the built-in posts, and SciTLDR.

A corpus is posts, their electorate and a split by post. Demonstrations, comparisons and prompts are three views of it.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import seqio

from nlhf_jax.data import prompts as prompt_texts
from nlhf_jax.data import tasks, vocabularies
from nlhf_jax.data.word_vocabulary import WordVocabulary
from nlhf_jax.judges import electorate as electorates
from nlhf_jax.judges import extracts
from nlhf_jax.judges import posts as post_sources
from nlhf_jax.types import EOS, Enumeration, PreferenceFn, Prompts
from nlhf_jax.votes import readers


class Corpus(NamedTuple):
  """Posts with their exact electorate; row numbers of the electorate are the prompts' `index`."""

  name: str
  posts: list[post_sources.Post]
  # Name of a split → its numbers.
  splits: dict[str, range]
  vocabulary: seqio.Vocabulary
  electorate: electorates.Electorate
  # Of demonstrations and comparisons.
  seed: int

  def prompt(self, number: int) -> str:
    """A post as text, every sentence behind its marker."""
    return post_sources.marked_text(self.posts[number].sentences, self.marker_texts)

  @property
  def marker_texts(self) -> tuple[str, ...]:
    return tuple(self.vocabulary.decode([i]) for i in self.electorate.marker_ids)

  def response(self, number: int) -> str:
    """One of the electorate's responses as text: its markers."""
    ids = self.electorate.responses[number]
    return ' '.join(self.vocabulary.decode([int(i)]) for i in ids if i > EOS)


@functools.cache
def vocabulary() -> seqio.Vocabulary:
  """The words of the built-in corpus, and of the raters' short templates."""
  words = [*post_sources.word_list(), *prompt_texts.SHORT_PREFERENCE, *prompt_texts.SHORT_REWARD]
  return WordVocabulary(dict.fromkeys(words))


@functools.cache
def builtin(num_train: int = 3000, num_test: int = 400, seed: int = 0) -> Corpus:
  """The generated corpus; nothing is downloaded."""
  all_posts = post_sources.generate(num_train + num_test, seed)
  splits = {'train': range(num_train), 'test': range(num_train, num_train + num_test)}
  return _corpus('builtin', all_posts, splits, vocabulary(), seed)


@functools.cache
def scitldr(data_dir: str, vocabulary_file: str, extra_ids: int = 100, seed: int = 0) -> Corpus:
  """SciTLDR (Cachola et al. 2020) as train.jsonl and valid.jsonl of the `tldr_3_filtered` schema in `data_dir`.

  Args:
    data_dir: holds both files.
    vocabulary_file: a SentencePiece model.
    extra_ids: its sentinels; the first 8 mark sentences.
    seed: of demonstrations and comparisons.
  """
  vocabulary = vocabularies.sentencepiece(vocabulary_file, extra_ids)
  all_posts: list[post_sources.Post] = []
  splits = {}
  for split, file in [('train', 'train.jsonl'), ('test', 'valid.jsonl')]:
    rows = readers.read_jsonl(pathlib.Path(data_dir) / file, readers.tldr)
    found = post_sources.from_rows(rows)
    splits[split] = range(len(all_posts), len(all_posts) + len(found))
    all_posts += found
  return _corpus('scitldr', all_posts, splits, vocabulary, seed)


def _corpus(
  name: str,
  all_posts: list[post_sources.Post],
  splits: dict[str, range],
  vocabulary: seqio.Vocabulary,
  seed: int,
) -> Corpus:
  ids = vocabularies.marker_ids(vocabulary, post_sources.MAX_SENTENCES)
  electorate = electorates.elect(all_posts, ids)
  return Corpus(name, all_posts, splits, vocabulary, electorate, seed)


def demonstrations(corpus: Corpus, per_post: int = 8) -> seqio.Task:
  """Each written by one annotator, drawn at random: the favourite of eight drafts."""

  def rows(split):
    for number, rng in _seeded(corpus, split, 'demonstrations'):
      size, scores = len(corpus.posts[number].sentences), corpus.electorate.scores[number]
      for _ in range(per_post):
        written = electorates.write(rng, scores, size)
        yield _row(corpus, number) | {'response': corpus.response(written)}

  return _task(corpus, 'demonstrations', rows)


def comparisons(corpus: Corpus, per_post: int = 8, num_votes: int | None = None) -> seqio.Task:
  """Two responses each, random drafts or demonstrations, and the share of votes for the first.

  Args:
    corpus: posts and electorate.
    per_post: comparisons of each post.
    num_votes: annotators asked, drawn at random; None: all of them. One vote is a hard and noisy label.
  """

  def rows(split):
    for number, rng in _seeded(corpus, split, 'comparisons'):
      size, scores = len(corpus.posts[number].sentences), corpus.electorate.scores[number]
      for _ in range(per_post):
        drafts = 1 if rng.random() < 0.5 else 4
        first, second = (electorates.write(rng, scores, size, drafts) for _ in range(2))
        share = electorates.votes(rng, scores, first, second, num_votes)
        pair = {'response': corpus.response(first), 'alternative': corpus.response(second)}
        yield _row(corpus, number) | pair | {'preference': share}

  return _task(corpus, 'comparisons', rows)


def prompts(corpus: Corpus) -> seqio.Task:
  """The posts alone."""
  return _task(corpus, 'prompts', lambda split: (_row(corpus, n) for n in corpus.splits[split]))


def renderer(corpus: Corpus, max_length: int) -> extracts.Render:
  """What raters read for a response: its sentences, of at most `max_length` tokens."""
  return extracts.renderer(corpus.electorate.marker_ids, max_length)


def encoder(corpus: Corpus) -> Callable:
  """Text to tokens."""
  return vocabularies.encoder(corpus.vocabulary)


def decoder(corpus: Corpus) -> Callable:
  """Tokens to text."""
  return vocabularies.decoder(corpus.vocabulary)


def enumeration(corpus: Corpus) -> Callable[[Prompts], Enumeration]:
  """Every response, with the electorate's scores of it for given prompts."""
  table = corpus.electorate
  return lambda prompts: Enumeration(table.responses, table.scores[np.asarray(prompts.index)])


def judge(corpus: Corpus) -> PreferenceFn:
  """The electorate's exact preference."""
  return electorates.preference_fn(corpus.electorate)


def _row(corpus: Corpus, number: int) -> dict[str, str | int]:
  return {'index': number, 'prompt': corpus.prompt(number)}


def _seeded(corpus: Corpus, split: str, view: str) -> Iterator[tuple[int, np.random.Generator]]:
  """Row numbers of a split, each with a generator of its own."""
  salt = sum(ord(letter) for letter in view)
  for number in corpus.splits[split]:
    yield number, np.random.default_rng([corpus.seed, salt, number])


def _task(corpus: Corpus, view: str, rows: Callable[[str], Iterable[readers.Row]]) -> seqio.Task:
  by_split = {split: functools.partial(rows, split) for split in corpus.splits}
  return tasks.from_rows(f'{corpus.name}_{view}', by_split, corpus.vocabulary)
