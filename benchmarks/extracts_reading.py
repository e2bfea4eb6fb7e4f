"""What there is to read in a post of `extracts`: floors of SFT and of the fixed point, and what networks learn of it.

  python benchmarks/extracts_reading.py --steps 500
  python benchmarks/extracts_reading.py --steps 500 --pointer --separators

Tastes ignore the order of sentences, so the demonstrator and the fixed point of Nash-MD (β = ⅛, τ = .03, μ the demonstrator) are
exact on 92 sets in place of 400 responses. A rater per set, who is told the sets' counts, tells how much of either follows from
sums over sentences, and how much from what sentences share. Then a T5 imitates the fixed point, on posts that no one is tested on.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.data import corpora
from nlhf_jax.evaluation import exact
from nlhf_jax.games import game as games
from nlhf_jax.games import solve
from nlhf_jax.judges import electorate, extracts, posts
from nlhf_jax.models import policy
from nlhf_jax.networks import decoding, sizes
from nlhf_jax.types import Prompts

TAU, BETA, NUM_DRAFTS = 0.03, 0.125, 8
NUM_TEST = 400
# Of them, those that networks are tested on.
NUM_SHOWN = 200
SELECTIONS = extracts.selections()
SETS = [number for number, chosen in enumerate(SELECTIONS) if list(chosen) == sorted(chosen)]
SIZES = np.array([len(SELECTIONS[number]) for number in SETS])
ORDERS = np.array([1, 2, 6])[SIZES - 1]
# Which set each response is.
SET_OF = np.array([SETS.index(SELECTIONS.index(tuple(sorted(s)))) for s in SELECTIONS])


@jax.jit
def demonstrator(scores):
  """Probability of each set, from scores [B, K, sets]: the best of eight drafts of an annotator, ties by chance."""
  valid = jnp.isfinite(scores[:, 0])
  drafts = sum(
    (same := valid & (n == SIZES)) / 3 / same.sum(axis=-1, keepdims=True) for n in (1, 2, 3)
  )[:, None]
  below = jnp.sum((scores[:, :, None] < scores[..., None] - 1e-5) * drafts[:, :, None], axis=-1)
  upto = jnp.sum((scores[:, :, None] <= scores[..., None] + 1e-5) * drafts[:, :, None], axis=-1)
  share = drafts / jnp.where(valid[:, None], upto - below, 1)
  return jnp.mean((upto**NUM_DRAFTS - below**NUM_DRAFTS) * share, axis=1)


@jax.jit
def fixed_point(scores, reference):
  """Nash-MD's, of each post."""

  def of_post(scores, reference):
    scores = jnp.where(jnp.isfinite(scores), jnp.round(scores, 3), -1e6).T
    preference = electorate.share_of_votes(scores[:, None], scores[None])
    reference = jnp.maximum(reference, 1e-30)
    game = games.PreferenceGame(preference, reference, jnp.float32(TAU / (1 - BETA)))
    nash, _ = solve.fixed_point(game, 3e-5, 4000)
    return jax.nn.softmax(
      (jnp.log(jnp.maximum(nash, 1e-38)) - BETA * jnp.log(reference)) / (1 - BETA)
    )

  return jax.vmap(of_post)(scores, reference)


def load(numbers):
  """Prompts, numbers of sentences, and scores of the sets."""
  corpus, found = corpora.generated_extracts(), [posts.generate(number) for number in numbers]
  tokens = np.zeros((len(found), 64), np.int32)
  for row, number in zip(tokens, numbers, strict=True):
    ids = corpus.vocabulary.encode(corpus.prompt(number))[:64]
    row[: len(ids)] = ids
  scores = np.stack([extracts.annotator_scores(post)[:, SETS] for post in found])
  return tokens, np.array([len(post.sentences) for post in found]), scores


def cross_entropy(target, log_probs):
  """Nats per token of responses, whose sets have these probabilities; their order is random."""
  nats = np.where(target > 0, target * (np.log(ORDERS) - log_probs), 0)
  return nats.sum() / (target @ (SIZES + 1)).sum()


def floors(name, target, lengths):
  """Prints what one has who knows the target, and one who knows the number of sentences."""
  known = np.stack([target[lengths == n].mean(axis=0) for n in lengths])
  logs = [np.log(np.maximum(x, 1e-30)) for x in (target, known)]
  floor, blind = (cross_entropy(target[:NUM_TEST], x[:NUM_TEST]) for x in logs)
  print(f'{name}: floor {floor:.3f}, knowing the number of sentences {blind:.3f} nats per token')


def features(scores, lengths, shared: bool):
  """Of each set: words, sentences, those of the post; and distinct facts and topics, or the sum of its sentences' facts."""
  recall, brevity, breadth = np.moveaxis(np.where(np.isfinite(scores), scores, 0), 1, 0)
  words = (recall - brevity) / 0.9
  facts, topics = recall + 0.1 * words, breadth + 0.1 * words
  chosen = electorate.incidence(posts.MAX_SENTENCES, extracts.MAX_SELECTED)[SETS]
  content = [facts, topics] if shared else [facts[:, : posts.MAX_SENTENCES] @ chosen.T]
  rest = [
    words,
    np.broadcast_to(SIZES, words.shape),
    np.broadcast_to(lengths[:, None], words.shape),
  ]
  return np.stack([*content, *rest], axis=-1).astype(np.float32)


