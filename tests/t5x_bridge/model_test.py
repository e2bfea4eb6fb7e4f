"""Our methods under T5X's trainer, where T5X is installed (requirements-t5x.txt)."""

import functools
import pathlib
import re
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import algorithms
from nlhf_jax.cli import main
from nlhf_jax.models import policy, preference_model, rater, reward_model
from nlhf_jax.networks import decoding
from nlhf_jax.training import loop, parameter_sets, steps
from tests.conftest import tiny_network

pytest.importorskip('t5x.train_state', reason='T5X is not installed: see requirements-t5x.txt')

from t5x import adafactor

from nlhf_jax.data import vocabularies
from nlhf_jax.t5x_bridge import model as t5x_model

ROOT = pathlib.Path(__file__).parent.parent.parent
SHAPES = {'encoder_input_tokens': (4, 5), 'decoder_input_tokens': (4, 3)}
SMALL = (
  '--gin.corpora.generated_extracts.num_train=200',
  '--gin.corpora.generated_extracts.num_test=20',
)
# T5X keeps what the network has, so the judge is one that reads pairs.
PAIRS = '--gin.PREFERENCE_MODEL=@preference_model.from_rater()'
NO_WARMUP = '--gin.optimizers.warmup_linear.warmup_steps=0'
NETWORK = tiny_network()
POLICY = policy.from_network(NETWORK, decoding.Sampling(max_length=3))
JUDGE = preference_model.from_rater(rater.in_encoder(NETWORK, ((2,), (3,), (4,), (5,))))
REWARD = reward_model.from_rater(rater.in_encoder(NETWORK, ((2,), (3,), (4,))))
PREFERENCE_FN = functools.partial(preference_model.preference_fn, JUDGE)
REWARD_FN = functools.partial(reward_model.reward_fn, REWARD)
# What is trained, the method, its feedback, and sets besides its own.
METHODS = {
  'sft': (POLICY, algorithms.sft, None, {}),
  'preference': (JUDGE, algorithms.preference, None, {}),
  'reward': (REWARD, algorithms.reward, None, {}),
  'rlhf': (POLICY, functools.partial(algorithms.rlhf, tau=0.1), REWARD_FN, {}),
  'nash_md_pg': (
    POLICY,
    functools.partial(algorithms.nash_md_pg, tau=0.1, beta=0.3, num_samples=2),
    PREFERENCE_FN,
    {},
  ),
  'nash_ema_pg': (
    POLICY,
    functools.partial(algorithms.nash_ema_pg, tau=0.1, decay=0.5),
    PREFERENCE_FN,
    {},
  ),
  'inpo': (
    POLICY,
    functools.partial(algorithms.inpo, tau=0.1, eta=0.5, refresh_every=2),
    PREFERENCE_FN,
    {},
  ),
  'magnet': (
    POLICY,
    functools.partial(algorithms.self_play, tau=0.1),
    PREFERENCE_FN,
    {
      'reference': parameter_sets.reference(reset_every=2),
      'ring': parameter_sets.ring(size=2, every=1),
    },
  ),
}


def wrap(name):
  trained, method, feedback, sets = METHODS[name]
  vocabulary = vocabularies.byte()
  return t5x_model.Model(
    NETWORK,
    vocabulary,
    vocabulary,
    adafactor.Adafactor(),
    model=trained,
    algorithm=method,
    feedback=feedback,
    judge_module=None if feedback is None else NETWORK,
    sets=sets,
  )


def batches(name):
  """As T5X's input pipeline would give them."""
  for number in range(100):
    rng = np.random.default_rng(number)
    tokens = lambda rng=rng: jnp.asarray(rng.integers(2, 6, (4, 3)), jnp.int32)
    batch = {'encoder_input_tokens': jnp.asarray(rng.integers(2, 6, (4, 5)), jnp.int32)}
    if name in ('sft', 'preference', 'reward'):
      batch |= {'decoder_target_tokens': tokens()}
    if name in ('preference', 'reward'):
      batch |= {'alternative_tokens': tokens(), 'preference': jnp.asarray(rng.random(4))}
    yield batch


@pytest.mark.parametrize('name', METHODS)
def test_four_steps_are_those_of_our_loop(name):
  """The same weights, whoever drives, and the same other sets: averages, snapshots, rings, the reference."""
  trained, method, feedback, sets = METHODS[name]
  wrapped, optimizer, rng = wrap(name), optax.sgd(0.5), jax.random.PRNGKey(3)
  variables = flax.core.unfreeze(jax.jit(lambda: wrapped.get_initial_variables(rng, SHAPES))())
  params = variables.pop('params')
  mutables = {k: v for k, v in variables.items() if not k.endswith('_axes')}
  judge = mutables.get('judge')
  if 'reference' in mutables:  # A reference of its own, so that a mixture is one.
    mutables['reference'] = jax.tree.map(lambda x: 1.5 * x, mutables['reference'])

  needs = [] if feedback is None else [feedback(params=judge)]
  algorithm = parameter_sets.extend(method(trained, *needs), sets)
  given = {name: mutables[name] for name in ('reference',) if name in mutables}
  ours = loop.init_state(algorithm, optimizer, 0, online=params, given=given)
  base = ours.rng
  ours = loop.train(algorithm, optimizer, ours, map(t5x_model.as_batch, batches(name)), num_steps=4)

  @jax.jit
  def update(params, opt_state, mutables, batch, key):
    loss = lambda params: wrapped.loss_fn(params, batch, key, *([mutables] if mutables else []))
    gradient, aux = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    after = flax.core.unfreeze(aux[1]) if mutables else mutables
    return optax.apply_updates(params, updates), opt_state, after

  opt_state = optimizer.init(params)
  for step, batch in zip(range(4), batches(name), strict=False):
    key = steps.step_key(base, step)
    params, opt_state, mutables = update(params, opt_state, mutables, batch, key)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, params, ours.params.online)
  # T5X moves the other sets at the start of a step, the loop at its end.
  moved = wrapped._played(wrapped._moved(params, mutables, next(batches(name))))
  for set_name in wrapped.sets:
    jax.tree.map(close, moved[set_name], ours.params.sets[set_name])


