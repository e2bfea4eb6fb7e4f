"""Whether rankings hold what they promise, on simulated votes: coverage of intervals, false alarms and power of cycles and
of voters' reliability.

  python benchmarks/votes_coverage.py --num_simulations 400 --output out.json

Votes: each voter and each prompt has a taste of its own for every model (normal), a pair of models meets on some pairs of voter
and prompt, on a sparse graph. The truth is the score that infinitely many voters and prompts would give.
"""

import argparse
import json
import pathlib

import numpy as np
from rich import console
from rich import table as rich_table
from scipy import special, stats

from nlhf_jax.votes import bradley_terry, cycles, reliability, resampling, table
from nlhf_jax.votes.likelihood import Model

NUM_MODELS, NUM_VOTERS, NUM_PROMPTS = 8, 60, 60
NUM_VOTES = 3000
TASTE = 0.6
MODEL = Model('drop', 'drop')


def graph(rng: np.random.Generator) -> np.ndarray:
  """Pairs that meet: a ring, so that all are connected, and a few more."""
  ring = [(i, (i + 1) % NUM_MODELS) for i in range(NUM_MODELS)]
  more = [tuple(rng.choice(NUM_MODELS, 2, replace=False)) for _ in range(4)]
  return np.array(ring + more)


def draw(rng, theta, pairs, num_voters, num_prompts, num_votes, taste=TASTE) -> table.Votes:
  """Votes by voters and prompts with tastes of their own."""
  voter_taste = rng.normal(scale=taste, size=(num_voters, NUM_MODELS))
  prompt_taste = rng.normal(scale=taste, size=(num_prompts, NUM_MODELS))
  voter = rng.integers(num_voters, size=num_votes)
  prompt = rng.integers(num_prompts, size=num_votes)
  a, b = pairs[rng.integers(len(pairs), size=num_votes)].T
  worth = theta + voter_taste[voter] + prompt_taste[prompt]
  row = np.arange(num_votes)
  wins = rng.random(num_votes) < special.expit(worth[row, a] - worth[row, b])
  verdict = np.where(wins[:, None], np.eye(4)[0], np.eye(4)[1])
  votes = table.from_counts(a, b, verdict, np.ones(num_votes), [f'm{i}' for i in range(NUM_MODELS)])
  return votes._replace(voter=voter.astype(np.int32), prompt=prompt.astype(np.int32))


def coverage(num_simulations: int, num_bootstraps: int, seed: int = 0) -> dict[str, float]:
  """How often the 95 % interval of a score holds the truth, by what it takes to be independent."""
  rng = np.random.default_rng(seed)
  theta = np.linspace(1, -1, NUM_MODELS)
  pairs = graph(rng)
  many = draw(rng, theta, pairs, 100_000, 100_000, 2_000_000)
  truth = bradley_terry.fit(
    many._replace(voter=0 * many.voter - 1, prompt=0 * many.prompt - 1), MODEL
  ).scores
  kinds = ('rows', 'voters', 'prompts', 'voters and prompts')
  found: dict[str, list] = {
    name: [] for name in (*kinds, 'bootstrap of rows', 'bootstrap of voters')
  }
  for number in range(num_simulations):
    votes = draw(rng, theta, pairs, NUM_VOTERS, NUM_PROMPTS, NUM_VOTES)
    unknown = np.full_like(votes.voter, table.UNKNOWN)
    for name in kinds:
      known = votes._replace(
        voter=votes.voter if 'voters' in name else unknown,
        prompt=votes.prompt if 'prompts' in name else unknown,
      )
      fit = bradley_terry.fit(known, MODEL)
      quantile = stats.t.ppf(0.975, fit.degrees)
      half = quantile * np.sqrt(np.diag(fit.covariance)[:NUM_MODELS])
      found[name].append(np.abs(fit.scores - truth) <= half)
    if number < num_bootstraps:
      for cluster, name in (('vote', 'bootstrap of rows'), ('voter', 'bootstrap of voters')):
        drawn = resampling.resample(votes, MODEL, cluster=cluster, num_resamples=300, seed=number)
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        found[name].append((low <= truth) & (truth <= high))
  return {name: float(np.mean(covered)) for name, covered in found.items() if covered}


