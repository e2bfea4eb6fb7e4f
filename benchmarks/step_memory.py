"""Memory of a Nash-MD step: what a dry run predicts, and what the device's allocator, or on a CPU the process, measured.

  python benchmarks/step_memory.py --size smollm2_135m --response 32 --output out.json

On Linux without an accelerator the peak of the resident set is taken, less what the process holds that is no array.
"""

# isort: off
import setting as settings
# isort: on

import ctypes
import gc
import json
import pathlib

import jax
import optax

from nlhf_jax.planning import programs
from nlhf_jax.training import loop, steps


def resident(field: str) -> int:
  """Bytes of VmRSS or VmHWM, of Linux."""
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split(f'{field}:')[1].split()[0]) * 1024


def peak_memory(step) -> int:
  """Bytes of arrays and temporaries at the highest point of a step that has been compiled."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    step()
    return device.memory_stats()['peak_bytes_in_use']
  gc.collect()
  ctypes.CDLL('libc.so.6').malloc_trim(0)
  others = resident('VmRSS') - sum(x.nbytes for x in jax.live_arrays())
  # Forgets the peak so far.
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  step()
  return resident('VmHWM') - others


def main() -> None:
  """Predicts, measures, prints and writes."""
  args = settings.arguments(__doc__).parse_args()
  setting = settings.make(args)
  optimizer, method = optax.adamw(1e-5), setting.method()
  given = {'reference': setting.reference}
  state = loop.init_state(method, optimizer, 0, online=setting.params, given=given)
  setting.params = None  # The state has a copy of its own.
  shapes = jax.eval_shape(lambda: state)
  compiled = programs.compile_step(method, optimizer, shapes, setting.prompts)
  predicted = programs.memory(compiled)
  run = steps.Steps(method, optimizer)

  def step():
    nonlocal state
    state, _, metrics = run(state, setting.prompts, steps.Clock())
    jax.block_until_ready(metrics)

  step()
  measured = peak_memory(step)
  result = {'setting': vars(args), 'predicted': predicted, 'measured': measured}
  result['measured over predicted'] = measured / predicted['peak']
  print(json.dumps(result, indent=1))
  pathlib.Path(args.output).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
