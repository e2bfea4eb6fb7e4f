"""Tables of what a policy that reads notes would pick: of which days."""

import numpy as np
import pytest

from nlhf_jax.data import corpora, noted_tables
from nlhf_jax.evaluation.contestants import Contestant
from nlhf_jax.judges import headlines
from nlhf_jax.judges import noted_headlines as people


@pytest.mark.parametrize('seed', [0, 3])
def test_days_are_those_of_the_runs_corpus(seed, monkeypatch):
  """A day is its number and the corpus's seed: of another seed it is another day."""
  asked = []

  def enumerator(policy):
    def log_probs_of(params, prompts, responses):
      asked.append(prompts.tokens)
      return np.full(responses.shape[:2], -1.0, np.float32)

    return log_probs_of

  monkeypatch.setattr(noted_tables.exact, 'enumerator', enumerator)
  tables = noted_tables.of_policy(Contestant(None, {}), 2, seed=seed)
  corpus = corpora.noted_headlines(seed=seed)
  for day in range(2):
    stories = headlines.prompt(day, seed)
    # Of nothing noted, the stories alone.
    assert [corpus.words[token] for token in asked[day][0].tolist() if token] == list(stories)
    assert corpus.prompt(day).split()[-len(stories) :] == list(stories)
    ids = {word: token for token, word in corpus.words.items()}
    expected = people.ballot(stories, ids, people.people()).scores
    np.testing.assert_array_equal(tables.scores[day], expected)
