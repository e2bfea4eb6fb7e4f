"""The likelihood of votes: what each kind of comparison makes of the scores, and how it is minimised.

With d = θ_a − θ_b + βᵀx + γ·(±½ for who was shown first) and m = (θ_a + θ_b)/2 the four verdicts weigh

  a : b : tie : both bad  =  e^{d/2} : e^{−d/2} : ν : κ e^{−δm}     (Davidson 1970; ν and κ of each judge)

or, by Rao and Kupper (1967), P(a) = σ(d − c), P(b) = σ(−d − c), tie = (e^{2c} − 1) P(a) P(b) with c = ν.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import sparse

from nlhf_jax.votes import table

Ties = Literal['davidson', 'rao_kupper', 'half', 'drop']
BothBad = Literal['verdict', 'tie', 'drop']
# Local quantities that a vote's likelihood is made of: d, m, log ν, log κ, δ.
_D, _M, _NU, _KAPPA, _DELTA = range(5)
# log ν and log κ of one who never said so.
_NEVER = -50.0
# Nats that no finite maximum has.
_ENDLESS = 200.0


class Model(NamedTuple):
  """What the votes are fitted by."""

  # 'half': half a vote for each; 'drop': none at all.
  ties: Ties = 'davidson'
  # 'verdict': an outcome of its own; 'tie': one more tie.
  both_bad: BothBad = 'verdict'
  # Whether who was shown first counts; where orders are known.
  order: bool = True
  # Features that count, by name; None: all.
  features: tuple[str, ...] | None = None


DEFAULT = Model()


class Problem(NamedTuple):
  """A likelihood: f(u) for each of G different votes, u = designs·φ + offset."""

  names: tuple[str, ...]
  votes: table.Votes
  designs: tuple[sparse.csr_matrix, ...]
  offset: Float[np.ndarray, 'G 5']
  ties: Ties


def as_modelled(votes: table.Votes, model: Model) -> table.Votes:
  """The verdicts and columns that the model knows, equal votes counted together."""
  a, b, tie, bad = votes.verdict.T
  if model.both_bad == 'tie':
    tie, bad = tie + bad, np.zeros_like(bad)
  elif model.both_bad == 'drop':
    bad = np.zeros_like(bad)
  if model.ties == 'half':
    a, b, tie = a + tie / 2, b + tie / 2, np.zeros_like(tie)
  elif model.ties == 'drop':
    tie = np.zeros_like(tie)
  votes = table.with_features(votes, votes.x_names if model.features is None else model.features)
  order = votes.order if model.order else np.zeros_like(votes.order)
  verdict = np.stack([a, b, tie, bad], axis=1)
  votes = votes._replace(verdict=verdict, order=order)
  said = (verdict.sum(axis=1) > 0) & (votes.counts > 0)
  if not said.any():
    raise ValueError('No vote is left: all are ties or both bad, which the model leaves out.')
  return table.counted_together(table.select(votes, said))[0]


def make_problem(votes: table.Votes, model: Model, level_matters: bool) -> Problem:
  """The designs of d, m, log ν, log κ and δ.

  Args:
    votes: as modelled.
    model: whose ties are Davidson's or Rao and Kupper's, if there are any.
    level_matters: whether δ is fitted; without, "both bad" says nothing of scores.
  """
  size = len(votes.a)
  names = list(votes.labels)
  entries: list[list[tuple]] = [[] for _ in range(5)]
  row = np.arange(size)
  entries[_D] = [(row, votes.a, np.ones(size)), (row, votes.b, -np.ones(size))]
  entries[_M] = [(row, votes.a, np.full(size, 0.5)), (row, votes.b, np.full(size, 0.5))]
  offset = np.zeros((size, 5))

  def add(name: str, quantity: int, value) -> None:
    entries[quantity].append((row, np.full(size, len(names)), value))
    names.append(name)

  for number, name in enumerate(votes.x_names):
    add(f'x.{name}', _D, votes.x[:, number])
  if np.any(votes.order):
    add('first', _D, votes.order / 2)
  for quantity, verdict, name in ((_NU, 2, 'log_nu'), (_KAPPA, 3, 'log_kappa')):
    offset[:, quantity] = _NEVER
    for number, judge in enumerate(votes.judges):
      own = votes.judge == number
      if votes.verdict[own, verdict].any():
        add(f'{name}.{judge}' if len(votes.judges) > 1 else name, quantity, own.astype(float))
        offset[own, quantity] = 0
  if level_matters and votes.verdict[:, 3].any():
    add('delta', _DELTA, np.ones(size))
  designs = tuple(_sparse(each, (size, len(names))) for each in entries)
  return Problem(tuple(names), votes, designs, offset, model.ties)


def _sparse(entries: Sequence[tuple], shape: tuple[int, int]) -> sparse.csr_matrix:
  if not entries:
    return sparse.csr_matrix(shape)
  row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
  return sparse.csr_matrix((value, (row, column)), shape=shape)


def pins(group: Int[np.ndarray, 'n'], size: int) -> Float[np.ndarray, 'P P']:
  """A quadratic that holds each group's mean at 0, where the likelihood is flat: it moves nothing else."""
  result = np.zeros((size, size))
  result[: len(group), : len(group)] = group[:, None] == group
  return result


