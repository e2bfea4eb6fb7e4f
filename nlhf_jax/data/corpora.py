"""Prompts whose responses can be enumerated and are judged by an electorate: headlines, extracts of posts, SciTLDR.

A corpus is numbered prompts and their ballots, split by number. Demonstrations, comparisons and prompts are three views
of it. Generated corpora have no end: every step of training reads prompts that no step read before, and batch n is a
function of n alone.
"""

import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nlhf_jax.arguments import Count, CountOrZero, NonNegative, Positive, Seed, Share
from nlhf_jax.data import encoded, pipeline, vocabularies
from nlhf_jax.data import prompts as prompt_texts
from nlhf_jax.data.vocabulary import Vocabulary, WordVocabulary
from nlhf_jax.judges import electorate, extracts
from nlhf_jax.judges import headlines as headline_texts
from nlhf_jax.judges import noted_headlines as noted
from nlhf_jax.judges import posts as post_sources
from nlhf_jax.types import EOS, NO_VOTERS, AllPairsJudge, Enumeration, Prompts, VoterNames
from nlhf_jax.votes import readers

# Where an endless split ends; validation follows.
_ENDLESS = 2**30
_NUM_VALIDATION = 200
# Prompts in which the documents' frequencies are counted.
_NUM_COUNTED = 4000


class Corpus(NamedTuple):
  """Numbered prompts with their exact electorate; numbers are the prompts' `index`."""

  name: str
  # Number → text.
  prompt: Callable[[int], str]
  ballot: electorate.Ballots
  # Name of a split → its numbers.
  splits: dict[str, range]
  vocabulary: Vocabulary
  # Of demonstrations and comparisons.
  seed: Seed
  # Tokens that responses are made of, and their texts; those of extracts are the markers of sentences.
  words: dict[int, str]

  def text(self, tokens: Int[np.ndarray, 'T']) -> str:
    """A response's words."""
    return ' '.join(self.words[token] for token in tokens.tolist() if token > EOS)


@functools.cache
def vocabulary() -> Vocabulary:
  """The words of the generated corpora, and of the raters' short templates."""
  words = [*post_sources.word_list(), *prompt_texts.SHORT_PREFERENCE, *prompt_texts.SHORT_REWARD]
  return WordVocabulary(dict.fromkeys([*words, *headline_texts.word_list()]))


@functools.cache
def headlines(num_train: Count | None = None, num_test: Count = 400, seed: Seed = 0) -> Corpus:
  """Stories of a day, and headlines of one or two of them (`judges.headlines`).

  Args:
    num_train: prompts to train on; None: without end.
    num_test: prompts held out.
    seed: of all.
  """
  ids = {word: vocabulary().encode(word)[0] for word in headline_texts.word_list()}
  words = {token: word for word, token in ids.items()}
  stories = functools.partial(headline_texts.prompt, seed=seed)
  return Corpus(
    'headlines',
    lambda number: ' '.join(stories(number)),
    _cached(lambda number: headline_texts.ballot(stories(number), ids)),
    _generated_splits(num_train, num_test),
    vocabulary(),
    seed,
    words,
  )


@functools.cache
def noted_vocabulary() -> Vocabulary:
  """The same words, and notes."""
  words = [*prompt_texts.SHORT_PREFERENCE, *prompt_texts.SHORT_REWARD, *noted.word_list()]
  return WordVocabulary(dict.fromkeys([*words, *headline_texts.word_list()]))


