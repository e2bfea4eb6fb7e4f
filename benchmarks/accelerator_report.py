"""What `accelerator.py` writes of each part, and the tables made of it. Needs no JAX, so that it never holds the device.

A part's file is one JSON object:

  part, size      what was measured, of which network; of a stage of an experiment, 'stage' and its name
  status          'running' (or killed), 'complete', 'failed', 'time limit'
  error           of what did not complete, one line; null
  setting         the flags that it ran with
  device          {kind, platform, number, memory_bytes, jax, vendor_peak: {bytes_per_second, operations_per_second} or null}
  probe           {bytes_per_second, operations_per_second, dtype}: of this device, measured by this process; null for stages
  measured        a list of {name, seconds: {median, low, high, repeats}}, and where it applies: lower_seconds and
                  compile_seconds (tracing and lowering; XLA), temporary_bytes (of the program), and
                  bytes or operations, with `share` of the probe's rate that `of` names
  memory          {peak_bytes, after_probe_bytes}: the allocator's peak, and what of it the probes had taken; null where a
                  device does not tell
  wall_seconds    of the process so far
"""

import json
import pathlib
import time
from typing import Any

from nlhf_jax.runtime import atomic

COMPLETE, FAILED, RUNNING, LIMIT = 'complete', 'failed', 'running', 'time limit'
_COLUMNS = ('part', 'what', 'median', 'low to high', 'share', 'of', 'compile', 'peak')


class Report:
  """A part's file, which is replaced whenever there is more to tell."""

  def __init__(self, path: pathlib.Path, part: str, size: str, setting: dict[str, Any]):
    self._path, self._start = path, time.perf_counter()
    self.content: dict[str, Any] = {'part': part, 'size': size, 'status': RUNNING, 'error': None}
    self.content |= {'setting': setting, 'device': None, 'probe': None, 'measured': []}
    self.content |= {'memory': {'peak_bytes': None, 'after_probe_bytes': None}}
    self.write()

  def write(self, **changes: Any) -> None:
    """Changes fields, and writes all."""
    self.content |= changes | {'wall_seconds': time.perf_counter() - self._start}
    atomic.write_json(self._path, self.content, indent=1)

  def add(self, row: dict[str, Any], **changes: Any) -> None:
    """One more measurement."""
    self.write(measured=[*self.content['measured'], row], **changes)

  def fail(self, error: BaseException) -> None:
    """What ended it, in a line."""
    self.write(status=FAILED, error=one_line(error))


def one_line(error: BaseException) -> str:
  """An error's kind and the beginning of its message; what memory did not suffice for is called that."""
  text = ' '.join(str(error).split())
  memory = isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text
  return f'{"out of memory: " if memory else ""}{type(error).__name__}: {text[:400]}'


def read(path: pathlib.Path) -> dict[str, Any] | None:
  """A part's file; None: there is none that can be read."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return None


def end(path: pathlib.Path, status: str, error: str, **otherwise: Any) -> dict[str, Any]:
  """Says of a part whose process has ended why it did not complete; what it had measured stays."""
  found = read(path) or {**otherwise, 'measured': [], 'memory': {}, 'device': None, 'probe': None}
  found |= {'status': status, 'error': error}
  atomic.write_json(path, found, indent=1)
  return found


def table(results: list[dict[str, Any]]) -> str:
  """A Markdown table of each size, after what the device is and can do."""
  lines = []
  for size in dict.fromkeys(result['size'] for result in results):
    own = [result for result in results if result['size'] == size]
    if not any(map(_cells, own)):
      continue
    lines += ['', f'{size}: {_setting(own)}', '', _row(_COLUMNS), _row(['---'] * len(_COLUMNS))]
    for result in own:
      lines += [_row(cells) for cells in _cells(result)]
  return '\n'.join([*_device(results), *lines])


def _device(results: list[dict[str, Any]]) -> list[str]:
  lines = {}
  for result in results:
    if not (found := result.get('device')):
      continue
    peak = found['vendor_peak'] or {}
    for name, rate in (result.get('probe') or {}).items():
      if name != 'dtype':
        lines.setdefault((found['kind'], name), ([], peak.get(name)))[0].append(rate)
  told = []
  for (kind, name), (rates, peak) in lines.items():
    of_peak = f', {max(rates) / peak:.2f} of the vendor peak {peak:.3g}' if peak else ''
    told.append(f'- {kind}: {min(rates):.3g} to {max(rates):.3g} {name}{of_peak}')
  return told


def _setting(results: list[dict[str, Any]]) -> str:
  shown = ('batch', 'prompt', 'response', 'dtype', 'frozen_dtype', 'remat', 'scan', 'model')
  setting = results[0].get('setting') or {}
  return ', '.join(f'{name} {setting[name]}' for name in shown if setting.get(name) is not None)


def _cells(result: dict[str, Any]) -> list[list[str]]:
  part, peak = result['part'], (result.get('memory') or {}).get('peak_bytes')
  rows = []
  for row in result['measured']:
    seconds = row.get('seconds', {})
    low_high = f'{_time(seconds["low"])} to {_time(seconds["high"])}' if 'low' in seconds else ''
    share = f'{row["share"]:.2f}' if 'share' in row else ''
    compile_seconds = sum(row.get(f'{x}_seconds', 0) for x in ('lower', 'compile'))
    rows.append(
      [
        part,
        row['name'],
        _time(seconds['median']) if seconds else row.get('text', ''),
        low_high,
        share,
        row.get('of', '').replace('_per_second', ''),
        f'{compile_seconds:.0f} s' if compile_seconds else '',
        f'{peak / 1e9:.1f} GB' if peak else '',
      ]
    )
  if result['status'] != COMPLETE:
    rows.append([part, f'{result["status"]}: {result["error"]}', *[''] * (len(_COLUMNS) - 2)])
  return rows


def _time(seconds: float) -> str:
  return f'{seconds:.2f} s' if seconds >= 1 else f'{1e3 * seconds:.3g} ms'


def _row(cells) -> str:
  return f'| {" | ".join(cells)} |'
