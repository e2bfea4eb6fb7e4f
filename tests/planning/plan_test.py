"""What a plan says of a mesh that is not here, beside what can be counted by hand."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from nlhf_jax.cli import main
from nlhf_jax.planning import chips, plan
from nlhf_jax.runtime import partitioning
from nlhf_jax.training import weights
from tests.runtime import run_of_many

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def alone():
  mesh = partitioning.make_mesh(partitioning.Devices(), jax.devices()[:1])
  one = run_of_many.experiment(1, 1)
  return plan.make(one._replace(shapes=lambda kind: next(run_of_many.batches(0))), mesh)


def test_one_device_holds_all_and_sends_nothing(alone):
  one = run_of_many.experiment(1, 1)
  size = sum(x.size for x in jax.tree.leaves(weights.shapes_of(one.model)))
  assert alone.parameters == {'model': size, 'judge': size}
  assert alone.memory['judge_weights'] == 4 * size
  assert alone.memory['state'] > 3 * 4 * size  # θ, θ̄, μ and moments.
  assert all(not phase.bytes_sent for phase in alone.phases.values())
  assert alone.num_tokens == 8 * 2 * 5


def test_reference_in_the_hosts_memory(alone):
  one = run_of_many.experiment(1, 1)._replace(reference_on_host=True)
  one = one._replace(shapes=lambda kind: next(run_of_many.batches(0)))
  mesh = partitioning.make_mesh(partitioning.Devices(), jax.devices()[:1])
  found, weights = plan.make(one, mesh).memory, alone.memory['judge_weights']
  assert alone.memory['state'] - found['state'] == weights
  assert found['sample'] - alone.memory['sample'] == weights


def test_operations_of_the_judge(alone):
  """The judge: 2 · weights · tokens for products with weights, and attention; 2 orders of all 2 · 2 pairs of 8 prompts, of 6 + 10 + 4 tokens."""
  cfg = run_of_many.NETWORK.config
  rows, length = 2 * 8 * 2 * 2, 4 + 6 + 2 * 5
  joined = cfg.num_heads * cfg.head_dim
  attention, mlp = 4 * cfg.emb_dim * joined, 3 * cfg.emb_dim * cfg.mlp_dim
  encoder = rows * length * 2 * (attention + mlp) + rows * length * length * 4 * joined
  # The decoder reads one token, and the encoding.
  decoder = rows * 2 * (2 * attention + mlp) + rows * 4 * joined * (1 + length)
  cross = rows * (length - 1) * 2 * 2 * cfg.emb_dim * joined
  logits = rows * 2 * cfg.emb_dim * cfg.vocab_size
  expected = encoder + decoder + cross + logits
  assert alone.phases['score'].operations == pytest.approx(expected, rel=0.02)
  seconds = plan.seconds(alone.phases['score'], chips.CHIPS['v5e'], alone.mesh)
  assert seconds['operations'] == alone.phases['score'].operations / 197e12
  assert seconds['interconnect'] == 0


def test_interconnect_within_a_node_and_network_beyond():
  """An H100's node has eight: along tensor within it, along fsdp beyond."""
  mesh, chip = {'data': 1, 'fsdp': 8, 'tensor': 4}, chips.CHIPS['h100']
  times = [
    plan.seconds(plan.Phase(0.0, 0.0, {('all-reduce', along): 1e9}), chip, mesh)['interconnect']
    for along in ('tensor', 'fsdp', 'fsdp x tensor')
  ]
  assert times == [1e9 / chip.interconnect, 1e9 / chip.network, 1e9 / chip.network]


def test_command_plans_for_devices_that_are_not_here(tmp_path, alone):
  argv = [sys.executable, '-m', 'nlhf_jax', 'plan', '--mesh=fsdp=2,tensor=2']
  argv += ['--experiment=builtin/nash_md_pg', '--gin.sizes.network.num_layers=1']
  argv += [f'--output={tmp_path / "plan.json"}', '--chips', 'v5p']
  done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads((tmp_path / 'plan.json').read_text())
  assert found['mesh'] == {'data': 1, 'fsdp': 2, 'tensor': 2}
  assert found['phases']['update']['bytes_sent']['all-gather, fsdp'] > 0
  assert 'v5p' in done.stdout and 'h100' not in done.stdout


def test_mesh_that_cannot_be_read_is_refused(capsys):
  argv = ['plan', '--experiment=builtin/sft', '--mesh=model=4']
  assert main.main(argv) == 2
  assert "--mesh has 'model=4': write data=N,fsdp=N,tensor=N" in capsys.readouterr().err