@functools.cache
def noted_headlines(
  num_train: Count | None = None,
  num_test: Count = 400,
  *,
  num_unseen: CountOrZero = noted.NUM_UNSEEN,
  about_anybody: bool = False,
  known_share: Share = 0.75,
  seed: Seed = 0,
) -> Corpus:
  """Stories of a day with notes on a person, whoever of those who vote she is (`judges.noted_headlines`).

  Args:
    num_train: prompts to train on; None: without end.
    num_test: prompts held out.
    num_unseen: people who neither vote nor demonstrate.
    about_anybody: whether prompts are about them too, and their exact electorate has them. For a policy, which learns from what a
      judge makes of notes: of these people it is told no preference.
    known_share: of the person's tastes that a prompt notes.
    seed: of all.
  """
  ids = {word: noted_vocabulary().encode(word)[0] for word in headline_texts.word_list()}
  stories = functools.partial(headline_texts.prompt, seed=seed)
  unseen = noted.unseen(num_unseen)
  known = [x for x in noted.people() if about_anybody or x not in unseen]

  @functools.lru_cache(maxsize=2**12)
  def notes(number):
    rng = np.random.default_rng([seed, number, 1])
    return noted.draw_notes(rng, known[rng.integers(len(known))], known_share)

  def ballot(number):
    voters = noted.electors(notes(number), known, len(known))
    return noted.ballot(stories(number), ids, voters)

  return Corpus(
    'noted_headlines',
    lambda number: ' '.join([*noted.words(notes(number)), *stories(number)]),
    _cached(ballot),
    _generated_splits(num_train, num_test),
    noted_vocabulary(),
    seed,
    {token: word for word, token in ids.items()},
  )


@functools.cache
def generated_extracts(
  num_train: Count | None = None, num_test: Count = 400, seed: Seed = 0
) -> Corpus:
  """Generated posts of up to eight sentences, and extracts of one to three of them: 400 responses.

  Arguments as of `headlines`.
  """
  post = functools.lru_cache(maxsize=2**12)(lambda number: post_sources.generate(number, seed))
  splits = _generated_splits(num_train, num_test)
  return _extracts('generated_extracts', post, splits, vocabulary(), seed)


