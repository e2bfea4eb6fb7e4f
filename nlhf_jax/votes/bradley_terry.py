"""Scores from votes by maximum likelihood (`votes.likelihood`): Bradley-Terry with ties, "both bad", features and order.

The maximum is finite within a group of alternatives of whom each has points from all others, directly or by way of some
(Ford 1957). Between groups it is not: one who never lost stands any distance above, and of groups that never met nothing
is known. `Fit` keeps them apart; bounds between them are those of the profile likelihood.

Intervals: V = H⁻¹(M_voter + M_prompt − M_both)H⁻¹ of clustered scores, Student's t with one degree less than the fewer
clusters (Cameron, Gelbach and Miller 2011; Cameron and Miller 2015); votes of unknown voters and prompts are independent.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse import csgraph

from nlhf_jax.votes import likelihood, table
from nlhf_jax.votes.likelihood import DEFAULT, Model, Problem

# Elo points of a nat: 400 points are odds of 10.
ELO = 400 / np.log(10)


class Fit(NamedTuple):
  """Scores of n alternatives, and what else the likelihood has."""

  labels: tuple[str, ...]
  # θ in nats; mean 0 within each group.
  scores: Float[np.ndarray, 'n']
  # Alternatives of one number have finite differences.
  group: Int[np.ndarray, 'n']
  # above[i, j]: every vote there is says that i's group is above j's, by any distance.
  above: Bool[np.ndarray, 'n n']
  # Of `scores` and `others`, clustered.
  covariance: Float[np.ndarray, 'P P']
  # Of freedom: the fewer of voters and prompts, less 1; infinite where votes are independent.
  degrees: float
  # β, γ, log ν, log κ and δ by name.
  others: dict[str, float]
  # Mean nats of a vote.
  loss: float


def fit(votes: table.Votes, model: Model = DEFAULT) -> Fit:
  """The scores of greatest likelihood.

  Raises:
    ValueError: no vote is left, a feature is unknown or always decides.
  """
  votes = likelihood.as_modelled(votes, model)
  size = len(votes.labels)
  above, group = groups(votes)
  problem, held, phi = _fitted(votes, group, model)
  value, _, hessian = likelihood.evaluate(problem, phi)
  inverse = np.linalg.pinv(hessian + held, hermitian=True)
  middle, degrees = _middle(problem, phi)
  covariance = inverse @ middle @ inverse
  others = dict(zip(problem.names[size:], phi[size:].tolist(), strict=True))
  total = float(votes.counts @ votes.verdict.sum(axis=1))
  return Fit(votes.labels, phi[:size], group, above, covariance, degrees, others, value / total)


def _fitted(
  votes: table.Votes, group: Int[np.ndarray, 'n'], model: Model
) -> 'tuple[Problem, Float[np.ndarray, "P P"], Float[np.ndarray, "P"]]':
  """The problem and its minimum; without δ where few were both bad, so that it has none that is finite."""
  if group.max() == 0:
    problem, held = _within_groups(votes, group, model, level_matters=True)
    try:
      return problem, held, likelihood.minimise(problem, held)
    except ValueError:
      if 'delta' not in problem.names:
        raise
  problem, held = _within_groups(votes, group, model)
  return problem, held, likelihood.minimise(problem, held)


def least_loss(votes: table.Votes, model: Model) -> float:
  """Nats of all votes, as modelled, at the greatest likelihood, where "both bad" says nothing of scores."""
  problem, held = _within_groups(votes, groups(votes)[1], model)
  return likelihood.evaluate(problem, likelihood.minimise(problem, held))[0]


def least_loss_at(
  votes: table.Votes, model: Model, i: int, core: Int[np.ndarray, 'c'], distance: float
) -> float:
  """The same where alternative i is so many nats above the mean of the core."""
  bound = votes._replace(a=np.where(votes.a == i, core[0], votes.a))
  bound = bound._replace(b=np.where(votes.b == i, core[0], votes.b))
  group = groups(bound)[1]
  group[i] = group[core[0]]
  problem, _ = _within_groups(votes, group, model)
  size = len(problem.names)
  alone = np.where(np.arange(len(group)) == i, group.max() + 1, group)
  to_core = sparse.eye_array(size, format='lil')
  to_core[i, i] = 0
  to_core[i, core] = 1 / len(core)
  shift = distance * np.eye(size)[i]
  offset = problem.offset + np.stack([design @ shift for design in problem.designs], axis=1)
  designs = tuple((design @ to_core).tocsr() for design in problem.designs)
  problem = problem._replace(designs=designs, offset=offset)
  return likelihood.evaluate(problem, likelihood.minimise(problem, likelihood.pins(alone, size)))[0]


def _within_groups(
  votes: table.Votes, group: Int[np.ndarray, 'n'], model: Model, level_matters: bool = False
) -> 'tuple[Problem, Float[np.ndarray, "P P"]]':
  """What there is to minimise: votes between groups cost nothing in the limit."""
  inside = group[votes.a] == group[votes.b]
  kept = (
    table.select(votes, inside)
    if inside.any()
    else votes._replace(counts=np.zeros_like(votes.counts))
  )
  problem = likelihood.make_problem(kept, model, level_matters)
  return problem, likelihood.pins(group, len(problem.names))


def groups(votes: table.Votes) -> tuple[Bool[np.ndarray, 'n n'], Int[np.ndarray, 'n']]:
  """Who stands any distance above whom, and the groups within which differences are finite.

  A vote for i over j is an arrow; a tie, or both bad, one each way. Those who reach each other form a group; who reaches
  another that does not reach back is above it. Neither: nothing is known.
  """
  size = len(votes.labels)
  shares = votes.counts[:, None] * votes.verdict
  won, lost = shares[:, 0] > 0, shares[:, 1] > 0
  even = shares[:, 2:].sum(axis=1) > 0
  i = np.concatenate([votes.a[won | even], votes.b[lost | even]])
  j = np.concatenate([votes.b[won | even], votes.a[lost | even]])
  arrows = sparse.csr_matrix((np.ones(len(i)), (i, j)), shape=(size, size))
  _, group = csgraph.connected_components(arrows, connection='strong')
  reaches = np.isfinite(csgraph.shortest_path(arrows, unweighted=True))
  return reaches & ~reaches.T, _by_size(group)


def _by_size(group: Int[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
  """The same groups, the largest being number 0."""
  order = np.argsort(-np.bincount(group), kind='stable')
  return np.argsort(order)[group]


def components(votes: table.Votes) -> Int[np.ndarray, 'n']:
  """Alternatives of different numbers never met, directly or by way of others."""
  size = len(votes.labels)
  met = sparse.csr_matrix((votes.counts, (votes.a, votes.b)), shape=(size, size))
  return csgraph.connected_components(met, directed=False)[1]


def _middle(
  problem: Problem, phi: Float[np.ndarray, 'P']
) -> tuple[Float[np.ndarray, 'P P'], float]:
  """M_voter + M_prompt − M_both, without its negative part; and the degrees of freedom."""
  first = likelihood.local(problem, phi)[1]
  scores = sum(design.multiply(first[:, [k]]) for k, design in enumerate(problem.designs)).tocsr()
  votes = problem.votes
  voter, prompt = (_clusters(scores, votes.counts, code) for code in (votes.voter, votes.prompt))
  known = (votes.voter >= 0) & (votes.prompt >= 0)
  both = np.where(known, votes.voter.astype(np.int64) * (votes.prompt.max() + 1) + votes.prompt, -1)
  middle = voter + prompt - _clusters(scores, votes.counts, both)
  values, vectors = np.linalg.eigh(middle)
  numbers = [len(np.unique(code)) for code in (votes.voter, votes.prompt) if (code >= 0).all()]
  degrees = float(min(numbers, default=np.inf)) - 1
  return (vectors * np.maximum(values, 0)) @ vectors.T, degrees


def _clusters(
  scores: sparse.csr_matrix, count: Float[np.ndarray, 'G'], code: Int[np.ndarray, 'G']
) -> Float[np.ndarray, 'P P']:
  """G/(G − 1) Σ s sᵀ over the sums of G clusters' scores; votes without a cluster count one by one."""
  alone = code < 0
  single = scores[alone]
  result = (single.T @ single.multiply(count[alone][:, None])).toarray()
  if alone.all():
    return result
  _, number = np.unique(code[~alone], return_inverse=True)
  rows = np.arange(number.size)
  member = sparse.csr_matrix((count[~alone], (number.ravel(), rows)))
  sums = member @ scores[~alone]
  size = sums.shape[0]
  return result + size / max(size - 1, 1) * (sums.T @ sums).toarray()
