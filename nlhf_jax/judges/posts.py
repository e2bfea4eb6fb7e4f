"""Posts for extractive summarisation: generated ones, and SciTLDR's abstracts.

A post is up to 8 sentences, each behind a marker; a response is one to three different markers, and the summary is
those sentences. Each sentence has what annotators look at: the key facts it states, the topics it touches and its
number of words. In the generated posts all of that stands in the text:

  <s1> harbour flood strike today <s2> school <s3> market flood again quietly …

(place = topic, event = key fact, the rest is padding; short, since every word costs a small machine time.)
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MAX_SENTENCES = 8

TOPICS = ('harbour', 'school', 'market', 'railway', 'hospital')
FACTS = (
  'flood', 'strike', 'fire', 'election', 'robbery', 'festival', 'storm', 'outage', 'protest', 'merger', 'epidemic',
  'verdict',
)  # fmt: skip
PADDING = (
  'today', 'again', 'quietly', 'officially', 'nearby', 'overnight', 'reportedly', 'downtown',
)  # fmt: skip


class Post(NamedTuple):
  """A text in sentences, with what annotators see in each."""

  id: str
  sentences: tuple[str, ...]
  # Key facts that each sentence states.
  facts: tuple[frozenset[str], ...]
  # Topics that it touches.
  topics: tuple[frozenset[str], ...]
  # Its length, in words of a generated post.
  words: tuple[float, ...]


def markers() -> tuple[str, ...]:
  """The words that stand before sentences."""
  return tuple(f'<s{number}>' for number in range(1, MAX_SENTENCES + 1))


def word_list() -> list[str]:
  """Every word of a generated post."""
  return [*markers(), *TOPICS, *FACTS, *PADDING]


def generate(number: int, seed: int = 0) -> Post:
  """Post `number`: 4 to 8 sentences; a sentence has one topic, up to three facts and up to three words of padding.

  A function of both arguments alone.
  """
  rng = np.random.default_rng([seed, number])
  sentences, facts, topics = [], [], []
  for _ in range(rng.integers(4, MAX_SENTENCES + 1)):
    topic = TOPICS[rng.integers(len(TOPICS))]
    chosen = [FACTS[i] for i in rng.choice(len(FACTS), size=rng.integers(0, 4), replace=False)]
    padding = [PADDING[i] for i in rng.integers(len(PADDING), size=rng.integers(0, 4))]
    sentences.append(' '.join([topic, *chosen, *padding]))
    facts.append(frozenset(chosen))
    topics.append(frozenset([topic]))
  words = tuple(float(len(sentence.split())) for sentence in sentences)
  return Post(f'{seed}-{number}', tuple(sentences), tuple(facts), tuple(topics), words)


def marked_text(sentences: Sequence[str], markers: Sequence[str]) -> str:
  """The prompt: every sentence after its marker."""
  return ' '.join(f'{marker} {text}' for marker, text in zip(markers, sentences, strict=False))


# Words too common to be a key fact.
_COMMON_WORDS = """
  a about also an and are as at be been both but by can do each for from has have how however in into is it
  its may more most not of on only or other our over show such than that the their them then there these they
  this those to under up use used using via was we were when where which while who will with without
"""
_COMMON = frozenset(_COMMON_WORDS.split())
# An abstract's sentence has about 25 words, a generated one about 5.
_WORDS_PER_GENERATED_WORD = 5.0


def from_rows(rows: Iterable[dict[str, str]]) -> list[Post]:
  """Posts of abstracts in the `tldr_3_filtered` schema; the human summary says what the key facts are.

  Key facts: content words of the summary. Topics: content words that at least two sentences of the abstract share.
  Abstracts of a single sentence are left out: there is nothing to choose.
  """
  return [post for post in map(_from_row, rows) if len(post.sentences) > 1]


def _from_row(row: dict[str, str]) -> Post:
  sentences = split_sentences(row['post'])[:MAX_SENTENCES]
  content = [content_words(sentence) for sentence in sentences]
  summary = content_words(row['summary'])
  counts: dict[str, int] = {}
  for word in (word for words in content for word in words):
    counts[word] = counts.get(word, 0) + 1
  shared = {word for word, count in counts.items() if count > 1}
  return Post(
    row['id'],
    tuple(sentences),
    tuple(frozenset(words & summary) for words in content),
    tuple(frozenset(words & shared) for words in content),
    tuple(map(length, sentences)),
  )


def length(text: str) -> float:
  """Length of a real text, in words of a generated one."""
  return len(text.split()) / _WORDS_PER_GENERATED_WORD


def split_sentences(text: str) -> list[str]:
  """Splits after . ! ? that precede a space and a capital, but not after "et al.", "e.g." and "i.e."."""
  parts = re.split(r'(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!al\.)\s+(?=[A-Z])', text.strip())
  return [part for part in parts if part]


def content_words(text: str) -> frozenset[str]:
  """Words of three letters or more, in lower case, that are not too common."""
  return frozenset(re.findall(r'[a-z]{3,}', text.lower())) - _COMMON
