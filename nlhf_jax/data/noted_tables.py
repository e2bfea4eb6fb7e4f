"""What a policy that reads notes on a person would pick: its log-probs of every headline, by day and by what is noted."""

import numpy as np

from nlhf_jax.arguments import Count, Seed
from nlhf_jax.data import corpora
from nlhf_jax.evaluation import exact
from nlhf_jax.evaluation.contestants import Contestant
from nlhf_jax.judges import headlines
from nlhf_jax.judges import noted_headlines as people
from nlhf_jax.personalisation import editor
from nlhf_jax.types import Prompts


def of_policy(contestant: Contestant, num_days: Count = 120, *, seed: Seed = 0) -> editor.Tables:
  """Tables of the first held-out days.

  Args:
    contestant: a policy that was trained on `corpora.noted_headlines`.
    num_days: how many.
    seed: of that corpus, or the days are others than those that it held out.
  """
  corpus = corpora.noted_headlines(seed=seed)
  encode = corpora.encoder(corpus)
  everyone = people.people()
  log_probs_of = exact.enumerator(contestant.policy)
  states = [_noted(x) for x in editor.STATES]
  possible = [any(people.is_true(x, person) for person in everyone) for x in states]
  ids = {word: token for token, word in corpus.words.items()}
  length = len(people.TOPICS) + headlines.NUM_STORIES
  tables, scores = [], []
  for day in range(num_days):
    stories = headlines.prompt(day, corpus.seed)
    ballot = people.ballot(stories, ids, everyone)
    rows = [encode(' '.join([*people.words(x), *stories])) for x in states]
    tokens = np.array([[*row, *[0] * (length - len(row))] for row in rows], np.int32)
    prompts = Prompts(tokens, np.full(len(rows), day, np.int32))
    responses = np.broadcast_to(ballot.responses, (len(rows), *ballot.responses.shape))
    found = log_probs_of(contestant.params, prompts, responses)
    tables.append(np.where(np.array(possible)[:, None], found, -np.log(found.shape[1])))
    scores.append(ballot.scores)
  return editor.Tables(np.stack(tables), np.stack(scores))


def _noted(state: tuple[str | None, ...]) -> dict[str, str]:
  return {topic: value for topic, value in zip(people.TOPICS, state, strict=True) if value}
