"""Compiles a Nash-MD step for an H100 on a machine that has none: seconds, kernels of a token, temporary memory.

  python benchmarks/compile_ahead.py --size smollm2_135m llama_1_5b t5_xl --output FILE

XLA is told of the device by its description. It tries out no kernels on it (autotuning), which on the device comes on top. Needs
jax[cuda13], JAX 0.11 or later, and what the other benchmarks of training need; no GPU.
"""

# isort: off
import os

# Read when JAX is imported, which `setting` does.
os.environ |= {'CUDA_VISIBLE_DEVICES': '-1', 'JAX_PLATFORMS': 'cpu'}
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_autotune_level=0'
import setting as settings
# isort: on

import argparse
import json
import pathlib
import re
from typing import Any

import accelerator_parts
import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nlhf_jax.networks.cpu import native
from nlhf_jax.training import loop, optimizers, steps

# Of an H100 SXM5; fields of XLA's GpuTargetConfigProto.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def on_device() -> jax.sharding.Sharding:
  """Of the device that is not there."""
  topology = topologies.get_topology_desc(platform='cuda', target_config=_H100, topology='1x1x1')
  mesh = topologies.make_mesh(topology, (1,), ('device',))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def programs(setting: settings.Setting, where: jax.sharding.Sharding) -> dict[str, Any]:
  """Name -> (function, shapes of its arguments): what a step compiles but for its judge."""
  shaped = lambda tree, dtype=None: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=where), tree
  )
  method, optimizer = setting.method(lambda *pairs: None), optimizers.adafactor()
  key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
  start = lambda online, reference: loop.init_state(
    method, optimizer, 0, online=online, given={'reference': reference}
  )
  reference = shaped(setting.shapes, setting.config.dtype)
  state = shaped(jax.eval_shape(start, setting.shapes, reference))
  run, prompts = steps.Steps(method, optimizer), shaped(setting.prompts)
  rollout = jax.eval_shape(method.sample, state.params, prompts, key)
  preference = jax.ShapeDtypeStruct((len(setting.prompts.tokens),), jnp.float32)
  scored = shaped(rollout._replace(prompts=setting.prompts, preference=preference))
  trained = shaped(jax.eval_shape(run.trained, state))
  update = lambda trained, *rest: run.update(trained, None, *rest)
  return {
    'random weights': (setting.policy.init, (shaped(key),)),
    'a policy': (setting.policy.sample, (state.params.online, prompts, shaped(key))),
    'both players': (method.sample, (state.params, prompts, shaped(key))),
    'update': (update, (trained, scored, shaped(state.step))),
  }


def kernels_of_a_token(text: str) -> int:
  """Fusions and library calls of the largest loop's body: the loop over tokens, where there is one. Sorts and copies are not counted."""
  bodies = re.findall(r'\n%\S+ \(.*?\{\n(.*?)\n\}', text, re.DOTALL)
  return max((x.count(' fusion(') + x.count(' custom-call(') for x in bodies), default=0)


def measure(function, shapes) -> dict[str, float]:
  """Seconds to trace and lower, and to compile; bytes of temporary arrays; kernels."""
  with native.unused():
    program, made = accelerator_parts.compiled(function, *shapes)
  return made | {'kernels_of_the_loop': kernels_of_a_token(program.as_text())}


def main() -> None:
  """Prints a line for each program, and writes all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--size', nargs='+', default=['smollm2_135m'], help='of benchmarks/setting.py')
  add('--batch', type=int, default=32)
  add('--prompt', type=int, default=512)
  add('--response', type=int, default=128)
  add('--remat', default='layers', help='what the update computes again: none, layers or dots')
  add('--scan', action='store_true', help='one compiled layer for all in training')
  add('--output', required=True)
  args = parser.parse_args()
  where, found = on_device(), {}
  for size in args.size:
    sizes = size, 'bfloat16', args.batch, args.prompt, args.response
    setting = settings.Setting(*sizes, remat=args.remat, scan=args.scan)
    for name, (function, shapes) in programs(setting, where).items():
      row = found[f'{size}, {name}'] = measure(function, shapes)
      print(f'{size}, {name}:', ', '.join(f'{key} {x:.4g}' for key, x in row.items()), flush=True)
  pathlib.Path(args.output).write_text(
    json.dumps(vars(args) | {'measured': found}, indent=1) + '\n'
  )


if __name__ == '__main__':
  main()
