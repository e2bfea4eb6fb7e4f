"""The bootstrap of scores: whole voters or prompts are drawn with replacement, and all is fitted again.

Resamples share their votes and differ in the counts, so that they are fitted side by side: each by Newton's steps with
its own Hessian, taken at the fit of all votes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from nlhf_jax.votes import bradley_terry, likelihood, table
from nlhf_jax.votes.likelihood import Model, Problem

Cluster = Literal['voter', 'prompt', 'vote']
# Numbers of a chunk of resamples that are in memory at once.
_CHUNK = 2e6


def resample(
  votes: table.Votes,
  model: Model = likelihood.DEFAULT,
  *,
  cluster: Cluster = 'voter',
  num_resamples: int = 1000,
  seed: int = 0,
  num_steps: int = 20,
  tolerance: float = 1e-6,
) -> Float[np.ndarray, 'R n']:
  """Scores of resampled votes, in nats.

  A resample whose maximum is at infinity goes on growing: its scores are those after the last step.

  Args:
    votes: all of them in one group.
    model: what they are fitted by.
    cluster: what is drawn; votes whose voter or prompt is unknown are drawn one by one.
    num_resamples: R.
    seed: of the draws.
    num_steps: at most.
    tolerance: nats; no step is longer at the end.

  Raises:
    ValueError: there are several groups, whose distances are infinite.
  """
  votes = likelihood.as_modelled(votes, model)
  if bradley_terry.groups(votes)[1].max():
    raise ValueError('Some differences are infinite: resample the votes of one group alone.')
  kinds, verdicts = _kinds(votes)
  problem = likelihood.make_problem(kinds, model, level_matters=True)
  pins = likelihood.pins(np.zeros(len(votes.labels), np.int64), len(problem.names))
  start = likelihood.minimise(problem, pins)
  curvature = _curvature(problem, start)
  draw = _drawing(votes, _codes(votes, cluster), verdicts)
  rng = np.random.default_rng(seed)
  chunk = max(1, int(_CHUNK / verdicts.shape[1]))
  drawn = []
  for begin in range(0, num_resamples, chunk):
    drawn_verdicts = draw(rng, min(chunk, num_resamples - begin))
    size = len(start)
    hessians = (curvature @ drawn_verdicts.T).T.reshape(-1, size, size)
    inverse = np.linalg.inv(hessians + pins)
    shaped = drawn_verdicts.reshape(len(drawn_verdicts), -1, len(table.VERDICTS))
    drawn.append(_fit(problem, start, shaped, inverse, num_steps, tolerance))
  return np.concatenate(drawn)[:, : len(votes.labels)]


def resampled_wins(
  votes: table.Votes, cluster: Cluster, num_resamples: int, seed: int = 0
) -> Float[np.ndarray, 'R Y Y']:
  """Wins of resampled votes, ties half; see `resample`."""
  kinds, verdicts = _kinds(votes)
  draw = _drawing(votes, _codes(votes, cluster), verdicts)
  drawn = draw(np.random.default_rng(seed), num_resamples)
  each = drawn.reshape(num_resamples, -1, len(table.VERDICTS))
  return np.stack([table.wins(kinds._replace(verdict=verdict)) for verdict in each])


def widest_cluster(votes: table.Votes) -> Cluster:
  """Voters or prompts, if all votes know theirs; single votes, if not."""
  if (votes.voter >= 0).all():
    return 'voter'
  return 'prompt' if (votes.prompt >= 0).all() else 'vote'


def _codes(votes: table.Votes, cluster: Cluster) -> Int[np.ndarray, 'N']:
  alone = np.full_like(votes.voter, table.UNKNOWN)
  return {'voter': votes.voter, 'prompt': votes.prompt, 'vote': alone}[cluster]


def _kinds(votes: table.Votes) -> tuple[table.Votes, sparse.csr_matrix]:
  """The G kinds of comparisons that the likelihood tells apart, with all their verdicts, and [N, 4G] what each vote is of that."""
  unknown = np.full_like(votes.voter, table.UNKNOWN)
  alike = votes._replace(voter=unknown, prompt=unknown, verdict=np.ones_like(votes.verdict))
  kinds, kind = table.counted_together(alike)
  number = len(table.VERDICTS)
  row, verdict = np.nonzero(votes.verdict)
  entries = votes.verdict[row, verdict], (row, kind[row] * number + verdict)
  each = sparse.csr_matrix(entries, shape=(len(votes.a), len(kinds.a) * number))
  total = (votes.counts @ each).reshape(-1, number)
  return kinds._replace(verdict=total, counts=np.ones(len(kinds.a))), each


def _drawing(
  votes: table.Votes, code: Int[np.ndarray, 'N'], verdicts: sparse.csr_matrix
) -> Callable[[np.random.Generator, int], Float[np.ndarray, 'R 4G']]:
  """Draws the verdicts of resamples.

  Raises:
    ValueError: some votes have a cluster and some have none.
  """
  if (code < 0).all():
    total, share = round(float(votes.counts.sum())), votes.counts / votes.counts.sum()
    return lambda rng, number: rng.multinomial(total, share, number) @ verdicts
  if (code < 0).any():
    raise ValueError('Some votes have no voter or prompt: resample votes one by one.')
  _, cluster = np.unique(code, return_inverse=True)
  size = cluster.max() + 1
  member = sparse.csr_matrix((votes.counts, (cluster, np.arange(len(code)))))
  by_cluster = (member @ verdicts).tocsr()

  def draw(rng, number):
    times = rng.multinomial(size, np.full(size, 1 / size), number)
    return times.astype(np.float64) @ by_cluster

  return draw


def _curvature(problem: Problem, phi: Float[np.ndarray, 'P']) -> sparse.csr_matrix:
  """[P², 4G]: what one verdict of each kind adds to the Hessian."""
  number = len(table.VERDICTS)
  result = []
  for verdict in np.eye(number):
    votes = problem.votes._replace(verdict=np.tile(verdict, (len(problem.votes.a), 1)))
    second = likelihood.local(problem._replace(votes=votes), phi)[2]
    result.append(
      sum(
        _outer(left, right).multiply(second[:, k, other])
        for k, left in enumerate(problem.designs)
        for other, right in enumerate(problem.designs)
        if left.nnz and right.nnz
      )
    )
  # From one verdict after the other to one kind after the other.
  order = np.arange(number * len(problem.votes.a)).reshape(number, -1).T.ravel()
  return sparse.hstack(result).tocsc()[:, order].tocsr()


def _outer(left: sparse.csr_matrix, right: sparse.csr_matrix) -> sparse.csr_matrix:
  """[P², G]: in each column the outer product of a row of the left and one of the right."""
  size = left.shape[1]
  number = np.diff(right.indptr)
  of_left = np.repeat(np.arange(left.shape[0]), np.diff(left.indptr))
  times = number[of_left]
  first = np.repeat(np.arange(left.nnz), times)
  begin = np.repeat(right.indptr[of_left], times)
  within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
  second = begin + within
  row = left.indices[first].astype(np.int64) * size + right.indices[second]
  value = left.data[first] * right.data[second]
  return sparse.csr_matrix((value, (row, of_left[first])), shape=(size * size, left.shape[0]))


def _fit(
  problem: Problem,
  start: Float[np.ndarray, 'P'],
  verdicts: Float[np.ndarray, 'R G 4'],
  inverse: Float[np.ndarray, 'R P P'],
  num_steps: int,
  tolerance: float,
) -> Float[np.ndarray, 'R P']:
  phi = np.tile(start, (len(verdicts), 1))
  for _ in range(num_steps):
    step = np.einsum('rpq,rq->rp', inverse, likelihood.gradients(problem, phi, verdicts))
    phi -= step
    if np.abs(step).max() < tolerance:
      break
  return phi