def alarms(num_simulations: int, seed: int = 1) -> dict[str, float]:
  """How often cycles are reported at 5 %: of scores alone, and of a planted cycle of three at .65, 60 votes a pair of 8."""
  rng = np.random.default_rng(seed)
  theta = np.linspace(0.6, -0.6, NUM_MODELS)
  none = special.expit(theta[:, None] - theta)
  planted = none.copy()
  for i, j in ((2, 3), (3, 4), (4, 2)):
    planted[i, j], planted[j, i] = 0.65, 0.35
  result = {}
  for name, p, votes in (
    ('scores alone', none, 60),
    ('a cycle of .65', planted, 60),
    ('a cycle of .65, 200 votes', planted, 200),
  ):
    hits = {'Pearson': [], 'plane of circles': [], 'a triple': []}
    for number in range(num_simulations):
      upper = np.triu_indices(NUM_MODELS, 1)
      wins = np.zeros_like(p)
      wins[upper] = rng.binomial(votes, p[upper])
      wins.T[upper] = votes - wins[upper]
      made = table.from_wins(wins, [f'm{i}' for i in range(NUM_MODELS)])
      hits['Pearson'].append(cycles.shares(made).p_value <= 0.05)
      hits['a triple'].append(bool(cycles.significant(made)))
      if number < num_simulations // 4:
        test = cycles.skew_test(made, num_simulations=39, seed=number)
        hits['plane of circles'].append(test.p_value <= 0.05)
    result |= {f'{test}, {name}': float(np.mean(hit)) for test, hit in hits.items()}
  return result


def unreliable(num_simulations: int, num_votes: int, seed: int = 0) -> dict[str, float]:
  """Voters flagged among 50 honest ones, with and without five who toss a coin and one who votes against the others."""
  rng, theta = np.random.default_rng(seed), np.linspace(1, -1, NUM_MODELS)
  pairs = np.array([(i, j) for i in range(NUM_MODELS) for j in range(i)])
  result = {}
  for name, taste in (('the same taste', 0.0), ('tastes of their own', TASTE)):
    hits: dict[str, list] = {what: [] for what in ('any honest', 'wrongly', 'coins', 'against')}
    for _ in range(num_simulations):
      votes = draw(rng, theta, pairs, 56, 60, 56 * num_votes, taste)
      honest = table.select(votes, votes.voter >= 6)
      hits['any honest'].append(any(x.flag for x in reliability.voters(honest)))
      spoilt = votes.verdict.copy()
      coins = np.flatnonzero(votes.voter < 5)
      spoilt[coins] = np.eye(4)[rng.integers(2, size=len(coins))]
      against = votes.voter == 5
      spoilt[against, :2] = 1 - spoilt[against, :2]
      found = reliability.voters(votes._replace(verdict=spoilt))
      flags = {int(x.name.split()[1]): x.flag for x in found if x.flag}
      hits['wrongly'].append(sum(n > 5 for n in flags) / max(len(flags), 1))
      hits['coins'].append(sum(n < 5 for n in flags) / 5)
      hits['against'].append(flags.get(5) == 'against')
    result |= {f'{what}, {name}': float(np.mean(hit)) for what, hit in hits.items()}
  return result


def main() -> None:
  """Prints a table, and writes it as JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--num_simulations', type=int, default=400)
  parser.add_argument('--num_bootstraps', type=int, default=100)
  parser.add_argument('--output')
  args = parser.parse_args()
  found = {
    'coverage of 95 %': coverage(args.num_simulations, args.num_bootstraps),
    'reported at 5 %': alarms(args.num_simulations),
    'voters flagged, 60 votes': unreliable(args.num_simulations, 60),
    'voters flagged, 200 votes': unreliable(args.num_simulations, 200),
  }
  shown = rich_table.Table('', '', 'share')
  for what, shares in found.items():
    for name, share in shares.items():
      shown.add_row(what, name, f'{share:.3f}')
  console.Console().print(shown)
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main()