@functools.cache
def scitldr(
  data_dir: str, vocabulary_file: str, extra_ids: CountOrZero = 100, seed: Seed = 0
) -> Corpus:
  """SciTLDR (Cachola et al. 2020) as train.jsonl and valid.jsonl of the `tldr_3_filtered` schema in `data_dir`.

  The last posts of train.jsonl are the split 'validation', those of valid.jsonl 'test'.

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
    rows = readers.demonstrations(pathlib.Path(data_dir) / file, readers.tldr)
    found = post_sources.from_rows(rows)
    splits[split] = range(len(all_posts), len(all_posts) + len(found))
    all_posts += found
  num_train = len(splits['train']) - min(_NUM_VALIDATION, len(splits['train']) // 10)
  splits |= {'train': splits['train'][:num_train], 'validation': splits['train'][num_train:]}
  return _extracts('scitldr', all_posts.__getitem__, splits, vocabulary, seed)


def _generated_splits(num_train: int | None, num_test: int) -> dict[str, range]:
  """Held-out prompts do not depend on the number of the others; settings are chosen by those of validation."""
  end = _ENDLESS if num_train is None else num_test + num_train
  validation = range(_ENDLESS, _ENDLESS + _NUM_VALIDATION)
  return {'train': range(num_test, end), 'validation': validation, 'test': range(num_test)}


def _extracts(
  name: str,
  post: Callable[[int], post_sources.Post],
  splits: dict[str, range],
  vocabulary: Vocabulary,
  seed: int,
) -> Corpus:
  ids = tuple(vocabularies.marker_ids(vocabulary, post_sources.MAX_SENTENCES))
  words = {token: vocabulary.decode([token]) for token in ids}
  prompt = lambda number: post_sources.marked_text(post(number).sentences, list(words.values()))
  ballot = _cached(lambda number: extracts.ballot(post(number), ids))
  return Corpus(name, prompt, ballot, splits, vocabulary, seed, words)


def _cached(ballot: electorate.Ballots) -> electorate.Ballots:
  return functools.lru_cache(maxsize=2**12)(ballot)


def demonstrations(
  corpus: Corpus, per_post: Count = 8, num_drafts: Count = 8
) -> encoded.Task | pipeline.Stream:
  """Each written by one annotator, drawn at random.

  Args:
    corpus: prompts and electorate.
    per_post: demonstrations of each prompt.
    num_drafts: random responses of which the annotator takes the favourite; the fewer, the more is left to be improved.
  """

  def rows(number):
    rng, ballot = _rng(corpus, 'demonstrations', number), corpus.ballot(number)
    row = _row(corpus, number)
    for written in electorate.write(rng, ballot, np.full(per_post, num_drafts)):
      yield row | {'response': corpus.text(ballot.responses[written])}

  return _view(corpus, 'demonstrations', rows)


def comparisons(
  corpus: Corpus, per_post: Count = 8, num_votes: Count | None = None, slips: Share = 0.0
) -> encoded.Task | pipeline.Stream:
  """Two responses each, random drafts or demonstrations, and the share of votes for the first.

  Args:
    corpus: prompts and electorate.
    per_post: comparisons of each prompt.
    num_votes: annotators asked, drawn at random; None: all of them. One vote is a hard and noisy label.
    slips: share of responses that have a wrong word in them, and so mostly are none to the prompt.
  """

  def rows(number):
    rng, ballot = _rng(corpus, 'comparisons', number), corpus.ballot(number)
    row = _row(corpus, number)
    tokens = _with_slips(corpus, rng, _pairs(rng, ballot, per_post), slips)
    first, second = (electorate.scores_of(ballot, tokens[:, side]) for side in (0, 1))
    shares = electorate.votes(rng, first, second, num_votes)
    for pair, share in zip(tokens, shares.tolist(), strict=True):
      texts = {'response': corpus.text(pair[0]), 'alternative': corpus.text(pair[1])}
      yield row | texts | {'preference': share}

  return _view(corpus, 'comparisons', rows)


def voter_comparisons(
  corpus: Corpus,
  per_post: Count = 8,
  *,
  num_known: Count = 60,
  num_unseen: CountOrZero = 40,
  concentration: Positive = 1.0,
  noise: NonNegative = 5.0,
  slips: Share = 0.0,
) -> encoded.Task | pipeline.Stream:
  """Two responses each, random drafts or demonstrations, and the vote of one voter, a mixture of annotators.

  Args:
    corpus: prompts and electorate.
    per_post: comparisons of each prompt.
    num_known: voters who vote on training prompts; the first of them are the annotators themselves.
    num_unseen: others, who vote on held-out prompts alone, as the known do.
    concentration, noise: of the voters (`electorate.mixtures`).
    slips: as of `comparisons`, in training alone: all voters agree on what is no response, and a test of tastes has none.
  """
  num_voters = num_known + num_unseen
  num_annotators = len(corpus.ballot(corpus.splits['test'][0]).scores)
  voters = electorate.mixtures(
    num_voters, num_annotators, concentration=concentration, noise=noise, seed=corpus.seed
  )

  def rows(number):
    rng, ballot = _rng(corpus, 'voter_comparisons', number), corpus.ballot(number)
    tokens = _pairs(rng, ballot, per_post)
    is_training = number in corpus.splits['train']
    who = rng.integers(num_known if is_training else num_voters, size=per_post)
    if is_training and slips:
      tokens = _with_slips(corpus, rng, tokens, slips)
    first, second = (electorate.scores_of(ballot, tokens[:, side]) for side in (0, 1))
    chances = electorate.preferences_of(voters, who, first, second)
    votes = np.where(chances == 0.5, 0.5, rng.random(per_post) < chances)
    for pair, vote, voter in zip(tokens, votes.tolist(), who.tolist(), strict=True):
      texts = {'response': corpus.text(pair[0]), 'alternative': corpus.text(pair[1])}
      yield _row(corpus, number) | texts | {'preference': vote, 'voter': voter}

  names = tuple(f'voter {number}' for number in range(num_voters))
  return _view(corpus, 'voter_comparisons', rows, VoterNames(names, num_known))


def _pairs(
  rng: np.random.Generator, ballot: electorate.Ballot, number: int
) -> Int[np.ndarray, 'N 2 T']:
  """Responses that are random drafts, or the best of four to an annotator."""
  num_drafts = np.where(rng.random((number, 1)) < 0.5, 1, 4)
  return ballot.responses[electorate.write(rng, ballot, np.repeat(num_drafts, 2, axis=1))]


def _with_slips(
  corpus: Corpus, rng: np.random.Generator, tokens: Int[np.ndarray, 'N 2 T'], share: float
) -> Int[np.ndarray, 'N 2 T']:
  """A share of the responses with a wrong word each."""
  for pair, side in np.argwhere(rng.random(tokens.shape[:2]) < share):
    tokens[pair, side] = electorate.slip(rng, tokens[pair, side], list(corpus.words))
  return tokens


def prompts(corpus: Corpus) -> encoded.Task | pipeline.Stream:
  """The prompts alone."""
  return _view(corpus, 'prompts', lambda number: [_row(corpus, number)])


def renderer(corpus: Corpus, max_length: Count) -> extracts.Render:
  """What raters read for an extract: its sentences, of at most `max_length` tokens."""
  return extracts.renderer(tuple(corpus.words), max_length)


def token_features(corpus: Corpus) -> Float[np.ndarray, 'V 3']:
  """Of every token: log document frequency among training prompts, 1 if all have it; its square; whether it starts a word."""
  encode = vocabularies.for_prompts(corpus.vocabulary).encode
  numbers = corpus.splits['train'][:_NUM_COUNTED]
  counts = np.zeros(corpus.vocabulary.vocab_size)
  for number in numbers:
    counts[np.unique(encode(corpus.prompt(number)))] += 1
  frequency = np.log1p(counts) / np.log1p(len(numbers))
  starts = vocabularies.starts_word(corpus.vocabulary)
  return np.stack([frequency, frequency**2, starts], axis=-1)


def markers(corpus: Corpus) -> tuple[int, ...]:
  """Tokens of which responses are made: of extracts, those that stand before sentences."""
  return tuple(corpus.words)


def encoder(corpus: Corpus) -> Callable:
  """Text to tokens."""
  return vocabularies.encoder(corpus.vocabulary)


def decoder(corpus: Corpus) -> Callable:
  """Tokens to text."""
  return vocabularies.decoder(corpus.vocabulary)


def enumeration(corpus: Corpus) -> Callable[[Prompts], Enumeration]:
  """Every response, with the electorate's scores of it, for given prompts."""
  return electorate.enumeration(corpus.ballot)


