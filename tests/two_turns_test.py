"""A leader, and a follower who reads its response: one policy at two prompts, against the closed form of their game.

The language has EOS and two words, up to three to a response: 15 responses. The policy has a table of its own for the first
prompt, and one for every response that a second prompt may show; it finds them in the tokens of the prompt.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from nlhf_jax import algorithms
from nlhf_jax.games import game as games
from nlhf_jax.games import solve
from nlhf_jax.models import mixture, second_turn
from nlhf_jax.models.policy import as_rollout, token_log_probs
from nlhf_jax.networks import decoding, network
from nlhf_jax.training import loop
from nlhf_jax.types import Comparison, Policy, PolicyParams, Prompts

LENGTH, NUM_PREFIXES = 3, 7
RESPONSES = np.array(
  [
    ([b + 2 for b in body] + [1, 0, 0])[:LENGTH]
    for size in range(LENGTH + 1)
    for body in np.ndindex(*(2,) * size)
  ],
  np.int32,
)
SIZE = len(RESPONSES)
# The first prompt's one word, and the piece of the second.
PROMPT, ASK = 4, 5
SECOND_TURN = second_turn.after_response((ASK,))
TAU, TAU_FOLLOWER = 0.2, 0.1


def numbers(tokens):
  """Which response each row is; words may stand anywhere in it."""
  is_word = (tokens == 2) | (tokens == 3)
  place = jnp.zeros(tokens.shape[0], jnp.int32)
  for t in range(tokens.shape[1]):
    place = jnp.where(is_word[:, t], 2 * place + tokens[:, t] - 2, place)
  return 2 ** jnp.sum(is_word, axis=-1) - 1 + place


def table_of(prompt_tokens):
  """0 at the first prompt, 1 + the number of the response that the second shows."""
  asks = jnp.any(prompt_tokens == ASK, axis=-1)
  return jnp.where(asks, 1 + numbers(prompt_tokens), 0)


def _policy() -> Policy:
  padded = lambda logits: jnp.pad(logits, [(0, 0), (1, 0)], constant_values=-1e10)

  def step(params, table, cache, tokens, positions):
    prefix = jnp.clip(2 * cache + tokens - 1, 0, NUM_PREFIXES - 1)
    own = jnp.repeat(table, tokens.shape[0] // table.shape[0])
    return padded(params[own, prefix]), prefix

  def log_prob(params, prompts, tokens):
    table = table_of(prompts.tokens)
    table, prefix, logits = (
      jnp.repeat(table, tokens.shape[0] // table.shape[0]),
      jnp.zeros(tokens.shape[0], jnp.int32),
      [],
    )
    for t in range(LENGTH):
      logits.append(padded(params[table, prefix]))
      prefix = jnp.clip(2 * prefix + tokens[:, t] - 1, 0, NUM_PREFIXES - 1)
    return token_log_probs(jnp.stack(logits, axis=1), tokens, 1.0)

  decoder = network.Decoder(
    weights=lambda params, lanes: params,
    encode=lambda params, prompt_tokens: table_of(prompt_tokens),
    empty=lambda params, encoded, lanes, length: jnp.zeros(lanes, jnp.int32),
    step=step,
  )
  play = functools.partial(mixture.play, decoder, decoding.Sampling(max_length=LENGTH))
  return Policy(lambda rng: None, log_prob, lambda *a: None, play)


POLICY = _policy()
FIRST = Prompts(jnp.full((1, 1), PROMPT, jnp.int32), jnp.zeros(1, jnp.int32))
PAIRS = [x.reshape(-1) for x in np.meshgrid(range(SIZE), range(SIZE), indexing='ij')]


def leader(params):
  """π(y)."""
  return jnp.exp(POLICY.log_prob(params, FIRST, jnp.asarray(RESPONSES)).sum(axis=-1))


def follower(params, turn=SECOND_TURN):
  """ω(y'|y), a row for each y."""
  first, second = (jnp.asarray(RESPONSES[i]) for i in PAIRS)
  return jnp.exp(POLICY.log_prob(params, turn(FIRST, first), second).sum(-1)).reshape(SIZE, SIZE)


@pytest.fixture(scope='module')
def preference():
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(SIZE, SIZE))
  return special.expit(1.5 * (noise - noise.T))


