"""Memory of a Nash-MD step: what a dry run predicts, and what the device's allocator, or on a CPU the process, saw.

  python benchmarks/step_memory.py --size smollm2_135m --response 32 --output out.json

On Linux without an accelerator the peak of the resident set is taken, less what the process holds that is no array.
"""

import ctypes
import gc
import json
import pathlib

import jax
import optax
import training_speed

from nlhf_jax.training import loop


def resident(which: str) -> int:
  """VmRSS or VmHWM, in bytes."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split(f'{which}:')[1].split()[0]) * 1024


def peak_of(step) -> int:
  """Bytes of arrays and temporaries at the highest point of a step that has been compiled."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    step()
    return device.memory_stats()['peak_bytes_in_use']
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  others = resident('VmRSS') - sum(x.nbytes for x in jax.live_arrays())
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak so far.
  step()
  return resident('VmHWM') - others


def main() -> None:
  args = training_speed.arguments(__doc__).parse_args()
  setting = training_speed.setting_of(args)
  optimizer, method = optax.adamw(1e-5), setting.method()
  state = loop.init_state(method, optimizer, 0, online=setting.params, reference=setting.reference)
  setting.params = None  # The state has a copy of its own.
  shapes = jax.eval_shape(lambda: state)
  predicted = loop.memory(loop.programs(method, optimizer, shapes, setting.prompts))
  steps = loop._Steps(method, optimizer, 1, None)

  def step():
    nonlocal state
    state, _, metrics = steps(state, setting.prompts, loop._Clock())
    jax.block_until_ready(metrics)

  step()
  measured = peak_of(step)
  result = {'setting': vars(args), 'predicted': predicted, 'measured': measured}
  result['measured over predicted'] = measured / predicted['peak']
  print(json.dumps(result, indent=1))
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
