"""What was written can be read again, once, from metrics.jsonl and from TensorBoard's events."""

import json
import struct
import time

import pytest
from tensorboardX.proto import event_pb2

from nlhf_jax.runtime import events, metrics


def shown(run_dir):
  """(step, loss) as TensorBoard shows them: a new session hides earlier events from its step on."""
  found = []
  for path in sorted(run_dir.glob('events.*')):  # Named by the second they were opened in.
    data = path.read_bytes()
    while data:
      # Then its checksum (4), the event, its checksum (4).
      (length,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      if event.session_log.status == event_pb2.SessionLog.START:
        found = [item for item in found if item[0] < event.step]
      found += [(event.step, x.simple_value) for x in event.summary.value if x.tag == 'loss']
  return found


def write_losses(run_dir, rows, resume_step=0):
  about = metrics.About(run_dir, resume_step=resume_step)
  writers = metrics.files(about), events.tensorboard(about)
  for step, loss in rows:
    for writer in writers:
      writer.scalars(step, {'loss': loss})
  for writer in writers:
    writer.close(True)


@pytest.mark.parametrize(
  ('resume_step', 'kept'), [(2, [(1, 1.0), (2, 2.0)]), (0, [])], ids=['resumed', 'anew']
)
@pytest.mark.parametrize('days', [0, 1, -60])
def test_resume_after_a_kill(tmp_path, monkeypatch, resume_step, kept, days):
  """Within the same second, later, and by a clock that has been set back since."""
  write_losses(tmp_path, [(1, 1.0), (2, 2.0), (3, 3.0)])
  now = time.time()
  monkeypatch.setattr(time, 'time', lambda: now + days * 86400)
  write_losses(tmp_path, [(3, 30.0)], resume_step=resume_step)
  rows = metrics.read_rows(tmp_path / 'metrics.jsonl')
  assert [(row['step'], row['loss']) for row in rows] == [*kept, (3, 30.0)]
  assert shown(tmp_path) == [*kept, (3, 30.0)]


def test_strict_json_of_every_line(tmp_path):
  def refuse(constant):
    raise ValueError(constant)

  writer = metrics.files(metrics.About(tmp_path))
  writer.scalars(1, {'a': float('nan'), 'b': float('-inf'), 'c': 0.1})
  text = (tmp_path / 'metrics.jsonl').read_text()  # Before the file is closed.
  writer.close(True)
  row = json.loads(text, parse_constant=refuse)
  assert row == {'step': 1, 'a': None, 'b': None, 'c': 0.1}


def test_truncated_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
  write_losses(tmp_path, [(2, 2.0)], resume_step=1)
  assert [row['step'] for row in metrics.read_rows(path)] == [1, 2]
  corrupt = '{"step": 1, "lo\n{"step": 2, "loss": 2.0}\n'
  path.write_text(corrupt)
  with pytest.raises(ValueError, match=r'metrics.jsonl:1 is no JSON.*delete that line'):
    metrics.files(metrics.About(tmp_path, resume_step=2))
  assert path.read_text() == corrupt


def test_warnings_of_later_steps_are_dropped(tmp_path):
  """As metrics are; a run without any has no file."""
  write_losses(tmp_path, [(1, 1.0)])
  assert not (tmp_path / 'warnings.jsonl').exists()
  for resume_step, step in ((0, 5), (3, 4)):
    writer = metrics.files(metrics.About(tmp_path, resume_step=resume_step))
    writer.text(step, 'responses_cut', 'line\u2028break')
    writer.close(False)
  assert metrics.read_rows(tmp_path / 'warnings.jsonl') == [
    {'step': 4, 'name': 'responses_cut', 'text': 'line\u2028break'}
  ]


@pytest.mark.parametrize('name', [metrics.METRICS, metrics.WARNINGS])
@pytest.mark.parametrize('content', ['{"step": 9, "loss": 1.0}\n', 'export PATH\n', None])
def test_link_out_of_the_run_is_refused(tmp_path, name, content):
  """What it leads to is neither rewritten nor appended to; it may hold rows, or anything, or not be there."""
  run, theirs = tmp_path / 'run', tmp_path / 'theirs'
  run.mkdir()
  if content is not None:
    theirs.write_text(content)
  (run / name).symlink_to(theirs)
  reason = rf'{name} is a link to .*theirs, outside of its directory.*Delete the link'
  for write in (
    lambda: metrics.files(metrics.About(run)),
    lambda: metrics.append_rows(run / name, [{'step': 1}]),
  ):
    with pytest.raises(OSError, match=reason) as caught:
      write()
    assert '\n' not in str(caught.value)
  assert (theirs.read_text() if theirs.exists() else None) == content