@pytest.fixture(scope='module')
def reference():
  return jnp.asarray(
    0.5 * np.random.default_rng(1).normal(size=(1 + SIZE, NUM_PREFIXES, 3)), jnp.float32
  )


@pytest.fixture(scope='module')
def solution(preference, reference):
  game = games.make(preference, leader(reference), TAU)
  return solve.stackelberg(game, TAU_FOLLOWER, np.asarray(follower(reference), np.float64))


def method(preference, num_samples=1, turn=SECOND_TURN, **changes):
  p = jnp.asarray(preference, jnp.float32)
  judge = jax.jit(lambda prompts, y, y2: p[numbers(y), numbers(y2)])
  settings = {'second_turn': turn, 'tau': TAU, 'tau_follower': TAU_FOLLOWER} | changes
  return algorithms.stackelberg(POLICY, judge, num_samples=num_samples, **settings)


def total_variation(found, target):
  return 0.5 * float(np.abs(np.asarray(found, np.float64) - target).sum(axis=-1).max())


def _all_pairs(preference, reference, turn):
  first, second = (as_rollout(jnp.asarray(RESPONSES[i])) for i in PAIRS)
  seen = turn(FIRST, first.tokens)
  return Comparison(
    FIRST,
    first,
    second,
    jnp.asarray(preference, jnp.float32)[PAIRS[0], PAIRS[1]],
    POLICY.log_prob(reference, FIRST, first.tokens),
    alternative_reference_token_logp=POLICY.log_prob(reference, seen, second.tokens),
  )


def exact_loss(algorithm, batch, turn, online, played):
  drawn = (leader(played)[:, None] * follower(played, turn)).reshape(-1)
  return jnp.sum(drawn * algorithm.loss(online, batch).value)


def test_expected_gradient_is_that_of_both_sides(preference, reference):
  """∇ of −[π·(P + τ_F KL)(ω) − τ KL(π‖μ)] in π, and 5 times that of the follower's own game in ω."""
  params = reference + 0.3 * jax.random.normal(jax.random.key(0), reference.shape)
  p = jnp.asarray(preference, jnp.float32)
  kl = lambda a, b: jnp.sum(a * jnp.log(a / b), axis=-1)

  def objective(x):
    pi, omega = leader(x), follower(x)
    fixed, answer = jax.lax.stop_gradient((pi, omega))
    price = TAU_FOLLOWER * kl(answer, follower(reference))
    leads = pi @ (jnp.sum(answer * p, axis=1) + price) - TAU * kl(pi, leader(reference))
    follows = jnp.sum(omega * (1 - p), axis=1) - TAU_FOLLOWER * kl(omega, follower(reference))
    return -(leads + 5 * fixed @ follows)

  batch = _all_pairs(preference, reference, SECOND_TURN)
  loss = functools.partial(exact_loss, method(preference), batch, SECOND_TURN)
  estimate = jax.jit(jax.grad(loss))
  exact = jax.jit(jax.grad(objective))(params)
  assert float(jnp.abs(exact).max()) > 1e-2
  np.testing.assert_allclose(estimate(params, params), exact, atol=1e-6)


def _descended(algorithm, preference, reference, turn=SECOND_TURN):
  """Adam on the exact loss."""
  loss = functools.partial(exact_loss, algorithm, _all_pairs(preference, reference, turn), turn)
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 600), b1=0.0)

  def step(carry, _):
    online, state = carry
    gradient = jax.grad(loss)(online, jax.lax.stop_gradient(online))
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(online, updates), state), None

  run = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=600)[0][0])
  return run(reference)


def test_exact_gradients_lead_to_the_closed_form(preference, reference, solution):
  found = _descended(method(preference), preference, reference)
  assert total_variation(leader(reference), solution[0]) > 0.05
  assert total_variation(leader(found), solution[0]) <= 0.01
  assert total_variation(follower(found), solution[1]) <= 0.01