def test_refusals_of_what_t5x_cannot_run():
  egpo = functools.partial(algorithms.egpo, tau=0.1)
  vocabulary = vocabularies.byte()
  make = functools.partial(
    t5x_model.Model,
    NETWORK,
    vocabulary,
    vocabulary,
    adafactor.Adafactor(),
    model=POLICY,
    feedback=PREFERENCE_FN,
    judge_module=NETWORK,
  )
  with pytest.raises(ValueError, match='one update a step, this method two'):
    make(algorithm=egpo)
  with pytest.raises(ValueError, match='takes annotators apart'):
    make(algorithm=functools.partial(algorithms.blackwell_pg, tau=0.1))
  head = rater.in_encoder(NETWORK, ((2,), (3,), (4,)), head=rater.linear())
  with pytest.raises(ValueError, match=r'RewardModel has others \(head\)'):
    make(algorithm=algorithms.reward, model=reward_model.from_rater(head), feedback=None)
  reward_fn = functools.partial(reward_model.reward_fn, reward_model.from_rater(head))
  with pytest.raises(ValueError, match='asks for others'):
    make(algorithm=functools.partial(algorithms.rlhf, tau=0.1), feedback=reward_fn)
  averaged = wrap('nash_ema_pg')
  variables = jax.eval_shape(lambda: averaged.get_initial_variables(jax.random.PRNGKey(0), SHAPES))
  half = {'encoder_input_tokens': jnp.ones((2, 5), jnp.int32)}
  with pytest.raises(ValueError, match='num_microbatches must be None'):
    averaged.loss_fn(variables['params'], half, jax.random.PRNGKey(0), dict(variables))


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """SFT and a preference model of ours, two steps each, exported to T5X."""
  root = tmp_path_factory.mktemp('t5x')
  quick = ['--gin.NUM_STEPS=2', '--gin.BATCH_SIZE=8', NO_WARMUP, PAIRS, *SMALL]
  for stage in ('sft', 'preference'):
    assert (
      main.main(
        ['train', f'--experiment=extracts/{stage}', f'--run_dir={root}/runs/{stage}', *quick]
      )
      == 0
    )
    export = ['export', f'--run_dir={root}/runs/{stage}', f'--output_dir={root}/{stage}']
    assert main.main([*export, '--to=t5x']) == 0
  return root


def run_job(start, name, devices, steps, *flags):
  """`python -m t5x.train` as a user would call it; returns its losses in training."""
  values = {
    'MODEL_DIR': f"'{start}/{name}'",
    'SFT': f"'{start}/sft'",
    'JUDGE_CHECKPOINT': f"'{start}/preference'",
    'TRAIN_STEPS': steps,
    'PERIOD': 2,
    'BATCH_SIZE': 16,
    'train/DatasetConfig.seed': 0,
    'train.eval_steps': 1,
  }
  command = [sys.executable, '-m', 't5x.train', f'--gin_search_paths={ROOT}', '--alsologtostderr']
  command += ['--gin_file=configs/t5x/nash_md_pg.gin', *SMALL, *flags]
  command += [f'--gin.{key}={value}' for key, value in values.items()]
  environment = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=main.os.environ | environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = re.findall(r'\[(\d+)\] collection=train .*?\bloss=([-\d.e]+)', done.stderr)
  return {int(step): float(loss) for step, loss in lines}


def test_job_through_t5x_train_on_1_and_8_devices(start):
  """One device, eight that divide the batch, and eight of which two share a model: the same losses; then it resumes."""
  one = run_job(start, 'one', 1, 4)
  assert one.keys() == {2, 4}
  for name, flags in {'eight': (), 'four_by_two': ('--gin.MODEL_SUBMESH=(1, 2)',)}.items():
    losses = run_job(start, name, 8, 4, *flags)
    assert losses == pytest.approx(one, rel=1e-3, abs=1e-5)
  assert run_job(start, 'eight', 8, 6).keys() == {6}


def test_t5xs_network_in_place_of_ours(start):
  """`nlhf train` on T5X's module, through gin, from weights that ours has trained; and its samples."""
  gin_files = ['--experiment=extracts/nash_md_pg', f'--gin_file={ROOT}/configs/networks/t5x.gin']
  quick = ['--gin.NUM_STEPS=2', '--gin.BATCH_SIZE=4', '--gin.ALL_PAIRS=False', NO_WARMUP, PAIRS]
  quick += SMALL
  run_dir = start / 'runs' / 'theirs'
  assert main.main(['train', *gin_files, f'--run_dir={run_dir}', *quick]) == 0
  assert (run_dir / 'checkpoints').is_dir()