def train(loss, params, batches, steps, peak):
  """Adam, a linear decay, gradients clipped at 1."""
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adam(optax.warmup_cosine_decay_schedule(0, peak, min(50, steps // 2), steps)),
  )

  @jax.jit
  def step(params, state, batch):
    updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for _ in range(steps):
    params, state = step(params, state, next(batches))
  return params


def rate_sets(name, x, scores, target, steps: int):
  """Prints what a rater of sets, a network of two hidden layers, learns of the target from given features."""
  x, valid = (x - x.mean((0, 1))) / (x.std((0, 1)) + 1e-3), np.isfinite(scores[:, 0])
  sizes_ = [x.shape[-1], 64, 64, 1]
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = zip(keys, sizes_[:-1], sizes_[1:], strict=True)
  start = [(jax.random.normal(key, (m, n)) / m**0.5, jnp.zeros(n)) for key, m, n in shapes]

  def log_probs(params, x, valid):
    for number, (kernel, bias) in enumerate(params):
      x = (jax.nn.gelu(x) if number else x) @ kernel + bias
    return jax.nn.log_softmax(jnp.where(valid, x[..., 0], -1e9))

  def batches(rng):
    while True:
      rows = rng.integers(NUM_TEST, len(x), 64)
      yield x[rows], valid[rows], target[rows]

  loss = lambda params, x, valid, y: (
    -jnp.mean(jnp.sum(y * jnp.where(valid, log_probs(params, x, valid), 0), axis=1))
  )
  params = train(loss, start, batches(np.random.default_rng(0)), steps, 3e-3)
  found = np.asarray(log_probs(params, x[:NUM_TEST], valid[:NUM_TEST]))
  report(name, found, target[:NUM_TEST])


def report(name, log_probs, target):
  """Total variation and cross-entropy, by sets."""
  distance = 0.5 * np.abs(np.exp(log_probs) - target).sum(axis=1).mean()
  print(f'{name}: total variation {distance:.3f}, {cross_entropy(target, log_probs):.3f} nats')


def imitate(network, tokens, target, steps: int):
  """Prints what a network learns that imitates the target: 32 posts × 8 responses a step."""
  player = policy.from_network(network, decoding.Sampling(max_length=extracts.MAX_SELECTED + 1))
  responses = extracts.responses(tuple(corpora.generated_extracts().words))
  chances = np.cumsum(target[:, SET_OF] / ORDERS[SET_OF], axis=1)
  start = jax.jit(player.init)(jax.random.key(0))

  def batches(rng):
    while True:
      rows = rng.integers(NUM_TEST, len(tokens), 32)
      drawn = rng.random((32, 8, 1)) * chances[rows, None, -1:]
      numbers = (chances[rows, None] < drawn).sum(axis=-1).reshape(-1)
      yield Prompts(tokens[rows], rows), responses[numbers]

  def loss(params, prompts, responses):
    return -jnp.sum(player.log_prob(params, prompts, responses)) / jnp.sum(responses != 0)

  begin = time.time()
  params = train(loss, start, batches(np.random.default_rng(0)), steps, 3e-3)
  seconds = time.time() - begin
  test = Prompts(tokens[:NUM_SHOWN], np.arange(NUM_SHOWN))
  all_responses = np.broadcast_to(responses, (NUM_SHOWN, *responses.shape))
  found = exact.enumerator(player, 25)(params, test, all_responses)
  exactly = target[:NUM_SHOWN, SET_OF] / ORDERS[SET_OF]
  distance = 0.5 * np.abs(np.exp(found) - exactly).sum(axis=1).mean()
  nats = -np.sum(exactly * found) / (target[:NUM_SHOWN] @ (SIZES + 1)).sum()
  print(f'network, {steps} steps: total variation {distance:.3f}, {nats:.3f} nats, {seconds:.0f} s')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--posts', type=int, default=20_000)
  parser.add_argument('--steps', type=int, default=500)
  parser.add_argument('--pointer', action='store_true')
  parser.add_argument('--separators', action='store_true')
  args = parser.parse_args()
  tokens, lengths, scores = load(range(NUM_TEST + args.posts))
  parts = [scores[n : n + 500] for n in range(0, len(scores), 500)]
  written = np.concatenate([np.asarray(demonstrator(x)) for x in parts])
  solved = [fixed_point(x, written[500 * n :][:500]) for n, x in enumerate(parts)]
  solved = np.concatenate([np.asarray(x) for x in solved])
  for name, target in (('SFT', written), ('fixed point', solved)):
    floors(name, target, lengths)
    for known, shared in (('sums over sentences', False), ('what sentences share too', True)):
      x = features(scores, lengths, shared)
      rate_sets(f'{name}, knowing {known}', x, scores, target, 1500)
  markers = corpora.markers(corpora.generated_extracts()) if args.separators else ()
  make = functools.partial(sizes.network, 't5_1_1_tiny', vocab_size=72, local_init=True)
  imitate(make(pointer=args.pointer, separators=markers), tokens, solved, args.steps)


if __name__ == '__main__':
  main()