def _blind(prompts, responses):
  """A follower who is not shown the response."""
  return SECOND_TURN(prompts, jnp.ones_like(responses))


BROKEN = {
  'blind': ({'turn': _blind}, lambda p: p),
  'sides swapped': ({}, lambda p: p.T),
  'follower held still': ({'follower_weight': 1e-9}, lambda p: p),
}


@pytest.mark.parametrize('name', BROKEN)
def test_broken_methods_end_elsewhere(name, preference, reference, solution):
  changes, judged = BROKEN[name]
  broken, turn = method(preference, **changes), changes.get('turn', SECOND_TURN)
  if name == 'follower held still':  # Adam would not notice a small weight.
    frozen = reference[1:]
    own = broken.loss
    broken = broken._replace(loss=lambda x, batch: own(x.at[1:].set(frozen), batch))
  found = _descended(broken, judged(preference), reference, turn)
  assert total_variation(leader(found), solution[0]) > 0.05


def test_sampled_gradients_lead_to_the_closed_form(preference, reference, solution):
  """The method itself, through the training loop; the follower's distance is that of the mean over the leader's responses."""
  algorithm, num_steps = method(preference, num_samples=4), 600
  optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
  given = {'reference': jnp.copy(reference)}
  state = loop.init_state(algorithm, optimizer, 0, online=jnp.copy(reference), given=given)
  prompts = Prompts(np.full((64, 1), PROMPT, np.int32), np.zeros(64, np.int32))
  data = iter(lambda: prompts, None)
  state = loop.train(algorithm, optimizer, state, data, num_steps=num_steps, log_every=num_steps)
  online = state.params.online
  assert total_variation(leader(online), solution[0]) <= 0.05
  distance = 0.5 * np.abs(np.asarray(follower(online)) - solution[1]).sum(axis=1)
  assert float(solution[0] @ distance) <= 0.05


def test_rollout_of_two_turns(preference, reference):
  """Replies are judged at the first prompt, and measured against the reference at the second."""
  algorithm = method(preference, num_samples=3)
  params = PolicyParams(2 * reference, {'reference': reference})
  prompts = Prompts(jnp.full((2, 1), PROMPT, jnp.int32), jnp.arange(2))
  batch = algorithm.score(jax.jit(algorithm.sample)(params, prompts, jax.random.key(0)))
  y, y2 = numbers(batch.response.tokens), numbers(batch.alternative.tokens)
  np.testing.assert_allclose(batch.preference, preference[y, y2], rtol=1e-6)
  expected = np.log(np.asarray(follower(reference)))[y, y2]
  found = np.asarray(batch.alternative_reference_token_logp.sum(axis=-1))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  drawn = np.log(np.asarray(follower(params.online)))[y, y2]
  np.testing.assert_allclose(batch.alternative.token_logp.sum(axis=-1), drawn, rtol=1e-5)


def test_rows_without_a_vote_weigh_nothing(preference, reference):
  """As if the others had been there alone."""
  algorithm = method(preference)
  batch = _all_pairs(preference, reference, SECOND_TURN)
  missing = (np.arange(SIZE**2) % 3 == 0).astype(np.float32)
  p = np.where(missing > 0, np.nan, batch.preference)
  some = batch._replace(preference=jnp.asarray(p), votes_missing=jnp.asarray(missing))
  found, every = (algorithm.loss(reference + 0.1, x) for x in (some, batch))
  assert float(found.weight.sum()) == SIZE**2 - missing.sum()
  np.testing.assert_allclose(found.value, np.where(missing > 0, 0, every.value), atol=1e-6)


@pytest.mark.parametrize('name', ['tau', 'tau_follower', 'follower_weight'])
def test_strengths_must_be_positive(name, preference):
  with pytest.raises(ValueError, match=f'{name} must be positive, got 0'):
    method(preference, **{name: 0.0})