def judge(corpus: Corpus) -> AllPairsJudge:
  """The electorate's exact preference."""
  return electorate.preference_fn(enumeration(corpus))


def _row(corpus: Corpus, number: int) -> dict[str, str | int]:
  return {'index': number, 'prompt': corpus.prompt(number)}


def _rng(corpus: Corpus, view: str, number: int) -> np.random.Generator:
  """A generator of its own for each prompt of a view."""
  return np.random.default_rng([corpus.seed, sum(ord(letter) for letter in view), number])


def _view(
  corpus: Corpus,
  view: str,
  rows: Callable[[int], Iterable[readers.Row]],
  voters: VoterNames = NO_VOTERS,
) -> encoded.Task | pipeline.Stream:
  """A task where training prompts are finite, else a stream."""
  name = f'{corpus.name}_{view}'
  if corpus.splits['train'].stop == _ENDLESS:
    return pipeline.Stream(name, rows, corpus.splits, corpus.vocabulary, voters)
  from nlhf_jax.data import tasks  # With seqio, which a stream does without.

  of_split = lambda numbers: (row for number in numbers for row in rows(number))
  by_split = {x: functools.partial(of_split, numbers) for x, numbers in corpus.splits.items()}
  return tasks.from_rows(name, by_split, corpus.vocabulary, voters)