@functools.partial(jax.jit, static_argnames='ties')
def _local(
  u: Float[Array, 'G 5'], verdict: Float[Array, 'G 4'], ties: Ties
) -> tuple[Float[Array, 'G'], Float[Array, 'G 5'], Float[Array, 'G 5 5']]:
  """Each vote's nats, with first and second derivatives by its five quantities."""
  nats = functools.partial(_nats, ties=ties)
  value, first, second = (
    jax.vmap(f)(u, verdict) for f in (nats, jax.grad(nats), jax.hessian(nats))
  )
  return value, first, second


def _nats(u: Float[Array, '5'], verdict: Float[Array, '4'], ties: Ties) -> Float[Array, '']:
  """−log P of one vote."""
  return -jnp.sum(verdict * log_probs(u[_D], u[_M], u[_NU], u[_KAPPA], u[_DELTA], ties))


def log_probs(d, m, log_nu, log_kappa, delta, ties: Ties) -> Float[Array, '4']:
  """Of a, b, tie and both bad."""
  bad = log_kappa - delta * m
  if ties != 'rao_kupper':
    return jax.nn.log_softmax(jnp.stack([d / 2, -d / 2, log_nu, bad]))
  c = jnp.exp(log_nu)
  for_a, for_b = jax.nn.log_sigmoid(d - c), jax.nn.log_sigmoid(-d - c)
  tie = jnp.log(jnp.expm1(2 * c)) + for_a + for_b
  return jax.nn.log_softmax(jnp.stack([for_a, for_b, tie, bad]))


def local(problem: Problem, phi: Float[np.ndarray, 'P']):
  """Each different vote's nats, with first [G, 5] and second [G, 5, 5] derivatives by its quantities."""
  u = np.stack([design @ phi for design in problem.designs], axis=1) + problem.offset
  with jax.enable_x64(True):
    return tuple(np.asarray(x) for x in _local(u, problem.votes.verdict, problem.ties))


def gradients(
  problem: Problem, phi: Float[np.ndarray, 'R P'], verdicts: Float[np.ndarray, 'R G 4']
) -> Float[np.ndarray, 'R P']:
  """Of each resample's nats, whose verdicts are its own."""
  u = np.stack([(design @ phi.T).T for design in problem.designs], axis=-1) + problem.offset
  with jax.enable_x64(True):
    first = np.asarray(_local_gradients(u, verdicts, problem.ties))
  return sum((design.T @ first[..., k].T).T for k, design in enumerate(problem.designs))


@functools.partial(jax.jit, static_argnames='ties')
def _local_gradients(
  u: Float[Array, 'R G 5'], verdicts: Float[Array, 'R G 4'], ties: Ties
) -> Float[Array, 'R G 5']:
  return jax.vmap(jax.vmap(jax.grad(functools.partial(_nats, ties=ties))))(u, verdicts)


def evaluate(problem: Problem, phi: Float[np.ndarray, 'P']):
  """Nats of all votes, gradient and Hessian."""
  value, first, second = local(problem, phi)
  count = problem.votes.counts
  used = [k for k, design in enumerate(problem.designs) if design.nnz]
  gradient = sum(problem.designs[k].T @ (count * first[:, k]) for k in used)
  hessian = np.zeros((len(phi), len(phi)))
  for k in used:
    for other in (n for n in used if n >= k and second[:, k, n].any()):
      weighted = problem.designs[other].multiply((count * second[:, k, other])[:, None])
      block = (problem.designs[k].T @ weighted).toarray()
      hessian += block if other == k else block + block.T
  return float(count @ value), gradient, hessian


def minimise(
  problem: Problem, held: Float[np.ndarray, 'P P'], max_steps: int = 200
) -> Float[np.ndarray, 'P']:
  """Newton's method; a direction that curves down is taken as if it curved up, and each step is halved until it gains.

  Args:
    problem: whose nats are to be least.
    held: a quadratic in the directions in which they are flat.
    max_steps: at most.

  Raises:
    ValueError: there is no finite minimum.
  """
  phi = np.zeros(len(problem.names))
  value, gradient, hessian = evaluate(problem, phi)
  for _ in range(max_steps):
    curvature, directions = np.linalg.eigh(hessian + held)
    curvature = np.maximum(np.abs(curvature), 1e-12 * np.abs(curvature).max())
    step = -directions @ ((directions.T @ (gradient + held @ phi)) / curvature)
    longest = np.abs(step).max()
    if longest < 1e-9:
      return phi + step
    size = min(1.0, 5 / longest)
    while (found := evaluate(problem, phi + size * step))[0] > value + 1e-12 * abs(value):
      size /= 2
      if size < 1e-9:
        return phi
    phi = phi + size * step
    value, gradient, hessian = found
    if np.abs(phi).max() > _ENDLESS:
      break
  worst = problem.names[int(np.abs(phi).argmax())]
  raise ValueError(
    f'The votes have no most likely {worst!r}: it goes to infinity, as a feature, or who is shown first, does where it '
    'always decides. Leave it out of features, or order.'
  )
